"""STAC item of a mask: what it is, where it lies on the Earth, its classes and how many pixels each has.

In: the assembly, the joined mask and facts of the run. Out: plain data of the item, valid against STAC 1.1.0 and the
extensions projection 2.0.0, classification 2.0.0 and raster 2.0.0 (https://github.com/stac-extensions). A raster
without georeferencing has an item without a geometry.
"""

from itertools import pairwise
from math import sqrt
from typing import Any

from pipeline.assemble.join import JoinedMask
from pipeline.assemble.plan import Assembly
from pipeline.classes import ClassMap
from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.pyramid import NODATA
from pipeline.geotiff.raster import Raster, Transform
from pipeline.store.url import Url

EXTENSIONS = [
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
]
EARLIEST, LATEST = "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"
"""Interval of a picture whose file has no time: STAC demands one, and any narrower would be made up."""
EDGE_POINTS = 21
"""Points of an edge of the footprint: straight edges of a projection are curves in degrees."""
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"


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
    ring = footprint(raster)
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": EXTENSIONS,
        "id": assembly.name,
        "geometry": None if ring is None else {"type": "Polygon", "coordinates": [ring]},
        "properties": _properties(raster, joined, classes, facts),
        "links": [],
        "assets": {
            "mask": _mask_asset(assembly, joined, classes, run_url),
            "source": {
                "href": (Url(assembly.root) / raster.path).located,
                "type": "image/tiff; application=geotiff",
                "roles": ["source"],
                "atrous:etag": raster.etag,
            },
        },
    }
    if ring is not None:
        xs, ys = zip(*ring, strict=True)
        item["bbox"] = [min(xs), min(ys), max(xs), max(ys)]
    return item


def _properties(raster: Raster, joined: JoinedMask, classes: ClassMap, facts: dict[str, str]) -> dict[str, Any]:
    pixels = joined.class_pixels
    properties: dict[str, Any] = {
        "datetime": raster.datetime,
        "proj:shape": [raster.height, raster.width],
        "atrous:class_pixels": {name: int(pixels[index]) for index, name in enumerate(classes.names)},
        "atrous:nodata_pixels": int(pixels[NODATA]),
        "atrous:hole_pixels": joined.holes,
        **facts,
    }
    if raster.datetime is None:
        properties |= {"start_datetime": EARLIEST, "end_datetime": LATEST}
    if raster.transform is not None:
        properties["proj:transform"] = list(raster.transform)
    if raster.crs_wkt is None:
        properties["proj:code"] = None
        properties["description"] = "No geometry: the raster names no coordinate system, or has no transform."
    elif raster.epsg is not None:
        properties["proj:code"] = f"EPSG:{raster.epsg}"
    else:
        properties |= {"proj:code": None, "proj:wkt2": raster.crs_wkt}
    return properties


def _mask_asset(assembly: Assembly, joined: JoinedMask, classes: ClassMap, run_url: Url) -> dict[str, Any]:
    depth = assembly.name.count("/") + 1
    band: dict[str, Any] = {
        "name": "class",
        "data_type": "uint8",
        "nodata": NODATA,
        "classification:classes": [
            {"value": index, "name": one.name, "color_hint": "".join(f"{part:02X}" for part in one.colour)}
            for index, one in enumerate(classes.classes)
        ],
    }
    if assembly.raster.transform is not None:
        band["raster:spatial_resolution"] = pixel_edge(assembly.raster.transform)
    return {
        "href": f"{'../' * depth}masks/{assembly.name}.tif",
        "type": _COG,
        "roles": ["data"],
        "title": f"Classes of {run_url.name}",
        "bands": [band],
    }


def pixel_edge(transform: Transform) -> float:
    """Edge of a square of a pixel's area, in units of the coordinate system: rotated pixels have no width in x."""
    a, b, _, d, e, _ = transform
    return sqrt(abs(a * e - b * d))


def footprint(raster: Raster) -> list[list[float]] | None:
    """Outline in degrees of longitude and latitude, closed, counterclockwise; None without a coordinate system."""
    if raster.transform is None or raster.crs_wkt is None:
        return None
    rasterio = load_rasterio()
    from rasterio.warp import transform as to_degrees  # noqa: PLC0415

    a, b, c, d, e, f = raster.transform
    corners = [(0, 0), (0, raster.height), (raster.width, raster.height), (raster.width, 0), (0, 0)]
    steps = [index / (EDGE_POINTS - 1) for index in range(EDGE_POINTS)]
    columns, rows = zip(
        *(
            (x0 + (x1 - x0) * step, y0 + (y1 - y0) * step)
            for (x0, y0), (x1, y1) in pairwise(corners)
            for step in steps[:-1]
        ),
        strict=True,
    )
    xs = [a * x + b * y + c for x, y in zip(columns, rows, strict=True)]
    ys = [d * x + e * y + f for x, y in zip(columns, rows, strict=True)]
    with rasterio.Env():
        degrees = to_degrees(raster.crs_wkt, "EPSG:4326", xs, ys)
    ring = [[round(x, 9), round(y, 9)] for x, y in zip(*degrees, strict=True)]
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True))
    ring = ring if area > 0 else ring[::-1]
    return [*ring, ring[0]]
