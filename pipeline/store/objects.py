"""Objects in a store: list, read, put, put if absent, delete. The only module that retries.

URLs go in: a local path, `file://`, `memory://`, `s3://`, `gs://`, or `https://` for reading. Bytes and `FileInfo` come
out.

What a caller sees when something goes wrong:

    FileNotFoundError           the object is not there (`read_bytes`, `open_read`, `info`)
    InputError                  too_many_bytes, source_changed: the object is not what was planned
    AccessDenied                403, never retried; names the IAM action that is missing
    NothingThere                a listing found nothing at all
    StorageTimeout              the store kept timing out through every attempt
    StorageError                it kept failing, the disk is full, the folder or bucket does not exist
    ConfigError                 the URL itself is refused

`as_input_error` turns what one failed read left behind into that work item's failure. Credentials and endpoints come
from the environment's provider chain only (AWS_PROFILE, AWS_ENDPOINT_URL, IAM roles), never from a URL or an argument.
"""

import asyncio
import errno
import functools
import io
import os
import random
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import fsspec
from fsspec import AbstractFileSystem
from fsspec.asyn import sync

from pipeline import optional
from pipeline.errors import AccessDenied, ConfigError, InputError, NothingThere, StorageError, StorageTimeout
from pipeline.redact import redact

if TYPE_CHECKING:
    from pipeline.store.https import Client

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One object of a listing."""

    path: str
    """Relative to the listed URL, separated by `/`."""
    size: int
    """Bytes."""
    etag: str
    """Version of the content, as the store names it. Local files: modification time and size."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Capped exponential backoff with full jitter.

    M. Brooker, "Exponential Backoff And Jitter", aws.amazon.com/blogs/architecture, 2015.
    """

    attempts: int = 6
    """Requests sent in all, the first one included."""
    first_s: float = 0.2
    """Upper bound of the first pause; it doubles with every attempt."""
    longest_s: float = 8.0
    """Upper bound of any pause."""
    total_s: float = 40.0
    """No third attempt, or later one, starts after this."""
    request_s: float = 30.0
    """Deadline of one request, beside the time its bytes may take."""
    slowest_bytes_per_s: float = 256 * 1024
    """A transfer slower than this is given up and tried again."""

    def pause_s(self, attempt: int) -> float:
        """Seconds to wait after `attempt` (1 is the first)."""
        return random.uniform(0, min(self.longest_s, self.first_s * 2 ** (attempt - 1)))  # noqa: S311

    def deadline_s(self, size: int) -> float:
        """Seconds one request that moves `size` bytes may take."""
        return self.request_s + size / self.slowest_bytes_per_s


RETRY = RetryPolicy()
"""The policy of this process."""

_BLOCK_BYTES = 8 * 2**20
"""Bytes per range request of `open_read`: large enough to hide latency, small enough to repeat."""


# ---------------------------------------------------------------- public


def join(url: str, *parts: str) -> str:
    """Append path parts to a URL. `join(url, info.path)` is the URL of a listed object, whatever its name holds."""
    return (url if url.endswith("/") or not url else url + "/") + "/".join(parts)


def exists(url: str) -> bool:
    """Whether an object, not a folder, is there."""
    try:
        info(url)
    except FileNotFoundError:
        return False
    return True


def info(url: str) -> FileInfo:
    """Describe one object; `path` is its last name. A folder is a FileNotFoundError."""
    return _request("read", url, lambda store, path: store.info(path))


def list_files(url: str) -> Iterator[FileInfo]:
    """List everything below a URL, depth first, one page or folder at a time.

    The order is that of the paths' code points, the same in every store. The URL of a single object gives that object
    under its last name. Names that begin with `_` or `.` are listed too. Links to folders are followed.

    Raises:
        NothingThere: no object and no folder has this URL.
    """
    store, path = _locate(url)
    empty = True
    try:
        for file in store.walk(url, path):
            empty = False
            yield file
        if empty and not store.is_folder(path):
            yield info(url)
    except FileNotFoundError as error:
        if not empty:
            raise StorageError(f"{redact(url)} changed while it was listed", hint="run again") from error
        raise NothingThere(f"no such file or folder: {redact(url)}") from error


def read_bytes(url: str, *, max_bytes: int | None = None, etag: str | None = None) -> bytes:
    """Read a whole object in one request.

    Raises:
        FileNotFoundError: it is not there.
        InputError: `too_many_bytes` above `max_bytes`, before the body is read; `source_changed` when `etag` differs.
    """
    return _request("read", url, lambda store, path: store.read(path, max_bytes=max_bytes, etag=etag))


def open_read(url: str, *, etag: str | None = None) -> io.BufferedReader:
    """Open a large object for reading: seekable, fetched in ranges of `BLOCK_BYTES`, each retried on its own.

    Raises:
        FileNotFoundError: it is not there.
        InputError: `source_changed`, here when `etag` differs, or from a later read when the object was replaced.
    """
    found = info(url)
    _admit(found, etag=etag)
    return io.BufferedReader(_RangeFile(url, found), _BLOCK_BYTES)


def put(url: str, data: bytes) -> None:
    """Write an object so that a reader sees the old one or the new one, never a part of either.

    S3: one PUT, 5 GiB at most. Local: temporary file in the same folder, fsync, rename, fsync of the
    folder; a process killed on the way leaves at most a file named `.tmp-*`. Parent folders are made.
    """
    _write(url, lambda store, path: store.put(path, data))


def put_if_absent(url: str, data: bytes) -> bool:
    """Write an object unless one is there; True when this call created it, also when a lost answer was repeated.

    S3: `If-None-Match: *`. Local: a hard link to a complete temporary file, so that no reader sees half of it.
    """
    writer = uuid.uuid4().hex
    return _write(url, lambda store, path: store.create(path, data, writer))


def supports_put_if_absent(url: str) -> bool:
    """Try it: create one scratch object twice in the folder `url`. Some S3 servers accept both (rclone 1.75)."""
    scratch = join(url, f".probe-{uuid.uuid4().hex}")
    try:
        return put_if_absent(scratch, b"first") and not put_if_absent(scratch, b"second")
    finally:
        delete(scratch)


def delete(url: str) -> None:
    """Delete an object; one that is not there is no error."""
    with suppress(FileNotFoundError):
        _request("delete", url, lambda store, path: store.delete(path))


def as_input_error(error: FileNotFoundError | StorageError) -> InputError:
    """Say what one failed read means for its work item: not_found, storage_timeout or storage_error.

    Raises:
        AccessDenied: as it came, for it would meet every other item too: the job must stop.
    """
    if isinstance(error, AccessDenied):
        raise error
    if isinstance(error, FileNotFoundError):
        return InputError("not_found", "the object was listed and is gone")
    code = "storage_timeout" if isinstance(error, StorageTimeout) else "storage_error"
    return InputError(code, error.message, hint=error.hint)


# ---------------------------------------------------------------- stores


class _Store:
    """A store through plain fsspec: memory:// and gs:// need no more."""

    creating = threading.Lock()
    """fsspec's own check for an existing object and the write that follows are two steps."""

    def __init__(self, fs: AbstractFileSystem) -> None:
        self.fs = fs

    def info(self, path: str) -> FileInfo:
        return self._describe(self.fs.info(path))

    def is_folder(self, path: str) -> bool:
        return bool(self.fs.isdir(path))

    def walk(self, url: str, path: str) -> Iterator[FileInfo]:
        """Depth first. A folder sorts as `name/`, which makes the whole order that of the full paths."""
        if self.is_folder(path):
            yield from self._descend(url, path, "")

    def _descend(self, url: str, folder: str, prefix: str) -> Iterator[FileInfo]:
        entries: list[tuple[str, FileInfo | None]] = _request("list", url, lambda store, _: store.entries(folder))
        for name, file in sorted(entries, key=lambda entry: entry[0]):
            if file is None:
                yield from self._descend(url, f"{folder}/{name[:-1]}", prefix + name)
            else:
                yield replace(file, path=prefix + name)

    def entries(self, folder: str) -> list[tuple[str, FileInfo | None]]:
        """One folder: (`name`, file) and (`name/`, None)."""
        found: list[tuple[str, FileInfo | None]] = []
        for entry in self.fs.ls(folder, detail=True):
            name = entry["name"].rstrip("/").rpartition("/")[2]
            is_folder = entry["type"] == "directory"
            found.append((name + "/", None) if is_folder else (name, self._describe(entry)))
        return found

    def _describe(self, entry: dict[str, Any]) -> FileInfo:
        if entry["type"] == "directory":
            raise FileNotFoundError(entry["name"])
        created = entry.get("created")  # memory:// lists seconds and describes a datetime
        seconds = created.timestamp() if isinstance(created, datetime) else created
        version = entry.get("etag") or f"{seconds}-{entry['size']}"
        return FileInfo(entry["name"].rpartition("/")[2], int(entry["size"]), str(version))

    def read(
        self, path: str, *, span: tuple[int, int] | None = None, max_bytes: int | None = None, etag: str | None = None
    ) -> bytes:
        _admit(self.info(path), max_bytes=max_bytes, etag=etag)
        start, end = span or (None, None)
        data: bytes = self.fs.cat_file(path, start=start, end=end)
        return data

    def put(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(path, data)

    def create(self, path: str, data: bytes, writer: str) -> bool:
        with self.creating:
            try:
                self.fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
        return True

    def delete(self, path: str) -> None:
        self.fs.rm_file(path)

    def refresh(self) -> None:
        """Fetch new credentials, where the store has any."""


class _Local(_Store):
    """Files, through the operating system itself: fsspec neither syncs nor replaces atomically."""

    def info(self, path: str) -> FileInfo:
        if os.path.isdir(path):
            raise FileNotFoundError(path)
        return _from_stat(os.path.basename(path), os.stat(path))

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path)

    def entries(self, folder: str) -> list[tuple[str, FileInfo | None]]:
        found: list[tuple[str, FileInfo | None]] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                _check_name(entry)
                if entry.is_dir():
                    found.append((entry.name + "/", None))
                elif entry.is_file():
                    with suppress(FileNotFoundError):  # a temporary file that was renamed meanwhile
                        found.append((entry.name, _from_stat(entry.name, entry.stat())))
                elif entry.is_symlink():  # its target is gone: listed, so that reading it says so
                    found.append((entry.name, FileInfo(entry.name, 0, "")))
        return found

    def read(
        self, path: str, *, span: tuple[int, int] | None = None, max_bytes: int | None = None, etag: str | None = None
    ) -> bytes:
        with open(path, "rb") as file:
            found = _from_stat(path, os.fstat(file.fileno()))
            _admit(found, max_bytes=max_bytes, etag=etag)
            start, end = span or (0, found.size)
            file.seek(start)
            return file.read(end - start)

    def put(self, path: str, data: bytes) -> None:
        with _complete_file(path, data) as temporary:
            os.replace(temporary, path)

    def create(self, path: str, data: bytes, writer: str) -> bool:
        with _complete_file(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        return True

    def delete(self, path: str) -> None:
        os.unlink(path)


class _S3(_Store):
    """S3 and what speaks like it: one request per read, one per thousand names listed, exact keys."""

    def info(self, path: str) -> FileInfo:
        if "/" not in path:
            raise FileNotFoundError(path)
        head = self._head(path)
        return FileInfo(path.rpartition("/")[2], head["ContentLength"], head["ETag"].strip('"'))

    def is_folder(self, path: str) -> bool:
        """Only the bucket exists without objects; its listing fails when it does not."""
        return "/" not in path

    def walk(self, url: str, path: str) -> Iterator[FileInfo]:
        bucket, _, key = path.partition("/")
        prefix = f"{key}/" if key else ""
        token: str | None = ""
        last = ""
        while token is not None:
            page = functools.partial(self._page, bucket, prefix, token)
            files, token = _request("list", url, lambda *_, page=page: page())
            for file in files:
                if file.path < last:  # such as S3 Express: plans made twice would differ
                    raise StorageError(f"{redact(url)} is not listed in order: {file.path!r} after {last!r}")
                last = file.path
                yield file

    def _page(self, bucket: str, prefix: str, token: str) -> tuple[list[FileInfo], str | None]:
        """Up to 1000 objects, and the token of the next page. `name/` placeholders of empty folders are left out."""
        more = {"ContinuationToken": token} if token else {}
        page = self.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more, timeout=RETRY.request_s)
        files = [
            FileInfo(one["Key"][len(prefix) :], one["Size"], one["ETag"].strip('"'))
            for one in page.get("Contents", [])
            if not one["Key"].endswith("/")
        ]
        return files, page["NextContinuationToken"] if page.get("IsTruncated") else None

    def read(
        self, path: str, *, span: tuple[int, int] | None = None, max_bytes: int | None = None, etag: str | None = None
    ) -> bytes:
        def admit(size: int, found: str) -> None:
            _admit(FileInfo(path, size, found), max_bytes=max_bytes, etag=etag)

        data: bytes = sync(self.fs.loop, self._get, path, span, admit)
        return data

    async def _get(self, path: str, span: tuple[int, int] | None, admit: Callable[[int, str], None]) -> bytes:
        bucket, _, key = path.partition("/")
        limits = {"Range": f"bytes={span[0]}-{span[1] - 1}"} if span else {}
        asked = self.fs._call_s3("get_object", Bucket=bucket, Key=key, **limits)
        reply = await asyncio.wait_for(asked, RETRY.request_s)
        try:
            admit(reply["ContentLength"], reply["ETag"].strip('"'))
            data: bytes = await asyncio.wait_for(reply["Body"].read(), RETRY.deadline_s(reply["ContentLength"]))
            return data
        finally:
            reply["Body"].close()

    def put(self, path: str, data: bytes, **conditions: Any) -> None:
        bucket, _, key = path.partition("/")
        timeout = RETRY.deadline_s(len(data))
        self.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **conditions, timeout=timeout)

    def create(self, path: str, data: bytes, writer: str) -> bool:
        """When an answer is lost, the repeat meets its own object: `writer`, kept beside it, tells whose it is.

        aiohttp itself repeats a PUT whose connection broke, so counting our own attempts would not be enough.
        """
        try:
            self.put(path, data, IfNoneMatch="*", Metadata={"writer": writer})
        except OSError as error:
            if _answer(error)[0] != 412:
                raise
            return bool(self._head(path).get("Metadata", {}).get("writer") == writer)
        return True

    def _head(self, path: str) -> dict[str, Any]:
        bucket, _, key = path.partition("/")
        head: dict[str, Any] = self.fs.call_s3("head_object", Bucket=bucket, Key=key, timeout=RETRY.request_s)
        return head

    def delete(self, path: str) -> None:
        bucket, _, key = path.partition("/")
        self.fs.call_s3("delete_object", Bucket=bucket, Key=key, timeout=RETRY.request_s)

    def refresh(self) -> None:
        self.fs.connect(refresh=True)


