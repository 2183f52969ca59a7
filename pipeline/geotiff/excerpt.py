"""Excerpt of a raster: a small TIFF of the original compressed tiles that a window touches, under a header of its own.

In: the header of the raster, the window, and the compressed tiles. Out: the bytes of a TIFF that any reader opens: its
transform gives the position in the raster in pixels, its nodata value and alpha are those in use, and its bands that a
network reads have the names of the network's channels. Nothing is decoded, so this costs no more than copying.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

from pipeline.geotiff import directory as tiff
from pipeline.geotiff.directory import Field, Values, encode_directories
from pipeline.geotiff.header import PALETTE, Blocks, Header
from pipeline.geotiff.raster import Raster
from pipeline.records import Window

_COPIED = (
    *(tiff.BITS, tiff.COMPRESSION, tiff.PHOTOMETRIC, tiff.SAMPLES, tiff.PLANAR, tiff.PREDICTOR, tiff.SAMPLE_FORMAT),
    *(tiff.JPEG_TABLES, tiff.SUBSAMPLING, 532, 50674),  # ReferenceBlackWhite; LERC parameters
)
"""Tags without which tiles cannot be decoded, copied as they are."""
_UNSPECIFIED, _ALPHA = 0, 2  # ExtraSamples
_COLOUR_SAMPLES = {2: 3, 5: 4, 6: 3}
"""Samples of RGB, CMYK and YCbCr; of other values of PhotometricInterpretation 1."""


@dataclass(frozen=True, slots=True)
class Region:
    """Rows and columns of blocks that cover a window: first ones, and one past the last ones."""

    top: int
    left: int
    bottom: int
    right: int

    def indices(self, blocks: Blocks) -> npt.NDArray[np.int64]:
        """(planes, rows, columns) index of each block in the file's lists."""
        rows = np.arange(self.top, self.bottom)[:, None] * blocks.columns + np.arange(self.left, self.right)
        per_plane = blocks.rows * blocks.columns
        return np.asarray(rows + per_plane * np.arange(blocks.planes)[:, None, None], np.int64)

    def window(self, blocks: Blocks) -> Window:
        """Pixels of the blocks, cut off at the edges of the page."""
        y, x = self.top * blocks.block_height, self.left * blocks.block_width
        bottom = min(self.bottom * blocks.block_height, blocks.height)
        right = min(self.right * blocks.block_width, blocks.width)
        return Window(y, x, bottom - y, right - x)


def region_of(blocks: Blocks, window: Window) -> Region:
    """Blocks that a window touches."""
    return Region(
        top=window.y // blocks.block_height,
        left=window.x // blocks.block_width,
        bottom=-(-(window.y + window.height) // blocks.block_height),
        right=-(-(window.x + window.width) // blocks.block_width),
    )


BlockBytes = Callable[[int], bytes]
"""Compressed bytes of a block by its index in the file's lists; empty for a sparse block."""


def encode_excerpt(
    header: Header,
    raster: Raster,
    region: Region,
    block: BlockBytes,
    mask_block: BlockBytes | None = None,
) -> bytes:
    """TIFF of the blocks of a region of tiles or strips.

    Args:
        header: header of the raster.
        raster: its bands, their names, and its nodata value in use.
        region: which blocks.
        block: bytes of the image's blocks.
        mask_block: bytes of the mask's blocks; None without a mask page.
    """
    here = region.window(header.blocks)
    pages = [_page(header, header.fields, header.blocks, region)]
    pages[0] |= _meaning(header, raster, here)
    parts = [[block(index) for index in region.indices(header.blocks).ravel().tolist()]]
    if header.mask is not None and mask_block is not None:
        pages.append(_page(header, header.mask_fields, header.mask, region))
        pages[1][tiff.SUBFILE] = _longs([0b100])
        parts.append([mask_block(index) for index in region.indices(header.mask).ravel().tolist()])
    return b"".join(_joined(pages, parts, header))


def _joined(pages: list[dict[int, Values]], parts: list[list[bytes]], header: Header) -> Iterator[bytes]:
    """Head and data of the file."""
    tags = (tiff.TILE_OFFSETS, tiff.TILE_COUNTS) if header.blocks.tiled else (tiff.STRIP_OFFSETS, tiff.STRIP_COUNTS)
    order = header.directories.order
    for page, data in zip(pages, parts, strict=True):
        page[tags[0]] = page[tags[1]] = _longs([len(part) for part in data])
    at = len(encode_directories(pages, big=False, order=order))
    for page, data in zip(pages, parts, strict=True):
        starts = at + np.cumsum([0, *map(len, data)])
        page[tags[0]] = _longs(np.where([len(part) for part in data], starts[:-1], 0))
        at = int(starts[-1])
    yield encode_directories(pages, big=False, order=order)
    yield from itertools.chain(*parts)


def _page(header: Header, fields: Mapping[int, Field], blocks: Blocks, region: Region) -> dict[int, Values]:
    """Fields of one page of the excerpt, without those of its data."""
    here = region.window(blocks)
    page = {tag: Values(fields[tag].type, header.directories.values(fields[tag])) for tag in _COPIED if tag in fields}
    if tiff.PHOTOMETRIC not in page or page[tiff.PHOTOMETRIC].values[0] == PALETTE:  # indices, without their colours
        page[tiff.PHOTOMETRIC] = Values(tiff.SHORT, np.array([1]))
    page |= {tiff.WIDTH: _longs([here.width]), tiff.LENGTH: _longs([here.height])}
    if blocks.tiled:
        page |= {tiff.TILE_WIDTH: _longs([blocks.block_width]), tiff.TILE_LENGTH: _longs([blocks.block_height])}
    else:
        page[tiff.ROWS_PER_STRIP] = _longs([blocks.block_height])
    return page


def _meaning(header: Header, raster: Raster, here: Window) -> dict[int, Values]:
    """Fields that say where the excerpt lies, and what its bands and its nodata value are."""
    transform = [1.0, 0, 0, here.x, 0, 1, 0, here.y, 0, 0, 0, 0, 0, 0, 0, 1]
    meaning = {
        tiff.TRANSFORMATION: Values(tiff.DOUBLE, np.array(transform)),
        tiff.GEO_KEYS: Values(tiff.SHORT, np.array([1, 1, 0, 1, 1025, 0, 1, 1])),  # one key: pixels are areas
        tiff.GDAL_METADATA: Values(tiff.ASCII, _descriptions(raster.bands, raster.channels).encode() + b"\0"),
    }
    if raster.nodata is not None:
        meaning[tiff.NODATA] = Values(tiff.ASCII, f"{raster.nodata:.17g}".encode() + b"\0")
    extras = header.count - _COLOUR_SAMPLES.get(header.photometric, 1)
    if extras > 0:
        first = header.count - extras + 1
        tags = [_ALPHA if band == raster.alpha else _UNSPECIFIED for band in range(first, header.count + 1)]
        meaning[tiff.EXTRA_SAMPLES] = Values(tiff.SHORT, np.array(tags))
    return meaning


def _descriptions(bands: tuple[int, ...], channels: tuple[str, ...]) -> str:
    """Metadata of GDAL that names bands, tag 42112."""
    items = (
        f'<Item name="DESCRIPTION" sample="{band - 1}" role="description">{escape(name)}</Item>'
        for band, name in zip(bands, channels, strict=True)
    )
    return f"<GDALMetadata>{''.join(items)}</GDALMetadata>"


def _longs(values: Any) -> Values:
    return Values(tiff.LONG, np.asarray(values))
