"""Window of a raster on its way between the stages: a small uncompressed TIFF of 8-bit bands, and its valid mask.

In: pixels and mask. Out: bytes, and from them the same pixels and mask again, as views without a copy. Any reader of
TIFFs opens them: the transform gives the position in the raster in pixels, the mask is a transparency mask of one bit.
Why pixels travel here and encoded images elsewhere: docs/decisions/019-windows-travel-as-pixels.md.
"""

import numpy as np

from pipeline.geotiff import directory as tiff
from pipeline.geotiff.directory import Directories, Values, encode_directories
from pipeline.records import Bool, Image, UInt8


def encode_window(pixels_hwc: UInt8, valid_hw: Bool | None, y: int, x: int) -> bytes:
    """TIFF of a window.

    Args:
        pixels_hwc: (H, W, C) levels 0 to 255.
        valid_hw: (H, W), None when all pixels are valid.
        y: row of the first pixel in the raster.
        x: its column.
    """
    height, width, count = pixels_hwc.shape
    transform = np.array([1.0, 0, 0, x, 0, 1, 0, y, 0, 0, 0, 0, 0, 0, 0, 1])
    pages = [
        _page(height, width, count=count, bits=8, photometric=1)
        | {
            tiff.TRANSFORMATION: Values(tiff.DOUBLE, transform),
            tiff.GEO_KEYS: Values(tiff.SHORT, np.array([1, 1, 0, 1, 1025, 0, 1, 1])),  # one key: pixels are areas
            tiff.EXTRA_SAMPLES: Values(tiff.SHORT, np.zeros(max(count - 1, 1))),
        }
    ]
    parts = [pixels_hwc]
    if valid_hw is not None:
        mask = _page(height, width, count=1, bits=1, photometric=4)
        pages.append(mask | {tiff.SUBFILE: Values(tiff.LONG, np.array([4]))})
        parts.append(np.packbits(valid_hw, axis=1))
    start = at = len(encode_directories(pages, big=False))
    for page, part in zip(pages, parts, strict=True):
        page[tiff.STRIP_OFFSETS] = Values(tiff.LONG, np.array([at]))
        page[tiff.STRIP_COUNTS] = Values(tiff.LONG, np.array([part.size]))
        at += part.size
    data = np.empty(at, np.uint8)
    data[:start] = np.frombuffer(encode_directories(pages, big=False), np.uint8)
    for part in parts:
        data[start : start + part.size].reshape(part.shape)[:] = part
        start += part.size
    return data.tobytes()


def decode_window(data: bytes) -> Image:
    """Inverse of `encode_window`: read-only views of the bytes, and the origin of the window in its raster."""
    directories = Directories(lambda at, size: data[at : at + size])
    first, *masks = directories
    height, width, count = (int(directories.values(first[tag])[0]) for tag in (tiff.LENGTH, tiff.WIDTH, tiff.SAMPLES))
    start = int(directories.values(first[tiff.STRIP_OFFSETS])[0])
    pixels = np.frombuffer(data, np.uint8, height * width * count, start).reshape(height, width, count)
    transform = directories.values(first[tiff.TRANSFORMATION])
    valid = None
    if masks:
        start = int(directories.values(masks[0][tiff.STRIP_OFFSETS])[0])
        packed = np.frombuffer(data, np.uint8, height * -(-width // 8), start).reshape(height, -1)
        valid = np.unpackbits(packed, axis=1, count=width).view(bool)
    return Image(pixels, valid, origin=(int(transform[7]), int(transform[3])))


def _page(height: int, width: int, *, count: int, bits: int, photometric: int) -> dict[int, Values]:
    """Fields of a page of one strip; the strip's place is still 0."""
    shorts = {tiff.COMPRESSION: [1], tiff.PHOTOMETRIC: [photometric], tiff.SAMPLES: [count], tiff.BITS: [bits] * count}
    longs = {tiff.WIDTH: [width], tiff.LENGTH: [height], tiff.ROWS_PER_STRIP: [height]}
    longs |= {tiff.STRIP_OFFSETS: [0], tiff.STRIP_COUNTS: [0]}
    return {tag: Values(tiff.SHORT, np.array(values)) for tag, values in shorts.items()} | {
        tag: Values(tiff.LONG, np.array(values)) for tag, values in longs.items()
    }
