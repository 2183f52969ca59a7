"""Polygons on the pixel grid of a raster: which of them touch it, and their outlines in its pixels.

In: `Features` in any coordinate system, and a raster. Out: `GridShapes`. Edges are divided before they are reprojected,
so that long ones follow their curve. Degrees are followed across the antimeridian, see `antimeridian`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.raster import Raster
from pipeline.records import Bool
from pipeline.vector.antimeridian import Box, Shapes, areas_of, pieces, shifts, turn_of, unroll
from pipeline.vector.features import Features
from pipeline.vector.geoparquet import load_shapely

EDGE_PX = 16
"""Longest edge before reprojection, in pixels of the raster: a chord of this length leaves the curve by less than 0.01
pixel for pixels of up to 1 km and latitudes of up to 60 degrees."""
_SNAP = 2**16
"""Vertices are rounded to this part of a pixel, so that a window is burned as the whole raster is."""
_MARGIN = 50
"""The margin around a raster is this part of its extent."""
_MOST_EDGES = 2**20
"""Edges of one polygon after division: one with a longer outline is divided more coarsely."""
_FAR = 1e6
"""Degrees or grads of latitude beyond any."""


@dataclass(frozen=True)
class GridShapes:
    """Polygons in pixels of one raster: x to the right, y down, from the corner of its first pixel."""

    indices: npt.NDArray[np.int64]
    """(M,) ascending index of each in its `Features`."""
    shapes: Shapes
    """(M,) valid polygons and multipolygons of shapely."""
    clipped: Bool
    """(M,) False where the whole polygon is there, True where what lies far from the raster is cut off."""


def to_grid(features: Features, raster: Raster, *, clip: bool = True) -> GridShapes:
    """Polygons that touch a raster, in its pixels.

    Args:
        features: polygons in any coordinate system.
        raster: the raster, of any orientation.
        clip: cut off what lies outside the raster and a margin. Without it polygons are whole, except those with a
            point that has no place in the coordinate system of the raster, which are `clipped`.

    Raises:
        ConfigError: the raster has no coordinate system, or a polygon cannot be laid on it even where it is near.
    """
    grid = _Grid(features, raster)
    indices, shapes, lost = grid.lay(features.near(grid.boxes), clip=clip)
    clipped = _reaching_out(features, indices, grid.boxes) if clip else np.zeros(len(indices), np.bool_)
    if len(lost) and not clip:
        again, cut, lost = grid.lay(lost, clip=True)
        indices, shapes = np.concatenate([indices, again]), np.concatenate([shapes, cut])
        clipped = np.concatenate([clipped, _reaching_out(features, again, grid.boxes)])
    if len(lost):
        raise ConfigError(
            f"{len(lost)} polygon(s) of {features.name} cannot be laid on {raster.path}: points of them have no place "
            f"in its coordinate system, or it tears them; the first is polygon {lost[0] + 1}",
            hint="give them in the coordinate system of the raster, or cut them to where it holds",
        )
    shapely = load_shapely()
    touching = shapely.intersects(shapes, shapely.box(0, 0, raster.width, raster.height))
    kept = np.flatnonzero(touching)[np.argsort(indices[touching])]
    return GridShapes(indices[kept], shapes[kept], clipped[kept])


def _reaching_out(features: Features, indices: npt.NDArray[np.int64], boxes: list[Box]) -> Bool:
    """(M,) True for polygons that lie in none of the boxes as a whole."""
    bounds = load_shapely().bounds(features.shapes[indices])
    inside = [(bounds[:, :2] >= box[:2]).all(axis=1) & (bounds[:, 2:] <= box[2:]).all(axis=1) for box in boxes]
    return np.asarray(~np.logical_or.reduce(inside))


class _Grid:
    """The pixel grid of a raster, and where it lies in the coordinate system of polygons."""

    def __init__(self, features: Features, raster: Raster) -> None:
        rasterio = load_rasterio()
        if raster.transform is None or raster.crs_wkt is None:
            hint = "give --raster.crs, or label rasters on the same grid"
            raise ConfigError(f"{raster.path} has no coordinate system, so polygons cannot be laid on it", hint=hint)
        self.features = features
        self.affine = rasterio.Affine(*raster.transform)
        self.crs = rasterio.crs.CRS.from_wkt(raster.crs_wkt)
        self.same = bool(self.crs == features.crs)
        xs, ys = zip(*(self.affine @ (x, y) for x in (0, raster.width) for y in (0, raster.height)), strict=True)
        self.bounds: Box = min(xs), min(ys), max(xs), max(ys)
        left, bottom, right, top = self.bounds if self.same else _bounds(self.bounds, self.crs, features, raster.path)
        self.edge = EDGE_PX * min((right - left) / raster.width, (top - bottom) / raster.height)
        dx, dy = (right - left) / _MARGIN, (top - bottom) / _MARGIN
        self.box: Box = left - dx, bottom - dy, right + dx, top + dy
        """Bounds with a margin in the coordinate system of the polygons, at most a turn wide."""
        self.around = False
        """Whether the raster goes around the Earth; degrees are cut at 180 then, where most projections begin."""
        if features.turn is not None and right - left + 2 * dx >= features.turn:
            self.around = True
            self.box = _frame(0.0, features.turn, bottom - dy, top + dy)

    @property
    def boxes(self) -> list[Box]:
        """The box, also a turn to the left and right."""
        left, bottom, right, top = self.box
        return [(left + shift, bottom, right + shift, top) for shift in shifts(self.features.turn)]

    def lay(
        self, near: npt.NDArray[np.int64], *, clip: bool
    ) -> tuple[npt.NDArray[np.int64], Shapes, npt.NDArray[np.int64]]:
        """Lay polygons on the grid.

        Args:
            near: ascending indices of polygons.
            clip: cut off what is outside the box.

        Returns:
            indices, ascending; their shapes in pixels; and the indices of polygons that cannot be laid.
        """
        shapely, turn = load_shapely(), self.features.turn
        shapes, at = self.features.shapes[near], np.arange(len(near))
        if clip or turn is not None:
            box = self.box if clip or turn is None else _frame((self.box[0] + self.box[2]) / 2, turn)
            at, shapes = pieces(shapes, box, turn)
        if not self.same:
            edges = np.maximum(self.edge, shapely.length(shapes) / _MOST_EDGES)
            shapes = self._reproject(shapely.segmentize(shapes, edges))
        good = self._good(shapes)
        lost, at, shapes = near[at[~good]], at[good], shapes[good]
        if (own := turn_of(self.crs)) is not None:
            if turn is None:
                shapes, _ = unroll(shapes, own, self.features.name)
            box = self.bounds if clip else _frame((self.bounds[0] + self.bounds[2]) / 2, own)
            found, shapes = pieces(shapes, box, own)
            at = at[found]
        return near[at], self._pixels(shapes), lost

    def _reproject(self, shapes: Shapes) -> Shapes:
        """Shapes in the coordinate system of the raster; from degrees to degrees, in the same turn."""
        turn, own = self.features.turn, turn_of(self.crs)

        def convert(points: npt.NDArray[Any]) -> npt.NDArray[Any]:
            out = _transformed(self.features.crs, self.crs, points)
            if turn is not None and own is not None:
                out[:, 0] += own * np.round(points[:, 0] / turn - out[:, 0] / own)
            return out

        return np.asarray(load_shapely().transform(shapes, convert))

    def _good(self, shapes: Shapes) -> Bool:
        """(N,) True where all points are finite, and the edge of a map of the Earth tears no edge of the polygon."""
        shapely = load_shapely()
        parts, shape_of = shapely.get_parts(shapes, return_index=True)
        rings, part_of = shapely.get_rings(parts, return_index=True)
        points, ring_of = shapely.get_coordinates(rings, return_index=True)
        owner, bad = shape_of[part_of[ring_of]], np.zeros(len(shapes), np.bool_)
        bad[owner[~np.isfinite(points).all(axis=1)]] = True
        if self.around and not self.crs.is_geographic:
            with np.errstate(invalid="ignore"):
                torn = np.abs(np.diff(points[:, 0])) > (self.bounds[2] - self.bounds[0]) / 2
            bad[owner[:-1][torn & (np.diff(ring_of) == 0)]] = True
        return ~bad

    def _pixels(self, shapes: Shapes) -> Shapes:
        """Shapes in pixels, rounded, and valid after that."""
        shapely = load_shapely()
        inverse = ~self.affine

        def convert(points: npt.NDArray[Any]) -> npt.NDArray[Any]:
            xs, ys = points[:, 0], points[:, 1]
            columns, rows = inverse.a * xs + inverse.b * ys + inverse.c, inverse.d * xs + inverse.e * ys + inverse.f
            return np.asarray(np.round(np.stack([columns, rows], axis=1) * _SNAP) / _SNAP)

        pixels = np.asarray(shapely.transform(shapes, convert))
        valid = shapely.is_valid(pixels)
        mended = shapely.make_valid(pixels[~valid], method="structure", keep_collapsed=False)
        pixels[~valid] = [areas_of(shape) for shape in mended]
        return pixels


def _frame(middle: float, turn: float, bottom: float = -_FAR, top: float = _FAR) -> Box:
    """Box of a whole turn."""
    return middle - turn / 2, bottom, middle + turn / 2, top


def _bounds(bounds: Box, crs: Any, features: Features, path: str) -> Box:
    """Bounds in the coordinate system of polygons; across the antimeridian, right is beyond 180 degrees."""
    rasterio = load_rasterio()
    from rasterio import _err, warp  # noqa: PLC0415

    try:
        left, bottom, right, top = warp.transform_bounds(crs, features.crs, *bounds, densify_pts=21)
    except (rasterio.errors.RasterioError, _err.CPLE_BaseError):
        left = bottom = right = top = np.nan
    if not np.isfinite([left, bottom, right, top]).all():
        raise ConfigError(
            f"{path} has no place in the coordinate system of {features.name}",
            hint="give the polygons in the coordinate system of the raster, or in degrees",
        )
    return left, bottom, right + (features.turn or 0.0) * (left > right), top


def _transformed(source: Any, target: Any, points: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(N, 2) coordinates in another system; infinite for points that have no place there.

    One such point can fail all points of a call, so a call that failed is made again for each half.
    """
    rasterio = load_rasterio()
    from rasterio import _err, warp  # noqa: PLC0415

    if not len(points):
        return points
    try:
        return np.stack(warp.transform(source, target, points[:, 0], points[:, 1]), axis=1)
    except (rasterio.errors.RasterioError, _err.CPLE_BaseError):
        if len(points) == 1:
            return np.full((1, 2), np.inf)
        half = len(points) // 2
        return np.concatenate([_transformed(source, target, part) for part in (points[:half], points[half:])])