class _Https(_Store):
    """Single objects of allowed hosts, for reading."""

    def __init__(self, client: "Client") -> None:
        self.client = client

    def info(self, path: str) -> FileInfo:
        headers = self.client.head(path, timeout_s=RETRY.request_s)
        if "Content-Length" not in headers:
            raise StorageError(f"{path}: the host does not say how large it is", hint="copy the object to a bucket")
        size = int(headers["Content-Length"])
        version = headers.get("ETag") or f"{headers.get('Last-Modified', '')}-{size}"
        return FileInfo(path.rpartition("/")[2], size, version)

    def is_folder(self, path: str) -> bool:
        return False

    def read(
        self, path: str, *, span: tuple[int, int] | None = None, max_bytes: int | None = None, etag: str | None = None
    ) -> bytes:
        found = self.info(path)
        _admit(found, max_bytes=max_bytes, etag=etag)
        start, end = span or (0, found.size)
        if start == end:
            return b""
        return self.client.get(path, start, end, etag=found.etag, timeout_s=RETRY.deadline_s(end - start))

    def put(self, path: str, data: bytes) -> None:
        raise ConfigError(f"{path} cannot be written: https:// is for reading", hint="write to a folder or bucket")

    def create(self, path: str, data: bytes, writer: str) -> bool:
        self.put(path, data)
        return False

    def delete(self, path: str) -> None:
        self.put(path, b"")


