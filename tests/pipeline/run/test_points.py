"""Points of a run, against a table computed here, and as geopandas, shapely, pyarrow and DuckDB read them."""

import io
import json
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from pipeline import classes
from pipeline.classes import ClassMap
from pipeline.records import ROW_SCHEMA, Row, rows_from_table, rows_to_table
from pipeline.run import folder, masks, parts, points
from pipeline.run.duplicates import rewrite_without
from pipeline.run.footers import read_footers
from pipeline.run.manifest import reopen_run
from pipeline.run.points import PointCounts
from pipeline.store import objects
from pipeline.store.url import Url

FARM = classes.load_class_map("farmland")
POSITION = ["longitude", "latitude", "altitude"]


def row(key: str, **fields: object) -> Row:
    """A row whose pixels are of classes 1 and 2."""
    base = Row(key, "ok", "s1", "e1", "m", "c", confidence=0.75, class_pixels=[0, 30, 10, 0, 0, 0, 0], mask=b"png")
    return replace(base, **fields)


def placed(key: str, longitude: float = 7.25, latitude: float = 51.5, **fields: object) -> Row:
    return row(key, longitude=longitude, latitude=latitude, **fields)


def commit(base: Path, rows: Sequence[Row]) -> Url:
    url = Url(str(base))
    parts.write_part(url, rows_to_table(rows), FARM)
    return url


def write_points(url: Url, class_map: ClassMap) -> PointCounts:
    """Points of all parts of a run."""
    return points.write_points(url, class_map, read_footers(url))


def read(url: Url) -> pa.Table:
    return pq.read_table(io.BytesIO(objects.read_bytes(url / folder.POINTS)))


def without_position(table: pa.Table) -> pa.Table:
    """Rows as a version that read no positions wrote them."""
    return table.drop_columns(POSITION)


def test_a_point_is_where_the_photo_was_taken_and_has_the_shares_of_its_classes(tmp_path: Path) -> None:
    url = commit(tmp_path, [placed("a.jpg", -70.5, -12.25, altitude=-3.5), placed("b.jpg"), row("c.jpg")])
    assert write_points(url, FARM) == PointCounts(points=2, without=1)
    frame = geopandas.read_parquet(tmp_path / folder.POINTS)
    assert frame.crs.to_string() == "OGC:CRS84"
    assert frame.geometry.to_wkt().tolist() == ["POINT (-70.5 -12.25)", "POINT (7.25 51.5)"]
    assert frame["key"].tolist() == ["a.jpg", "b.jpg"]
    assert frame["altitude"].fillna(-9999).tolist() == [-3.5, -9999]
    assert (
        frame[["class_id", "class", "pixels", "confidence"]].to_numpy().tolist() == [[1, FARM.names[1], 40, 0.75]] * 2
    )
    shares = [f"share_{name}" for name in FARM.names]
    assert frame[shares].to_numpy().tolist() == [[0, 0.75, 0.25, 0, 0, 0, 0]] * 2


degrees = st.tuples(st.floats(-180, 180), st.floats(-90, 90))
cases = st.lists(
    st.tuples(
        st.sampled_from(["ok", "failed"]), st.none() | degrees, st.lists(st.integers(0, 9), min_size=7, max_size=7)
    ),
    min_size=1,
    max_size=12,
)


@given(cases, st.integers(1, 4), st.integers(1, 8))
def test_the_points_are_those_of_the_rows_in_the_order_of_parts_and_keys(cases, size: int, group: int) -> None:
    url = Url(f"memory://points-{uuid.uuid4().hex}")
    rows = [
        replace(row(f"{index:02d}"), status=status, class_pixels=pixels)
        if place is None
        else placed(f"{index:02d}", *place, status=status, class_pixels=pixels)
        for index, (status, place, pixels) in enumerate(cases)
    ]
    for at in range(0, len(rows), size):
        parts.write_part(url, rows_to_table(rows[at : at + size]), FARM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "GROUP_ROWS", group)
        counts = write_points(url, FARM)
    ok = [one for one in rows if one.status == "ok"]
    by_key = {one.key: one for one in ok if one.longitude is not None}
    assert (counts.points, counts.without) == (len(by_key), len(ok) - len(by_key))
    assert objects.exists(url / folder.POINTS) == bool(by_key)
    if not by_key:
        return
    seen = read(url)
    stored = [
        key for name in parts.list_parts(url) for key in parts.read_columns(url, name, ["key"])["key"].to_pylist()
    ]
    assert seen["key"].to_pylist() == [key for key in stored if key in by_key]
    for point in seen.to_pylist():
        one = by_key[point["key"]]
        assert point["geometry"] == shapely.Point(one.longitude, one.latitude).wkb
        assert (point["bbox"]["xmin"], point["bbox"]["ymax"]) == (one.longitude, one.latitude)
        assert point["pixels"] == (total := sum(one.class_pixels))
        assert point["class"] == (FARM.names[int(np.argmax(one.class_pixels))] if total else None)
        shares = [point[f"share_{name}"] for name in FARM.names]
        assert shares == ([np.float32(count / total) for count in one.class_pixels] if total else [None] * 7)


