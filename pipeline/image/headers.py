"""Headers of encoded images: format by first bytes, size and limits before a pixel is allocated, cause of a failure.

In: the bytes of one object. Out: a Pillow file whose header is within the limits of `DecodeConfig`, or an `InputError`.
The format is recognised here, so that only the decoder of an allowed format sees the data. Nothing is repaired: a file
that ends early fails.
"""

import contextlib
import io
import itertools
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image as PilImage
from PIL import ImageFile, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.config import DecodeConfig
from pipeline.errors import InputError

# Pillow's own limit is global to all threads and only warns up to twice its value: `check_size` replaces it.
PilImage.MAX_IMAGE_PIXELS = None

# The imports register these five; without them `open` imports every decoder of Pillow, in the first thread to call it.
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
"""Limit of a baseline JPEG: one bit each on DC and AC of an 8x8 block at least, so 4 blocks per byte at most."""
_JPEG_MAX_SCANS = 500
"""Limit of a progressive JPEG: encoders write about ten scans, and thousands of tiny ones decode for hours."""

_TIFF_MAX_PAGES = 64
SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262  # tags of TIFF 6.0
SAMPLES, PLANAR, _TILE_WIDTH, _TILE_LENGTH, SAMPLE_FORMAT = 277, 284, 322, 323, 339
_TIFF_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # the others 1
_FORMAT_NAMES = {1: "unsigned", 2: "signed", 3: "float", 5: "complex integer", 6: "complex"}
_DATA_TAGS = ((273, 279), (324, 325))  # offsets and byte counts, of strips and of tiles
_REDUCED_OR_MASK = 0b101  # bits of NewSubfileType: an overview, or a transparency mask, of another page


# Format --------------------------------------------------------------------------------------------------------------


def _match(magic: dict[str, bytes], head: bytes) -> str | None:
    return next((name for name, pattern in magic.items() if re.match(pattern, head, re.DOTALL)), None)


def recognise_format(data: bytes, cfg: DecodeConfig) -> str:
    """Format of an image by its first bytes, a key of `_IMAGE_MAGIC`.

    Raises:
        InputError: `empty`, `too_many_bytes`, `not_an_image`, or `unsupported_format` outside `cfg.formats`.
    """
    if not data:
        raise InputError("empty", "0 bytes")
    if len(data) > cfg.max_mib * 2**20:
        detail = f"{len(data) / 2**20:.5g} MiB, limit {cfg.max_mib:g} MiB"
        raise InputError("too_many_bytes", detail, hint="raise --decode.max-mib")
    head = data[:_MAGIC_BYTES]
    kind = _match(_IMAGE_MAGIC, head)
    if kind is None:
        raise InputError("not_an_image", f"looks like {looks_like(head)}, {len(data)} bytes, first {head[:16]!r}")
    if kind not in cfg.formats:
        hint = f"add {kind} to --decode.formats" if kind in _DECODERS else "convert it to PNG or TIFF"
        raise InputError("unsupported_format", f"looks like {kind}, allowed are {', '.join(cfg.formats)}", hint=hint)
    return kind


def looks_like(head: bytes) -> str:
    """Name of the format by the first bytes of a file: `tiff`, `jpeg2000`, `XML`, ..., or `no known format`."""
    return _match(_IMAGE_MAGIC, head) or _match(_OTHER_MAGIC, head) or "no known format"


# Size and limits -----------------------------------------------------------------------------------------------------


def open_header(data: bytes, kind: str, cfg: DecodeConfig) -> ImageFile.ImageFile:
    """Open an image of a recognised format and check its header; allocates nothing that grows with the image.

    Raises:
        InputError: `too_small`, `too_many_pixels`, `corrupt`, `band_mismatch` or `multi_frame`. Pillow raises its own
            types on headers that it cannot read; `failure_cause` explains those.
    """
    if kind == "webp":
        _check_area(*_webp_size(data), cfg)  # opening a WebP already allocates its canvas
    file = PilImage.open(io.BytesIO(data), formats=[_DECODERS[kind]])
    check_size(*file.size, cfg)
    if isinstance(file, TiffImageFile):
        _check_pillow_tiff(file, cfg)
    if isinstance(file, JpegImageFile):
        _check_jpeg(file, data)
    if cfg.frame == "fail" and _more_frames(file, data):
        raise _several_frames(kind)
    return file


