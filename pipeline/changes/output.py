"""Comparison of two runs: what changed from one class to another, in all and in each zone.

In: masks of change. Out, in the folder of the comparison:

    changes.parquet            a row per zone, class before and class after
    changes_map.parquet        the zones, their share of change and largest change
    polygons/<path>.parquet    polygons of change, in the coordinate system of the earlier mask
    _report/index.html         the page
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.assemble.plan import Assembly
from pipeline.assemble.squares import Square
from pipeline.changes.masks import ChangeMasks
from pipeline.changes.table import MADE_KEY, change_table, changes_map
from pipeline.records import Int64
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector.features import Features
from pipeline.vector.geoparquet import load_shapely
from pipeline.vector.grid import box_of
from pipeline.zones.output import put_table, read_sums
from pipeline.zones.plan import ZonePlan, find_squares
from pipeline.zones.work import ZoneSquare, ZoneWork

CHANGES, CHANGES_MAP = "changes.parquet", "changes_map.parquet"
_VERSION = 1
"""Of what is written: another one makes all files anew."""


def comparison_id(masks: ChangeMasks, features: Features | None) -> str:
    """16 hex digits: of all masks and zones that are compared."""
    digest = hashlib.blake2b(digest_size=8)
    for name, before in sorted(masks.before.items()):
        after = [(str(one.url), one.raster.etag) for one in masks.after.get(name, ())]
        digest.update(repr((str(before.url), before.raster.etag, after)).encode())
    digest.update(repr((masks.classes.names, _VERSION)).encode())
    if features is not None:
        for part in (*load_shapely().to_wkb(features.shapes), repr(features.values).encode()):
            digest.update(part)
        digest.update(features.crs.to_wkt().encode())
    return digest.hexdigest()


def find_changed_squares(
    assemblies: Sequence[Assembly], features: Features | None, plan: ZonePlan
) -> Iterator[tuple[Square, Int64, npt.NDArray[Any]]]:
    """Every square, with the zones in it and, behind the last zone's number, the whole square."""
    count = 0 if features is None else len(features.shapes)
    found = {} if features is None else {
        (square.assembly.name, square.window): (zones, shapes)
        for square, zones, shapes in find_squares(features, assemblies, plan, reaches=False)
    }  # fmt: skip
    for assembly in assemblies:
        for window in assembly.squares:
            none = np.empty(0, np.int64), np.empty(0, object)
            zones, shapes = found.get((assembly.name, window), none)
            yield Square(assembly, window), np.append(zones, count), np.append(shapes, box_of(window))


def read_map(output: Url) -> pa.Table:
    """`changes_map.parquet` of a comparison."""
    return pq.read_table(io.BytesIO(objects.read_bytes(output / CHANGES_MAP)))


def write_tables(
    work: ZoneWork, units: Sequence[ZoneSquare], features: Features | None, ids: Sequence[str], names: Sequence[str]
) -> pa.Table:
    """Add up the sums of all squares and write the tables; returns `changes.parquet`, which is written last."""
    sums, _ = read_sums(work, units)
    table = change_table(sums, ids, names)
    if features is not None:
        put_table(work.masks.output / CHANGES_MAP, changes_map(table, features, ids))
    table = table.replace_schema_metadata({MADE_KEY: work.id})
    put_table(work.masks.output / CHANGES, table)
    return table


def summary(table: pa.Table) -> dict[str, object]:
    """Pixels and hectares compared and changed, and zones with a pixel that was compared."""
    rows = table.to_pandas()
    every = rows[rows["zone"].isna() & rows["from_id"].notna()]
    changed = every[every["from_id"] != every["to_id"]]
    zones = rows[rows["zone"].notna() & (rows["compared_pixels"] > 0)]["zone"].nunique()
    facts: dict[str, object] = {"zones_compared": int(zones)}
    for name, some in (("compared", every), ("changed", changed)):
        facts |= {f"{name}_pixels": int(some["pixels"].sum()), f"{name}_ha": round(float(some["hectares"].sum()), 4)}
    return facts
