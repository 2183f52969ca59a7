"""Polygons with a class: read from GeoPackage, GeoJSON or GeoParquet, and burned into the grid of a raster.

In: the bytes of one file. Out: `Polygons`, then class ids per pixel of a raster. A pixel has the class of the polygon
that covers its centre; of several, the one that is last in the file. No file leads to another one: GDAL opens
GeoPackages alone, in memory and by their signature; GeoJSON and GeoParquet are read without it, since GDAL chooses its
driver by the content and would follow a virtual data set (VRT) under any name.
"""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline import optional
from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.raster import Raster
from pipeline.records import UInt8, Window

SUFFIXES = (".gpkg", ".geojson", ".json", ".parquet", ".geoparquet")
"""Suffixes of files of polygons."""
EDGE_PX = 16
"""Longest edge before reprojection, in pixels of the raster: a chord of this length leaves the curve by less than 0.01
pixel for pixels of up to 1 km and latitudes of up to 60 degrees."""
_SNAP = 2**16
"""Vertices are rounded to this part of a pixel, so that a window is burned as the whole raster is."""
_HALF_TURN = 180
"""Longest edge of a polygon in degrees of longitude: a longer one crosses the antimeridian."""
_CRS84 = "OGC:CRS84"


def load_shapely() -> Any:
    """Import shapely; raises ConfigError where it is missing."""
    with optional.package("shapely", extra="geo", needed_by="a file of polygons"):
        import shapely  # noqa: PLC0415

        return shapely


@dataclass(frozen=True)
class Polygons:
    """Polygons of one file, in its order."""

    name: str
    """Name of the file, for messages."""
    shapes: npt.NDArray[Any]
    """(N,) valid polygons and multipolygons of shapely."""
    ids: UInt8
    """(N,) class id of each."""
    crs: Any
    """Coordinate system of the file, of rasterio."""
    repaired: int
    """Polygons that were invalid, such as those that cross themselves, and were made valid."""
    left_out: int
    """Features without an area: empty ones, points, lines."""

    @property
    def notes(self) -> list[str]:
        """What people should know of the file, one line each."""
        notes = []
        if self.repaired:
            notes.append(f"{self.name}: {self.repaired} of {len(self.shapes)} polygons were invalid and are repaired")
        if self.left_out:
            notes.append(f"{self.name}: {self.left_out} feature(s) without an area are left out")
        return notes

    def on(self, raster: Raster) -> "PixelPolygons":
        """The polygons that touch a raster, in its pixels.

        Raises:
            ConfigError: the raster has no coordinate system, or it or a polygon crosses the antimeridian.
        """
        shapely = load_shapely()
        shapes, bounds, edge = self.shapes, *_extent(raster, self.crs, self.name)
        near = np.flatnonzero(shapely.intersects(shapes, shapely.box(*bounds)))
        cut = shapely.clip_by_rect(shapes[near], *bounds)
        pixels = shapely.transform(shapely.segmentize(cut, edge), _to_pixels(raster, self.crs))
        kept = ~shapely.is_empty(pixels)
        return PixelPolygons(pixels[kept], self.ids[near][kept])


