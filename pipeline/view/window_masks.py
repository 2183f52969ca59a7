"""Mask of a raster whose windows are not joined yet: tiles from the rows of the windows that are committed.

In: masks of windows by their keys. Out: the tiles that the joined mask will have, at the levels where a tile needs few
windows; pixels of windows without a mask are without data.
"""

from collections.abc import Callable

import numpy as np

from pipeline.geotiff.overview import TilePlace, tile_size
from pipeline.geotiff.pyramid import NODATA, TILE_PX, halve, level_sizes
from pipeline.records import UInt8, Window
from pipeline.refine.window import inside
from pipeline.source.raster import RasterShard

MOST_WINDOWS = 16
"""Most windows of one tile: each is decoded whole."""

MaskOf = Callable[[str], UInt8 | None]
"""Mask of a window by its key, (h, w) class ids; None for one without."""


def levels_of_windows(shard: RasterShard) -> list[int]:
    """Levels whose tiles need at most `MOST_WINDOWS`, and whose pixels do not lie across windows."""
    sizes = level_sizes(shard.raster.height, shard.raster.width)
    across = [-(-TILE_PX * 2**level // shard.core_px) for level in range(len(sizes))]
    return [level for level, count in enumerate(across) if count**2 <= MOST_WINDOWS and shard.core_px % 2**level == 0]


def tile_of_windows(shard: RasterShard, uri: str, mask_of: MaskOf, place: TilePlace) -> UInt8:
    """(h, w) class ids of a tile, 255 without data.

    Args:
        shard: any shard of the raster: its size, and the grid of its windows.
        uri: start of the keys of its windows.
        mask_of: masks of windows.
        place: the tile, at one of `levels_of_windows`.

    Raises:
        LookupError: there is no such tile, or its level has none.
    """
    height, width = tile_size(level_sizes(shard.raster.height, shard.raster.width), place)
    if place.level not in (levels := levels_of_windows(shard)):
        raise LookupError(f"level {place.level} needs too many windows; levels: {levels}")
    whole = Window(place.row * TILE_PX, place.column * TILE_PX, height, width)
    ids_hw = np.full((height, width), NODATA, np.uint8)
    core, level = shard.core_px, place.level
    for y in range(whole.y * 2**level // core * core, (whole.y + height) * 2**level, core):
        for x in range(whole.x * 2**level // core * core, (whole.x + width) * 2**level, core):
            small = mask_of(f"{uri}#{y},{x}")
            if small is None:
                continue
            for _ in range(level):
                small = halve(small)
            _put(ids_hw, whole, small, y >> level, x >> level)
    return ids_hw


def _put(ids_hw: UInt8, whole: Window, small: UInt8, y: int, x: int) -> None:
    """Copy the part of a window that lies in a tile; both in pixels of the level."""
    top, left = max(y, whole.y), max(x, whole.x)
    bottom = min(y + small.shape[0], whole.y + whole.height)
    right = min(x + small.shape[1], whole.x + whole.width)
    shared = Window(top, left, bottom - top, right - left)
    ids_hw[inside(whole, shared)] = small[inside(Window(y, x, *small.shape), shared)]
