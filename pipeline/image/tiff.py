"""TIFF samples: every band of the first page by its tags, the pixels without data, and which extra sample is an alpha.

In: the bytes of one TIFF. Out: `Samples`, arrays in the stored type. Pillow keeps 8 bits of 16, takes compressed planes
for grey, and knows no nodata value and no mask page; tifffile with the codecs of imagecodecs reads all of them. Tags:
TIFF 6.0; tag 42113: https://gdal.org/en/stable/drivers/raster/gtiff.html#nodata-value.
"""

import io
import itertools
import logging
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from tifffile import TiffFile, TiffPage

from pipeline.config import DecodeConfig
from pipeline.errors import InputError
from pipeline.image.headers import (
    BITS,
    COMPRESSION,
    LENGTH,
    PHOTOMETRIC,
    PLANAR,
    SAMPLE_FORMAT,
    SAMPLES,
    SUBFILE,
    WIDTH,
    band_text,
    check_tiff,
    open_header,
    tiff_pages,
)
from pipeline.records import Bool, UInt8

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what it also raises, in every worker

Page = Any
"""Directory of a page by number of tag: Pillow's `ImageFileDirectory_v2`."""
Stored = npt.NDArray[Any]

CODECS = {
    1: "none",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32773: "packbits",
    32946: "deflate",
    34925: "lzma",
    50000: "zstd",
    50001: "webp",
}
"""Compressions that tifffile reads here: those whose output cannot exceed the announced size, and `_WITH_HEADERS`."""
_JPEG, _WEBP = 7, 50001
_WITH_HEADERS = {_JPEG: "JPEG", _WEBP: "WEBP"}
"""Compressions whose strips and tiles have a size of their own, by the name of their format in Pillow."""
_EXTRA_SAMPLES, _ORIENTATION, _NODATA = 338, 274, 42113
_REDUCED, _MASK = 0b001, 0b100  # bits of NewSubfileType
_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6  # PhotometricInterpretation
_MEANINGS: dict[int, Literal["grey", "rgb", "cmyk"]] = {
    _WHITE_IS_ZERO: "grey",
    _GREY: "grey",
    _RGB: "rgb",
    _PALETTE: "rgb",
    _CMYK: "cmyk",
    _YCBCR: "rgb",
}
_ALPHAS = {1: "associated", 2: "unassociated"}  # ExtraSamples
_MAX_PARTIAL = 0.25
"""Share of partly transparent pixels, of those not fully transparent, up to which a sample tagged alpha is one."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of one page, upright, and what its tags say of them."""

    bands_hwc: Stored
    """(H, W, C) all bands but the alpha, in the stored type; white is high, palettes are resolved to 8-bit RGB."""
    valid_hw: Bool | None
    """(H, W), False where nodata value, mask page or an alpha of 0 leave no data; None when all pixels are valid."""
    alpha_hw: UInt8 | None
    """(H, W) opacity, 0 to 255; None without an alpha."""
    premultiplied: bool
    """The colours are already multiplied by the alpha."""
    meaning: Literal["grey", "rgb", "cmyk"]
    """Meaning of the first bands by the tag PhotometricInterpretation."""
    full: int
    """Largest value of an integer sample."""
    orientation: int
    """EXIF orientation that the file had, 1 to 8."""


def needs_samples(data: bytes) -> bool:
    """True where Pillow would lose depth, planes, bands, nodata, a mask page or the meaning of an alpha."""
    page = next(tiff_pages(data))
    count, bits = int(page.get(SAMPLES, 1)), max(np.ravel(page.get(BITS, 1)).tolist())
    photometric = page.get(PHOTOMETRIC, _GREY)
    if photometric not in _MEANINGS:
        return False
    unsigned = all(int(kind) in (1, 4) for kind in np.ravel(page.get(SAMPLE_FORMAT, 1)))
    if (
        bits > 8
        or not unsigned
        or page.get(COMPRESSION, 1) == _WEBP
        or (count > 1 and page.get(PLANAR, 1) == 2)
        or _NODATA in page
        or _mask_index(data) is not None
    ):
        return True
    return _alpha_sample(page) is not None or (photometric in (_WHITE_IS_ZERO, _GREY) and count > 2)


