"""A real TLS server on loopback; what it is asked, and what must not be asked of it."""

import io
import ssl
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import trustme
from PIL import Image

from pipeline.config import ReadConfig, SegmentConfig
from pipeline.errors import AccessDenied, ConfigError, InputError, StorageError
from pipeline.source.plan import plan_source, read_items
from pipeline.store import objects, retry
from pipeline.store.retry import RetryPolicy
from pipeline.store.url import Url

BODY = bytes(range(256)) * 40


def archive() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name in ("a", "b"):
            picture = io.BytesIO()
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture, "png")
            member = tarfile.TarInfo(f"{name}.png")
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    return held.getvalue()


class Site(BaseHTTPRequestHandler):
    """`/data.bin` and `/two.tar` are objects; other paths misbehave as they are called."""

    objects: ClassVar = {
        "/data.bin": BODY,
        "/two.tar": archive(),
        "/empty.bin": b"",
        "/no-range.bin": BODY,
        "/changing.bin": BODY,
    }
    requests: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        if self.path == "/secret.bin":
            return self.reply(403)
        if self.path == "/moved.bin":
            return self.reply(302, Location="https://169.254.169.254/latest/meta-data")
        if self.path == "/busy.bin" and self.requests.count(f"{self.command} {self.path}") < 3:
            return self.reply(503)
        data = self.objects.get(self.path.replace("busy", "data"))
        if data is None:
            return self.reply(404)
        tag = f'"{self.requests.count("HEAD /changing.bin")}"' if self.path == "/changing.bin" else '"v1"'
        asked = self.headers.get("Range") if self.path != "/no-range.bin" else None
        if asked:
            start, end = map(int, asked.removeprefix("bytes=").split("-"))
            return self.reply(206, data[start : end + 1], body=body, ETag=tag)
        return self.reply(200, data, body=body, ETag=tag)

    def reply(self, status: int, data: bytes = b"", *, body: bool = True, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    authority = trustme.CA()
    trusted: Path = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server, pytest.MonkeyPatch.context() as patch:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        patch.setenv("SSL_CERT_FILE", str(trusted))
        objects._backend.cache_clear()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        objects._backend.cache_clear()
        server.shutdown()


@pytest.fixture
def site(port: int, monkeypatch: pytest.MonkeyPatch) -> Url:
    monkeypatch.setenv("ATROUS_HTTPS_HOSTS", "data.example.org, 127.0.0.1")
    monkeypatch.setattr(retry, "RETRY", RetryPolicy(attempts=6, first_s=0.01, request_s=5))
    Site.requests.clear()
    return Url(f"https://127.0.0.1:{port}")


def test_an_object_is_described_and_read_whole_and_in_ranges(site: Url) -> None:
    url = site / "data.bin"
    assert objects.info(url) == objects.FileInfo("data.bin", len(BODY), '"v1"')
    assert objects.read_bytes(url) == BODY
    with objects.open_read(url) as file:
        file.seek(1000)
        assert file.read(500) == BODY[1000:1500]
    assert objects.read_bytes(site / "empty.bin") == b""


def test_a_tar_becomes_a_shard_and_its_members_items(site: Url) -> None:
    cfg = SegmentConfig(source=((site / "two.tar").raw,), output="out", checkpoint="farmland")
    (shard,) = plan_source(cfg).shards
    items = list(read_items(shard, ReadConfig(), max_bytes=10**6, skip=frozenset()))
    assert [item.key.rpartition("#")[2] for item in items] == ["a", "b"]
    assert all(item.data.startswith(b"\x89PNG") for item in items)


def test_too_large_an_object_is_refused_before_its_body_is_asked_for(site: Url) -> None:
    with pytest.raises(InputError, match="too_many_bytes"):
        objects.read_bytes(site / "data.bin", max_bytes=100)
    assert Site.requests == ["HEAD /data.bin"]


def test_an_object_that_changes_between_two_reads_is_noticed(site: Url) -> None:
    planned = objects.info(site / "changing.bin")
    with pytest.raises(InputError, match="source_changed"):
        objects.read_bytes(site / "changing.bin", etag=planned.etag)


def test_a_busy_host_is_asked_again(site: Url) -> None:
    assert objects.read_bytes(site / "busy.bin") == BODY


def test_a_missing_object_and_a_forbidden_one_are_told_apart(site: Url) -> None:
    with pytest.raises(FileNotFoundError):
        objects.info(site / "none.bin")
    with pytest.raises(AccessDenied):
        objects.read_bytes(site / "secret.bin")
    assert Site.requests == ["HEAD /none.bin", "HEAD /secret.bin"]


def test_a_redirect_is_refused_with_where_it_leads(site: Url) -> None:
    with pytest.raises(StorageError, match=r"redirect to 169\.254\.169\.254"):
        objects.read_bytes(site / "moved.bin")


def test_a_host_without_ranges_is_refused_before_its_body_is_read(site: Url) -> None:
    with pytest.raises(StorageError, match="ignores range requests"):
        objects.read_bytes(site / "no-range.bin")


def test_a_name_that_leads_inside_is_refused_while_connecting(
    site: Url, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATROUS_HTTPS_HOSTS", "localhost")
    with pytest.raises(ConfigError, match="not a public address"):
        objects.read_bytes(Url(f"https://localhost:{port}/data.bin"))
    assert Site.requests == []


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("https://elsewhere.example.org/a.tar", "ATROUS_HTTPS_HOSTS=elsewhere.example.org"),
        ("https://data.example.org.evil.net/a.tar", "the list of allowed hosts"),
        ("https://data.example.org@evil.net/a.tar", "must have no user, query or fragment"),
        ("https://data.example.org/a.tar?X-Amz-Signature=abc", "must have no user, query or fragment"),
        ("http://data.example.org/a.tar", "not supported"),
    ],
)
def test_addresses_that_were_not_allowed_are_never_asked(site: Url, address: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        objects.read_bytes(Url(address))
    assert says in f"{caught.value}"
    assert "abc" not in f"{caught.value}"
    assert Site.requests == []


def test_nothing_can_be_written(site: Url) -> None:
    with pytest.raises(ConfigError, match="read only"):
        objects.put(site / "data.bin", b"x")
    with pytest.raises(ConfigError, match="read only"):
        objects.delete(site / "data.bin")
