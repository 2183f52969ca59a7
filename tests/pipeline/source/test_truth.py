"""Labels of rasters: those of windows are those of the whole raster, and label rasters of another grid are refused."""

import zipfile
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio import features

from pipeline.classes import load_class_map
from pipeline.config import RasterConfig
from pipeline.errors import ConfigError, LabelError
from pipeline.geotiff.raster import Raster
from pipeline.image.encode import read_mask_png
from pipeline.records import Window
from pipeline.source.plan import plan_source, read_items
from pipeline.source.raster import RGB, describe
from pipeline.source.truth import RasterLabels, find_labels, label_notes
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.polygons import geojson, squares
from tests.support.rasters import UTM, config, values, write_raster

CLASSES = load_class_map("farmland")
HEIGHT, WIDTH = 700, 900


@pytest.fixture
def raster(tmp_path: Path) -> Raster:
    pixels = values(HEIGHT, WIDTH, 3)
    pixels[:, :120, :300] = 0
    path = write_raster(tmp_path / "rasters/deep/a.tif", pixels, nodata=0)
    url = Url(str(path))
    raster, _, _ = describe(url, objects.info(url), RasterConfig(), RGB)
    return Raster.from_json(raster.to_json() | {"path": "deep/a.tif"})


def class_ids() -> np.ndarray:
    return np.kron(np.random.default_rng(1).integers(0, 6, (70, 90), np.uint8), np.ones((10, 10), np.uint8))


def read_labels(source: Path, labels: RasterLabels) -> np.ndarray:
    """(H, W) label put together from the windows of a run."""
    out = np.full((HEIGHT, WIDTH), 77, np.uint8)
    cfg = config(source)
    for shard in plan_source(cfg, RGB).shards:
        for item in read_items(shard, cfg.read, max_bytes=1, truth=labels):
            assert item.failure is None
            assert item.label is not None
            core = item.window
            out[core.y : core.y + core.height, core.x : core.x + core.width] = read_mask_png(item.label)
    return out


@pytest.mark.parametrize("palette", [False, True])
def test_windows_have_the_label_rasters_ids_and_ignore_pixels_without_data(palette, raster, tmp_path: Path) -> None:
    ids = class_ids()
    ids[300:310] = 9
    colours = {"photometric": "palette"} if palette else {}
    write_raster(tmp_path / "labels/deep/a.tif", ids[None], nodata=9, **colours)
    found = read_labels(tmp_path / "rasters", find_labels(str(tmp_path / "labels"), field=None, classes=CLASSES))
    ids[300:310] = 255
    ids[:120, :300] = 255
    np.testing.assert_array_equal(found, ids)


def test_windows_have_the_polygons_of_the_whole_raster_and_the_last_file_wins(raster, tmp_path: Path) -> None:
    shapes, ids = squares(raster, 30)
    for name, half in (("a.geojson", slice(15)), ("b.geojson", slice(15, 30))):
        objects.put(Url(str(tmp_path / "drawn" / name)), geojson(shapes[half], ids[half], crs="EPSG:32614"))
    labels = find_labels(str(tmp_path / "drawn"), field="kind", classes=CLASSES, unlabelled=CLASSES.names[4])
    assert label_notes(labels) == []
    pairs = list(zip(shapes, ids, strict=True))
    where = rasterio.Affine(*raster.transform)
    whole = features.rasterize(pairs, (HEIGHT, WIDTH), fill=4, transform=where, dtype="uint8")
    np.testing.assert_array_equal(labels.read(raster, Window(0, 0, HEIGHT, WIDTH)), whole)
    whole[:120, :300] = 255
    np.testing.assert_array_equal(read_labels(tmp_path / "rasters", labels), whole)


def test_a_shapefile_labels_rasters_and_the_archive_that_it_came_in_is_not_read_again(raster, tmp_path: Path) -> None:
    shapes, ids = squares(raster, 20)
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    geopandas.GeoDataFrame({"kind": ids}, geometry=shapes, crs="EPSG:32614").to_file(drawn / "fields.shp")
    with zipfile.ZipFile(drawn / "fields.zip", "w") as archive:
        for suffix in (".shp", ".shx", ".dbf", ".prj"):
            archive.write(drawn / f"fields{suffix}", f"deep/fields{suffix}")
    found = {place: find_labels(str(drawn / place), field="kind", classes=CLASSES) for place in ("", "fields.zip")}
    assert [url.rpartition("/")[2] for url, _ in found[""].files] == ["fields.shp"]
    whole = features.rasterize(
        list(zip(shapes, ids, strict=True)),
        (HEIGHT, WIDTH),
        fill=255,
        transform=rasterio.Affine(*raster.transform),
        dtype="uint8",
    )
    for labels in found.values():
        np.testing.assert_array_equal(labels.read(raster, Window(0, 0, HEIGHT, WIDTH)), whole)
    planned = found[""].files
    (drawn / "fields.dbf").write_bytes((drawn / "fields.dbf").read_bytes() + b" ")
    assert find_labels(str(drawn), field="kind", classes=CLASSES).files != planned


@pytest.mark.parametrize(
    ("profile", "size", "words"),
    [
        ({}, (HEIGHT, WIDTH - 1), "700x899 pixels, the raster 700x900"),
        ({"transform": UTM["transform"] @ rasterio.Affine.translation(0.5, 0)}, (HEIGHT, WIDTH), "0.5 pixels away"),
        ({"crs": "EPSG:32613"}, (HEIGHT, WIDTH), "EPSG:32613 and EPSG:32614"),
    ],
)
def test_a_label_raster_of_another_grid_is_refused_by_name(profile, size, words, raster, tmp_path: Path) -> None:
    write_raster(tmp_path / "labels/deep/a.tif", class_ids()[None, : size[0], : size[1]], **profile)
    labels = find_labels(str(tmp_path / "labels"), field=None, classes=CLASSES)
    with pytest.raises(LabelError, match=words) as refused:
        labels.read(raster, Window(0, 0, 64, 64))
    assert refused.value.code == "label_size"


def test_a_missing_label_raster_fails_its_windows_alone(raster, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    write_raster(tmp_path / "labels/other.tif", class_ids()[None])
    cfg, labels = config(tmp_path / "rasters"), find_labels(str(tmp_path / "labels"), field=None, classes=CLASSES)
    (shard,) = plan_source(cfg, RGB).shards
    codes = {item.failure and item.failure.code for item in read_items(shard, cfg.read, max_bytes=1, truth=labels)}
    assert codes == {"label_missing"}


def test_a_value_that_is_no_class_is_named(raster, tmp_path: Path) -> None:
    write_raster(tmp_path / "labels/deep/a.tif", np.full((1, HEIGHT, WIDTH), 99, np.uint8))
    with pytest.raises(LabelError, match="the value 99 on 4096"):
        find_labels(str(tmp_path / "labels"), field=None, classes=CLASSES).read(raster, Window(0, 0, 64, 64))


def test_places_and_classes_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    for place, words in ((tmp_path / "none", "does not exist"), (tmp_path / "none.gpkg", "does not exist")):
        with pytest.raises(ConfigError, match=words):
            find_labels(str(place), field="kind", classes=CLASSES)
    with pytest.raises(ConfigError, match="'lava' is no class"):
        find_labels(str(tmp_path), field="kind", classes=CLASSES, unlabelled="lava")