def _several_frames(kind: str) -> InputError:
    return InputError("multi_frame", f"{kind} with more than one frame", hint="--decode.frame first takes the first")


def check_size(width: int, height: int, cfg: DecodeConfig) -> None:
    """Check a size that a header announces.

    Raises:
        InputError: `too_small` or `too_many_pixels`.
    """
    if min(width, height) < cfg.min_px:
        detail = f"{width}x{height} pixels, sides must have at least {cfg.min_px}"
        raise InputError("too_small", detail, hint="lower --decode.min-px" if min(width, height) > 0 else "")
    _check_area(width, height, cfg)


def _check_area(width: int, height: int, cfg: DecodeConfig) -> None:
    mpx = width * height / 1e6
    if mpx > cfg.max_mpx:
        detail = f"{width}x{height} = {mpx:.6g} Mpx, limit {cfg.max_mpx:g} Mpx"
        hint = "raise --decode.max-mpx, or cut the source into smaller images"
        raise InputError("too_many_pixels", detail, hint=hint)


def _check_jpeg(file: JpegImageFile, data: bytes) -> None:
    """Refuse JPEGs that libjpeg fills with grey, or decodes for hours, without an error."""
    width, height = file.size
    if "progressive" not in file.info and width * height > _JPEG_MAX_PX_PER_BYTE * len(data):
        raise InputError("corrupt", f"the header announces {width}x{height} pixels, {len(data)} bytes cannot hold them")
    if "progressive" in file.info and (scans := data.count(_IMAGE_DATA_START)) > _JPEG_MAX_SCANS:
        raise InputError("corrupt", f"{scans} scans, at most {_JPEG_MAX_SCANS} are decoded")


def _check_pillow_tiff(file: TiffImageFile, cfg: DecodeConfig) -> None:
    """Refuse TIFFs whose tiles exceed the size limit, and those that Pillow decodes wrongly without an error."""
    tags, (width, height) = file.tag_v2, file.size
    _check_tile(tags, cfg)
    if tags.get(COMPRESSION, 1) != 1:
        return  # libtiff itself checks the rest
    planes = len(file.getbands()) if tags.get(PLANAR, 1) == 2 else 1
    if planes > 1 and max(tags.get(BITS, (1,))) > 8:
        raise InputError("band_mismatch", f"{band_text(tags)}, uncompressed in separate planes; only 8 bits can be")
    boxes = [tile.extents or (0, 0, 0, 0) for tile in file.tile]
    if sum((right - left) * (lower - upper) for left, upper, right, lower in boxes) < width * height * planes:
        raise InputError("corrupt", f"the header announces {width}x{height} pixels, its strips or tiles hold fewer")


def check_tiff(data: bytes, page: ImageFileDirectory_v2, cfg: DecodeConfig) -> None:
    """Check size and frames of a TIFF by its first page, for a reader other than Pillow.

    Raises:
        InputError: `too_small`, `too_many_pixels` or `multi_frame`.
    """
    check_size(int(page[WIDTH]), int(page[LENGTH]), cfg)
    _check_tile(page, cfg)
    if cfg.frame == "fail" and _more_tiff_frames(data):
        raise _several_frames("tiff")


def _check_tile(page: ImageFileDirectory_v2, cfg: DecodeConfig) -> None:
    """Check the size of tiles, which decoders allocate whole."""
    _check_area(int(page.get(_TILE_WIDTH, 1)), int(page.get(_TILE_LENGTH, 1)), cfg)


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
    """True for a file of several images; overviews and masks of a TIFF and previews in a JPEG do not count."""
    if isinstance(file, TiffImageFile):
        return _more_tiff_frames(data)
    return not isinstance(file, JpegImageFile) and bool(getattr(file, "is_animated", False))


