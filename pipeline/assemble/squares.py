"""Square of a raster: the masks of its windows become compressed tiles of the full size and of five overviews.

In: rows of a run. Out: one object of tiles, whose index stands in front of them. The same rows give the same bytes.

    8 bytes      length of the index, little-endian
    index        JSON: bytes of each tile by level, row by row; pixels of each id; windows without a row
    tiles        level after level, full size first
"""

import json
from dataclasses import dataclass
from itertools import chain

import numpy as np

from pipeline.assemble.plan import SQUARE_PX, Assembly, overlap, read_rows
from pipeline.errors import JobError
from pipeline.geotiff.pyramid import NODATA, TILE_PX, count_ids, encode_tiles, halve, level_sizes
from pipeline.image.encode import read_mask_png
from pipeline.records import Int64, UInt8, Window
from pipeline.refine.window import inside
from pipeline.store import objects
from pipeline.store.url import Url

LEVELS = (SQUARE_PX // TILE_PX).bit_length()
"""Levels inside a square: the full size, and the overviews down to the one of a single tile."""
_LENGTH_BYTES = 8
_AGAIN = "delete it and run `atrous assemble` again"


@dataclass(frozen=True, slots=True)
class SquareIndex:
    """Index of the tiles of a square."""

    counts: list[list[int]]
    """Bytes of each tile, by level, row by row; 0 for a tile without data."""
    pixels: list[int]
    """(256,) pixels of each id, 255 for those without data."""
    holes: int
    """Pixels of windows that have no mask because they failed, or have no row."""

    @property
    def level_starts(self) -> list[int]:
        """First byte of each level behind the index."""
        sizes = [sum(counts) for counts in self.counts]
        return [sum(sizes[:number]) for number in range(len(sizes))]


def write_square(run_url: Url, assembly: Assembly, square: Window) -> None:
    """Compress the tiles of a square and put them as one object, unless it is there. Idempotent."""
    url = assembly.block_url(run_url, square)
    if objects.exists(url):
        return
    ids_hw, covered = read_square(run_url, assembly, square)
    objects.put(url, encode_square(ids_hw, holes=ids_hw.size - covered, raster=assembly))


def read_square(run_url: Url, assembly: Assembly, square: Window) -> tuple[UInt8, int]:
    """Class ids of a square, 255 without data, and how many of its pixels are in windows that have a row `ok`."""
    ids_hw, covered = np.full((square.height, square.width), NODATA, np.uint8), 0
    shards = {shard for shard, window in assembly.shards if overlap(window, square)}
    rows = (read_rows(run_url, part, shards) for part in assembly.parts_of(square))
    for window, png in chain.from_iterable(rows):
        if not (square.y <= window.y < square.y + square.height and square.x <= window.x < square.x + square.width):
            continue
        covered += window.height * window.width
        if png is None:
            continue
        mask_hw = read_mask_png(png)
        if mask_hw.shape != (window.height, window.width):
            hint = "delete its part and submit the run's command again"
            raise JobError(f"the mask of {assembly.uri}#{window.y},{window.x} has the size {mask_hw.shape}", hint=hint)
        ids_hw[inside(square, window)] = mask_hw
    return ids_hw, covered


def encode_square(ids_hw: UInt8, *, holes: int, raster: Assembly) -> bytes:
    """Index and tiles of a square; its levels are those that the whole raster has."""
    pixels = count_ids(ids_hw)
    counts: list[list[int]] = []
    tiles: list[bytes] = []
    for number in range(min(LEVELS, len(level_sizes(raster.raster.height, raster.raster.width)))):
        ids_hw = halve(ids_hw) if number else ids_hw
        level = list(encode_tiles(ids_hw))
        counts.append([len(tile) for tile in level])
        tiles += level
    index = json.dumps({"counts": counts, "pixels": pixels.tolist(), "holes": holes}, separators=(",", ":")).encode()
    return b"".join((len(index).to_bytes(_LENGTH_BYTES, "little"), index, *tiles))


@dataclass(frozen=True, slots=True)
class StoredSquare:
    """Tiles of a square in their object, read by ranges."""

    url: Url
    etag: str
    window: Window
    index: SquareIndex
    data_at: int
    """First byte of the tiles."""

    def level(self, number: int, *, chunk_bytes: int) -> "list[tuple[int, int]]":
        """Ranges of at most `chunk_bytes` that hold the tiles of a level, as first byte and end."""
        start = self.data_at + self.index.level_starts[number]
        end = start + sum(self.index.counts[number])
        return [(at, min(at + chunk_bytes, end)) for at in range(start, end, chunk_bytes)]

    def read(self, start: int, end: int) -> bytes:
        """Bytes of a range. Raises StorageError when the object is missing."""
        with objects.naming_damage(self.url, hint=_AGAIN):
            return objects.read_range(self.url, start, end, etag=self.etag)


def open_square(run_url: Url, assembly: Assembly, square: Window) -> StoredSquare:
    """Read the index of a square.

    Raises:
        StorageError: its object is missing or damaged.
    """
    url = assembly.block_url(run_url, square)
    with objects.naming_damage(url, hint=_AGAIN):
        info = objects.info(url)
        length = int.from_bytes(objects.read_range(url, 0, _LENGTH_BYTES, etag=info.etag), "little")
        end = _LENGTH_BYTES + min(length, info.size)
        index = SquareIndex(**json.loads(objects.read_range(url, _LENGTH_BYTES, end, etag=info.etag)))
        if end + sum(map(sum, index.counts)) != info.size:
            raise ValueError(f"{info.size} bytes do not hold the tiles that its index lists")
    return StoredSquare(url, info.etag, square, index, end)


def tile_grid(level: int, square: Window) -> tuple[Int64, Int64]:
    """Rows and columns of a square's tiles in the grid of tiles of a level of the raster, one entry per tile."""
    scale = TILE_PX << level
    size = -(-square.height // scale), -(-square.width // scale)
    rows, columns = np.indices(size)
    return rows.ravel() + square.y // scale, columns.ravel() + square.x // scale
