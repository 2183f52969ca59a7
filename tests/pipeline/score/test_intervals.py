import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.score.intervals import METRICS, Estimates, by_group, difference, estimate
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
    assert tuple(found.metrics) == METRICS
    for one in (*found.iou, *found.metrics.values()):
        assert np.isnan([one.value, one.low, one.high]).all()


def test_unless_set_there_are_a_thousand_draws_of_seed_0_and_95_percent_of_them_inside():
    assert estimate(TABLES) == estimate(TABLES, samples=1000, seed=0, level=0.95)
    narrow, wide = (estimate(TABLES, level=level).metrics["mean_iou"] for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_difference_of_estimates_is_that_of_each_metric_and_each_class():
    one, other = estimate(TABLES, samples=50), estimate(counts(12, recall=0.6, network=1), samples=50)
    found = one.minus(other)
    assert found.metrics == {name: difference(one.metrics[name], other.metrics[name]) for name in METRICS}
    assert found.iou == [difference(mine, yours) for mine, yours in zip(one.iou, other.iou, strict=True)]


def test_estimates_of_another_number_of_classes_are_not_compared():
    one = estimate(TABLES, samples=50)
    for other in (Estimates(one.metrics, one.iou[1:]), Estimates(one.metrics, [*one.iou, one.iou[0]])):
        with pytest.raises(ValueError, match="argument 2 is"):
            one.minus(other)


def test_counts_of_groups_are_whole_numbers_beyond_what_a_double_holds():
    counts_nkk = np.array([[[2**53, 1]], [[1, 2]]])
    summed = by_group(counts_nkk, ["a1", "a2"], "a")
    assert summed.tolist() == [[[2**53 + 1, 3]]]
    assert summed.dtype == np.int64


def test_groups_keep_the_order_in_which_they_are_met():
    one = np.arange(4)[:, None, None]
    assert by_group(one, ["b/1", "a/1", "b/2", "c"], r"^(\w)/").ravel().tolist() == [2, 1, 3]


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


def test_each_side_of_a_difference_adds_what_can_lower_or_raise_it():
    """Downwards the lower half of the first and the upper half of the second: 3-4-5 and 5-12-13."""
    found = difference(Interval(10.0, 7.0, 22.0), Interval(1.0, -4.0, 5.0))
    assert found == Interval(9.0, pytest.approx(9 - 5), pytest.approx(9 + 13))


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
