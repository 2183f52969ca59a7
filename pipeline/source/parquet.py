"""Parquet source: files with a column of encoded images, binary or the struct of bytes and path of Hugging Face.

Planning turns a footer into shards, one per row group. Reading turns a shard into items. Extension types are refused
before Arrow creates them, which would run the code that registered them (Ray CVE-2026-41486).
"""

import base64
import io
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ReadConfig
from pipeline.errors import InputError
from pipeline.records import Failure, Item
from pipeline.source.shard import Shard, object_shard
from pipeline.store import objects
from pipeline.store.backend import FileInfo

MAX_FOOTERS = 10_000
"""Most files to plan by row group; a larger source is planned by file, without opening any."""

FOOTERS_AT_ONCE = 32
TAIL_BYTES = 64 * 2**10
"""Bytes of the first read, at the end of a file: most footers fit."""
MAX_FOOTER_BYTES = 256 * 2**20

ROWS_AT_ONCE = 16
"""Rows per batch of Arrow: a few MB of photos."""
READ_BUFFER = 2**20
"""Bytes. With a buffer Arrow streams a column chunk page by page; without, it would load the whole chunk."""

_MAGIC = b"PAR1"

_Cells = tuple[str, pa.Scalar, pa.Scalar | None]
"""Name of a row within its file, its encoded image, and its label, None without labels."""


def row_groups(files: Iterable[Shard]) -> Iterator[Shard]:
    """One shard per row group, in order; files are opened lazily, a few at a time.

    A file that cannot be read, or has no rows, stays a single shard, whose reading gives the failure.
    """
    files = iter(files)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE, thread_name_prefix="footers") as pool:
        while few := list(islice(files, FOOTERS_AT_ONCE)):
            for shards in pool.map(_row_groups_of, few):
                yield from shards


def _row_groups_of(shard: Shard) -> list[Shard]:
    try:
        with objects.open_read(shard.url, etag=shard.etag) as opened:
            footer = read_parquet_footer(opened)
    except (InputError, FileNotFoundError):
        return [shard]
    file = FileInfo(shard.path, shard.size, shard.etag)
    shards = [
        object_shard("parquet", shard.root, file, copy=shard.copy, row_group=index, rows=rows)
        for index, rows in enumerate(row_counts(footer))
        if rows
    ]
    return shards or [shard]


def parquet_items(shard: Shard, cfg: ReadConfig, *, max_bytes: int, wanted: Callable[[str], bool]) -> Iterator[Item]:
    """Read the rows in order, without data where `wanted(key)` is false. Page checksums are verified where present.

    Raises:
        InputError: `bad_parquet`, after the rows before the damage, for the rest of the shard; `empty_archive` when
            there is no row; `source_changed`.
        FileNotFoundError: the file is gone.
        StorageError: the store failed through every attempt, or denied access.
    """
    began = time.monotonic()
    for rows in _batches(shard, cfg):
        seconds_read = (time.monotonic() - began) / len(rows)
        for name, image, label in rows:
            key = f"{shard.uri}#{name}"
            fields = _encoded(image, label, max_bytes) if wanted(key) else {}
            yield shard.item(key, seconds_read=seconds_read, **fields)
        began = time.monotonic()


def _encoded(image: pa.Scalar, label: pa.Scalar | None, max_bytes: int) -> dict[str, Any]:
    """Fields of an item that come from its image and label cells."""
    data, failure = _bytes(image, max_bytes)
    if failure or label is None or not label.is_valid:
        return {"data": data, "failure": failure}
    encoded, failure = _bytes(label, max_bytes)
    return {"failure": failure} if failure else {"data": data, "label": encoded}


def _bytes(cell: pa.Scalar, max_bytes: int) -> tuple[bytes, Failure | None]:
    if not cell.is_valid:
        return b"", Failure("empty", "the cell is null")
    size = cell.as_buffer().size
    if size == 0:
        return b"", Failure("empty", "the cell has 0 bytes")
    if size > max_bytes:
        return b"", Failure("too_many_bytes", f"{size} bytes, limit {max_bytes}")
    return cell.as_py(), None


def _batches(shard: Shard, cfg: ReadConfig) -> Iterator[list[_Cells]]:
    """Rows of a shard, `ROWS_AT_ONCE` at a time."""
    with objects.open_read(shard.url, etag=shard.etag) as opened, _damage_named():
        footer = read_parquet_footer(opened)
        sizes = row_counts(footer)
        if not any(sizes):
            raise InputError("empty_archive", "the Parquet file has no rows")
        columns = _Columns.select(footer.schema.to_arrow_schema(), cfg)
        file = pq.ParquetFile(
            opened, metadata=footer, buffer_size=READ_BUFFER, pre_buffer=False, page_checksum_verification=True
        )
        groups = list(range(len(sizes))) if shard.row_group is None else [shard.row_group]
        number = sum(sizes[: groups[0]])
        end = sum(sizes[: groups[-1] + 1])
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=columns.leaves, use_threads=False):
            yield columns.cells(batch, number)
            number += len(batch)
        if number != end:
            raise InputError("bad_parquet", f"the footer counts rows up to {end}, the pages end at {number}")


