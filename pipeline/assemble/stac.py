"""STAC item of a mask: what it is, where it lies on the Earth, its classes and how many pixels each has.

In: the assembly, the joined mask and facts of the run. Out: plain data of the item, valid against STAC 1.1.0 and the
extensions projection 2.0.0, classification 2.0.0 and raster 2.0.0 (https://github.com/stac-extensions). A raster
without georeferencing has an item without a geometry, which says why.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from math import copysign, isfinite
from typing import Any

import numpy as np

from pipeline.assemble.join import JoinedMask
from pipeline.assemble.plan import Assembly
from pipeline.classes import ClassMap
from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.pyramid import NODATA
from pipeline.geotiff.raster import Raster, pixel_edge
from pipeline.redact import redact
from pipeline.store.url import Url

PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
CLASSIFICATION = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"
EXTENSIONS = [PROJECTION, CLASSIFICATION, "https://stac-extensions.github.io/raster/v2.0.0/schema.json"]
EARLIEST, LATEST = "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"
"""Interval of a picture whose file has no time: STAC demands one, and any narrower would be made up."""
COLLECTION = "collection.json"
"""STAC collection of a run, in its folder."""
RUN_KEY = "atrous:run"
"""Property of an item: fingerprint of the run, 12 hex digits."""
EDGE_POINTS = 21
"""Points of an edge of the footprint: straight edges of a projection are curves in degrees."""
_POLE = 90.0
_NO_NAME = re.compile("[^0-9A-Za-z_-]+")
"""What the names of the classification extension must not contain."""
COG = "image/tiff; application=geotiff; profile=cloud-optimized"


def make_item(
    assembly: Assembly, joined: JoinedMask, classes: ClassMap, *, run_url: Url, facts: dict[str, str]
) -> dict[str, Any]:
    """The item of one mask.

    Args:
        assembly: raster and name.
        joined: counts of pixels.
        classes: class map of the run.
        run_url: URL of the run, for links.
        facts: further properties by name: fingerprints and versions.
    """
    raster = assembly.raster
    geometry, bbox = footprint(raster)
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": EXTENSIONS,
        "id": assembly.name,
        "geometry": geometry,
        "properties": _properties(assembly, joined, classes, facts),
        "links": _links(assembly.name, facts),
        "assets": {
            "mask": _mask_asset(assembly, classes, run_url),
            "style": {
                "href": f"{_up(assembly.name)}masks/{assembly.name}.qml",
                "type": "application/xml",
                "roles": ["metadata", "style"],
                "title": "Style for QGIS",
            },
            "source": {
                "href": redact((Url(assembly.root) / raster.path).place),
                "type": "image/tiff; application=geotiff",
                "roles": ["source"],
                "atrous:etag": raster.etag,
            },
        },
    }
    if geometry is not None:
        item["bbox"] = bbox
    else:
        item["properties"]["description"] = _why_nowhere(raster)
    if RUN_KEY in facts:
        item["collection"] = collection_id(facts)
    return item


def collection_id(facts: dict[str, str]) -> str:
    """Id of the collection of a run: of its fingerprint, so that a run that was moved keeps it."""
    return f"run-{facts[RUN_KEY]}"


def is_current(item: dict[str, Any], raster: Raster) -> bool:
    """True for an item that has the date of its raster and names its collection, as items of older versions do not."""
    stated = {name: item["properties"].get(name) for name in ("datetime", "start_datetime", "end_datetime")}
    return "collection" in item and {name: time for name, time in stated.items() if time} == {
        name: time for name, time in times(raster).items() if time
    }


def counted(item: dict[str, Any], classes: ClassMap) -> JoinedMask:
    """What an item says of its mask; the size of the file is unknown, 0."""
    properties = item["properties"]
    pixels = np.zeros(256, np.int64)
    pixels[: len(classes)] = [properties["atrous:class_pixels"].get(name, 0) for name in classes.names]
    pixels[NODATA] = properties.get("atrous:nodata_pixels", 0)
    return JoinedMask(pixels, properties.get("atrous:hole_pixels", 0), size=0)


def times(raster: Raster) -> dict[str, str | None]:
    """Properties of an item that say when its picture was taken."""
    if raster.datetime is None:
        return {"datetime": None, "start_datetime": EARLIEST, "end_datetime": LATEST}
    if raster.end_datetime is None:
        return {"datetime": raster.datetime}
    return {"datetime": raster.datetime, "start_datetime": raster.datetime, "end_datetime": raster.end_datetime}


def _up(name: str) -> str:
    """Way from the item of a raster to the folder of its run."""
    return "../" * (name.count("/") + 1)


def _links(name: str, facts: dict[str, str]) -> list[dict[str, str]]:
    """Links to the collection of the run, which STAC demands of an item that names one."""
    if RUN_KEY not in facts:
        return []
    relations = ("root", "parent", "collection")
    href = f"{_up(name)}{COLLECTION}"
    return [{"rel": relation, "href": href, "type": "application/json"} for relation in relations]


def _why_nowhere(raster: Raster) -> str:
    """Reason for an item without a geometry."""
    if raster.transform is None:
        return "No geometry: the raster has no affine transform."
    if raster.crs_wkt is None:
        return "No geometry: the raster names no coordinate system."
    return "No geometry: its coordinates cannot be converted to longitude and latitude."


def _properties(assembly: Assembly, joined: JoinedMask, classes: ClassMap, facts: dict[str, str]) -> dict[str, Any]:
    raster, pixels = assembly.raster, joined.class_pixels
    properties: dict[str, Any] = {
        **times(raster),
        "proj:shape": [raster.height, raster.width],
        "atrous:class_pixels": {name: int(pixels[index]) for index, name in enumerate(classes.names)},
        "atrous:nodata_pixels": int(pixels[NODATA]),
        "atrous:failed_windows": assembly.holes,
        "atrous:hole_pixels": joined.holes,
        **facts,
    }
    if raster.transform is not None:
        properties["proj:transform"] = list(raster.transform)
    if raster.crs_wkt is None:
        properties["proj:code"] = None
    elif raster.epsg is not None:
        properties["proj:code"] = f"EPSG:{raster.epsg}"
    else:
        properties |= {"proj:code": None, "proj:wkt2": raster.crs_wkt}
    return properties


def class_band(classes: ClassMap) -> dict[str, Any]:
    """Band of a mask: its type, and the value, name and colour of each class."""
    return {
        "name": "class",
        "data_type": "uint8",
        "nodata": NODATA,
        "classification:classes": [
            {
                "value": index,
                "name": _NO_NAME.sub("_", one.name),
                "title": one.name,
                "color_hint": "".join(f"{part:02X}" for part in one.colour),
            }
            for index, one in enumerate(classes.classes)
        ],
    }


def _mask_asset(assembly: Assembly, classes: ClassMap, run_url: Url) -> dict[str, Any]:
    band = class_band(classes)
    if assembly.raster.transform is not None:
        band["raster:spatial_resolution"] = pixel_edge(assembly.raster.transform)
    return {
        "href": f"{_up(assembly.name)}masks/{assembly.name}.tif",
        "type": COG,
        "roles": ["data"],
        "title": f"Classes of {run_url.name}",
        "bands": [band],
    }


Point = tuple[float, float]
"""Longitude and latitude, degrees."""


def footprint(raster: Raster) -> tuple[dict[str, Any] | None, list[float]]:
    """Outline as GeoJSON in degrees of longitude and latitude, and its bounding box west, south, east, north.

    None without a coordinate system, or with one that has no longitudes. A raster across the 180th meridian has two
    polygons, and a bounding box whose west is larger than its east (RFC 7946, sec. 5.2).
    """
    points = _outline(raster)
    if points is None:
        return None, []
    ring = _unrolled(points)
    pieces = [_between(ring, -180.0, 180.0), [(x - 360.0, y) for x, y in _between(ring, 180.0, 540.0)]]
    pieces = [piece for piece in pieces if abs(_area(piece)) > 0]
    if not pieces:
        return None, []
    longitudes = [[x for x, _ in piece] for piece in pieces]
    latitudes = [y for piece in pieces for _, y in piece]
    bbox = [min(longitudes[0]), min(latitudes), max(longitudes[-1]), max(latitudes)]
    if max(abs(latitude) for latitude in latitudes) >= _POLE:
        bbox = [-180.0, bbox[1], 180.0, bbox[3]]
    rings = [[_closed(piece)] for piece in pieces]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}, _rounded(bbox)
    return {"type": "MultiPolygon", "coordinates": rings}, _rounded(bbox)


def _outline(raster: Raster) -> list[Point] | None:
    """Points along the edges of a raster; None where they have no longitude and latitude."""
    if raster.transform is None or raster.crs_wkt is None:
        return None
    rasterio = load_rasterio()
    from rasterio._err import CPLE_BaseError  # noqa: PLC0415  # what GDAL says; rasterio exports no name for it
    from rasterio.warp import transform as to_degrees  # noqa: PLC0415

    a, b, c, d, e, f = raster.transform
    corners = [(0, 0), (0, raster.height), (raster.width, raster.height), (raster.width, 0), (0, 0)]
    steps = [index / (EDGE_POINTS - 1) for index in range(EDGE_POINTS - 1)]
    places = [(x0 + (x1 - x0) * at, y0 + (y1 - y0) * at) for (x0, y0), (x1, y1) in pairwise(corners) for at in steps]
    xs, ys = [a * x + b * y + c for x, y in places], [d * x + e * y + f for x, y in places]
    try:
        with rasterio.Env():
            longitudes, latitudes = to_degrees(raster.crs_wkt, "EPSG:4326", xs, ys)
    except (rasterio.errors.RasterioError, CPLE_BaseError):
        return None
    if not all(map(isfinite, [*longitudes, *latitudes])):
        return None
    return list(zip(longitudes, latitudes, strict=True))


def _unrolled(points: Sequence[Point]) -> list[Point]:
    """Ring without jumps at the 180th meridian: from a west in [-180, 180) it may reach beyond 180 degrees.

    A ring round a pole does not close: it goes on along the pole.
    """
    ring = [points[0]]
    for x, y in [*points[1:], points[0]]:
        ring.append((ring[-1][0] + (x - ring[-1][0] + 180) % 360 - 180, y))  # the shorter way: edges are short
    last = ring.pop()
    if abs(last[0] - ring[0][0]) > 180:
        pole = copysign(_POLE, sum(y for _, y in points))
        ring += [last, (last[0], pole), (ring[0][0], pole)]
    turns = 360 * ((min(x for x, _ in ring) + 180) // 360)
    return [(x - turns, y) for x, y in ring]


def _between(ring: Sequence[Point], west: float, east: float) -> list[Point]:
    """Part of a ring between two meridians (Sutherland and Hodgman, 1974)."""
    for limit, side in ((west, 1), (east, -1)):
        kept: list[Point] = []
        for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], *ring[:1]], strict=True):
            if here := side * (x0 - limit) >= 0:
                kept.append((x0, y0))
            if here != (side * (x1 - limit) >= 0):
                kept.append((limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)))
        ring = kept
    return list(ring)


def _area(ring: Sequence[Point]) -> float:
    """Twice the signed area; positive counterclockwise."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], *ring[:1]], strict=True))


def _closed(ring: Sequence[Point]) -> list[list[float]]:
    """Ring of GeoJSON: counterclockwise, the first point again at the end."""
    ordered = list(ring) if _area(ring) > 0 else list(ring)[::-1]
    return [_rounded(point) for point in [*ordered, ordered[0]]]


def _rounded(values: Sequence[float]) -> list[float]:
    """Degrees to 0.1 mm."""
    return [round(value, 9) for value in values]
