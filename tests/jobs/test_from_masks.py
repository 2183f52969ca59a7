"""Polygons and statistics of zones of committed windows, against one read of the whole masks. Without Ray."""

import io
from pathlib import Path
from typing import Any
from unittest import mock

import exactextract
import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from rasterio import features
from rasterio.transform import from_origin

from jobs import from_masks
from jobs.from_masks import check_settings, make, open_masks
from pipeline.config import PolygonsConfig, SegmentConfig, ZonesConfig
from pipeline.errors import ConfigError
from pipeline.run import flow
from pipeline.run.masks import digest_masks
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.polygons import geojson
from tests.support.raster_runs import CLASSES, busy_mask, changed_at, commit_masks, confidence_at
from tests.support.rasters import values, write_raster
from tests.support.without_ray import run_tasks

K = len(CLASSES)
WEST = {"crs": "EPSG:32614", "transform": from_origin(485900, 5209245, 0.5, 0.5)}
EAST = {"crs": "EPSG:32614", "transform": from_origin(485900 + 0.5 * 900, 5209245, 0.5, 0.5)}
MASKS = {"west.tif": busy_mask(700, 900), "east.tif": busy_mask(610, 530, seed=1)}
RGB = ("red", "green", "blue")


def make_run(folder: Path, **how: Any) -> Url:
    """Run over two rasters side by side; the source lies beside it."""
    for seed, (name, place) in enumerate((("west.tif", WEST), ("east.tif", EAST))):
        pixels = values(*MASKS[name].shape, 3, seed=seed)
        write_raster(folder / "source" / name, pixels, names=RGB, **place)
    url = Url(str(folder / "run"))
    commit_masks(url, folder / "source", MASKS, **how)
    return url


