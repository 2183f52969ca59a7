"""Whether an answer is as often right as it is sure: counts by confidence that add up, and the error of any sum.

In: a confidence of 0 to 255 for each pixel (the largest probability, rounded). Out: reliability counts, the curve and
the expected calibration error of Guo 2017, "On calibration of modern neural networks", arXiv 1706.04599, sec. 2.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.records import Float64, Int64, UInt8
from pipeline.score.label_maps import joint_counts

LEVELS = 256
_LEFT_OUT = 2
_ALL = np.arange(LEVELS, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy over confidence, in bins of equal width; NaN where a bin holds no pixel."""

    confidence: Float64
    """(bins,) mean confidence of the pixels of each bin, 0 to 1."""
    accuracy: Float64
    """(bins,) share of them that are right, 0 to 1."""
    pixels: Int64
    """(bins,) how many there are."""


def reliability(truth_hw: UInt8, mask_hw: UInt8, confidence_hw: UInt8, *, ignore_id: int) -> Int64:
    """Pixels of each confidence that are right, and all of them: (256, 2) int64.

    Args:
        truth_hw: (H, W) labels; pixels of `ignore_id` are left out.
        mask_hw: (H, W) the answer; `ignore_id` is never right.
        confidence_hw: (H, W) 0 to 255 for 0 to 1.
        ignore_id: of labels and answers.
    """
    right = (truth_hw == mask_hw).astype(np.uint8)
    right[truth_hw == ignore_id] = _LEFT_OUT
    wrong_right = joint_counts(confidence_hw, right, row_of=_ALL, column_of=np.minimum(_ALL, _LEFT_OUT))[
        0, :, :_LEFT_OUT
    ]
    return np.stack([wrong_right[:, 1], wrong_right.sum(axis=1)], axis=1)


def reliability_curve(reliability: Int64, bins: int = 15) -> Curve:
    """Gather (256, 2) reliability counts in bins: the m-th is ((m - 1) / bins, m / bins], and 0 is in the first."""
    levels = np.arange(LEVELS)
    bin_of = np.maximum(-(-levels * bins // (LEVELS - 1)) - 1, 0)  # rounded up in integers: 0.2 is no float
    right, pixels = (np.bincount(bin_of, column, minlength=bins) for column in reliability.T)
    sure = np.bincount(bin_of, reliability[:, 1] * levels, minlength=bins) / (LEVELS - 1)
    with np.errstate(invalid="ignore"):
        return Curve(sure / pixels, right / pixels, pixels.astype(np.int64))


def expected_calibration_error(reliability: Int64, bins: int = 15) -> float:
    """Mean distance between accuracy and confidence over the pixels, 0 to 1; NaN without pixels. Guo 2017, eq. 3."""
    curve = reliability_curve(reliability, bins)
    there = curve.pixels > 0
    if not there.any():
        return float("nan")
    gaps = np.abs(curve.accuracy - curve.confidence)[there]
    return float(np.average(gaps, weights=curve.pixels[there]))
