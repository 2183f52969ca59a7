"""Footers of all parts of a run as one Arrow table, and the index objects that hold many footers each.

    parts/part-<20 hex digits>.parquet          each has its footer
    _run/index/index-<20 hex digits>.arrow      copies of the footers of some hundred parts, and their totals

Index objects are written while a run goes on, so that a run of millions of parts is resumed and closed by some thousand
reads. The parts are the truth: a footer in an index counts only while its part is listed, and a part that no index has
is opened. An index of which a part is gone, replaced by a repair, is not used, since its totals hold that part's rows.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StorageError
from pipeline.run import parts
from pipeline.run.parts import Part
from pipeline.run.totals import RowTotals, add_up
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

FOLDER = "_run/index"
INDEX_PARTS = 256
"""Parts per index object."""
FEW_PARTS = 32
"""Parts that are not worth an index: their footers are read in the time that two or three requests take."""
TOTALS_KEY = b"atrous.totals"

FOOTER_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        ("owner", pa.int32()),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("failed", pa.int64(), nullable=False),
        pa.field("positions", pa.int64(), nullable=False),
        pa.field("previews", pa.int64(), nullable=False),
        pa.field(
            "shards",
            pa.list_(pa.struct([("id", pa.string()), ("rows", pa.int64()), ("shard_rows", pa.int64())])),
            nullable=False,
        ),
    ]
)
"""A row per part. owner: see `Part.owner`. rows, failed, positions, previews: rows of that kind, see `RowTotals`.
shards: rows of each shard, see `ShardCount`."""


@dataclass(frozen=True, slots=True)
class PartSummary:
    """What is needed of one part to find its rows."""

    name: str
    failed: int
    """Failed rows."""
    shards: dict[str, int]
    """Rows by the id of their shard."""


@dataclass(frozen=True, slots=True)
class Footers:
    """Footers of some parts."""

    table: pa.Table = field(default_factory=FOOTER_SCHEMA.empty_table)
    """Table of `FOOTER_SCHEMA`."""
    totals: RowTotals = field(default_factory=RowTotals)
    """Totals of all rows of the parts."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def names(self) -> list[str]:
        """Names of the parts."""
        names: list[str] = self.table["name"].to_pylist()
        return names

    def names_with(self, column: str) -> list[str]:
        """Names of the parts in which `column` of the table is above 0, in the order of the table."""
        names: list[str] = self.table.filter(pc.greater(self.table[column], 0))["name"].to_pylist()
        return names

    def names_holding(self, shard_ids: Iterable[str]) -> list[str]:
        """Names of the parts with rows of some shards, in the order of the table."""
        shards = self.table["shards"].combine_chunks()
        wanted = pc.is_in(pc.list_flatten(shards).field("id"), value_set=pa.array(shard_ids, pa.string()))
        holders = np.unique(pc.list_parent_indices(shards).to_numpy()[wanted.to_numpy(zero_copy_only=False)])
        names: list[str] = self.table["name"].take(pa.array(holders)).to_pylist()
        return names

    def shards(self) -> pa.Table:
        """Rows of each shard over all parts, in no order.

        Returns:
            a table with columns id; rows, those committed; shard_rows, the rows of the whole shard, null while its last
            row is missing; owners, the number of drivers that wrote it, where parts that name none count as two.
        """
        shards = self.table["shards"].combine_chunks()
        counts = pc.list_flatten(shards)
        owner = self.table["owner"].combine_chunks().take(pc.list_parent_indices(shards))
        flat = pa.table(
            {
                "id": counts.field("id"),
                "rows": counts.field("rows"),
                "shard_rows": counts.field("shard_rows"),
                "owner": owner,
                "unknown": pc.cast(owner.is_null(), pa.int64()),
            }
        )
        kinds = [("rows", "sum"), ("shard_rows", "max"), ("owner", "count_distinct"), ("unknown", "max")]
        grouped = flat.group_by("id").aggregate(kinds)
        owners = pc.add(grouped["owner_count_distinct"], pc.multiply(grouped["unknown_max"], 2))
        columns = {"id": grouped["id"], "rows": grouped["rows_sum"], "shard_rows": grouped["shard_rows_max"]}
        return pa.table(columns | {"owners": owners})

    def summaries(self) -> Iterator[PartSummary]:
        """The parts one by one, in the order of the table."""
        for row in self.table.select(["name", "failed", "shards"]).to_pylist():
            yield PartSummary(row["name"], row["failed"], {shard["id"]: shard["rows"] for shard in row["shards"]})


def footers_of(some: Sequence[Part]) -> Footers:
    """Footers of parts at hand, in their order."""
    rows = [
        {
            "name": part.name,
            "owner": part.owner,
            "rows": part.totals.rows,
            "failed": part.totals.failed,
            "positions": part.totals.positions,
            "previews": part.totals.previews,
            "shards": [
                {"id": shard, "rows": count.rows, "shard_rows": count.shard_rows}
                for shard, count in part.shards.items()
            ],
        }
        for part in some
    ]
    return Footers(pa.Table.from_pylist(rows, schema=FOOTER_SCHEMA), add_up(part.totals for part in some))


