from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run import progress
from pipeline.run.progress import Snapshot, bar, read_progress, short_duration, write_progress
from pipeline.store.url import Url

counts = st.dictionaries(st.sampled_from(["corrupt", "empty", "crashed"]), st.integers(1, 9))
snapshots = st.builds(
    Snapshot,
    time=st.just("2026-11-28T12:00:00Z"),
    phase=st.sampled_from([progress.STARTING, progress.WORKING, progress.CLOSING]),
    planned=st.none() | st.integers(0, 10**9),
    done=st.integers(0, 10**9),
    failed=counts,
    eta_s=st.none() | st.floats(0, 1e9),
    bottleneck=st.none() | st.just("refine"),
    stage_images=counts,
)


@given(snapshots)
def test_what_is_written_is_read_back(snapshot: Snapshot) -> None:
    run = Url("memory://progress")
    write_progress(run, snapshot)
    assert read_progress(run) == snapshot


@given(snapshots)
def test_every_snapshot_is_one_line(snapshot: Snapshot) -> None:
    assert "\n" not in snapshot.line()


def test_the_line_has_the_bar_of_what_is_done_the_rate_the_time_left_failures_by_code_and_the_busiest_stage() -> None:
    snapshot = Snapshot(
        time="",
        phase=progress.WORKING,
        planned=100,
        done=50,
        committed=30,
        failed={"empty": 1, "corrupt": 2},
        images_per_s=4.04,
        eta_s=3725,
        bottleneck="refine",
        bottleneck_busy=0.952,
        worker_deaths=1,
    )
    assert snapshot.line() == (
        "[############------------] done 50/100 (committed 30), 4.0 images/s, ETA 1 h 02 min, "
        "3 failed: 2 corrupt, 1 empty, 1 suspect(s) of killing a worker, bottleneck refine 95%"
    )


def test_a_run_of_unknown_length_has_no_bar_and_no_time_left() -> None:
    line = Snapshot(time="", phase=progress.WORKING, done=25, images_per_s=1).line()
    assert line.startswith("done 25/? (committed 0)")
    assert "ETA" not in line


def test_the_phase_takes_the_place_of_the_bottleneck_while_nothing_is_worked_on() -> None:
    assert Snapshot(time="").line().endswith("starting")
    assert Snapshot(time="", phase=progress.CLOSING, bottleneck="refine").line().endswith("closing")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"time": ""', b'{"time": "", "of_a_later_version": 1}'])
def test_progress_that_cannot_be_read_is_none(content: bytes, tmp_path: Path) -> None:
    assert read_progress(Url(str(tmp_path))) is None
    (tmp_path / "_run").mkdir()
    (tmp_path / "_run/progress.json").write_bytes(content)
    assert read_progress(Url(str(tmp_path))) is None


def test_a_store_that_refuses_costs_a_warning_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "_run").write_text("a file where the folder should be")
    write_progress(Url(str(tmp_path)), Snapshot(time=""))
    assert "could not write the progress" in caplog.text


def test_the_bar_fills() -> None:
    assert bar(0) == "[" + "-" * 24 + "]"
    assert bar(0.5).count("#") == 12
    assert bar(2) == "[" + "#" * 24 + "]"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (245, "4 min 05 s"), (11_220, "3 h 07 min")],
)
def test_durations_have_two_units_at_most(seconds: float, said: str) -> None:
    assert short_duration(seconds) == said
