"""Square of a raster: the masks of its windows become compressed tiles of the full size and of five overviews.

In: rows of a run. Out: one object of tiles, whose index stands in front of them. The same rows give the same bytes.

    8 bytes      length of the index, little-endian
    index        JSON: bytes of each tile by level, row by row; pixels of each id; windows without a row
    tiles        level after level, full size first
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from pipeline.assemble.layers import Layers, empty_layers
from pipeline.assemble.plan import SQUARE_PX, Assembly, overlap, read_rows
from pipeline.geotiff.pyramid import TILE_PX, count_ids, encode_tiles, halve, level_sizes
from pipeline.records import Int64, UInt8, Window
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


@dataclass(frozen=True, slots=True)
class Square:
    """One square of a raster."""

    assembly: Assembly
    window: Window

    def url(self, run_url: Url) -> Url:
        """URL of its compressed tiles."""
        return self.assembly.block_url(run_url, self.window)


def write_squares(run_url: Url, group: Sequence[Square]) -> None:
    """Compress the tiles of squares and put them, one object for each that is not there yet. Idempotent."""
    left = [square for square in group if not objects.exists(square.url(run_url))]
    for square, layers in zip(left, read_layers(run_url, left), strict=True):
        data = encode_square(layers.ids_hw, holes=layers.failed_pixels, raster=square.assembly)
        objects.put(square.url(run_url), data)


def read_layers(run_url: Url, group: Sequence[Square], *, maps: bool = False) -> list[Layers]:
    """Masks of squares, with `maps` also their confidence and which pixels a refiner changed.

    Each part is read once for all of them: rows of many small rasters are in one part.
    """
    layers = [empty_layers(square.window, maps=maps) for square in group]
    of_shard: defaultdict[str, list[int]] = defaultdict(list)
    for number, square in enumerate(group):
        for shard, window in square.assembly.shards:
            if overlap(window, square.window):
                of_shard[shard].append(number)
    names = sorted({name for square in group for name in square.assembly.parts_of(square.window)})
    for row in chain.from_iterable(read_rows(run_url, name, set(of_shard), maps=maps) for name in names):
        for number in of_shard[row.shard]:
            if overlap(row.window, group[number].window):
                layers[number].add(row, key=f"{group[number].assembly.uri}#{row.window.y},{row.window.x}")
    return layers


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
