"""Encoded bytes become upright 8-bit RGB, or an `InputError` that says why not.

In: the bytes of one object. Out: `records.Image`. Every limit is checked on the header, before a pixel is allocated.
The format is recognised here by its first bytes, so that only the decoder of an allowed format ever sees the data.
Nothing is repaired: a file that ends early fails. ICC profiles are not applied: the networks were trained without.
"""

import contextlib
import io
import itertools
import re
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageFile, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.config import DecodeConfig
from pipeline.errors import InputError
from pipeline.records import Bool, Image, UInt8

# Pillow's own limit is one global for all threads, and only warns up to twice its value. `_check_size` replaces it.
PilImage.MAX_IMAGE_PIXELS = None

# Importing them registers these five; `open` would else import every decoder Pillow has, in whichever thread is first.
_DECODERS = {
    file.format.lower(): file.format
    for file in (JpegImageFile, PngImageFile, WebPImageFile, TiffImageFile, BmpImageFile)
}

_IMAGE_MAGIC = {
    "jpeg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "webp": rb"RIFF....WEBP",
    "tiff": rb"II[*+]\0|MM\0[*+]",
    "bmp": rb"BM....\0\0\0\0",
    "gif": rb"GIF8[79]a",
    "svg": rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*(?:<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]",
    "pdf": rb"%PDF-",
    "eps": rb"%!PS|\xc5\xd0\xd3\xc6",
    "fits": rb"SIMPLE  =",
    "psd": rb"8BPS",
    "jpeg2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "jpegxl": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "avif": rb"....ftypavi[fs]",
    "heic": rb"....ftyp(?:hei[cx]|hev[cx]|mif1|msf1)",
    "ico": rb"\0\0[\1\2]\0[^\0]\0",
    "icns": rb"icns",
    "pnm": rb"P[1-7]\s",
    "openexr": rb"\x76\x2f\x31\x01",
    "radiance_hdr": rb"#\?(?:RADIANCE|RGBE)",
    "dds": rb"DDS ",
    "dicom": rb".{128}DICM",
    "xcf": rb"gimp xcf",
    "djvu": rb"AT&TFORM",
    "qoi": rb"qoif",
}
_OTHER_MAGIC = {
    "HTML": rb"(?i:\s*<(?:!doctype html|html|head|body))",
    "XML": rb"(?:\xef\xbb\xbf)?\s*<[?!A-Za-z]",
    "JSON": rb"\s*[{\[]",
    "a Git LFS pointer": rb"version https://git-lfs",
    "gzip": rb"\x1f\x8b",
    "zip": rb"PK\x03\x04",
    "Zstandard": rb"\x28\xb5\x2f\xfd",
    "Parquet": rb"PAR1",
    "HDF5": rb"\x89HDF",
    "NumPy": rb"\x93NUMPY",
    "MP4 or QuickTime video": rb"....ftyp",
    "tar": rb".{257}ustar",
    "zeros": rb"\0{16}",
    "text": rb"[\t\n\r\x20-\x7e]{4,}\Z",
}
_MAGIC_BYTES = 1024

_IMAGE_DATA_START, _IMAGE_DATA_END = b"\xff\xda", b"\xff\xd9"  # JPEG markers SOS and EOI, ITU-T T.81 table B.1
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_MAX_PX_PER_BYTE = 256
"""A baseline JPEG spends at least one bit each on DC and AC of every 8x8 block: at most 4 blocks per byte."""
_JPEG_MAX_SCANS = 500
"""A progressive JPEG of a few bytes per scan can keep a decoder busy for hours; encoders write about ten scans."""

_TIFF_MAX_PAGES = 64
_SUBFILE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262  # tags of TIFF 6.0
_SAMPLES, _PLANAR, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 277, 284, 322, 323, 339
_TIFF_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # the others 1
_FORMAT_NAMES = {1: "unsigned", 2: "signed", 3: "float", 5: "complex integer", 6: "complex"}
_DATA_TAGS = ((273, 279), (324, 325))  # offsets and byte counts, of strips and of tiles
_REDUCED_OR_MASK = 0b101  # bits of NewSubfileType: an overview, or a transparency mask, of another page

