"""Grid: polygons laid on the pixels of a raster.

In: features in any coordinate system, and a raster. Out: shapes in pixels: x to the right, y down, from the corner of
the raster's first pixel. Long edges are cut before they are projected: straight lines of one system are curves in
another.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.raster import Raster
from pipeline.records import Int64
from pipeline.vector.features import Features
from pipeline.vector.geoparquet import load_shapely

EDGE_PX = 16
"""Longest edge before reprojection, in pixels of the raster: a chord of this length leaves the curve by less than 0.01
pixel for pixels of up to 1 km and latitudes of up to 60 degrees."""
_SNAP = 2**16
"""Vertices are rounded to this part of a pixel, so that a window is burned as the whole raster is."""
_TURN, _HALF_TURN = 360.0, 180.000001


def to_grid(features: Features, raster: Raster, *, clip: bool = True) -> tuple[Int64, npt.NDArray[Any]]:
    """Numbers of the features that touch a raster, ascending, and their shapes in its pixels.

    Args:
        features: the polygons.
        raster: the raster.
        clip: cut the shapes off a little outside the raster; False keeps them whole.

    Raises:
        ConfigError: the raster has no coordinate system.
    """
    shapely = load_shapely()
    bounds, edge = _extent(raster, features.crs)
    numbers, shapes = [], []
    turns = (-_TURN, 0.0, _TURN) if features.crs.is_geographic else (0.0,)
    for turn in turns:  # longitudes of the file may be those of the raster plus or minus a turn
        left, bottom, right, top = bounds[0] + turn, bounds[1], bounds[2] + turn, bounds[3]
        near = np.sort(features.tree.query(shapely.box(left, bottom, right, top), predicate="intersects"))
        here = features.shapes[near]
        here = shapely.clip_by_rect(here, left, bottom, right, top) if clip else here
        here = shapely.transform(here, lambda xy, turn=turn: xy - (turn, 0))
        numbers.append(near)
        shapes.append(shapely.transform(shapely.segmentize(here, edge), _to_pixels(raster, features.crs)))
    number, shape = np.concatenate(numbers), np.concatenate(shapes)
    kept = np.isin(shapely.get_type_id(shape), [3, 6]) & ~shapely.is_empty(shape)
    number, shape = number[kept], shape[kept]
    order = np.argsort(number, kind="stable")
    number, shape = number[order], shape[order]
    first = np.unique(number, return_index=True)[1]
    for index in np.flatnonzero(np.diff(first, append=len(number)) > 1):
        some = slice(first[index], first[index + 1] if index + 1 < len(first) else None)
        shape[first[index]] = shapely.union_all(shape[some])
    return number[first], shape[first]


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
