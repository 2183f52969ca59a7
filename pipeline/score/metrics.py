"""Segmentation metrics: confusion counts of an image, and scores of any sum of counts.

In: labels and masks, (H, W) uint8 class ids. Out: int64 confusion counts, and from them every usual score. Counts of
images, shards and runs merge by addition, so a distributed evaluation equals that of a single process exactly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np

from pipeline.records import Bool, Float64, Int64, Judgement, UInt8
from pipeline.score.boundary import boundary_reach_px, boundary_rings, overlap
from pipeline.score.calibration import reliability
from pipeline.score.label_maps import index_of, joint_counts

Absent = Literal["skip", "unlabelled", "zero", "one"]
"""Score of a class whose denominator is 0; see `Scores`."""


def confusion(
    truth_hw: UInt8, mask_hw: UInt8, num_classes: int, *, ignore_id: int = 255, where: Bool | None = None
) -> Int64:
    """Confusion counts: pixels by class of the truth and class of the answer.

    Args:
        truth_hw: (H, W) labels; pixels of `ignore_id` are not counted.
        mask_hw: (H, W) answer; `ignore_id` is no answer, and counts as a wrong one.
        num_classes: K.
        ignore_id: at least K.
        where: (H, W) bool, False for pixels that are not counted.

    Returns:
        (K, K + 1) int64: rows are the truth, columns the answer, the last column no answer.

    Raises:
        ValueError: the shapes differ, or a value is neither a class nor `ignore_id`; the message names it.
    """
    groups = None if where is None else (~where).view(np.uint8)
    counts: Int64 = _confusions(truth_hw, mask_hw, num_classes, groups, groups=2, ignore_id=ignore_id)[0]
    return counts


def within_bands(
    truth_hw: UInt8, mask_hw: UInt8, num_classes: int, widths_px: Sequence[float], *, ignore_id: int = 255
) -> tuple[Int64, Int64]:
    """`confusion` of all pixels, (K, K + 1), and of the pixels in each trimap band, (B, K, K + 1), in one pass.

    `widths_px` must increase strictly; bands are those of `boundary_rings`.
    """
    rings_hw = boundary_rings(truth_hw, widths_px)
    by_ring = _confusions(truth_hw, mask_hw, num_classes, rings_hw, groups=len(widths_px) + 1, ignore_id=ignore_id)
    return by_ring.sum(axis=0), by_ring[:-1].cumsum(axis=0)


def _confusions(
    truth_hw: UInt8, mask_hw: UInt8, num_classes: int, groups_hw: UInt8 | None, *, groups: int, ignore_id: int
) -> Int64:
    """(groups, K, K + 1): `confusion` of each group of pixels."""
    if truth_hw.shape != mask_hw.shape:
        raise ValueError(f"labels have the shape {truth_hw.shape}, the mask {mask_hw.shape}")
    index = index_of(num_classes, ignore_id)
    counts = joint_counts(truth_hw, mask_hw, groups_hw, row_of=index, column_of=index, groups=groups)
    labelled, unknown = counts[:, :num_classes], counts[:, num_classes + 1 :]
    if unknown.any():
        raise ValueError(_no_class("labels", truth_hw, index, num_classes))
    if labelled[..., num_classes + 1 :].any():
        raise ValueError(_no_class("masks", mask_hw[truth_hw != ignore_id], index, num_classes))
    return labelled[..., : num_classes + 1]


def _no_class(name: str, values: UInt8, index: UInt8, num_classes: int) -> str:
    return f"{name} hold the value {values[index[values] > num_classes].max()}, but there are {num_classes} classes"


def count_judgement(
    truth_hw: UInt8,
    mask_hw: UInt8,
    confidence_hw: UInt8,
    num_classes: int,
    *,
    name: str,
    ignore_id: int = 255,
    widths_px: Sequence[float] = (),
    boundary_px: int | None = None,
) -> Judgement:
    """All counts of one answer: confusion, trimap bands, boundary overlap and reliability.

    Args:
        truth_hw: (H, W) labels; pixels of `ignore_id` are not counted.
        mask_hw: (H, W) answer; `ignore_id` is no answer.
        confidence_hw: (H, W) 0 to 255 for 0 to 1.
        num_classes: K.
        name: of the answer.
        ignore_id: at least K.
        widths_px: half widths of the trimap bands, strictly increasing.
        boundary_px: reach of Boundary IoU, pixels; None is 2 % of the diagonal.

    Raises:
        ValueError: as `confusion`.
    """
    counts, bands = within_bands(truth_hw, mask_hw, num_classes, widths_px, ignore_id=ignore_id)
    near_px = boundary_reach_px(*truth_hw.shape) if boundary_px is None else boundary_px
    return Judgement(
        name,
        counts,
        bands,
        boundary=overlap(truth_hw, mask_hw, num_classes, ignore_id=ignore_id, reach_px=near_px),
        reliability=reliability(truth_hw, mask_hw, confidence_hw, ignore_id=ignore_id),
    )


def with_band(counts: Int64, band: Int64, weight: float) -> Float64:
    """Counts for `Scores` in which pixels of a band have the given weight, 0 to 1; float64.

    The weight is applied when scoring, so stored counts stay whole numbers that add up exactly.
    """
    return counts - (1 - weight) * band


def weights_without(num_classes: int, *left_out: int) -> Float64:
    """Weights for `Scores` that exclude classes, such as the background, from every mean: (K,) of 0 and 1."""
    weights = np.ones(num_classes)
    weights[list(left_out)] = 0
    return weights


def _ratio(part: Any, whole: Any) -> Any:
    """Quotient, NaN where the whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(part, whole)


