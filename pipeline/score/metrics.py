"""How well masks agree with labels: counts of one image that can be added up, and the scores of any sum of them.

In: labels and masks, (H, W) uint8 class ids. Out: int64 confusion counts, and from them every usual score. Counts of
images, shards and runs merge by addition, so a distributed evaluation gives exactly what a single process would.
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
"""What a class scores that leaves nothing to divide by; see `Scores`."""


def confusion(
    truth_hw: UInt8, mask_hw: UInt8, num_classes: int, *, ignore_id: int = 255, where: Bool | None = None
) -> Int64:
    """Count how often each class was taken for each.

    Args:
        truth_hw: (H, W) labels; pixels of `ignore_id` are left out.
        mask_hw: (H, W) the answer; `ignore_id` stands for no answer, and counts as a wrong one.
        num_classes: K.
        ignore_id: at least K.
        where: (H, W), False for pixels to leave out.

    Returns:
        (K, K + 1) int64: rows are the truth, columns the answer, and the last column no answer.

    Raises:
        ValueError: for shapes that differ, and for a value that is neither a class nor `ignore_id`, naming it.
    """
    groups = None if where is None else (~where).view(np.uint8)
    found: Int64 = _confusions(truth_hw, mask_hw, num_classes, groups, groups=2, ignore_id=ignore_id)[0]
    return found


def within_bands(
    truth_hw: UInt8, mask_hw: UInt8, num_classes: int, widths_px: Sequence[float], *, ignore_id: int = 255
) -> tuple[Int64, Int64]:
    """`confusion` of all pixels, (K, K + 1), and of those within each band around the boundaries, (B, K, K + 1).

    `widths_px` ascend; a band is as in `boundary.trimap`. All in one pass over the pixels.
    """
    rings_hw = boundary_rings(truth_hw, widths_px)
    apart = _confusions(truth_hw, mask_hw, num_classes, rings_hw, groups=len(widths_px) + 1, ignore_id=ignore_id)
    return apart.sum(axis=0), apart[:-1].cumsum(axis=0)


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
    """Count everything about one answer that scores are made of.

    Args:
        truth_hw: (H, W) labels; pixels of `ignore_id` are in no count.
        mask_hw: (H, W) the answer; `ignore_id` stands for no answer.
        confidence_hw: (H, W) 0 to 255, how sure it is.
        num_classes: K.
        name: the answer's.
        ignore_id: at least K.
        widths_px: of the trimaps, ascending.
        boundary_px: reach of Boundary IoU; None is 2 % of the diagonal.

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
    """Counts in which the pixels of a band weigh less, or with a weight of 0 nothing: what `Scores` takes, in float64.

    Left exact until here: `counts` and `band` are whole numbers that add up, and the weight is chosen when scoring.
    """
    return counts - (1 - weight) * band


def weights_without(num_classes: int, *left_out: int) -> Float64:
    """Weights for `Scores` that leave classes out, such as the background, from every mean: (K,) of 0 and 1."""
    weights = np.ones(num_classes)
    weights[list(left_out)] = 0
    return weights


