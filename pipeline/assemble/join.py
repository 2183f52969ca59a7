"""Join of one raster: the tiles of its squares become a Cloud Optimized GeoTIFF, streamed to its place.

In: the objects of the squares. Out: `masks/<path>.tif`. Compressed tiles are copied as they are; only overviews above
those of a square are made here, from its last one. Memory does not grow with the raster, but for 16 bytes per tile and
one pixel per 1024 of the full size.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.assemble.plan import SQUARE_PX, Assembly
from pipeline.assemble.squares import LEVELS, StoredSquare, open_square, tile_grid
from pipeline.classes import ClassMap
from pipeline.geotiff.cog import CLASSIC_BYTES, Level, encode_head
from pipeline.geotiff.pyramid import NODATA, TILE_PX, decode_tile, encode_tiles, halve, level_sizes
from pipeline.records import Int64, UInt8
from pipeline.store import objects
from pipeline.store.url import Url

CHUNK_BYTES = 8 * 2**20
"""Bytes of the squares read at a time."""


@dataclass(frozen=True, slots=True)
class JoinedMask:
    """What was joined."""

    class_pixels: Int64
    """(256,) pixels of each id, 255 for those without data."""
    holes: int
    """Pixels of windows that failed, without data in the file."""
    size: int
    """Bytes of the file."""


def join_mask(run_url: Url, assembly: Assembly, classes: ClassMap) -> JoinedMask:
    """Write the COG of a raster whose squares are all there. Idempotent: the same squares give the same bytes.

    Raises:
        StorageError: the object of a square is missing or damaged.
    """
    squares = [open_square(run_url, assembly, square) for square in assembly.squares]
    class_pixels = np.array([square.index.pixels for square in squares], np.int64).sum(axis=0)
    above = _levels_above(assembly, squares)
    head, size = _head(assembly, squares, above, classes, class_pixels)
    objects.put_stream(assembly.mask_url(run_url), _chunks(head, squares, above))
    return JoinedMask(class_pixels, sum(square.index.holes for square in squares), size)


def _levels_above(assembly: Assembly, squares: list[StoredSquare]) -> list[list[bytes]]:
    """Tiles of the overviews above those of the squares, the largest first."""
    sizes = level_sizes(assembly.raster.height, assembly.raster.width)
    if len(sizes) <= LEVELS:
        return []
    ids_hw = _last_of_squares(sizes[LEVELS - 1], squares)
    above = []
    for _ in sizes[LEVELS:]:
        ids_hw = halve(ids_hw)
        above.append(list(encode_tiles(ids_hw)))
    return above


def _last_of_squares(size: tuple[int, int], squares: list[StoredSquare]) -> UInt8:
    """The overview of which each square has one tile, for the whole raster."""
    ids_hw = np.full(size, NODATA, np.uint8)
    for square in squares:
        data = b"".join(square.read(*span) for span in square.level(LEVELS - 1, chunk_bytes=CHUNK_BYTES))
        y, x = (place // SQUARE_PX * TILE_PX for place in (square.window.y, square.window.x))
        here = ids_hw[y : y + TILE_PX, x : x + TILE_PX]
        here[:] = decode_tile(data)[: here.shape[0], : here.shape[1]]
    return ids_hw


def _head(
    assembly: Assembly,
    squares: list[StoredSquare],
    above: list[list[bytes]],
    classes: ClassMap,
    class_pixels: Int64,
) -> tuple[bytes, int]:
    """Head of the file, and the size of the whole; a BigTIFF only where 32-bit offsets do not suffice."""
    levels = [_counts(number, size, squares, above) for number, size in enumerate(_sizes(assembly))]
    data_bytes = sum(int(level.counts.sum()) for level in levels)
    for big in (False, True):
        empty = len(encode_head(levels, classes, assembly.raster.geo_tags, class_pixels, big=big))
        if empty + data_bytes <= CLASSIC_BYTES or big:
            break
    placed = _placed(levels, squares, empty)
    head = encode_head(placed, classes, assembly.raster.geo_tags, class_pixels, big=big)
    if len(head) != empty:
        raise ValueError("the length of the head depends on the offsets")
    return head, empty + data_bytes


def _sizes(assembly: Assembly) -> list[tuple[int, int]]:
    return level_sizes(assembly.raster.height, assembly.raster.width)


def _counts(number: int, size: tuple[int, int], squares: list[StoredSquare], above: list[list[bytes]]) -> Level:
    """A level with the sizes of its tiles; its offsets are 0."""
    grid = np.zeros((-(-size[0] // TILE_PX), -(-size[1] // TILE_PX)), np.int64)
    if number >= LEVELS:
        grid.ravel()[:] = [len(tile) for tile in above[number - LEVELS]]
    else:
        for square in squares:
            grid[tile_grid(number, square.window)] = square.index.counts[number]
    return Level(*size, np.zeros(grid.size, np.uint64), grid.ravel())


def _placed(levels: list[Level], squares: list[StoredSquare], start: int) -> list[Level]:
    """Levels with the offsets of their tiles, in the order in which `_chunks` writes them."""
    placed, at = list(levels), start
    for number in reversed(range(len(levels))):
        level = levels[number]
        columns = -(-level.width // TILE_PX)
        order = np.arange(level.counts.size)
        if number < LEVELS:
            grids = (tile_grid(number, square.window) for square in squares)
            order = np.concatenate([rows * columns + across for rows, across in grids])
        counts = level.counts[order]
        starts = at + np.concatenate([[0], np.cumsum(counts)[:-1]])
        offsets = np.zeros(level.counts.size, np.uint64)
        offsets[order] = np.where(counts, starts, 0)
        placed[number] = replace(level, offsets=offsets)
        at += int(counts.sum())
    return placed


def _chunks(head: bytes, squares: list[StoredSquare], above: list[list[bytes]]) -> Iterator[bytes]:
    """The file: its head, the overviews from the smallest one, and the full size."""
    yield head
    for tiles in reversed(above):
        yield from tiles
    for number in reversed(range(len(squares[0].index.counts))):
        for square in squares:
            for span in square.level(number, chunk_bytes=CHUNK_BYTES):
                yield square.read(*span)