def join_footers(some: Sequence[Footers]) -> Footers:
    """Footers of several groups of parts that share none, in their order."""
    table = pa.concat_tables([FOOTER_SCHEMA.empty_table(), *(group.table for group in some)])
    return Footers(table.combine_chunks(), add_up(group.totals for group in some))


# ---------------------------------------------------------------- index objects


def write_index(run_url: Url, footers: Footers) -> None:
    """Put an index object of some parts, named by a digest of their names."""
    digest = hashlib.sha256("\n".join(sorted(footers.names)).encode()).hexdigest()[:20]
    objects.put(run_url / FOLDER / f"index-{digest}.arrow", encode_index(footers))


def encode_index(footers: Footers) -> bytes:
    """Encode an index object: an Arrow file of `FOOTER_SCHEMA`, the totals in its metadata."""
    table = footers.table.replace_schema_metadata({TOTALS_KEY: footers.totals.to_json()})
    stored = pa.BufferOutputStream()
    with pa.ipc.new_file(stored, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    data: bytes = stored.getvalue().to_pybytes()
    return data


def read_index(run_url: Url, name: str) -> Footers:
    """Footers of one index object."""
    url = run_url / FOLDER / name
    with objects.naming_damage(url, hint="delete it: the parts have what it holds"):
        table = pa.ipc.open_file(pa.BufferReader(objects.read_bytes(url))).read_all()
        totals = RowTotals.from_json(table.schema.metadata[TOTALS_KEY])
        return Footers(table.replace_schema_metadata().cast(FOOTER_SCHEMA), totals)


def list_indexes(run_url: Url) -> list[str]:
    """Names of the index objects of a run, sorted."""
    return sorted(name for name in objects.list_below(run_url / FOLDER) if name.endswith(".arrow"))


class IndexWriter:
    """Writer of index objects while parts are committed: one for every `INDEX_PARTS` of them."""

    def __init__(self, run_url: Url) -> None:
        self.run_url = run_url
        self.held: list[Part] = []

    def add(self, part: Part) -> None:
        """Take the footer of a part that was committed; one that is committed again at once counts once."""
        if part.name not in {held.name for held in self.held}:
            self.held.append(part)
        if len(self.held) >= INDEX_PARTS:
            held, self.held = self.held, []
            write_index(self.run_url, footers_of(held))


# ---------------------------------------------------------------- footers of a run


def read_footers(run_url: Url) -> Footers:
    """Footers of all committed parts of a run, each once.

    Raises:
        StorageError: a part or an index object is damaged.
    """
    _, indexed, rest = _read(run_url)
    return join_footers([*indexed.values(), *rest])


def gather_footers(run_url: Url) -> Footers:
    """As `read_footers`; also writes an index of the parts that had none, and deletes those that are out of date.

    Only the driver that holds the run calls this.
    """
    outdated, indexed, rest = _read(run_url)
    for name in outdated:
        objects.delete(run_url / FOLDER / name)
    for group in rest:
        if len(group) >= FEW_PARTS:
            write_index(run_url, group)
    return join_footers([*indexed.values(), *rest])


def _read(run_url: Url) -> tuple[list[str], dict[str, Footers], list[Footers]]:
    """Names of outdated index objects, the others by name, and footers of the rest in groups of `INDEX_PARTS`."""
    names = list_indexes(run_url)  # before the parts: those that they name are there
    listed = pa.array(parts.list_parts(run_url), pa.string())
    indexes = zip(names, parts.map_ahead(lambda name: _read_or_warn(run_url, name), names), strict=True)
    indexed = _up_to_date({name: index for name, index in indexes if index is not None}, listed)
    known = pa.chunked_array([footers.table["name"].combine_chunks() for footers in indexed.values()], pa.string())
    rest = listed.filter(pc.invert(pc.is_in(listed, value_set=known))).to_pylist()
    found = parts.map_ahead(lambda name: parts.read_part_footer(run_url, name), rest)
    groups = iter(lambda: list(islice(found, INDEX_PARTS)), [])
    return [name for name in names if name not in indexed], indexed, [footers_of(group) for group in groups]


def _read_or_warn(run_url: Url, name: str) -> Footers | None:
    """Footers of one index object; None when it is damaged, since the parts have what it holds."""
    try:
        return read_index(run_url, name)
    except StorageError as error:
        log.warning("%s; its parts are opened instead", error)
        return None


def _up_to_date(indexes: dict[str, Footers], listed: pa.Array) -> dict[str, Footers]:
    """Index objects whose parts are all listed, and of which no part is in one before."""
    sizes = [len(footers) for footers in indexes.values()]
    if not indexes:
        return {}
    names = pa.chunked_array([footers.table["name"].combine_chunks() for footers in indexes.values()]).combine_chunks()
    there = pc.is_in(names, value_set=listed).to_numpy(zero_copy_only=False)
    codes = names.dictionary_encode().indices.to_numpy()  # numbered in the order in which they are met
    new = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
    good = np.logical_and.reduceat(there & new, np.cumsum([0, *sizes[:-1]]))
    return {name: footers for (name, footers), is_good in zip(indexes.items(), good, strict=True) if is_good}
