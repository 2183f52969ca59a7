"""True area of pixels and polygons in hectares, in any coordinate system, degrees and web Mercator included.

In: a window of a raster, or polygons. Out: areas on the ellipsoid WGS 84. The area of a projected pixel is not that of
the ground: at 52 degrees, web Mercator makes fields 2.6 times too large. The corners of blocks of pixels are laid on
the sphere of authalic latitudes, whose areas are those of the ellipsoid (Snyder 1987, "Map projections", USGS
Professional Paper 1395, pp. 16-17; https://pubs.usgs.gov/publication/pp1395), and the area of a pixel is interpolated
between the middles of blocks. On a sphere, neither poles nor the 180th meridian are special.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.raster import Raster, pixel_edge
from pipeline.records import Float64, Int64, Window
from pipeline.vector.geoparquet import load_shapely

BLOCK_PX = 32
"""Edge of a block, pixels, where that is no longer than the next two."""
_BLOCK_M, _BLOCK_DEGREES = 25_000.0, 0.25
"""Longest edge of a block: its straight sides leave parallels by less than 1e-5 of its area."""
_SEMI_MAJOR_M, _FLATTENING = 6_378_137.0, 1 / 298.257223563
"""Ellipsoid WGS 84."""
_SQUARE_METRES = 10_000
"""Of a hectare."""
_EDGE_M, _EDGE_DEGREES = 500.0, 0.005
"""Longest edge of a polygon that is not divided: areas are then right to 3e-5."""
_POLE, _BEYOND = 90.0, 2.0
"""Latitude of a pole; degrees beyond it that count as it: the first pixels of climate grids have a pole for centre."""
_POINTS_AT_ONCE = 500_000
"""Points converted at a time: GDAL's answer is a list of Python's numbers."""


@dataclass(frozen=True, slots=True)
class PixelAreas:
    """Area of the pixels of a window."""

    lines: Float64
    """(h, n) hectares of a pixel in each row, at the middle of each of n blocks."""
    middles: Float64
    """(n,) middle of each block, pixels from the left edge of the window."""

    def of_runs(self, rows: Int64, starts: Int64, lengths: Int64) -> Float64:
        """(R,) hectares of runs of pixels of the window, each pixel taken as the one in the middle of its run."""
        if len(self.middles) == 1:
            return np.asarray(self.lines[rows, 0] * lengths)
        place = starts + lengths / 2
        before = np.clip(np.searchsorted(self.middles, place) - 1, 0, len(self.middles) - 2)
        way = (place - self.middles[before]) / (self.middles[before + 1] - self.middles[before])
        here, following = self.lines[rows, before], self.lines[rows, before + 1]
        return np.asarray((here + (following - here) * way) * lengths)


def pixel_areas(raster: Raster, window: Window) -> PixelAreas | None:
    """Areas of the pixels of a window; None where the raster has no coordinates, or none on the Earth there."""
    if raster.transform is None or raster.crs_wkt is None:
        return None
    crs = load_rasterio().crs.CRS.from_wkt(raster.crs_wkt)
    longest = (_BLOCK_DEGREES if crs.is_geographic else _BLOCK_M) / pixel_edge(raster.transform)
    block_px = max(1, min(BLOCK_PX, int(longest)))
    rows = _corners(window.y, window.y + window.height, raster.height, block_px)
    columns = _corners(window.x, window.x + window.width, raster.width, block_px)
    a, b, c, d, e, f = raster.transform
    x, y = np.meshgrid(columns, rows)
    points = np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1).reshape(-1, 2)
    degrees = to_degrees(points, crs)
    if degrees is None:
        return None
    pixels = np.diff(rows)[:, None] * np.diff(columns)[None]
    corners = _authalic(*degrees.T).reshape(3, *x.shape)
    hectares = _block_areas(corners) / pixels / _SQUARE_METRES
    places = window.y + 0.5 + np.arange(window.height)
    return PixelAreas(_interpolated(hectares, _middles(rows), places), _middles(columns) - window.x)


def _middles(corners: Float64) -> Float64:
    return (corners[1:] + corners[:-1]) / 2


def _interpolated(values: Float64, middles: Float64, places: npt.NDArray[np.floating[Any]]) -> Float64:
    """Values at places along the first axis, from those at the middles: linear, also beyond the last of them."""
    if len(middles) == 1:
        return np.repeat(values, len(places), axis=0)
    before = np.clip(np.searchsorted(middles, places) - 1, 0, len(middles) - 2)
    way = ((places - middles[before]) / (middles[before + 1] - middles[before]))[:, None]
    return np.asarray(values[before] * (1 - way) + values[before + 1] * way)


def _corners(start: int, end: int, size: int, block_px: int) -> Float64:
    """Corners of blocks that cover [start, end), on a grid from the first pixel of the raster, and one block around."""
    first, last = start // block_px - 1, -(-end // block_px) + 1
    return np.unique(np.clip(np.arange(first, last + 1) * block_px, 0, size)).astype(np.float64)


def _authalic(longitudes: Float64, latitudes: Float64) -> Float64:
    """(3, ...) metres from the centre of the sphere of the ellipsoid's area; Snyder 1987, equations 3-11 to 3-13."""
    e2 = _FLATTENING * (2 - _FLATTENING)
    e = np.sqrt(e2)

    def q(sine: Float64 | float) -> Float64:
        return np.asarray((1 - e2) * (sine / (1 - e2 * sine**2) + np.arctanh(e * sine) / e))

    sine = q(np.sin(np.radians(latitudes))) / q(1.0)
    cosine, turn = np.sqrt(np.maximum(1 - sine**2, 0)), np.radians(longitudes)
    radius = _SEMI_MAJOR_M * np.sqrt(q(1.0) / 2)
    return np.asarray(radius * np.stack([cosine * np.cos(turn), cosine * np.sin(turn), sine]))


