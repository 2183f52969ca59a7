"""Fixtures shared by all test files."""

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT
from tests.support import examples, forked, ray_servers, s3_servers  # noqa: F401 - examples sets how many
from tests.support.forked import ForkServer
from tests.support.ray_servers import Cluster
from tests.support.s3_servers import FaultProxy, S3Server

# As every job has it before its first report: pydantic looks once in a process, and other tests may come first.
os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several test processes one runs all that starts Ray, on one cluster at a time; the others take whole files."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    for item in items:
        on_ray = item.get_closest_marker("ray")
        item.add_marker(pytest.mark.xdist_group("ray" if on_ray else item.nodeid.partition("::")[0]))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a file's bytes by their argument: a MATLAB file holds its second of creation, and ids must not change."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def forget_compiled_networks() -> Iterator[None]:
    """All networks share one `forward`, and torch stops compiling a function that it has met too often."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch"].compiler.reset()


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """moto's S3, shared by the session; use `s3_url` for a bucket of your own."""
    with s3_servers.moto() as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3-compatible server over a folder, shared by the session."""
    folder: Path = tmp_path_factory.mktemp("rclone")
    with s3_servers.rclone(folder) as server:
        yield server


@pytest.fixture
def s3_url(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket of moto, `s3://...`, with the environment set so that any client finds it."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    moto_server.client().create_bucket(Bucket=bucket)
    for name, value in moto_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}"


@pytest.fixture
def s3_proxy(s3_url: str, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before moto that counts and breaks requests; the environment leads through it."""
    with FaultProxy(moto_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A Ray cluster of two CPUs with token authentication, shared by the session."""
    with ray_servers.cluster(PYTHONPATH=f"{ROOT}:{os.environ.get('PYTHONPATH', '')}") as running:
        yield running


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Starts jobs in processes of their own without the seconds that imports take, shared by the session."""
    modules = ("without_ray", "training_runs", "double_precision")
    with forked.fork_server("jobs.inspect_run", *(f"tests.support.{name}" for name in modules)) as server:
        yield server
