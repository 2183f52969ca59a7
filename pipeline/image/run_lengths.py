"""Run-length codes of masks in annotation tools: CVAT's, Label Studio's brush, and COCO's.

    CVAT           runs off, on, off, ... row by row within a box       docs.cvat.ai, "XML annotation format"
    Label Studio   bits of rle-pack over RGBA, row by row               labelstud.io, "BrushLabels"; @thi.ng/rle-pack
    COCO           runs off, on, off, ... column by column, or in text  cocodataset.org, "Data format"

In: (H, W) bool masks, or codes that a tool has exported. Out: the other one. A code that does not fit its size is a
ValueError with the numbers; nothing is allocated before the sizes agree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.records import Bool, Int64

_RUN_BITS = (3, 4, 8, 16)
"""Widths of the lengths of runs, which a block names by two bits; those that Label Studio writes."""
_WORD_BITS = 8
_CHANNELS = 4
_ALPHA = 3


def runs_of(flat: Bool) -> Int64:
    """Lengths of the runs of a flat mask, alternately off and on; the first is 0 when the mask begins on."""
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends.tolist(), len(flat)])
    return np.asarray([0, *lengths] if len(flat) and flat[0] else lengths, np.int64)


def mask_of_runs(lengths: Sequence[int], height: int, width: int) -> Bool:
    """(height, width) mask of runs, row by row.

    Raises:
        ValueError: the runs do not cover it, or one is negative.
    """
    total = sum(lengths)
    if total != height * width or min(lengths, default=-1) < 0:
        raise ValueError(f"runs of {total} pixels do not cover {height}x{width}")
    on: Bool = np.repeat(np.arange(len(lengths)) % 2 == 1, np.asarray(lengths, np.int64)).reshape(height, width)
    return on


# ---------------------------------------------------------------- CVAT


@dataclass(frozen=True, slots=True)
class BoxedRuns:
    """Mask as CVAT has it: runs within a box."""

    lengths: tuple[int, ...]
    """Alternately off and on, row by row."""
    left: int
    top: int
    width: int
    height: int
    """Box, pixels."""


def encode_box(mask_hw: Bool) -> BoxedRuns:
    """Runs of a mask within its bounding box; ValueError for a mask without a pixel."""
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if not len(rows):
        raise ValueError("the mask has no pixel")
    (top, bottom), (left, right) = ((int(ends[0]), int(ends[-1]) + 1) for ends in (rows, columns))
    inside = mask_hw[top:bottom, left:right]
    return BoxedRuns(tuple(runs_of(inside.ravel()).tolist()), left, top, right - left, bottom - top)


def decode_box(code: BoxedRuns, height: int, width: int) -> Bool:
    """(height, width) mask of runs within a box.

    Raises:
        ValueError: the box leaves the image, or the runs do not cover it.
    """
    if min(code.left, code.top) < 0 or code.left + code.width > width or code.top + code.height > height:
        box = f"{code.height}x{code.width} at row {code.top}, column {code.left}"
        raise ValueError(f"the box {box} leaves the image of {height}x{width}")
    inside = mask_of_runs(code.lengths, code.height, code.width)
    mask_hw = np.zeros((height, width), bool)
    mask_hw[code.top : code.top + code.height, code.left : code.left + code.width] = inside
    return mask_hw


# ---------------------------------------------------------------- Label Studio


def encode_brush(mask_hw: Bool) -> bytes:
    """Label Studio's brush code of a mask: white and opaque where it is on, black and transparent elsewhere.

    The code begins with the number of bytes of the image (32 bits), the bits of a word less 1 (5), and four widths less
    1 (4 each). A block is one bit, 1 for a run and 0 for words that follow; two bits that name a width; the length less
    1 in that width; the word or words.
    """
    header = f"{mask_hw.size * _CHANNELS:032b}{_WORD_BITS - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in _RUN_BITS)
    values = ("0" * _WORD_BITS, "1" * _WORD_BITS)
    lengths = (runs_of(mask_hw.ravel()) * _CHANNELS).tolist()
    blocks = [f"{_length_bits(part)}{values[number % 2]}" for number, run in enumerate(lengths) for part in _parts(run)]
    text = header + "".join(blocks)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8))


def _parts(run: int) -> Iterator[int]:
    """Lengths of at most 2^16 that add up to a run."""
    longest = 1 << _RUN_BITS[-1]
    yield from (min(longest, run - start) for start in range(0, run, longest))


def _length_bits(run: int) -> str:
    number = next(number for number, bits in enumerate(_RUN_BITS) if run <= 1 << bits)
    return f"1{number:02b}{run - 1:0{_RUN_BITS[number]}b}"


def decode_brush(data: bytes, height: int, width: int) -> Bool:
    """(height, width) mask of a brush code: on where alpha is above 0.

    Raises:
        ValueError: the code is of an image of another size or of other words, or it ends early.
    """
    reader = _Bits(data)
    count, word_bits = reader.take(32), reader.take(5) + 1
    if count != height * width * _CHANNELS or word_bits != _WORD_BITS:
        raise ValueError(f"a code of {count} words of {word_bits} bits is none of {height}x{width} pixels in RGBA")
    widths = [reader.take(4) + 1 for _ in _RUN_BITS]
    values, at = np.zeros(count, np.uint8), 0
    while at < count:
        is_run = reader.take(1)
        length = reader.take(widths[reader.take(2)]) + 1
        if at + length > count:
            raise ValueError(f"a block of {length} words leads beyond the {count} of the image")
        values[at : at + length] = reader.take(_WORD_BITS) if is_run else reader.words(length)
        at += length
    return np.asarray(values.reshape(height, width, _CHANNELS)[..., _ALPHA] > 0)


class _Bits:
    """Reader of a sequence of bits, the highest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, bits: int) -> int:
        """The next number of so many bits."""
        first, self.at = self.at, self.at + bits
        if self.at > 8 * len(self.data):
            raise ValueError(f"the code ends early, after {len(self.data)} bytes")
        last = -(-self.at // 8)
        return int.from_bytes(self.data[first // 8 : last]) >> (8 * last - self.at) & ((1 << bits) - 1)

    def words(self, count: int) -> npt.NDArray[np.uint8]:
        """The next words of 8 bits."""
        number = self.take(count * _WORD_BITS)
        return np.frombuffer(number.to_bytes(count), np.uint8)


# ---------------------------------------------------------------- COCO


def counts_of_text(text: str) -> list[int]:
    """Lengths of runs from COCO's text: 5 bits a character from `0` on, a sixth that says whether more follow.

    From the fourth on, a number is the difference to the one two before (cocodataset.org, maskApi.c `rleFrString`).

    Raises:
        ValueError: a character is none of the code, or the text ends within a number.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"{character!r} at a place where COCO's run lengths have none")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the text ends within a number")
    return counts


def decode_columns(counts: Sequence[int] | str, height: int, width: int) -> Bool:
    """(height, width) mask of COCO's runs, column by column, as numbers or as text.

    Raises:
        ValueError: the runs do not cover the image, or as `counts_of_text`.
    """
    lengths = counts_of_text(counts) if isinstance(counts, str) else counts
    return mask_of_runs(lengths, width, height).T
