"""Objects in a store: list, read, put, put if absent, delete.

A URL goes in: a local path, `file://`, `memory://`, `s3://`, `gs://`, or `https://` for reading. Bytes and `FileInfo`
come out. Every request is repeated by `retry.RETRY`.

Errors:

    FileNotFoundError           the object is missing (`read_bytes`, `open_read`, `info`)
    InputError                  too_many_bytes, source_changed: the object differs from the plan
    AccessDenied                403, never retried; names the missing IAM action
    NothingThere                the URL to list is neither an object nor a folder
    StorageTimeout              every attempt timed out
    StorageError                every attempt failed, the disk is full, the folder or bucket does not exist
    ConfigError                 the URL itself is refused

`as_input_error` turns the error of one read into the failure of its work item. Credentials and endpoints come from the
environment's provider chain only (AWS_PROFILE, AWS_ENDPOINT_URL, IAM roles), never from a URL or an argument.
"""

import functools
import io
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import fsspec
import yaml

from pipeline import optional
from pipeline.errors import AccessDenied, ConfigError, InputError, NothingThere, StorageError, StorageTimeout
from pipeline.store.backend import Backend, FileInfo, MemoryBackend, check_info
from pipeline.store.local import LocalBackend
from pipeline.store.retry import with_retries
from pipeline.store.url import Url

T = TypeVar("T")

_BLOCK_BYTES = 8 * 2**20
"""Bytes per range request of `open_read`: large enough to hide latency, small enough to repeat."""


_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OSError,
    NotImplementedError,
    yaml.YAMLError,
    RecursionError,
)
"""What parsers raise for a damaged file; Arrow's errors are ValueErrors, OSErrors or NotImplementedErrors."""


def exists(url: Url) -> bool:
    """True for an object; False for a folder or a missing object."""
    try:
        info(url)
    except FileNotFoundError:
        return False
    return True


def info(url: Url) -> FileInfo:
    """Describe one object; `path` is its last name. Raises FileNotFoundError for a folder too."""
    return _request("read", url, lambda backend, path: backend.info(path))


def list_files(url: Url) -> Iterator[FileInfo]:
    """List everything below a URL, depth first, one page or folder at a time.

    Paths are sorted by code point in every store. The URL of a single object lists that object under its last name.
    Names that begin with `_` or `.` are listed too. Links to folders are followed.

    Raises:
        NothingThere: no object and no folder has this URL.
    """
    backend, path = _locate(url)
    empty = True
    try:
        for file in backend.walk(url, path):
            empty = False
            yield file
        if empty and not backend.is_folder(path):
            yield info(url)
    except FileNotFoundError as error:
        if not empty:
            raise StorageError(f"{url} changed during its listing", hint="run again") from error
        raise NothingThere(f"no such file or folder: {url.located}") from error


def files_below(url: Url) -> list[FileInfo]:
    """All objects below a folder, as `list_files` has them; none where there is no such folder."""
    try:
        return list(list_files(url))
    except NothingThere:
        return []


def list_below(url: Url) -> list[str]:
    """Paths of all objects below a folder, as `files_below`."""
    return [file.path for file in files_below(url)]


def read_bytes(url: Url, *, max_bytes: int | None = None, etag: str | None = None) -> bytes:
    """Read a whole object in one request.

    Raises:
        FileNotFoundError: the object does not exist.
        InputError: `too_many_bytes` above `max_bytes`, before the body is read; `source_changed` when `etag` differs.
    """
    return _request("read", url, lambda backend, path: backend.read(path, max_bytes=max_bytes, etag=etag))