_UPRIGHT = {  # EXIF 2.32, tag 0x0112: what undoes each orientation
    2: PilImage.Transpose.FLIP_LEFT_RIGHT,
    3: PilImage.Transpose.ROTATE_180,
    4: PilImage.Transpose.FLIP_TOP_BOTTOM,
    5: PilImage.Transpose.TRANSPOSE,
    6: PilImage.Transpose.ROTATE_270,
    7: PilImage.Transpose.TRANSVERSE,
    8: PilImage.Transpose.ROTATE_90,
}
_SWAPPED = {  # Pillow's names of 16-bit samples: big, little and native byte order, and what reads their other byte
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
_EXIF_ORIENTATION = 0x0112
_FULL = 65535


def decode_image(data: bytes, cfg: DecodeConfig) -> Image:
    """Decode one image to upright 8-bit RGB.

    What has more than 8 bits per sample is scaled as `cfg.sixteen_bit` says; floating point is stretched from its
    smallest to its largest finite value. Transparency is composited on `cfg.background`. Pixels that are fully
    transparent or not finite are not valid, and have the background's colour. CMYK is converted without a profile:
    R = (1 - C)(1 - K), and so on. A flat image stretches to black.

    Args:
        data: the encoded bytes.
        cfg: limits and policies.

    Raises:
        InputError: `empty`, `too_many_bytes`, `not_an_image`, `unsupported_format`, `too_small`, `too_many_pixels`,
            `multi_frame`, `truncated`, `corrupt`, `band_mismatch` or `no_valid_pixels`. No input raises anything else.
    """
    kind = _recognise(data, cfg)
    try:
        return _decode(data, kind, cfg)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged data, and list none of them
        raise _blame(data, kind, error) from error


def _decode(data: bytes, kind: str, cfg: DecodeConfig) -> Image:
    file = _open(data, kind, cfg)
    rawmode = _rawmode(file)
    image, orientation = _load_upright(file)
    if isinstance(file, PngImageFile):
        _check_all_rows(file, data, cfg)
    if ";16" in rawmode and image.mode in ("RGB", "RGBA"):
        low = _load_low_bytes(data, kind, cfg) if rawmode in _SWAPPED else image
        image = _scale_colour(image, low, cfg)
    elif rawmode in ("L;2", "L;4") and "transparency" in image.info:
        image.info["transparency"] *= 85 if rawmode == "L;2" else 17  # Pillow scales the samples, not this value
    elif rawmode.startswith("I;16") and isinstance(file, TiffImageFile) and file.tag_v2.get(_PHOTOMETRIC) == 0:
        image = PilImage.fromarray(_FULL - np.asarray(image))  # white is zero; Pillow inverts 8 bits, but not 16
    pixels, valid = _to_rgb(image, cfg)
    if valid is not None and not valid.any():
        raise InputError("no_valid_pixels", f"all {valid.size} pixels are transparent or not finite")
    return Image(pixels, None if valid is None or valid.all() else valid, orientation)


# What the bytes are ---------------------------------------------------------------------------------------------------


def _match(magic: dict[str, bytes], head: bytes) -> str | None:
    return next((name for name, pattern in magic.items() if re.match(pattern, head, re.DOTALL)), None)


def _recognise(data: bytes, cfg: DecodeConfig) -> str:
    """Name the format by its first bytes, and refuse what is not on the allow-list."""
    if not data:
        raise InputError("empty", "0 bytes")
    if len(data) > cfg.max_mib * 2**20:
        seen = f"{len(data) / 2**20:.5g} MiB, limit {cfg.max_mib:g} MiB"
        raise InputError("too_many_bytes", seen, hint="raise --decode.max-mib")
    head = data[:_MAGIC_BYTES]
    kind = _match(_IMAGE_MAGIC, head)
    if kind is None:
        looks = _match(_OTHER_MAGIC, head) or "no known format"
        raise InputError("not_an_image", f"looks like {looks}, {len(data)} bytes, first {head[:16]!r}")
    if kind not in cfg.formats:
        hint = f"add {kind} to --decode.formats" if kind in _DECODERS else "convert it to PNG or TIFF"
        raise InputError("unsupported_format", f"looks like {kind}, allowed are {', '.join(cfg.formats)}", hint=hint)
    return kind


# What the header says -------------------------------------------------------------------------------------------------


def _open(data: bytes, kind: str, cfg: DecodeConfig) -> ImageFile.ImageFile:
    """Parse the header and check it against the limits. Allocates nothing that grows with the image."""
    if kind == "webp":
        _check_area(*_webp_size(data), cfg)  # opening a WebP already allocates its canvas
    file = PilImage.open(io.BytesIO(data), formats=[_DECODERS[kind]])
    _check_size(*file.size, cfg)
    if isinstance(file, TiffImageFile):
        _check_tiff(file, cfg)
    if isinstance(file, JpegImageFile):
        _check_jpeg(file, data)
    if cfg.frame == "fail" and _more_frames(file, data):
        raise InputError("multi_frame", f"{kind} with more than one frame", hint="--decode.frame first takes the first")
    return file


def _check_size(width: int, height: int, cfg: DecodeConfig) -> None:
    if min(width, height) < cfg.min_px:
        limit = f"{width}x{height} pixels, sides must have at least {cfg.min_px}"
        raise InputError("too_small", limit, hint="lower --decode.min-px" if min(width, height) > 0 else "")
    _check_area(width, height, cfg)


def _check_area(width: int, height: int, cfg: DecodeConfig) -> None:
    mpx = width * height / 1e6
    if mpx > cfg.max_mpx:
        seen = f"{width}x{height} = {mpx:.6g} Mpx, limit {cfg.max_mpx:g} Mpx"
        raise InputError("too_many_pixels", seen, hint="raise --decode.max-mpx, or cut the source into smaller images")


def _check_jpeg(file: JpegImageFile, data: bytes) -> None:
    """Refuse what libjpeg would fill with grey, or decode for hours, without an error."""
    width, height = file.size
    if "progressive" not in file.info and width * height > _JPEG_MAX_PX_PER_BYTE * len(data):
        raise InputError("corrupt", f"the header announces {width}x{height} pixels, {len(data)} bytes cannot hold them")
    if "progressive" in file.info and (scans := data.count(_IMAGE_DATA_START)) > _JPEG_MAX_SCANS:
        raise InputError("corrupt", f"{scans} scans, at most {_JPEG_MAX_SCANS} are decoded")


def _check_tiff(file: TiffImageFile, cfg: DecodeConfig) -> None:
    """Refuse what libtiff would allocate without need, and what Pillow would decode wrongly without an error."""
    tags, (width, height) = file.tag_v2, file.size
    _check_area(int(tags.get(_TILE_WIDTH, 1)), int(tags.get(_TILE_LENGTH, 1)), cfg)  # whole, however small the image
    if tags.get(_COMPRESSION, 1) != 1:
        return  # libtiff itself checks the rest
    planes = len(file.getbands()) if tags.get(_PLANAR, 1) == 2 else 1
    if planes > 1 and max(tags.get(_BITS, (1,))) > 8:
        raise InputError("band_mismatch", f"{_bands(tags)}, uncompressed in separate planes; only 8 bits can be")
    boxes = [tile.extents or (0, 0, 0, 0) for tile in file.tile]
    if sum((right - left) * (lower - upper) for left, upper, right, lower in boxes) < width * height * planes:
        raise InputError("corrupt", f"the header announces {width}x{height} pixels, its strips or tiles hold fewer")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas. RFC 9649, sections 2.5 to 2.7."""
    chunk, body = data[12:16], data[20:30].ljust(10, b"\0")
    if chunk == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _more_frames(file: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether there is a second image to choose. Overviews and masks of a TIFF, and previews in a JPEG, are not."""
    if isinstance(file, TiffImageFile):
        later = itertools.islice(_tiff_pages(data), 1, None)
        return any(_WIDTH in page and not int(page.get(_SUBFILE, 0)) & _REDUCED_OR_MASK for page in later)
    return not isinstance(file, JpegImageFile) and bool(getattr(file, "is_animated", False))


def _tiff_pages(data: bytes) -> Iterator[ImageFileDirectory_v2]:
    """Yield the directory of each page; one object, filled anew for each."""
    file, seen = io.BytesIO(data), set[int]()
    page: Any = ImageFileDirectory_v2(data[: 16 if data[2:3] == b"+" else 8])
    while page.next and page.next not in seen and len(seen) < _TIFF_MAX_PAGES:
        seen.add(page.next)
        file.seek(page.next)
        page.load(file)
        yield page


# Why it failed --------------------------------------------------------------------------------------------------------


def _blame(data: bytes, kind: str, error: Exception) -> InputError:
    """Find the reason in the file's structure, as the decoders' own messages do not tell damage from a short file."""
    unread = isinstance(error, UnidentifiedImageError)
    with contextlib.suppress(Exception):  # it is damaged: looking closer may fail in as many ways
        if _ENDS_EARLY[kind](data):
            return InputError("truncated", f"{kind} of {len(data)} bytes ends before its image data does")
        if unread and (reason := _blame_header(data, kind)):
            return reason
    why = "its header makes no sense" if unread else f"{type(error).__name__}: {error}"
    return InputError("corrupt", f"{kind} cannot be decoded: {why}")


def _blame_header(data: bytes, kind: str) -> InputError | None:
    """Name what a header says that no decoder accepts."""
    width, height, bands = 1, 1, ""
    if kind == "png":
        width, height = struct.unpack(">II", data[16:24])
    if kind == "tiff":
        page = next(_tiff_pages(data))
        width, height, bands = page[_WIDTH], page[_LENGTH], _bands(page)
        if (compression := page.get(_COMPRESSION, 1)) not in COMPRESSION_INFO:
            return InputError(
                "unsupported_format", f"tiff with compression {compression}", hint="recompress as deflate"
            )
    if min(width, height) < 1:
        return InputError("too_small", f"the header announces {width}x{height} pixels")
    if bands:
        return InputError("band_mismatch", f"{bands}; expected grey, palette, RGB, CMYK or Lab, with or without alpha")
    return None


def _bands(page: ImageFileDirectory_v2) -> str:
    """Describe the samples of a page, such as "8 x 16-bit unsigned"."""
    bits, sample_format = (np.ravel(page.get(tag, 1))[0] for tag in (_BITS, _SAMPLE_FORMAT))
    return f"{page.get(_SAMPLES, 1)} x {bits}-bit {_FORMAT_NAMES.get(int(sample_format), 'untyped')}"


def _jpeg_ends_early(data: bytes) -> bool:
    """Follow the segments to the first scan, then look for the end marker, which no scan can contain."""
    at = 2
    while (marker := data[at : at + 2]) != _IMAGE_DATA_START:
        if len(marker) < 2:
            return True
        if marker[0] != 0xFF or marker == _IMAGE_DATA_END:
            return False
        at += 1 if marker[1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.find(_IMAGE_DATA_END, at) < 0


def _tiff_ends_early(data: bytes) -> bool:
    """Whether the first directory, a value it points to, or a strip or tile lies behind the end of the file."""
    if any(stop > len(data) for stop in _tiff_directory_stops(data)):
        return True
    page = next(_tiff_pages(data))
    spans = [zip(page[at], page[size], strict=False) for at, size in _DATA_TAGS if at in page and size in page]
    return any(start + size > len(data) for start, size in itertools.chain(*spans))


def _tiff_directory_stops(data: bytes) -> Iterator[int]:
    """Yield where the directory and each of its values stop. TIFF 6.0, section 2; BigTIFF has longer fields."""
    order, big = "<" if data[:1] == b"I" else ">", data[2:3] == b"+"
    count, entry, inline = (f"{order}Q", f"{order}HHQQ", 8) if big else (f"{order}H", f"{order}HHLL", 4)
    at = int.from_bytes(data[inline : 2 * inline], "little" if order == "<" else "big")
    yield at + struct.calcsize(count)
    (entries,) = struct.unpack_from(count, data, at)
    at += struct.calcsize(count)
    yield at + entries * struct.calcsize(entry)
    for _, kind, number, value in struct.iter_unpack(entry, data[at : at + entries * struct.calcsize(entry)]):
        size = number * _TIFF_TYPE_BYTES.get(kind, 1)
        yield value + size if size > inline else 0


_ENDS_EARLY: dict[str, Callable[[bytes], bool]] = {
    "jpeg": _jpeg_ends_early,
    "png": lambda data: _PNG_END not in data,
    "webp": lambda data: len(data) < 8 + int.from_bytes(data[4:8], "little"),
    "tiff": _tiff_ends_early,
    "bmp": lambda data: len(data) < int.from_bytes(data[2:6], "little"),
}


# From samples to 8-bit RGB --------------------------------------------------------------------------------------------


def _rawmode(file: ImageFile.ImageFile) -> str:
    """How the samples lie in the file, in Pillow's words: "RGB;16B" is 16-bit big-endian RGB."""
    args = file.tile[0].args if file.tile else ""
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _load_upright(file: ImageFile.ImageFile) -> tuple[PilImage.Image, int]:
    """Decode all samples, and undo the EXIF orientation. Returns the image and the orientation it had."""
    if isinstance(file, TiffImageFile):
        orientation = _orientation(file)  # Pillow turns a TIFF upright itself, and then forgets
        file.load()
        return file, orientation
    file.load()
    orientation = _orientation(file)  # a PNG may have it behind its pixels
    return (file.transpose(_UPRIGHT[orientation]) if orientation > 1 else file), orientation


def _check_all_rows(file: PngImageFile, data: bytes, cfg: DecodeConfig) -> None:
    """Refuse a PNG whose data stream is whole but holds fewer rows than the header says; Pillow leaves them zero.

    Zeros may also be its colours, then they do not depend on what the image was filled with before. Two rows are
    looked at, as the last pass of an interlaced PNG fills every second one.
    """
    rows = [(0, y, file.width, y + 1) for y in range(max(file.height - 2, 0), file.height)]
    blank = [row for row in rows if not any(file.crop(row).tobytes())]
    if blank:
        again = _open(data, "png", cfg)
        again.im = PilImage.new(again.mode, again.size, "white" if again.mode in ("RGB", "RGBA") else 255).im
        if any(any(again.crop(row).tobytes()) for row in blank):
            raise InputError("corrupt", f"the header announces {file.height} rows, the data ends before the last")


def _orientation(file: ImageFile.ImageFile) -> int:
    """EXIF orientation, 1 to 8. Unreadable EXIF counts as none: the pixels are good without it."""
    with contextlib.suppress(Exception):
        value = file.getexif().get(_EXIF_ORIENTATION, 1)
        return int(value) if value in _UPRIGHT else 1
    return 1


def _to_rgb(image: PilImage.Image, cfg: DecodeConfig) -> tuple[UInt8, Bool | None]:
    """Convert any mode of Pillow to (H, W, 3) RGB and, unless all pixels are valid, an (H, W) mask."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image), None
    if image.mode.startswith("I"):
        return _from_integers(image, cfg)
    if image.mode == "F":
        return _from_floats(image, cfg)
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
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _FULL:
        raise InputError("band_mismatch", f"signed or 32-bit integers that are not all from 0 to {_FULL}")
    hidden = image.info.get("transparency")
    valid = None if hidden is None else values != hidden
    return _grey(_scale_table(values, valid, cfg)[values], valid, cfg)


def _from_floats(image: PilImage.Image, cfg: DecodeConfig) -> tuple[UInt8, Bool | None]:
    values = np.asarray(image)
    valid = np.isfinite(values)
    low = float(values.min(where=valid, initial=np.inf))
    high = float(values.max(where=valid, initial=-np.inf))
    finite = np.where(valid, values, np.float32(low)).ravel()
    levels = np.concatenate([_stretch(part, low, high) for part in _parts(finite)])
    return _grey(levels.reshape(values.shape), valid, cfg)


def _grey(grey_hw: UInt8, valid: Bool | None, cfg: DecodeConfig) -> tuple[UInt8, Bool | None]:
    pixels = np.repeat(grey_hw[..., None], 3, axis=2)
    if valid is not None:
        pixels[~valid] = cfg.background
    return pixels, valid


def _parts(flat: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Cut into parts of a million, for arithmetic that widens to 64 bits."""
    return [flat[at : at + 2**20] for at in range(0, flat.size, 2**20)]


def _stretch(values: npt.NDArray[Any], low: float, high: float) -> UInt8:
    """Map [low, high] to [0, 255], rounded; what lies outside saturates. A flat range maps to 0."""
    if not low < high:
        return np.zeros(values.shape, np.uint8)
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    levels: UInt8 = np.rint(scaled.clip(0.0, 255.0)).astype(np.uint8)
    return levels


def _scale_table(values: npt.NDArray[np.integer], valid: Bool | None, cfg: DecodeConfig) -> UInt8:
    """8-bit level of each of the 65536 values that a 16-bit sample can have."""
    low, high = 0.0, float(_FULL)
    if cfg.sixteen_bit == "percentile":
        counts = np.zeros(_FULL + 1, np.int64)
        for part in _parts(values.ravel() if valid is None else values[valid].ravel()):
            counts += np.bincount(part, minlength=_FULL + 1)
        low, high = np.searchsorted(np.cumsum(counts) / max(int(counts.sum()), 1), (0.02, 0.98)).tolist()
    return _stretch(np.arange(_FULL + 1), low, high)


# 16-bit colour --------------------------------------------------------------------------------------------------------


def _load_low_bytes(data: bytes, kind: str, cfg: DecodeConfig) -> PilImage.Image:
    """Load the low byte of each sample of a 16-bit RGB file, where Pillow by itself keeps the high one.

    Pillow has no 16-bit RGB in memory. Read with the opposite byte order, the byte it keeps is the other one.
    """
    file = _open(data, kind, cfg)
    for index, tile in enumerate(file.tile):
        if isinstance(tile.args, str):
            file.tile[index] = tile._replace(args=_SWAPPED[tile.args])
        elif tile.args:
            file.tile[index] = tile._replace(args=(_SWAPPED[tile.args[0]], *tile.args[1:]))
    return _load_upright(file)[0]


def _scale_colour(high: PilImage.Image, low: PilImage.Image, cfg: DecodeConfig) -> PilImage.Image:
    """Join both bytes of 16-bit RGB or RGBA and scale all bands alike, so that hues are kept."""
    values = np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
    colours, alpha = values[..., :3], None
    if high.mode == "RGBA":
        alpha = np.asarray(high)[..., 3]
    elif (hidden := high.info.get("transparency")) is not None:
        alpha = (colours != np.asarray(hidden, np.uint16)).any(axis=2) * np.uint8(255)
    valid = None if alpha is None else alpha > 0
    scaled = _scale_table(colours, valid, cfg)[colours]
    return PilImage.fromarray(scaled if alpha is None else np.dstack([scaled, alpha]))
