"""Position: place of the camera, from the GPS directory of EXIF.

In: the EXIF of one image, as Pillow reads it, or the bytes of a TIFF. Out: a `Position`, or None. Tags, types and
units: EXIF 2.32 (CIPA DC-008-2019), GPS attribute information. A position that cannot be read is none, and no failure:
the pixels, and so the mask, do not depend on it.
"""

import contextlib
import io
import math
import struct
from collections.abc import Mapping
from typing import Any

from PIL import Image as PilImage
from PIL.ExifTags import GPS, IFD
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pipeline.records import Position

_MAX_VALUES = 2**16
"""Most values in a GPS directory: Pillow decodes all of them, and needs hundreds of bytes for a rational."""
_BELOW = (1, 3)
"""Values of GPSAltitudeRef for altitudes that are negative; EXIF 3.0 added 2 and 3 to 0 and 1."""


def position_of(exif: PilImage.Exif) -> Position | None:
    """Position in the GPS directory of EXIF, degrees and metres.

    None where longitude or latitude is missing, lacks its reference (N, S, E, W), is not a number or out of range;
    where GPSStatus is V (void: the receiver had no fix); at exactly 0 degrees north and east, which cameras without a
    fix write; and where GPSMapDatum is TOKYO, hundreds of metres away from WGS 84. An altitude that cannot be read is
    None, and so is the position of a directory of more than 65,536 values.
    """
    with contextlib.suppress(Exception):  # damaged EXIF makes Pillow raise many types
        return _position(exif.get_ifd(IFD.GPSInfo)) if _values(exif) <= _MAX_VALUES else None
    return None


def position_in_tiff(data: bytes) -> Position | None:
    """Position in the GPS directory of a TIFF, as `position_of`; for files that Pillow does not open."""
    with contextlib.suppress(Exception):
        exif = PilImage.Exif()
        exif.bigtiff, exif.endian = data[2:3] == b"+", "<" if data[:1] == b"I" else ">"
        exif.load_from_fp(io.BytesIO(data), ImageFileDirectory_v2(data[: 16 if exif.bigtiff else 8]).next)
        return position_of(exif)
    return None


def _values(exif: PilImage.Exif) -> int:
    """Number of values in the GPS directory, by its entries alone; 0 without one. TIFF 6.0, section 2."""
    if IFD.GPSInfo not in exif:
        return 0
    number, entry = ("Q", "HHQ8x") if exif.bigtiff else ("H", "HHL4x")
    exif.fp.seek(exif[IFD.GPSInfo])
    (entries,) = struct.unpack(f"{exif.endian}{number}", exif.fp.read(struct.calcsize(f"={number}")))
    table = exif.fp.read(entries * struct.calcsize(f"={entry}"))
    return sum(count for _, _, count in struct.iter_unpack(f"{exif.endian}{entry}", table))


def _position(gps: Mapping[int, Any]) -> Position | None:
    """Position by the tags of a GPS directory; raises many types where their values are of other types."""
    if _text(gps, GPS.GPSStatus).startswith("V") or _text(gps, GPS.GPSMapDatum).startswith("TOKYO"):
        return None
    longitude = _degrees(gps, GPS.GPSLongitude, _text(gps, GPS.GPSLongitudeRef), "EW", limit=180)
    latitude = _degrees(gps, GPS.GPSLatitude, _text(gps, GPS.GPSLatitudeRef), "NS", limit=90)
    if longitude is None or latitude is None or longitude == latitude == 0:
        return None
    altitude = None
    with contextlib.suppress(Exception):
        altitude = _altitude(gps)
    return Position(longitude, latitude, altitude)


def _degrees(gps: Mapping[int, Any], tag: int, ref: str, refs: str, *, limit: float) -> float | None:
    """Degrees of three rationals (degrees, minutes, seconds), negative for the second of `refs`."""
    degrees, minutes, seconds = (float(value) for value in gps[tag])
    value = degrees + minutes / 60 + seconds / 3600
    # Writers that round give 60 seconds; what is not a number fails every comparison.
    sound = degrees >= 0 and 0 <= minutes <= 60 and 0 <= seconds <= 60 and value <= limit
    if not sound or ref[:1] not in tuple(refs):
        return None
    return -value if ref[0] == refs[1] else value


def _altitude(gps: Mapping[int, Any]) -> float | None:
    """Metres above sea level, negative below; None for what is not a number."""
    metres = float(gps[GPS.GPSAltitude])
    ref = gps.get(GPS.GPSAltitudeRef, 0)
    below = (ref[0] if isinstance(ref, bytes) else int(ref)) in _BELOW
    return None if not math.isfinite(metres) else -metres if below else metres


def _text(gps: Mapping[int, Any], tag: int) -> str:
    """Text of a tag in capitals; empty without the tag."""
    value = gps.get(tag, "")
    return (value.decode("ascii", "ignore") if isinstance(value, bytes) else str(value)).strip("\0 ").upper()
