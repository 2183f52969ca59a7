"""Points of a run: where its photos were taken, with the share of each class, for a map.

In: the committed rows of a run. Out: `_points.parquet`, GeoParquet in degrees of longitude and latitude (WGS 84): a
point for each row that is `ok` and has a position, in the order of the parts' names, then of the keys. Its name begins
with `_`, so that readers of a run's folder as one table leave it out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.classes import ClassMap
from pipeline.run import folder, parts
from pipeline.run.footers import Footers
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector import geoparquet

READ_COLUMNS = ["key", "status", "longitude", "latitude", "altitude", "class_pixels", "confidence"]
GROUP_ROWS = 2**14
"""Points from which a row group is full: readers skip groups by their `bbox`."""


@dataclass(frozen=True, slots=True)
class PointCounts:
    """Rows of a run that are `ok`."""

    points: int = 0
    """Those with a position."""
    without: int = 0
    """Those without one."""


def write_points(run_url: Url, classes: ClassMap, footers: Footers) -> PointCounts:
    """Write the points of a run, in memory that does not grow with its rows; the same rows give the same bytes.

    Where no row has a position, nothing is written, and the file of a former call is deleted.

    Args:
        run_url: folder of the run, whose rows are all committed.
        classes: class map of the run.
        footers: those of the run's parts.
    """
    totals, schema, url = footers.totals, points_schema(classes), run_url / folder.POINTS
    counts = PointCounts(totals.positions, totals.ok - totals.positions)
    located = _grouped(_located(run_url, footers.names_with("positions")))
    tables = (_points(rows, classes, schema) for rows in located)
    first = next(tables, None)
    if first is None:
        objects.delete(url)
    else:
        objects.put_stream(url, geoparquet.file_chunks(chain([first], tables), schema))
    return counts


def points_schema(classes: ClassMap) -> pa.Schema:
    """Columns of `_points.parquet`.

    key: of the row. altitude: metres above sea level, null where unknown. class_id, class: the class with most pixels,
    the smaller id of two. pixels: those with a class. confidence: as in the row, 0 to 1. share_NAME: share of `pixels`
    of the class NAME, 0 to 1. geometry: the point, longitude then latitude. bbox: its coordinates. Without a pixel of
    any class, class and shares are null.
    """
    columns = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("altitude", pa.float64()),
        pa.field("class_id", pa.uint8()),
        pa.field("class", pa.string()),
        pa.field("pixels", pa.int64(), nullable=False),
        pa.field("confidence", pa.float32()),
        *(pa.field(name, pa.float32()) for name in _share_names(classes)),
    ]
    return geoparquet.geo_schema(columns, crs=geoparquet.LONGITUDE_LATITUDE, types=["Point"])


def _share_names(classes: ClassMap) -> list[str]:
    return [f"share_{name}" for name in classes.names]


def _located(run_url: Url, names: list[str]) -> Iterator[pa.Table]:
    """Rows that are `ok` and have a position, part after part."""
    for table in parts.read_tables(run_url, sorted(names), READ_COLUMNS):
        yield table.filter(pc.and_(pc.equal(table["status"], "ok"), table["longitude"].is_valid()))


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join tables until they have `GROUP_ROWS` rows."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= GROUP_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _points(rows: pa.Table, classes: ClassMap, schema: pa.Schema) -> pa.Table:
    """Rows of `points_schema`."""
    counts_nk = rows["class_pixels"].combine_chunks().flatten().to_numpy().reshape(len(rows), len(classes))
    pixels, ids = counts_nk.sum(axis=1), counts_nk.argmax(axis=1)
    none = pixels == 0
    shares_nk = counts_nk / np.maximum(pixels, 1)[:, None]
    columns = {
        **{name: rows[name] for name in ("key", "altitude", "confidence")},
        "class_id": pa.array(ids.astype(np.uint8), mask=none),
        "class": pa.array(np.array(classes.names, object)[ids], pa.string(), mask=none),
        "pixels": pixels,
        **{
            name: pa.array(share, pa.float32(), mask=none)
            for name, share in zip(_share_names(classes), shares_nk.T, strict=True)
        },
    }
    xy_n2 = np.column_stack([rows["longitude"].to_numpy(), rows["latitude"].to_numpy()])
    return geoparquet.point_table(schema, columns, xy_n2)
