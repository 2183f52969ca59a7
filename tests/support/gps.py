"""EXIF with a GPS directory, byte by byte: any value that a camera may write, and those that none should.

Types of TIFF 6.0, section 2; tags of EXIF 2.32, GPS attribute information.
"""

import io
import struct
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from PIL import Image

STATUS, DATUM = 9, 18
LATITUDE_REF, LATITUDE, LONGITUDE_REF, LONGITUDE, ALTITUDE_REF, ALTITUDE = range(1, 7)
Field = tuple[int, int, bytes]
"""Type, number of values, and their bytes in little-endian order."""
_POINTER = 34853


def text(value: str) -> Field:
    """ASCII, with the zero at its end."""
    data = value.encode() + b"\0"
    return 2, len(data), data


def byte(value: int) -> Field:
    return 1, 1, bytes([value])


def rationals(*pairs: tuple[int, int]) -> Field:
    """Numerators and denominators, unsigned."""
    return 5, len(pairs), b"".join(struct.pack("<LL", *pair) for pair in pairs)


def signed(*pairs: tuple[int, int]) -> Field:
    return 10, len(pairs), b"".join(struct.pack("<ll", *pair) for pair in pairs)


def angle(degrees: float) -> Field:
    """Degrees, minutes and seconds of an angle, to a hundred-thousandth of a second."""
    hundred_thousandths = round(Fraction(abs(degrees)) * 3600 * 100_000)
    minutes, seconds = divmod(hundred_thousandths, 60 * 100_000)
    return rationals((minutes // 60, 1), (minutes % 60, 1), (seconds, 100_000))


def fields(longitude: float, latitude: float, altitude: float | None = None) -> dict[int, Field]:
    """Fields of a camera with a fix."""
    found = {
        STATUS: text("A"),
        DATUM: text("WGS-84"),
        LATITUDE_REF: text("S" if latitude < 0 else "N"),
        LATITUDE: angle(latitude),
        LONGITUDE_REF: text("W" if longitude < 0 else "E"),
        LONGITUDE: angle(longitude),
    }
    if altitude is not None:
        found |= {ALTITUDE_REF: byte(int(altitude < 0)), ALTITUDE: rationals((round(abs(altitude) * 1000), 1000))}
    return found


def directory(entries: Mapping[int, Field], at: int, *, big: bool = False) -> bytes:
    """Directory that will stand at byte `at` of a file, and behind it the values that do not fit into it."""
    number, entry, word = ("<Q", "<HHQ", "<Q") if big else ("<H", "<HHL", "<L")
    inline = struct.calcsize(word)
    table, values = struct.pack(number, len(entries)), b""
    behind = at + len(table) + (struct.calcsize(entry) + inline) * len(entries) + inline
    for tag, (kind, count, data) in sorted(entries.items()):
        fits = len(data) <= inline
        table += struct.pack(entry, tag, kind, count)
        table += data.ljust(inline, b"\0") if fits else struct.pack(word, behind + len(values))
        values += b"" if fits else data
    return table + bytes(inline) + values


def exif(gps: Mapping[int, Field], orientation: int = 1) -> bytes:
    """EXIF of an orientation and a GPS directory."""
    first = {274: (3, 1, struct.pack("<H", orientation)), _POINTER: (4, 1, struct.pack("<L", 8 + 30))}
    return b"Exif\0\0II*\0" + struct.pack("<L", 8) + directory(first, 8) + directory(gps, 8 + 30)


def photo(gps: Mapping[int, Field], kind: str = "JPEG", *, size_px: int = 32, orientation: int = 1) -> bytes:
    """A grey image with that GPS directory."""
    picture = Image.fromarray(np.full((size_px, size_px, 3), 90, np.uint8))
    file = io.BytesIO()
    picture.save(file, kind, exif=exif(gps, orientation)) if kind != "TIFF" else picture.save(file, kind)
    return in_tiff(file.getvalue(), gps) if kind == "TIFF" else file.getvalue()


def in_tiff(data: bytes, gps: Mapping[int, Field]) -> bytes:
    """A little-endian TIFF with a GPS directory: its first directory is written anew, with one more entry."""
    big = data[2:3] == b"+"
    number, word, entry = ("<Q", "<Q", 20) if big else ("<H", "<L", 12)
    inline, head = struct.calcsize(word), struct.calcsize(number)
    (at,) = struct.unpack_from(word, data, inline)
    (count,) = struct.unpack_from(number, data, at)
    entries = [data[at + head + entry * index :][:entry] for index in range(count)]
    behind = len(data) + head + entry * (count + 1) + inline
    pointer = struct.pack("<HHQQ" if big else "<HHLL", _POINTER, 4, 1, behind)
    table = b"".join(sorted([*entries, pointer], key=lambda one: int.from_bytes(one[:2], "little")))
    moved = struct.pack(number, count + 1) + table + bytes(inline)
    start = data[:inline] + struct.pack(word, len(data)) + data[2 * inline :]
    return start + moved + directory(gps, behind, big=big)