def fields(count: int = 40, seed: int = 0) -> list[Any]:
    """Rotated fields over both rasters, some of them partly or wholly outside; every third one has two parts."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        x, y = 485900 + rng.uniform(-60, 760), 5209245 - rng.uniform(-60, 400)
        field = shapely.affinity.rotate(
            shapely.box(x, y, x + rng.uniform(5, 90), y + rng.uniform(5, 60)), rng.uniform(0, 90)
        )
        far = shapely.transform(field, lambda xy: xy + np.array([110.3, 7.1]))
        out.append(shapely.multipolygons([field, far]) if number % 3 == 0 else field)
    return out


def write_fields(path: Path, shapes: list[Any]) -> Path:
    path.write_bytes(geojson(shapes, [f"f{number}" for number in range(len(shapes))], field="name", crs="EPSG:32614"))
    return path


def made(
    run: Url, *, polygons: dict[str, Any] | None = None, zones: dict[str, Any] | None = None, holes: bool = False
) -> Any:
    with mock.patch.object(flow, "run_tasks", run_tasks), mock.patch.object(from_masks.session, "connect") as connect:
        connect.return_value.__enter__.return_value = []
        with open_masks(str(run), None, None, holes=holes) as opened:
            return make(opened, PolygonsConfig(**polygons or {}), ZonesConfig(**zones or {}))


def counted(name: str, place: dict[str, Any], shape: Any) -> np.ndarray:
    """(K + 1,) pixels of each class of one raster in a zone, by GDAL; the last without data."""
    mask = MASKS[name]
    inside = features.rasterize([shape], mask.shape, transform=place["transform"]).astype(bool)
    return np.bincount(np.minimum(mask[inside], K), minlength=K + 1)


@pytest.mark.parametrize("core_px", [512, 2048])
@pytest.mark.parametrize("order", [1, -1])
def test_zones_have_the_pixels_of_one_read_of_the_whole_masks(core_px: int, order: int, tmp_path: Path) -> None:
    shapes = fields()
    file = write_fields(tmp_path / "fields.geojson", shapes)
    zoned = made(make_run(tmp_path, core_px=core_px, order=order), zones={"file": str(file), "id": "name"}).zones
    rows = pd.read_parquet(tmp_path / "run/zones.parquet")
    assert (zoned.zones, zoned.zones_overlapped) == (len(shapes), 0)
    assert list(dict.fromkeys(rows["zone"])) == [f"f{number}" for number in range(len(shapes))]
    for number, shape in enumerate(shapes):
        own = rows[rows["zone"] == f"f{number}"]
        expected = counted("west.tif", WEST, shape) + counted("east.tif", EAST, shape)
        found = np.zeros(K, int)
        some = own[own["class_id"].notna()]
        found[some["class_id"].astype(int)] = some["pixels"]
        np.testing.assert_array_equal(found, expected[:K])
        first = own.iloc[0]
        assert (first["valid_pixels"], first["nodata_pixels"]) == (expected[:K].sum(), expected[K])
        everywhere = from_origin(485900 - 500, 5209245 + 500, 0.5, 0.5)
        whole = features.rasterize([shape], (4000, 5000), transform=everywhere).sum()
        assert (
            first["valid_pixels"] + first["nodata_pixels"] + (first["outside_pixels"] if first["rasters"] else whole)
            == whole
        )
        assert first["zone_hectares"] == pytest.approx(shape.area / 1e4, rel=1e-3)
        if expected[:K].sum():
            assert own["share"].sum() == pytest.approx(1)
    assert zoned.zones_counted == rows[rows["rasters"] > 0]["zone"].nunique()
    assert zoned.zones_cut == rows[rows["outside_pixels"] > 0]["zone"].nunique()


def test_confidence_change_and_bands_are_means_over_the_pixels_of_a_class(tmp_path: Path) -> None:
    shape = shapely.box(485930, 5208950, 486180, 5209200)
    file = write_fields(tmp_path / "fields.geojson", [shape])
    made(make_run(tmp_path, core_px=512), zones={"file": str(file), "id": "name"})
    rows = pd.read_parquet(tmp_path / "run/zones.parquet")
    mask = MASKS["west.tif"]
    inside = features.rasterize([shape], mask.shape, transform=WEST["transform"]).astype(bool)
    with rasterio.open(tmp_path / "source/west.tif") as source:
        bands = source.read()
    for row in rows.itertuples():
        here = inside & (mask == row.class_id)
        # Cells of 4 x 4 pixels have the mean over their valid ones; only those beside pixels without data differ.
        assert row.confidence == pytest.approx(confidence_at(*mask.shape)[here].mean() / 255, abs=1e-9)
        assert row.changed_share == pytest.approx(changed_at(*mask.shape)[here].mean())
        assert row.confidence_pixels == row.pixels == here.sum()
        for band, plane in zip(RGB, bands, strict=True):
            assert getattr(row, f"mean_{band}") == pytest.approx(plane[here].mean())


def test_shares_agree_with_exactextract(tmp_path: Path) -> None:
    shapes = [shape for shape in fields(60, seed=3) if shapely.box(485905, 5208900, 486340, 5209240).contains(shape)]
    file = write_fields(tmp_path / "fields.geojson", shapes)
    run = make_run(tmp_path)
    made(run, zones={"file": str(file), "id": "name", "bands": False})
    path = tmp_path / "mask.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=700, width=900, count=1, dtype="uint8", nodata=255, **WEST
    ) as out:
        out.write(MASKS["west.tif"], 1)
    frame = geopandas.GeoDataFrame({"name": [f"f{n}" for n in range(len(shapes))]}, geometry=shapes, crs="EPSG:32614")
    exact = exactextract.exact_extract(str(path), frame, ["unique", "frac"], include_cols=["name"], output="pandas")
    rows = pd.read_parquet(tmp_path / "run/zones.parquet").set_index(["zone", "class_id"])["share"]
    assert len(shapes) > 10
    for row in exact.itertuples():
        for class_id, share in zip(row.unique, row.frac, strict=True):
            assert rows.get((row.name, class_id), 0.0) == pytest.approx(share, abs=0.02)


def test_polygons_are_those_of_the_whole_mask_at_once(tmp_path: Path) -> None:
    outcome = made(make_run(tmp_path, core_px=512), polygons={"min_ha": 0})
    assert (outcome.polygons, outcome.polygons_now) == (2, 2)
    for name, place in (("west", WEST), ("east", EAST)):
        found = geopandas.read_parquet(tmp_path / f"run/polygons/{name}.parquet")
        mask = MASKS[f"{name}.tif"]
        expected = features.shapes(mask, mask=mask < K, connectivity=4, transform=place["transform"])
        pairs = [(int(value), shapely.geometry.shape(shape)) for shape, value in expected]
        assert len(found) == len(pairs)
        assert found.crs == "EPSG:32614"
        key = sorted((value, *shape.bounds, round(shape.area, 6)) for value, shape in pairs)
        ours = zip(found["class_id"].astype(int), found.geometry, strict=True)
        assert sorted((value, *shape.bounds, round(shape.area, 6)) for value, shape in ours) == key
        assert found["pixels"].sum() == (mask < K).sum()
        assert found["hectares"].sum() == pytest.approx((mask < K).sum() * 0.25 / 1e4, rel=2e-3)
        assert list(found["class"]) == [CLASSES.names[index] for index in found["class_id"]]
        assert found["confidence"].between(0, 1).all()


def test_small_polygons_are_left_out_after_merging_only(tmp_path: Path) -> None:
    run = make_run(tmp_path, core_px=512)
    made(run, polygons={"min_ha": 0})
    every = geopandas.read_parquet(tmp_path / "run/polygons/west.parquet")
    assert made(run, polygons={"min_ha": 0.002}).polygons_now == 2
    found = geopandas.read_parquet(tmp_path / "run/polygons/west.parquet")
    assert len(found) == (every["hectares"] >= 0.002).sum() < len(every)


def test_the_same_again_writes_nothing_and_the_bytes_do_not_depend_on_windows(tmp_path: Path) -> None:
    files = {}
    for name, how in (
        ("a", {"core_px": 512}),
        ("b", {"core_px": 512, "order": -1, "rows_per_part": 1}),
        ("c", {"core_px": 2048}),
    ):
        file = write_fields(tmp_path / "fields.geojson", fields(12))
        (tmp_path / name).mkdir()
        run = make_run(tmp_path / name, **how)
        settings = {"polygons": {"min_ha": 0.001, "simplify_px": 1}, "zones": {"file": str(file), "id": "name"}}
        made(run, **settings)
        with mock.patch.object(objects, "put_stream", side_effect=AssertionError("written again")):
            assert made(run, **settings).polygons_now == 0
        table = pd.read_parquet(tmp_path / name / "run/zones.parquet")
        polygons = [
            geopandas.read_parquet(path).to_wkb() for path in sorted((tmp_path / name).glob("run/polygons/*.parquet"))
        ]
        files[name] = (table, *polygons)
        assert not list((tmp_path / name / "run/_run").glob("zones*")) + list(
            (tmp_path / name / "run/_run").glob("polygons*")
        )
    for name in ("b", "c"):
        for one, other in zip(files["a"], files[name], strict=True):
            pd.testing.assert_frame_equal(one, other, rtol=1e-12)


@pytest.mark.parametrize("killed_after", [1, 2, 3, 5])
def test_a_job_that_is_killed_at_any_moment_ends_with_the_same(killed_after: int, tmp_path: Path) -> None:
    file = write_fields(tmp_path / "fields.geojson", fields(12))
    settings = {"polygons": {"min_ha": 0.001}, "zones": {"file": str(file), "id": "name"}}
    run = make_run(tmp_path, core_px=512)
    calls = 0
    put = objects.put

    def put_some(url: Url, data: bytes) -> None:
        nonlocal calls
        calls += "_run/zones" in str(url) or "_run/polygons" in str(url)
        if calls > killed_after:
            raise KeyboardInterrupt
        put(url, data)

    small = {"pipeline.assemble.plan.SQUARE_PX": 512, "pipeline.assemble.layers.BLOCK_PX": 256}
    small["jobs.from_masks.LEASE_S"] = 0.5  # the lease of the killed job is waited for
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(name, value)
        with mock.patch.object(objects, "put", put_some), pytest.raises(KeyboardInterrupt):
            made(run, **settings)
        made(run, **settings)
    (tmp_path / "again").mkdir()
    undisturbed = make_run(tmp_path / "again", core_px=2048)
    made(undisturbed, **settings)
    one, other = (pd.read_parquet(folder / "run/zones.parquet") for folder in (tmp_path, tmp_path / "again"))
    pd.testing.assert_frame_equal(one, other, rtol=1e-12)
    for name in ("west", "east"):
        ours, theirs = (
            geopandas.read_parquet(folder / f"run/polygons/{name}.parquet") for folder in (tmp_path, tmp_path / "again")
        )
        assert sorted(ours["pixels"]) == sorted(theirs["pixels"])
        assert ours.area.sum() == pytest.approx(theirs.area.sum())


def test_windows_that_failed_leave_a_raster_out_or_are_counted(tmp_path: Path) -> None:
    shape = shapely.box(485910, 5208900, 486300, 5209200)
    file = write_fields(tmp_path / "fields.geojson", [shape])
    run = make_run(tmp_path, core_px=512, failed=frozenset({"west.tif#0,0"}))
    settings = {"polygons": {"min_ha": 0}, "zones": {"file": str(file), "id": "name"}}
    assert made(run, **settings).polygons == 1
    assert pd.read_parquet(tmp_path / "run/zones.parquet")["rasters"].max() == 0
    assert made(run, **settings, holes=True).polygons == 2
    rows = pd.read_parquet(tmp_path / "run/zones.parquet")
    inside = features.rasterize([shape], MASKS["west.tif"].shape, transform=WEST["transform"]).astype(bool)
    assert (rows["failed_pixels"] == inside[:512, :512].sum()).all()
    assert (rows["failed_pixels"] > 0).all()
    assert (rows["valid_pixels"] + rows["nodata_pixels"] + rows["failed_pixels"] == inside.sum()).all()


def test_a_source_that_is_gone_gives_no_means_of_bands_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_fields(tmp_path / "fields.geojson", fields(5))
    run = make_run(tmp_path)
    (tmp_path / "source/west.tif").unlink()
    made(run, zones={"file": str(file), "id": "name"})
    assert "no means of bands of west.tif" in caplog.text
    rows = pd.read_parquet(tmp_path / "run/zones.parquet")
    assert (rows["valid_pixels"] > 0).any()


def test_zones_without_a_unique_name_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for names, words in ((["a", "a"], "2 zone.* share their name"), (["a", None], "1 zone.* have no name")):
        file = tmp_path / "fields.geojson"
        file.write_bytes(geojson(fields(2), names, field="name", crs="EPSG:32614"))
        with pytest.raises(ConfigError, match=words):
            made(run, zones={"file": str(file), "id": "name"})
    with pytest.raises(ConfigError, match="does not exist"):
        made(run, zones={"file": str(tmp_path / "nowhere.gpkg")})


def test_rasters_of_one_date_on_the_same_ground_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_fields(tmp_path / "fields.geojson", fields(40))
    run = make_run(tmp_path)
    assert made(run, zones={"file": str(file), "id": "name"}).zones.rasters_overlapping == 0
    shifted = EAST | {"transform": from_origin(485900 + 0.5 * 700, 5209245, 0.5, 0.5)}
    write_raster(tmp_path / "source/east.tif", values(*MASKS["east.tif"].shape, 3), names=RGB, **shifted)
    commit_masks(Url(str(tmp_path / "other")), tmp_path / "source", MASKS)
    zoned = made(Url(str(tmp_path / "other")), zones={"file": str(file), "id": "name"}).zones
    assert zoned.rasters_overlapping == 1
    assert "east.tif and west.tif are of one date and cover the same ground" in caplog.text
    rows = pd.read_parquet(tmp_path / "other/zones.parquet")
    assert zoned.zones_overlapped == rows[rows["overlap_pixels"] > 0]["zone"].nunique() > 0


def test_settings_are_checked_before_any_image_is_read(tmp_path: Path) -> None:
    facts = {"source": "s", "output": "o", "checkpoint": "c"}
    nowhere = {"zones": {"file": str(tmp_path / "nowhere.gpkg")}}
    for settings, words in (
        ({"polygons": {"min_ha": 0}}, "--polygons.min-ha and --zones are for rasters"),
        (nowhere, "--polygons.min-ha and --zones are for rasters"),
        (nowhere | {"read": {"kind": "raster"}}, "nowhere.gpkg does not exist"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_settings(SegmentConfig.model_validate(facts | settings))
    check_settings(SegmentConfig.model_validate(facts))


def test_what_is_made_from_masks_makes_them_no_other_masks(tmp_path: Path) -> None:
    file = write_fields(tmp_path / "fields.geojson", fields(5))
    run = make_run(tmp_path)
    before = digest_masks(run)
    made(run, polygons={"min_ha": 0}, zones={"file": str(file), "id": "name"})
    assert digest_masks(run) == before


@pytest.mark.s3
def test_a_run_in_a_bucket_with_zones_in_a_bucket_gives_the_tables_of_a_folder(s3_url: str, tmp_path: Path) -> None:
    shapes = fields(12)
    file = write_fields(tmp_path / "fields.geojson", shapes)
    made(make_run(tmp_path), polygons={"min_ha": 0}, zones={"file": str(file), "id": "name", "bands": False})
    objects.put(Url(f"{s3_url}/fields.geojson"), file.read_bytes())
    bucket = Url(f"{s3_url}/run")
    commit_masks(bucket, tmp_path / "source", MASKS)
    settings = {"zones": {"file": f"{s3_url}/fields.geojson", "id": "name", "bands": False}, "polygons": {"min_ha": 0}}
    assert made(bucket, **settings).polygons_now == 2
    assert made(bucket, **settings).polygons_now == 0
    for name in ("zones.parquet", "polygons/west.parquet"):
        here, there = (tmp_path / "run" / name).read_bytes(), objects.read_bytes(bucket / name)
        assert pq.read_table(io.BytesIO(there)).equals(pq.read_table(io.BytesIO(here)))
