"""Bands of a training image: RGB as a run decodes it, or any number of bands of a TIFF or PNG.

In: the bytes of one image and the names of the expected bands. Out: (H, W, C) uint8 and the valid mask. Bands stay as
in the file: none is converted, reordered or left out.
"""

import io

import numpy as np
import tifffile
from PIL import Image as PilImage

from pipeline.config import DecodeConfig
from pipeline.errors import InputError
from pipeline.image.decode import decode_image
from pipeline.records import Image, UInt8

RGB = ("red", "green", "blue")
LIMITS = DecodeConfig()


def decode_channels(data: bytes, channels: tuple[str, ...]) -> Image:
    """Decode one image to the bands `channels`; red, green and blue go through `decode_image`.

    Other bands come from a TIFF or a PNG of 8 or 16 bits with the same number of bands; 16 bits are divided by 257.

    Raises:
        InputError: as `decode_image`; `band_mismatch` for another number or type of bands.
    """
    if channels == RGB:
        return decode_image(data, LIMITS)
    try:
        pixels = _tiff(data) if data[:2] in (b"II", b"MM") else _png(data)
    except InputError:
        raise
    except Exception as error:  # both libraries raise many types on damaged data
        raise InputError("corrupt", f"cannot be decoded: {type(error).__name__}: {error}") from error
    if pixels.shape[2] != len(channels):
        detail = f"{pixels.shape[2]} bands, expected {len(channels)}: {', '.join(channels)}"
        raise InputError("band_mismatch", detail, hint="name the bands with --network.channels")
    return Image(_eight_bits(pixels), None)


def visible_rgb(pixels_hwc: UInt8, channels: tuple[str, ...]) -> UInt8:
    """(H, W, 3) uint8 for display: red, green and blue, else the first three bands, else the first band as grey."""
    fallback = [0, 1, 2] if len(channels) >= len(RGB) else [0, 0, 0]
    chosen = [channels.index(name) for name in RGB] if set(RGB) <= set(channels) else fallback
    return pixels_hwc if channels == RGB else np.ascontiguousarray(pixels_hwc[..., chosen])


def _tiff(data: bytes) -> np.ndarray:
    """(H, W, C) of the first page, from bands stored side by side or one after the other."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        _check_area(page.imagewidth, page.imagelength)
        bands = page.asarray()
        return np.moveaxis(bands, 0, -1) if page.axes.startswith("S") else bands.reshape(*bands.shape[:2], -1)


def _png(data: bytes) -> np.ndarray:
    with PilImage.open(io.BytesIO(data), formats=["PNG"]) as file:
        _check_area(*file.size)
        bands = np.asarray(file)
        return bands.reshape(*bands.shape[:2], -1)


def _check_area(width: int, height: int) -> None:
    if width * height > LIMITS.max_mpx * 1e6:
        raise InputError("too_many_pixels", f"{width}x{height} pixels, limit {LIMITS.max_mpx:g} Mpx")


def _eight_bits(pixels: np.ndarray) -> UInt8:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == np.uint16:
        return np.ascontiguousarray((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    raise InputError("band_mismatch", f"bands of {pixels.dtype}, expected unsigned 8 or 16 bits")
