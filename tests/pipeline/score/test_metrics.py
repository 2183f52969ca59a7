from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.functional import classification

from pipeline.records import Judgement
from pipeline.score.boundary import boundary_iou, boundary_rings
from pipeline.score.calibration import expected_calibration_error
from pipeline.score.metrics import (
    Scores,
    bootstrap,
    bootstrap_each,
    bootstrap_weights,
    confusion,
    count_judgement,
    weights_without,
    with_band,
    within_bands,
)
from tests.support.examples import examples

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


# ---------------------------------------------------------------- other people's libraries


def labelled(pair: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that have a label, where each has an answer: sklearn and torchmetrics know no missing ones."""
    truth, answer = pair
    answer = np.where(answer == 255, 0, answer)
    return truth[truth != 255], answer[truth != 255]


answered = pairs.map(lambda pair: (pair[0], np.where(pair[1] == 255, 0, pair[1]).astype(np.uint8)))


@examples(25)
@given(answered.filter(lambda pair: (pair[0] != 255).any()))
def test_scores_are_those_of_scikit_learn(pair) -> None:
    truth, answer = labelled(pair)
    counts = confusion(*pair, K)
    np.testing.assert_array_equal(counts[:, :K], sklearn.metrics.confusion_matrix(truth, answer, labels=range(K)))
    for absent, other in (("zero", 0), ("one", 1)):
        scores = Scores(counts, absent=absent)
        precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
            truth, answer, labels=range(K), zero_division=other
        )
        np.testing.assert_allclose([scores.precision, scores.recall, scores.dice], [precision, recall, f1])
        np.testing.assert_array_equal(scores.support, support)
        iou = sklearn.metrics.jaccard_score(truth, answer, labels=range(K), average=None, zero_division=other)
        np.testing.assert_allclose(scores.iou, iou)
    assert scores.pixel_accuracy == pytest.approx(sklearn.metrics.accuracy_score(truth, answer))
    weighted = sklearn.metrics.jaccard_score(truth, answer, labels=range(K), average="weighted", zero_division=0)
    assert scores.frequency_weighted_iou == pytest.approx(weighted)
    assert Scores(counts, weights=scores.support / 1).mean_iou == pytest.approx(weighted)


@examples(25)
@given(answered.filter(lambda pair: (pair[0] != 255).any()))
def test_scores_are_those_of_torchmetrics(pair) -> None:
    truth, answer = (torch.from_numpy(one.astype(np.int64)) for one in pair)
    asked = {"num_classes": K, "ignore_index": 255}
    scores = Scores(confusion(*pair, K), absent="zero")
    matrix = classification.multiclass_confusion_matrix(answer, truth, **asked)
    np.testing.assert_array_equal(scores.counts[:, :K], matrix)
    for found, theirs in (
        (scores.iou, classification.multiclass_jaccard_index),
        (scores.precision, classification.multiclass_precision),
        (scores.recall, classification.multiclass_recall),
        (scores.dice, classification.multiclass_f1_score),
    ):
        np.testing.assert_allclose(found, theirs(answer, truth, average="none", **asked), rtol=1e-6)
    micro = classification.multiclass_accuracy(answer, truth, average="micro", **asked)
    assert scores.pixel_accuracy == pytest.approx(float(micro))
    skipped = Scores(scores.counts)  # torchmetrics leaves classes in neither out of its macro F1
    macro = classification.multiclass_f1_score(answer, truth, average="macro", **asked)
    assert skipped.mean_dice == pytest.approx(float(macro))


# ---------------------------------------------------------------- rules


def test_each_rule_for_absent_classes_is_what_it_says() -> None:
    """Class 0 is right, 1 is labelled and never answered, 2 is answered and not labelled, 3 is in neither."""
    truth, answer = np.array([[0, 0, 0, 1]], np.uint8), np.array([[0, 0, 2, 0]], np.uint8)
    counts = confusion(truth, answer, 4)
    for absent, only_answered, neither in (
        ("skip", 0, np.nan),
        ("unlabelled", np.nan, np.nan),
        ("zero", 0, 0),
        ("one", 0, 1),
    ):
        scores = Scores(counts, absent=absent)
        np.testing.assert_array_equal(scores.iou, [0.5, 0, only_answered, neither])
        assert scores.mean_iou == np.nanmean(scores.iou)


@given(pairs)
def test_without_background_means_are_over_the_other_classes(pair) -> None:
    whole = Scores(confusion(*pair, K))
    scores = replace(whole, weights=weights_without(K, 0))
    for mean, each in (
        (scores.mean_iou, whole.iou),
        (scores.mean_accuracy, whole.recall),
        (scores.mean_dice, whole.dice),
    ):
        there = each[1:][~np.isnan(each[1:])]
        np.testing.assert_allclose(mean, there.mean() if there.size else np.nan)
    foreground = np.isin(pair[0], [1, 2, 3])
    expected = (pair[0] == pair[1])[foreground].mean() if foreground.any() else np.nan
    np.testing.assert_allclose(scores.pixel_accuracy, expected)


@given(pairs)
def test_bands_are_the_counts_within_trimaps_and_can_be_left_out_or_weighted(pair) -> None:
    counts, bands = within_bands(*pair, K, (1, 2, 4))
    np.testing.assert_array_equal(counts, confusion(*pair, K))
    for band, width in zip(bands, (1, 2, 4), strict=True):
        near = boundary_rings(pair[0], [width]) == 0
        np.testing.assert_array_equal(band, confusion(*pair, K, where=near))
        np.testing.assert_array_equal(with_band(counts, band, 0), confusion(*pair, K, where=~near))
        np.testing.assert_array_equal(with_band(counts, band, 1), counts)
        half = Scores(with_band(counts, band, 0.5)).support
        np.testing.assert_allclose(half, Scores(counts).support - Scores(band).support / 2)


# ---------------------------------------------------------------- judgements


def judged(truth: np.ndarray, mask: np.ndarray) -> Judgement:
    return count_judgement(
        truth, mask, (truth * 7 + 90).astype(np.uint8), K, name="network", widths_px=(1, 3), boundary_px=1
    )


@given(pairs)
def test_a_judgement_holds_one_image_counted_in_every_way(pair) -> None:
    found = judged(*pair)
    pixels = (pair[0] != 255).sum()
    assert found.counts.sum() == found.reliability[:, 1].sum() == pixels
    assert Scores(found.counts).hits.sum() == found.reliability[:, 0].sum()
    assert (found.bands <= found.counts).all()
    assert (found.boundary[:, 0] <= Scores(found.counts).support).all()
    assert all(array.dtype == np.int64 for array in found.arrays)


@given(pairs, pairs)
def test_judgements_of_images_add_up(one, other) -> None:
    both = judged(*one) + judged(*other)
    for total, mine, theirs in zip(both.arrays, judged(*one).arrays, judged(*other).arrays, strict=True):
        np.testing.assert_array_equal(total, mine + theirs)
    assert both == judged(*other) + judged(*one)


def test_judgements_of_different_answers_do_not_add_up() -> None:
    found = judged(np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match="'network' and 'crf'"):
        found + replace(found, name="crf")


def test_a_perfect_answer_is_judged_perfect() -> None:
    truth = np.kron(np.arange(4).reshape(2, 2), np.ones((50, 50))).astype(np.uint8)
    found = count_judgement(truth, truth, np.full_like(truth, 255), K, name="network", widths_px=(2,))
    assert Scores(found.counts).mean_iou == Scores(found.bands[0]).mean_iou == boundary_iou(found.boundary).mean() == 1
    assert expected_calibration_error(found.reliability) == 0


# ---------------------------------------------------------------- intervals


def test_resampling_draws_as_many_images_as_there_are() -> None:
    weights = bootstrap_weights(7, samples=50, seed=3)
    assert (weights.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(weights, bootstrap_weights(7, samples=50, seed=3))


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


def right_of_100(right: np.ndarray) -> np.ndarray:
    """(N, 1, 2) counts of images of 100 pixels of one class."""
    return np.stack([right, 100 - right], axis=-1)[:, None].astype(np.int64)


@given(arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 100)), st.integers(0, 2**31))
def test_the_interval_of_a_single_draw_is_the_score_of_that_draw_and_the_images_as_they_are_are_none(
    right: np.ndarray, seed: int
) -> None:
    found = bootstrap(right_of_100(right), lambda scores: scores.pixel_accuracy, samples=1, seed=seed)
    (draw,) = bootstrap_weights(len(right), samples=1, seed=seed)
    assert found.value == pytest.approx(right.mean() / 100)
    assert found.low == found.high == pytest.approx(np.average(right, weights=draw) / 100)


@given(arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 100)), st.sampled_from([0.5, 0.9, 0.95]))
def test_an_interval_holds_the_share_of_the_draws_that_its_level_says(right: np.ndarray, level: float) -> None:
    found = bootstrap(right_of_100(right), lambda scores: scores.pixel_accuracy, samples=200, seed=7, level=level)
    draws = bootstrap_weights(len(right), samples=200, seed=7) @ right / (100 * len(right))
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]), abs=1e-12)


def test_intervals_take_1000_draws_of_seed_0_and_a_level_of_95_percent_unless_told_otherwise() -> None:
    counts = right_of_100(np.random.default_rng(0).integers(0, 100, 20))
    settings = {"samples": 1000, "seed": 0, "level": 0.95}
    assert bootstrap(counts, lambda scores: scores.pixel_accuracy) == bootstrap(
        counts, lambda scores: scores.pixel_accuracy, **settings
    )
    assert bootstrap_each(counts, lambda scores: scores.iou) == bootstrap_each(
        counts, lambda scores: scores.iou, **settings
    )


def test_counts_of_gigapixels_are_scored_to_the_last_pixel() -> None:
    """Sums are exact in float64 as far as 2^53."""
    right, wrong = 2**45 + 1, 2**45 - 1
    counts = np.array([[[right, wrong]], [[1, 0]]], np.int64)
    found = bootstrap(counts, lambda scores: scores.hits[..., 0], samples=100)
    assert found.value == right + 1


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
