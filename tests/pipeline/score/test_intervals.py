import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.score.intervals import METRICS, by_group, difference, estimate
from pipeline.score.metrics import Interval, Scores, bootstrap
from tests.support.evaluations import K, counts

TABLES = counts(12, recall=0.8, network=0)
KEYS = [f"drive_{index // 5}/{index}.png" for index in range(12)]


def test_every_score_agrees_with_a_bootstrap_of_its_own():
    found = estimate(TABLES, samples=50, seed=3)
    for name in METRICS:
        assert found.metrics[name] == bootstrap(TABLES, lambda one, name=name: getattr(one, name), samples=50, seed=3)
    for index in range(K):
        assert found.iou[index] == bootstrap(TABLES, lambda one, at=index: one.iou[..., at], samples=50, seed=3)


def test_without_images_nothing_is_known():
    found = estimate(TABLES[:0])
    assert len(found.iou) == K
    assert all(np.isnan(one.value) for one in (*found.iou, *found.metrics.values()))


@pytest.mark.parametrize("pattern", [r"^(drive_\d)/", r"^drive_\d"])
def test_groups_are_sums_of_their_images(pattern):
    groups = by_group(TABLES, KEYS, pattern)
    assert np.array_equal(groups, [TABLES[:5].sum(0), TABLES[5:10].sum(0), TABLES[10:].sum(0)])


def test_images_outside_every_group_stand_alone():
    assert len(by_group(TABLES, KEYS, "nothing like it")) == 12
    assert by_group(TABLES, KEYS, None) is TABLES


@pytest.mark.parametrize(("pattern", "groups"), [("(nothing)?", 12), ("^(drive_0)?", 8)])
def test_images_whose_match_leaves_the_group_out_stand_alone(pattern, groups):
    summed = by_group(TABLES, KEYS, pattern)
    assert len(summed) == groups
    assert np.array_equal(summed[-1], TABLES[-1])


def test_frames_that_repeat_each_other_do_not_make_a_score_surer():
    repeated, keys = np.repeat(TABLES, 20, axis=0), [f"{index // 20}-{index}" for index in range(240)]
    alone, grouped = (estimate(by_group(repeated, keys, group)).metrics["mean_iou"] for group in (None, r"^(\d+)-"))
    truly = estimate(TABLES).metrics["mean_iou"]
    assert grouped == truly
    assert alone.high - alone.low < 0.5 * (truly.high - truly.low)


edges = st.tuples(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1)).map(
    lambda t: Interval(t[0], t[0] - t[1], t[0] + t[2])
)


@given(edges, edges)
def test_a_difference_turns_around_with_its_sides(one, other):
    there, back = difference(one, other), difference(other, one)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.low <= there.value <= there.high


@given(edges, edges)
def test_a_difference_is_as_unsure_as_either_side_and_no_more_than_both(one, other):
    width = difference(one, other).high - difference(one, other).low
    sides = one.high - one.low, other.high - other.low
    assert max(sides) / 2 - 1e-9 <= width <= sum(sides) + 1e-9


def test_a_symmetric_difference_adds_variances():
    assert difference(Interval(0.5, 0.2, 0.8), Interval(0.1, -0.3, 0.5)) == Interval(
        0.4, pytest.approx(-0.1), pytest.approx(0.9)
    )


def test_a_paired_difference_is_surer_than_one_of_two_estimates():
    worse = counts(60, recall=0.78, network=1)
    better = counts(60, recall=0.8, network=2)
    paired = estimate(worse, against_nkk=better).metrics["mean_iou"]
    apart = estimate(worse).minus(estimate(better)).metrics["mean_iou"]
    assert paired.value == pytest.approx(apart.value)
    assert paired.high - paired.low < 0.7 * (apart.high - apart.low)
    assert paired.value == pytest.approx(Scores(worse.sum(0)).mean_iou - Scores(better.sum(0)).mean_iou)
