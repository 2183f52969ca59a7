import time

import pytest

from infra.progress import Reporter
from pipeline.run.ledger import RunProgress
from pipeline.run.progress import CLOSING, STARTING, WORKING, Snapshot


def reporter(**fields) -> Reporter:
    settings = {"planned": 100, "already": 20, "slots": {"infer": 1, "refine": 2}, "every_s": 60} | fields
    return Reporter(RunProgress, **settings)


def at(reporting: Reporter, after_s: float, **counters) -> Snapshot:
    reporting.latest = RunProgress(**counters)
    return reporting.snapshot(reporting.started + after_s)


def test_a_snapshot_counts_what_earlier_drivers_did_and_measures_this_one() -> None:
    counters = {"done": {"refine": 40, "infer": 44}, "committed": 30, "failed": {"corrupt": 2}, "deaths": 1}
    snapshot = at(reporter(failed_before={"corrupt": 1, "empty": 3}), 10, **counters)
    assert (snapshot.done, snapshot.committed, snapshot.planned) == (60, 50, 100)
    assert (snapshot.images_per_s, snapshot.eta_s) == (pytest.approx(4), pytest.approx(10))
    assert snapshot.failed == {"corrupt": 3, "empty": 3}
    assert snapshot.stage_images == {"refine": 40, "infer": 44}
    assert snapshot.worker_deaths == 1


def test_the_bottleneck_is_that_of_the_last_interval() -> None:
    reporting = reporter()
    at(reporting, 10, done={"refine": 10}, seconds={"infer": 0, "refine": 20})
    snapshot = at(reporting, 20, done={"refine": 10}, seconds={"infer": 5, "refine": 20})
    assert (snapshot.bottleneck, snapshot.bottleneck_busy) == ("infer", 0.5)


def test_a_run_is_starting_until_its_first_image_and_never_again() -> None:
    reporting = reporter()
    assert at(reporting, 5).phase == STARTING
    counters = {"done": {"refine": 10}, "seconds": {"infer": 0.0, "refine": 19.0}}
    assert at(reporting, 10, **counters).phase == WORKING
    idle = at(reporting, 20, **counters)  # one image may take longer than an interval
    assert (idle.phase, idle.bottleneck, idle.bottleneck_busy) == (WORKING, "refine", pytest.approx(0.95))
    assert at(reporting, 30, done={"refine": 11}, seconds={"infer": 0.0, "refine": 39.0}).bottleneck_busy == 0.5


def test_the_rate_leaves_out_the_start_of_the_workers() -> None:
    reporting = reporter()
    assert at(reporting, 20, done={"refine": 2}).images_per_s == pytest.approx(0.1)  # nothing better is known yet
    snapshot = at(reporting, 30, done={"refine": 42})
    assert (snapshot.images_per_s, snapshot.eta_s) == (pytest.approx(4), pytest.approx((100 - 20 - 42) / 4))


def test_before_anything_is_done_nothing_is_divided_by_zero() -> None:
    assert at(reporter(planned=0, already=0), 0).eta_s is None


def test_a_run_of_unknown_length_has_no_time_left() -> None:
    assert at(reporter(planned=None), 10, done={"refine": 5}).eta_s is None


def test_another_stage_can_be_the_one_that_is_counted() -> None:
    reporting = reporter(counted="prepare", slots={"prepare": 2})
    snapshot = at(reporting, 10, done={"prepare": 40}, seconds={"prepare": 10})
    assert (snapshot.done, snapshot.bottleneck) == (60, "prepare")


def test_snapshots_are_published_while_the_run_lasts_and_the_last_one_says_that_it_closes() -> None:
    published: list[Snapshot] = []
    progress = RunProgress(done={"refine": 80}, seconds={"refine": 1.0})
    with Reporter(
        lambda: progress, planned=100, already=20, slots={"refine": 1}, every_s=0.01, publish=published.append
    ):
        deadline = time.monotonic() + 60
        while not published and time.monotonic() < deadline:
            time.sleep(0.01)
    assert {snapshot.phase for snapshot in published[:-1]} == {WORKING}
    assert (published[-1].phase, published[-1].done) == (CLOSING, 100)
