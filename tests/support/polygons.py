"""Polygons with a class on a raster, and their GeoJSON."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import rasterio
import shapely

from pipeline.geotiff.raster import Raster


def squares(raster: Raster, count: int, seed: int = 0, classes: int = 6) -> tuple[list[Any], list[int]]:
    """Rotated squares on a raster that overlap, and a class id for each."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        centre = shapely.Point(rng.uniform(0, raster.width), rng.uniform(0, raster.height))
        square = shapely.envelope(centre.buffer(rng.uniform(8, 40)))
        turned = shapely.affinity.rotate(square, rng.uniform(0, 90))
        points = shapely.get_coordinates(turned)
        out.append(shapely.Polygon([rasterio.Affine(*raster.transform) @ tuple(point) for point in points.tolist()]))
    return out, rng.integers(0, classes, count).tolist()


def geojson(shapes: Sequence[Any], values: Sequence[Any], *, field: str = "kind", crs: str | None = None) -> bytes:
    """GeoJSON of shapes with an attribute; with `crs` in another system than degrees."""
    features = [
        {
            "type": "Feature",
            "properties": {field: value},
            "geometry": None if shape is None else shapely.geometry.mapping(shape),
        }
        for shape, value in zip(shapes, values, strict=True)
    ]
    plain: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if crs:
        plain["crs"] = {"type": "name", "properties": {"name": crs}}
    return json.dumps(plain).encode()