class _RangeFile(io.RawIOBase):
    """One version of one object, fetched in ranges."""

    def __init__(self, url: str, found: FileInfo) -> None:
        self._url, self._found, self._at = url, found, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._found.size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._found.size, self._at + min(len(buffer), _BLOCK_BYTES))
        if end <= self._at:
            return 0
        span = (self._at, end)
        data = _request("read", self._url, lambda store, path: store.read(path, span=span, etag=self._found.etag))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        chunks = []
        while chunk := self.read(_BLOCK_BYTES):
            chunks.append(chunk)
        return b"".join(chunks)


def _admit(found: FileInfo, *, max_bytes: int | None = None, etag: str | None = None) -> None:
    if etag is not None and found.etag != etag:
        raise InputError("source_changed", f"version {found.etag}, planned {etag}", hint="run again to plan anew")
    if max_bytes is not None and found.size > max_bytes:
        raise InputError("too_many_bytes", f"{found.size} bytes, limit {max_bytes}")


def _check_name(entry: os.DirEntry[str]) -> None:
    """Refuse what cannot become keys: names that are not UTF-8, and links that lead back to a folder above."""
    try:
        entry.name.encode()
    except UnicodeEncodeError as error:
        raise StorageError(f"the name of {entry.path!r} is not UTF-8", hint="rename the file") from error
    if entry.is_symlink() and entry.is_dir():
        target, here = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
        if os.path.commonpath([target, here]) == target:
            raise StorageError(f"{entry.path} links back to {target}", hint="remove the link")


