"""Backend for https: reads single objects from hosts on an allow-list.

Workers run inside a private network, so a URL must not give access to its internal addresses: the host must be listed
in ATROUS_HTTPS_HOSTS, redirects are not followed, and names that resolve to a private, loopback or link-local address
are refused (docs/decisions/006-https-by-allow-list.md). Listing and writing are not supported.
"""

import os
import socket
import ssl
import weakref
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import ResolveResult
from fsspec.asyn import get_loop, sync
from fsspec.implementations.http import HTTPFileSystem

from pipeline.errors import ConfigError, StorageError
from pipeline.store import retry
from pipeline.store.backend import Backend, FileInfo, check_info
from pipeline.store.url import Url

HOSTS = "ATROUS_HTTPS_HOSTS"
"""Environment variable with the allowed hosts, separated by commas."""


def check_https_url(url: str) -> None:
    """Refuse an https URL that is not one object of an allowed host.

    Raises:
        ConfigError: the host is not allowed, or the URL has a user, query or fragment, which may be secret.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        hint = "plans and logs would keep a signed URL; copy the object to a bucket"
        raise ConfigError(f"https://{parts.hostname}: the URL must have no user, query or fragment", hint=hint)
    allowed = {host.strip().lower() for host in os.environ.get(HOSTS, "").split(",")} - {""}
    if (parts.hostname or "") not in allowed:
        hint = f"if you trust it, set {HOSTS}={parts.hostname} on every node"
        raise ConfigError(f"https://{parts.hostname} is not in {HOSTS}, the list of allowed hosts", hint=hint)


class _PublicAddresses(aiohttp.ThreadedResolver):
    """Resolver that refuses names of internal addresses.

    It checks when a connection opens, since a name could resolve to another address after an earlier check. IP
    addresses in the list of hosts are not resolved, so private addresses are allowed there.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        results = await super().resolve(host, port, family)
        if internal := [result["host"] for result in results if not ip_address(result["host"]).is_global]:
            hint = f"to allow it, put the address itself in {HOSTS}"
            raise ConfigError(f"https://{host} resolves to {internal[0]}, which is not a public address", hint=hint)
        return results


async def _check_answer(reply: aiohttp.ClientResponse) -> None:
    """Raise an error for an answer without the object, before the body is read."""
    if reply.status in (401, 403):
        raise PermissionError(f"{reply.status} {reply.reason}")
    if reply.status in (404, 410):
        raise FileNotFoundError(str(reply.url))
    if 300 <= reply.status < 400:
        hint = "redirects are not followed; use the target URL"
        raise StorageError(
            f"{reply.url} is a redirect to {urlsplit(reply.headers.get('Location', '')).netloc}", hint=hint
        )
    reply.raise_for_status()
    if "Range" in reply.request_info.headers and reply.status != 206:
        raise StorageError(f"{reply.url.host} ignores range requests", hint="copy the object to a bucket")


class Client:
    """Synchronous HEAD and ranged GET on fsspec's event loop; one per process."""

    def __init__(self) -> None:
        self._loop = get_loop()
        self._session: aiohttp.ClientSession = sync(self._loop, self._open)
        weakref.finalize(self, HTTPFileSystem.close_session, self._loop, self._session)

    async def _open(self) -> aiohttp.ClientSession:
        # Created here, since the context made by importing aiohttp could miss SSL_CERT_FILE.
        connector = aiohttp.TCPConnector(resolver=_PublicAddresses(), ssl=ssl.create_default_context())
        return aiohttp.ClientSession(connector=connector, raise_for_status=_check_answer, auto_decompress=False)

    def head(self, url: str, *, timeout_s: float) -> Mapping[str, str]:
        """Headers of an object."""
        headers: Mapping[str, str] = sync(self._loop, self._request, "HEAD", url, {}, timeout_s)[0]
        return headers

    def get(self, url: str, start: int, end: int, *, etag: str, timeout_s: float) -> bytes:
        """Bytes [start, end) of an object, `end` greater than `start`, only while its strong ETag is `etag`."""
        headers = {"Range": f"bytes={start}-{end - 1}"} | ({"If-Match": etag} if etag.startswith('"') else {})
        data: bytes = sync(self._loop, self._request, "GET", url, headers, timeout_s)[1]
        return data

    async def _request(self, verb: str, url: str, headers: dict[str, str], timeout_s: float) -> tuple[Any, bytes]:
        headers = {"Accept-Encoding": "identity"} | headers
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self._session.request(verb, url, headers=headers, timeout=timeout, allow_redirects=False) as reply:
            return reply.headers, await reply.read()


class HttpsBackend(Backend):
    """Requests of https: single objects of allowed hosts, read only. Paths are whole URLs."""

    def __init__(self) -> None:
        self.client = Client()

    def info(self, path: str) -> FileInfo:
        """Describe one object by a HEAD request.

        Raises:
            StorageError: the host reports no Content-Length.
        """
        headers = self.client.head(path, timeout_s=retry.RETRY.request_s)
        if "Content-Length" not in headers:
            raise StorageError(f"{path}: the host reports no Content-Length", hint="copy the object to a bucket")
        size = int(headers["Content-Length"])
        version = headers.get("ETag") or f"{headers.get('Last-Modified', '')}-{size}"
        return FileInfo(path.rpartition("/")[2], size, version)

    def is_folder(self, path: str) -> bool:
        """False: hosts have no folders to list."""
        return False

    def read(
        self, path: str, *, span: tuple[int, int] | None = None, max_bytes: int | None = None, etag: str | None = None
    ) -> bytes:
        """Read by a HEAD and one ranged GET, which requires the version of the HEAD."""
        info = self.info(path)
        check_info(info, max_bytes=max_bytes, etag=etag)
        start, end = span or (0, info.size)
        if start == end:
            return b""
        return self.client.get(path, start, end, etag=info.etag, timeout_s=retry.RETRY.deadline_s(end - start))

    def put(self, path: str, data: bytes) -> None:
        """Raise ConfigError: https is read only."""
        raise ConfigError(f"{path} cannot be written: https:// is read only", hint="write to a folder or bucket")

    def put_stream(self, url: Url, path: str, chunks: Iterable[bytes]) -> None:
        """Raise ConfigError, as `put` does."""
        self.put(path, b"")

    def create(self, path: str, data: bytes, writer: str) -> bool:
        """Raise ConfigError, as `put` does."""
        self.put(path, data)
        return False

    def delete(self, path: str) -> None:
        """Raise ConfigError, as `put` does."""
        self.put(path, b"")