@dataclass(frozen=True)
class Scores:
    """Scores of confusion counts (..., K, K + 1): of one sum of images, or of a stack of sums.

    Everingham 2010 (the VOC challenge, IJCV 88) for intersection over union; Shelhamer 2016 (arXiv 1605.06211), sec. 5,
    for the accuracies and the weighted mean.

    A class that is only in the labels, or only in the answers, has an IoU of 0. `absent` gives the score where the
    denominator is 0: IoU and Dice of a class in neither, recall of a class without labels, precision of a class without
    answers.
    """

    counts: Int64 | Float64
    """(..., K, K + 1), see `confusion`; float64 from `with_band`."""
    weights: Float64 | None = None
    """(K,) weight of each class in means and pixel shares, at least 0; 0 excludes it. None is 1 for each."""
    absent: Absent = "skip"
    """`skip`: NaN, excluded from means. `unlabelled`: NaN also for every score of a class that is answered but not
    labelled. `zero`, `one`: 0 or 1, included in means."""

    @cached_property
    def hits(self) -> Int64 | Float64:
        """Correct pixels of each class, (..., K)."""
        hits = np.diagonal(self.counts, axis1=-2, axis2=-1)[..., : self.counts.shape[-2]]
        return cast("Int64 | Float64", hits)

    @cached_property
    def support(self) -> Int64 | Float64:
        """Labelled pixels of each class, (..., K)."""
        support: Int64 = self.counts.sum(axis=-1)
        return support

    @cached_property
    def answered(self) -> Int64 | Float64:
        """Answered pixels of each class, (..., K)."""
        answered: Int64 = self.counts[..., :-1].sum(axis=-2)
        return answered

    @cached_property
    def iou(self) -> Float64:
        """Intersection over union of each class, (..., K), 0 to 1."""
        return self._each(self.hits, self.support + self.answered - self.hits)

    @cached_property
    def recall(self) -> Float64:
        """Share of the labelled pixels of each class that are correct, (..., K): class accuracy."""
        return self._each(self.hits, self.support)

    @cached_property
    def precision(self) -> Float64:
        """Share of the answered pixels of each class that are correct, (..., K)."""
        return self._each(self.hits, self.answered)

    @cached_property
    def dice(self) -> Float64:
        """Dice coefficient of each class, the same as F1, (..., K)."""
        return self._each(2 * self.hits, self.support + self.answered)

    @cached_property
    def pixel_accuracy(self) -> Float64:
        """Share of labelled pixels that are correct, (...)."""
        share: Float64 = _ratio((self.hits * self._weights).sum(axis=-1), (self.support * self._weights).sum(axis=-1))
        return share

    @cached_property
    def mean_accuracy(self) -> Float64:
        """Mean recall over the classes, (...)."""
        return self.mean(self.recall)

    @cached_property
    def mean_iou(self) -> Float64:
        """Mean IoU over the classes, (...)."""
        return self.mean(self.iou)

    @cached_property
    def mean_dice(self) -> Float64:
        """Mean Dice coefficient over the classes, the same as macro F1, (...)."""
        return self.mean(self.dice)

    @cached_property
    def frequency_weighted_iou(self) -> Float64:
        """IoU of each class weighted by its share of the labels, (...)."""
        return _mean(self.iou, self.support * self._weights)

    @cached_property
    def classes_scored(self) -> Int64:
        """Number of classes in the mean IoU, (...): those with an IoU and a weight above 0."""
        scored: Int64 = (~np.isnan(self.iou) & (self._weights > 0)).sum(axis=-1)
        return scored

    def mean(self, values: Float64) -> Float64:
        """Weighted mean of (..., K) scores over the classes that have one; NaN where none has."""
        return _mean(values, self._weights)

    @cached_property
    def _weights(self) -> Float64:
        return np.ones(self.counts.shape[-2]) if self.weights is None else self.weights

    def _each(self, part: Int64 | Float64, whole: Int64 | Float64) -> Float64:
        """Quotient of each class, with the rule for absent classes."""
        scores: Float64 = _ratio(part, whole)
        if self.absent == "unlabelled":
            return np.where(self.support > 0, scores, np.nan)
        return scores if self.absent == "skip" else np.where(whole > 0, scores, float(self.absent == "one"))


