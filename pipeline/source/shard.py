"""Shard: the unit of planning and reading, and the functions that all readers share.

Planning turns a listing into shards. Reading turns a shard into items, each planned key exactly once. Nothing here
opens an object.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import Literal

from pipeline.errors import InputError, StorageError
from pipeline.records import Failure, Item
from pipeline.store import objects
from pipeline.store.backend import FileInfo
from pipeline.store.url import Url

SourceKind = Literal["folder", "webdataset", "parquet", "raster"]


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a slice of a folder."""

    path: str
    """Relative to the source."""
    size: int
    """Bytes."""
    etag: str
    copy: int = 1
    """Number of this copy: 2 and up when earlier sources have the same path and duplicates are kept."""

    @property
    def key(self) -> str:
        """Key of its only item."""
        return _numbered(self.path, self.copy)


@dataclass(frozen=True, slots=True)
class Shard:
    """Tar, Parquet file or row group, square of windows of a raster, or slice of a folder's listing.

    It takes about 400 bytes of memory, since a driver holds millions.
    """

    id: str
    """16 hex digits. It depends on name and content only, not on machine or root."""
    kind: SourceKind
    root: str
    """Source as written in the config; `changed` compares this text, so it is not normalised."""
    path: str
    """Path of the object, relative to the source; for a slice, of its first file."""
    etag: str
    """Version of the object; empty for a slice, whose members have their own."""
    size: int
    """Bytes of the object, or of all files of a slice."""
    rows: int | None = None
    """Number of items; None when it is unknown before reading."""
    row_group: int | None = None
    """Row group of a Parquet file; None for the whole file."""
    copy: int = 1
    """Number of this copy, see `Member.copy`."""
    max_rows: int | None = None
    """Reading stops after this many items (`--limit`)."""
    packed: bytes = b""
    """Members of a slice, see `members`, or a raster's windows, see `raster.unpack`; compressed."""

    @property
    def url(self) -> Url:
        """URL of the object."""
        return Url(self.root) / self.path

    @property
    def uri(self) -> str:
        """Start of its keys, before the `#`."""
        return _numbered(self.path, self.copy)

    @property
    def end_key(self) -> str:
        """Key of a failure of the shard itself; no sample can have it."""
        return f"{self.uri}#" if self.row_group is None else f"{self.uri}#row_group={self.row_group}"

    def members(self) -> list[Member]:
        """Files of a slice, in the order of their paths."""
        if self.kind != "folder" or not self.packed:
            return []
        return [Member(*fields) for fields in json.loads(zlib.decompress(self.packed))]

    def item(self, key: str, data: bytes = b"", **fields: object) -> Item:
        """Create an item of this shard."""
        return replace(Item(key=key, shard=self.id, etag=self.etag, data=data), **fields)  # type: ignore[arg-type]


def _numbered(path: str, copy: int) -> str:
    """Path with the number of its copy, `path~2` for the second. No listed path ends so: `~2` is no known suffix."""
    return path if copy == 1 else f"{path}~{copy}"


def _digest(facts: object) -> str:
    return blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def object_shard(
    kind: SourceKind, root: str, file: FileInfo, *, copy: int = 1, row_group: int | None = None, rows: int | None = None
) -> Shard:
    """Create the shard of a whole tar or Parquet file, or of one row group."""
    identity = _digest([kind, _numbered(file.path, copy), file.etag, file.size, row_group])
    return Shard(identity, kind, root, file.path, file.etag, file.size, rows, row_group, copy)


def window_shard(root: str, file: FileInfo, identity: object, *, rows: int, packed: bytes, copy: int = 1) -> Shard:
    """Create the shard of some windows of a raster; `identity` is what makes them differ from others of the file."""
    digest = _digest(["raster", _numbered(file.path, copy), file.etag, file.size, identity])
    return Shard(digest, "raster", root, file.path, file.etag, file.size, rows, copy=copy, packed=packed)


def slice_shard(root: str, members: list[Member]) -> Shard:
    """Create the shard of a slice of a folder's listing; `members` is not empty."""
    packed = json.dumps([[file.path, file.size, file.etag, file.copy] for file in members], separators=(",", ":"))
    return Shard(
        id=_digest(["folder", [[file.key, file.etag] for file in members]]),
        kind="folder",
        root=root,
        path=members[0].path,
        etag="",
        size=sum(file.size for file in members),
        rows=len(members),
        packed=zlib.compress(packed.encode(), 1),
    )


def suffix_of(path: str) -> str:
    """Lower-case suffix for counts of ignored names: `.pkl`, `(none)`, or `(other)` for a long or odd suffix."""
    _, dot, suffix = path.rpartition("/")[2].rpartition(".")
    if not dot:
        return "(none)"
    return f".{suffix.lower()}" if len(suffix) <= 8 and suffix.isalnum() else "(other)"


def read_failure(error: InputError | FileNotFoundError | StorageError) -> Failure:
    """Convert an error to a failure, its hint in the detail. Raises AccessDenied again."""
    if not isinstance(error, InputError):
        error = objects.as_input_error(error)
    return Failure(error.code, error.detail + (f" ({error.hint})" if error.hint else ""))


def deliver(shard: Shard, items: Iterable[Item], skip: Set[str]) -> Iterator[Item]:
    """Leave out the items in `skip`, and set `shard_rows` on the last item delivered.

    An InputError or FileNotFoundError of `items` ends the shard and becomes a last item with key `end_key`. Keys in
    `skip` that the shard no longer has still count, since their rows are committed.
    """
    rows, unmet, held = 0, set(skip), None
    for item in islice(_with_its_end(shard, items), shard.max_rows):
        rows += 1
        if item.key in skip:
            unmet.discard(item.key)
            continue
        if held is not None:
            yield held
        held = item
    if held is not None:
        yield replace(held, shard_rows=rows + len(unmet))


def _with_its_end(shard: Shard, items: Iterable[Item]) -> Iterator[Item]:
    try:
        yield from items
    except (InputError, FileNotFoundError) as error:
        yield shard.item(shard.end_key, failure=read_failure(error))
