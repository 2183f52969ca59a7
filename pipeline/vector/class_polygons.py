"""Polygons with a class, burned into the grid of a raster.

In: `Features` whose attribute is a class. Out: `ClassPolygons`, then class ids per pixel of a raster. A pixel has the
class of the polygon that covers its centre; of several, the one that is last in the file.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.raster import Raster
from pipeline.records import UInt8, Window
from pipeline.vector.antimeridian import Shapes
from pipeline.vector.features import Features
from pipeline.vector.geoparquet import load_shapely
from pipeline.vector.grid import box_of, to_grid


@dataclass(frozen=True)
class ClassPolygons:
    """Polygons of one file with their classes."""

    features: Features
    ids: UInt8
    """(N,) class id of each."""

    def on(self, raster: Raster) -> "PixelPolygons":
        """The polygons that touch a raster, in its pixels. Raises ConfigError as `to_grid`."""
        grid = to_grid(self.features, raster)
        return PixelPolygons(grid.shapes, self.ids[grid.indices])


@dataclass(frozen=True)
class PixelPolygons:
    """Polygons in pixels of one raster: x to the right, y down, from the corner of its first pixel."""

    shapes: Shapes
    ids: UInt8

    @cached_property
    def _tree(self) -> Any:
        return load_shapely().STRtree(self.shapes)

    def burn(self, window: Window, out: UInt8) -> None:
        """Write class ids into a window of the raster, (h, w) uint8, where a polygon covers the centre of a pixel."""
        rasterio = load_rasterio()
        from rasterio import features  # noqa: PLC0415

        found = np.sort(self._tree.query(box_of(window), predicate="intersects"))
        if not len(found):
            return
        with rasterio.Env(GDAL_NUM_THREADS="1"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an identity transform
            shift = rasterio.Affine.translation(window.x, window.y)
            pairs = zip(self.shapes[found], self.ids[found].tolist(), strict=True)
            features.rasterize(pairs, out=out, transform=shift, all_touched=False)


def class_polygons(features: Features, *, field: str, classes: ClassMap) -> ClassPolygons:
    """Find the class of each polygon.

    Args:
        features: polygons with their attribute `field`.
        field: attribute with the class of each: a name of the class map, or an id.
        classes: the class map.

    Raises:
        ConfigError: a value of the attribute is no class.
    """
    return ClassPolygons(features, _class_ids(features.values, features.name, field, classes))


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
