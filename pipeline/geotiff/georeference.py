"""Georeferencing of a raster: the tags of its file, and what they mean by GDAL.

In: a header. Out: the tags to copy into the file of a mask, the transform, and the coordinate system. Ground control
points and rational polynomials give no transform.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, InputError
from pipeline.geotiff import directory as tiff
from pipeline.geotiff.decode import load_rasterio, open_tiff
from pipeline.geotiff.directory import Directories, Values, encode_directories
from pipeline.geotiff.header import Header
from pipeline.geotiff.raster import GeoTag, Transform

GEO_TAGS = (tiff.PIXEL_SCALE, tiff.TIEPOINTS, tiff.TRANSFORMATION, tiff.GEO_KEYS, tiff.GEO_DOUBLES, tiff.GEO_ASCII)
_TYPES = {tiff.GEO_KEYS: tiff.SHORT, tiff.GEO_ASCII: tiff.ASCII}
_MOST_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Georeference:
    """Georeferencing of one raster; all is empty where it has none."""

    tags: tuple[GeoTag, ...] = ()
    transform: Transform | None = None
    crs_wkt: str | None = None
    epsg: int | None = None


def read_georeference(header: Header, crs: str | None = None) -> Georeference:
    """Georeferencing of a raster.

    Args:
        header: its header.
        crs: coordinate system to use instead of the file's, such as `EPSG:32614`.

    Raises:
        InputError: `corrupt` when GDAL cannot read the tags.
    """
    tags = tuple(_tag(header, tag) for tag in GEO_TAGS if tag in header.fields)
    if not any(tag.tag in (tiff.PIXEL_SCALE, tiff.TRANSFORMATION) for tag in tags):
        return Georeference()
    if crs is not None:
        tags = _with_crs(tags, crs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an identity transform
        with open_tiff(_single_pixel(tags)) as dataset:
            transform = None if dataset.transform.is_identity else tuple(dataset.transform)[:6]
            system = dataset.crs
            if transform is None:
                return Georeference()
            if not system:
                return Georeference(tags, transform)
            return Georeference(tags, transform, system.to_wkt(version="WKT2_2019"), system.to_epsg())


def check_crs(crs: str) -> None:
    """Check a coordinate system given by a user.

    Raises:
        ConfigError: GDAL does not know it.
    """
    _parse_crs(crs)


def _parse_crs(crs: str) -> Any:
    rasterio = load_rasterio()
    try:
        return rasterio.crs.CRS.from_user_input(crs)
    except (rasterio.errors.CRSError, ValueError) as error:
        raise ConfigError(f"--raster.crs {crs!r} is no coordinate system", hint="for example EPSG:32614") from error


def _tag(header: Header, tag: int) -> GeoTag:
    field = header.fields[tag]
    if field.num_bytes > _MOST_BYTES:
        raise InputError("corrupt", f"tag {tag} of the georeferencing has {field.num_bytes} bytes")
    kind = _TYPES.get(tag, tiff.DOUBLE)
    if field.type != kind:
        raise InputError("corrupt", f"tag {tag} of the georeferencing has the field type {field.type}, expected {kind}")
    return GeoTag(tag, kind, Values(kind, header.directories.values(field)).encode("<"))


def _single_pixel(tags: tuple[GeoTag, ...]) -> bytes:
    """TIFF of one pixel with these tags."""
    page = {
        tiff.WIDTH: Values(tiff.SHORT, np.array([1])),
        tiff.LENGTH: Values(tiff.SHORT, np.array([1])),
        tiff.BITS: Values(tiff.SHORT, np.array([8])),
        tiff.PHOTOMETRIC: Values(tiff.SHORT, np.array([1])),
        tiff.STRIP_OFFSETS: Values(tiff.LONG, np.array([0])),
        tiff.STRIP_COUNTS: Values(tiff.LONG, np.array([0])),
        **{tag.tag: Values(tag.type, tag.data) for tag in tags},
    }
    return encode_directories([page], big=False)


def _with_crs(tags: tuple[GeoTag, ...], crs: str) -> tuple[GeoTag, ...]:
    """Tags of the same transform and another coordinate system, as GDAL writes them."""
    rasterio = load_rasterio()
    profile = {"driver": "GTiff", "height": 1, "width": 1, "count": 1, "dtype": "uint8", "crs": _parse_crs(crs)}
    with open_tiff(_single_pixel(tags)) as dataset:
        profile["transform"] = dataset.transform
    with rasterio.io.MemoryFile() as memory:
        with memory.open(**profile):
            pass
        data = bytes(memory.read())
    directories = Directories(lambda at, size: data[at : at + size])
    fields = next(iter(directories))
    return tuple(GeoTag(tag, fields[tag].type, directories.raw(fields[tag])) for tag in GEO_TAGS if tag in fields)
