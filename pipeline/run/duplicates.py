"""Removal of rows that two drivers wrote of one key.

Two parts share a key only when a driver that had lost the run finished a write late. So only the rows of shards that
more than one driver wrote are read, and of shards with more rows than they have: each part names its driver.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.classes import ClassMap
from pipeline.records import ROW_SCHEMA
from pipeline.run import parts
from pipeline.run.footers import Footers
from pipeline.run.pending import orphaned_shards, read_etags
from pipeline.source.plan import Plan
from pipeline.store import objects
from pipeline.store.url import Url

UInt64 = np.ndarray[tuple[int], np.dtype[np.uint64]]


def hash_keys(keys: pa.ChunkedArray) -> UInt64:
    """64-bit hash of each key."""
    return pd.util.hash_array(np.array(keys.to_pylist(), dtype=object), categorize=False)


def repeated_hashes(*hashes: UInt64) -> UInt64:
    """Hashes that occur more than once in these arrays together."""
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    return values[counts > 1]


def suspect_shards(run_url: Url, plan: Plan, footers: Footers) -> set[str]:
    """Ids of the shards in which a key may have two rows.

    Shards of more than one driver, or with more rows than they have; former slices of a folder that has grown, and the
    slices to which their files now belong.
    """
    committed = footers.shards()
    over = pc.fill_null(pc.greater(committed["rows"], committed["shard_rows"]), False)
    suspects = set(committed["id"].filter(pc.or_(pc.greater(committed["owners"], 1), over)).to_pylist())
    if orphans := orphaned_shards(plan, committed):
        keys = {key for etags in read_etags(run_url, footers, orphans).values() for key in etags}
        suspects |= orphans
        suspects |= {shard.id for shard in plan.shards if any(member.key in keys for member in shard.members())}
    return suspects


def remove_duplicates(run_url: Url, names: list[str]) -> int:
    """Leave one row per key over some parts; returns the number of rows removed.

    A row `ok` is kept before a row `failed`, then the row in the part that is first by name. The smaller part is put
    before the larger one is deleted, so a crash in between loses nothing, and the next call continues.

    Args:
        run_url: folder of the run.
        names: the parts with rows of suspect shards.
    """
    names = sorted(names)
    tables = list(parts.read_tables(run_url, names, ["key", "status"]))
    hashes = np.concatenate([hash_keys(table["key"]) for table in tables]) if tables else np.empty(0, np.uint64)
    twice = repeated_hashes(hashes)
    if not len(twice):
        return 0
    repeated = {
        name: _keys_and_status(table, np.isin(hash_keys(table["key"]), twice))
        for name, table in zip(names, tables, strict=True)
    }
    keeper: dict[str, tuple[bool, str]] = {}
    for name, pairs in repeated.items():
        for key, status in pairs:
            keeper[key] = min(keeper.get(key, (True, "~")), (status != "ok", name))
    dropped = {name: {key for key, _ in pairs if keeper[key][1] != name} for name, pairs in repeated.items()}
    rows = {name: len(table) for name, table in zip(names, tables, strict=True)}
    # Parts of which nothing is left go first. One may be what a crashed call left of another: that one puts it again.
    for name in sorted(names, key=lambda name: len(dropped[name]) < rows[name]):
        rewrite_without(run_url, name, dropped[name])
    return sum(map(len, dropped.values()))


def rewrite_without(run_url: Url, name: str, keys: set[str]) -> None:
    """Replace a part by one without `keys`; a part without any other key is deleted, one with none of them stays."""
    if not keys:
        return
    table = parts.read_columns(run_url, name, ROW_SCHEMA.names)
    kept = table.filter(pa.array([key not in keys for key in table["key"].to_pylist()]))
    if len(kept) == len(table):
        return
    if len(kept):
        classes = ClassMap.model_validate_json(table.schema.metadata[parts.CLASSES_KEY])
        parts.write_part(run_url, kept, classes, owner=parts.owner_of(table.schema.metadata), left_of=name)
    objects.delete(parts.parts_url(run_url) / name)


def _keys_and_status(table: pa.Table, where: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[tuple[str, str]]:
    selected = table.filter(pa.array(where))
    return list(zip(selected["key"].to_pylist(), selected["status"].to_pylist(), strict=True))
