"""Backend for local files, through the operating system: fsspec neither syncs nor replaces atomically."""

import errno
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from pipeline.errors import StorageError
from pipeline.store.backend import Backend, FileInfo, check_info
from pipeline.store.url import Url

TEMPORARY = ".tmp-"
"""Prefix of the name of a file that is not complete."""


class LocalBackend(Backend):
    """Requests of a local disk. A write is complete or absent, and synced to the disk."""

    def info(self, path: str) -> FileInfo:
        """Size and modification time by one stat."""
        if os.path.isdir(path):
            raise FileNotFoundError(path)
        return _from_stat(os.path.basename(path), os.stat(path))

    def is_folder(self, path: str) -> bool:
        """True for a folder or a link to one."""
        return os.path.isdir(path)

    def entries(self, folder: str) -> list[tuple[str, FileInfo | None]]:
        """Entries of one folder. A link without a target is listed with 0 bytes, so that reading it fails by name."""
        entries: list[tuple[str, FileInfo | None]] = []
        with os.scandir(folder) as scan:
            for entry in scan:
                _check_name(entry)
                if entry.is_dir():
                    entries.append((entry.name + "/", None))
                elif entry.is_file():
                    with suppress(FileNotFoundError):  # a temporary file that a writer has just renamed
                        entries.append((entry.name, _from_stat(entry.name, entry.stat())))
                elif entry.is_symlink():  # without target: listed, so that reading it fails
                    entries.append((entry.name, FileInfo(entry.name, 0, "")))
        return entries

    def read(
        self, path: str, *, span: tuple[int, int] | None = None, max_bytes: int | None = None, etag: str | None = None
    ) -> bytes:
        """Read through one handle: size, version and bytes are those of one file."""
        with open(path, "rb") as file:
            info = _from_stat(path, os.fstat(file.fileno()))
            check_info(info, max_bytes=max_bytes, etag=etag)
            start, end = span or (0, info.size)
            file.seek(start)
            return file.read(end - start)

    def put(self, path: str, data: bytes) -> None:
        """Write a temporary file beside `path`, then rename it."""
        with _complete_file(path, [data], f"{len(data)} bytes needed") as temporary:
            os.replace(temporary, path)

    def put_stream(self, url: Url, path: str, chunks: Iterable[bytes]) -> None:
        """Write a temporary file beside `path` chunk by chunk, then rename it."""
        with _complete_file(path, chunks, "the object is written as it is made") as temporary:
            os.replace(temporary, path)

    def create(self, path: str, data: bytes, writer: str) -> bool:
        """Link a complete temporary file to `path`; the link fails when the name is taken."""
        with _complete_file(path, [data], f"{len(data)} bytes needed") as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        return True

    def delete(self, path: str) -> None:
        """Remove the file."""
        os.unlink(path)

    def remove_empty_folders(self, path: str) -> None:
        """Remove the folders, deepest first; one that is not empty, or not there, stays as it is."""
        for folder, _, _ in os.walk(path, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)

    def remove_unfinished(self, path: str) -> None:
        """Remove the temporary files. A write that still goes on fails when it renames its own."""
        for folder, _, names in os.walk(path):
            for name in names:
                if name.startswith(TEMPORARY):
                    with suppress(FileNotFoundError):
                        os.unlink(f"{folder}/{name}")


def _check_name(entry: os.DirEntry[str]) -> None:
    """Refuse entries that cannot become keys: names that are not UTF-8, and links to a folder above."""
    try:
        entry.name.encode()
    except UnicodeEncodeError as error:
        raise StorageError(f"the name of {entry.path!r} is not UTF-8", hint="rename the file") from error
    if entry.is_symlink() and entry.is_dir():
        target, here = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
        if os.path.commonpath([target, here]) == target:
            raise StorageError(f"{entry.path} links to {target}, a folder above it", hint="remove the link")


def _from_stat(name: str, stat: os.stat_result) -> FileInfo:
    return FileInfo(name, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")


@contextmanager
def _complete_file(path: str, chunks: Iterable[bytes], size: str) -> Iterator[str]:
    """Temporary file beside `path` with all chunks on disk; deleted at the end if it was not renamed.

    `size` says in an error how much space is needed.
    """
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_folder(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(f"no space left for {path}: {size}", hint="free space and run again") from error
        raise
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    """Sync the folder, which makes a rename durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
