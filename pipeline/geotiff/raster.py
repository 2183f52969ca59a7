"""Description of one georeferenced raster, as planning finds it in the header; travels with the plan of a run.

In: nothing. Out: `Raster`, and its JSON. What is needed to read its windows is here, and what its mask's file needs:
size, type and bands, nodata value, and the tags of its georeferencing, which are copied as they are.
"""

import base64
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

Transform = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f: x = a column + b row + c, y = d column + e row + f, of the upper left corner of a pixel."""


def pixel_edge(transform: Transform) -> float:
    """Edge of a square of a pixel's area, in units of the coordinate system: rotated pixels have no width in x."""
    a, b, _, d, e, _ = transform
    return sqrt(abs(a * e - b * d))


@dataclass(frozen=True, slots=True)
class GeoTag:
    """One tag of the georeferencing, as it stands in a file of little-endian byte order."""

    tag: int
    type: int
    """Field type of TIFF: 2 text, 3 uint16, 12 float64."""
    data: bytes


@dataclass(frozen=True, slots=True)
class Raster:
    """One raster of a source."""

    path: str
    """Relative to the source."""
    etag: str
    """Version of the object, as the store names it."""
    size: int
    """Bytes of the object."""
    height: int
    """Pixels."""
    width: int
    dtype: str
    """Type of the samples: `uint8`, `uint16`, `int16` or `float32`."""
    count: int
    """Number of bands in the file, an alpha included."""
    bands: tuple[int, ...]
    """Number in the file, from 1, of each input band of the network."""
    channels: tuple[str, ...]
    """Name of each of these bands, as in the checkpoint's card."""
    alpha: int | None
    """Number of the band that is an alpha, from 1; None without."""
    nodata: float | None
    """Value of pixels without data in every band: of the file, or of `--raster.nodata`; None without."""
    geo_tags: tuple[GeoTag, ...] = ()
    """Tags of the georeferencing, to be copied."""
    transform: Transform | None = None
    """Affine transform to coordinates; None without georeferencing."""
    crs_wkt: str | None = None
    """Coordinate system as WKT2; None where the file names none."""
    epsg: int | None = None
    """Its EPSG code; None where it has none."""
    datetime: str | None = None
    """Time of the picture in RFC 3339, UTC, or the first second of its interval; None where it is not known."""
    end_datetime: str | None = None
    """Last second of the interval in which the picture was taken; None where `datetime` is its time."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        plain = asdict(self)
        plain["geo_tags"] = [[tag.tag, tag.type, base64.b64encode(tag.data).decode()] for tag in self.geo_tags]
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Raster":
        """Raster of plain data."""
        tags = tuple(GeoTag(tag, kind, base64.b64decode(data)) for tag, kind, data in plain["geo_tags"])
        transform = None if plain["transform"] is None else tuple(plain["transform"])
        bands, channels = tuple(plain["bands"]), tuple(plain["channels"])
        return cls(**plain | {"geo_tags": tags, "transform": transform, "bands": bands, "channels": channels})
