"""Operations on maps of class ids: joint counts of two maps, distance rings and neighbours of each pixel.

In: (H, W) uint8 maps. Out: int64 counts; rings and neighbours as maps of the same size. In C++ where the extension was
built (`label_maps_native/`), else in numpy and scipy; both give the same result to the last pixel.
"""

from math import isqrt, prod

import numpy as np
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

from pipeline import extension
from pipeline.records import Bool, Int64, UInt8

LABEL_MAPS_INTERFACE = 1
"""Interface version of the extension that this module calls."""

_native, UNAVAILABLE_BECAUSE = extension.import_extension("pipeline.score._label_maps", LABEL_MAPS_INTERFACE)
"""The extension module or None, and the reason for None."""


def index_of(num_classes: int, ignore_id: int) -> UInt8:
    """Index of each byte in counts, (256,) uint8: a class has its id, `ignore_id` has K, any other value K + 1."""
    index = np.full(256, min(num_classes + 1, 255), np.uint8)  # with 255 classes there is no other value
    index[:num_classes] = np.arange(num_classes)
    index[ignore_id] = num_classes
    return index


def joint_counts(
    rows_hw: UInt8,
    columns_hw: UInt8,
    groups_hw: UInt8 | None = None,
    *,
    row_of: UInt8,
    column_of: UInt8,
    groups: int = 1,
) -> Int64:
    """Count pixels by their pair of values in two maps, separately for each group of pixels.

    Args:
        rows_hw: (H, W) values that give the row.
        columns_hw: (H, W) values that give the column.
        groups_hw: (H, W) group of each pixel, below `groups`; None puts all pixels into the first.
        row_of: (256,) row of each value.
        column_of: (256,) column of each value.
        groups: number of groups, at least 1.

    Returns:
        (groups, R, C) int64, where R - 1 is the largest row and C - 1 the largest column.

    Raises:
        ValueError: the maps differ in size, or a group is not below `groups`.
    """
    rows, columns = np.ascontiguousarray(rows_hw), np.ascontiguousarray(columns_hw)
    group_map = None if groups_hw is None else np.ascontiguousarray(groups_hw)
    joint = _native.joint if _native else _joint
    counts: Int64 = joint(rows, columns, group_map, row_of, column_of, num_groups=groups)
    return counts


def lookup_rings(labels_hw: UInt8, ring_of: UInt8) -> UInt8:
    """Look up each pixel's exact distance from the nearest boundary in a table: (H, W) uint8.

    Args:
        labels_hw: (H, W). Both pixels of a pair of neighbours (left and right, above and below) that differ are at a
            distance of 0.
        ring_of: (cap * cap + 1,) result for each square of the Euclidean distance in pixels; the last entry is for all
            larger distances. The cost grows with `cap`.
    """
    rings_hw: UInt8 = (_native.rings if _native else _rings)(
        np.ascontiguousarray(labels_hw), ring_of, isqrt(len(ring_of) - 1)
    )
    return rings_hw


def has_neighbour(labels_hw: UInt8, reach_px: int) -> Bool:
    """Pixels with another value, or the border of the map, within `reach_px` rows and columns: (H, W) bool."""
    near_hw: Bool = (_native.has_neighbour if _native else _has_neighbour)(np.ascontiguousarray(labels_hw), reach_px)
    return near_hw


def _joint(
    rows: UInt8, columns: UInt8, groups: UInt8 | None, row_of: UInt8, column_of: UInt8, *, num_groups: int
) -> Int64:
    shape = num_groups, int(row_of.max()) + 1, int(column_of.max()) + 1
    code = row_of[rows].astype(np.intp) * shape[2] + column_of[columns]
    if groups is not None:
        if groups.max(initial=0) >= num_groups:
            raise ValueError("a group that is not there")
        code += groups.astype(np.intp) * (shape[1] * shape[2])
    return np.bincount(code.ravel(), minlength=prod(shape)).astype(np.int64).reshape(shape)


def _rings(labels: UInt8, ring_of: UInt8, cap: int) -> UInt8:
    edge = _edges(labels)
    if not edge.any():
        return np.full(labels.shape, ring_of[-1])
    squared = np.rint(distance_transform_edt(~edge) ** 2).astype(np.intp)
    rings_hw: UInt8 = ring_of[np.minimum(squared, cap**2)]
    return rings_hw


def _edges(labels: UInt8) -> Bool:
    edge = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def _has_neighbour(labels: UInt8, reach: int) -> Bool:
    wide, side = labels.astype(np.int16), 2 * reach + 1  # -1 is no label: it fills the outside of the map
    lowest = minimum_filter(wide, side, mode="constant", cval=-1)
    highest = maximum_filter(wide, side, mode="constant", cval=-1)
    differs: Bool = lowest != highest
    return differs
