import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.progress import TrainingProgress

AT = {"epoch": 1.5, "step": 20, "steps": 100, "loss": 0.5, "lr": 0.007}


def after(steps: int, *, images: int = 8, wait_s: float = 0.0) -> TrainingProgress:
    one = TrainingProgress(100.0)
    for _ in range(steps):
        one.step(images=images, wait_s=wait_s)
    return one


def test_the_line_for_people_says_everything_there_is() -> None:
    line = after(20, wait_s=0.05).line(110.0, **AT)
    assert line.human() == ("epoch 1.50, step 20/100, loss 0.5000, lr 0.007, 16.0 images/s, ETA 40 s, data wait 10%")


def test_the_line_for_machines_says_the_same() -> None:
    line = after(20, wait_s=0.05).line(110.0, **AT)
    assert json.loads(line.json()) == AT | {
        "images_per_s": 16.0,
        "data_wait": pytest.approx(0.1),
        "eta_s": 40.0,
    }


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.01, 100)), min_size=1, max_size=6))
def test_rates_are_of_the_last_interval_and_the_time_left_of_all(intervals: list[tuple[int, float]]) -> None:
    one, now, taken = TrainingProgress(0.0), 0.0, 0
    for steps, seconds in intervals:
        now, taken = now + seconds, taken + steps
        for _ in range(steps):
            one.step(images=4, wait_s=seconds / steps / 2)
        line = one.line(now, epoch=0, step=taken, steps=1000, loss=0, lr=0)
        assert line.images_per_s == pytest.approx(4 * steps / seconds)
        assert line.data_wait == pytest.approx(0.5)
        assert line.eta_s == pytest.approx((1000 - taken) * now / taken)


def test_a_pause_is_no_step_s_time() -> None:
    one = after(20)
    one.pause(90.0)
    line = one.line(200.0, **AT)
    assert (line.images_per_s, line.eta_s) == (16.0, 40.0)


def test_a_resumed_run_is_judged_by_the_steps_it_took_itself() -> None:
    one = after(20)
    assert one.line(110.0, **AT | {"step": 90}).eta_s == 5.0


def test_no_step_and_no_time_divide_nothing_by_zero() -> None:
    line = TrainingProgress(5.0).line(5.0, **AT)
    assert (line.images_per_s, line.data_wait) == (0.0, 0.0)