def read_samples(data: bytes, cfg: DecodeConfig, *, bands: int | None = None) -> Samples:
    """Read all bands of the first page.

    Args:
        data: the encoded bytes.
        cfg: limits.
        bands: expected number of bands; a file of just as many has no alpha, however its last sample is tagged.

    Raises:
        InputError: `too_small`, `too_many_pixels`, `corrupt`, `multi_frame`, `unsupported_format` for a compression
            outside `CODECS`, `band_mismatch` for samples of complex numbers. tifffile raises its own types on damage.
    """
    page = next(tiff_pages(data))
    check_tiff(data, page, cfg)
    jpeg = page.get(COMPRESSION, 1) == _JPEG and page.get(PLANAR, 1) == 1
    if page.get(COMPRESSION, 1) == _JPEG and _bits(page) > 8:
        raise _unread(page, f"JPEG compression of {_bits(page)} bits")
    samples = _read_jpeg(data, cfg) if jpeg else _read_page(data, 0)
    colours, alpha = (samples, None) if samples.shape[2] == bands else _part_alpha(samples, page)
    valid = _both(valid_by_nodata(samples, nodata_value(page)), _read_mask(data))
    valid = _both(valid, None if alpha is None else alpha > 0)
    return Samples(
        bands_hwc=colours if jpeg else _resolve(colours, page),
        valid_hw=None if valid is None or valid.all() else valid,
        alpha_hw=alpha,
        premultiplied=(_alpha_sample(page) or (0, ""))[1] == "associated" and not jpeg,
        meaning=_MEANINGS[page.get(PHOTOMETRIC, _GREY)],
        full=2 ** _bits(page) - 1,
        orientation=_orientation(page),
    )


def _orientation(page: Page) -> int:
    value = int(page.get(_ORIENTATION, 1))
    return value if 1 <= value <= 8 else 1


