"""Catalogues of runs: the schemas of STAC, pystac, stac-geoparquet, geopandas and DuckDB are the oracles."""

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pystac
import pytest
import shapely
import stac_geoparquet.arrow
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import Affine

from pipeline.assemble import collection as module
from pipeline.assemble.collection import union_box, write_collection
from pipeline.errors import ConfigError, StorageError
from pipeline.geotiff.raster import Raster
from pipeline.run import folder
from pipeline.store import objects
from pipeline.store.url import Url
from tests.pipeline.assemble.test_assemble import assemble_all, run, source_of
from tests.pipeline.assemble.test_stac import item_of, raster
from tests.support.examples import examples
from tests.support.raster_runs import CLASSES, commit_masks
from tests.support.stac import faults

__all__ = ["run"]

FACTS = {"atrous:run": "0123456789ab", "atrous:model": "m"}


def assembled(run_url: Url, source: Path, *names: str, **profile) -> dict:
    """Collection of a run over small rasters."""
    masks = source_of(source, dict.fromkeys(names, (30, 40)), **profile)
    commit_masks(run_url, source, masks)
    assemble_all(run_url)
    return collected(run_url)


def collected(run_url: Url) -> dict:
    write_collection(run_url, CLASSES, facts=FACTS)
    return json.loads(objects.read_bytes(run_url / "collection.json"))


def put_items(run_url: Url, source: Path, rasters: dict[str, Raster]) -> list[dict]:
    """A run of rasters of which only the items exist, made of these descriptions; returns the items."""
    commit_masks(run_url, source, source_of(source, dict.fromkeys([f"{name}.tif" for name in rasters], (8, 8))))
    items = []
    for name, one in rasters.items():
        item = item_of(one)
        item["id"] = name
        objects.put(run_url / f"items/{name}.json", json.dumps(item).encode())
        items.append(item)
    return items


def rows(run_url: Url) -> pq.ParquetFile:
    return pq.ParquetFile((run_url / "items.parquet").raw)


def present(value):
    """Plain data without nulls: a table has one type for all rows, so a field that an item lacks is null."""
    if isinstance(value, dict):
        return {name: present(one) for name, one in value.items() if one is not None}
    return [present(one) for one in value] if isinstance(value, list) else value


def comparable(item: dict) -> dict:
    """Item with times as the reader of stac-geoparquet writes them, with microseconds."""
    plain = copy.deepcopy(item)
    for name in ("datetime", "start_datetime", "end_datetime"):
        if plain["properties"].get(name):
            plain["properties"][name] = plain["properties"][name].removesuffix("Z").partition(".")[0]
    return present(plain)


# Collections ----------------------------------------------------------------------------------------------------------


def test_a_collection_is_valid_and_its_links_lead_to_every_item_and_back(tmp_path, run) -> None:
    found = assembled(run, tmp_path / "in", "a.tif", "d/e/b.x.tif", "d/c.tiff")
    assert faults(found) == []
    (tmp_path / "elsewhere").mkdir()
    Path(run.raw).rename(tmp_path / "elsewhere/run")  # links are relative
    collection = pystac.Collection.from_file(str(tmp_path / "elsewhere/run/collection.json"))
    items = list(collection.get_items(recursive=True))
    assert [item.id for item in items] == ["a", "d/c", "d/e/b.x"]
    for item in items:
        assert item.collection_id == collection.id == "run-0123456789ab"
        assert item.get_collection().id == item.get_parent().id == item.get_root().id == collection.id
        assert faults(item.to_dict(transform_hrefs=False)) == []
        for name in ("mask", "style"):
            assert Path(item.assets[name].get_absolute_href()).is_file()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda found: found.pop("license"), "license"),
        (lambda found: found.update(license="my own"), "my own"),
        (lambda found: found["extent"]["spatial"].update(bbox=[[1, 2, 3]]), "[1, 2, 3]"),
        (lambda found: found["extent"]["temporal"].update(interval=[["1985", None]]), "1985"),
        (lambda found: found["item_assets"]["mask"].update(href="x"), "href"),
        (lambda found: found["item_assets"]["mask"]["bands"][0]["classification:classes"][0].pop("name"), "name"),
        (lambda found: found["summaries"].update({"proj:code": ["utm"]}), "utm"),
        (lambda found: found["summaries"].update(gsd=[]), "[]"),
    ],
)
def test_the_schemas_notice_what_is_wrong_with_a_collection(change, fault, tmp_path, run) -> None:
    found = assembled(run, tmp_path / "in", "a.tif")
    change(found)
    assert any(fault in text for text in faults(found))


