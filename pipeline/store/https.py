"""Reading single objects over https, from hosts that were named beforehand.

A worker sits inside somebody's network, so an address must not lead it to where only insiders get: the host has to
stand in ATROUS_HTTPS_HOSTS, no redirect is followed, and a name that resolves to a private, loopback or link-local
address is refused (docs/decisions/006-https-by-allow-list.md). Nothing is listed and nothing is written.
"""

import os
import socket
import ssl
import weakref
from collections.abc import Mapping
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

HOSTS = "ATROUS_HTTPS_HOSTS"
"""Environment variable: the hosts that may be read, separated by commas."""


def check_https_url(url: str) -> None:
    """Refuse an https URL that is not one object of an allowed host.

    Raises:
        ConfigError: for a host that was not named, and for a query string or user, which may be secrets.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        hint = "signed addresses end up in plans and logs; copy the object to a bucket"
        raise ConfigError(f"https://{parts.hostname}: no user, query or fragment may stand in the URL", hint=hint)
    allowed = {host.strip().lower() for host in os.environ.get(HOSTS, "").split(",")} - {""}
    if (parts.hostname or "") not in allowed:
        hint = f"set {HOSTS}={parts.hostname}, on every node that reads, if you trust it"
        raise ConfigError(f"https://{parts.hostname} may not be read: it is not in {HOSTS}", hint=hint)


class _PublicAddresses(aiohttp.ThreadedResolver):
    """Refuses names that lead inside, at the moment of connecting: a check made earlier could be answered differently.

    An IP address in the list of hosts never comes here: whoever wrote it knows where it leads.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        if inside := [one["host"] for one in found if not ip_address(one["host"]).is_global]:
            hint = f"name the address itself in {HOSTS} if it is meant"
            raise ConfigError(f"https://{host} leads to {inside[0]}, which is not a public address", hint=hint)
        return found


async def _check_answer(reply: aiohttp.ClientResponse) -> None:
    """Turn what is no answer into an error, before the body is read."""
    if reply.status in (401, 403):
        raise PermissionError(f"{reply.status} {reply.reason}")
    if reply.status in (404, 410):
        raise FileNotFoundError(str(reply.url))
    if 300 <= reply.status < 400:
        hint = "redirects are not followed; give the address it leads to"
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
        # Made here, not when aiohttp is imported, so that SSL_CERT_FILE counts.
        connector = aiohttp.TCPConnector(resolver=_PublicAddresses(), ssl=ssl.create_default_context())
        return aiohttp.ClientSession(connector=connector, raise_for_status=_check_answer, auto_decompress=False)

    def head(self, url: str, *, timeout_s: float) -> Mapping[str, str]:
        """The headers of an object."""
        headers: Mapping[str, str] = sync(self._loop, self._ask, "HEAD", url, {}, timeout_s)[0]
        return headers

    def get(self, url: str, start: int, end: int, *, etag: str, timeout_s: float) -> bytes:
        """Bytes [start, end) of an object, `end` greater than `start`, only while its strong ETag is `etag`."""
        headers = {"Range": f"bytes={start}-{end - 1}"} | ({"If-Match": etag} if etag.startswith('"') else {})
        data: bytes = sync(self._loop, self._ask, "GET", url, headers, timeout_s)[1]
        return data

    async def _ask(self, verb: str, url: str, headers: dict[str, str], timeout_s: float) -> tuple[Any, bytes]:
        asked = {"Accept-Encoding": "identity"} | headers
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self._session.request(verb, url, headers=asked, timeout=timeout, allow_redirects=False) as reply:
            return reply.headers, await reply.read()


class HttpsBackend(Backend):
    """The requests of https: single objects of allowed hosts, read only. Paths are whole URLs."""

    def __init__(self) -> None:
        self.client = Client()

    def info(self, path: str) -> FileInfo:
        """Describe one object by a HEAD request.

        Raises:
            StorageError: the host reports no Content-Length.
        """
        headers = self.client.head(path, timeout_s=retry.RETRY.request_s)
        if "Content-Length" not in headers:
            raise StorageError(f"{path}: the host does not say how large it is", hint="copy the object to a bucket")
        size = int(headers["Content-Length"])
        version = headers.get("ETag") or f"{headers.get('Last-Modified', '')}-{size}"
        return FileInfo(path.rpartition("/")[2], size, version)

    def is_folder(self, path: str) -> bool:
        """False: a host lists nothing."""
        return False

    def read(
        self, path: str, *, span: tuple[int, int] | None = None, max_bytes: int | None = None, etag: str | None = None
    ) -> bytes:
        """Read by a HEAD and one ranged GET, bound to the version that the HEAD named."""
        info = self.info(path)
        check_info(info, max_bytes=max_bytes, etag=etag)
        start, end = span or (0, info.size)
        if start == end:
            return b""
        return self.client.get(path, start, end, etag=info.etag, timeout_s=retry.RETRY.deadline_s(end - start))

    def put(self, path: str, data: bytes) -> None:
        """Refuse: https is for reading. Raises ConfigError."""
        raise ConfigError(f"{path} cannot be written: https:// is for reading", hint="write to a folder or bucket")

    def create(self, path: str, data: bytes, writer: str) -> bool:
        """Refuse, as `put`."""
        self.put(path, data)
        return False

    def delete(self, path: str) -> None:
        """Refuse, as `put`."""
        self.put(path, b"")
