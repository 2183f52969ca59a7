"""Pyramid of a class mask: overviews by majority, and compressed tiles of each level.

In: class ids, (H, W) uint8. Out: the next smaller level, and the tiles of a level as they stand in a Cloud Optimized
GeoTIFF. Class ids are never averaged; pixels without data count like a class, so that borders stay where they are.
"""

from collections.abc import Iterator

import imagecodecs
import numpy as np

from pipeline.records import Int64, UInt8

TILE_PX = 512
"""Edge of a tile: GDAL's default for Cloud Optimized GeoTIFFs."""
NODATA = 255
DEFLATE_LEVEL = 8
"""Of libdeflate: 0.8 times the bytes of zlib's level 6 on a busy mask, which GDAL takes, in the same time."""


_STRIP_ROWS = 512
"""Rows halved at a time, which bounds the memory of intermediate arrays."""


def halve(ids_hw: UInt8) -> UInt8:
    """Mode of each 2x2 block, ((H+1)//2, (W+1)//2); of a tie, the class whose first pixel is nearer to the upper left.

    The last row and column of an odd size are repeated.
    """
    height, width = ids_hw.shape
    half = np.empty(((height + 1) // 2, (width + 1) // 2), np.uint8)
    for y in range(0, height, _STRIP_ROWS):
        strip = ids_hw[y : y + _STRIP_ROWS]
        odd = len(strip) % 2, width % 2
        if any(odd):
            strip = np.pad(strip, ((0, odd[0]), (0, odd[1])), mode="edge")
        a, b, c, d = strip[::2, ::2], strip[::2, 1::2], strip[1::2, ::2], strip[1::2, 1::2]
        others = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
        half[y // 2 : y // 2 + len(a)] = np.where((a == b) | (a == c) | (a == d), a, others)
    return half


def count_ids(ids_hw: UInt8) -> Int64:
    """(256,) pixels of each id, counted in strips: `bincount` alone makes 8 bytes of each pixel."""
    counts = np.zeros(256, np.int64)
    for y in range(0, len(ids_hw), _STRIP_ROWS):
        counts += np.bincount(ids_hw[y : y + _STRIP_ROWS].ravel(), minlength=256)
    return counts


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(height, width) of each level: the full size first, then halves until one tile holds a level."""
    sizes = [(height, width)]
    while max(sizes[-1]) > TILE_PX:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def encode_tiles(ids_hw: UInt8) -> Iterator[bytes]:
    """Compressed tiles of an array, row by row; empty for a tile without data. Tiles beyond the edges are padded."""
    for y in range(0, ids_hw.shape[0], TILE_PX):
        for x in range(0, ids_hw.shape[1], TILE_PX):
            part = ids_hw[y : y + TILE_PX, x : x + TILE_PX]
            if part.shape != (TILE_PX, TILE_PX):
                rest = TILE_PX - part.shape[0], TILE_PX - part.shape[1]
                part = np.pad(part, ((0, rest[0]), (0, rest[1])), constant_values=NODATA)
            empty = part[0, 0] == NODATA and (part == NODATA).all()
            yield b"" if empty else bytes(imagecodecs.deflate_encode(part.tobytes(), level=DEFLATE_LEVEL))


def decode_tile(data: bytes) -> UInt8:
    """Inverse of `encode_tiles` for one tile: (512, 512)."""
    if not data:
        return np.full((TILE_PX, TILE_PX), NODATA, np.uint8)
    return np.frombuffer(imagecodecs.deflate_decode(data), np.uint8).reshape(TILE_PX, TILE_PX)
