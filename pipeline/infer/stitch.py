"""Stitching: logits of overlapping tiles blended into one map at the network's stride, before any upsampling.

In: logits of the tiles of a `TileGrid`. Out: (K, ceil(H/stride), ceil(W/stride)). Memory depends on the size of the
image at the stride, not on the number of tiles.
"""

import numpy as np

from pipeline.infer.tile import TileGrid, blend_window
from pipeline.records import Float16, Float32

BAND_CELLS = 64
"""Rows of cells converted to float16 at a time, which bounds the memory."""


def _weights(corners: set[int], length: int, total: int) -> dict[int, Float32]:
    """Blend weights of the tiles along one axis, by first cell; the weights over each cell sum to 1."""
    window = blend_window(length)
    summed = np.zeros_like(window, shape=total)
    for corner in corners:
        summed[corner : corner + length] += window
    return {corner: window / summed[corner : corner + length] for corner in corners}


class Canvas:
    """Sum of the weighted logits of one image's tiles, added in any order."""

    def __init__(self, grid: TileGrid, *, num_classes: int, stride: int) -> None:
        self.grid, self.stride = grid, stride
        self.missing = len(grid.corners)
        tile = -(-grid.tile_height // stride), -(-grid.tile_width // stride)
        corners = [(y // stride, x // stride) for y, x in grid.corners]
        height, width = corners[-1][0] + tile[0], corners[-1][1] + tile[1]
        # Tiles form rows and columns, so the sum of all windows is the product of one sum per axis.
        self._down = _weights({y for y, _ in corners}, tile[0], height)
        self._along = _weights({x for _, x in corners}, tile[1], width)
        self._scores: Float16 | Float32 = np.zeros((num_classes, height, width), np.float32)

    def add(self, index: int, logits_khw: Float16 | Float32) -> None:
        """Add the logits of tile `index`: (K, ceil(tile_height/stride), ceil(tile_width/stride))."""
        self.missing -= 1
        if len(self.grid.corners) == 1:
            self._scores = logits_khw
            return
        y, x = (corner // self.stride for corner in self.grid.corners[index])
        down, along = self._down[y], self._along[x]
        self._scores[:, y : y + len(down), x : x + len(along)] += logits_khw * (down[:, None] * along)

    def finish(self) -> Float16 | Float32:
        """Blended logits, (K, ceil(H/stride), ceil(W/stride)): float32, or the logits of a single tile unchanged.

        Raises:
            ValueError: tiles are missing.
        """
        if self.missing:
            raise ValueError(f"{self.missing} of {len(self.grid.corners)} tiles were never added")
        height, width = -(-self.grid.height // self.stride), -(-self.grid.width // self.stride)
        return self._scores[:, :height, :width]


def to_half(scores_khw: Float16 | Float32) -> Float16:
    """Logits for transport: (K, h, w) float16, shifted so that the largest of each cell is 0.

    A shift common to all classes leaves the softmax as it is, and float16 is finest near 0, where classes compete.
    Float16 scores are already shifted, and only copied.
    """
    if scores_khw.dtype == np.float16:
        return scores_khw.astype(np.float16)  # a copy, since they may be a view of a batch
    logits = np.empty(scores_khw.shape, np.float16)
    for top in range(0, scores_khw.shape[1], BAND_CELLS):
        band = scores_khw[:, top : top + BAND_CELLS]
        shifted = band - band.max(axis=0)
        logits[:, top : top + BAND_CELLS] = np.maximum(shifted, np.finfo(np.float16).min)
    return logits
