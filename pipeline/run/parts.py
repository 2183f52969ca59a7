"""Parts: immutable Parquet objects of rows, named by a digest of their keys, each committed by a single put.

A retried or late writer of the same rows writes the same name, so a retry changes nothing. The footer counts the rows
per shard, so planning a resume reads footers only.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.classes import ClassMap
from pipeline.records import ROW_SCHEMA
from pipeline.store import objects
from pipeline.store.url import Url

CLASSES_KEY = b"atrous.classes"
SHARDS_KEY = b"atrous.shards"
FAILED_KEY = b"atrous.failed"

PAGE_ROWS = 8
"""Rows after which a page may end: readers of masks hold a page at a time."""
_BUFFER_BYTES = 2**20
TEXT_COLUMNS = ["key", "status", "shard", "source_etag", "model_fp", "config_fp", "error_code", "error_detail"]


@dataclass(frozen=True, slots=True)
class ShardCount:
    """Rows of one shard in one part."""

    rows: int
    """Rows of the shard in this part."""
    shard_rows: int | None
    """Rows of the whole shard, when its last row is here."""


@dataclass(frozen=True, slots=True)
class Part:
    """Footer of one part: its name, rows, rows per shard, and failed rows by error code."""

    name: str
    rows: int
    shards: dict[str, ShardCount]
    failed: dict[str, int] = field(default_factory=dict)


def parts_url(run_url: Url) -> Url:
    """URL of the folder of a run's parts."""
    return run_url / "parts"


def part_name(keys: Iterable[str]) -> str:
    """`part-<20 hex digits>.parquet`: a digest of the sorted keys."""
    text = json.dumps(sorted(keys))
    return f"part-{hashlib.sha256(text.encode()).hexdigest()[:20]}.parquet"


def count_shards(table: pa.Table) -> dict[str, ShardCount]:
    """Rows per shard in a table of `ROW_SCHEMA`, and the shard's total where its last row is in the table."""
    counts = Counter(table["shard"].to_pylist())
    pairs = zip(table["shard"].to_pylist(), table["shard_rows"].to_pylist(), strict=True)
    totals = {shard: total for shard, total in pairs if total is not None}
    return {shard: ShardCount(rows, totals.get(shard)) for shard, rows in sorted(counts.items())}


def count_failed(error_codes: pa.ChunkedArray) -> dict[str, int]:
    """Failed rows by error code; a row without a code has not failed."""
    return dict(Counter(code for code in error_codes.to_pylist() if code))


def failed_of(part_footers: Iterable[Part]) -> dict[str, int]:
    """Failed rows of several parts by error code."""
    return dict(sum((Counter(part.failed) for part in part_footers), start=Counter[str]()))


def encode_part(table: pa.Table, classes: ClassMap) -> bytes:
    """Encode rows, sorted by key: zstd, page checksums, class map and counts in the schema metadata."""
    shards = {shard: [count.rows, count.shard_rows] for shard, count in count_shards(table).items()}
    metadata = {
        CLASSES_KEY: classes.model_dump_json(),
        SHARDS_KEY: json.dumps(shards),
        FAILED_KEY: json.dumps(count_failed(table["error_code"])),
    }
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


def write_part(run_url: Url, table: pa.Table, classes: ClassMap) -> str:
    """Commit rows as one part and return its name. The put is the commit: it is atomic."""
    name = part_name(table["key"].to_pylist())
    objects.put(parts_url(run_url) / name, encode_part(table, classes))
    return name


@contextmanager
def _open_part(run_url: Url, name: str) -> Iterator[io.BufferedReader]:
    """Open a part; what the block raises when it is damaged becomes an error with its name."""
    url = parts_url(run_url) / name
    hint = "delete it and submit the run's command again, which makes its rows anew"
    with objects.naming_damage(url, hint=hint), objects.open_read(url) as file:
        yield file


def read_part_footer(run_url: Url, name: str) -> Part:
    """Read the footer of one part; of a part that an older version wrote, the column of error codes too.

    Raises:
        StorageError: the object is not a whole part.
    """
    with _open_part(run_url, name) as file:
        part = pq.ParquetFile(file)
        rows, stored = part.metadata.num_rows, part.metadata.metadata
        written = FAILED_KEY in stored
        failed = json.loads(stored[FAILED_KEY]) if written else count_failed(part.read(["error_code"])["error_code"])
        shards = {shard: ShardCount(*count) for shard, count in json.loads(stored[SHARDS_KEY]).items()}
        return Part(name, rows, shards, failed)


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


def list_parts(run_url: Url) -> list[str]:
    """Names of the committed parts, sorted; empty before the first commit."""
    names = objects.list_below(parts_url(run_url))
    return sorted(name for name in names if name.startswith("part-") and name.endswith(".parquet"))
