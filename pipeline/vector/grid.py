"""Grid: polygons laid on the pixels of a raster.

In: features in any coordinate system, and a raster. Out: shapes in pixels: x to the right, y down, from the corner of
the raster's first pixel. Long edges are cut before they are projected: straight lines of one system are curves in
another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.raster import Raster
from pipeline.records import Bool, Int64
from pipeline.vector.features import Features
from pipeline.vector.geoparquet import load_shapely

EDGE_PX = 16
"""Longest edge before reprojection, in pixels of the raster: a chord of this length leaves the curve by less than 0.01
pixel for pixels of up to 1 km and latitudes of up to 60 degrees."""
_SNAP = 2**16
"""Vertices are rounded to this part of a pixel, so that a window is burned as the whole raster is."""
_TURN, _HALF_TURN = 360.0, 180.000001


@dataclass(frozen=True, slots=True)
class GridShapes:
    """Features on the grid of a raster."""

    numbers: Int64
    """(N,) number of each among all features, ascending."""
    shapes: npt.NDArray[Any]
    """(N,) polygons and multipolygons, in pixels."""
    cut: Bool
    """(N,) True for those of which a part far outside the raster is cut off."""


def to_grid(features: Features, raster: Raster, *, clip: bool = True) -> GridShapes:
    """Features that touch a raster, in its pixels.

    Args:
        features: the polygons.
        raster: the raster.
        clip: cut the shapes off a little outside the raster; False keeps them whole.

    Raises:
        ConfigError: the raster has no coordinate system.
    """
    shapely = load_shapely()
    (west, south, east, north), edge = _extent(raster, features.crs)
    convert = _to_pixels(raster, features.crs)
    numbers, shapes, cut = [], [], []
    # Longitudes of the file may be those of the raster plus or minus a turn.
    for turn in (-_TURN, 0.0, _TURN) if features.crs.is_geographic else (0.0,):
        box = west + turn, south, east + turn, north
        near = np.sort(features.tree.query(shapely.box(*box), predicate="intersects"))
        here = features.shapes[near]
        bounds = shapely.bounds(here)
        cut.append(((bounds[:, :2] < box[:2]) | (bounds[:, 2:] > box[2:])).any(axis=1))
        here = shapely.clip_by_rect(here, *box) if clip else here
        here = shapely.transform(here, lambda xy, turn=turn: xy - np.array([turn, 0.0]))
        numbers.append(near)
        shapes.append(shapely.transform(shapely.segmentize(here, edge), convert))
    return _each_once(np.concatenate(numbers), np.concatenate(shapes), np.concatenate(cut))


def _each_once(numbers: Int64, shapes: npt.NDArray[Any], cut: Bool) -> GridShapes:
    """Features with an area, in their order; those found at two turns of longitude in one."""
    shapely = load_shapely()
    solid = np.isin(shapely.get_type_id(shapes), [3, 6]) & ~shapely.is_empty(shapes)
    order = np.flatnonzero(solid)[np.argsort(numbers[solid], kind="stable")]
    numbers, shapes, cut = numbers[order], shapes[order], cut[order]
    each, first, counts = np.unique(numbers, return_index=True, return_counts=True)
    once = shapes[first]
    for index in np.flatnonzero(counts > 1):
        once[index] = shapely.union_all(shapes[first[index] : first[index] + counts[index]])
    return GridShapes(each, once, np.logical_or.reduceat(cut, first) if len(first) else cut)


def _extent(raster: Raster, crs: Any) -> tuple[tuple[float, float, float, float], float]:
    """Bounds of a raster in the coordinate system of the polygons, with a margin; and the longest edge there.

    Across the antimeridian, the eastern bound is beyond 180 degrees.
    """
    rasterio = load_rasterio()
    from rasterio import warp  # noqa: PLC0415

    if raster.transform is None or raster.crs_wkt is None:
        hint = "give --raster.crs, or label rasters on the same grid"
        raise ConfigError(f"{raster.path} has no coordinate system, so polygons cannot be laid on it", hint=hint)
    affine, own = rasterio.Affine(*raster.transform), rasterio.crs.CRS.from_wkt(raster.crs_wkt)
    corners = [affine @ (x, y) for x in (0, raster.width) for y in (0, raster.height)]
    xs, ys = zip(*corners, strict=True)
    if own.is_geographic and crs.is_geographic:  # GDAL takes longitudes beyond 180 for a whole turn
        left, bottom, right, top = min(xs), min(ys), max(xs), max(ys)
    else:
        left, bottom, right, top = warp.transform_bounds(own, crs, min(xs), min(ys), max(xs), max(ys), densify_pts=21)
    if left > right:
        right += _TURN
    dx, dy = (right - left) / 50, (top - bottom) / 50
    if crs.is_geographic:
        dx = min(dx, max(0.0, (_TURN - (right - left)) / 2))
    edge = EDGE_PX * min((right - left) / raster.width, (top - bottom) / raster.height)
    return (left - dx, bottom - dy, right + dx, top + dy), edge


def _to_pixels(raster: Raster, crs: Any) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """Function from coordinates (N, 2) of the polygons to pixels of the raster."""
    rasterio = load_rasterio()
    from rasterio import warp  # noqa: PLC0415

    affine = rasterio.Affine(*(raster.transform or ()))
    own, inverse = rasterio.crs.CRS.from_wkt(raster.crs_wkt), ~affine
    middle = (affine @ (raster.width / 2, raster.height / 2))[0]

    def convert(points: npt.NDArray[Any]) -> npt.NDArray[Any]:
        xs, ys = points[:, 0], points[:, 1]
        if own != crs:
            xs, ys = (np.asarray(values) for values in warp.transform(crs, own, xs, ys))
            if own.is_geographic:  # projecting gives longitudes of -180 to 180
                away = xs - middle
                xs = xs - _TURN * ((away > _HALF_TURN).astype(int) - (away < -_HALF_TURN))
        columns, rows = inverse.a * xs + inverse.b * ys + inverse.c, inverse.d * xs + inverse.e * ys + inverse.f
        return np.asarray(np.round(np.stack([columns, rows], axis=1) * _SNAP) / _SNAP)

    return convert
