"""Streamed writes: identity in every store, nothing to see of an unfinished one, and requests that fail on the way."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, StorageError
from pipeline.store import backend, objects
from pipeline.store.retry import RetryPolicy
from pipeline.store.url import Url
from tests.pipeline.store.test_objects import every_store
from tests.support.examples import examples
from tests.support.listing import paths
from tests.support.s3_servers import Fault, FaultProxy, S3Server

PART = 5 * 2**20
"""Smallest part that S3 takes, the last one apart."""
LARGE = os.urandom(2 * PART + 12345)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "PART_BYTES", PART)


def chunks(data: bytes, size: int = 700_001) -> Iterator[bytes]:
    yield from (data[at : at + size] for at in range(0, len(data), size))


def broken(data: bytes) -> Iterator[bytes]:
    yield from chunks(data)
    raise ValueError("a damaged block")


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(1, 30))
@examples(100)
def test_parts_are_full_but_the_last(pieces: list[bytes], part_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(backend, "PART_BYTES", part_bytes)
        parts = list(backend.gather_parts(pieces))
    assert b"".join(parts) == b"".join(pieces)
    assert all(len(part) == part_bytes for part in parts[:-1])
    assert len(parts) == 1 or 0 < len(parts[-1]) <= part_bytes


@every_store
@pytest.mark.parametrize("data", [b"", b"small", LARGE[:PART], LARGE], ids=len)
def test_a_stream_then_read_is_identity(root: Url, data: bytes) -> None:
    url = root / "deep/er/file"
    objects.put_stream(url, chunks(data))
    assert objects.read_bytes(url) == data
    assert objects.info(url).size == len(data)
    assert paths(root) == ["deep/er/file"]


@every_store
@pytest.mark.parametrize("data", [b"small", LARGE], ids=len)
def test_a_stream_that_breaks_leaves_the_older_object_and_nothing_else(root: Url, data: bytes) -> None:
    objects.put(root / "old", b"before")
    for name in ("old", "new"):
        with pytest.raises(ValueError, match="a damaged block"):
            objects.put_stream(root / name, broken(data))
    assert objects.read_bytes(root / "old") == b"before"
    assert paths(root) == ["old"]


@every_store
def test_a_reader_sees_nothing_of_an_unfinished_stream(root: Url) -> None:
    def watched() -> Iterator[bytes]:
        for chunk in chunks(LARGE):
            yield chunk
            assert not objects.exists(root / "file")

    objects.put_stream(root / "file", watched())
    assert objects.read_bytes(root / "file") == LARGE


@pytest.mark.s3
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("fault", [503, "lost", "reset"])
def test_a_request_of_a_stream_that_fails_is_repeated(
    s3_url: str, s3_proxy: FaultProxy, quick_retries: RetryPolicy, fault: Fault, method: str
) -> None:
    s3_proxy.fail_next(1, fault, method=method)
    objects.put_stream(Url(f"{s3_url}/file"), chunks(LARGE))
    assert objects.read_bytes(Url(f"{s3_url}/file")) == LARGE


@pytest.mark.s3
def test_a_stream_is_there_although_the_last_answer_was_lost(
    s3_url: str, s3_proxy: FaultProxy, quick_retries: RetryPolicy
) -> None:
    def then_lose() -> Iterator[bytes]:
        yield from chunks(LARGE)
        s3_proxy.fail_next(1, "lost", method="POST")  # the next one ends the upload

    objects.put_stream(Url(f"{s3_url}/file"), then_lose())
    assert objects.read_bytes(Url(f"{s3_url}/file")) == LARGE


@pytest.mark.s3
def test_an_upload_that_fails_for_good_is_aborted(
    s3_url: str, s3_proxy: FaultProxy, moto_server: S3Server, quick_retries: RetryPolicy
) -> None:
    s3_proxy.fail_next(99, 503, method="PUT")
    with pytest.raises(StorageError, match="cannot write"):
        objects.put_stream(Url(f"{s3_url}/file"), chunks(LARGE))
    uploads = moto_server.client().list_multipart_uploads(Bucket=s3_url.removeprefix("s3://"))
    assert "Uploads" not in uploads
    assert not objects.exists(Url(f"{s3_url}/file"))


def test_https_takes_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATROUS_HTTPS_HOSTS", "host")
    with pytest.raises(ConfigError, match="https:// is read only"):
        objects.put_stream(Url("https://host/file"), chunks(b"x"))