def _from_stat(name: str, stat: os.stat_result) -> FileInfo:
    return FileInfo(name, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")


@contextmanager
def _complete_file(path: str, data: bytes) -> Iterator[str]:
    """A temporary file beside `path` with all of `data` on disk; gone afterwards, whatever became of it."""
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.tmp-{uuid.uuid4().hex}"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_folder(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"no space left for {path}: {len(data)} bytes needed", hint="free space, run again"
            ) from error
        raise
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    """Make a rename durable: it lives in the folder, not in the file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------- URL to store

_ALLOWED = "a local path, file://, memory://, s3://, gs://, or https:// for reading"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_S3_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION")
"""Another value of one of these is another client."""


def _locate(url: str) -> tuple[_Store, str]:
    """The store of a URL, and the path inside it, without the slash of a folder at its end."""
    scheme, _, rest = url.partition("://") if "://" in url else ("file", "", url)
    variables: tuple[str | None, ...] = ()
    if scheme == "file":
        path = rest.rstrip("/") or rest[:1]
    elif scheme == "memory":
        path = f"/{rest.strip('/')}".rstrip("/")
    elif scheme in ("s3", "gs"):
        bucket, _, key = rest.partition("/")
        _check_bucket(scheme, bucket)
        path = f"{bucket}/{key}".rstrip("/")
        variables = tuple(map(os.environ.get, _S3_VARIABLES))
    elif scheme == "https":
        from pipeline.store import https  # noqa: PLC0415  # its client is slow to import

        https.check_https_url(url)
        path = url
    else:
        raise ConfigError(f"{scheme}:// is not supported", hint=f"use {_ALLOWED}")
    if scheme == "file" and not path:
        raise ConfigError("the URL is empty", hint=f"use {_ALLOWED}")
    return _store(scheme, os.getpid(), *variables), path


def _check_bucket(scheme: str, bucket: str) -> None:
    """The text is not repeated: what stands where the bucket should be may be a secret."""
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"{scheme}:// must be followed by a bucket name",
            hint="credentials never belong in a URL; set AWS_PROFILE, a role, or the provider's own variables",
        )


@functools.lru_cache(maxsize=16)
def _store(scheme: str, pid: int, *variables: str | None) -> _Store:
    """One store per process, shared by its threads; a forked child has another pid and connects anew."""
    if scheme == "s3":
        return _S3(_s3_filesystem())
    if scheme == "file":
        return _Local(fsspec.filesystem("file"))
    if scheme == "https":
        from pipeline.store.https import Client  # noqa: PLC0415

        return _Https(Client())
    with optional.package("gcsfs", extra="gcs", needed_by=f"{scheme}://"):
        return _Store(fsspec.filesystem(scheme, use_listings_cache=False))


def _s3_filesystem() -> AbstractFileSystem:
    """An S3 client that sends each request once: all retries are `_request`'s.

    Checksums that botocore adds since 1.36 are off unless the environment asks for them: several S3-compatible servers
    refuse them (github.com/boto/boto3/issues/4392). TLS and the page checksums of Parquet remain.
    """
    fs = fsspec.filesystem(
        "s3",
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": 5,
            "read_timeout": 10,
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "max_pool_connections": 64,
            "request_checksum_calculation": os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
            "response_checksum_validation": os.environ.get("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required"),
        },
    )
    fs.retries = 1
    return fs


# ---------------------------------------------------------------- requests and retries

_IAM = {"read": "s3:GetObject", "list": "s3:ListBucket", "write": "s3:PutObject", "delete": "s3:DeleteObject"}
_TRANSIENT = {408, 409, 429, 500, 502, 503, 504}
"""409 is a conditional PUT that met another one: S3 asks for a repeat (docs: "Conditional writes")."""
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
"""botocore's names; a metadata service asked by many workers at once looks like this for a moment."""