def test_the_same_items_give_the_same_bytes(tmp_path, run) -> None:
    assembled(run, tmp_path / "in", "a.tif", "b.tif")
    before = {name: objects.read_bytes(run / name) for name in ("collection.json", "items.parquet")}
    collected(run)
    assert {name: objects.read_bytes(run / name) for name in before} == before


def test_rasters_without_a_mask_are_counted(tmp_path, run) -> None:
    source = tmp_path / "in"
    masks = source_of(source, {"a.tif": (30, 40), "b.tif": (30, 40)})
    (source / "c.tif").write_bytes(b"not a raster")
    commit_masks(run, source, masks, failed=frozenset({"b.tif#0,0"}))
    assert assemble_all(run).with_holes == {"b.tif": 1}
    found = collected(run)
    assert (found["atrous:rasters"], found["atrous:without_cog"]) == (3, 2)
    assert "Masks of 1 of 3 raster(s)" in found["description"]
    assert "2 raster(s) have no mask" in found["description"]
    assert [link["href"] for link in found["links"] if link["rel"] == "item"] == ["./items/a.json"]
    assert faults(found) == []


def test_a_run_without_any_mask_has_an_empty_catalogue(tmp_path, run) -> None:
    commit_masks(run, tmp_path / "in", source_of(tmp_path / "in", {"a.tif": (30, 40)}), failed=frozenset({"a.tif#0,0"}))
    found = collected(run)
    assert faults(found) == []
    assert found["extent"]["spatial"]["bbox"] == [[-180, -90, 180, 90]]
    assert rows(run).metadata.num_rows == 0
    assert list(stac_geoparquet.arrow.stac_table_to_items(rows(run).read())) == []


def test_rasters_without_a_place_or_a_date_are_counted_and_do_not_widen_the_extent(tmp_path, run) -> None:
    dated = replace(raster(), datetime="2012-07-31T00:00:00Z", end_datetime="2012-07-31T23:59:59Z")
    items = put_items(run, tmp_path / "in", {"a": dated, "b": raster(None), "c": raster()})
    found = collected(run)
    assert found["extent"]["temporal"]["interval"] == [["2012-07-31T00:00:00Z", "2012-07-31T23:59:59Z"]]
    assert found["extent"]["spatial"]["bbox"] == [items[0]["bbox"]]
    assert (found["atrous:without_place"], found["atrous:without_date"]) == (1, 2)
    assert faults(found) == []


def test_the_extent_in_time_spans_all_intervals(tmp_path, run) -> None:
    times = [("2001-01-01T00:00:00Z", "2001-12-31T23:59:59Z"), ("1985-05-06T07:08:09Z", None)]
    put_items(
        run,
        tmp_path / "in",
        {str(number): replace(raster(), datetime=a, end_datetime=b) for number, (a, b) in enumerate(times)},
    )
    interval = collected(run)["extent"]["temporal"]["interval"]
    assert interval == [["1985-05-06T07:08:09Z", "2001-12-31T23:59:59Z"]]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (b'{"license": "CC-BY-4.0"}', "CC-BY-4.0"),
        *((data, "other") for data in (b'{"license": "on request"}', b"{}", None, b"[]", b"{")),
    ],
)
def test_the_licence_is_the_networks_where_stac_can_name_it(stored, expected, tmp_path, run) -> None:
    assembled(run, tmp_path / "in", "a.tif")
    if stored is not None:
        objects.put(run / folder.ENVIRONMENT, stored)
    found = collected(run)
    assert found["license"] == expected
    assert faults(found) == []


def test_tables_of_the_run_are_assets_where_they_exist(tmp_path, run) -> None:
    assert set(assembled(run, tmp_path / "in", "a.tif")["assets"]) == {"items"}
    for name in ("zones.parquet", "zones_map.parquet", "polygons/a.parquet"):
        objects.put(run / name, b"x")
    found = collected(run)
    hrefs = {key: asset["href"] for key, asset in found["assets"].items()}
    assert hrefs == {
        "items": "./items.parquet",
        "zones": "./zones.parquet",
        "zones_map": "./zones_map.parquet",
        "polygons": "./polygons",
    }
    assert faults(found) == []


