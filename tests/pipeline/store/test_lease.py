import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.errors import InputError, OwnedElsewhere, StorageError
from pipeline.store import lease as owner
from pipeline.store import objects
from pipeline.store.lease import Lease, Owner, latest_generation, latest_owner, owner_url, read_owner
from pipeline.store.url import Url

HOLD = """
import sys, time
from pipeline.store.lease import Lease
from pipeline.store.url import Url
with Lease(Url(sys.argv[1]), lease_s=float(sys.argv[2]), command="holder"):
    print("held", flush=True)
    time.sleep(60)
"""


ENTER = """
import sys
from pipeline.store.lease import Lease
from pipeline.store.url import Url
Lease(Url(sys.argv[1]), lease_s=60.0, command="ends").__enter__()
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


def test_a_released_run_is_taken_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("there is nobody to wait for"))
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


# ---------------------------------------------------------------- records of other drivers


def record(run: Path, generation: int = 1, **fields: object) -> Owner:
    """Put the record of a driver on another machine, which writes no more."""
    other = {"token": "other", "host": "elsewhere", "boot_id": "b", "pid": 7, "since": "yesterday", "command": "job"}
    driver = Owner.model_validate(other | fields)
    objects.put(owner_url(Url(str(run)) / "_run", generation), driver.model_dump_json().encode())
    return driver


def ended_pid() -> int:
    """Process id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def seconds_to_take(run: Path, lease_s: float) -> float:
    started = time.monotonic()
    with Lease(Url(str(run)), lease_s=lease_s, command="second"):
        return time.monotonic() - started


def test_the_latest_driver_is_that_of_the_highest_generation(tmp_path: Path) -> None:
    assert latest_owner(Url(str(tmp_path))) is None
    for generation in (2, 123456, 31):  # not in order
        record(tmp_path, generation, pid=generation)
    (tmp_path / "_run/progress-999999.json").write_text("{}")
    assert latest_generation(Url(str(tmp_path)) / "_run") == 123456
    assert latest_owner(Url(str(tmp_path))).pid == 123456


def test_the_highest_generation_is_found_in_whatever_order_a_store_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for generation in (1, 12, 3):
        record(tmp_path, generation)
    listed = sorted(objects.list_files(Url(str(tmp_path)) / "_run"), key=lambda file: file.path)
    for order in (listed, listed[::-1], [listed[2], *listed[:2]], [listed[0], listed[2], listed[1]]):
        monkeypatch.setattr(objects, "list_files", lambda _, order=order: iter(order))
        assert latest_generation(Url(str(tmp_path)) / "_run") == 12


def test_a_folder_without_a_lease_has_generation_0(tmp_path: Path) -> None:
    (tmp_path / "_run").mkdir()
    (tmp_path / "_run/progress.json").write_text("{}")
    assert latest_generation(Url(str(tmp_path)) / "_run") == 0


def test_a_record_of_more_than_64_kib_is_not_read(tmp_path: Path) -> None:
    record(tmp_path, command="x" * (1 << 16))
    with pytest.raises(InputError, match="too_many_bytes"):
        read_owner(Url(str(tmp_path)) / "_run", 1)


def test_a_record_says_who_since_when_in_utc_and_for_how_long(tmp_path: Path) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    with Lease(Url(str(tmp_path)), lease_s=12.5, command="mine"):
        held = latest_owner(Url(str(tmp_path)))
    assert before <= datetime.fromisoformat(held.since) <= datetime.now(UTC)
    assert held.since.endswith("Z")
    assert (held.lease_s, held.beat, held.released) == (12.5, 0, False)
    assert (held.host, held.pid, held.boot_id) == (socket.gethostname(), os.getpid(), owner._boot_id())
    assert latest_owner(Url(str(tmp_path))).released


def test_no_two_leases_have_the_same_token(tmp_path: Path) -> None:
    assert len({Lease(Url(str(tmp_path)), lease_s=1, command="").me.token for _ in range(10)}) == 10


HERE = {"host": socket.gethostname(), "boot_id": owner._boot_id()}


@pytest.mark.parametrize("difference", [{"host": "elsewhere"}, {"boot_id": "before the restart"}, {"boot_id": ""}])
def test_an_ended_process_is_known_to_be_dead_on_this_boot_of_this_machine_alone(
    tmp_path: Path, difference: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pid = ended_pid()
    record(tmp_path / "here", pid=pid, **HERE)
    assert seconds_to_take(tmp_path / "here", 60.0) < 10
    assert caplog.text == ""
    record(tmp_path / "there", **({"pid": pid} | HERE | difference))
    assert seconds_to_take(tmp_path / "there", 0.2) >= 0.2
    assert f"pid {pid}" in caplog.messages[0]
    assert "0.2 s" in caplog.messages[0]
    assert "took over" in caplog.messages[1]
    assert f"pid {pid}" in caplog.messages[1]
    assert "0.2 s" in caplog.messages[1]


def test_where_boots_cannot_be_told_apart_a_process_is_never_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object, **__: object) -> str:
        raise FileNotFoundError("/proc")

    monkeypatch.setattr(Path, "read_text", unreadable)
    holder = Lease(Url(str(tmp_path)), lease_s=0.2, command="holder").me
    record(tmp_path, **holder.model_dump() | {"pid": ended_pid()})
    assert seconds_to_take(tmp_path, 0.2) >= 0.2