@dataclass(frozen=True)
class PixelPolygons:
    """Polygons in pixels of one raster: x to the right, y down, from the corner of its first pixel."""

    shapes: npt.NDArray[Any]
    ids: UInt8

    @cached_property
    def _tree(self) -> Any:
        return load_shapely().STRtree(self.shapes)

    def burn(self, window: Window, out: UInt8) -> None:
        """Write class ids into a window of the raster, (h, w) uint8, where a polygon covers the centre of a pixel."""
        rasterio = load_rasterio()
        from rasterio import features  # noqa: PLC0415

        shapely = load_shapely()
        there = shapely.box(window.x, window.y, window.x + window.width, window.y + window.height)
        found = np.sort(self._tree.query(there, predicate="intersects"))
        if not len(found):
            return
        with rasterio.Env(GDAL_NUM_THREADS="1"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an identity transform
            shift = rasterio.Affine.translation(window.x, window.y)
            pairs = zip(self.shapes[found], self.ids[found].tolist(), strict=True)
            features.rasterize(pairs, out=out, transform=shift, all_touched=False)


# Reading --------------------------------------------------------------------------------------------------------------


def read_polygons(data: bytes, *, name: str, field: str | None, classes: ClassMap) -> Polygons:
    """Read a file of polygons.

    Args:
        data: the file.
        name: its name, for messages.
        field: attribute with the class of each polygon: a name of the class map, or an id.
        classes: the class map.

    Raises:
        ConfigError: the file is of another format, has no coordinate system, no polygon or no such attribute; an
            attribute is no class.
    """
    shapely = load_shapely()
    if field is None:
        raise ConfigError(
            f"polygons of {name} need the attribute with their class",
            hint="give --raster.label-field, or --read.label-field to evaluate",
        )
    shapes, values, crs = _reader(data, name)(data, name, field)
    solid = _areas(shapes)
    if not solid.any():
        raise ConfigError(f"{name} has no polygon: {len(shapes)} feature(s) are points, lines or empty")
    ids = _class_ids(np.asarray(values, object)[solid].tolist(), name, field, classes)
    kept, valid = shapes[solid], shapely.is_valid(shapes[solid])
    kept[~valid] = [_areas_of(shape) for shape in shapely.make_valid(kept[~valid])]
    polygons = Polygons(name, kept, ids, crs, int((~valid).sum()), int((~solid).sum()))
    _check_longitudes(polygons)
    return polygons


def _areas(shapes: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    shapely = load_shapely()
    return np.asarray(np.isin(shapely.get_type_id(shapes), [3, 6]) & ~shapely.is_empty(shapes))


def _areas_of(shape: Any) -> Any:
    """Polygons of a repaired geometry, without the lines and points that repairing leaves."""
    shapely = load_shapely()
    parts = shapely.get_parts(shape)
    if shape.geom_type == "GeometryCollection":
        parts = np.concatenate([shapely.get_parts(part) for part in parts])
    return shapely.multipolygons([part for part in parts if part.geom_type == "Polygon"])


_Read = tuple[npt.NDArray[Any], Sequence[Any], Any]


def _reader(data: bytes, name: str) -> Callable[[bytes, str, str], _Read]:
    if data.startswith(b"SQLite format 3\0") and data[68:70] == b"GP":
        return _geopackage
    if data[:4] == b"PAR1":
        return _geoparquet
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return _geojson
    raise ConfigError(
        f"{name} is no file of polygons: it begins with {data[:16]!r}",
        hint="convert it with `ogr2ogr OUT.gpkg IN`; GeoPackage, GeoJSON and GeoParquet are read",
    )


def _geopackage(data: bytes, name: str, field: str) -> _Read:
    with optional.package("pyogrio", extra="geo", needed_by="a GeoPackage of polygons"):
        import pyogrio  # noqa: PLC0415
        from pyogrio import raw  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file in memory has no suffix
        try:
            layers = [str(layer) for layer, kind in pyogrio.list_layers(data) if kind is not None]
            if len(layers) != 1:
                raise ConfigError(
                    f"{name} has {len(layers)} layers of geometries: {', '.join(layers) or 'none'}; keep one"
                )
            facts = pyogrio.read_info(data, layer=layers[0])
            _check_field(field, facts["fields"].tolist(), name)
            meta, _, wkb, values = raw.read(data, layer=layers[0], columns=[field])
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
            raise ConfigError(f"{name} cannot be read as a GeoPackage: {error}") from error
    if facts["driver"] != "GPKG":
        raise ConfigError(f"{name} is no GeoPackage: GDAL reads it as {facts['driver']}")
    return load_shapely().from_wkb(wkb), values[0].tolist(), _crs(meta["crs"], name)


def _geojson(data: bytes, name: str, field: str) -> _Read:
    shapely = load_shapely()
    try:
        plain = json.loads(data.decode("utf-8-sig"))
        features = plain["features"] if plain.get("type") == "FeatureCollection" else None
    except (ValueError, AttributeError, KeyError) as error:
        raise ConfigError(f"{name} is damaged JSON: {error!r}") from error
    if features is None:
        raise ConfigError(f"{name} is no GeoJSON of features: its type is {plain.get('type')!r}")
    fields = dict.fromkeys(key for feature in features for key in feature.get("properties") or {})
    _check_field(field, list(fields), name)
    texts = [None if feature.get("geometry") is None else json.dumps(feature["geometry"]) for feature in features]
    try:
        shapes = shapely.from_geojson(np.array(texts, object))
    except shapely.errors.GEOSException as error:
        raise ConfigError(f"{name} has a damaged geometry: {error}") from error
    named = plain.get("crs", {"properties": {"name": _CRS84}})  # RFC 7946, sec. 4; older files name another one
    values = [(feature.get("properties") or {}).get(field) for feature in features]
    return shapes, values, _crs(named and named["properties"]["name"], name)


def _geoparquet(data: bytes, name: str, field: str) -> _Read:
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        geo = json.loads((file.schema_arrow.metadata or {})[b"geo"])
        column = geo["primary_column"]
        facts = geo["columns"][column]
    except (OSError, KeyError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise ConfigError(f"{name} is no GeoParquet: {error!r}") from error
    if facts.get("encoding") != "WKB":
        raise ConfigError(f"{name} has geometries encoded as {facts.get('encoding')!r}; WKB is read")
    _check_field(field, [key for key in file.schema_arrow.names if key != column], name)
    table = file.read(columns=[column, field])
    shapes = load_shapely().from_wkb(np.array(table[column].to_pylist(), object))
    return shapes, table[field].to_pylist(), _crs(facts.get("crs", _CRS84), name)


def _check_field(field: str, fields: list[str], name: str) -> None:
    if field not in fields:
        raise ConfigError(
            f"{name} has no attribute {field!r}", hint=f"its attributes are {', '.join(fields) or 'none'}"
        )


def _crs(given: Any, name: str) -> Any:
    """Coordinate system by name, WKT or PROJJSON."""
    rasterio = load_rasterio()
    if not given:
        hint = "write the coordinate system into it, for example `ogr2ogr -a_srs EPSG:32614 OUT.gpkg IN`"
        raise ConfigError(f"{name} names no coordinate system", hint=hint)
    try:
        if isinstance(given, dict):
            code = given.get("id", {})
            given = f"{code['authority']}:{code['code']}" if code else json.dumps(given)
        return rasterio.crs.CRS.from_user_input(given)
    except (rasterio.errors.CRSError, ValueError) as error:
        raise ConfigError(f"{name} has a coordinate system that GDAL does not know: {given!r}") from error


def _class_ids(values: list[Any], name: str, field: str, classes: ClassMap) -> UInt8:
    """(N,) class id of each value: a class name, or an id as a number or in digits."""
    ids = {class_name: index for index, class_name in enumerate(classes.names)}
    numbers = {*range(len(classes)), classes.ignore_id}
    found, unknown = [], dict[Any, int]()
    for value in values:
        index = ids.get(value) if isinstance(value, str) else None
        if index is None and not isinstance(value, bool):
            try:
                index = int(value) if float(value) == int(value) else None
            except (TypeError, ValueError, OverflowError):
                index = None
        if index not in numbers:
            unknown[value] = unknown.get(value, 0) + 1
        found.append(index or 0)
    if unknown:
        value, count = max(unknown.items(), key=lambda item: item[1])
        hint = f"its classes are {', '.join(classes.names)}, or their ids"
        raise ConfigError(
            f"{count} polygon(s) of {name} have {field} = {value!r}, which is no class of {classes.name!r}",
            hint=hint,
        )
    return np.array(found, np.uint8)


# Reprojection ---------------------------------------------------------------------------------------------------------


def _extent(raster: Raster, crs: Any, name: str) -> tuple[tuple[float, float, float, float], float]:
    """Bounds of a raster in the coordinate system of the polygons, with a margin; and the longest edge there."""
    rasterio = load_rasterio()
    from rasterio import warp  # noqa: PLC0415

    if raster.transform is None or raster.crs_wkt is None:
        hint = "give --raster.crs, or label rasters on the same grid"
        raise ConfigError(f"{raster.path} has no coordinate system, so polygons cannot be laid on it", hint=hint)
    affine, own = rasterio.Affine(*raster.transform), rasterio.crs.CRS.from_wkt(raster.crs_wkt)
    corners = [affine @ (x, y) for x in (0, raster.width) for y in (0, raster.height)]
    xs, ys = zip(*corners, strict=True)
    left, bottom, right, top = warp.transform_bounds(own, crs, min(xs), min(ys), max(xs), max(ys), densify_pts=21)
    if left > right:
        raise ConfigError(f"{raster.path} crosses the antimeridian in the coordinates of {name}", hint="cut it in two")
    dx, dy = (right - left) / 50, (top - bottom) / 50
    edge = EDGE_PX * min((right - left) / raster.width, (top - bottom) / raster.height)
    return (left - dx, bottom - dy, right + dx, top + dy), edge


def _to_pixels(raster: Raster, crs: Any) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """Function from coordinates (N, 2) of the polygons to pixels of the raster."""
    rasterio = load_rasterio()
    from rasterio import warp  # noqa: PLC0415

    own, inverse = rasterio.crs.CRS.from_wkt(raster.crs_wkt), ~rasterio.Affine(*(raster.transform or ()))

    def convert(points: npt.NDArray[Any]) -> npt.NDArray[Any]:
        xs, ys = points[:, 0], points[:, 1]
        if own != crs:
            xs, ys = (np.asarray(values) for values in warp.transform(crs, own, xs, ys))
        columns, rows = inverse.a * xs + inverse.b * ys + inverse.c, inverse.d * xs + inverse.e * ys + inverse.f
        return np.asarray(np.round(np.stack([columns, rows], axis=1) * _SNAP) / _SNAP)

    return convert


def _check_longitudes(polygons: Polygons) -> None:
    """Raise ConfigError for polygons with an edge of more than half a turn: they cross the antimeridian."""
    shapely = load_shapely()
    if not polygons.crs.is_geographic:
        return
    rings = shapely.get_rings(shapely.get_parts(polygons.shapes))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    far = (np.abs(np.diff(points[:, 0])) > _HALF_TURN) & (np.diff(ring) == 0)
    if far.any():
        count = len(np.unique(ring[:-1][far]))
        hint = "cut them at 180 degrees, for example `ogr2ogr -wrapdateline OUT.gpkg IN`"
        raise ConfigError(f"{count} ring(s) of polygons of {polygons.name} cross the antimeridian", hint=hint)
