import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.ray_servers import Cluster

SLEEPER = "sleep 91.625"


def cluster_in(folder: Path) -> Cluster:
    """A cluster that is nothing but its folder."""
    return Cluster(address="", dashboard="", environment={}, log=folder / "head.log")


@pytest.fixture
def head(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process with the folder in its command line, and a child of it."""
    with subprocess.Popen(["sh", "-c", f"{SLEEPER} & wait # {tmp_path}"]) as process:
        yield process
        process.kill()


def test_workers_are_found_by_title_below_their_own_cluster_and_can_be_killed_once(tmp_path, head) -> None:
    ours = cluster_in(tmp_path)
    deadline = time.monotonic() + 30
    while not (found := ours.workers(SLEEPER)):
        assert time.monotonic() < deadline
    assert [process.ppid() for process in found] == [head.pid]
    assert cluster_in(tmp_path / "another").workers(SLEEPER) == []
    assert ours.kill(SLEEPER)
    head.wait(30)
    assert not ours.kill(SLEEPER)


class Fake:
    """A process as `psutil` shows it; where an error stands in place of a value, looking raises it."""

    def __init__(self, title: object, parent: object = None, kill: object = None) -> None:
        self.title, self.above, self.end = title, parent, kill

    def cmdline(self) -> list[str]:
        return str(shown(self.title)).split()

    def parent(self) -> object:
        return shown(self.above)

    def kill(self) -> None:
        shown(self.end)


def shown(value: object) -> object:
    if isinstance(value, psutil.Error):
        raise value
    return value


ERRORS = [psutil.NoSuchProcess(1), psutil.ZombieProcess(1), psutil.AccessDenied(1)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_process_that_ends_or_is_closed_to_us_while_it_is_looked_at_costs_no_other(tmp_path, monkeypatch, error):
    top = Fake(f"raylet {tmp_path}/t")
    below_one_that_cannot_be_seen = Fake("ray::Worker", parent=Fake(error, parent=top))
    ours = [Fake("ray::Worker", parent=top), below_one_that_cannot_be_seen]
    parent_known = Fake("ray::Worker", parent=Fake(f"raylet {tmp_path}/t", parent=error))
    gone = [Fake(error, parent=top), Fake("ray::Worker", parent=error)]
    monkeypatch.setattr(psutil, "process_iter", lambda: iter([*gone, *ours, parent_known, Fake("ray::Worker")]))
    assert cluster_in(tmp_path).workers("ray::Worker") == [*ours, parent_known]


def test_the_next_worker_is_killed_when_the_first_has_ended_by_itself(tmp_path, monkeypatch) -> None:
    top = Fake(f"raylet {tmp_path}/t")
    ended = Fake("ray::Worker", parent=top, kill=psutil.NoSuchProcess(1))
    monkeypatch.setattr(psutil, "process_iter", lambda: iter([ended, Fake("ray::Worker", parent=top)]))
    assert cluster_in(tmp_path).kill("ray::Worker")
    monkeypatch.setattr(psutil, "process_iter", lambda: iter([ended]))
    assert not cluster_in(tmp_path).kill("ray::Worker")
