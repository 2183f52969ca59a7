"""Bands of a training image: RGB as a run decodes it, or any number of bands of a TIFF or PNG.

In: the bytes of one image and the names of the expected bands. Out: (H, W, C) uint8 and the valid mask. Bands stay as
in the file: none is converted, reordered or left out.
"""

import io

import numpy as np
from PIL import Image as PilImage

from pipeline.config import DecodeConfig
from pipeline.errors import InputError
from pipeline.image import tiff
from pipeline.image.decode import decode_image
from pipeline.image.headers import check_size, failure_cause, recognise_format
from pipeline.records import Image, UInt8

RGB = ("red", "green", "blue")
LIMITS = DecodeConfig()


def decode_channels(data: bytes, channels: tuple[str, ...]) -> Image:
    """Decode one image to the bands `channels`; red, green and blue go through `decode_image`.

    Other bands come from a TIFF or a PNG of 8 or 16 bits with the same number of bands; 16 bits are divided by 257.
    Pixels of a TIFF's nodata value, outside its mask page or under an alpha of 0 are not valid.

    Raises:
        InputError: as `decode_image`; `band_mismatch` for another number or type of bands.
    """
    if channels == RGB:
        return decode_image(data, LIMITS)
    kind = recognise_format(data, LIMITS)
    try:
        return _tiff(data, channels) if kind == "tiff" else _png(data, channels)
    except InputError:
        raise
    except Exception as error:  # both libraries raise many types on damaged data
        raise failure_cause(data, kind, error) from error


def visible_rgb(pixels_hwc: UInt8, channels: tuple[str, ...]) -> UInt8:
    """(H, W, 3) uint8 for display: red, green and blue, else the first three bands, else the first band as grey."""
    fallback = [0, 1, 2] if len(channels) >= len(RGB) else [0, 0, 0]
    chosen = [channels.index(name) for name in RGB] if set(RGB) <= set(channels) else fallback
    return pixels_hwc if channels == RGB else np.ascontiguousarray(pixels_hwc[..., chosen])


def _tiff(data: bytes, channels: tuple[str, ...]) -> Image:
    samples = tiff.read_samples(data, LIMITS, bands=len(channels))
    _check_count(samples.bands_hwc, channels)
    return Image(_eight_bits(samples.bands_hwc), samples.valid_hw, samples.orientation)


def _png(data: bytes, channels: tuple[str, ...]) -> Image:
    with PilImage.open(io.BytesIO(data), formats=["PNG"]) as file:
        check_size(*file.size, LIMITS)
        bands = np.asarray(file)
    bands = bands.reshape(*bands.shape[:2], -1)
    _check_count(bands, channels)
    return Image(_eight_bits(bands), None)


def _check_count(bands_hwc: np.ndarray, channels: tuple[str, ...]) -> None:
    if bands_hwc.shape[2] != len(channels):
        seen = f"{bands_hwc.shape[2]} bands, expected {len(channels)}: {', '.join(channels)}"
        raise InputError("band_mismatch", seen, hint="name the bands with --network.channels")


def _eight_bits(pixels: np.ndarray) -> UInt8:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == np.uint16:
        return np.ascontiguousarray((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    raise InputError("band_mismatch", f"bands of {pixels.dtype}, expected unsigned 8 or 16 bits")
