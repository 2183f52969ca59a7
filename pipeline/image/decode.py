"""Decoding: encoded bytes in, upright 8-bit RGB and a mask of valid pixels out, or an `InputError` with the reason.

In: the bytes of one object. Out: `records.Image`, with orientation and position by its EXIF. `headers` checks every
limit before a pixel is allocated. ICC profiles are not applied: the networks were trained without. A JPEG is decoded in
`jpeg` where that gives Pillow's pixels, everything else by Pillow or, for samples it does not know, in `tiff`.
"""

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.config import DecodeConfig
from pipeline.errors import InputError
from pipeline.image import tiff
from pipeline.image.headers import failure_cause, open_header, recognise_format
from pipeline.image.jpeg import decode_jpeg, turn_upright
from pipeline.image.position import position_in_tiff, position_of
from pipeline.image.tiff import Samples
from pipeline.records import Bool, Image, Position, UInt8

_UPRIGHT = {  # EXIF 2.32, tag 0x0112: the operation that undoes each orientation
    2: PilImage.Transpose.FLIP_LEFT_RIGHT,
    3: PilImage.Transpose.ROTATE_180,
    4: PilImage.Transpose.FLIP_TOP_BOTTOM,
    5: PilImage.Transpose.TRANSPOSE,
    6: PilImage.Transpose.ROTATE_270,
    7: PilImage.Transpose.TRANSVERSE,
    8: PilImage.Transpose.ROTATE_90,
}
_SWAPPED = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""Pillow's raw modes of 16-bit colour in a PNG, and those of the opposite byte order."""
_EXIF_ORIENTATION = 0x0112
_FULL = 65535


def decode_image(data: bytes, cfg: DecodeConfig) -> Image:
    """Decode one image to upright 8-bit RGB.

    Samples of more than 8 bits are scaled by `cfg.sixteen_bit`; floating point is stretched from its smallest to its
    largest finite value. Transparency is composited on `cfg.background`. Pixels that are fully transparent or not
    finite are not valid, and have the background's colour. CMYK is converted without a profile:
    R = (1 - C)(1 - K), likewise G and B. A flat image stretches to black.

    Args:
        data: the encoded bytes.
        cfg: limits and policies.

    Raises:
        InputError: `empty`, `too_many_bytes`, `not_an_image`, `unsupported_format`, `too_small`, `too_many_pixels`,
            `multi_frame`, `truncated`, `corrupt`, `band_mismatch` or `no_valid_pixels`. No input raises anything else.
    """
    kind = recognise_format(data, cfg)
    try:
        return _decode(data, kind, cfg)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged data, and list none of them
        raise failure_cause(data, kind, error) from error


def _decode(data: bytes, kind: str, cfg: DecodeConfig) -> Image:
    if kind == "tiff" and tiff.needs_samples(data):
        return _from_samples(tiff.read_samples(data, cfg), position_in_tiff(data), cfg)
    file = open_header(data, kind, cfg)
    if isinstance(file, JpegImageFile) and (stored := decode_jpeg(data, file)) is not None:
        orientation, position = read_exif(file)
        return _image(turn_upright(stored, orientation), None, orientation, position)
    rawmode = _rawmode(file)
    image, orientation, position = _load_upright(file)
    if isinstance(file, PngImageFile):
        _check_all_rows(file, data, cfg)
    if ";16" in rawmode and image.mode in ("RGB", "RGBA"):
        low = _load_low_bytes(data, kind, cfg) if rawmode in _SWAPPED else image
        image = _scale_colour(image, low, cfg)
    elif rawmode in ("L;2", "L;4") and "transparency" in image.info:
        image.info["transparency"] *= 85 if rawmode == "L;2" else 17  # Pillow scales the samples, not this value
    pixels, valid = _to_rgb(image, cfg)
    return _image(pixels, valid, orientation, position)


def _image(pixels: UInt8, valid: Bool | None, orientation: int, position: Position | None) -> Image:
    if valid is not None and not valid.any():
        raise InputError("no_valid_pixels", f"all {valid.size} pixels are transparent, nodata or not finite")
    return Image(pixels, None if valid is None or valid.all() else valid, orientation, position=position)


# Samples and orientation ---------------------------------------------------------------------------------------------


def _rawmode(file: ImageFile.ImageFile) -> str:
    """Pillow's raw mode of the samples in a PNG: "RGB;16B" is 16-bit big-endian RGB; empty for other formats."""
    args = file.tile[0].args if file.tile else ""
    return args if isinstance(args, str) else ""  # of a BMP, ";16" are the bits of a pixel, not of a sample


def _load_upright(file: ImageFile.ImageFile) -> tuple[PilImage.Image, int, Position | None]:
    """Decode all samples and undo the EXIF orientation: the upright image; orientation and position of the file."""
    if isinstance(file, TiffImageFile):
        orientation, position = read_exif(file)  # Pillow turns a TIFF upright itself, and drops the tag
        file.load()
        return file, orientation, position
    file.load()
    orientation, position = read_exif(file)  # a PNG may have EXIF behind its pixels
    return (file.transpose(_UPRIGHT[orientation]) if orientation > 1 else file), orientation, position


