from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile

from pipeline.classes import load_class_map
from pipeline.datasets.farmland import mosaic, territories
from pipeline.datasets.farmland.mosaic import NO_CLASS, generate_strips, write_mosaic
from pipeline.store.url import Url

SIZE = 700


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("mosaic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(territories, "_TERRITORY_PX", 300)
        write_mosaic(Url(str(folder / "m.tif")), size_px=SIZE, seed=5, label=Url(str(folder / "label.tif")))
    return folder / "m.tif", folder / "label.tif"


def bands_and_label(written: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
    with rasterio.open(written[0]) as raster, rasterio.open(written[1]) as label:
        return raster.read(), label.read(1)


def test_strips_come_from_north_to_south_and_every_pixel_outside_the_wedge_has_a_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(territories, "_TERRITORY_PX", 300)
    tops, strips = zip(*generate_strips(SIZE + 500, 6), strict=True)
    assert tops == (0, 512, 1024)
    label = np.concatenate(strips)[..., 4]
    assert label.shape == (SIZE + 500, SIZE + 500)
    y, x = np.indices(label.shape)
    np.testing.assert_array_equal(label == NO_CLASS, x >= 1200 - mosaic.WEDGE_SHARE * (1200 - y))


def test_label_and_valid_mask_agree_and_no_valid_pixel_is_zero(written) -> None:
    bands, label = bands_and_label(written)
    wedge = label == NO_CLASS
    assert 0.05 < wedge.mean() < 0.07
    assert (bands[:, wedge] == 0).all()
    assert (bands[:, ~wedge] > 0).all()
    assert label[~wedge].max() < len(load_class_map("farmland"))
    with rasterio.open(written[0]) as raster, rasterio.open(written[1]) as label_raster:
        np.testing.assert_array_equal(raster.dataset_mask() == 0, wedge)
        np.testing.assert_array_equal(label_raster.dataset_mask() == 0, wedge)
        assert raster.transform == label_raster.transform


def test_the_file_is_what_cameras_with_near_infrared_leave(written) -> None:
    with rasterio.open(written[0]) as raster:
        assert raster.descriptions == ("red", "green", "blue", "nir")
        assert raster.dtypes == ("uint8",) * 4
        assert raster.crs.linear_units == "metre"
        assert raster.res == (0.25, 0.25)
        assert (raster.nodata, raster.block_shapes[0]) == (0, (512, 512))
    with tifffile.TiffFile(written[0]) as tiff:
        tags = tiff.pages.first.tags
        assert {name: tags[name].value for name in ("PhotometricInterpretation", "Compression", "Predictor")} == {
            "PhotometricInterpretation": tifffile.PHOTOMETRIC.RGB,
            "Compression": tifffile.COMPRESSION.ADOBE_DEFLATE,
            "Predictor": tifffile.PREDICTOR.HORIZONTAL,
        }
        assert tags["ExtraSamples"].value == (tifffile.EXTRASAMPLE.UNSPECIFIED,)


def test_the_label_has_the_colours_of_the_classes(written) -> None:
    with rasterio.open(written[1]) as label:
        colours = label.colormap(1)
    assert [colours[index][:3] for index in range(7)] == [one.colour for one in load_class_map("farmland").classes]


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 2):
        write_mosaic(Url(str(tmp_path / f"{workers}.tif")), size_px=160, seed=9, workers=workers)
    assert (tmp_path / "1.tif").read_bytes() == (tmp_path / "2.tif").read_bytes()


def test_another_seed_is_another_landscape() -> None:
    (_, first), (_, second) = (next(generate_strips(90, seed)) for seed in (1, 2))
    assert (first[..., :4] != second[..., :4]).mean() > 0.8
