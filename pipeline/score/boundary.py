"""Boundary scores: trimap bands and Boundary IoU, as counts that add up over images.

In: (H, W) uint8 class ids. Out: bands around the boundaries between labels (trimaps: Krähenbühl and Koltun 2011, arXiv
1210.5644), and pixels of each class along its contour for Boundary IoU (Cheng 2021, arXiv 2103.16562). A change to or
from the ignore id counts as a boundary: VOC draws objects with a border of it.
"""

from collections.abc import Sequence
from math import ceil, hypot

import numpy as np

from pipeline.records import Float64, Int64, UInt8
from pipeline.score import label_maps
from pipeline.score.label_maps import has_neighbour, index_of, joint_counts

DIAGONAL_SHARE = 0.02
"""Reach of Boundary IoU as a share of the image's diagonal: Cheng 2021, sec. 5.1."""


def boundary_rings(truth_hw: UInt8, widths_px: Sequence[float]) -> UInt8:
    """Index of the narrowest band around the boundaries that holds each pixel: (H, W) uint8, len(widths_px) for none.

    A band of width w holds the pixels at a distance below w from the nearest boundary pixel; the two pixels on either
    side of a boundary are at 0. Raises ValueError unless the widths increase strictly from at least 0, at most 254.
    """
    widths = np.asarray(widths_px, float)
    if len(widths) >= 255 or (widths < 0).any() or (np.diff(widths) <= 0).any():
        raise ValueError(f"widths of bands must increase strictly from 0 or more, at most 254, got {list(widths_px)}")
    cap_px = ceil(widths.max(initial=0))
    ring_of = np.searchsorted(widths**2, np.arange(cap_px**2 + 1), side="right").astype(np.uint8)
    return label_maps.lookup_rings(truth_hw, ring_of)


def boundary_reach_px(height: int, width: int) -> int:
    """Reach of Boundary IoU for an image of this size, pixels: 2 % of its diagonal, at least 1."""
    return max(1, round(DIAGONAL_SHARE * hypot(height, width)))


def overlap(truth_hw: UInt8, mask_hw: UInt8, num_classes: int, *, ignore_id: int, reach_px: int) -> Int64:
    """Pixels of each class near its contour in the truth, in the answer, and in both: (K, 3) int64.

    A pixel is near when the square of `reach_px` rows and columns around it holds another class or leaves the image:
    the pixels that `reach_px` erosions by 3x3 remove, as in the authors' code. Pixels that are `ignore_id` in the truth
    are not counted.
    """
    near_truth, near_mask = has_neighbour(truth_hw, reach_px), has_neighbour(mask_hw, reach_px)
    groups = near_truth.view(np.uint8) + 2 * near_mask.view(np.uint8)
    index = index_of(num_classes, ignore_id)
    _, truth, mask, both = joint_counts(truth_hw, mask_hw, groups, row_of=index, column_of=index, groups=4)[
        :, :num_classes
    ]
    columns = (truth + both).sum(axis=1), (mask + both).sum(axis=0)[:num_classes], np.diagonal(both)[:num_classes]
    return np.stack(columns, axis=1)


def boundary_iou(boundary: Int64) -> Float64:
    """Boundary IoU of each class, (..., K) from (..., K, 3); NaN for a class without a contour in truth and answer."""
    truth, answer, both = np.moveaxis(boundary, -1, 0)
    with np.errstate(invalid="ignore"):
        iou: Float64 = both / (truth + answer - both)
    return iou
