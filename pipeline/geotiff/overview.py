"""Levels of a class mask: tiles of a Cloud Optimized GeoTIFF and its small levels as a whole, read by ranges.

In: a COG as `assemble.join` writes it. Out: class ids of a tile, or of the largest level up to a size. A mask of 100
gigapixels is seen by reading some hundred kilobytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import InputError
from pipeline.geotiff import directory as tiff
from pipeline.geotiff.directory import Directories, ReadRange
from pipeline.geotiff.pyramid import NODATA, TILE_PX, decode_tile
from pipeline.records import Int64, UInt8
from pipeline.store import objects
from pipeline.store.url import Url


@dataclass(frozen=True, slots=True)
class Overview:
    """One level of a mask."""

    ids_hw: UInt8
    """(h, w) class ids, 255 without data."""
    height: int
    """Of the full size, pixels."""
    width: int


@dataclass(frozen=True, slots=True)
class TilePlace:
    """Place of a tile of 512 pixels in a pyramid of levels, each half the former."""

    level: int
    """0 for the full size."""
    row: int
    """Of tiles, in the level."""
    column: int


class MaskPyramid:
    """Levels of one mask, whose tiles are read one by one. Calls from several threads are safe if `read` is."""

    def __init__(self, read: ReadRange) -> None:
        """Read the directories of the file.

        Raises:
            InputError: it is no TIFF of such tiles, or damaged.
        """
        self._read, self._directories = read, Directories(read)
        self._levels = list(self._directories)
        needed = (tiff.LENGTH, tiff.WIDTH, tiff.TILE_WIDTH, tiff.TILE_LENGTH, tiff.TILE_OFFSETS, tiff.TILE_COUNTS)
        for level, fields in enumerate(self._levels):
            if not fields.keys() >= set(needed) or self._number(level, tiff.TILE_WIDTH) != TILE_PX:
                raise InputError("unsupported_format", f"level {level} has no tiles of {TILE_PX} pixels")
        self.sizes = [(self._number(at, tiff.LENGTH), self._number(at, tiff.WIDTH)) for at in range(len(self._levels))]
        """(height, width) of each level, the full size first."""

    def tile(self, place: TilePlace) -> bytes:
        """Compressed tile, see `tile_ids`; empty for one without data.

        Raises:
            LookupError: there is no such level or tile.
            FileNotFoundError, StorageError, InputError: the file cannot be read.
        """
        tile_size(self.sizes, place)
        at = place.row * tile_counts(self.sizes[place.level])[1] + place.column
        start, count = (int(self._values(place.level, tag, at)[0]) for tag in (tiff.TILE_OFFSETS, tiff.TILE_COUNTS))
        return self._exactly(start, count)

    def level(self, level: int) -> UInt8:
        """(h, w) class ids of a whole level; raises as `tile`."""
        height, width = self.sizes[level]
        down, across = tile_counts((height, width))
        ids_hw = np.full((down * TILE_PX, across * TILE_PX), NODATA, np.uint8)
        starts, counts = (self._values(level, tag).tolist() for tag in (tiff.TILE_OFFSETS, tiff.TILE_COUNTS))
        for index, (start, count) in enumerate(zip(starts, counts, strict=True)):
            if count:
                y, x = (TILE_PX * place for place in divmod(index, across))
                ids_hw[y : y + TILE_PX, x : x + TILE_PX] = tile_ids(self._exactly(start, count))
        return ids_hw[:height, :width]

    def _number(self, level: int, tag: int) -> int:
        return int(self._values(level, tag, 0)[0])

    def _values(self, level: int, tag: int, at: int | None = None) -> Int64:
        """All values of a field, or the one at an index."""
        field = self._levels[level][tag]
        return self._directories.values(field) if at is None else self._directories.values(field, at, 1)

    def _exactly(self, start: int, count: int) -> bytes:
        data = self._read(start, count)
        if len(data) < count:
            raise InputError("truncated", f"the mask ends before byte {start + count}, where a tile ends")
        return data


def tile_counts(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tiles of a level of this (height, width)."""
    return -(-size[0] // TILE_PX), -(-size[1] // TILE_PX)


def tile_ids(data: bytes) -> UInt8:
    """(512, 512) class ids of a compressed tile, also beyond the edges of its level.

    Raises:
        InputError: `corrupt`.
    """
    try:
        return decode_tile(data)
    except (RuntimeError, ValueError) as error:  # imagecodecs' errors are RuntimeErrors
        raise InputError("corrupt", f"a tile of the mask cannot be decoded: {error}") from error


def tile_size(sizes: Sequence[tuple[int, int]], place: TilePlace) -> tuple[int, int]:
    """Height and width of a tile, which is cut off at the edges of its level.

    Raises:
        LookupError: there is no such level or tile.
    """
    if not 0 <= place.level < len(sizes):
        raise LookupError(f"no level {place.level}; levels: 0 to {len(sizes) - 1}")
    height, width = sizes[place.level]
    down, across = tile_counts((height, width))
    if not (0 <= place.row < down and 0 <= place.column < across):
        raise LookupError(f"no tile {place.row}, {place.column} of level {place.level}, which has {down} x {across}")
    return min(TILE_PX, height - place.row * TILE_PX), min(TILE_PX, width - place.column * TILE_PX)


def read_overview(url: Url, *, longer_px: int) -> Overview:
    """Read the largest level of a mask whose longer side is at most `longer_px`, or the smallest one.

    Raises:
        FileNotFoundError, StorageError, InputError: it is not there, or cannot be read.
    """
    info = objects.info(url)

    def read(at: int, size: int) -> bytes:
        return objects.read_range(url, at, min(at + size, info.size), etag=info.etag)

    pyramid = MaskPyramid(read)
    fitting = [number for number, size in enumerate(pyramid.sizes) if max(size) <= longer_px]
    number = fitting[0] if fitting else len(pyramid.sizes) - 1
    return Overview(pyramid.level(number), *pyramid.sizes[0])