def test_the_same_rows_give_the_same_bytes_whatever_order_they_were_committed_in(tmp_path: Path) -> None:
    rows = [placed(f"{index:03d}.jpg", index / 7, 1.0) for index in range(60)]
    written = []
    for name, order in (("one", 1), ("other", -1)):
        for at in range(0, 60, 20)[::order]:
            url = commit(tmp_path / name, rows[at : at + 20][::order])
        write_points(url, FARM)
        written.append(objects.read_bytes(url / folder.POINTS))
    write_points(url, FARM)
    assert {*written, objects.read_bytes(url / folder.POINTS)} == {written[0]}


def test_parts_of_an_older_version_have_no_positions_and_later_parts_of_the_run_have_theirs(tmp_path: Path) -> None:
    older = without_position(rows_to_table([row("a"), row("b")]))
    url = Url(str(tmp_path))
    parts.write_part(url, older, FARM)
    (name,) = parts.list_parts(url)
    read_back = rows_from_table(parts.read_columns(url, name, ROW_SCHEMA.names))
    assert [(one.longitude, one.latitude, one.altitude) for one in read_back] == [(None, None, None)] * 2
    assert write_points(url, FARM) == PointCounts(without=2)
    assert not objects.exists(url / folder.POINTS)
    assert read_footers(url).totals.positions == 0
    commit(tmp_path, [placed("c"), row("d"), placed("e", status="failed")])
    assert write_points(url, FARM) == PointCounts(points=1, without=3)
    assert read(url)["key"].to_pylist() == ["c"]
    assert read_footers(url).totals.positions == 1


def test_points_of_rows_that_are_there_no_more_are_deleted(tmp_path: Path) -> None:
    url = commit(tmp_path, [placed("a")])
    write_points(url, FARM)
    reopen_run(url)
    assert not objects.exists(url / folder.POINTS)
    write_points(url, FARM)
    (name,) = parts.list_parts(url)
    rewrite_without(url, name, {"a"})
    assert write_points(url, FARM) == PointCounts()
    assert not objects.exists(url / folder.POINTS)


def test_the_folder_of_a_run_is_still_the_table_of_its_rows_and_its_masks_are_the_same(tmp_path: Path) -> None:
    url = commit(tmp_path, [placed("a"), row("b")])
    digest = masks.digest_masks(url)
    write_points(url, FARM)
    assert pd.read_parquet(tmp_path)["key"].tolist() == ["a", "b"]
    assert masks.digest_masks(url) == digest


def test_duckdb_reads_the_points(tmp_path: Path) -> None:
    write_points(commit(tmp_path, [placed("a", 1.5, 2.5), placed("b", 8.0, 9.0)]), FARM)
    query = f"select key, share_crop, bbox.xmin, bbox.ymax from '{tmp_path / folder.POINTS}' where bbox.xmin < 5"
    assert duckdb.sql(query).fetchall() == [("a", 0.75, 1.5, 2.5)]


def test_the_file_is_geoparquet_whose_groups_have_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "GROUP_ROWS", 10)
    for at in range(0, 40, 5):
        url = commit(tmp_path, [placed(f"{at + one:02d}", float(at), 1.0) for one in range(5)])
    write_points(url, FARM)
    file = pq.ParquetFile(io.BytesIO(objects.read_bytes(url / folder.POINTS)))
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [10] * 4
    geo = json.loads(file.schema_arrow.metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert "crs" not in column
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Point"])
    west = next(index for index in range(file.metadata.num_columns) if file.schema.column(index).path == "bbox.xmin")
    for index in range(file.num_row_groups):
        longitudes = [box["xmin"] for box in file.read_row_group(index, ["bbox"])["bbox"].to_pylist()]
        stored = file.metadata.row_group(index).column(west).statistics
        assert (stored.min, stored.max) == (min(longitudes), max(longitudes))


def test_points_need_no_package_of_the_extra_geo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shapely", "rasterio", "pyogrio"):
        monkeypatch.setitem(sys.modules, name, None)
    url = commit(tmp_path, [placed("a")])
    assert write_points(url, FARM).points == 1