def _write(url: str, call: Callable[[_Store, str], T]) -> T:
    try:
        return _request("write", url, call)
    except FileNotFoundError as error:
        raise StorageError(f"cannot write {redact(url)}: no such bucket or folder") from error


def _request(verb: str, url: str, call: Callable[[_Store, str], T]) -> T:
    """Run one request until it succeeds or a repeat is pointless."""
    store, path = _locate(url)
    began, attempt, refreshed = time.monotonic(), 0, False
    while True:
        attempt += 1
        try:
            return call(store, path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(errno.ENOENT, "no such object", redact(url)) from error
        except _client_errors() as error:
            pause_s = RETRY.pause_s(attempt)
            late = attempt > 1 and time.monotonic() - began + pause_s > RETRY.total_s
            if _needs_credentials(error) and not refreshed:
                refreshed = True
                store.refresh()
            elif _is_denied(error):
                raise _denied(verb, url, error) from error
            elif not _is_transient(error) or late or attempt >= RETRY.attempts:
                raise _gave_up(verb, url, error, attempt) from error
            time.sleep(pause_s)


def _client_errors() -> tuple[type[Exception], ...]:
    """OSError, and what the clients raise beside it once they are loaded."""
    if "aiobotocore" not in sys.modules:
        return (OSError, *_broken_connections())
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    return (OSError, BotoCoreError, ClientError, *_broken_connections())


def _broken_connections() -> tuple[type[Exception], ...]:
    """How the clients say that no whole answer arrived."""
    if "aiohttp" not in sys.modules:
        return ()
    from aiohttp import ClientError as HTTPError  # noqa: PLC0415

    if "aiobotocore" not in sys.modules:
        return (HTTPError,)
    from botocore import exceptions, parsers  # noqa: PLC0415

    return (
        HTTPError,
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.IncompleteReadError,
        parsers.ResponseParserError,
    )


def _answer(error: BaseException) -> tuple[int, str]:
    """HTTP status and error code of the store; (0, "") when it never answered."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return status, response.get("Error", {}).get("Code", "")
        if status := getattr(one, "status", 0):  # aiohttp
            return int(status), str(getattr(one, "message", ""))
    return 0, ""


def _needs_credentials(error: Exception) -> bool:
    return _answer(error)[1] in _EXPIRED or type(error).__name__ in _NO_CREDENTIALS


def _is_denied(error: Exception) -> bool:
    """403, except for one archived object (Glacier), which says nothing about the others."""
    archived = _answer(error)[1] == "InvalidObjectState"
    return (isinstance(error, PermissionError) and not archived) or _needs_credentials(error)


def _is_transient(error: Exception) -> bool:
    """Whether a repeat may help: the store said so, or the connection broke."""
    status, _ = _answer(error)
    if status:
        return status in _TRANSIENT or isinstance(error, TimeoutError)
    return isinstance(error, (TimeoutError, ConnectionError, *_broken_connections()))


def _denied(verb: str, url: str, error: Exception) -> AccessDenied:
    status, code = _answer(error)
    if url.startswith("s3://"):
        hint = f"the credentials in use need {_IAM[verb]} here; look at AWS_PROFILE or the role of this machine"
        if verb == "read":
            hint += " (without s3:ListBucket a missing object answers 403 too)"
    else:
        hint = f"give this user the right to {verb} it"
    said = f"{status} {code}" if status else redact(str(error))
    return AccessDenied(f"cannot {verb} {redact(url)}: {said}", hint=hint)


def _gave_up(verb: str, url: str, error: Exception, attempts: int) -> StorageError:
    status, code = _answer(error)
    timed_out = isinstance(error, TimeoutError) or "Timeout" in type(error).__name__
    said = f"{status} {code}" if status else "timed out" if timed_out else redact(f"{type(error).__name__}: {error}")
    kind = StorageTimeout if timed_out else StorageError
    return kind(f"cannot {verb} {redact(url)}: {said}, {attempts} attempt{'s' if attempts > 1 else ''}")