def _check_all_rows(file: PngImageFile, data: bytes, cfg: DecodeConfig) -> None:
    """Refuse a PNG whose data stream ends cleanly before the last row; Pillow leaves the missing rows zero.

    Rows of zeros may also be the image's own: those do not depend on the fill value, so the file is decoded again over
    another one. The last two rows are tested, since the last pass of an interlaced PNG fills every second row.
    """
    rows = [(0, y, file.width, y + 1) for y in range(max(file.height - 2, 0), file.height)]
    blank = [row for row in rows if not any(file.crop(row).tobytes())]
    if blank:
        filled = open_header(data, "png", cfg)
        filled.im = PilImage.new(filled.mode, filled.size, 255).im
        if any(any(filled.crop(row).tobytes()) for row in blank):
            raise InputError("corrupt", f"the header announces {file.height} rows, the data ends before the last")


def read_exif(file: ImageFile.ImageFile) -> tuple[int, Position | None]:
    """EXIF orientation, 1 to 8, and position; 1 and None where EXIF cannot be read: the pixels do not depend on it."""
    with contextlib.suppress(Exception):
        exif = file.getexif()
        value = exif.get(_EXIF_ORIENTATION, 1)
        return int(value) if value in _UPRIGHT else 1, position_of(exif)
    return 1, None


def _to_rgb(image: PilImage.Image, cfg: DecodeConfig) -> tuple[UInt8, Bool | None]:
    """(H, W, 3) RGB of an image in any mode of Pillow, and its (H, W) valid mask, None when all pixels are valid."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image), None
    if image.mode.startswith("I"):
        return _from_integers(image, cfg)
    if image.has_transparency_data:
        return _composite(image, cfg)
    return np.asarray(image.convert("RGB")), None


def _composite(image: PilImage.Image, cfg: DecodeConfig) -> tuple[UInt8, Bool]:
    """Blend over the background: (alpha * colour + (255 - alpha) * background) / 255, rounded."""
    straight = image.convert("LA") if image.mode == "La" else image
    rgba = straight.convert("RGBA")
    canvas = PilImage.new("RGB", rgba.size, cfg.background)
    canvas.paste(rgba, (0, 0), rgba)
    return np.asarray(canvas), np.asarray(rgba.getchannel("A")) > 0


def _from_integers(image: PilImage.Image, cfg: DecodeConfig) -> tuple[UInt8, Bool | None]:
    """16-bit grey of a PNG; the value of its tRNS chunk is not valid."""
    values = np.asarray(image)
    hidden = image.info.get("transparency")
    valid = None if hidden is None else values != hidden
    return _show(_scale_table(values, valid, cfg)[values][..., None], valid, cfg), valid


def _show(bands_hwc: UInt8, valid: Bool | None, cfg: DecodeConfig) -> UInt8:
    """(H, W, 3) of 8-bit grey or RGB, with the background's colour where pixels are not valid."""
    pixels = np.repeat(bands_hwc, 3, axis=2) if bands_hwc.shape[2] == 1 else bands_hwc
    if valid is None or valid.all():
        return np.ascontiguousarray(pixels)
    return np.where(valid[..., None], pixels, np.asarray(cfg.background, np.uint8))


