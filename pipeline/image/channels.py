"""Bands of an image: RGB as a run decodes it, or any number of bands of a TIFF or PNG.

In: the bytes of one image and the names of the expected bands. Out: (H, W, C) uint8 and the valid mask. Bands stay as
in the file: none is converted, reordered or left out.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage

from pipeline.config import BandScale, DecodeConfig
from pipeline.errors import InputError
from pipeline.image import tiff
from pipeline.image.decode import decode_image, read_exif
from pipeline.image.headers import check_size, failure_cause, recognise_format
from pipeline.image.position import position_in_tiff
from pipeline.image.scale import eight_bits
from pipeline.records import Bool, Image, Position, UInt8

RGB = ("red", "green", "blue")
LIMITS = DecodeConfig()


def decode_channels(
    data: bytes,
    channels: tuple[str, ...],
    cfg: DecodeConfig = LIMITS,
    *,
    scale: BandScale | None = None,
    numbers: Mapping[str, int] | None = None,
) -> Image:
    """Decode one image to the bands `channels`; red, green and blue go through `decode_image`.

    Other bands come from a TIFF or a PNG. Pixels of a TIFF's nodata value, outside its mask page, under an alpha of 0,
    or not finite in one of the bands are not valid.

    Args:
        data: the encoded bytes.
        channels: names of the bands to return.
        cfg: limits.
        scale: scale of the samples to 8 bits; None for 8 bits as they are and 16 bits divided by 257.
        numbers: number in the file, from 1, of each of `channels`; empty for a file of just these bands, in order.

    Raises:
        InputError: as `decode_image`; `band_mismatch` for another number or type of bands; `no_valid_pixels`.
    """
    if channels == RGB and scale is None and not numbers:
        return decode_image(data, cfg)
    kind = recognise_format(data, cfg)
    try:
        bands, valid, orientation, place = _tiff(data, channels, cfg, numbers) if kind == "tiff" else _png(data, cfg)
        values = _choose(bands, channels, numbers)
        if values.dtype.kind == "f":
            finite = np.isfinite(values).all(axis=2)
            valid = finite if valid is None else valid & finite
        if valid is not None and not valid.any():
            raise InputError("no_valid_pixels", f"all {valid.size} pixels are transparent, nodata or not finite")
        valid = None if valid is None or valid.all() else valid
        return Image(eight_bits(values, scale), valid, orientation, position=place)
    except InputError:
        raise
    except Exception as error:  # both libraries raise many types on damaged data
        raise failure_cause(data, kind, error) from error


def visible_rgb(pixels_hwc: UInt8, channels: tuple[str, ...]) -> UInt8:
    """(H, W, 3) uint8 for display: red, green and blue, else the first three bands, else the first band as grey."""
    fallback = [0, 1, 2] if len(channels) >= len(RGB) else [0, 0, 0]
    chosen = [channels.index(name) for name in RGB] if set(RGB) <= set(channels) else fallback
    return pixels_hwc if channels == RGB else np.ascontiguousarray(pixels_hwc[..., chosen])


def _tiff(
    data: bytes, channels: tuple[str, ...], cfg: DecodeConfig, numbers: Mapping[str, int] | None
) -> tuple[npt.NDArray[Any], Bool | None, int, Position | None]:
    """Bands in the stored type, valid pixels, orientation and position."""
    expected = max(numbers.values()) if numbers else len(channels)
    samples = tiff.read_samples(data, cfg, bands=expected)
    return samples.bands_hwc, samples.valid_hw, samples.orientation, position_in_tiff(data)


def _png(data: bytes, cfg: DecodeConfig) -> tuple[npt.NDArray[Any], None, int, Position | None]:
    with PilImage.open(io.BytesIO(data), formats=["PNG"]) as file:
        check_size(*file.size, cfg)
        bands = np.asarray(file)
        position = read_exif(file)[1]
    return bands.reshape(*bands.shape[:2], -1), None, 1, position


def _choose(
    bands_hwc: npt.NDArray[Any], channels: tuple[str, ...], numbers: Mapping[str, int] | None
) -> npt.NDArray[Any]:
    """Bands of the channels: by their numbers, or all."""
    count = bands_hwc.shape[2]
    if numbers:
        missing = [name for name in channels if numbers.get(name, count + 1) > count]
        if missing:
            seen = f"{count} bands, and --raster.bands gives no number of one for {', '.join(missing)}"
            raise InputError("band_mismatch", seen, hint="number every band, from 1")
        return bands_hwc[..., [numbers[name] - 1 for name in channels]]
    if count != len(channels):
        seen = f"{count} bands, expected {len(channels)}: {', '.join(channels)}"
        hint = "name the bands with --network.channels, or choose some with --raster.bands"
        raise InputError("band_mismatch", seen, hint=hint)
    return bands_hwc