def turn_upright(array: Stored, orientation: int) -> Stored:
    """Undo an EXIF orientation, 1 to 8, on the first two axes; EXIF 2.32, tag 0x0112."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


# Bands ----------------------------------------------------------------------------------------------------------------


def _read_page(data: bytes, index: int) -> Stored:
    """(H, W, C) of a page, upright; refuses a page with fewer strips or tiles than it must have."""
    page = next(itertools.islice(tiff_pages(data), index, None))
    compression = int(page.get(COMPRESSION, 1))
    if compression not in CODECS:
        raise _unread(page, f"compression {compression}")
    with TiffFile(io.BytesIO(data)) as file:
        reader = cast(TiffPage, file.pages[index])  # a TiffFrame comes of other settings of tifffile alone
        if reader.dtype is None or reader.dtype.kind == "c":
            raise InputError("band_mismatch", f"{band_text(page)}; expected integers or floating point")
        needed, there = int(np.prod(reader.chunked)), min(len(reader.dataoffsets), len(reader.databytecounts))
        if there < needed:
            raise InputError("corrupt", f"the header announces {needed} strips or tiles, {there} are there")
        if compression in _WITH_HEADERS:
            _check_segments(data, reader, _WITH_HEADERS[compression])
        height, width, count = reader.imagelength, reader.imagewidth, reader.samplesperpixel
        if planes_first := count > 1 and reader.planarconfig == 2:
            reader.photometric = _GREY  # else tifffile takes each JPEG plane of three for an image of three bands
        values = reader.asarray(maxworkers=1)
    stack = np.moveaxis(values, 0, -1) if planes_first else values
    return turn_upright(stack.reshape(height, width, count), _orientation(page))


def _check_segments(data: bytes, reader: TiffPage, form: str) -> None:
    """Refuse a strip or tile larger than the page announces, for which imagecodecs would allocate up to 12 GB."""
    rows, columns = (
        (reader.tilelength, reader.tilewidth) if reader.is_tiled else (reader.rowsperstrip, reader.imagewidth)
    )
    for start, size in zip(reader.dataoffsets, reader.databytecounts, strict=True):
        if not size:  # of a sparse file: no data
            continue
        with PilImage.open(io.BytesIO(data[start : start + size]), formats=[form]) as segment:
            if segment.width > columns or segment.height > max(rows, 1):
                what = f"a strip or tile of {segment.height}x{segment.width} pixels, announced are {rows}x{columns}"
                raise InputError("corrupt", what)


def _read_jpeg(data: bytes, cfg: DecodeConfig) -> Stored:
    """(H, W, C) of a first page in JPEG of interleaved bands, upright, colours resolved.

    Pillow reads it: its libtiff undoes every subsampling of the colours.
    """
    file = open_header(data, "tiff", cfg)
    file.load()
    values = np.asarray(file.convert("RGB") if file.mode == "YCbCr" else file)
    return values.reshape(*values.shape[:2], -1)


def _unread(page: Page, what: str) -> InputError:
    names = ", ".join(dict.fromkeys(CODECS.values()))
    return InputError(
        "unsupported_format",
        f"tiff of {band_text(page)} with {what}; bands like these are read with: {names}",
        hint="recompress as deflate, for example `gdal_translate -co COMPRESS=DEFLATE`",
    )


def _bits(page: Page) -> int:
    return int(np.ravel(page.get(BITS, 1))[0])


def _resolve(bands: Stored, page: Page) -> Stored:
    """Bands with their photometric interpretation undone: white high, palette indices as 8-bit RGB."""
    photometric = page.get(PHOTOMETRIC, _GREY)
    if photometric == _PALETTE:
        table = np.asarray(page[320], np.uint32).reshape(3, -1).T  # ColorMap: 16 bits a value
        colours = np.asarray(table // 257 if table.max() > 255 else table, np.uint8)
        return np.take(colours, bands[..., 0], axis=0, mode="clip")
    if photometric == _YCBCR:
        return np.asarray(PilImage.fromarray(bands[..., :3], "YCbCr").convert("RGB"))
    if photometric == _WHITE_IS_ZERO and bands.dtype.kind in "ub":
        return np.asarray(np.bitwise_xor(bands, bands.dtype.type(2 ** _bits(page) - 1)))
    return bands


# Alpha ----------------------------------------------------------------------------------------------------------------


def _alpha_sample(page: Page) -> tuple[int, str] | None:
    """Index from the end of the first sample tagged as an alpha, and `associated` or `unassociated`; None without."""
    extra = np.ravel(page.get(_EXTRA_SAMPLES, ())).tolist()
    return next(((at - len(extra), _ALPHAS[tag]) for at, tag in enumerate(extra) if tag in _ALPHAS), None)


def _part_alpha(bands: Stored, page: Page) -> tuple[Stored, UInt8 | None]:
    """Part the alpha from the bands.

    GDAL and rasterio tag any fourth band as an alpha unless told otherwise, so infrared often is. An alpha is opaque
    nearly everywhere that it is not 0, with partial values along borders; a measured band is not.
    """
    sample = _alpha_sample(page)
    if sample is None or bands.shape[2] <= -sample[0]:
        return bands, None
    at = bands.shape[2] + sample[0]
    alpha, colours = bands[..., at], np.delete(bands, at, axis=2)
    seen = alpha[alpha > 0]
    opaque = int(seen.max()) if seen.size and alpha.dtype.kind == "u" else 0
    if seen.size and (not opaque or np.count_nonzero(seen < opaque) > _MAX_PARTIAL * seen.size):
        return colours, None
    full = 2 ** _bits(page) - 1 if opaque > 255 else 255  # 16-bit files often have the 0 and 255 of a mask
    return colours, (alpha.astype(np.uint32) * 255 // full).astype(np.uint8)


# Pixels without data --------------------------------------------------------------------------------------------------


def valid_by_nodata(bands: Stored, value: float | None) -> Bool | None:
    """(H, W), False where all bands have the value, as in GDAL's dataset mask; None where no pixel can have it.

    Args:
        bands: (H, W, C) in the stored type.
        value: nodata value, may be NaN; None without.
    """
    if value is None:
        return None
    if np.isnan(value):
        return np.asarray(~np.isnan(bands).all(axis=2)) if bands.dtype.kind == "f" else None
    # Writers print floats with 6 to 17 digits, and the lowest one as -3.4e38: floats are compared with a tolerance.
    width = abs(value) * (1e-3 if abs(value) > 1e37 else 1e-6) if bands.dtype.kind == "f" else 0.0
    empty = np.ones(bands.shape[:2], bool)
    for band in range(bands.shape[2]):
        plane = bands[..., band]
        empty &= (plane == value) if not width else np.abs(plane.astype(np.float64) - value) <= width
    return ~empty


def nodata_value(page: Page) -> float | None:
    """Number in tag 42113; None without the tag, or where its text holds no number."""
    text = page.get(_NODATA)
    return parse_nodata(text.decode("ascii", "ignore") if isinstance(text, bytes) else text)


def parse_nodata(text: str | None) -> float | None:
    """Number in the text of tag 42113; None without text, or where it holds no number."""
    plain = str(text or "").strip("\0 ").lower()
    if plain.startswith(("nan", "-nan", "-1.#ind", "1.#qnan", "-1.#qnan")):
        return float("nan")
    number = re.match(r"[-+]?(?:inf|\d+[.,]?\d*(?:e[-+]?\d+)?|[.,]\d+(?:e[-+]?\d+)?)", plain)
    return float(number.group().replace(",", ".")) if number else None


def _mask_index(data: bytes) -> int | None:
    """Index of the page that is the transparency mask of the first one; None without."""
    kinds = [int(page.get(SUBFILE, 0)) for page in tiff_pages(data)]
    return next((index for index, kind in enumerate(kinds) if index and kind & _MASK and not kind & _REDUCED), None)


def _read_mask(data: bytes) -> Bool | None:
    """(H, W) of the mask page, upright, True for pixels with data; None without such a page."""
    if (index := _mask_index(data)) is None:
        return None
    size = [(page.get(WIDTH), page.get(LENGTH)) for page in tiff_pages(data)]
    if size[index] != size[0]:
        raise InputError("corrupt", f"the mask page has {size[index]} pixels, the image {size[0]}")
    return np.asarray((_read_page(data, index) != 0).any(axis=2))


def _both(one: Bool | None, other: Bool | None) -> Bool | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other
