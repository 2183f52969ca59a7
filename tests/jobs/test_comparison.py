"""Change between two masks against one read of both, brought to one grid by GDAL."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from rasterio import features
from rasterio.transform import from_origin
from rasterio.warp import Resampling, reproject

from jobs.comparison import compare
from pipeline.classes import load_class_map
from pipeline.config import PolygonsConfig, ZonesConfig
from pipeline.errors import ConfigError, JobError
from pipeline.store.url import Url
from tests.support.polygons import geojson
from tests.support.raster_runs import busy_mask

CLASSES = load_class_map("farmland")
K = len(CLASSES)
BEFORE = {"crs": "EPSG:32614", "transform": from_origin(485900, 5209245, 0.5, 0.5)}
GRIDS = {
    "the same grid": BEFORE,
    "a shifted grid": BEFORE | {"transform": from_origin(485911.3, 5209240.1, 0.5, 0.5)},
    "other pixels": BEFORE | {"transform": from_origin(485890, 5209260, 0.8, 0.7)},
    "degrees": {"crs": "EPSG:4326", "transform": from_origin(-99.1858, 47.0361, 6e-6, 4.5e-6)},
}


def write_mask(path: Path, ids: np.ndarray, **place: object) -> Path:
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255, "tiled": True, "blockxsize": 256}
    size = {"height": ids.shape[0], "width": ids.shape[1], "blockysize": 256, "compress": "deflate"}
    with rasterio.open(path, "w", **profile, **size, **place) as dataset:
        dataset.write(ids, 1)
    return path


def compared(folder: Path, before: Path, after: Path, zones: Path | None = None, **polygons: float) -> pd.DataFrame:
    places = Url(str(before)), Url(str(after)), Url(str(folder))
    compare(
        *places,
        classes="farmland",
        polygons_cfg=PolygonsConfig(**polygons),
        zones_cfg=ZonesConfig(file=str(zones) if zones else None, id="name" if zones else None),
    )
    return pd.read_parquet(folder / "changes.parquet")


def flows(rows: pd.DataFrame, column: str = "pixels") -> np.ndarray:
    out = np.zeros((K, K), rows[column].dtype)
    some = rows[rows["from_id"].notna()]
    out[some["from_id"].astype(int), some["to_id"].astype(int)] = some[column]
    return out


def on_grid(after: Path, before: Path) -> np.ndarray:
    with rasterio.open(after) as later, rasterio.open(before) as earlier:
        out = np.full(earlier.shape, 255, np.uint8)
        places = {"src_transform": later.transform, "src_crs": later.crs, "dst_transform": earlier.transform}
        places |= {"dst_crs": earlier.crs, "src_nodata": 255, "dst_nodata": 255, "tolerance": 0}
        reproject(later.read(1), out, resampling=Resampling.nearest, **places)
    return out


def counted(before: np.ndarray, after: np.ndarray, inside: np.ndarray) -> np.ndarray:
    known = (before < K) & (after < K) & inside
    return np.bincount(before[known].astype(int) * K + after[known], minlength=K * K).reshape(K, K)


@pytest.mark.parametrize("grid", GRIDS)
def test_pixels_of_each_change_are_those_of_one_read_of_both_masks(grid: str, tmp_path: Path) -> None:
    before = write_mask(tmp_path / "before.tif", busy_mask(300, 420), **BEFORE)
    after = write_mask(tmp_path / "after.tif", busy_mask(330, 400, seed=1), **GRIDS[grid])
    left, top = BEFORE["transform"] @ (0, 0)
    shapes = [
        shapely.box(left + x, top - y - 40, left + x + 40, top - y).buffer(3)
        for x in range(0, 220, 55)
        for y in (0, 70)
    ]
    zones = tmp_path / "zones.geojson"
    zones.write_bytes(geojson(shapes, [f"z{number}" for number in range(len(shapes))], field="name", crs="EPSG:32614"))
    rows = compared(tmp_path / "out", before, after, zones)
    first, second = rasterio.open(before).read(1), on_grid(after, before)
    expected = counted(first, second, np.ones(first.shape, bool))
    assert expected.sum() > 50_000
    np.testing.assert_array_equal(flows(rows[rows["zone"].isna()]), expected)
    for name, shape in zip([f"z{number}" for number in range(len(shapes))], shapes, strict=True):
        inside = features.rasterize([shape], first.shape, transform=BEFORE["transform"]).astype(bool)
        np.testing.assert_array_equal(flows(rows[rows["zone"] == name]), counted(first, second, inside))
    own = rows[rows["zone"] == "z0"].iloc[0]
    assert (
        own["compared_pixels"] + own["other_pixels"]
        == features.rasterize([shapes[0]], first.shape, transform=BEFORE["transform"]).sum()
    )


def test_polygons_of_change_are_those_of_gdal_and_leave_out_what_stayed(tmp_path: Path) -> None:
    import geopandas

    before = write_mask(tmp_path / "before.tif", busy_mask(200, 260), **BEFORE)
    after = write_mask(tmp_path / "after.tif", busy_mask(200, 260, seed=1), **BEFORE)
    compared(tmp_path / "out", before, after)
    found = geopandas.read_parquet(tmp_path / "out/polygons/before.parquet")
    first, second = rasterio.open(before).read(1), rasterio.open(after).read(1)
    known = (first < K) & (second < K) & (first != second)
    pair = np.where(known, first.astype(np.int32) * K + second, -1)
    expected = [int(value) for _, value in features.shapes(pair, mask=known, connectivity=4)]
    assert sorted(found["from_id"].astype(int) * K + found["to_id"]) == sorted(expected)
    assert found["pixels"].sum() == known.sum()
    assert found.crs == "EPSG:32614"
    assert (found["from"] != found["to"]).all()


def test_the_same_comparison_again_writes_nothing_and_another_mask_writes_anew(tmp_path: Path) -> None:
    before = write_mask(tmp_path / "before.tif", busy_mask(120, 100), **BEFORE)
    after = write_mask(tmp_path / "after.tif", busy_mask(120, 100, seed=1), **BEFORE)
    rows = compared(tmp_path / "out", before, after)
    written = (tmp_path / "out/changes.parquet").stat().st_mtime_ns
    compared(tmp_path / "out", before, after)
    assert (tmp_path / "out/changes.parquet").stat().st_mtime_ns == written
    write_mask(after, busy_mask(120, 100, seed=2), **BEFORE)
    assert not rows.equals(compared(tmp_path / "out", before, after))


def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path) -> None:
    here = write_mask(tmp_path / "here.tif", busy_mask(60, 60), **BEFORE)
    far = write_mask(tmp_path / "far.tif", busy_mask(60, 60), **BEFORE | {"transform": from_origin(0, 0, 1, 1)})
    bare = write_mask(tmp_path / "bare.tif", busy_mask(60, 60))
    for other in (far, bare):
        with pytest.raises(ConfigError, match=r"no mask of .* lies over"):
            compared(tmp_path / "out", here, other)
    strange = write_mask(tmp_path / "strange.tif", np.full((60, 60), 77, np.uint8), **BEFORE)
    with pytest.raises(JobError, match="class id 77"):
        compared(tmp_path / "out", here, strange)
    with pytest.raises(ConfigError, match="has no masks of rasters"):
        compared(tmp_path / "out", tmp_path, here)
