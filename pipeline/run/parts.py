"""Parts: immutable Parquet objects of rows, named by a digest of their keys, each committed by a single put.

A retried or late writer of the same rows writes the same name, so a retry changes nothing. The footer has the rows per
shard and their totals, so that resuming and closing a run read footers only.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.classes import ClassMap
from pipeline.prefetch import ahead
from pipeline.records import ROW_SCHEMA
from pipeline.run.totals import COUNTED_COLUMNS, RowTotals, count_rows
from pipeline.store import objects
from pipeline.store.url import Url

CLASSES_KEY = b"atrous.classes"
SHARDS_KEY = b"atrous.shards"
TOTALS_KEY = b"atrous.totals"
OWNER_KEY = b"atrous.owner"
LEFT_OF_KEY = b"atrous.left_of"

FEWEST_ROWS, MOST_ROWS = 256, 2048
"""Rows per part in small and in huge runs. Rows are safe once their part is committed, so a small run has small parts;
2048 masks of 50 kB are 100 MB, which a writer holds a few times."""
MANY_PARTS = 4000
"""Parts from which they become larger: a billion rows in parts of 256 would be four million objects."""
THREADS = 16
"""Concurrent reads of parts: small reads wait on latency, not bandwidth."""
PAGE_ROWS = 8
"""Rows after which a page may end: readers of masks hold a page at a time."""
REMEDY = "delete it and submit the run's command again, which makes its rows anew"
"""For a damaged part."""
_BUFFER_BYTES = 2**20
TEXT_COLUMNS = ["key", "status", "shard", "source_etag", "model_fp", "config_fp", "error_code", "error_detail"]


T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ShardCount:
    """Rows of one shard in one part."""

    rows: int
    """Rows of the shard in this part."""
    shard_rows: int | None
    """Rows of the whole shard, when its last row is here."""


@dataclass(frozen=True, slots=True)
class Part:
    """Footer of one part."""

    name: str
    shards: dict[str, ShardCount]
    """Rows by the id of their shard."""
    totals: RowTotals
    """Totals of its rows."""
    owner: int | None = None
    """Generation of the lease under which it was written; None in parts of older versions."""
    left_of: str | None = None
    """The part of which these rows are left, where a repair removed the others."""


def parts_url(run_url: Url) -> Url:
    """URL of the folder of a run's parts."""
    return run_url / "parts"


def part_name(keys: Iterable[str], left_of: str | None = None) -> str:
    """`part-<20 hex digits>.parquet`: a digest of the sorted keys, and of `left_of`, see `Part`.

    What a repair leaves of a part has a name of its own: another part may have the very same keys and other rows.
    """
    text = json.dumps([*filter(None, [left_of]), *sorted(keys)])
    return f"part-{hashlib.sha256(text.encode()).hexdigest()[:20]}.parquet"


def rows_per_part(rows: float) -> int:
    """Rows per part of a run of so many rows: a power of two, `FEWEST_ROWS` to `MOST_ROWS`."""
    size = FEWEST_ROWS
    while size < MOST_ROWS and rows > size * MANY_PARTS:
        size *= 2
    return size


def count_shards(table: pa.Table) -> dict[str, ShardCount]:
    """Rows per shard in a table of `ROW_SCHEMA`, and the shard's total where its last row is in the table."""
    counts = Counter(table["shard"].to_pylist())
    pairs = zip(table["shard"].to_pylist(), table["shard_rows"].to_pylist(), strict=True)
    totals = {shard: total for shard, total in pairs if total is not None}
    return {shard: ShardCount(rows, totals.get(shard)) for shard, rows in sorted(counts.items())}


def describe_part(table: pa.Table, owner: int | None = None, left_of: str | None = None) -> Part:
    """Footer of the part of these rows, a table of `ROW_SCHEMA`; for the others see `Part`."""
    name = part_name(table["key"].to_pylist(), left_of)
    return Part(name, count_shards(table), count_rows(table), owner, left_of)


def encode_part(table: pa.Table, classes: ClassMap, part: Part) -> bytes:
    """Encode rows, sorted by key: zstd, page checksums, class map and footer in the schema metadata."""
    metadata = {
        CLASSES_KEY: classes.model_dump_json(),
        SHARDS_KEY: json.dumps({shard: [count.rows, count.shard_rows] for shard, count in part.shards.items()}),
        TOTALS_KEY: part.totals.to_json(),
    }
    if part.owner is not None:
        metadata[OWNER_KEY] = str(part.owner)
    if part.left_of is not None:
        metadata[LEFT_OF_KEY] = part.left_of
    schema = pa.schema([field for field in ROW_SCHEMA if field.name in table.column_names])  # fewer in older parts
    out = io.BytesIO()
    pq.write_table(
        table.cast(schema).sort_by("key").replace_schema_metadata(metadata),
        out,
        compression="zstd",
        compression_level=1,
        use_dictionary=TEXT_COLUMNS,
        write_page_checksum=True,
        write_batch_size=PAGE_ROWS,  # pages end between batches: else all masks of a part are one
        write_statistics=["key"],
    )
    return out.getvalue()