@contextmanager
def _damage_named() -> Iterator[None]:
    """Convert Arrow's errors for a damaged file to an `InputError` of one line."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError("bad_parquet", " ".join(str(error).split())) from error


@dataclass(frozen=True, slots=True)
class _Columns:
    """Columns to read from a file."""

    image: str
    label: str | None
    key: str | None
    leaves: list[str]
    """Paths of the leaf columns that hold the bytes."""

    @classmethod
    def select(cls, schema: pa.Schema, cfg: ReadConfig) -> "_Columns":
        if cfg.labels is None:
            label = {}
        elif cfg.labels in (leaves := _leaves(schema)):
            label = {cfg.labels: leaves[cfg.labels]}
            schema = schema.remove(schema.get_field_index(cfg.labels))  # never taken for the image
        else:
            raise _no_column(schema, cfg.labels, "--read.labels")
        image = image_column(schema, cfg.image_column)
        key = cfg.key_column if cfg.key_column in schema.names else None
        return cls(image, cfg.labels, key, [_leaves(schema)[image], *label.values(), *([key] if key else [])])

    def cells(self, batch: pa.RecordBatch, number: int) -> list[_Cells]:
        """Rows of a batch; `number` is the number of its first row in the file."""
        columns = {name: _flat(batch.column(name)) for name in batch.schema.names}
        nothing = [None] * len(batch)
        names = columns[self.key].to_pylist() if self.key else nothing
        labels = columns[self.label] if self.label else nothing
        numbered = (str(row if name is None else name) for row, name in enumerate(names, start=number))
        return list(zip(numbered, columns[self.image], labels, strict=True))


def _flat(column: pa.Array) -> pa.Array:
    """Bytes of a column, unwrapped when it is a struct of bytes and path."""
    return column.flatten()[0] if pa.types.is_struct(column.type) else column


def image_column(schema: pa.Schema, name: str) -> str:
    """Column of encoded images: `name`, or else the only column that can hold images.

    Raises:
        InputError: `bad_parquet`, naming the columns.
    """
    leaves = _leaves(schema)
    if name in leaves:
        return name
    if name in schema.names or len(leaves) != 1:
        raise _no_column(schema, name, "--read.image-column")
    return next(iter(leaves))


def _no_column(schema: pa.Schema, name: str, option: str) -> InputError:
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
    seen = f"no column {name!r} of binary or struct<bytes, path>; columns: {columns}"
    return InputError("bad_parquet", seen, hint=f"name it with {option}")


def _leaves(schema: pa.Schema) -> dict[str, str]:
    """Columns that can hold images or labels, each with the path of its leaf of bytes."""
    return {name: leaf for name, kind in zip(schema.names, schema.types, strict=True) if (leaf := _leaf(name, kind))}


def _leaf(name: str, kind: pa.DataType) -> str | None:
    """Path of the leaf of bytes of a column; None for a column that cannot hold images."""
    if _is_bytes(kind):
        return name
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type):
        return f"{name}.bytes"
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


# ---------------------------------------------------------------- footer


def _in_base64(text: bytes) -> re.Pattern[bytes]:
    """Pattern of `text` inside base64, at each offset in a group of three bytes."""
    forms = []
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text)
        forms.append(re.escape(encoded[4 if before else 0 : (before + len(text)) // 3 * 4]))
    return re.compile(b"|".join(forms))


_EXTENSION_TYPE = _in_base64(b"ARROW:extension:name")
"""Marker of an extension type: a footer keeps the Arrow schema as base64 of its IPC form, with plain metadata."""


def read_parquet_footer(opened: BinaryIO) -> pq.FileMetaData:
    """Read the footer of a Parquet file, in one request unless it is large; refuse extension types.

    The search for them runs over the raw footer, since `pq.read_metadata` already creates them.

    Raises:
        InputError: `bad_parquet` when it is cut, damaged, or has an extension type.
    """
    size = opened.seek(0, io.SEEK_END)
    tail = _tail(opened, size, TAIL_BYTES)
    if tail[-4:] != _MAGIC:
        raise InputError("bad_parquet", f"{size} bytes that do not end in PAR1: cut off, or not a Parquet file")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if not 8 < length <= min(size, MAX_FOOTER_BYTES):
        raise InputError("bad_parquet", f"a footer of {length} bytes in a file of {size}, limit {MAX_FOOTER_BYTES}")
    footer = tail[-length:] if length <= len(tail) else _tail(opened, size, length)
    if _EXTENSION_TYPE.search(footer):
        raise InputError("bad_parquet", "columns of an Arrow extension type are refused")
    with _damage_named():
        metadata = pq.read_metadata(pa.BufferReader(_MAGIC + footer))
    if metadata.num_rows != sum(row_counts(metadata)):  # a footer has no checksum, and row numbers are keys
        raise InputError("bad_parquet", f"{metadata.num_rows} rows in row groups of {row_counts(metadata)}")
    return metadata


def row_counts(footer: pq.FileMetaData) -> list[int]:
    """Number of rows of each row group."""
    return [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]


def _tail(opened: BinaryIO, size: int, length: int) -> bytes:
    opened.seek(max(0, size - length))
    return opened.read()
