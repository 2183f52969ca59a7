import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import OwnedElsewhere
from pipeline.store import lease as owner
from pipeline.store import objects
from pipeline.store.lease import Lease
from pipeline.store.url import Url

HOLD = """
import sys, time
from pipeline.store.lease import Lease
from pipeline.store.url import Url
with Lease(Url(sys.argv[1]), lease_s=float(sys.argv[2]), command="holder"):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(url: str, lease_s: float) -> subprocess.Popen:
    """A driver in a process of its own that holds the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, url, str(lease_s)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process believe it is on another machine than the holder, so that only beats count."""
    monkeypatch.setattr(owner, "_boot_id", lambda: "another machine")


def test_a_released_run_is_taken_at_once(tmp_path: Path) -> None:
    for generation in (1, 2, 3):
        with Lease(Url(str(tmp_path)), lease_s=30, command="test") as lease:
            assert lease.generation == generation


@pytest.mark.usefixtures("elsewhere")
def test_a_live_driver_is_named_and_keeps_the_run(tmp_path: Path) -> None:
    holder = hold(str(tmp_path), 6.0)
    try:
        with pytest.raises(OwnedElsewhere, match=f"live driver.*pid {holder.pid}"):
            Lease(Url(str(tmp_path)), lease_s=6.0, command="second").__enter__()
        assert holder.poll() is None
    finally:
        holder.kill()


@pytest.mark.usefixtures("elsewhere")
def test_a_driver_that_fell_silent_is_taken_over_after_a_lease(tmp_path: Path) -> None:
    holder = hold(str(tmp_path), 0.6)
    holder.kill()
    holder.wait()
    started = time.monotonic()
    with Lease(Url(str(tmp_path)), lease_s=0.6, command="second") as lease:
        assert time.monotonic() - started >= 0.6
        assert lease.generation == 2


def test_a_driver_that_died_on_this_machine_is_taken_over_without_waiting(tmp_path: Path) -> None:
    holder = hold(str(tmp_path), 300.0)
    holder.kill()
    holder.wait()
    started = time.monotonic()
    with Lease(Url(str(tmp_path)), lease_s=300.0, command="second"):
        assert time.monotonic() - started < 5


@pytest.mark.usefixtures("elsewhere")
def test_a_driver_that_slept_through_its_lease_is_fenced_when_it_wakes(tmp_path: Path) -> None:
    holder = hold(str(tmp_path), 0.6)
    os.kill(holder.pid, signal.SIGSTOP)
    try:
        with Lease(Url(str(tmp_path)), lease_s=0.6, command="second"):
            os.kill(holder.pid, signal.SIGCONT)
            assert holder.wait(timeout=20) != 0
    finally:
        holder.kill()


@pytest.mark.usefixtures("elsewhere")
def test_a_driver_whose_generation_was_cleaned_away_is_fenced_too(tmp_path: Path) -> None:
    holder = hold(str(tmp_path), 0.6)
    deadline = time.monotonic() + 20
    try:
        while holder.poll() is None and time.monotonic() < deadline:  # a beat that is under way puts it back
            (tmp_path / "_run/owner-000001.json").unlink(missing_ok=True)
            time.sleep(0.02)
        assert holder.poll() not in (None, 0)
    finally:
        holder.kill()


def test_of_many_drivers_at_once_exactly_one_gets_the_run(tmp_path: Path) -> None:
    taken, refused = [], []
    barrier = threading.Barrier(20)

    def drive() -> None:
        lease = Lease(Url(str(tmp_path)), lease_s=2.0, command="racer")
        barrier.wait()
        try:
            lease.__enter__()
            taken.append(lease)
        except OwnedElsewhere as error:
            refused.append(str(error))

    threads = [threading.Thread(target=drive) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 19)
    taken[0].__exit__(None, None, None)


def test_the_owner_object_says_who_and_holds_no_environment(tmp_path: Path) -> None:
    with Lease(Url(str(tmp_path)), lease_s=30, command="python job.py"):
        said = json.loads(objects.read_bytes(Url(str(tmp_path / "_run/owner-000001.json"))))
    assert said["pid"] == os.getpid()
    assert said["command"] == "python job.py"
    assert set(said) == {"token", "host", "boot_id", "pid", "since", "command", "lease_s", "beat", "released"}
