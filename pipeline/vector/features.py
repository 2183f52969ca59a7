"""Features of a vector file: polygons with one attribute, from GeoParquet, GeoPackage, GeoJSON or a Shapefile.

In: the bytes of a file, or its URL. Out: `Features`. No file leads to another one: GDAL opens GeoPackages and
Shapefiles alone, in memory and by their signature; GeoJSON and GeoParquet are read without it, since GDAL chooses its
driver by the content and would follow a virtual data set (VRT) under any name.
"""

import io
import json
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline import optional
from pipeline.errors import ConfigError
from pipeline.geotiff.decode import load_rasterio
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector.geoparquet import load_shapely

SUFFIXES = (".gpkg", ".geojson", ".json", ".parquet", ".geoparquet", ".shp", ".zip")
"""Suffixes of files of polygons; a .zip holds one Shapefile."""
_SIDE_FILES = (".dbf", ".shx", ".prj", ".cpg")
"""Files of a Shapefile beside the .shp: attributes, index, coordinate system, text encoding."""
_MOST_ZIPPED = 2**31
"""Most bytes of a Shapefile in a .zip."""
_SHAPEFILE = b"\x00\x00\x27\x0a"
_HALF_TURN = 180
"""Longest edge of a polygon in degrees of longitude: a longer one crosses the antimeridian."""
_CRS84 = "OGC:CRS84"


@dataclass(frozen=True)
class Features:
    """Polygons of one file, in its order."""

    name: str
    """Name of the file, for messages."""
    shapes: npt.NDArray[Any]
    """(N,) valid polygons and multipolygons of shapely."""
    values: tuple[Any, ...]
    """(N,) attribute of each; their numbers in the file, from 1, where none was asked for."""
    crs: Any
    """Coordinate system of the file, of rasterio."""
    repaired: int = 0
    """Polygons that were invalid, such as those that cross themselves, and were made valid."""
    left_out: int = 0
    """Features without an area: empty ones, points, lines."""
    unrolled: int = 0
    """Polygons across the 180th meridian, whose western longitudes are now beyond 180."""

    @property
    def notes(self) -> list[str]:
        """What people should know of the file, one line each."""
        notes = []
        if self.repaired:
            notes.append(f"{self.name}: {self.repaired} of {len(self.shapes)} polygons were invalid and are repaired")
        if self.left_out:
            notes.append(f"{self.name}: {self.left_out} feature(s) without an area are left out")
        if self.unrolled:
            notes.append(f"{self.name}: {self.unrolled} polygon(s) are taken to cross the 180th meridian")
        return notes

    @cached_property
    def tree(self) -> Any:
        """Spatial index of the shapes."""
        return load_shapely().STRtree(self.shapes)

    def take(self, numbers: npt.NDArray[Any]) -> "Features":
        """Some of the features."""
        values = tuple(self.values[number] for number in numbers.tolist())
        return replace(self, shapes=self.shapes[numbers], values=values)


def load_features(url: Url, *, field: str | None) -> Features:
    """Read a file of polygons, with the files beside it where it is a .shp.

    Raises:
        ConfigError: there is no such file, or as `read_features`.
    """
    try:
        data = objects.read_bytes(url)
        if data[:4] == _SHAPEFILE:
            data = _zipped({".shp": data} | _side_files(url))
    except FileNotFoundError as error:
        raise ConfigError(f"{url.located} does not exist", hint="check the place of the polygons") from error
    return read_features(data, name=str(url), field=field)


def _side_files(url: Url) -> dict[str, bytes]:
    """Files beside a .shp, by suffix, whatever the case of their names."""
    stem = url.name[: -len(".shp")]
    folder = Url(url.raw.removesuffix(url.name))
    found = {}
    for name in {stem + suffix for suffix in _SIDE_FILES} | {stem + suffix.upper() for suffix in _SIDE_FILES}:
        if objects.exists(folder / name):
            found[name[len(stem) :].lower()] = objects.read_bytes(folder / name)
    return found


def read_features(data: bytes, *, name: str, field: str | None) -> Features:
    """Read a file of polygons.

    Args:
        data: the file.
        name: its name, for messages.
        field: attribute to read; None gives each feature its number.

    Raises:
        ConfigError: the file is of another format, has no coordinate system, no polygon or no such attribute.
    """
    shapely = load_shapely()
    shapes, values, crs = _reader(data, name)(data, name, field)
    if field is None:
        values = list(range(1, len(shapes) + 1))
    solid = _areas(shapes)
    if not solid.any():
        raise ConfigError(f"{name} has no polygon: {len(shapes)} feature(s) are points, lines or empty")
    shapes, unrolled = _unrolled(shapes[solid]) if crs.is_geographic else (shapes[solid], 0)
    valid = shapely.is_valid(shapes)
    shapes[~valid] = [_areas_of(shape) for shape in shapely.make_valid(shapes[~valid])]
    kept = tuple(np.asarray(values, object)[solid].tolist())
    return Features(name, shapes, kept, crs, int((~valid).sum()), int((~solid).sum()), unrolled)


