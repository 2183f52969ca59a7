"""Backend for stores that fsspec serves directly (memory://, gs://), and base class of the other backends.

A backend implements the requests of one kind of store: describe, list, read, put, create, delete. Paths are inside the
store, without the scheme. Each method sends its requests once; `objects` and `Backend.walk` repeat them.
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.errors import InputError
from pipeline.store.retry import with_retries
from pipeline.store.url import Url

PART_BYTES = 64 * 2**20
"""Parts of a streamed object: S3 allows 10,000, so 640 GB."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One object of a listing."""

    path: str
    """Relative to the listed URL, separated by `/`."""
    size: int
    """Bytes."""
    etag: str
    """Version of the content, as the store names it; for local files, modification time and size."""


class Backend:
    """Requests of one store, through fsspec."""

    creating = threading.Lock()
    """Lock of `create`: fsspec checks for an object and writes it in two steps."""

    def __init__(self, fs: AbstractFileSystem) -> None:
        self.fs = fs

    def info(self, path: str) -> FileInfo:
        """Describe one object. Raises FileNotFoundError for a folder or a missing object."""
        return self._describe(self.fs.info(path))

    def is_folder(self, path: str) -> bool:
        """True for an existing folder."""
        return bool(self.fs.isdir(path))

    def walk(self, url: Url, path: str) -> Iterator[FileInfo]:
        """List files depth first. Folders sort as `name/`, so that files come in the order of their full paths."""
        if self.is_folder(path):
            yield from self._descend(url, path, "")

    def _descend(self, url: Url, folder: str, prefix: str) -> Iterator[FileInfo]:
        entries = with_retries("list", url, lambda: self.entries(folder), self.refresh)
        for name, file in sorted(entries, key=lambda entry: entry[0]):
            if file is None:
                yield from self._descend(url, f"{folder}/{name[:-1]}", prefix + name)
            else:
                yield replace(file, path=prefix + name)

    def remove_empty_folders(self, path: str) -> None:
        """Remove folders without a file at and below `path`: nothing to do where folders are parts of names."""

    def remove_unfinished(self, path: str) -> None:
        """Remove files of writes that were killed, at and below `path`: nothing to do where a write is one request."""

    def entries(self, folder: str) -> list[tuple[str, FileInfo | None]]:
        """Entries of one folder: (`name`, file) for a file, (`name/`, None) for a folder."""
        entries: list[tuple[str, FileInfo | None]] = []
        for entry in self.fs.ls(folder, detail=True):
            name = entry["name"].rstrip("/").rpartition("/")[2]
            is_folder = entry["type"] == "directory"
            entries.append((name + "/", None) if is_folder else (name, self._describe(entry)))
        return entries

    def _describe(self, entry: dict[str, Any]) -> FileInfo:
        if entry["type"] == "directory":
            raise FileNotFoundError(entry["name"])
        created = entry.get("created")  # memory:// gives seconds in listings and a datetime for single objects
        seconds = created.timestamp() if isinstance(created, datetime) else created
        version = entry.get("etag") or f"{seconds}-{entry['size']}"
        return FileInfo(entry["name"].rpartition("/")[2], int(entry["size"]), str(version))

    def read(
        self, path: str, *, span: tuple[int, int] | None = None, max_bytes: int | None = None, etag: str | None = None
    ) -> bytes:
        """Read `span`, the bytes from first to one past the last, or the whole object.

        Raises:
            InputError: as `check_info`, before the body is read.
        """
        check_info(self.info(path), max_bytes=max_bytes, etag=etag)
        start, end = span or (None, None)
        data: bytes = self.fs.cat_file(path, start=start, end=end)
        return data

    def put(self, path: str, data: bytes) -> None:
        """Write an object, replacing an older one."""
        self.fs.pipe_file(path, data)

    def put_stream(self, url: Url, path: str, chunks: Iterable[bytes]) -> None:
        """Write an object from chunks, replacing an older one; fsspec commits it when all are there."""
        file = self.fs.open(path, "wb", block_size=PART_BYTES)
        try:
            for part in gather_parts(chunks):
                file.write(part)
        except BaseException:
            file.discard()
            raise
        file.close()

    def create(self, path: str, data: bytes, writer: str) -> bool:
        """Write an object unless it exists; True when `writer`, the id of this call, created it."""
        with self.creating:
            try:
                self.fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
        return True

    def delete(self, path: str) -> None:
        """Delete an object. Raises FileNotFoundError when it is missing."""
        self.fs.rm_file(path)

    def refresh(self) -> None:
        """Fetch new credentials, where the store has any."""


class MemoryBackend(Backend):
    """Backend of `memory://`, whose files fsspec shows from their first byte on."""

    def put_stream(self, url: Url, path: str, chunks: Iterable[bytes]) -> None:
        """Write an object from chunks, all at once."""
        self.put(path, b"".join(chunks))


def gather_parts(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Join chunks into parts of `PART_BYTES`; the last part may be smaller, and empty if it is the only one."""
    held = bytearray()
    first = True
    for chunk in chunks:
        held += chunk
        while len(held) > PART_BYTES:
            yield bytes(held[:PART_BYTES])
            del held[:PART_BYTES]
            first = False
    if held or first:
        yield bytes(held)


def check_info(info: FileInfo, *, max_bytes: int | None = None, etag: str | None = None) -> None:
    """Check size and version of an object; None allows any.

    Raises:
        InputError: `source_changed` when its etag differs; `too_many_bytes` when it is larger than `max_bytes`.
    """
    if etag is not None and info.etag != etag:
        raise InputError("source_changed", f"version {info.etag}, planned {etag}", hint="run again to make a new plan")
    if max_bytes is not None and info.size > max_bytes:
        raise InputError("too_many_bytes", f"{info.size} bytes, limit {max_bytes}")
