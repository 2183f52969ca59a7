"""GeoParquet: tables with a geometry column, written row group by row group, so that memory does not grow with rows.

In: columns, shapes and a coordinate system. Out: the bytes of a file of version 1.1.0 (https://geoparquet.org/releases/
v1.1.0), geometries as WKB, with a struct `bbox` of each row by which readers skip row groups.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import optional
from pipeline.geotiff.decode import load_rasterio
from pipeline.records import Float64

VERSION = "1.1.0"
GEOMETRY = "geometry"
BBOX = "bbox"
LONGITUDE_LATITUDE = "OGC:CRS84"
"""Coordinate system of degrees of longitude and latitude, in this order; the default of GeoParquet."""
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_WKB_POINT = np.dtype([("order", "u1"), ("type", "<u4"), ("xy", "<f8", 2)])
"""A point as WKB: 1 for little-endian, 1 for a point, two coordinates. OGC 06-103r4, well-known binary."""
_FLUSHED_BYTES = 4 * 2**20


def load_shapely() -> Any:
    """Import shapely; raises ConfigError where it is missing."""
    with optional.package("shapely", extra="geo", needed_by="polygons"):
        import shapely  # noqa: PLC0415

        return shapely


def geo_schema(columns: Sequence[pa.Field], *, crs: str | None, types: Sequence[str]) -> pa.Schema:
    """Schema of a GeoParquet file: the columns, then `geometry` and `bbox`.

    Args:
        columns: all other columns.
        crs: coordinate system as WKT or by name; None where there is none. `LONGITUDE_LATITUDE` is left out of the
            file, where readers assume it, and needs no rasterio.
        types: types of the geometries, such as `Polygon`.
    """
    sides = pa.struct([(side, pa.float64()) for side in _SIDES])
    facts: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": list(types),
        "covering": {BBOX: {side: [BBOX, side] for side in _SIDES}},
    }
    if crs != LONGITUDE_LATITUDE:
        facts["crs"] = None if crs is None else projjson(crs)
    if all(kind in ("Polygon", "MultiPolygon") for kind in types):
        facts["orientation"] = "counterclockwise"
    geo = {"version": VERSION, "primary_column": GEOMETRY, "columns": {GEOMETRY: facts}}
    fields = [*columns, pa.field(GEOMETRY, pa.binary()), pa.field(BBOX, sides)]
    return pa.schema(fields, metadata={"geo": json.dumps(geo)})


def projjson(crs: str) -> dict[str, Any]:
    """PROJJSON of a coordinate system (https://proj.org/specifications/projjson.html)."""
    plain: dict[str, Any] = load_rasterio().crs.CRS.from_user_input(crs).to_dict(projjson=True)
    return plain


def geo_table(schema: pa.Schema, columns: Mapping[str, Any], shapes: npt.NDArray[Any]) -> pa.Table:
    """Rows of a schema of `geo_schema`: columns by name, and (N,) shapes of shapely; polygons get their orientation."""
    shapely = load_shapely()
    facts = json.loads(schema.metadata[b"geo"])["columns"][GEOMETRY]
    if "orientation" in facts:
        shapes = shapely.orient_polygons(shapes)
    bounds = shapely.bounds(shapes) if len(shapes) else np.empty((0, 4))
    return _table(schema, columns, pa.array(shapely.to_wkb(shapes), pa.binary()), bounds)


def point_table(schema: pa.Schema, columns: Mapping[str, Any], xy_n2: Float64) -> pa.Table:
    """Rows of a schema of `geo_schema`: columns by name, and (N, 2) coordinates of points; needs no shapely."""
    points = np.empty(len(xy_n2), _WKB_POINT)
    points["order"] = points["type"] = 1
    points["xy"] = xy_n2
    wkb = pa.Array.from_buffers(pa.binary(_WKB_POINT.itemsize), len(points), [None, pa.py_buffer(points.tobytes())])
    return _table(schema, columns, wkb.cast(pa.binary()), np.hstack([xy_n2, xy_n2]))


def _table(schema: pa.Schema, columns: Mapping[str, Any], geometry: pa.Array, bounds_n4: Float64) -> pa.Table:
    bbox = pa.StructArray.from_arrays([pa.array(side) for side in bounds_n4.T], names=_SIDES)
    return pa.table({**columns, GEOMETRY: geometry, BBOX: bbox}, schema=schema)


def file_chunks(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[bytes]:
    """Bytes of a Parquet file, piece by piece, with a row group for each table; for `objects.put_stream`."""
    sink = _Sink()
    with pq.ParquetWriter(sink, schema, compression="zstd", compression_level=3) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(len(table), 1))
            if sink.waiting >= _FLUSHED_BYTES:
                yield sink.take()
    yield sink.take()


class _Sink(io.RawIOBase):
    """File that is only written to; what was written is taken out again and again."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0
        self.waiting = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._at += len(part)
        self.waiting += len(part)
        return len(part)

    def close(self) -> None:
        """Keep what was written: the writer closes its file before the last bytes are taken."""

    def take(self) -> bytes:
        """Bytes written since the last call."""
        taken = b"".join(self._parts)
        self._parts.clear()
        self.waiting = 0
        return taken