def _block_areas(corners: Float64) -> Float64:
    """(m-1, n-1) square metres on a sphere of the blocks between corners, (3, m, n).

    A block is a flat quadrilateral seen from the centre at distance h: its area on the sphere is the integral of
    h r**2 / d**3 over it, d from h in its middle to r at its corners. The mean of d**2 stands for all.
    """
    upper_left, upper_right = corners[:, :-1, :-1], corners[:, :-1, 1:]
    lower_left, lower_right = corners[:, 1:, :-1], corners[:, 1:, 1:]
    flat = np.linalg.norm(np.cross(lower_right - upper_left, lower_left - upper_right, axis=0), axis=0) / 2
    radius2 = (corners[:, :1, :1] ** 2).sum()
    height2 = (((upper_left + upper_right + lower_left + lower_right) / 4) ** 2).sum(axis=0)
    return np.asarray(flat * np.sqrt(height2) * radius2 / (height2 + (radius2 - height2) / 3) ** 1.5)


def shape_hectares(shapes: npt.NDArray[Any], crs: Any) -> Float64:
    """(N,) true area of polygons, hectares; NaN where they have no longitude and latitude.

    In the cylindrical projection of authalic latitudes, areas are those of the ellipsoid (Snyder 1987, pp. 76-85).

    Args:
        shapes: (N,) polygons or multipolygons.
        crs: their coordinate system, of rasterio.
    """
    shapely = load_shapely()
    cut = shapely.segmentize(shapes, _EDGE_DEGREES if crs.is_geographic else _EDGE_M)
    points, shape = shapely.get_coordinates(cut, return_index=True)
    degrees = to_degrees(points, crs)
    if degrees is None:
        return np.full(len(shapes), np.nan)
    longitudes, latitudes = degrees.T
    first = longitudes[np.searchsorted(shape, shape)]
    longitudes = first + (longitudes - first + 180) % 360 - 180  # no jump at the 180th meridian
    radius = np.linalg.norm(_authalic(np.zeros(1), np.zeros(1)))
    flat = np.stack([np.radians(longitudes) * radius, _authalic(longitudes, latitudes)[2]], axis=1)
    return np.asarray(shapely.area(shapely.set_coordinates(cut, flat)) / _SQUARE_METRES)


def to_degrees(points: Float64, crs: Any) -> Float64 | None:
    """(N, 2) longitude and latitude of points of a coordinate system; None where one has none."""
    rasterio = load_rasterio()
    from rasterio._err import CPLE_BaseError  # noqa: PLC0415  # what GDAL says; rasterio exports no name for it
    from rasterio.warp import transform as project  # noqa: PLC0415

    out = np.empty_like(points)
    try:
        with rasterio.Env():
            for first in range(0, len(points), _POINTS_AT_ONCE):
                some = slice(first, first + _POINTS_AT_ONCE)
                out[some] = np.transpose(project(crs, "EPSG:4326", *points[some].T))
    except (rasterio.errors.RasterioError, CPLE_BaseError):
        return None
    if not (np.isfinite(out).all() and (np.abs(out[:, 1]) <= _POLE + _BEYOND).all()):
        return None
    out[:, 1] = np.clip(out[:, 1], -_POLE, _POLE)
    return out