def _unrolled(shapes: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
    """Polygons without edges of more than half a turn, longitudes below 0 beyond 180; and how many were changed."""
    shapely = load_shapely()
    rings = shapely.get_rings(parts := shapely.get_parts(shapes))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    far = (np.abs(np.diff(points[:, 0])) > _HALF_TURN) & (np.diff(ring) == 0)
    if not far.any():
        return shapes, 0
    shape_of_part = shapely.get_parts(shapes, return_index=True)[1]
    part_of_ring = shapely.get_rings(parts, return_index=True)[1]
    across = np.unique(shape_of_part[part_of_ring[ring[:-1][far]]])
    shapes = shapes.copy()
    shapes[across] = shapely.transform(shapes[across], lambda xy: xy + np.where(xy < [0, -np.inf], 360, 0))
    return shapes, len(across)


def zone_ids(features: Features, field: str | None) -> list[str]:
    """Names of zones: the attribute as text, each once.

    Raises:
        ConfigError: a zone has none, or two have the same.
    """
    names = [
        str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in features.values
    ]
    missing = sum(1 for value in features.values if value is None or (isinstance(value, float) and np.isnan(value)))
    if missing:
        raise ConfigError(
            f"{missing} zone(s) of {features.name} have no {field}", hint="give --zones.id another attribute"
        )
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        hint = "give --zones.id an attribute that names each once, or none for their numbers"
        raise ConfigError(f"{count} zones of {features.name} have {field} = {name!r}", hint=hint)
    return names


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


def _reader(data: bytes, name: str) -> Callable[[bytes, str, str | None], _Read]:
    if data.startswith(b"SQLite format 3\0") and data[68:70] == b"GP":
        return _geopackage
    if data[:4] == b"PK\x03\x04":
        return _shapefile
    if data[:4] == b"PAR1":
        return _geoparquet
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return _geojson
    raise ConfigError(
        f"{name} is no file of polygons: it begins with {data[:16]!r}",
        hint="convert it with `ogr2ogr OUT.gpkg IN`; GeoParquet, GeoPackage, GeoJSON and Shapefiles are read",
    )


def _geopackage(data: bytes, name: str, field: str | None) -> _Read:
    return _by_gdal(data, name, field, "GPKG", "GeoPackage")


def _shapefile(data: bytes, name: str, field: str | None) -> _Read:
    """Shapefile in a .zip: its files alone are taken, under names of our own, so that GDAL sees nothing else."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            layers = [info.filename for info in archive.infolist() if info.filename.lower().endswith(".shp")]
            if len(layers) != 1:
                raise ConfigError(f"{name} has {len(layers)} Shapefiles: {', '.join(layers) or 'none'}; keep one")
            stem = layers[0][: -len(".shp")]
            infos = {
                info.filename[len(stem) :].lower(): info
                for info in archive.infolist()
                if info.filename.startswith(stem) and info.filename[len(stem) :].lower() in (".shp", *_SIDE_FILES)
            }
            if (size := sum(info.file_size for info in infos.values())) > _MOST_ZIPPED:
                raise ConfigError(f"{name} holds a Shapefile of {size} bytes, limit {_MOST_ZIPPED}")
            files = {suffix: archive.read(info) for suffix, info in infos.items()}
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{name} cannot be read as a .zip of a Shapefile: {error}") from error
    if files[".shp"][:4] != _SHAPEFILE:
        raise ConfigError(f"{name} holds no Shapefile: its .shp begins with {files['.shp'][:4]!r}")
    return _by_gdal(_zipped(files), name, field, "ESRI Shapefile", "Shapefile")


def _zipped(files: dict[str, bytes]) -> bytes:
    """Archive of the files of a Shapefile, by suffix, as GDAL reads it from memory."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for suffix, data in files.items():
            archive.writestr(f"zones{suffix}", data)
    return out.getvalue()


def _by_gdal(data: bytes, name: str, field: str | None, driver: str, title: str) -> _Read:
    with optional.package("pyogrio", extra="geo", needed_by=f"a {title} of polygons"):
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
            columns = [] if field is None else [field]
            meta, _, wkb, values = raw.read(data, layer=layers[0], columns=columns)
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
            raise ConfigError(f"{name} cannot be read as a {title}: {error}") from error
    if facts["driver"] != driver:
        raise ConfigError(f"{name} is no {title}: GDAL reads it as {facts['driver']}")
    return load_shapely().from_wkb(wkb), values[0].tolist() if values else (), _crs(meta["crs"], name)


def _geojson(data: bytes, name: str, field: str | None) -> _Read:
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
    values = [] if field is None else [(feature.get("properties") or {}).get(field) for feature in features]
    return shapes, values, _crs(named and named["properties"]["name"], name)


def _geoparquet(data: bytes, name: str, field: str | None) -> _Read:
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
    table = file.read(columns=[column] if field is None else [column, field])
    shapes = load_shapely().from_wkb(np.array(table[column].to_pylist(), object))
    return shapes, () if field is None else table[field].to_pylist(), _crs(facts.get("crs", _CRS84), name)


def _check_field(field: str | None, fields: list[str], name: str) -> None:
    if field is not None and field not in fields:
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