def write_part(
    run_url: Url, table: pa.Table, classes: ClassMap, *, owner: int | None = None, left_of: str | None = None
) -> Part:
    """Commit rows as one part and return its footer. The put is the commit: it is atomic.

    Args:
        run_url: folder of the run.
        table: rows of `ROW_SCHEMA`; at least one.
        classes: class map of the run.
        owner: generation of the lease that the writer's driver holds.
        left_of: the part of which these rows are left.
    """
    part = describe_part(table, owner, left_of)
    objects.put(parts_url(run_url) / part.name, encode_part(table, classes, part))
    return part


@contextmanager
def _open_part(run_url: Url, name: str) -> Iterator[io.BufferedReader]:
    """Open a part; what the block raises when it is damaged becomes an error with its name."""
    url = parts_url(run_url) / name
    with objects.naming_damage(url, hint=REMEDY), objects.open_read(url) as file:
        yield file


def read_part_footer(run_url: Url, name: str) -> Part:
    """Read the footer of one part; of a part that an older version wrote, the columns that are counted too.

    Raises:
        StorageError: the object is not a whole part.
    """
    with _open_part(run_url, name) as file:
        part = pq.ParquetFile(file, page_checksum_verification=True)
        stored = part.metadata.metadata
        shards = {shard: ShardCount(*count) for shard, count in json.loads(stored[SHARDS_KEY]).items()}
        totals = (
            RowTotals.from_json(stored[TOTALS_KEY])
            if TOTALS_KEY in stored
            else count_rows(part.read([name for name in COUNTED_COLUMNS if name in part.schema_arrow.names]))
        )
        left_of = stored[LEFT_OF_KEY].decode() if LEFT_OF_KEY in stored else None
        return Part(name, shards, totals, owner_of(stored), left_of)


def owner_of(metadata: Mapping[bytes, bytes]) -> int | None:
    """See `Part.owner`, from the metadata of a part's schema."""
    return int(metadata[OWNER_KEY]) if OWNER_KEY in metadata else None


def read_classes(run_url: Url, name: str) -> ClassMap:
    """Class map of one part."""
    with _open_part(run_url, name) as file:
        return ClassMap.model_validate_json(pq.read_metadata(file).metadata[CLASSES_KEY])


def read_columns(run_url: Url, name: str, columns: list[str]) -> pa.Table:
    """Read columns of one part, page checksums verified; columns that an older version did not write are left out."""
    with _open_part(run_url, name) as file:
        return pq.ParquetFile(file, page_checksum_verification=True).read(columns=columns)


def read_batches(run_url: Url, name: str, columns: list[str], *, rows: int) -> Iterator[pa.RecordBatch]:
    """Read columns of one part a few rows at a time: the masks of a part may be hundreds of megabytes."""
    with _open_part(run_url, name) as file:
        part = pq.ParquetFile(file, page_checksum_verification=True, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        yield from part.iter_batches(batch_size=rows, columns=columns)


def read_row(run_url: Url, name: str, row: int, columns: list[str]) -> dict[str, Any]:
    """Read cells of one row of a part, and of the rows before it on the same pages; missing columns give None.

    Raises:
        StorageError: the object is not a whole part.
        IndexError: the part has no such row.
    """
    with _open_part(run_url, name) as file:
        part = pq.ParquetFile(file, page_checksum_verification=True, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        present = [column for column in columns if column in part.schema_arrow.names]
        first = 0
        for batch in part.iter_batches(batch_size=PAGE_ROWS, columns=present):
            if row < first + len(batch):
                cells: dict[str, Any] = batch.slice(row - first, 1).to_pylist()[0]
                return dict.fromkeys(columns) | cells
            first += len(batch)
    raise IndexError(f"{name} has no row {row}")


def list_parts(run_url: Url) -> list[str]:
    """Names of the committed parts, sorted; empty before the first commit."""
    return sorted(part_versions(run_url))


def part_versions(run_url: Url) -> dict[str, str]:
    """ETag of each committed part by its name; empty before the first commit."""
    files = objects.files_below(parts_url(run_url))
    return {one.path: one.etag for one in files if one.path.startswith("part-") and one.path.endswith(".parquet")}


def map_ahead(function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
    """`map` in threads, in order, at most `THREADS + 1` results ahead of the caller."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from ahead(pool, function, values, THREADS + 1)


def read_tables(run_url: Url, names: Iterable[str], columns: list[str]) -> Iterator[pa.Table]:
    """Tables of `columns` of the parts `names`, in order, read a few parts ahead."""
    return map_ahead(lambda name: read_columns(run_url, name, columns), names)
