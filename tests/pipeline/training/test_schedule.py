import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.config import ScheduleConfig
from pipeline.training.schedule import lr_factor

KINDS = ("poly", "step", "cosine", "constant")
schedules = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(KINDS),
    steps=st.integers(1, 300),
    power=st.floats(0.5, 2),
    every=st.integers(1, 100),
    warmup=st.integers(0, 50),
    floor=st.floats(0, 0.5),
)


def factors(cfg: ScheduleConfig) -> np.ndarray:
    return np.array([lr_factor(step, cfg) for step in range(cfg.steps)])


@given(schedules)
def test_factors_lie_between_0_and_1(cfg: ScheduleConfig) -> None:
    assert ((factors(cfg) > 0) & (factors(cfg) <= 1)).all()


@given(schedules)
def test_behind_the_warmup_factors_never_rise_nor_go_below_the_floor(cfg: ScheduleConfig) -> None:
    fall = factors(cfg)[cfg.warmup :]
    assert (np.diff(fall) <= 1e-12).all()
    assert (fall >= cfg.floor - 1e-12).all()


@given(schedules)
def test_the_warmup_is_a_linear_rise_on_top_of_the_fall(cfg: ScheduleConfig) -> None:
    warm, cold = factors(cfg), factors(cfg.model_copy(update={"warmup": 0}))
    rise = np.minimum(1, np.arange(1, cfg.steps + 1) / (cfg.warmup + 1))
    np.testing.assert_allclose(warm, rise * cold)


@given(schedules)
def test_a_floor_is_a_blend_with_a_constant(cfg: ScheduleConfig) -> None:
    cfg = cfg.model_copy(update={"warmup": 0})
    bare = factors(cfg.model_copy(update={"floor": 0.0}))
    np.testing.assert_allclose(factors(cfg), (1 - cfg.floor) * bare + cfg.floor)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("poly", {0: 1, 50: 0.5**0.9, 99: 0.01**0.9, 100: 0}),
        ("cosine", {0: 1, 25: (1 + 0.5**0.5) / 2, 50: 0.5, 100: 0}),
        ("step", {0: 1, 19: 1, 20: 0.1, 39: 0.1, 40: 0.01}),
        ("constant", {0: 1, 99: 1}),
    ],
)
def test_falls_are_those_of_the_papers(kind: str, expected: dict[int, float]) -> None:
    cfg = ScheduleConfig(kind=kind, steps=100, every=20)
    assert {step: lr_factor(step, cfg) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_behind_the_end_the_factor_stays(kind: str) -> None:
    cfg = ScheduleConfig(kind=kind, steps=10, every=100, floor=0.125)
    assert lr_factor(11, cfg) == lr_factor(10, cfg) == pytest.approx(0.125 if kind in ("poly", "cosine") else 1)
