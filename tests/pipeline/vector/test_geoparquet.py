"""GeoParquet files against geopandas, which reads and checks them."""

import io
from collections.abc import Iterator
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from pipeline.vector.geoparquet import LONGITUDE_LATITUDE, file_chunks, geo_schema, geo_table

FIELDS = [pa.field("name", pa.string())]


def boxes(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(4e5, 6e5, (2, count))
    return shapely.box(x, y, x + 5, y + 9, ccw=False)


def tables(schema: pa.Schema, counts: list[int]) -> Iterator[pa.Table]:
    for seed, count in enumerate(counts):
        yield geo_table(schema, {"name": [f"{seed}-{number}" for number in range(count)]}, boxes(count, seed))


@pytest.mark.parametrize("crs", ["EPSG:32614", "EPSG:4326", LONGITUDE_LATITUDE, None])
def test_geopandas_reads_the_shapes_and_their_coordinate_system(crs: str | None, tmp_path: Path) -> None:
    schema = geo_schema(FIELDS, crs=crs, types=["Polygon"])
    (tmp_path / "a.parquet").write_bytes(b"".join(file_chunks(tables(schema, [3, 4]), schema)))
    found = geopandas.read_parquet(tmp_path / "a.parquet")
    assert found.crs == crs if crs else found.crs is None
    assert shapely.equals(found.geometry.to_numpy(), np.concatenate([boxes(3, 0), boxes(4, 1)])).all()
    assert list(found["name"]) == [f"0-{n}" for n in range(3)] + [f"1-{n}" for n in range(4)]


def test_rows_outside_a_box_are_skipped_by_their_bbox(tmp_path: Path) -> None:
    schema = geo_schema(FIELDS, crs="EPSG:32614", types=["Polygon"])
    (tmp_path / "a.parquet").write_bytes(b"".join(file_chunks(tables(schema, [50, 50]), schema)))
    every = geopandas.read_parquet(tmp_path / "a.parquet")
    part = geopandas.read_parquet(tmp_path / "a.parquet", bbox=(4e5, 4e5, 5e5, 5e5))
    assert len(part) == every.cx[4e5:5e5, 4e5:5e5].shape[0]
    assert 0 < len(part) < len(every)
    query = f"SELECT count(*) FROM '{tmp_path}/a.parquet' WHERE bbox.xmin <= 5e5 AND bbox.ymin <= 5e5"
    assert duckdb.sql(query).fetchall() == [(len(part),)]


def test_outer_rings_go_counterclockwise_as_the_metadata_says() -> None:
    schema = geo_schema(FIELDS, crs=None, types=["Polygon"])
    table = geo_table(schema, {"name": ["a"]}, boxes(1))
    (shape,) = shapely.from_wkb(table["geometry"].to_pylist())
    assert b'"orientation": "counterclockwise"' in schema.metadata[b"geo"]
    assert shapely.is_ccw(shapely.get_exterior_ring(shape))


def test_each_table_is_a_row_group_and_none_gives_a_file_without_rows() -> None:
    schema = geo_schema(FIELDS, crs="EPSG:32614", types=["Polygon"])
    data = b"".join(file_chunks(tables(schema, [3, 5]), schema))
    assert [pq.ParquetFile(io.BytesIO(data)).metadata.row_group(number).num_rows for number in (0, 1)] == [3, 5]
    empty = pq.read_table(io.BytesIO(b"".join(file_chunks([], schema))))
    assert (len(empty), empty.schema.names) == (0, ["name", "geometry", "bbox"])


def test_a_file_leaves_piece_by_piece() -> None:
    schema = pa.schema([pa.field("noise", pa.binary())])
    noise = np.random.default_rng(0).bytes
    large = (pa.table({"noise": [noise(2**21) for _ in range(3)]}, schema) for _ in range(4))
    sizes = [len(chunk) for chunk in file_chunks(large, schema)]
    assert len(sizes) == 5
    assert max(sizes) < 8 * 2**20
