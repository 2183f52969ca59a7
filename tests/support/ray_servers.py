"""A real Ray cluster on loopback for the tests: one head started as an operator would, with token authentication."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests import ROOT
from tests.support.ports import free_port, wait_for

BIN = Path(sys.executable).parent
START_S = 180.0
STORE_BYTES = 500_000_000
"""Object store of a head."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a running cluster is."""

    address: str
    dashboard: str
    environment: dict[str, str]
    """Variables a driver needs to reach it."""
    log: Path

    def workers(self, name: str) -> list[psutil.Process]:
        """Its processes whose titles have `name`, and no other cluster's; one that ends meanwhile may be among them."""
        named = [process for process in psutil.process_iter() if name in _title(process)]
        folder = str(self.log.parent)
        return [process for process in named if any(folder in _title(parent) for parent in _parents(process))]

    def kill(self, name: str) -> bool:
        """Kill one of `workers` with SIGKILL; False when there is none, or all of them have ended by themselves."""
        for process in self.workers(name):
            with suppress(psutil.NoSuchProcess):
                process.kill()
                return True
        return False


def _title(process: psutil.Process) -> str:
    """Command line of a process; empty when it has ended, is a zombie, or is not ours to look at."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _parents(process: psutil.Process) -> list[psutil.Process]:
    """Parent, its parent and so on, as far as they are there."""
    found = []
    with suppress(psutil.Error):
        parent = process.parent()
        while parent:
            found.append(parent)
            parent = parent.parent()
    return found


@contextmanager
def cluster(
    num_cpus: int = 2, *, store_bytes: int = STORE_BYTES, cwd: Path | None = None, **environment: str
) -> Iterator[Cluster]:
    """A head node in a process group of its own, ended with it. `environment` and `cwd` are what its workers see."""
    # Short, since socket paths have a limit of 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="r", dir=os.environ.get("RAY_TMPDIR", "/tmp")))
    port, dashboard, agent = free_port(), free_port(), free_port()
    access = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    # Its default is one fixed port, and without the agent a head takes no jobs: two clusters would share it.
    command += [f"--dashboard-agent-listen-port={agent}"]
    command += [f"--num-cpus={num_cpus}", f"--object-store-memory={store_bytes}", f"--temp-dir={folder / 't'}"]
    log = folder / "head.log"
    own = {name: value for name, value in access.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as out:
        head = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **own, **environment},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        for wanted in (port, dashboard):
            wait_for(wanted, head, timeout_s=START_S, log=log)
        yield Cluster(access["RAY_ADDRESS"], f"http://127.0.0.1:{dashboard}", access, log)
    finally:
        with suppress(ProcessLookupError):  # it may have ended by itself; what is said then is why
            os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=3)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def node(of: Cluster, *, nodes: int = 2, **environment: str) -> Iterator[subprocess.Popen]:
    """One more node, of one CPU, once the cluster has so many `nodes` alive; `environment` is what its workers see.

    Its process group is its own, so to kill that is a machine lost.
    """
    command = [BIN / "ray", "start", "--block", f"--address={of.address}", "--node-ip-address=127.0.0.1"]
    command += [f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=1"]
    command += ["--object-store-memory=200000000"]
    paths = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **paths, **of.environment, **environment}
    with (of.log.parent / "node.log").open("ab") as out:
        started = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        _wait_for_nodes(nodes, environment)
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def _wait_for_nodes(count: int, environment: dict[str, str]) -> None:
    deadline = time.monotonic() + START_S
    command = [sys.executable, "-c", "import ray; ray.init(); print(sum(one['Alive'] for one in ray.nodes()))"]
    while True:
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if asked.stdout.strip().endswith(str(count)):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {count} nodes:\n{asked.stdout}\n{asked.stderr}")
