"""How well masks agree with labels: counts of one image that can be added up, and the scores of any sum of them.

In: labels and masks, (H, W) uint8 class ids. Out: int64 confusion counts, and from them every usual score. Counts of
images, shards and runs merge by addition, so a distributed evaluation gives exactly what a single process would.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from pipeline.records import Bool, UInt8

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


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
    if truth_hw.shape != mask_hw.shape:
        raise ValueError(f"labels have the shape {truth_hw.shape}, the mask {mask_hw.shape}")
    kept = truth_hw != ignore_id
    if where is not None:
        kept &= where
    truth, answer = truth_hw[kept].astype(np.uint16), mask_hw[kept].astype(np.uint16)
    answer[answer == ignore_id] = num_classes
    for name, values, largest in (("labels", truth, num_classes - 1), ("masks", answer, num_classes)):
        if values.size and values.max() > largest:
            raise ValueError(f"{name} hold the value {values.max()}, but there are {num_classes} classes")
    counts = np.bincount(truth * (num_classes + 1) + answer, minlength=num_classes * (num_classes + 1))
    return counts.reshape(num_classes, num_classes + 1).astype(np.int64)


def _ratio(part: Any, whole: Any) -> Any:
    """Their quotient, NaN where the whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(part, whole)


@dataclass(frozen=True)
class Scores:
    """Every score of confusion counts of shape (..., K, K + 1): one sum of images, or a stack of sums.

    A class that occurs neither in the truth nor in the answers has no score (NaN), and no part in a mean. One that
    occurs only in the answers has an IoU of 0: somebody was told that it is there. Everingham 2010 (the
    VOC challenge, IJCV 88) for intersection over union; Shelhamer 2016 (arXiv 1605.06211), sec. 5, for the accuracies
    and the weighted mean.
    """

    counts: Int64

    @cached_property
    def hits(self) -> Int64:
        """Pixels of each class that were found, (..., K)."""
        return np.diagonal(self.counts, axis1=-2, axis2=-1)[..., : self.counts.shape[-2]]

    @cached_property
    def support(self) -> Int64:
        """Labelled pixels of each class, (..., K)."""
        found: Int64 = self.counts.sum(axis=-1)
        return found

    @cached_property
    def answered(self) -> Int64:
        """Pixels that were said to be of each class, (..., K)."""
        found: Int64 = self.counts[..., :-1].sum(axis=-2)
        return found

    @cached_property
    def iou(self) -> Float64:
        """Intersection over union of each class, (..., K), 0 to 1."""
        found: Float64 = _ratio(self.hits, self.support + self.answered - self.hits)
        return found

    @cached_property
    def recall(self) -> Float64:
        """Share of each class that was found, (..., K): its accuracy."""
        found: Float64 = _ratio(self.hits, self.support)
        return found

    @cached_property
    def precision(self) -> Float64:
        """Share of the answers of each class that are right, (..., K)."""
        found: Float64 = _ratio(self.hits, self.answered)
        return found

    @cached_property
    def dice(self) -> Float64:
        """Dice coefficient of each class, the same as F1, (..., K)."""
        found: Float64 = _ratio(2 * self.hits, self.support + self.answered)
        return found

    @cached_property
    def pixel_accuracy(self) -> Float64:
        """Share of labelled pixels that are right, (...)."""
        found: Float64 = _ratio(self.hits.sum(axis=-1), self.support.sum(axis=-1))
        return found

    @cached_property
    def mean_accuracy(self) -> Float64:
        """Mean recall over the classes that are labelled, (...)."""
        return mean_of(self.recall)

    @cached_property
    def mean_iou(self) -> Float64:
        """Mean IoU over the classes that occur, (...)."""
        return mean_of(self.iou)

    @cached_property
    def frequency_weighted_iou(self) -> Float64:
        """IoU of each class weighted by its share of the labels, (...)."""
        found: Float64 = _ratio(np.nansum(self.iou * self.support, axis=-1), self.support.sum(axis=-1))
        return found


def mean_of(values: Float64) -> Float64:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    there = ~np.isnan(values)
    found: Float64 = _ratio(np.where(there, values, 0).sum(axis=-1), there.sum(axis=-1))
    return found


def boundary_distance(truth_hw: UInt8) -> npt.NDArray[np.float32]:
    """Distance of each pixel from the nearest boundary between labels, in pixels: (H, W) float32.

    The two pixels on either side of a boundary are at 0; a change to or from the ignore id counts as one, as in VOC's
    labels, where objects are drawn with a border of it. Without a boundary every distance is infinite.
    """
    edge = np.zeros(truth_hw.shape, bool)
    down, right = truth_hw[1:] != truth_hw[:-1], truth_hw[:, 1:] != truth_hw[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    if not edge.any():
        return np.full(truth_hw.shape, np.inf, np.float32)
    found: npt.NDArray[np.float32] = distance_transform_edt(~edge).astype(np.float32)
    return found


def trimap(truth_hw: UInt8, width_px: float) -> Bool:
    """Pixels within a band around the boundaries, (H, W): Krähenbühl and Koltun 2011, arXiv 1210.5644."""
    found: Bool = boundary_distance(truth_hw) < width_px
    return found


@dataclass(frozen=True, slots=True)
class Interval:
    """A score and the percentile bootstrap interval around it."""

    value: float
    low: float
    high: float


def resampled(images: int, *, samples: int, seed: int) -> Int64:
    """How often each image is drawn in each of `samples` draws of as many images with replacement: (samples, images).

    Two runs over the same images that share these weights are compared pairwise: Efron and Tibshirani 1993, ch. 8.
    """
    weights: Int64 = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)
    return weights


def bootstrap(
    counts_nkk: Int64,
    score: Callable[[Scores], Float64],
    *,
    against_nkk: Int64 | None = None,
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
    counts_nkk: Int64,
    score: Callable[[Scores], Float64],
    *,
    against_nkk: Int64 | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """`bootstrap` of several scores at once, over the same draws: `score` gives (..., S), and S intervals come back.

    A score that a draw does not have, since a class is in none of its images, is left out of that score's interval.
    """
    weights = resampled(len(counts_nkk), samples=samples, seed=seed)
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


def _weighted(weights: Int64, counts_nkk: Int64) -> Int64:
    """Sums over images as often as they were drawn. In float64: exact below 2^53, and BLAS knows no integers."""
    summed = np.tensordot(weights.astype(np.float64), counts_nkk.astype(np.float64), axes=1)
    return summed.astype(np.int64)
