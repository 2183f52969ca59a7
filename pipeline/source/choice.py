"""Choice of the image among several of one sample: `x.tif` beside its preview `x.jpg` and its label `x.png`.

In: the candidates, encoded. Out: the suffix of the largest image; a label is never chosen where there is a photograph.
Reads headers, decodes no pixels.
"""

import contextlib
import math
from collections.abc import Mapping

from pipeline.config import DecodeConfig
from pipeline.image.headers import open_header, recognise_format

_LIMITS = DecodeConfig(formats=("jpeg", "png", "webp", "tiff", "bmp"), frame="first")
_LABEL_MODES = frozenset({"1", "L", "LA", "La", "P", "PA"})
"""Pillow's modes of grey of up to 8 bits, and of palettes: those of class ids."""

_Rank = tuple[bool, float, bool, int]


def largest_image(candidates: Mapping[str, tuple[bytes, int]]) -> str:
    """Suffix of the image among candidates of one name, by the first of these rules that decides.

    1. not a PNG that is grey, has a palette or cannot be read: beside another image it is a label
    2. more pixels; a file that cannot be read counts as the largest, lest its preview replaces it in silence
    3. at equal pixels, neither a PNG nor a grey or palette TIFF or BMP of 8 bits: as large as the image, a label
    4. more bytes

    Args:
        candidates: bytes and size in bytes of each, by suffix; the bytes are empty where they were not read.
    """
    return max(candidates, key=lambda suffix: _rank(suffix, *candidates[suffix]))


def _rank(suffix: str, data: bytes, size: int) -> _Rank:
    header = _read_header(data)
    if header is None:
        return suffix != "png", math.inf, True, size
    pixels, mode = header
    grey = mode in _LABEL_MODES
    if suffix == "png":
        return not (grey or mode.startswith("I")), pixels, False, size
    return True, pixels, not (grey and suffix in ("tif", "tiff", "bmp")), size


def _read_header(data: bytes) -> tuple[int, str] | None:
    """Number of pixels and Pillow's mode; None for a file that the decoder would refuse."""
    with contextlib.suppress(Exception):  # Pillow raises many types on damaged data, and lists none of them
        file = open_header(data, recognise_format(data, _LIMITS), _LIMITS)
        return file.width * file.height, file.mode
    return None
