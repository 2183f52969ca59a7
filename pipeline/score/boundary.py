"""How well an answer follows the boundaries of the labels: counts near them, that add up over images.

In: (H, W) uint8 class ids. Out: bands around the boundaries between labels (trimaps, the figure of the DeepLab papers),
and the pixels of each class along its contour for Boundary IoU (Cheng 2021, arXiv 2103.16562). A change to or from the
ignore id is a boundary like any other: VOC draws its objects with a border of it.
"""

from collections.abc import Sequence
from math import ceil, hypot

import numpy as np

from pipeline.records import Bool, Float64, Int64, UInt8
from pipeline.score import label_maps
from pipeline.score.label_maps import has_neighbour, index_of, joint_counts

DIAGONAL_SHARE = 0.02
"""Reach of Boundary IoU over the image's diagonal: Cheng 2021, sec. 5.1."""


def boundary_rings(truth_hw: UInt8, widths_px: Sequence[float]) -> UInt8:
    """The narrowest band around the boundaries that each pixel lies in, as its index; their number where in none.

    (H, W) uint8. A band of width w holds the pixels less than w from the nearest pixel at a boundary; the two pixels on
    either side of one are at 0. Raises ValueError unless the widths ascend from at least 0, at most 254 of them.
    """
    widths = np.asarray(widths_px, float)
    if len(widths) >= 255 or (widths < 0).any() or (np.diff(widths) <= 0).any():
        raise ValueError(f"widths of bands ascend, at most 254 of them: {list(widths_px)}")
    cap_px = ceil(widths.max(initial=0))
    ring_of = np.searchsorted(widths**2, np.arange(cap_px**2 + 1), side="right").astype(np.uint8)
    return label_maps.lookup_rings(truth_hw, ring_of)


def trimap(truth_hw: UInt8, width_px: float) -> Bool:
    """Pixels within a band around the boundaries, (H, W): Krähenbühl and Koltun 2011, arXiv 1210.5644."""
    found: Bool = boundary_rings(truth_hw, [width_px]) == 0
    return found


def boundary_reach_px(height: int, width: int) -> int:
    """Reach of Boundary IoU for an image of this size, pixels: 2 % of its diagonal, at least 1."""
    return max(1, round(DIAGONAL_SHARE * hypot(height, width)))


def overlap(truth_hw: UInt8, mask_hw: UInt8, num_classes: int, *, ignore_id: int, reach_px: int) -> Int64:
    """Pixels of each class within reach of its contour in the truth, in the answer, and in both: (K, 3) int64.

    Within reach means that the square of `reach_px` rows and columns around the pixel is not all of its class, or goes
    beyond the image: what `reach_px` erosions by 3x3 take away, as in the authors' code. Pixels of `ignore_id` in the
    truth are in no count.
    """
    near_truth, near_mask = has_neighbour(truth_hw, reach_px), has_neighbour(mask_hw, reach_px)
    groups = near_truth.view(np.uint8) + 2 * near_mask.view(np.uint8)
    index = index_of(num_classes, ignore_id)
    _, truth, mask, both = joint_counts(truth_hw, mask_hw, groups, row_of=index, column_of=index, groups=4)[
        :, :num_classes
    ]
    found = (truth + both).sum(axis=1), (mask + both).sum(axis=0)[:num_classes], np.diagonal(both)[:num_classes]
    return np.stack(found, axis=1)


def boundary_iou(boundary: Int64) -> Float64:
    """Boundary IoU of each class, (..., K) from (..., K, 3): NaN for a class without a contour in either."""
    truth, answer, both = np.moveaxis(boundary, -1, 0)
    with np.errstate(invalid="ignore"):
        found: Float64 = both / (truth + answer - both)
    return found
