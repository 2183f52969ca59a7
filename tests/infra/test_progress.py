from infra.progress import Reporter, bar
from pipeline.run.ledger import RunProgress


def reporter(**fields) -> Reporter:
    told = {"planned": 100, "already": 20, "slots": {"infer": 1, "refine": 2}, "every_s": 60} | fields
    return Reporter(RunProgress, **told)


def at(one: Reporter, after_s: float, **counters) -> str:
    one.latest = RunProgress(**counters)
    return one.line(one.started + after_s)


def test_the_line_says_committed_rate_time_left_and_the_busiest_stage() -> None:
    line = at(
        reporter(), 10, done={"refine": 40}, committed=30, failed={"corrupt": 2}, seconds={"infer": 4, "refine": 19}
    )
    assert "committed 50/100 (refined 60)" in line
    assert "4.0 images/s" in line
    assert "ETA 10 s" in line
    assert "2 failed" in line
    assert "bottleneck refine 95%" in line


def test_the_bottleneck_is_that_of_the_last_interval() -> None:
    one = reporter()
    at(one, 10, done={"refine": 10}, seconds={"infer": 0, "refine": 20})
    assert "bottleneck infer 50%" in at(one, 20, done={"refine": 10}, seconds={"infer": 5, "refine": 20})


def test_a_plan_of_unknown_length_has_no_bar_and_no_time_left() -> None:
    line = at(reporter(planned=None), 10, done={"refine": 5})
    assert line.startswith("committed 20/?")
    assert "ETA" not in line


def test_before_anything_is_done_nothing_is_divided_by_zero() -> None:
    assert "ETA ?" in at(reporter(planned=0, already=0), 0)


def test_the_bar_fills() -> None:
    assert bar(0) == "[" + "-" * 24 + "]"
    assert bar(0.5).count("#") == 12
    assert bar(2) == "[" + "#" * 24 + "]"


def test_another_stage_can_be_the_one_that_is_counted() -> None:
    line = at(reporter(counted="prepare", slots={"prepare": 2}), 10, done={"prepare": 40}, seconds={"prepare": 10})
    assert "(prepared 60)" in line
    assert "4.0 images/s" in line
    assert "bottleneck prepare 50%" in line
