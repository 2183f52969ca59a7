"""Labels people drew: the class of every pixel of an image, as a PNG.

In: the bytes of one PNG, palette or grey with 8 bits, whose values are class ids. Out: (H, W) uint8, class ids and the
ignore id. A label that does not fit its image or class map is an error that names the file and the value: a wrong label
would give a wrong score, which nobody would see.
"""

import io
import struct
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np
from PIL import Image as PilImage

from pipeline.classes import ClassMap
from pipeline.errors import LabelError
from pipeline.records import UInt8

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">8s4x4sIIBB")
"""Signature, type of the first chunk, width, height, bits per sample, colour type: PNG specification, sec. 11.2.2."""
_GREY, _PALETTE = 0, 3
_KINDS = {_GREY: "grey", 2: "RGB", _PALETTE: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
SUFFIX = ".png"


def read(data: bytes, classes: ClassMap, *, name: str, height: int, width: int) -> UInt8:
    """Decode and check one label: (height, width) class ids, `classes.ignore_id` where there is none.

    Args:
        data: the file.
        classes: what its values may be.
        name: the file's, for messages.
        height: of its image, upright, pixels. The label must be upright too.
        width: of its image, pixels.

    Raises:
        LabelError: no PNG; values that are no ids (RGB, 16 bits); another size than the image; a value that is neither
            a class nor the ignore id. Kind and size are checked on the header, before a pixel is allocated.
    """
    _check_header(data, name, height, width)
    try:
        with PilImage.open(io.BytesIO(data), formats=["PNG"]) as picture:
            label: UInt8 = np.array(picture, np.uint8)
    except Exception as error:  # Pillow raises many types on damaged data, and lists none of them
        raise LabelError(f"the label {name} is a damaged PNG: {error}") from error
    _check_values(label, classes, name)
    return label


def _check_header(data: bytes, name: str, height: int, width: int) -> None:
    if len(data) < _HEADER.size or not data.startswith(_SIGNATURE):
        raise LabelError(f"the label {name} is no PNG")
    _, chunk, columns, rows, bits, colour = _HEADER.unpack_from(data)
    if chunk != b"IHDR":
        raise LabelError(f"the label {name} is a damaged PNG: it begins with the chunk {chunk!r}")
    if (colour, bits) != (_GREY, 8) and (colour != _PALETTE or bits > 8):
        kind = _KINDS.get(colour, f"of colour type {colour}")
        hint = "save class ids as a palette or 8-bit grey PNG"
        raise LabelError(f"the label {name} is {kind} with {bits} bits per sample, not class ids", hint=hint)
    if (rows, columns) != (height, width):
        raise LabelError(f"the label {name} has {rows}x{columns} pixels, its image {height}x{width}")


def _check_values(label_hw: UInt8, classes: ClassMap, name: str) -> None:
    counts = np.bincount(label_hw.ravel(), minlength=256)
    counts[: len(classes)] = 0
    counts[classes.ignore_id] = 0
    if counts.any():
        value, pixels = int(counts.argmax()), int(counts.max())
        allowed = f"0 to {len(classes) - 1} or {classes.ignore_id}"
        raise LabelError(
            f"the label {name} has the value {value} on {pixels} pixel(s), the class map {classes.name!r} {allowed}",
            hint="give the class map of the labels with --classes, or map their values to it",
        )


def stem(path: str) -> str:
    """What a label shares with its image: the path relative to its folder, without the suffix."""
    return str(PurePosixPath(path).with_suffix(""))


def by_stem(paths: Iterable[str]) -> dict[str, str]:
    """The label files among the paths, by what they share with their images; others are passed over."""
    return {stem(path): path for path in paths if PurePosixPath(path).suffix.lower() == SUFFIX}
