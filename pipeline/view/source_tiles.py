"""Tiles of a source raster as RGB for people, from the overviews of its file where it has them.

In: a raster of the run's plan. Out: tiles of 512 pixels on the raster's own grid, at the levels of its mask: each half
the former. A tile is a windowed read of the coarsest page of the file that is at least as fine as the level, and is
reduced by the mean of the pixels. What one tile may decode is limited, so a level far from any page is not shown.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import numpy.typing as npt
import PIL.Image

from pipeline.errors import InputError, StorageError
from pipeline.geotiff.header import Header, overview_headers, read_header
from pipeline.geotiff.overview import TilePlace, tile_counts, tile_size
from pipeline.geotiff.pyramid import TILE_PX, level_sizes
from pipeline.geotiff.raster import Raster
from pipeline.image.channels import visible_rgb
from pipeline.image.scale import eight_bits
from pipeline.records import Bool, UInt8, Window
from pipeline.source.raster import Ranges, RasterShard
from pipeline.source.raster_windows import read_stored
from pipeline.store import objects
from pipeline.store.url import Url

MOST_TILE_BYTES = 64 * 2**20
"""Most bytes of stored samples that are decoded for one tile: 4096 x 4096 pixels of four bands of 8 bits."""
_SCALED_ROWS = 512
"""Rows scaled to 8 bits at a time, which bounds the memory of floats."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Tile along one axis of a page: where it begins and ends, in pixels of the page."""

    start: float
    end: float

    @property
    def pixels(self) -> tuple[int, int]:
        """First pixel, and one past the last one, that the tile touches."""
        return floor(self.start), ceil(self.end)

    def within(self) -> tuple[float, float]:
        """Begin and end from the first pixel that the tile touches."""
        return self.start - floor(self.start), self.end - floor(self.start)


class SourceTiles:
    """Tiles of one raster. Calls from several threads are safe."""

    def __init__(self, url: Url, shard: RasterShard) -> None:
        """Read the header of a raster.

        Args:
            url: where it is.
            shard: its description, with the version that is read, and the scale of its samples.

        Raises:
            InputError: the file is gone, is another version, or cannot be read.
        """
        self._url, self._shard = url, shard
        raster = shard.raster
        with _as_input_errors():
            header = read_header(Ranges(url, raster.etag, raster.size))
            _check_same(header, raster)
            self._pages = [header, *overview_headers(header)]
        self.etag = raster.etag
        """Version of the file."""
        self.sizes = level_sizes(raster.height, raster.width)
        """(height, width) of each level, the full size first."""

        self.tile_bytes = [self._most_bytes(level) for level in range(len(self.sizes))]
        """Bytes of stored samples that the largest tile of each level decodes."""

    @property
    def levels(self) -> list[int]:
        """Levels whose tiles decode at most `MOST_TILE_BYTES` each."""
        return [level for level, size in enumerate(self.tile_bytes) if size <= MOST_TILE_BYTES]

    def _most_bytes(self, level: int) -> int:
        page = self._page(level)
        blocks, (rows, columns) = page.blocks, tile_counts(self.sizes[level])
        high = _most_blocks([self._span(level, row, 0) for row in range(rows)], blocks.block_height)
        wide = _most_blocks([self._span(level, column, 1) for column in range(columns)], blocks.block_width)
        return high * wide * blocks.block_height * blocks.block_width * page.bytes_per_pixel

    def tile(self, place: TilePlace) -> UInt8:
        """(h, w, 3) RGB of a tile, at most 512 x 512; pixels without data are black.

        Raises:
            LookupError: there is no such tile, or its level is none of `levels`.
            InputError: it cannot be read any more.
        """
        size = tile_size(self.sizes, place)
        if place.level not in self.levels:
            raise LookupError(f"level {place.level} of this raster is not read; levels: {self.levels}")
        high, wide = self._span(place.level, place.row, 0), self._span(place.level, place.column, 1)
        (top, bottom), (left, right) = high.pixels, wide.pixels
        window = Window(top, left, bottom - top, right - left)
        with _as_input_errors():
            values, valid = read_stored(self._url, self._shard, self._page(place.level), window)
        return _reduced(self._visible(values, valid), size, high, wide)

    def _page(self, level: int) -> Header:
        """The coarsest page that has at least the pixels of a level; sides of overviews are rounded up or down."""
        height, width = self.sizes[0]
        fine = [
            page
            for page in self._pages
            if page.blocks.height >= height >> level and page.blocks.width >= width >> level
        ]
        return fine[-1]

    def _span(self, level: int, at: int, axis: int) -> _Span:
        """Tile number `at` along an axis, 0 for rows and 1 for columns, in pixels of the page of its level."""
        blocks = self._page(level).blocks
        side, here = (blocks.height, blocks.width)[axis], self.sizes[level][axis]
        start, end = at * TILE_PX, min((at + 1) * TILE_PX, here)
        if side == here:
            return _Span(start, end)
        scale = side * 2**level / self.sizes[0][axis]
        return _Span(start * scale, min(end * scale, side))

    def _visible(self, values_chw: npt.NDArray[np.generic], valid_hw: Bool | None) -> UInt8:
        """(h, w, 3) RGB of stored values, scaled as the run scaled them."""
        out = np.empty((*values_chw.shape[1:], 3), np.uint8)
        for y in range(0, len(out), _SCALED_ROWS):
            rows = np.moveaxis(values_chw[:, y : y + _SCALED_ROWS], 0, -1)
            out[y : y + _SCALED_ROWS] = visible_rgb(eight_bits(rows, self._shard.scale), self._shard.raster.channels)
        if valid_hw is not None:
            out[~valid_hw] = 0
        return out


@contextmanager
def _as_input_errors() -> Iterator[None]:
    """Raise the errors of a read as InputErrors, as for an image that is read again."""
    try:
        yield
    except (FileNotFoundError, StorageError) as error:
        raise objects.as_input_error(error) from error


def _check_same(header: Header, raster: Raster) -> None:
    """Raise InputError for a file that is not the raster of the plan, as one at a place that the user named may be."""
    here = header.blocks.width, header.blocks.height, header.count, header.dtype
    planned = raster.width, raster.height, raster.count, raster.dtype
    if here != planned:
        texts = ["{}x{} pixels, {} bands of {}".format(*facts) for facts in (here, planned)]
        raise InputError("source_changed", f"{raster.path} has {texts[0]}; the run read {texts[1]}")


def _most_blocks(spans: list[_Span], block_px: int) -> int:
    """Most blocks that one of the spans touches."""
    return max(-(-end // block_px) - start // block_px for start, end in (span.pixels for span in spans))


def _reduced(rgb_hw3: UInt8, size: tuple[int, int], high: _Span, wide: _Span) -> UInt8:
    """Pixels of a tile from those of a page, by the mean of those that each covers."""
    if rgb_hw3.shape[:2] == size:
        return rgb_hw3
    (top, bottom), (left, right) = high.within(), wide.within()
    image = PIL.Image.fromarray(rgb_hw3)
    return np.asarray(image.resize(size[::-1], PIL.Image.Resampling.BOX, box=(left, top, right, bottom)))
