"""Head of a Cloud Optimized GeoTIFF of a class mask, from the sizes of tiles that are compressed already.

In: sizes and offsets of all tiles, the class map, and the georeferencing of the source. Out: the bytes in front of the
tiles. Layout: every directory first, then the tiles of the overviews, smallest first, then those of the full size
(https://docs.ogc.org/is/21-026/21-026.html, sec. 7). The order of tiles within a level is free.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.classes import ClassMap
from pipeline.geotiff import directory as tiff
from pipeline.geotiff.directory import Values, encode_directories
from pipeline.geotiff.pyramid import NODATA, TILE_PX
from pipeline.geotiff.raster import GeoTag
from pipeline.records import Int64, UInt64

CLASSIC_BYTES = 2**32 - 2**16
"""Largest file without 64-bit offsets."""
_DEFLATE, _PALETTE = 8, 3


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the pyramid: size, and where its tiles are."""

    height: int
    """Pixels."""
    width: int
    offsets: UInt64
    """First byte of each tile, row by row; 0 for a sparse one."""
    counts: Int64
    """Bytes of each tile; 0 for a sparse one."""


def encode_head(
    levels: Sequence[Level], classes: ClassMap, geo_tags: Sequence[GeoTag], class_pixels: Int64, *, big: bool
) -> bytes:
    """Head of the file; its length does not depend on the offsets.

    Args:
        levels: full size first.
        classes: names and colours of the classes.
        geo_tags: georeferencing, copied from the source.
        class_pixels: (256,) pixels of each id, for the statistics in the metadata of GDAL.
        big: write a BigTIFF, with 64-bit offsets.
    """
    pages = [_page(level, classes, big, reduced=number > 0) for number, level in enumerate(levels)]
    pages[0] |= {tag.tag: Values(tag.type, tag.data) for tag in geo_tags}
    pages[0][tiff.GDAL_METADATA] = Values(tiff.ASCII, statistics_xml(class_pixels).encode() + b"\0")
    return encode_directories(pages, big=big)


def _page(level: Level, classes: ClassMap, big: bool, *, reduced: bool) -> dict[int, Values]:
    shorts = {tiff.BITS: 8, tiff.COMPRESSION: _DEFLATE, tiff.PHOTOMETRIC: _PALETTE, tiff.SAMPLES: 1, tiff.PLANAR: 1}
    shorts |= {tiff.TILE_WIDTH: TILE_PX, tiff.TILE_LENGTH: TILE_PX, tiff.SAMPLE_FORMAT: 1}
    page = {tag: Values(tiff.SHORT, np.array([value])) for tag, value in shorts.items()}
    longs = {tiff.WIDTH: level.width, tiff.LENGTH: level.height, tiff.SUBFILE: int(reduced)}
    page |= {tag: Values(tiff.LONG, np.array([value])) for tag, value in longs.items()}
    colours = np.frombuffer(classes.png_palette(), np.uint8).reshape(256, 3).astype(np.uint16)
    page[tiff.COLOUR_MAP] = Values(tiff.SHORT, colours.T.ravel() * 257)
    page[tiff.NODATA] = Values(tiff.ASCII, f"{NODATA}\0".encode())
    page[tiff.TILE_OFFSETS] = Values(tiff.LONG8 if big else tiff.LONG, level.offsets)
    page[tiff.TILE_COUNTS] = Values(tiff.LONG, level.counts)
    return page


def statistics_xml(class_pixels: Int64) -> str:
    """Metadata of GDAL: exact statistics of the ids that are no nodata, which viewers show without reading pixels."""
    counts: npt.NDArray[np.float64] = np.asarray(class_pixels, np.float64).copy()
    total = float(counts.sum())
    counts[NODATA] = 0
    valid = float(counts.sum())
    facts: dict[str, str] = {}
    if valid:
        ids = np.arange(256)
        mean = float(counts @ ids / valid)
        present = np.flatnonzero(counts)
        deviation = float(np.sqrt(counts @ (ids - mean) ** 2 / valid))
        facts = {
            "STATISTICS_MAXIMUM": str(present[-1]),
            "STATISTICS_MEAN": f"{mean:.12g}",
            "STATISTICS_MINIMUM": str(present[0]),
            "STATISTICS_STDDEV": f"{deviation:.12g}",
            "STATISTICS_VALID_PERCENT": f"{100 * valid / total:.4g}",
        }
    items = "".join(f'<Item name="{name}" sample="0">{value}</Item>' for name, value in facts.items())
    return f'<GDALMetadata><Item name="DESCRIPTION" sample="0" role="description">class</Item>{items}</GDALMetadata>'
