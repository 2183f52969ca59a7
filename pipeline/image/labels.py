"""Labels: the class of every pixel of an image, drawn by people and stored as a PNG.

In: the bytes of one PNG: class ids as palette or grey of up to 16 bits, or the colours of the classes. Out: (H, W)
uint8, class ids and the ignore id. A label that does not fit its image or class map raises an error with the file and
the value, since a wrong label gives a wrong score without a trace.
"""

import io
import itertools
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage

from pipeline.classes import ClassMap
from pipeline.config import LabelsConfig
from pipeline.errors import ConfigError, LabelError
from pipeline.records import UInt8

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">8s4x4sIIBBxxB")
"""Signature, type of the first chunk, width, height, bits per sample, colour type, interlacing: PNG, sec. 11.2.2."""
_CHUNK = struct.Struct(">I4s")
_GREY, _RGB, _PALETTE = 0, 2, 3
_KINDS = {_GREY: "grey", _RGB: "RGB", _PALETTE: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, row step and column step of each pass: PNG specification, sec. 8.2."""
_OTHERS = {b"\xff\xd8\xff": "a JPEG", b"RIFF": "a WebP", b"II*\0": "a TIFF", b"MM\0*": "a TIFF", b"GIF8": "a GIF"}
"""First bytes of other image formats, for error messages."""
LABEL_SUFFIX = ".png"
_TURNED_BY_90 = 5
"""EXIF orientations from 5 to 8 swap height and width."""
_TRIED = 3
"""Unlabelled images for which a label of another name is looked for."""


@dataclass(frozen=True, slots=True)
class Coding:
    """Meaning of the values in label files."""

    kind: Literal["ids", "colours"] = "ids"
    ids: Mapping[int, int] = field(default_factory=dict)
    """With `ids`: class id of each value in a file, 0 to 65535; empty keeps the values."""
    ignored: tuple[Colour, ...] = ()
    """With `colours`: colours of unlabelled pixels, unless a class has them."""

    def check(self, classes: ClassMap) -> None:
        """Refuse a coding that does not lead to the ids of a class map.

        Raises:
            ConfigError: two classes of one colour; an id that is neither a class nor the ignore id.
        """
        colours = [label_class.colour for label_class in classes.classes]
        if self.kind == "colours" and len(set(colours)) < len(colours):
            twice = next(colour for colour in colours if colours.count(colour) > 1)
            raise ConfigError(f"classes of {classes.name!r} share the colour {twice}: labels in colours are ambiguous")
        unknown = set(self.ids.values()) - {*range(len(classes)), classes.ignore_id}
        if unknown:
            raise ConfigError(
                f"label ids give the class id {min(unknown)}, which the class map {classes.name!r} does not have"
            )


def label_coding(cfg: LabelsConfig) -> Coding:
    """Meaning of the values in label files, by the config."""
    colours = cfg.ignored_colours if cfg.labels_as == "colours" else ()
    return Coding(cfg.labels_as, cfg.label_ids, colours)


IDS = Coding()
"""Coding of labels whose values are class ids."""


def decode_label(
    data: bytes,
    classes: ClassMap,
    *,
    name: str,
    height: int,
    width: int,
    coding: Coding = IDS,
    orientation: int = 1,
) -> UInt8:
    """Decode and check one label: (height, width) uint8 class ids, `classes.ignore_id` for unlabelled pixels.

    Args:
        data: the file. Grey samples of any depth are ids as they are; Pillow's scaling to 0 to 255 is undone.
        classes: the allowed values.
        name: name of the file, for messages.
        height: height of its upright image, pixels. The label must be upright too.
        width: width of that image, pixels.
        coding: meaning of the values.
        orientation: EXIF orientation of the image file, 1 to 8, which a message about the size names.

    Raises:
        LabelError: the file is no PNG, damaged, or of another kind than the coding's; its size is not the image's; it
            has a value or colour that is neither a class's nor the ignore id's. Kind and size are checked on the
            header, before a pixel is allocated.
    """
    header = _header(data, name)
    _check_kind(header, name, coding)
    _check_size(header, name, height, width, orientation)
    _check_data(data, name, header)
    try:
        with PilImage.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if coding.kind == "ids":
                values_hw = _values(picture, header)
            else:
                rgb_hwc: UInt8 = np.array(picture.convert("RGB"), np.uint8)
    except Exception as error:  # Pillow raises many types on damaged data, and lists none of them
        raise LabelError(f"the label {name} is a damaged PNG: {error}") from error
    if coding.kind == "ids":
        return _as_ids(values_hw, classes, coding, name)
    return from_colours(rgb_hwc, _colours(classes, coding), name=name)


def check_used(label_hw: UInt8, classes: ClassMap, *, name: str) -> None:
    """Refuse a label whose pixels are all ignored: raises LabelError, `label_empty`."""
    if (label_hw == classes.ignore_id).all():
        raise LabelError(f"every pixel of the label {name} is ignored", code="label_empty")


@dataclass(frozen=True, slots=True)
class _Header:
    """Header of a PNG."""

    height: int
    width: int
    bits: int
    """Bits per sample."""
    colour: int
    """Colour type."""
    interlaced: bool

    @property
    def kind(self) -> str:
        """Colour type and depth in words."""
        return f"{_KINDS.get(self.colour, f'of colour type {self.colour}')} with {self.bits} bits per sample"

    def data_bytes(self) -> int:
        """Size of the image data before compression: one filter byte and the samples of each row, for each pass."""
        depth = self.bits * (3 if self.colour == _RGB else 1)
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        sizes = ((ceil((self.height - y) / down), ceil((self.width - x) / right)) for y, x, down, right in passes)
        return sum(rows * (1 + ceil(columns * depth / 8)) for rows, columns in sizes if rows > 0 and columns > 0)


def png_size(data: bytes, *, name: str) -> tuple[int, int]:
    """Height and width in the header of a PNG, pixels; raises LabelError for another format."""
    header = _header(data, name)
    return header.height, header.width


def _header(data: bytes, name: str) -> _Header:
    if len(data) < _HEADER.size or not data.startswith(_SIGNATURE):
        actual = next((f" but {title}" for start, title in _OTHERS.items() if data.startswith(start)), "")
        raise LabelError(f"the label {name} is no PNG{actual}")
    _, chunk, columns, rows, bits, colour, interlaced = _HEADER.unpack_from(data)
    if chunk != b"IHDR":
        raise LabelError(f"the label {name} is a damaged PNG: it begins with the chunk {chunk!r}")
    return _Header(rows, columns, bits, colour, bool(interlaced))


def _check_size(header: _Header, name: str, height: int, width: int, orientation: int) -> None:
    if orientation >= _TURNED_BY_90 and height != width and (header.height, header.width) == (width, height):
        raw = f"the label {name} has {width}x{height} pixels as the photo is stored, not as it is shown"
        hint = f"turn the label as EXIF orientation {orientation} turns the photo, or remove that tag from the photo"
        raise LabelError(raw, code="label_size", hint=hint)
    if (header.height, header.width) != (height, width):
        message = f"the label {name} has {header.height}x{header.width} pixels, its image {height}x{width}"
        hint = "check that the two belong together; resize a label by nearest neighbour, never interpolated"
        raise LabelError(message, code="label_size", hint=hint)


def _check_kind(header: _Header, name: str, coding: Coding) -> None:
    if coding.kind == "ids" and header.colour not in (_GREY, _PALETTE):
        hint = "save class ids as a palette or grey PNG, or say --labels-as colours (under --judge or --sets)"
        raise LabelError(f"the label {name} is {header.kind}, not class ids", hint=hint)
    if coding.kind == "colours" and (header.colour not in (_RGB, _PALETTE) or header.bits > 8):
        raise LabelError(f"the label {name} is {header.kind}, not colours", hint="save it as an 8-bit RGB PNG")


def _check_data(data: bytes, name: str, header: _Header) -> None:
    """Refuse damage that Pillow accepts: wrong checksums, and fewer rows than the header announces."""
    expected, inflated = header.data_bytes(), 0
    inflater = zlib.decompressobj()
    try:
        for piece in _image_data(data, name):
            if inflated < expected:
                inflated += len(inflater.decompress(piece, expected - inflated))
    except zlib.error as error:
        raise LabelError(f"the label {name} is a damaged PNG: {error}") from error
    if inflated < expected:
        raise LabelError(f"the label {name} is a damaged PNG: its data ends after {inflated} of {expected} bytes")


def _image_data(data: bytes, name: str) -> Iterator[bytes]:
    """Compressed image data of each chunk, in file order."""
    at = len(_SIGNATURE)
    while at + _CHUNK.size <= len(data):
        size, kind = _CHUNK.unpack_from(data, at)
        end = at + _CHUNK.size + size
        if kind == b"IDAT":
            if zlib.crc32(data[at + 4 : end]).to_bytes(4) != data[end : end + 4]:
                raise LabelError(f"the label {name} is a damaged PNG: a checksum is wrong, or the file ends early")
            yield data[at + _CHUNK.size : end]
        at = end + 4


def _values(picture: PilImage.Image, header: _Header) -> npt.NDArray[np.integer]:
    """Samples as stored: Pillow scales grey of fewer than 8 bits to 0 to 255, which is undone."""
    if header.colour == _GREY and header.bits < 8:
        scaled: UInt8 = np.array(picture.convert("L"), np.uint8)
        return scaled // np.uint8(255 // (2**header.bits - 1))
    return np.array(picture, np.uint16 if header.bits == 16 else np.uint8)


def _as_ids(values_hw: npt.NDArray[np.integer], classes: ClassMap, coding: Coding, name: str) -> UInt8:
    if coding.ids:
        return from_ids(values_hw, coding.ids, name=name)
    unknown = np.bincount(values_hw.ravel(), minlength=256)
    unknown[: len(classes)] = 0
    unknown[classes.ignore_id] = 0
    if unknown.any():
        allowed = f"the class map {classes.name!r} 0 to {len(classes) - 1} or {classes.ignore_id}"
        hint = "give the class map of the labels with --classes, or map their values to it"
        raise LabelError(f"{_most(unknown, name)}, {allowed}", code="label_value", hint=hint)
    return values_hw.astype(np.uint8)


def _colours(classes: ClassMap, coding: Coding) -> dict[Colour, int]:
    """Class id of each colour of a label."""
    table = dict.fromkeys(coding.ignored, classes.ignore_id)
    return table | {label_class.colour: index for index, label_class in enumerate(classes.classes)}


def from_ids(values_hw: npt.NDArray[np.integer], table: Mapping[int, int], *, name: str) -> UInt8:
    """Translate the values of a label file into ids of the class map.

    Args:
        values_hw: (H, W) uint8 or uint16.
        table: class id of every allowed value.
        name: name of the file, for messages.

    Raises:
        LabelError: a value is not in the table; the message has the value and its number of pixels.
    """
    known = list(table)
    unknown = np.bincount(values_hw.ravel(), minlength=max([256, *known]) + 1)
    unknown[known] = 0
    if unknown.any():
        raise LabelError(f"{_most(unknown, name)}, which the set does not use", code="label_value")
    lookup = np.zeros(len(unknown), np.uint8)
    lookup[known] = list(table.values())
    ids_hw: UInt8 = lookup[values_hw]
    return ids_hw


def _most(counts: npt.NDArray[np.integer], name: str) -> str:
    return f"the label {name} has the value {int(counts.argmax())} on {int(counts.max())} pixel(s)"


def from_colours(rgb_hwc: UInt8, table: Mapping[Colour, int], *, name: str) -> UInt8:
    """Translate a label drawn in colours into (H, W) ids of the class map, exactly.

    Args:
        rgb_hwc: (H, W, 3).
        table: class id of every allowed colour.
        name: name of the file, for messages.

    Raises:
        LabelError: a colour is not in the table; the message has the most frequent one and its number of pixels.
    """
    lookup = np.zeros(1 << 24, np.uint16)  # id + 1, 0 for none; the system allocates only the pages that are written
    lookup[_codes(np.array(list(table), np.uint8))] = np.array(list(table.values())) + 1
    codes_hw = _codes(rgb_hwc)
    shifted_hw = lookup[codes_hw]
    if not shifted_hw.all():
        raise _unknown_colour(codes_hw[shifted_hw == 0], name)
    return (shifted_hw - 1).astype(np.uint8)


def _codes(rgb: UInt8) -> npt.NDArray[np.int32]:
    """24-bit code of each colour in the last axis."""
    codes = rgb[..., 0].astype(np.int32)
    for channel in (1, 2):
        codes <<= 8
        codes |= rgb[..., channel]
    return codes


def _unknown_colour(codes: npt.NDArray[np.int32], name: str) -> LabelError:
    values, counts = np.unique(codes, return_counts=True)
    code, pixels = int(values[counts.argmax()]), int(counts.max())
    colour = (code >> 16, code >> 8 & 255, code & 255)
    message = f"the label {name} has the colour {colour} on {pixels} pixel(s), which the set does not use"
    return LabelError(message, code="label_value")


def label_stem(path: str) -> str:
    """Stem that a label shares with its image: the path relative to its folder, without the suffix."""
    return str(PurePosixPath(path).with_suffix(""))


def by_stem(paths: Iterable[str]) -> dict[str, str]:
    """Label files among the paths, by the stem they share with their images; other files are skipped."""
    return {label_stem(path): path for path in paths if PurePosixPath(path).suffix.lower() == LABEL_SUFFIX}


def misnamed_label(images: Iterable[str], paths: Iterable[str]) -> str | None:
    """Text that names a label of another format or name than those that are read; None when there is none.

    Args:
        images: paths of images without a label; the first few are tried.
        paths: files in the folder of labels.
    """
    tried = [(image, _whole_word(PurePosixPath(image).stem)) for image in itertools.islice(images, _TRIED)]
    for path in paths:
        for image, word in tried:
            if label_stem(path) == label_stem(image):
                return f"labels are PNG: found {path} for {image}"
            if word.search(PurePosixPath(path).stem):
                return f"labels have the path of their image: found {path}, expected {label_stem(image)}.png"
    return None


def _whole_word(stem: str) -> re.Pattern[str]:
    """Pattern that finds a stem, but not inside a longer word or number."""
    return re.compile(rf"(?<![^\W_]){re.escape(stem)}(?![^\W_])")
