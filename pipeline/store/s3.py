"""Backend for S3 and compatible stores: one request per read and per thousand names of a listing, keys unchanged."""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.asyn import sync

from pipeline.errors import StorageError
from pipeline.store import retry
from pipeline.store.backend import Backend, FileInfo, check_info, gather_parts
from pipeline.store.retry import answer, with_retries
from pipeline.store.url import Url


class S3Backend(Backend):
    """Requests of S3, sent directly to its API: no listing before a read, no key rewritten."""

    def __init__(self) -> None:
        super().__init__(_s3_filesystem())

    def info(self, path: str) -> FileInfo:
        """Describe one object by a HEAD request. Raises FileNotFoundError for a bucket."""
        if "/" not in path:
            raise FileNotFoundError(path)
        head = self._head(path)
        return FileInfo(path.rpartition("/")[2], head["ContentLength"], head["ETag"].strip('"'))

    def is_folder(self, path: str) -> bool:
        """True for a bucket: other folders exist only through their objects. Listing a missing bucket fails."""
        return "/" not in path

    def walk(self, url: Url, path: str) -> Iterator[FileInfo]:
        """List page by page. S3 sorts by code point; other orders are refused, since two plans would differ."""
        bucket, _, key = path.partition("/")
        prefix = f"{key}/" if key else ""
        token: str | None = ""
        last = ""
        while token is not None:
            files, token = with_retries("list", url, partial(self._page, bucket, prefix, token), self.refresh)
            for file in files:
                if file.path < last:  # such as S3 Express
                    raise StorageError(f"the listing of {url} is not sorted: {file.path!r} after {last!r}")
                last = file.path
                yield file

    def _page(self, bucket: str, prefix: str, token: str) -> tuple[list[FileInfo], str | None]:
        """Up to 1000 objects, and the token of the next page. `name/` placeholders of empty folders are left out."""
        more = {"ContinuationToken": token} if token else {}
        page = self.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more, timeout=retry.RETRY.request_s)
        files = [
            FileInfo(entry["Key"][len(prefix) :], entry["Size"], entry["ETag"].strip('"'))
            for entry in page.get("Contents", [])
            if not entry["Key"].endswith("/")
        ]
        return files, page["NextContinuationToken"] if page.get("IsTruncated") else None

    def read(
        self, path: str, *, span: tuple[int, int] | None = None, max_bytes: int | None = None, etag: str | None = None
    ) -> bytes:
        """Read by one GET; size and etag are checked before the body is read."""

        def check(size: int, version: str) -> None:
            check_info(FileInfo(path, size, version), max_bytes=max_bytes, etag=etag)

        data: bytes = sync(self.fs.loop, self._get, path, span, check)
        return data

    async def _get(self, path: str, span: tuple[int, int] | None, check: Callable[[int, str], None]) -> bytes:
        bucket, _, key = path.partition("/")
        limits = {"Range": f"bytes={span[0]}-{span[1] - 1}"} if span else {}
        request = self.fs._call_s3("get_object", Bucket=bucket, Key=key, **limits)
        reply = await asyncio.wait_for(request, retry.RETRY.request_s)
        try:
            check(reply["ContentLength"], reply["ETag"].strip('"'))
            data: bytes = await asyncio.wait_for(reply["Body"].read(), retry.RETRY.deadline_s(reply["ContentLength"]))
            return data
        finally:
            reply["Body"].close()

    def put(self, path: str, data: bytes, **conditions: Any) -> None:
        """Write by one PUT; `conditions` are further fields of the request."""
        bucket, _, key = path.partition("/")
        timeout = retry.RETRY.deadline_s(len(data))
        self.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **conditions, timeout=timeout)

    def put_stream(self, url: Url, path: str, chunks: Iterable[bytes]) -> None:
        """Write an object from chunks: one PUT for a single part, else a multipart upload, aborted on any error."""
        parts = gather_parts(chunks)
        first, second = next(parts), next(parts, None)
        if second is None:
            with_retries("write", url, partial(self.put, path, first), self.refresh)
            return
        bucket, _, key = path.partition("/")

        def call(name: str, limit_s: float = retry.RETRY.request_s, **fields: Any) -> dict[str, Any]:
            send = partial(self.fs.call_s3, name, Bucket=bucket, Key=key, **fields, timeout=limit_s)
            reply: dict[str, Any] = with_retries("write", url, send, self.refresh)
            return reply

        upload = call("create_multipart_upload")["UploadId"]
        try:
            done = []
            for number, part in enumerate(chain((first, second), parts), start=1):
                limit_s = retry.RETRY.deadline_s(len(part))
                sent = call("upload_part", limit_s, UploadId=upload, PartNumber=number, Body=part)
                done.append({"PartNumber": number, "ETag": sent["ETag"]})
            call("complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": done})
        except BaseException:
            with suppress(Exception):  # the first error is the one to report
                call("abort_multipart_upload", UploadId=upload)
            raise

    def create(self, path: str, data: bytes, writer: str) -> bool:
        """Write an object unless it exists. Its metadata keep `writer`, so that a repeat recognises its own object.

        A repeat happens after a lost answer; aiohttp itself repeats a PUT whose connection broke.
        """
        try:
            self.put(path, data, IfNoneMatch="*", Metadata={"writer": writer})
        except OSError as error:
            if answer(error)[0] != 412:
                raise
            return bool(self._head(path).get("Metadata", {}).get("writer") == writer)
        return True

    def _head(self, path: str) -> dict[str, Any]:
        bucket, _, key = path.partition("/")
        head: dict[str, Any] = self.fs.call_s3("head_object", Bucket=bucket, Key=key, timeout=retry.RETRY.request_s)
        return head

    def delete(self, path: str) -> None:
        """Delete by one request; S3 does not report missing objects."""
        bucket, _, key = path.partition("/")
        self.fs.call_s3("delete_object", Bucket=bucket, Key=key, timeout=retry.RETRY.request_s)

    def refresh(self) -> None:
        """Connect again with new credentials of the environment's provider chain."""
        self.fs.connect(refresh=True)


def _s3_filesystem() -> AbstractFileSystem:
    """An S3 client that sends each request once: all retries are those of `with_retries`.

    The checksums of botocore 1.36 and later are off unless the environment enables them: several S3-compatible servers
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