def test_a_damaged_item_is_named(tmp_path, run) -> None:
    assembled(run, tmp_path / "in", "a.tif")
    objects.put(run / "items/a.json", b"{")
    with pytest.raises(StorageError, match=r"items/a.json is damaged"):
        collected(run)


# Boxes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([], [-180, -90, 180, 90]),
        ([[7, 50, 8, 51], [5, 49, 6, 52]], [5, 49, 8, 52]),
        ([[179, -20, -179, -18]], [179, -20, -179, -18]),
        ([[177, -18, 180, -16], [-180, -19, -178, -17]], [177, -19, -178, -16]),
        ([[-180, 60, 180, 90], [7, 50, 8, 51]], [-180, 50, 180, 90]),
        ([[-120, 0, 120, 1], [110, 0, -110, 1]], [-180, 0, 180, 1]),
        ([[170, 0, 100, 1], [-140, 0, -130, 1]], [170, 0, 100, 1]),
        ([[7, 50, 7, 50]], [7, 50, 7, 50]),
        ([[170, 0, 180, 1]], [170, 0, 180, 1]),
        ([[-180, 0, -170, 1]], [-180, 0, -170, 1]),
    ],
)
def test_a_union_is_the_smallest_box_on_the_circle(boxes, expected) -> None:
    assert union_box(boxes) == expected


def covers(box: list[float], x: float) -> bool:
    """Whether a box has points of a meridian; 180 and -180 degrees are the same one."""
    west, _, east, _ = box
    return any(west <= turned <= east + 360 * (west > east) for turned in (x - 360, x, x + 360))


LONGITUDES = st.integers(-180, 180)


@given(st.lists(st.tuples(LONGITUDES, LONGITUDES), min_size=1, max_size=5))
@examples(300)
def test_a_union_covers_every_box_and_no_rotation_of_it_is_smaller(pairs) -> None:
    boxes = [[west, 0, east, 1] for west, east in pairs]
    union = union_box(boxes)
    half_degrees = np.arange(-360, 360) / 2
    inside = np.array([any(covers(box, x) for box in boxes) for x in half_degrees])
    covered = np.array([covers(union, x) for x in half_degrees])
    assert covered[inside].all()
    doubled = np.concatenate([inside, inside])
    runs = np.diff(np.flatnonzero(doubled))
    widest = runs.max(initial=1) - 1  # the longest run of half degrees in no box
    assert (~covered).sum() == (0 if inside.all() else widest)


# Tables of items ------------------------------------------------------------------------------------------------------


def test_stac_geoparquet_reads_the_items_back(tmp_path, run) -> None:
    rasters = {
        "a": replace(raster(), datetime="2012-07-31T01:02:03Z"),
        "b": replace(raster(), datetime="2012-01-01T00:00:00Z", end_datetime="2012-12-31T23:59:59Z"),
        "c": raster("EPSG:32660", Affine(1000, 0, 700_000, 0, -1000, 6e6)),
        "d": raster("+proj=laea +lat_0=50 +lon_0=7 +ellps=GRS80", Affine(1, 0, 0, 0, -1, 0)),
        "e": raster("EPSG:3995", Affine(1000, 0, -200_000, 0, -1000, 150_000)),
    }
    items = put_items(run, tmp_path / "in", rasters)
    collected(run)
    read = list(stac_geoparquet.arrow.stac_table_to_items(rows(run).read()))
    assert [comparable(item) for item in read] == [comparable(item) for item in items]
    assert items[2]["bbox"][0] > items[2]["bbox"][2]  # across the 180th meridian


def test_a_table_written_by_stac_geoparquet_has_the_same_types_and_values(tmp_path, run) -> None:
    dated = replace(raster(), datetime="2012-01-01T00:00:00Z", end_datetime="2012-12-31T23:59:59Z")
    items = put_items(run, tmp_path / "in", {"a": dated, "b": dated})
    collected(run)
    theirs = stac_geoparquet.arrow.parse_stac_items_to_arrow(items).read_all()
    ours = rows(run).read()
    for name in theirs.column_names:
        assert present(ours[name].to_pylist()) == present(theirs[name].to_pylist()), name
    for name in ("datetime", "bbox", "links", "geometry", "proj:shape", "proj:transform", "atrous:nodata_pixels"):
        assert ours.schema.field(name).type == theirs.schema.field(name).type, name


