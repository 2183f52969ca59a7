import math

import numpy as np
import pytest

from pipeline.training import lr_finder


def valley(steepest: float, *, diverges: float = math.inf):
    """A loss that falls like a logistic curve over the logarithm of the rate, and explodes beyond a rate."""

    def step(lr: float) -> float:
        if lr > diverges:
            return 1e6
        return 1 + 2 / (1 + (lr / steepest) ** 2)

    return step


@pytest.mark.parametrize("steepest", [1e-4, 1e-3, 1e-2])
def test_the_suggestion_is_where_the_loss_fell_fastest(steepest):
    found = lr_finder.lr_sweep(valley(steepest), steps=2000)
    assert found.suggested == pytest.approx(steepest, rel=0.5), "the moving mean comes a little late"


def test_rates_grow_by_one_factor_from_the_lowest_to_the_highest():
    seen = []
    lr_finder.lr_sweep(lambda lr: seen.append(lr) or 1.0, lowest=1e-5, highest=1e-1, steps=41)
    assert (seen[0], seen[-1]) == (1e-5, pytest.approx(1e-1))
    np.testing.assert_allclose(np.diff(np.log(seen)), np.log(1e4) / 40)


@pytest.mark.parametrize("end", [1e9, math.inf, math.nan])
def test_a_loss_that_diverges_ends_the_search(end):
    seen = []

    def step(lr: float) -> float:
        seen.append(lr)
        return end if lr > 0.01 else 3 - 50 * lr

    found = lr_finder.lr_sweep(step, steps=100)
    assert sum(lr > 0.01 for lr in seen) == 1
    assert found.suggested < 0.02
    assert all(math.isfinite(one.loss) for one in found.points)


def test_the_mean_of_a_loss_that_does_not_change_is_that_loss():
    found = lr_finder.lr_sweep(lambda lr: 0.7, steps=50)
    assert [one.loss for one in found.points] == pytest.approx([0.7] * 50)


def test_a_loss_that_never_falls_suggests_the_lowest_rate():
    assert lr_finder.lr_sweep(lambda lr: 1 + lr, lowest=1e-5, highest=1e-2).suggested == 1e-5


def test_noise_does_not_move_the_suggestion_far():
    rng = np.random.default_rng(0)
    clean = valley(1e-3, diverges=0.3)
    found = lr_finder.lr_sweep(lambda lr: clean(lr) * rng.uniform(0.97, 1.03), steps=400)
    assert 1e-4 < found.suggested < 1e-2


@pytest.mark.parametrize(("lowest", "highest", "steps"), [(1, 1, 10), (0, 1, 10), (1e-3, 1, 1)])
def test_rates_that_cannot_grow_are_refused(lowest, highest, steps):
    with pytest.raises(ValueError, match=f"{steps} steps"):
        lr_finder.lr_sweep(lambda lr: 1.0, lowest=lowest, highest=highest, steps=steps)


def test_the_table_marks_the_suggestion():
    found = lr_finder.lr_sweep(valley(1e-3), steps=300)
    lines = found.table().splitlines()
    assert 20 <= len(lines) <= 25
    assert [f"{found.suggested:.2e}" in line for line in lines if "suggested" in line] == [True]
