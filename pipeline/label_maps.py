"""What is done to every pixel of a map of class ids: counting two of them together, and looking around each pixel.

In: (H, W) uint8 maps. Out: int64 counts; distances and windows as maps of the same size. In C++ where the extension was
built (`label_maps_native/`), with numpy and scipy otherwise: the same to the last pixel, and the tests hold them to it.
"""

from math import prod

import numpy as np
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

from pipeline.records import Bool, Int64, UInt8


def index_of(num_classes: int, ignore_id: int) -> UInt8:
    """Where each byte is counted, (256,) uint8: a class at its id, `ignore_id` at K, anything else at K + 1."""
    index = np.full(256, min(num_classes + 1, 255), np.uint8)  # with 255 classes there is nothing else
    index[:num_classes] = np.arange(num_classes)
    index[ignore_id] = num_classes
    return index


def joint(
    rows_hw: UInt8,
    columns_hw: UInt8,
    groups_hw: UInt8 | None = None,
    *,
    row_of: UInt8,
    column_of: UInt8,
    groups: int = 1,
) -> Int64:
    """Count how often two values meet, apart for each group of pixels.

    Args:
        rows_hw: (H, W) the value that gives the row.
        columns_hw: (H, W) the value that gives the column.
        groups_hw: (H, W) the group of each pixel, below `groups`; None when all are in the first.
        row_of: (256,) row of each value.
        column_of: (256,) column of each value.
        groups: how many groups there are.

    Returns:
        (groups, R, C) int64, where R - 1 is the largest row and C - 1 the largest column.
    """
    shape = groups, int(row_of.max()) + 1, int(column_of.max()) + 1
    code = row_of[rows_hw].astype(np.intp) * shape[2] + column_of[columns_hw]
    if groups_hw is not None:
        code += groups_hw.astype(np.intp) * (shape[1] * shape[2])
    return np.bincount(code.ravel(), minlength=prod(shape)).astype(np.int64).reshape(shape)


def edges(labels_hw: UInt8) -> Bool:
    """Pixels with another value to the left, right, above or below: (H, W)."""
    edge = np.zeros(labels_hw.shape, bool)
    down, right = labels_hw[1:] != labels_hw[:-1], labels_hw[:, 1:] != labels_hw[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def squared_distance(edge_hw: Bool, cap_px: int) -> Int64:
    """Squared Euclidean distance to the nearest edge pixel, at most `cap_px` squared: (H, W) int64, exact."""
    if not edge_hw.any():
        return np.full(edge_hw.shape, cap_px**2, np.int64)
    distance = distance_transform_edt(~edge_hw)
    return np.minimum(np.rint(distance**2), cap_px**2).astype(np.int64)


def has_neighbour(labels_hw: UInt8, reach_px: int) -> Bool:
    """Pixels with another value, or the end of the map, within `reach_px` rows and columns: (H, W)."""
    labels, size = labels_hw.astype(np.int16), 2 * reach_px + 1
    lowest = minimum_filter(labels, size, mode="constant", cval=-1)
    highest = maximum_filter(labels, size, mode="constant", cval=-1)
    found: Bool = lowest != highest
    return found