def read_range(url: Url, start: int, end: int, *, etag: str) -> bytes:
    """Read the bytes from `start` to before `end` of one version of an object in one request.

    Returns:
        the bytes; fewer only where the object ends before `end`.

    Raises:
        FileNotFoundError: the object does not exist.
        InputError: `source_changed` when `etag` differs.
        StorageError: the server answers with other bytes than asked for.
    """
    data = _request("read", url, lambda backend, path: backend.read(path, span=(start, end), etag=etag))
    if len(data) > end - start:
        raise StorageError(f"{url}: asked for {end - start} bytes from {start}, the server sent {len(data)}")
    return data


def open_read(url: Url, *, etag: str | None = None) -> io.BufferedReader:
    """Open a large object for reading: seekable, fetched in ranges of `_BLOCK_BYTES`, each retried separately.

    Raises:
        FileNotFoundError: the object does not exist.
        InputError: `source_changed`, here when `etag` differs, or from a later read when the object was replaced.
    """
    file = info(url)
    check_info(file, etag=etag)
    return io.BufferedReader(_RangeFile(url, file), _BLOCK_BYTES)


def put(url: Url, data: bytes) -> None:
    """Write an object so that a reader sees the old one or the new one, never a part of either.

    S3: one PUT, 5 GiB at most. Local: temporary file in the same folder, fsync, rename, fsync of the
    folder; a process killed meanwhile leaves at most a file named `.tmp-*`. Parent folders are created.
    """
    _write(url, lambda backend, path: backend.put(path, data))


def put_stream(url: Url, chunks: Iterable[bytes]) -> None:
    """Write an object of any size from chunks, in bounded memory; as `put`, a reader never sees a part of it.

    S3: a multipart upload of parts of `backend.PART_BYTES`, aborted when a chunk raises. The requests of the store are
    retried.
    """
    backend, path = _locate(url)
    try:
        backend.put_stream(url, path, chunks)
    except FileNotFoundError as error:
        raise StorageError(f"cannot write {url}: no such bucket, or a file where a folder should be") from error


def put_if_absent(url: Url, data: bytes) -> bool:
    """Write an object unless it exists; True when this call created it, also after a repeated request.

    S3: `If-None-Match: *`. Local: a hard link to a complete temporary file, so that no reader sees half of it.
    """
    writer = uuid.uuid4().hex
    return _write(url, lambda backend, path: backend.create(path, data, writer))


def supports_put_if_absent(url: Url) -> bool:
    """Create a scratch object twice in the folder `url`; False for S3 servers that accept both (rclone 1.75)."""
    scratch = url / f".probe-{uuid.uuid4().hex}"
    try:
        return put_if_absent(scratch, b"first") and not put_if_absent(scratch, b"second")
    finally:
        delete(scratch)


def delete(url: Url) -> None:
    """Delete an object; a missing object is no error."""
    with suppress(FileNotFoundError):
        _request("delete", url, lambda backend, path: backend.delete(path))


def remove_empty_folders(url: Url) -> None:
    """Remove `url` and the folders below it that hold no file. Only a local disk has such folders."""
    _request("delete", url, lambda backend, path: backend.remove_empty_folders(path))


def remove_unfinished(url: Url) -> None:
    """Remove what writers left that were killed at and below `url`. Only a local disk has such files."""
    _request("delete", url, lambda backend, path: backend.remove_unfinished(path))


def delete_below(url: Url) -> None:
    """Delete all objects below a folder, and the folders that are then empty; nobody may be writing there."""
    for path in list_below(url):
        delete(url / path)
    remove_empty_folders(url)


def as_input_error(error: FileNotFoundError | StorageError) -> InputError:
    """Convert the error of a read to the failure of a work item: not_found, storage_timeout or storage_error.

    Raises:
        AccessDenied: `error` itself. Every other item would get it too, so the job must stop.
    """
    if isinstance(error, AccessDenied):
        raise error
    if isinstance(error, FileNotFoundError):
        return InputError("not_found", "the object was listed, but no longer exists")
    code = "storage_timeout" if isinstance(error, StorageTimeout) else "storage_error"
    return InputError(code, error.message, hint=error.hint)