def test_an_item_without_a_place_is_a_row_with_a_null_geometry(tmp_path, run) -> None:
    put_items(run, tmp_path / "in", {"a": raster(None), "b": raster()})
    collected(run)
    table = rows(run).read()
    assert [value is None for value in table["geometry"].to_pylist()] == [True, False]
    assert [value is None for value in table["bbox"].to_pylist()] == [True, False]
    assert "no coordinate system" in table["description"][0].as_py()


def test_geopandas_and_duckdb_read_the_table(tmp_path, run) -> None:
    (item,) = put_items(run, tmp_path / "in", {"a": replace(raster(), datetime="2012-07-31T01:02:03Z")})
    collected(run)
    path = (run / "items.parquet").raw
    found = duckdb.sql(f"select id, datetime::varchar, \"atrous:class_pixels\", bbox.xmin from '{path}'").fetchall()
    ((name, time, pixels, west),) = found
    assert (name, west) == ("a", item["bbox"][0])
    assert time.startswith("2012-07-31")
    assert pixels == item["properties"]["atrous:class_pixels"]
    frame = geopandas.read_parquet(path)
    assert frame.crs == "OGC:CRS84"
    assert frame.geometry[0].equals_exact(shapely.geometry.shape(item["geometry"]), 0)


def test_geometries_are_those_of_the_items(tmp_path, run) -> None:
    items = put_items(run, tmp_path / "in", {"a": raster(), "b": raster(transform=Affine(0.3, 0.4, 5, 0.4, -0.3, 9))})
    collected(run)
    for item, data in zip(items, rows(run).read()["geometry"].to_pylist(), strict=True):
        assert shapely.from_wkb(data).equals_exact(shapely.geometry.shape(item["geometry"]), 0)


def test_items_are_written_some_at_a_time_and_in_the_order_of_the_plan(tmp_path, run, monkeypatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 3)
    names = [f"{number}" for number in range(8)]
    put_items(run, tmp_path / "in", dict.fromkeys(names, raster()))
    collected(run)
    file = rows(run)
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [3, 3, 2]
    assert file.read()["id"].to_pylist() == names


def test_items_of_older_runs_are_listed_without_a_collection(tmp_path, run) -> None:
    (item,) = put_items(run, tmp_path / "in", {"a": raster()})
    for name in ("collection", "links"):
        item.pop(name)
    item["assets"].pop("style")
    objects.put(run / "items/a.json", json.dumps(item | {"links": []}).encode())
    found = collected(run)
    assert [link["href"] for link in found["links"] if link["rel"] == "item"] == ["./items/a.json"]
    assert rows(run).read()["collection"].to_pylist() == [None]


def test_fields_that_the_table_does_not_hold_are_named(tmp_path, run, caplog) -> None:
    (item,) = put_items(run, tmp_path / "in", {"a": raster()})
    item["properties"]["gsd"] = 1.0
    item["assets"]["mask"]["bands"][0]["unit"] = "m"
    objects.put(run / "items/a.json", json.dumps(item).encode())
    with caplog.at_level(logging.WARNING):
        collected(run)
    assert "lacks fields of 1 item(s), first 'a': assets.mask.bands.unit, gsd" in caplog.text


def test_every_field_of_an_item_is_in_the_table(tmp_path, run, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assembled(run, tmp_path / "in", "a.tif")
    assert caplog.text == ""


def test_a_run_of_photos_has_no_catalogue(tmp_path, run) -> None:
    from pipeline.config import SegmentConfig
    from pipeline.source.plan import plan_source
    from tests.support.raster_runs import store_plan

    objects.put(Url(str(tmp_path / "in/a.jpg")), b"x")
    store_plan(run, plan_source(SegmentConfig(source=str(tmp_path / "in"), output="o", checkpoint="c")))
    with pytest.raises(ConfigError, match="is no run over rasters"):
        collected(run)