def _parts(flat: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Parts of a million values: arithmetic in 64 bits on one part at a time bounds the memory."""
    return [flat[at : at + 2**20] for at in range(0, flat.size, 2**20)]


def _stretch(values: npt.NDArray[Any], low: float, high: float) -> UInt8:
    """Map [low, high] to [0, 255], rounded and clipped; a flat range maps to 0."""
    if not low < high:
        return np.zeros(values.shape, np.uint8)
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    levels: UInt8 = np.rint(scaled.clip(0.0, 255.0)).astype(np.uint8)
    return levels


def _scale_table(values: npt.NDArray[np.integer], valid: Bool | None, cfg: DecodeConfig, *, full: int = _FULL) -> UInt8:
    """8-bit level of each 16-bit value: (65536,) uint8. `full` is the value that becomes 255 when `cfg` divides."""
    low, high = 0.0, float(full)
    if cfg.sixteen_bit == "percentile":
        counts = np.zeros(_FULL + 1, np.int64)
        for part in _parts(values.ravel() if valid is None else values[valid].ravel()):
            counts += np.bincount(part, minlength=_FULL + 1)
        low, high = np.searchsorted(np.cumsum(counts) / max(int(counts.sum()), 1), (0.02, 0.98)).tolist()
    return _stretch(np.arange(_FULL + 1), low, high)


# TIFF samples ---------------------------------------------------------------------------------------------------------


def _from_samples(samples: Samples, position: Position | None, cfg: DecodeConfig) -> Image:
    """8-bit RGB of the samples of a TIFF, all bands scaled alike."""
    bands, valid = _colour_bands(samples), samples.valid_hw
    if bands.dtype.kind == "f":
        finite = np.isfinite(bands).all(axis=2)
        valid = finite if valid is None else valid & finite
        levels = _stretch_floats(bands, valid)
    else:
        levels = _scale_integers(bands, valid, samples.full, cfg)
    if samples.meaning == "cmyk":
        levels = np.asarray(PilImage.fromarray(levels, "CMYK").convert("RGB"))
    if samples.alpha_hw is not None:
        levels = _blend(levels, samples.alpha_hw, samples.premultiplied, cfg)
    return _image(_show(levels, valid, cfg), valid, samples.orientation, position)


def _colour_bands(samples: Samples) -> npt.NDArray[Any]:
    """(H, W, C) of the bands that make the colours: grey, RGB or CMYK. Three bands tagged as grey are RGB."""
    count, bits = samples.bands_hwc.shape[2], samples.full.bit_length()
    taken = {"grey": 3 if count == 3 else 1, "rgb": 3, "cmyk": 4}[samples.meaning]
    spare = samples.meaning != "grey" or (count == 2 and bits == 8)  # bands behind the colours, of unspecified meaning
    if count < taken or (count > taken and not spare):
        seen = f"{count} bands of {samples.bands_hwc.dtype} tagged as {samples.meaning}"
        hint = (
            "a network for these bands is trained with --network.channels; to see three of them, write those to a file"
        )
        raise InputError(
            "band_mismatch", f"{seen}; expected grey, palette, RGB or CMYK, with or without alpha", hint=hint
        )
    return samples.bands_hwc[..., :taken]


def _scale_integers(bands: npt.NDArray[Any], valid: Bool | None, full: int, cfg: DecodeConfig) -> UInt8:
    """Scale integer samples to 8 bits: by their depth below 16 bits, else by `cfg.sixteen_bit`."""
    if full < 256 and bands.dtype.kind != "i":
        scaled: UInt8 = bands.astype(np.uint8) if full == 255 else (bands * np.uint16(255 // full)).astype(np.uint8)
        return scaled
    present = bands if valid is None else bands[valid]
    if present.size and not 0 <= int(present.min()) <= int(present.max()) <= _FULL:
        raise InputError("band_mismatch", f"signed or 32-bit integers that are not all from 0 to {_FULL}")
    values = bands if valid is None else np.where(valid[..., None], bands, 0)
    return np.asarray(_scale_table(values, valid, cfg, full=min(full, _FULL))[values])


def _stretch_floats(bands: npt.NDArray[Any], valid: Bool) -> UInt8:
    """Stretch floats from the smallest to the largest valid value, of all bands together, so that hues stay."""
    where = valid[..., None]
    low = float(bands.min(where=where, initial=np.inf))
    high = float(bands.max(where=where, initial=-np.inf))
    values = np.where(where, bands, bands.dtype.type(low) if valid.any() else 0).ravel()
    levels = np.empty(values.shape, np.uint8)
    for part, out in zip(_parts(values), _parts(levels), strict=True):
        out[:] = _stretch(part, low, high)
    return levels.reshape(bands.shape)


def _blend(colours_hwc: UInt8, alpha_hw: UInt8, premultiplied: bool, cfg: DecodeConfig) -> UInt8:
    """Blend over the background: (alpha * colour + (255 - alpha) * background) / 255, rounded."""
    alpha = alpha_hw[..., None].astype(np.uint32)  # a premultiplied colour above its alpha exceeds 16 bits
    colour = 255 * colours_hwc.astype(np.uint32) if premultiplied else alpha * colours_hwc
    blended = (colour + (255 - alpha) * np.asarray(cfg.background, np.uint32) + 127) // 255
    levels: UInt8 = blended.clip(0, 255).astype(np.uint8)
    return levels


# 16-bit colour --------------------------------------------------------------------------------------------------------


def _load_low_bytes(data: bytes, kind: str, cfg: DecodeConfig) -> PilImage.Image:
    """Low byte of each sample of a 16-bit RGB file; Pillow keeps the high byte.

    Pillow has no 16-bit RGB in memory. Read with the opposite byte order, it keeps the low byte instead.
    """
    file = open_header(data, kind, cfg)
    file.tile = [tile._replace(args=_SWAPPED[str(tile.args)]) for tile in file.tile]
    return _load_upright(file)[0]


def _scale_colour(high: PilImage.Image, low: PilImage.Image, cfg: DecodeConfig) -> PilImage.Image:
    """Join both bytes of 16-bit RGB or RGBA, and scale all bands by one table, which keeps hues."""
    values = np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
    colours, alpha = values[..., :3], None
    if high.mode == "RGBA":
        alpha = np.asarray(high)[..., 3]
    elif (hidden := high.info.get("transparency")) is not None:
        alpha = (colours != np.asarray(hidden, np.uint16)).any(axis=2) * np.uint8(255)
    valid = None if alpha is None else alpha > 0
    scaled = _scale_table(colours, valid, cfg)[colours]
    return PilImage.fromarray(scaled if alpha is None else np.dstack([scaled, alpha]))
