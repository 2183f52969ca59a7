"""Tiling: an image of any size cut into equal tiles, whose corners are at multiples of 32 pixels.

In: the size of an image. Out: a `TileGrid`, and the tiles it cuts. Nothing is resized, so a cell of the logits covers
the same pixels in every tile that holds it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import TileConfig
from pipeline.records import LEFT_WHOLE, UInt8

ALIGN_PX = 32
"""Tile corners are at multiples of this: the largest stride inside any network of the zoo."""

CPU_BATCH = 2
"""Tiles per batch on a CPU, unless set."""


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Equal, overlapping tiles that cover one image exactly."""

    height: int
    """Height of the image, pixels."""
    width: int
    tile_height: int
    """Height of every tile, pixels; a tile that leaves the image is padded."""
    tile_width: int
    corners: tuple[tuple[int, int], ...]
    """(y, x) of the first pixel of each tile, row by row."""


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _axis(size_px: int, cfg: TileConfig, beyond_px: int, origin_px: int) -> tuple[int, list[int]]:
    """Tile length and first pixels along one axis; the last tile ends with the image.

    Between the first and the last one, tiles are where those of the whole raster are: at multiples of their step.
    """
    if cfg.mode == "whole":
        return max(_round_up(size_px - beyond_px, ALIGN_PX), ALIGN_PX) + beyond_px, [0]
    if size_px <= cfg.tile_px * LEFT_WHOLE:
        return max(_round_up(size_px - beyond_px, cfg.bucket_px), cfg.bucket_px) + beyond_px, [0]
    last = _round_up(size_px - beyond_px, ALIGN_PX) - cfg.tile_px
    step = cfg.tile_px - cfg.overlap_px
    return cfg.tile_px + beyond_px, sorted({0, *range(-origin_px % step, last, step), last})


def plan_tiles(
    height: int, width: int, cfg: TileConfig, *, align_corners: bool = False, origin: tuple[int, int] = (0, 0)
) -> TileGrid:
    """Tiles of an image of `height` x `width` pixels, both at least 1, or of a window of a raster at `origin`.

    A side of up to 1.25 `tile_px` is one tile, rounded up to a multiple of `bucket_px` so that images of nearly the
    same size share a batch. With mode `whole` every side is one tile, rounded up to a multiple of 32.

    With `align_corners` every tile has one row and one column more, 513 instead of 512, so that in every grid inside
    the network the first and last cells are the first and last pixels. These networks were trained on crops of 321 and
    513 for the same reason (Chen 2014, arXiv 1412.7062).

    Windows of a raster share the tiles of the raster, except the outermost ones, so that two windows agree where they
    overlap. `origin`, the row and column of the first pixel, is a multiple of 32.
    """
    beyond_px = int(align_corners)
    tile_height, ys = _axis(height, cfg, beyond_px, origin[0])
    tile_width, xs = _axis(width, cfg, beyond_px, origin[1])
    return TileGrid(height, width, tile_height, tile_width, tuple((y, x) for y in ys for x in xs))


def cut_tile(pixels_hwc: UInt8, grid: TileGrid, index: int) -> UInt8:
    """Cut tile `index` of a grid out of (H, W, C) pixels, padded by reflection: (tile_height, tile_width, C) uint8."""
    y, x = grid.corners[index]
    part = pixels_hwc[y : y + grid.tile_height, x : x + grid.tile_width]
    missing = grid.tile_height - part.shape[0], grid.tile_width - part.shape[1]
    return np.pad(part, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric") if any(missing) else part


def blend_window(length: int) -> npt.NDArray[np.float32]:
    """Blend weights along one axis of a tile, (length,) float32: a raised cosine, 0.01 or more at the border.

    The canvas divides by their sum, so any positive weights would do; the smooth fall hides the seams.
    """
    phase = (np.arange(length, dtype=np.float32) + 0.5) / length
    return (0.01 + 0.99 * np.sin(np.pi * phase) ** 2).astype(np.float32)