def _ratio(part: Any, whole: Any) -> Any:
    """Their quotient, NaN where the whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(part, whole)


@dataclass(frozen=True)
class Scores:
    """Every score of confusion counts of shape (..., K, K + 1): one sum of images, or a stack of sums.

    Everingham 2010 (the VOC challenge, IJCV 88) for intersection over union; Shelhamer 2016 (arXiv 1605.06211), sec. 5,
    for the accuracies and the weighted mean.

    A class that is labelled but never answered has an IoU of 0, and so has one that is answered but not labelled:
    somebody was told that it is there. Where nothing is left to divide by (the IoU and Dice of a class in neither, the
    recall of one that is not labelled, the precision of one that is not answered), `absent` says what the score is.
    """

    counts: Int64 | Float64
    """(..., K, K + 1), see `confusion`; in float64 those of `with_band`."""
    weights: Float64 | None = None
    """(K,) of each class in every mean and in the shares of pixels, at least 0; 0 leaves one out. None is 1 each."""
    absent: Absent = "skip"
    """`skip`: no score (NaN), and no part in a mean. `unlabelled`: also none for a class that is answered but not
    labelled, whatever the score. `zero`, `one`: a score of 0 or 1, which takes part."""

    @cached_property
    def hits(self) -> Int64 | Float64:
        """Pixels of each class that were found, (..., K)."""
        hits = np.diagonal(self.counts, axis1=-2, axis2=-1)[..., : self.counts.shape[-2]]
        return cast("Int64 | Float64", hits)

    @cached_property
    def support(self) -> Int64 | Float64:
        """Labelled pixels of each class, (..., K)."""
        found: Int64 = self.counts.sum(axis=-1)
        return found

    @cached_property
    def answered(self) -> Int64 | Float64:
        """Pixels that were said to be of each class, (..., K)."""
        found: Int64 = self.counts[..., :-1].sum(axis=-2)
        return found

    @cached_property
    def iou(self) -> Float64:
        """Intersection over union of each class, (..., K), 0 to 1."""
        return self._each(self.hits, self.support + self.answered - self.hits)

    @cached_property
    def recall(self) -> Float64:
        """Share of each class that was found, (..., K): its accuracy."""
        return self._each(self.hits, self.support)

    @cached_property
    def precision(self) -> Float64:
        """Share of the answers of each class that are right, (..., K)."""
        return self._each(self.hits, self.answered)

    @cached_property
    def dice(self) -> Float64:
        """Dice coefficient of each class, the same as F1, (..., K)."""
        return self._each(2 * self.hits, self.support + self.answered)

    @cached_property
    def pixel_accuracy(self) -> Float64:
        """Share of labelled pixels that are right, (...)."""
        found: Float64 = _ratio((self.hits * self._weights).sum(axis=-1), (self.support * self._weights).sum(axis=-1))
        return found

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

    def mean(self, values: Float64) -> Float64:
        """Mean of (..., K) scores over the classes that have one, with the weights; NaN where nothing is left."""
        return _mean(values, self._weights)

    @cached_property
    def _weights(self) -> Float64:
        return np.ones(self.counts.shape[-2]) if self.weights is None else self.weights

    def _each(self, part: Int64 | Float64, whole: Int64 | Float64) -> Float64:
        """Quotients of each class, by the rule for absent ones."""
        found: Float64 = _ratio(part, whole)
        if self.absent == "unlabelled":
            return np.where(self.support > 0, found, np.nan)
        return found if self.absent == "skip" else np.where(whole > 0, found, float(self.absent == "one"))


def _mean(values: Float64, weights: Float64) -> Float64:
    """Weighted mean over the last axis of what is not NaN; NaN where nothing is left."""
    there = ~np.isnan(values)
    found: Float64 = _ratio(np.where(there, values * weights, 0).sum(axis=-1), (there * weights).sum(axis=-1))
    return found


@dataclass(frozen=True, slots=True)
class Interval:
    """A score and the percentile bootstrap interval around it."""

    value: float
    low: float
    high: float


def bootstrap_weights(images: int, *, samples: int, seed: int) -> Int64:
    """How often each image is drawn in each of `samples` draws of as many images with replacement: (samples, images).

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
    """A score of the sum over images, and the interval in which it lies when images are drawn anew.

    Args:
        counts_nkk: (N, K, K + 1) counts of each image, N at least 1.
        score: what is asked, such as `lambda scores: scores.mean_iou`.
        against_nkk: counts of another answer to the same images; the interval is then of the difference to it.
        samples: draws.
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
    """`bootstrap` of several scores at once, over the same draws: `score` gives (..., S), and S intervals come back.

    A score that a draw does not have, since a class is in none of its images, is left out of that score's interval.
    """
    weights = bootstrap_weights(len(counts_nkk), samples=samples, seed=seed)
    weights = np.concatenate([np.ones_like(weights[:1]), weights])  # the images as they are, before the draws
    found = score(Scores(_weighted(weights, counts_nkk)))
    if against_nkk is not None:
        found = found - score(Scores(_weighted(weights, against_nkk)))
    tails = 50 * (1 - level), 50 * (1 + level)
    intervals = []
    for value, *drawn in found.T:
        there = [one for one in drawn if not np.isnan(one)]
        low, high = np.percentile(there, tails) if there else (np.nan, np.nan)
        intervals.append(Interval(float(value), float(low), float(high)))
    return intervals


def _weighted(weights: Int64, counts_nkk: Int64 | Float64) -> Int64 | Float64:
    """Sums over images as often as they were drawn. In float64: exact below 2^53, and BLAS knows no integers."""
    summed = np.tensordot(weights.astype(np.float64), counts_nkk.astype(np.float64), axes=1)
    return summed.astype(np.int64) if counts_nkk.dtype == np.int64 else summed
