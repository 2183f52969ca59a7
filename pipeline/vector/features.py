"""Polygons with an attribute, read from GeoPackage, GeoJSON, GeoParquet or a shapefile.

In: the bytes of one file. Out: `Features`: valid polygons in the order of the file, an attribute of each, the
coordinate system. No file leads to another one: GDAL opens GeoPackages and shapefiles alone, in memory and by their
signature; GeoJSON and GeoParquet are read without it, since GDAL chooses its driver by the content and would follow a
virtual data set (VRT) under any name.
"""

import io
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline import optional
from pipeline.errors import ConfigError
from pipeline.geotiff.decode import load_rasterio
from pipeline.vector import shapefile
from pipeline.vector.antimeridian import Box, Shapes, areas_of, has_area, turn_of, unroll
from pipeline.vector.geoparquet import LONGITUDE_LATITUDE, load_shapely

_EXACT = 2**53
"""Whole numbers from here on are not all known to a float64."""


@dataclass(frozen=True)
class Features:
    """Polygons of one file, in its order."""

    name: str
    """Name of the file, for messages."""
    shapes: Shapes
    """(N,) valid polygons and multipolygons of shapely, in two dimensions."""
    values: list[Any]
    """(N,) attribute of each; without one, its number in the file from "1" on, features that are left out included."""
    crs: Any
    """Coordinate system of the file, of rasterio."""
    repaired: int = 0
    """Polygons that were invalid, such as those that cross themselves, and were made valid."""
    left_out: int = 0
    """Features without an area: empty ones, points, lines."""
    unrolled: int = 0
    """Polygons with an edge of more than half a turn, which were continued beyond the antimeridian."""
    remarks: tuple[str, ...] = ()
    """What the reader of the format found, one line each."""

    @property
    def notes(self) -> list[str]:
        """What people should know of the file, one line each."""
        notes = [f"{self.name}: {remark}" for remark in self.remarks]
        if self.repaired:
            notes.append(f"{self.name}: {self.repaired} of {len(self.shapes)} polygons were invalid and are repaired")
        if self.left_out:
            notes.append(f"{self.name}: {self.left_out} feature(s) without an area are left out")
        if self.unrolled:
            notes.append(
                f"{self.name}: {self.unrolled} polygon(s) with an edge of more than 180 degrees of longitude "
                "cross the antimeridian, and are continued beyond it"
            )
        return notes

    @cached_property
    def turn(self) -> float | None:
        """Whole circle in units of the coordinate system; None where it is projected."""
        return turn_of(self.crs)

    @cached_property
    def bounds(self) -> Box:
        """Bounds of all polygons."""
        left, bottom, right, top = load_shapely().total_bounds(self.shapes).tolist()
        return left, bottom, right, top

    @cached_property
    def _tree(self) -> Any:
        return load_shapely().STRtree(self.shapes)

    def take(self, indices: npt.NDArray[np.int64]) -> "Features":
        """Some of the polygons."""
        return replace(self, shapes=self.shapes[indices], values=[self.values[index] for index in indices.tolist()])

    def near(self, boxes: Sequence[Box]) -> npt.NDArray[np.int64]:
        """Ascending indices of the polygons that touch one of the boxes, in the coordinate system of the file."""
        sides = [load_shapely().box(*box) for box in boxes]
        return np.unique(self._tree.query(sides, predicate="intersects")[1])


def read_features(data: bytes, *, name: str, field: str | None, beside: Mapping[str, bytes] | None = None) -> Features:
    """Read a file of polygons.

    Args:
        data: the file: a GeoPackage, GeoJSON, GeoParquet, a .shp, or a zip archive of one shapefile.
        name: its name, for messages.
        field: attribute to read; None numbers the features.
        beside: files beside a .shp, by suffix in lower case.

    Raises:
        ConfigError: the file is of another format or damaged, has no coordinate system, no polygon, no such attribute,
            or several layers; a polygon goes around a pole.
    """
    raw = _read(data, name, field, beside or {})
    solid = has_area(raw.shapes)
    if not solid.any():
        raise ConfigError(f"{name} has no polygon: {len(raw.shapes)} feature(s) are points, lines or empty")
    values = [str(at) for at in range(1, len(raw.shapes) + 1)] if raw.values is None else raw.values
    values = [value for value, kept in zip(values, solid.tolist(), strict=True) if kept]
    shapely = load_shapely()
    shapes, unrolled, turn = shapely.force_2d(raw.shapes[solid]), 0, turn_of(raw.crs)
    _check_finite(shapes, name)
    if turn is not None:
        shapes, unrolled = unroll(shapes, turn, name)
    valid = shapely.is_valid(shapes)
    shapes[~valid] = [areas_of(shape) for shape in shapely.make_valid(shapes[~valid])]
    return Features(
        name, shapes, values, raw.crs, int((~valid).sum()), int((~solid).sum()), unrolled, tuple(raw.remarks)
    )


