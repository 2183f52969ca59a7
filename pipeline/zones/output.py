"""Files of the statistics of zones: what squares wait for, what they have counted, and the two tables.

In: squares with zones, and their sums. Out: `zones.parquet` and `zones_map.parquet` in the folder of the masks; the
first is written last, and says in its metadata what it was made from.
"""

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.assemble.assemble import group_squares
from pipeline.assemble.squares import Square
from pipeline.classes import ClassMap
from pipeline.records import Int64
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector.features import Features
from pipeline.vector.geoparquet import file_chunks
from pipeline.zones.plan import ZonePlan
from pipeline.zones.table import MADE_KEY, map_schema, map_table, zone_table
from pipeline.zones.work import UNREAD_KEY, WAITING, ZoneSquare, ZoneWork, encode_zones

ZONES, ZONES_MAP, ZONES_STYLE = "zones.parquet", "zones_map.parquet", "zones_map.qml"
_THREADS = 16
_GROUP_ROWS = 100_000
_AGAIN = "delete it and run the same command again"


def read_made(url: Url, key: bytes, made_from: str) -> pa.Table | None:
    """A table, where it is there and its metadata say that it is made from the same; else None."""
    try:
        with objects.open_read(url) as file:
            if (pq.read_schema(file).metadata or {}).get(key) != made_from.encode():
                return None
            file.seek(0)
            return pq.read_table(file)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


def put_squares(work: ZoneWork, found: Iterable[tuple[Square, Int64, npt.NDArray[Any]]]) -> list[ZoneSquare]:
    """Write the zones of each square, unless its sums are there; returns all squares."""
    there = set(objects.list_below(work.masks.output / WAITING / work.id))
    units = []
    for number, (square, zones, shapes) in enumerate(found):
        units.append(ZoneSquare(square, number))
        if f"{number}.parquet" not in there:
            objects.put(work.url(number, "zones"), encode_zones(zones, shapes))
    return units


def groups_left(work: ZoneWork, units: Sequence[ZoneSquare]) -> list[tuple[ZoneSquare, ...]]:
    """Units of work: squares without sums that follow each other, together no larger than one whole square."""
    there = set(objects.list_below(work.masks.output / WAITING / work.id))
    left = [unit for unit in units if f"{unit.number}.parquet" not in there]
    following = iter(left)
    return [tuple(islice(following, len(group))) for group in group_squares(unit.square for unit in left)]


def write_tables(
    work: ZoneWork,
    units: Sequence[ZoneSquare],
    plan: ZonePlan,
    features: Features,
    ids: Sequence[str],
    *,
    classes: ClassMap,
) -> tuple[pa.Table, list[str]]:
    """Add up the sums of all squares and write both files; returns `zones.parquet`, and which bands were not read."""
    sums, unread = read_sums(work, units)
    table = zone_table(sums, plan.reaches, features, ids, classes)
    schema = map_schema(features, work.id)
    put_table(work.masks.output / ZONES_MAP, map_table(table, features, ids, schema))
    table = table.replace_schema_metadata({MADE_KEY: work.id})
    put_table(work.masks.output / ZONES, table)
    return table, unread


def put_table(url: Url, table: pa.Table) -> None:
    """Write a table as Parquet, with row groups that readers can skip."""
    slices = (table.slice(first, _GROUP_ROWS) for first in range(0, max(len(table), 1), _GROUP_ROWS))
    objects.put_stream(url, file_chunks(slices, table.schema))


def read_sums(work: ZoneWork, units: Sequence[ZoneSquare]) -> tuple[pd.DataFrame, list[str]]:
    """Sums of all squares, and which bands were not read."""
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(lambda unit: _read_sums(work, unit), units))
    frames = [table.to_pandas() for table, _ in read if len(table)]
    sums = pd.concat(frames, ignore_index=True) if frames else _no_sums()
    return sums, sorted({text for _, text in read if text})


def _read_sums(work: ZoneWork, unit: ZoneSquare) -> tuple[pa.Table, str]:
    url = work.url(unit.number, "parquet")
    with objects.naming_damage(url, hint=_AGAIN):
        table = pq.read_table(io.BytesIO(objects.read_bytes(url)))
    return table, table.schema.metadata[UNREAD_KEY].decode()


def _no_sums() -> pd.DataFrame:
    """Sums of no square: no zone touches a raster."""
    columns = {"zone": int, "class_id": int, "raster": object, "datetime": object, "pixels": float}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})


def delete_waiting(work: ZoneWork) -> None:
    """Delete what squares waited for and have counted; nobody may be counting meanwhile."""
    objects.delete_below(work.masks.output / WAITING)
