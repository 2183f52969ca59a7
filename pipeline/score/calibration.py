"""Calibration: correct pixels per confidence, as counts that add up, and the expected calibration error.

In: a confidence of 0 to 255 for each pixel (the largest probability, rounded). Out: reliability counts, the reliability
curve and the expected calibration error of Guo 2017, "On calibration of modern neural networks", arXiv 1706.04599,
sec. 2.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.records import Float64, Int64, UInt8
from pipeline.score.label_maps import joint_counts

LEVELS = 256
"""Levels of confidence."""
_IGNORED = 2
_ALL = np.arange(LEVELS, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Curve:
    """Reliability curve: accuracy over confidence in bins of equal width; NaN in bins without a pixel."""

    confidence: Float64
    """(bins,) mean confidence of the pixels of each bin, 0 to 1."""
    accuracy: Float64
    """(bins,) share of the pixels that are correct, 0 to 1."""
    pixels: Int64
    """(bins,) number of pixels."""


def reliability(truth_hw: UInt8, mask_hw: UInt8, confidence_hw: UInt8, *, ignore_id: int) -> Int64:
    """Correct pixels and all pixels of each confidence: (256, 2) int64.

    Args:
        truth_hw: (H, W) labels; pixels of `ignore_id` are not counted.
        mask_hw: (H, W) answer; `ignore_id` is never correct.
        confidence_hw: (H, W) 0 to 255 for 0 to 1.
        ignore_id: of labels and answers.
    """
    correct = (truth_hw == mask_hw).astype(np.uint8)
    correct[truth_hw == ignore_id] = _IGNORED
    by_outcome = joint_counts(confidence_hw, correct, row_of=_ALL, column_of=np.minimum(_ALL, _IGNORED))[
        0, :, :_IGNORED
    ]
    return np.stack([by_outcome[:, 1], by_outcome.sum(axis=1)], axis=1)


def reliability_curve(reliability: Int64, bins: int = 15) -> Curve:
    """Reliability curve of (256, 2) counts; bin m, from 1 on, is ((m - 1) / bins, m / bins], and 0 is in the first."""
    levels = np.arange(LEVELS)
    bin_of = np.maximum(-(-levels * bins // (LEVELS - 1)) - 1, 0)  # rounded up in integers: 0.2 has no exact float
    correct, pixels = (np.bincount(bin_of, column, minlength=bins) for column in reliability.T)
    confidence = np.bincount(bin_of, reliability[:, 1] * levels, minlength=bins) / (LEVELS - 1)
    with np.errstate(invalid="ignore"):
        return Curve(confidence / pixels, correct / pixels, pixels.astype(np.int64))


def expected_calibration_error(reliability: Int64, bins: int = 15) -> float:
    """Mean distance between accuracy and confidence over the pixels, 0 to 1; NaN without pixels. Guo 2017, eq. 3."""
    curve = reliability_curve(reliability, bins)
    filled = curve.pixels > 0
    if not filled.any():
        return float("nan")
    gaps = np.abs(curve.accuracy - curve.confidence)[filled]
    return float(np.average(gaps, weights=curve.pixels[filled]))