def zone_ids(values: Sequence[Any], name: str, field: str | None) -> list[str]:
    """Ids of zones as text: whole numbers in digits, text as it is, other values as Python writes them.

    Args:
        values: attribute of each zone.
        name: of their file, for messages.
        field: the attribute; None where the zones are numbered.

    Raises:
        ConfigError: zones share an id or have none, such as an empty text; a float is too large to be exact.
    """
    ids = [_zone_id(value) for value in values]
    called = f"zone(s) of {name}"
    hint = f"give an attribute that differs from zone to zone instead of {field}"
    if missing := [at for at, zone in enumerate(ids, start=1) if not zone]:
        raise ConfigError(f"{len(missing)} {called} have no {field}; the first is polygon {missing[0]}", hint=hint)
    if rounded := [value for value in values if isinstance(value, float) and abs(value) >= _EXACT]:
        raise ConfigError(
            f"{len(rounded)} {called} have a {field} that a float cannot hold exactly: {rounded[0]!r}, limit 2^53",
            hint="write it as text or as whole numbers",
        )
    counts = Counter(ids)
    if len(counts) < len(ids):
        zone, count = next((zone, count) for zone, count in counts.items() if count > 1)
        shared = sum(count for count in counts.values() if count > 1)
        raise ConfigError(f"{shared} {called} share their {field} with another, {count} of them {zone!r}", hint=hint)
    return [zone for zone in ids if zone]


def _zone_id(value: Any) -> str | None:
    """Id of a zone as text; None for a null."""
    if value is None or value != value:  # noqa: PLR0124  # NaN is the null of floats
        return None
    if isinstance(value, (float, Decimal)) and value % 1 == 0:
        return str(int(value))
    return str(value)


# Formats --------------------------------------------------------------------------------------------------------------


class _Raw(NamedTuple):
    """Features as they stand in a file."""

    shapes: Shapes
    values: list[Any] | None
    crs: Any
    remarks: Sequence[str] = ()


def _read(data: bytes, name: str, field: str | None, beside: Mapping[str, bytes]) -> _Raw:
    if data.startswith(b"SQLite format 3\0") and data[68:70] == b"GP":
        return _by_gdal(data, name, field, driver="GPKG", called="a GeoPackage")
    if data[:4] == b"PAR1":
        return _geoparquet(data, name, field)
    if data[:4] in shapefile.ZIP_MAGICS:
        shp, members = shapefile.unpack(data, name)
        return _shapefile(shp, members, name, field)
    if data[:4] == shapefile.MAGIC:
        return _shapefile(data, beside, name, field)
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return _geojson(data, name, field)
    raise ConfigError(
        f"{name} is no file of polygons: it begins with {data[:16]!r}",
        hint="convert it with `ogr2ogr OUT.gpkg IN`; GeoPackage, GeoJSON, GeoParquet and shapefiles are read",
    )


def _shapefile(shp: bytes, beside: Mapping[str, bytes], name: str, field: str | None) -> _Raw:
    data = shapefile.bundle(shp, beside, name)
    return _by_gdal(data, name, field, driver="ESRI Shapefile", called="a shapefile")


