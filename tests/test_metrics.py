import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.boundary import boundary_distance, trimap
from pipeline.metrics import Scores, bootstrap, bootstrap_each, confusion, resampled

K = 4
values = st.sampled_from([0, 1, 2, 3, 255])
maps = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=values)
pairs = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(arrays(np.uint8, shape, elements=values), arrays(np.uint8, shape, elements=values))
)


def counted(truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """The definition, pixel by pixel."""
    counts = np.zeros((K, K + 1), np.int64)
    for true, said in zip(truth.ravel(), answer.ravel(), strict=True):
        if true != 255:
            counts[true, K if said == 255 else said] += 1
    return counts


@given(pairs)
def test_counts_are_those_of_a_loop_over_pixels(pair) -> None:
    np.testing.assert_array_equal(confusion(*pair, K), counted(*pair))


@given(pairs, st.integers(0, 8))
def test_counts_of_parts_add_up_to_those_of_the_whole(pair, row: int) -> None:
    truth, answer = pair
    parts = confusion(truth[:row], answer[:row], K) + confusion(truth[row:], answer[row:], K)
    np.testing.assert_array_equal(parts, confusion(truth, answer, K))
    there = np.arange(truth.size).reshape(truth.shape) % 3 == 0
    parts = confusion(truth, answer, K, where=there) + confusion(truth, answer, K, where=~there)
    np.testing.assert_array_equal(parts, confusion(truth, answer, K))


@given(pairs)
def test_each_score_is_its_definition_by_sets(pair) -> None:
    truth, answer = (one[pair[0] != 255] for one in pair)
    scores = Scores(confusion(*pair, K))
    for k in range(K):
        both, either = ((truth == k) & (answer == k)).sum(), ((truth == k) | (answer == k)).sum()
        expected = [both / either if either else np.nan]
        expected += [both / (truth == k).sum() if (truth == k).any() else np.nan]
        expected += [both / (answer == k).sum() if (answer == k).any() else np.nan]
        expected += [2 * both / ((truth == k).sum() + (answer == k).sum()) if either else np.nan]
        found = [scores.iou[k], scores.recall[k], scores.precision[k], scores.dice[k]]
        np.testing.assert_allclose(found, expected)
    if truth.size:
        assert scores.pixel_accuracy == pytest.approx((truth == answer).mean())
        assert scores.mean_iou == pytest.approx(np.nanmean(scores.iou))
        shares = [(truth == k).mean() for k in range(K)]
        assert scores.frequency_weighted_iou == pytest.approx(np.nansum(shares * scores.iou))
    else:
        assert np.isnan(scores.pixel_accuracy)


@given(pairs)
def test_iou_is_symmetric_where_every_pixel_has_both(pair) -> None:
    truth, answer = (np.where(one == 255, 0, one).astype(np.uint8) for one in pair)
    np.testing.assert_array_equal(Scores(confusion(truth, answer, K)).iou, Scores(confusion(answer, truth, K)).iou)


@given(maps)
def test_the_truth_scores_1_against_itself(truth: np.ndarray) -> None:
    scores = Scores(confusion(truth, truth, K))
    assert set(scores.iou[scores.support > 0]) <= {1.0}
    assert np.isnan(scores.iou[scores.support == 0]).all()


def test_no_answer_is_a_wrong_answer() -> None:
    scores = Scores(confusion(np.array([[0, 0]], np.uint8), np.array([[0, 255]], np.uint8), 2))
    assert scores.iou[0] == scores.pixel_accuracy == 0.5


def test_a_class_nobody_drew_but_that_was_answered_scores_0() -> None:
    scores = Scores(confusion(np.array([[0, 0]], np.uint8), np.array([[0, 1]], np.uint8), 3))
    assert scores.iou.tolist()[:2] == [0.5, 0.0]
    assert np.isnan(scores.iou[2])
    assert scores.mean_iou == 0.25


@pytest.mark.parametrize(
    ("truth", "answer", "says"),
    [
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), r"\(2, 2\), the mask \(2, 3\)"),
        (np.full((2, 2), 7, np.uint8), np.zeros((2, 2), np.uint8), "labels hold the value 7, but there are 4 classes"),
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 9, np.uint8), "masks hold the value 9"),
    ],
)
def test_what_cannot_be_counted_is_named(truth: np.ndarray, answer: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        confusion(truth, answer, K)


def slow_distance(truth: np.ndarray) -> np.ndarray:
    height, width = truth.shape
    edges = [
        (y, x)
        for y in range(height)
        for x in range(width)
        for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1))
        if 0 <= v < height and 0 <= u < width and truth[v, u] != truth[y, x]
    ]
    found = np.full(truth.shape, np.inf)
    for y in range(height):
        for x in range(width):
            found[y, x] = min((np.hypot(y - v, x - u) for v, u in edges), default=np.inf)
    return found


@settings(max_examples=50)
@given(maps)
def test_distances_to_boundaries_are_those_of_a_search(truth: np.ndarray) -> None:
    np.testing.assert_allclose(boundary_distance(truth), slow_distance(truth), rtol=1e-6)


@given(maps)
def test_a_wider_band_holds_a_narrower_one(truth: np.ndarray) -> None:
    bands = [trimap(truth, width) for width in (0, 1, 2, 5, 100)]
    assert not bands[0].any()
    for narrow, wide in itertools.pairwise(bands):
        assert (wide >= narrow).all()
    assert bands[-1].all() == (len(np.unique(truth)) > 1)


def test_resampling_draws_as_many_images_as_there_are() -> None:
    weights = resampled(7, samples=50, seed=3)
    assert (weights.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(weights, resampled(7, samples=50, seed=3))


def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """100 collections of 40 images whose pixels are right with a chance of 0.7."""
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        right = rng.binomial(100, rng.beta(7, 3, size=40))
        counts = np.zeros((40, 1, 2), np.int64)
        counts[:, 0, 0], counts[:, 0, 1] = right, 100 - right
        found = bootstrap(counts, lambda scores: scores.pixel_accuracy, samples=300, seed=seed)
        inside += found.low <= 0.7 <= found.high
    assert 85 <= inside <= 100


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    rng = np.random.default_rng(1)
    right = rng.integers(20, 90, 60)
    counts, better = np.zeros((2, 60, 1, 2), np.int64)
    counts[:, 0, 0], counts[:, 0, 1] = right, 100 - right
    better[:, 0, 0], better[:, 0, 1] = right + 2, 98 - right
    alone = bootstrap(better, lambda scores: scores.pixel_accuracy)
    paired = bootstrap(better, lambda scores: scores.pixel_accuracy, against_nkk=counts)
    assert paired.value == pytest.approx(0.02)
    assert paired.high - paired.low < 0.01 < alone.high - alone.low


def test_several_scores_at_once_are_what_each_is_alone() -> None:
    rng = np.random.default_rng(2)
    counts, against = rng.integers(0, 50, (2, 12, 3, 4))
    counts[:, 2], counts[:, :, 2] = 0, 0  # a class that neither has
    against[:, 2], against[:, :, 2] = 0, 0
    together = bootstrap_each(counts, lambda scores: scores.iou, against_nkk=against, seed=5)
    for k in range(2):
        alone = bootstrap(counts, lambda scores, k=k: scores.iou[..., k], against_nkk=against, seed=5)
        assert together[k] == alone
    assert np.isnan([together[2].value, together[2].low, together[2].high]).all()
