"""Directories of a TIFF or BigTIFF: fields read by ranges of bytes, and directories encoded to the head of a new file.

In: a function that reads a range of a file. Out: for each directory its fields by tag, whose values stay unread until
asked for: the tile offsets of a large raster are megabytes, of which a window needs a few kilobytes. Formats: TIFF 6.0,
section 2 (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf); BigTIFF:
http://bigtiff.org. Why not a library: docs/decisions/018-own-tiff-directories.md.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError

ReadRange = Callable[[int, int], bytes]
"""Bytes from an offset, of a length; fewer only where the file ends."""
ByteOrder = Literal["<", ">"]

SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS, PLANAR = 273, 274, 277, 278, 279, 284
DATETIME, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS = 306, 317, 320, 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, SUBSAMPLING = 338, 339, 347, 530
PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, GEO_KEYS, GEO_DOUBLES, GEO_ASCII = 33550, 33922, 34264, 34735, 34736, 34737
GDAL_METADATA, NODATA = 42112, 42113

MAX_DIRECTORIES = 64
"""Most directories of a file that are looked at: image, mask, and their overviews."""
MAX_FIELDS = 4096
_TYPES: dict[int, str] = {
    **{1: "u1", 2: "S1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4"},
    **{11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8"},
}
"""numpy dtype of each field type; rationals (5, 10) are pairs."""
_RATIONALS = (5, 10)
ASCII, SHORT, LONG, DOUBLE, LONG8 = 2, 3, 4, 12, 16
"""Field types for encoding."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a directory, its values unread."""

    type: int
    """Field type, a key of `_TYPES`."""
    count: int
    """Number of values."""
    at: int
    """Offset of the values in the file, bytes."""

    @property
    def item_bytes(self) -> int:
        """Bytes of one value."""
        return np.dtype(_TYPES[self.type]).itemsize * (2 if self.type in _RATIONALS else 1)

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return self.count * self.item_bytes


@dataclass(frozen=True, slots=True)
class Values:
    """Values of a field to encode: its type, and the values as an array or as text."""

    type: int
    values: npt.NDArray[Any] | bytes

    def encode(self, order: ByteOrder) -> bytes:
        """Bytes in the file."""
        if isinstance(self.values, bytes):
            return self.values
        return self.values.astype(np.dtype(_TYPES[self.type]).newbyteorder(order), copy=False).tobytes()

    def count(self, data: bytes) -> int:
        """Number of values in their encoded bytes."""
        return len(data) // Field(self.type, 1, 0).item_bytes


class Directories:
    """Directories of one file."""

    def __init__(self, read: ReadRange) -> None:
        self._read = read
        head = read(0, 16)
        marks: dict[bytes, tuple[ByteOrder, bool]] = {
            b"II*\0": ("<", False),
            b"MM\0*": (">", False),
            b"II+\0": ("<", True),
            b"MM\0+": (">", True),
        }
        if head[:4] not in marks or len(head) < 16:
            raise InputError("not_an_image", f"no TIFF: it begins with {head[:16]!r}")
        self.order, self.big = marks[head[:4]]
        self._first = self._unpack("Q" if self.big else "L", head[8:16] if self.big else head[4:8])

    def __iter__(self) -> Iterator[dict[int, Field]]:
        """Fields by tag of each directory, at most `MAX_DIRECTORIES`.

        Raises:
            InputError: `truncated` or `corrupt`.
        """
        at, seen = self._first, set[int]()
        while at and at not in seen and len(seen) < MAX_DIRECTORIES:
            seen.add(at)
            fields, at = self._directory(at)
            yield fields

    def values(self, field: Field, first: int = 0, count: int | None = None) -> npt.NDArray[Any]:
        """Values `first` to `first + count` of a field, all by default; of rationals, numerators and denominators.

        Raises:
            InputError: `truncated` when the file ends before them.
        """
        count = field.count - first if count is None else count
        size = count * field.item_bytes
        data = self._exactly(field.at + first * field.item_bytes, size)
        return np.frombuffer(data, np.dtype(_TYPES[field.type]).newbyteorder(self.order))

    def raw(self, field: Field) -> bytes:
        """All values of a field as they stand in the file."""
        return self._exactly(field.at, field.num_bytes)

    def _directory(self, at: int) -> tuple[dict[int, Field], int]:
        """Fields of the directory at an offset, and the offset of the next one."""
        head, entry, inline = ("Q", "HHQQ", 8) if self.big else ("H", "HHLL", 4)
        head_bytes, entry_bytes = struct.calcsize("<" + head), struct.calcsize("<" + entry)
        count = self._unpack(head, self._exactly(at, head_bytes))
        if count > MAX_FIELDS:
            raise InputError("corrupt", f"the TIFF directory at byte {at} announces {count} fields")
        body = self._exactly(at + head_bytes, count * entry_bytes + inline)
        fields: dict[int, Field] = {}
        for number, (tag, kind, length, value) in enumerate(
            struct.iter_unpack(self.order + entry, body[: count * entry_bytes])
        ):
            if kind not in _TYPES:
                continue
            field = Field(kind, length, value)
            if field.num_bytes <= inline:  # the values stand in the entry itself
                field = Field(kind, length, at + head_bytes + (number + 1) * entry_bytes - inline)
            fields.setdefault(tag, field)
        return fields, self._unpack("Q" if self.big else "L", body[count * entry_bytes :])

    def _unpack(self, code: str, data: bytes) -> int:
        return int(struct.unpack(self.order + code, data)[0])

    def _exactly(self, at: int, size: int) -> bytes:
        data = self._read(at, size)
        if len(data) < size:
            raise InputError("truncated", f"the TIFF ends before byte {at + size}, where values of its header end")
        return data


def encode_directories(directories: Sequence[Mapping[int, Values]], *, big: bool, order: ByteOrder = "<") -> bytes:
    """Head of a file: its signature, then each directory followed by its values; tile data comes after it.

    The length depends on the numbers of values alone, so offsets of tiles are known after a first call without them.

    Raises:
        ValueError: an offset needs more than 32 bits and `big` is False.
    """
    out = bytearray(_signature(big, order))
    pointer = len(out) - (8 if big else 4)
    for directory in directories:
        out += b"\0" * (len(out) % 2)  # directories begin at even offsets
        out[pointer : pointer + (8 if big else 4)] = struct.pack(order + ("Q" if big else "L"), len(out))
        pointer = _append(out, directory, big, order)
    return bytes(out)


def _signature(big: bool, order: ByteOrder) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    return mark + (struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HL", 42, 0))


def _append(out: bytearray, directory: Mapping[int, Values], big: bool, order: ByteOrder) -> int:
    """Append a directory and its values; returns the offset of its pointer to the next one, still 0."""
    head, entry, inline = ("Q", "HHQ", 8) if big else ("H", "HHL", 4)
    entries = bytearray(struct.pack(order + head, len(directory)))
    start = len(out)
    values_at = start + len(entries) + len(directory) * (struct.calcsize("<" + entry) + inline) + inline
    values = bytearray()
    for tag, value in sorted(directory.items()):
        data = value.encode(order)
        entries += struct.pack(order + entry, tag, value.type, value.count(data))
        if len(data) <= inline:
            entries += data.ljust(inline, b"\0")
            continue
        values += b"\0" * ((values_at + len(values)) % 2)
        if not big and values_at + len(values) >= 2**32:
            raise ValueError("this head needs a BigTIFF")
        entries += struct.pack(order + ("Q" if big else "L"), values_at + len(values))
        values += data
    out += entries + bytes(inline) + values
    return values_at - inline