def _mean(values: Float64, weights: Float64) -> Float64:
    """Weighted mean over the last axis, without NaN values; NaN where all are."""
    defined = ~np.isnan(values)
    mean: Float64 = _ratio(np.where(defined, values * weights, 0).sum(axis=-1), (defined * weights).sum(axis=-1))
    return mean


@dataclass(frozen=True, slots=True)
class Interval:
    """Score with its percentile bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap_weights(images: int, *, samples: int, seed: int) -> Int64:
    """Bootstrap draws: (samples, images) times each image is drawn, in rows of `images` draws with replacement.

    Two runs over the same images that share these weights are compared pairwise: Efron and Tibshirani 1993, ch. 8.
    """
    weights: Int64 = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)
    return weights


def bootstrap(
    counts_nkk: Int64 | Float64,
    score: Callable[[Scores], Float64],
    *,
    against_nkk: Int64 | Float64 | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Score of the sum over images, with its bootstrap interval.

    Args:
        counts_nkk: (N, K, K + 1) counts of each image, N at least 1.
        score: the score, such as `lambda scores: scores.mean_iou`.
        against_nkk: counts of another answer to the same images; the interval is then of the difference to it.
        samples: number of draws.
        seed: of the draws.
        level: share of the draws inside the interval.
    """
    return bootstrap_each(
        counts_nkk,
        lambda scores: score(scores)[..., None],
        against_nkk=against_nkk,
        samples=samples,
        seed=seed,
        level=level,
    )[0]


def bootstrap_each(
    counts_nkk: Int64 | Float64,
    score: Callable[[Scores], Float64],
    *,
    against_nkk: Int64 | Float64 | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """`bootstrap` of several scores over the same draws: `score` gives (..., S), the result has S intervals.

    A draw in which a score is NaN, since a class is in none of its images, does not count for that score's interval.
    """
    weights = bootstrap_weights(len(counts_nkk), samples=samples, seed=seed)
    weights = np.concatenate([np.ones_like(weights[:1]), weights])  # the images as they are, before the draws
    values = score(Scores(_weighted(weights, counts_nkk)))
    if against_nkk is not None:
        values = values - score(Scores(_weighted(weights, against_nkk)))
    tails = 50 * (1 - level), 50 * (1 + level)
    intervals = []
    for value, *drawn in values.T:
        defined = [draw for draw in drawn if not np.isnan(draw)]
        low, high = np.percentile(defined, tails) if defined else (np.nan, np.nan)
        intervals.append(Interval(float(value), float(low), float(high)))
    return intervals


def _weighted(weights: Int64, counts_nkk: Int64 | Float64) -> Float64:
    """Sums over images, weighted by their draws; in float64, which is exact below 2^53, since BLAS has no integers."""
    return np.tensordot(weights.astype(np.float64), counts_nkk.astype(np.float64), axes=1)
