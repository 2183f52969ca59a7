"""Fixtures of the stores: an empty folder of each, an object behind the fault proxy, quick retries."""

import uuid

import pytest

from pipeline.store import objects, retry
from pipeline.store.retry import RetryPolicy
from pipeline.store.url import Url
from tests.support.s3_servers import FaultProxy, S3Server


@pytest.fixture
def root(request: pytest.FixtureRequest) -> Url:
    """An empty folder of the store named by the parameter."""
    match request.param:
        case "local":
            return Url(str(request.getfixturevalue("tmp_path")))
        case "memory":
            return Url(f"memory://{uuid.uuid4().hex}")
        case "s3":
            return Url(request.getfixturevalue("s3_url")) / "folder"
        case _:
            return rclone_folder(request.getfixturevalue("rclone_server"), request.getfixturevalue("monkeypatch"))


def rclone_folder(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Url:
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=bucket)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return Url(f"s3://{bucket}/folder")


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> RetryPolicy:
    policy = RetryPolicy(attempts=3, first_s=0.01, request_s=0.4, slowest_bytes_per_s=1e9)
    monkeypatch.setattr(retry, "RETRY", policy)
    return policy


@pytest.fixture
def object_url(s3_url: str, s3_proxy: FaultProxy) -> Url:
    """An object of 1000 bytes behind the proxy, whose counters start at zero."""
    url = Url(s3_url) / "image.jpg"
    objects.put(url, b"0123456789" * 100)
    s3_proxy.clear()
    return url