@contextmanager
def naming_damage(url: Url, *, hint: str) -> Iterator[None]:
    """Name a file of the project's own in the error when it is missing, cut short or of other content.

    Args:
        url: file that the block reads and parses.
        hint: what the user does about it.

    Raises:
        StorageError: in place of what the parsers of JSON, YAML, Parquet and pydantic raise.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{url} is missing", hint=hint) from error
    except _DAMAGE as error:
        said = f"no field {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        lines = said.splitlines()
        raise StorageError(f"{url} is damaged: {'; '.join(lines[:3])}", hint=hint) from error


class _RangeFile(io.RawIOBase):
    """File of one version of an object, fetched in ranges."""

    def __init__(self, url: Url, info: FileInfo) -> None:
        self._url, self._info, self._at = url, info, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._info.size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._info.size, self._at + min(len(buffer), _BLOCK_BYTES))
        if end <= self._at:
            return 0
        span = (self._at, end)
        data = _request("read", self._url, lambda backend, path: backend.read(path, span=span, etag=self._info.etag))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        chunks = []
        while chunk := self.read(_BLOCK_BYTES):
            chunks.append(chunk)
        return b"".join(chunks)


_ALLOWED = "a local path, file://, memory://, s3://, gs://, or https:// for reading"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_S3_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION")
"""Environment variables that select the S3 client."""


def _locate(url: Url) -> tuple[Backend, str]:
    """Backend of a URL, and the path inside its store."""
    scheme, path = url.scheme, url.raw.removeprefix(f"{url.scheme}://")
    variables: tuple[str | None, ...] = ()
    if scheme == "file":
        if not path:
            raise ConfigError("the URL is empty", hint=f"use {_ALLOWED}")
    elif scheme == "memory":
        path = f"/{path.strip('/')}".rstrip("/")
    elif scheme in ("s3", "gs"):
        _check_bucket(scheme, path.partition("/")[0])
        variables = tuple(map(os.environ.get, _S3_VARIABLES))
    elif scheme == "https":
        from pipeline.store import https  # noqa: PLC0415  # its client is slow to import

        https.check_https_url(url.raw)
        path = url.raw
    else:
        raise ConfigError(f"{scheme}:// is not supported", hint=f"use {_ALLOWED}")
    return _backend(scheme, os.getpid(), *variables), path


def _check_bucket(scheme: str, bucket: str) -> None:
    """Refuse a URL without a bucket. The error does not quote the URL, which may be a secret."""
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"{scheme}:// must be followed by a bucket name",
            hint="credentials never belong in a URL; set AWS_PROFILE, a role, or the provider's own variables",
        )


@functools.lru_cache(maxsize=16)
def _backend(scheme: str, pid: int, *variables: str | None) -> Backend:
    """One backend per process, shared by its threads; a forked child has another pid, so it connects anew."""
    if scheme == "s3":
        from pipeline.store.s3 import S3Backend  # noqa: PLC0415

        return S3Backend()
    if scheme == "file":
        return LocalBackend(fsspec.filesystem("file"))
    if scheme == "memory":
        return MemoryBackend(fsspec.filesystem("memory"))
    if scheme == "https":
        from pipeline.store.https import HttpsBackend  # noqa: PLC0415

        return HttpsBackend()
    with optional.package("gcsfs", extra="gcs", needed_by=f"{scheme}://"):
        return Backend(fsspec.filesystem(scheme, use_listings_cache=False))


def _write(url: Url, call: Callable[[Backend, str], T]) -> T:
    try:
        return _request("write", url, call)
    except FileNotFoundError as error:
        raise StorageError(f"cannot write {url}: no such bucket, or a file where a folder should be") from error


def _request(verb: str, url: Url, call: Callable[[Backend, str], T]) -> T:
    """Call a method of the URL's backend, with retries."""
    backend, path = _locate(url)
    return with_retries(verb, url, lambda: call(backend, path), backend.refresh)
