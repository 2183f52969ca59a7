"""Overview of a class mask: a small level of a Cloud Optimized GeoTIFF, read by ranges.

In: the URL of a COG as `assemble.join` writes it. Out: class ids of its largest level up to a size. A mask of 100
gigapixels is seen by reading some hundred kilobytes.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.geotiff import directory as tiff
from pipeline.geotiff.directory import Directories, Field
from pipeline.geotiff.pyramid import NODATA, TILE_PX, decode_tile
from pipeline.records import UInt8
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


def read_overview(url: Url, *, longer_px: int) -> Overview:
    """Read the largest level of a mask whose longer side is at most `longer_px`, or the smallest one.

    Raises:
        FileNotFoundError, StorageError, InputError: it is not there, or cannot be read.
    """
    info = objects.info(url)

    def read(at: int, size: int) -> bytes:
        return objects.read_range(url, at, min(at + size, info.size), etag=info.etag)

    directories = Directories(read)
    levels = list(directories)
    sizes = [tuple(int(directories.values(one[tag])[0]) for tag in (tiff.LENGTH, tiff.WIDTH)) for one in levels]
    fitting = [number for number, size in enumerate(sizes) if max(size) <= longer_px]
    number = fitting[0] if fitting else len(sizes) - 1
    return Overview(_read_level(directories, levels[number], sizes[number], read), *sizes[0])


def _read_level(
    directories: Directories, level: dict[int, Field], size: tuple[int, ...], read: tiff.ReadRange
) -> UInt8:
    height, width = size
    down, across = -(-height // TILE_PX), -(-width // TILE_PX)
    ids_hw = np.full((down * TILE_PX, across * TILE_PX), NODATA, np.uint8)
    starts, counts = (directories.values(level[tag]).tolist() for tag in (tiff.TILE_OFFSETS, tiff.TILE_COUNTS))
    for index, (start, count) in enumerate(zip(starts, counts, strict=True)):
        if count:
            y, x = (TILE_PX * place for place in divmod(index, across))
            ids_hw[y : y + TILE_PX, x : x + TILE_PX] = decode_tile(read(start, count))
    return ids_hw[:height, :width]
