import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import ConfigError, JobError, NothingThere
from pipeline.run import watch
from pipeline.run.progress import WORKING, Snapshot, write_progress
from pipeline.store import objects
from pipeline.store.lease import Lease
from pipeline.store.url import Url


@pytest.fixture
def run(tmp_path: Path) -> Url:
    return Url(str(tmp_path)) / "run=0123456789ab"


def finish(run: Url) -> None:
    objects.put(run / "_manifest.json", json.dumps({"run": "0123456789ab", "shards": 1}).encode())
    objects.put(run / "_SUCCESS", b"")


def test_a_run_is_followed_until_it_is_finished(run: Url) -> None:
    with Lease(run, lease_s=60, command="segment"):
        lines = watch.follow_run(run, every_s=0)
        assert next(lines) == "no progress yet"
        for done in (3, 7):
            write_progress(run, Snapshot(time="", phase=WORKING, planned=10, done=done))
            assert f"done {done}/10" in next(lines)
        finish(run)
        assert list(lines) == []


def test_the_end_of_a_driver_that_left_the_run_unfinished_is_an_error_that_names_it(run: Url) -> None:
    with pytest.raises(JobError, match="no driver has worked on this run"):
        next(watch.follow_run(run, every_s=0))
    with Lease(run, lease_s=60, command="segment --source s"):
        pass
    with pytest.raises(JobError, match=r"ended before the run was finished: .*segment --source s"):
        next(watch.follow_run(run, every_s=0))


@pytest.mark.parametrize("beats", [True, False])
def test_beats_keep_a_driver_alive_and_one_silent_for_its_lease_is_given_up(
    beats: bool, run: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    with Lease(run, lease_s=600, command="segment") as lease:

        def half_a_lease_passes(_: float) -> None:
            now[0] += 310
            if beats:
                lease.me = lease.me.model_copy(update={"beat": lease.me.beat + 1})
                objects.put(run / "_run/owner-000001.json", lease.me.model_dump_json().encode())

        monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=half_a_lease_passes))
        lines = watch.follow_run(run, every_s=310)
        assert [next(lines) for _ in range(2)] == ["no progress yet"] * 2
        if beats:
            assert [next(lines) for _ in range(3)] == ["no progress yet"] * 3
        else:
            with pytest.raises(JobError, match="no sign of life for 620 s"):
                next(lines)


def test_a_run_that_begins_later_is_waited_for(tmp_path: Path, run: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    with pytest.raises(NothingThere):
        watch.wait_for_runs(Url(str(tmp_path / "nowhere")), limit_s=0.05)
    (tmp_path / "notes.txt").write_text("no run")
    with pytest.raises(ConfigError, match="no run in"):
        watch.wait_for_runs(Url(str(tmp_path)), limit_s=0.05)
    threading.Timer(0.1, objects.put, (run / "_run/config.yaml", b"")).start()
    assert watch.wait_for_runs(Url(str(tmp_path)), limit_s=60) == [run]


def test_the_run_that_is_held_is_chosen_then_the_unfinished_one_and_of_several_none(tmp_path: Path, run: Url) -> None:
    other = Url(str(tmp_path)) / "run=aaaaaaaaaaaa"
    for url in (run, other):
        objects.put(url / "_run/config.yaml", b"")
    with pytest.raises(ConfigError, match="2 unfinished runs") as error:
        watch.wait_for_runs(Url(str(tmp_path)), limit_s=0)
    assert "run=aaaaaaaaaaaa" in str(error.value)
    with Lease(run, lease_s=60, command="segment"):
        assert watch.wait_for_runs(Url(str(tmp_path)), limit_s=0) == [run]
    finish(other)
    assert watch.wait_for_runs(Url(str(tmp_path)), limit_s=0) == [run]
    finish(run)
    assert len(watch.wait_for_runs(Url(str(tmp_path)), limit_s=0)) == 2
