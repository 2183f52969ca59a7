"""Overlapping tiles of logits become one map at the network's stride, before any upsampling.

In: logits of the tiles of a `Grid`. Out: (K, ceil(H/stride), ceil(W/stride)). Memory is bounded by the image at the
stride, never by the number of tiles.
"""

import numpy as np

from pipeline.records import Float16, Float32
from pipeline.tile import Grid, blend_window


class Canvas:
    """Collects the logits of one image's tiles, in any order."""

    def __init__(self, grid: Grid, *, num_classes: int, stride: int) -> None:
        self.grid, self.stride = grid, stride
        self.missing = len(grid.corners)
        height, width = (
            (corner + tile) // stride
            for corner, tile in zip(grid.corners[-1], (grid.tile_height, grid.tile_width), strict=True)
        )
        self._sum = np.zeros((num_classes, height, width), np.float32)
        self._weights = np.zeros((height, width), np.float32)
        self._window = blend_window(grid.tile_height // stride)[:, None] * blend_window(grid.tile_width // stride)

    def add(self, index: int, logits_khw: Float32) -> None:
        """Blend in the logits of tile `index`: (K, tile_height/stride, tile_width/stride) float32."""
        y, x = (corner // self.stride for corner in self.grid.corners[index])
        rows, columns = slice(y, y + self._window.shape[0]), slice(x, x + self._window.shape[1])
        self._sum[:, rows, columns] += logits_khw * self._window
        self._weights[rows, columns] += self._window
        self.missing -= 1

    def finish(self) -> Float16:
        """The blended logits, (K, h, w) float16, shifted so that each pixel's largest is 0.

        A shift common to all classes changes no softmax, and float16 is finest near 0, where the classes compete.

        Raises:
            ValueError: when tiles are missing.
        """
        if self.missing:
            raise ValueError(f"{self.missing} of {len(self.grid.corners)} tiles were never added")
        height, width = -(-self.grid.height // self.stride), -(-self.grid.width // self.stride)
        blended = self._sum[:, :height, :width] / self._weights[:height, :width]
        shifted = blended - blended.max(axis=0, keepdims=True)
        logits: Float16 = np.maximum(shifted, np.finfo(np.float16).min).astype(np.float16)
        return logits