def _more_tiff_frames(data: bytes) -> bool:
    """True when a TIFF has a second page that is neither an overview nor a mask."""
    later = itertools.islice(tiff_pages(data), 1, None)
    return any(WIDTH in page and not int(page.get(SUBFILE, 0)) & _REDUCED_OR_MASK for page in later)


def tiff_pages(data: bytes) -> Iterator[ImageFileDirectory_v2]:
    """Directory of each page, at most 64. Every page is read into the same object: use one before taking the next."""
    file, seen = io.BytesIO(data), set[int]()
    page: Any = ImageFileDirectory_v2(data[: 16 if data[2:3] == b"+" else 8])
    while page.next and page.next not in seen and len(seen) < _TIFF_MAX_PAGES:
        seen.add(page.next)
        file.seek(page.next)
        page.load(file)
        yield page


# Cause of a failure --------------------------------------------------------------------------------------------------


def failure_cause(data: bytes, kind: str, error: Exception) -> InputError:
    """Cause of a decoder's error, by the structure of the file: decoders do not tell damage from a short file.

    Returns:
        InputError: `truncated`, `unsupported_format`, `too_small`, `band_mismatch` or `corrupt`.
    """
    unread = isinstance(error, UnidentifiedImageError)
    with contextlib.suppress(Exception):  # parsing a damaged file may fail in as many ways
        if _ENDS_EARLY[kind](data):
            return InputError("truncated", f"{kind} of {len(data)} bytes ends before its image data does")
        if unread and (header_error := _header_error(data, kind)):
            return header_error
    reason = "its header is damaged" if unread else f"{type(error).__name__}: {error}"
    return InputError("corrupt", f"{kind} cannot be decoded: {reason}")


def _header_error(data: bytes, kind: str) -> InputError | None:
    """Error of a header with a size, compression or samples that no decoder accepts; None for any other header."""
    width, height, bands = 1, 1, ""
    if kind == "png":
        width, height = struct.unpack(">II", data[16:24])
    if kind == "tiff":
        page = next(tiff_pages(data))
        width, height, bands = page[WIDTH], page[LENGTH], band_text(page)
        if (compression := page.get(COMPRESSION, 1)) not in COMPRESSION_INFO:
            return InputError(
                "unsupported_format", f"tiff with compression {compression}", hint="recompress as deflate"
            )
    if min(width, height) < 1:
        return InputError("too_small", f"the header announces {width}x{height} pixels")
    if bands:
        return InputError("band_mismatch", f"{bands}; expected grey, palette, RGB, CMYK or Lab, with or without alpha")
    return None


def band_text(page: ImageFileDirectory_v2) -> str:
    """Samples of a page in words, such as "8 x 16-bit unsigned"."""
    bits, sample_format = (np.ravel(page.get(tag, 1))[0] for tag in (BITS, SAMPLE_FORMAT))
    return f"{page.get(SAMPLES, 1)} x {bits}-bit {_FORMAT_NAMES.get(int(sample_format), 'untyped')}"


def _jpeg_ends_early(data: bytes) -> bool:
    """True when the end marker is missing behind the first scan; no scan can contain its bytes."""
    at = 2
    while (marker := data[at : at + 2]) != _IMAGE_DATA_START:
        if len(marker) < 2:
            return True
        if marker[0] != 0xFF or marker == _IMAGE_DATA_END:
            return False
        at += 1 if marker[1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.find(_IMAGE_DATA_END, at) < 0


def _tiff_ends_early(data: bytes) -> bool:
    """True when the first directory, a value it points to, or a strip or tile ends behind the end of the file."""
    if any(stop > len(data) for stop in _tiff_directory_stops(data)):
        return True
    page = next(tiff_pages(data))
    spans = [zip(page[at], page[size], strict=False) for at, size in _DATA_TAGS if at in page and size in page]
    return any(start + size > len(data) for start, size in itertools.chain(*spans))


def _tiff_directory_stops(data: bytes) -> Iterator[int]:
    """End of the first directory and of each value it points to, bytes. TIFF 6.0, section 2; BigTIFF: longer fields."""
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
