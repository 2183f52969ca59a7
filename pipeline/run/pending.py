"""Shards of a run that are not complete, and their keys that are committed.

In: the plan of a run and the footers of its parts. Out: `PendingShard`s. Of the rows only those of shards that were
begun are read: a shard whose rows are all committed is known by its counts.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import JobError
from pipeline.run import parts
from pipeline.run.footers import Footers
from pipeline.source.plan import Plan
from pipeline.source.shard import Shard
from pipeline.store.url import Url


@dataclass(frozen=True, slots=True)
class PendingShard:
    """Shard with rows that are not committed yet, and its keys that are."""

    shard: Shard
    skip: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Begun:
    """Shard with missing rows."""

    shard: Shard
    rows: int
    """Rows under its own id that are committed."""


def pending_shards(run_url: Url, plan: Plan, footers: Footers) -> list[PendingShard]:
    """Shards with rows left to commit, in plan order.

    A shard is done when all its rows are committed. A folder that grew is cut into new slices, whose keys may be in
    parts under the ids of former slices: those are found by key.

    Raises:
        JobError: a committed row is of an older version of an object that is still in the source.
    """
    committed = footers.shards()
    begun = _incomplete(plan.shards, committed)
    orphans = orphaned_shards(plan, committed)
    partial = {one.shard.id for one in begun if one.rows}
    known = read_etags(run_url, footers, partial | orphans)
    by_key = {key: etag for shard_id in orphans for key, etag in known[shard_id].items()}
    pending = [PendingShard(one.shard, _keys_to_skip(one.shard, known.get(one.shard.id, {}), by_key)) for one in begun]
    return [one for one in pending if one.shard.rows is None or len(one.skip) < one.shard.rows]


def orphaned_shards(plan: Plan, committed: pa.Table) -> set[str]:
    """Ids of shards that have rows but are not planned: former slices of a folder that has grown since.

    Args:
        plan: plan of the run.
        committed: table of `Footers.shards`.
    """
    planned = pa.array([shard.id for shard in plan.shards], pa.string())
    return set(committed["id"].filter(pc.invert(pc.is_in(committed["id"], value_set=planned))).to_pylist())


def _incomplete(shards: list[Shard], committed: pa.Table) -> list[_Begun]:
    """Shards with fewer rows under their own ids than they have, or of which the number of rows is unknown."""
    at = pc.index_in(pa.array([shard.id for shard in shards], pa.string()), value_set=committed["id"])
    rows = np.nan_to_num(committed["rows"].take(at).to_numpy(), nan=0).astype(np.int64)
    counted = committed["shard_rows"].take(at)  # counted while reading; before that, what the plan says
    planned = pa.array([shard.rows for shard in shards], pa.int64())
    wanted = pc.coalesce(counted, planned).to_numpy()
    incomplete = np.flatnonzero(~(rows >= wanted))  # unknown numbers are NaN, which no number of rows reaches
    return [_Begun(shards[index], int(rows[index])) for index in incomplete]


def _keys_to_skip(shard: Shard, own: dict[str, str], orphaned: dict[str, str]) -> frozenset[str]:
    """Committed keys of a shard, under its own id or under that of a former slice."""
    moved = [member for member in shard.members()[: shard.max_rows] if member.key in orphaned] if orphaned else []
    for member in moved:
        if orphaned[member.key] != member.etag:
            hint = "write to another --output, or give the new content a new name"
            raise JobError(f"{member.key!r} changed since its row was committed", hint=hint)
    return frozenset(own) | {member.key for member in moved}


def read_etags(run_url: Url, footers: Footers, shard_ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """Etags of the committed rows of some shards by shard id, then by key; opens only the parts that hold them."""
    etags: dict[str, dict[str, str]] = defaultdict(dict)
    wanted = pa.array(sorted(shard_ids), pa.string())
    names = footers.names_holding(wanted) if len(wanted) else []
    for table in parts.read_tables(run_url, names, ["key", "shard", "source_etag"]):
        rows = table.filter(pc.is_in(table["shard"], value_set=wanted))
        for key, shard_id, etag in zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True):
            etags[shard_id][key] = etag
    return etags