def _by_gdal(data: bytes, name: str, field: str | None, *, driver: str, called: str) -> _Raw:
    with optional.package("pyogrio", extra="geo", needed_by=f"{called} of polygons"):
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
            facts = pyogrio.read_info(data, layer=layers[0], force_feature_count=True)
            if facts["driver"] != driver:
                raise ConfigError(f"{name} is not {called}: GDAL reads it as {facts['driver']}")
            _check_field(field, facts["fields"].tolist(), name)
            meta, _, wkb, values = raw.read(data, layer=layers[0], columns=[] if field is None else [field])
        except (RuntimeError, UnicodeError) as error:  # pyogrio's errors are RuntimeErrors
            raise ConfigError(f"{name} cannot be read as {called}: {error}") from error
    if len(wkb) != facts["features"]:
        raise ConfigError(f"{name} is damaged: {len(wkb)} of {facts['features']} features can be read")
    plain = None if field is None else values[0].tolist()
    remarks = []
    if meta["encoding"] != "UTF-8" and any(isinstance(value, str) and not value.isascii() for value in plain or ()):
        encoding = meta["encoding"]  # GDAL's own, and it turns all that it knows into UTF-8
        remarks = [f"its .cpg is missing or names no known encoding, so its text is read as {encoding}"]
    return _Raw(_from_wkb(wkb, name), plain, _crs(meta["crs"], name), remarks)


def _geojson(data: bytes, name: str, field: str | None) -> _Raw:
    shapely = load_shapely()
    try:
        plain = json.loads(data.decode("utf-8-sig"))
        features = plain["features"] if plain.get("type") == "FeatureCollection" else None
        if features is None:
            raise ConfigError(f"{name} is no GeoJSON of features: its type is {plain.get('type')!r}")
        rows = [(feature.get("geometry"), dict(feature.get("properties") or {})) for feature in features]
        named = plain.get("crs", {"properties": {"name": LONGITUDE_LATITUDE}})  # RFC 7946, sec. 4; once another one
        crs = named and named["properties"]["name"]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{name} is damaged JSON: {error!r}") from error
    _check_field(field, list(dict.fromkeys(key for _, properties in rows for key in properties)), name)
    texts = [None if geometry is None else json.dumps(geometry) for geometry, _ in rows]
    try:
        shapes = shapely.from_geojson(np.array(texts, object))
    except shapely.errors.GEOSException as error:
        raise ConfigError(f"{name} has a damaged geometry: {error}") from error
    values = None if field is None else [properties.get(field) for _, properties in rows]
    return _Raw(shapes, values, _crs(crs, name))


def _geoparquet(data: bytes, name: str, field: str | None) -> _Raw:
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        geo = json.loads((file.schema_arrow.metadata or {})[b"geo"])
        column = geo["primary_column"]
        facts = dict(geo["columns"][column])
    except (OSError, KeyError, TypeError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise ConfigError(f"{name} is no GeoParquet: {error!r}") from error
    if facts.get("encoding") != "WKB":
        raise ConfigError(
            f"{name} has geometries encoded as {facts.get('encoding')!r}; WKB is read",
            hint="write it with `ogr2ogr -lco GEOMETRY_ENCODING=WKB OUT.parquet IN`",
        )
    _check_field(field, [key for key in file.schema_arrow.names if key != column], name)
    try:
        table = file.read(columns=[column] if field is None else [column, field])
        values = None if field is None else table[field].to_pylist()
        shapes = _from_wkb(np.array(table[column].to_pylist(), object), name)
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read as GeoParquet: {error}") from error
    spherical = facts.get("edges") == "spherical"
    remarks = ["its edges are great circles, but are laid as straight lines in its coordinates"] if spherical else []
    return _Raw(shapes, values, _crs(facts.get("crs", LONGITUDE_LATITUDE), name), remarks)


def _from_wkb(wkb: npt.NDArray[Any], name: str) -> Shapes:
    shapely = load_shapely()
    try:
        shapes: Shapes = shapely.from_wkb(wkb)
    except (shapely.errors.GEOSException, TypeError) as error:
        raise ConfigError(f"{name} has a damaged geometry: {error}") from error
    return shapes


def _check_field(field: str | None, fields: list[str], name: str) -> None:
    if field is not None and field not in fields:
        raise ConfigError(
            f"{name} has no attribute {field!r}", hint=f"its attributes are {', '.join(fields) or 'none'}"
        )


def _check_finite(shapes: Shapes, name: str) -> None:
    shapely = load_shapely()
    points, owner = shapely.get_coordinates(shapes, return_index=True)
    if count := len(np.unique(owner[~np.isfinite(points).all(axis=1)])):
        raise ConfigError(f"{count} polygon(s) of {name} have coordinates that are not finite")


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
    except (rasterio.errors.CRSError, KeyError, ValueError) as error:
        raise ConfigError(f"{name} has a coordinate system that GDAL does not know: {given!r}") from error
