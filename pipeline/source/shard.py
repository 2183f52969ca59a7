"""A shard: the unit of planning and reading, and what every reader shares.

A listing goes in, shards come out; then one shard goes in and its items come out, each planned key exactly once.
Nothing here opens an object.
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

SourceKind = Literal["folder", "webdataset", "parquet"]


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a slice of a folder."""

    path: str
    """Relative to the source."""
    size: int
    """Bytes."""
    etag: str
    copy: int = 1
    """2 and up: this path was met in that many sources so far, and duplicates are kept."""

    @property
    def key(self) -> str:
        """The key of its only item."""
        return _numbered(self.path, self.copy)


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar, a Parquet file or row group, or a slice of a folder's listing.

    About 400 bytes of memory: a driver holds millions of them.
    """

    id: str
    """16 hex digits. The same content under the same name has the same id on every machine and under every root."""
    kind: SourceKind
    root: str
    """The source as the config names it; `changed` compares this text, so it is not normalised."""
    path: str
    """The object, relative to the source; of a slice, its first file."""
    etag: str
    """Version of the object; empty for a slice, whose members have one each."""
    size: int
    """Bytes of the object, or of all files of a slice."""
    rows: int | None = None
    """Items it is expected to hold; None when only reading tells."""
    row_group: int | None = None
    """Row group of a Parquet file; None is the whole file."""
    copy: int = 1
    """As in `Member`."""
    max_rows: int | None = None
    """Reading stops after this many items (`--limit`)."""
    packed: bytes = b""
    """The members of a slice, compressed; see `members`."""

    @property
    def url(self) -> Url:
        """The object."""
        return Url(self.root) / self.path

    @property
    def uri(self) -> str:
        """What its keys begin with, before the `#`."""
        return _numbered(self.path, self.copy)

    @property
    def end_key(self) -> str:
        """The key of a failure of the shard itself: no sample can have it."""
        return f"{self.uri}#" if self.row_group is None else f"{self.uri}#row_group={self.row_group}"

    def members(self) -> list[Member]:
        """The files of a slice, in the order of their paths."""
        return [Member(*one) for one in json.loads(zlib.decompress(self.packed))] if self.packed else []

    def item(self, key: str, data: bytes = b"", **fields: object) -> Item:
        """An item of this shard."""
        return replace(Item(key=key, shard=self.id, etag=self.etag, data=data), **fields)  # type: ignore[arg-type]


def _numbered(path: str, copy: int) -> str:
    """`path~2` for the second copy. No listed path ends so: it would have no known suffix."""
    return path if copy == 1 else f"{path}~{copy}"


def _digest(facts: object) -> str:
    return blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def object_shard(
    kind: SourceKind, root: str, file: FileInfo, *, copy: int = 1, row_group: int | None = None, rows: int | None = None
) -> Shard:
    """A whole tar or Parquet file, or one row group."""
    identity = _digest([kind, _numbered(file.path, copy), file.etag, file.size, row_group])
    return Shard(identity, kind, root, file.path, file.etag, file.size, rows, row_group, copy)


def slice_shard(root: str, members: list[Member]) -> Shard:
    """A slice of a folder's listing; `members` is not empty."""
    packed = json.dumps([[one.path, one.size, one.etag, one.copy] for one in members], separators=(",", ":"))
    return Shard(
        id=_digest(["folder", [[one.key, one.etag] for one in members]]),
        kind="folder",
        root=root,
        path=members[0].path,
        etag="",
        size=sum(one.size for one in members),
        rows=len(members),
        packed=zlib.compress(packed.encode(), 1),
    )


def suffix_of(path: str) -> str:
    """Lower-case suffix by which ignored names are counted: `.pkl`, `(none)`, or `(other)` for what is hardly one."""
    _, dot, suffix = path.rpartition("/")[2].rpartition(".")
    if not dot:
        return "(none)"
    return f".{suffix.lower()}" if len(suffix) <= 8 and suffix.isalnum() else "(other)"


def read_failure(error: InputError | FileNotFoundError | StorageError) -> Failure:
    """The record of an error: its hint belongs to the line a person reads. AccessDenied is raised again."""
    if not isinstance(error, InputError):
        error = objects.as_input_error(error)
    return Failure(error.code, error.detail + (f" ({error.hint})" if error.hint else ""))


def deliver(shard: Shard, items: Iterable[Item], skip: Set[str]) -> Iterator[Item]:
    """Leave out the items in `skip`, and let the last one given say how many the shard has.

    An InputError or FileNotFoundError out of `items` ends the shard: it becomes one more item, `end_key`. Keys of
    `skip` that were not met still count, for their rows are committed.
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