def test_a_process_that_lives_here_is_waited_for(tmp_path: Path) -> None:
    record(tmp_path, pid=os.getpid(), **HERE)
    assert seconds_to_take(tmp_path, 0.2) >= 0.2


def test_a_run_released_while_it_is_watched_is_taken_before_the_lease_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = []

    def release(seconds: float) -> None:
        slept.append(seconds)
        record(tmp_path, released=True)

    record(tmp_path)
    monkeypatch.setattr(time, "sleep", release)
    assert seconds_to_take(tmp_path, 60.0) < 10
    assert slept == [60.0 / owner.BEATS_PER_LEASE / 2]  # twice as often as the holder beats


def test_one_beat_is_enough_to_be_refused_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, beat=41)
    monkeypatch.setattr(time, "sleep", lambda _: record(tmp_path, beat=42))
    with pytest.raises(OwnedElsewhere, match=r"live driver: elsewhere pid 7 since yesterday \(job\)") as refused:
        Lease(Url(str(tmp_path)), lease_s=60.0, command="second").__enter__()
    assert "wait until it has finished" in refused.value.hint
    assert latest_generation(Url(str(tmp_path)) / "_run") == 1


def test_the_loser_of_a_race_names_the_winner_and_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(url: Url, data: bytes) -> bool:
        record(tmp_path, pid=99)
        return False

    monkeypatch.setattr(objects, "put_if_absent", overtaken)
    with pytest.raises(OwnedElsewhere, match="just took this run: elsewhere pid 99") as refused:
        Lease(Url(str(tmp_path)), lease_s=60.0, command="second").__enter__()
    assert "wait until it has finished" in refused.value.hint


# ---------------------------------------------------------------- holding and losing


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where a shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait_for(condition: Callable[[], bool], *, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


def hold_until_interrupted(run: Path, during: Callable[[], object]) -> None:
    with Lease(Url(str(run)), lease_s=0.12, command="mine"):
        during()
        wait_for(lambda: False, what="the lease interrupts")


def test_the_beats_of_a_holder_grow_by_one_until_it_releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, beats = objects.put, []

    def watched(url: Url, data: bytes) -> None:
        beats.append(Owner.model_validate_json(data))
        put(url, data)

    monkeypatch.setattr(objects, "put", watched)
    with Lease(Url(str(tmp_path)), lease_s=0.12, command="mine"):
        wait_for(lambda: len(beats) >= 3, what="three beats are written")
        assert "lease" in {thread.name for thread in threading.enumerate()}  # as a dump of a driver's threads shows it
    assert [one.beat for one in beats[:3]] == [1, 2, 3]
    assert [one.released for one in beats] == [False] * (len(beats) - 1) + [True]
    assert latest_owner(Url(str(tmp_path))) == beats[-1]
    assert latest_generation(Url(str(tmp_path)) / "_run") == 1


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("generation", [1, 2])
def test_a_driver_whose_run_is_taken_is_interrupted_and_names_the_new_one(
    tmp_path: Path, generation: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In the next generation, or in its own after the records were deleted."""
    with pytest.raises(OwnedElsewhere, match=r"taken over by elsewhere pid 99 since yesterday \(job\)") as lost:
        hold_until_interrupted(tmp_path, lambda: record(tmp_path, generation, pid=99))
    assert "follow its log" in lost.value.hint
    assert isinstance(lost.value.__cause__, KeyboardInterrupt)
    assert "taken over by elsewhere pid 99" in caplog.text
    assert read_owner(Url(str(tmp_path)) / "_run", generation).pid == 99  # the loser leaves the record as it is


@pytest.mark.usefixtures("interruptible")
def test_a_driver_that_a_shell_started_in_the_background_is_ended_by_sigterm(tmp_path: Path) -> None:
    class Ended(Exception):
        pass

    def end(*_: object) -> None:
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(OwnedElsewhere) as lost:
            hold_until_interrupted(tmp_path, lambda: record(tmp_path, 2))
        assert isinstance(lost.value.__cause__, Ended)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("interruptible")
def test_a_driver_whose_record_is_gone_is_interrupted(tmp_path: Path) -> None:
    def clean_away() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:  # a beat that is under way puts it back
            (tmp_path / "_run/owner-000001.json").unlink(missing_ok=True)

    with pytest.raises(OwnedElsewhere, match="another driver, whose lease was deleted"):
        hold_until_interrupted(tmp_path, clean_away)


def test_a_process_that_ends_without_leaving_its_lease_is_not_kept_alive_by_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", ENTER, str(tmp_path)], timeout=20, check=True)
    assert not latest_owner(Url(str(tmp_path))).released


def test_a_store_that_fails_for_a_beat_loses_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put, calls = objects.put, []

    def fails_once(url: Url, data: bytes) -> None:
        calls.append(data)
        if len(calls) == 1:
            raise StorageError("503 slow down")
        put(url, data)

    monkeypatch.setattr(objects, "put", fails_once)
    with Lease(Url(str(tmp_path)), lease_s=0.12, command="mine"):
        wait_for(lambda: len(calls) >= 3, what="the beats go on")
    assert "could not renew the lease" in caplog.text
    assert "503 slow down" in caplog.text
    assert latest_owner(Url(str(tmp_path))).released
