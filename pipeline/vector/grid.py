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
from pipeline.records import Bool, Window
from pipeline.vector.antimeridian import Box, Shapes, areas_of, pieces, shifts, turn_of, unroll
from pipeline.vector.features import Features
from pipeline.vector.geoparquet import LONGITUDE_LATITUDE, load_shapely

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
_LARGE = 90
"""Degrees of longitude or latitude from which on a raster is a large part of the Earth."""
_SEAM = 1e-9
"""Degrees between polygons and the seam of a map of the Earth: a point beyond it lies on the other side."""


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
        ConfigError: the raster has no coordinate system; a polygon cannot be laid on it, even clipped; a polygon in a
            projection goes around a pole of a raster in degrees.
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
    frame = shapely.box(0, 0, raster.width, raster.height)
    shapely.prepare(frame)
    touching = shapely.intersects(frame, shapes)
    kept = np.flatnonzero(touching)[np.argsort(indices[touching])]
    return GridShapes(indices[kept], shapes[kept], clipped[kept])


def box_of(window: Window) -> Any:
    """Rectangle of a window, in pixels of its raster."""
    return load_shapely().box(window.x, window.y, window.x + window.width, window.y + window.height)


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
        extent = self._extent()
        left, bottom, right, top = extent or features.bounds
        self.edge = self._edge(raster, extent)
        dx, dy = (right - left) / _MARGIN, (top - bottom) / _MARGIN
        self.box: Box = left - dx, bottom - dy, right + dx, top + dy
        """Bounds with a margin in the coordinate system of the polygons, at most a turn wide."""
        self.seam = extent is None
        """Whether the raster may be so large that its map begins somewhere, and tears what lies there."""
        self.around = False
        """Whether the raster goes around the Earth: its map begins half a turn from its middle, at a whole degree."""
        if features.turn is not None and right - left + 2 * dx >= features.turn:
            self.around = self.seam = True
            middle = _middle(self.bounds, self.crs, features.crs)
            turn = features.turn - (0.0 if self.crs.is_geographic else 2 * _SEAM)
            self.box = _frame(round(middle) if np.isfinite(middle) else 0.0, turn, bottom - dy, top + dy)

    def _extent(self) -> Box | None:
        """Bounds in the coordinate system of the polygons; None where its outline does not tell them.

        A projection holds for a part of the Earth. The outline of a raster of the whole Earth lies outside of it, and
        its image there does not surround the image of the raster.
        """
        if self.same:
            return self.bounds
        if self.features.turn is None:
            degrees = load_rasterio().crs.CRS.from_user_input(LONGITUDE_LATITUDE)
            earth = _bounds(self.bounds, self.crs, degrees)
            if earth is None or max(earth[2] - earth[0], earth[3] - earth[1]) > _LARGE:
                return None
        return _bounds(self.bounds, self.crs, self.features.crs)

    def _edge(self, raster: Raster, extent: Box | None) -> float:
        """`EDGE_PX` in units of the polygons: of the extent, or without one in the middle of the polygons."""
        if extent is not None:
            left, bottom, right, top = extent
            return EDGE_PX * min((right - left) / raster.width, (top - bottom) / raster.height)
        left, bottom, right, top = self.features.bounds
        step = max(right - left, top - bottom) / 1000
        middle = np.array([(left + right) / 2, (bottom + top) / 2])
        there = _transformed(self.features.crs, self.crs, middle + np.array([[0, 0], [step, 0], [0, step]]))
        px = np.linalg.norm(there[1:] - there[0], axis=1).max() / abs(self.affine.determinant) ** 0.5
        return float(EDGE_PX * step / px) if np.isfinite(px) and px else step

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
        left, _, right, _ = self.box
        if clip:
            at, shapes = pieces(shapes, self.box, turn)
        elif self.around:
            at, shapes = pieces(shapes, (left, -_FAR, right, _FAR), turn)
        elif turn is not None:
            at, shapes = pieces(shapes, _frame((left + right) / 2, turn), turn)
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
                with np.errstate(invalid="ignore"):  # points without a place
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
        if self.seam and not self.crs.is_geographic:
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


def _bounds(bounds: Box, source: Any, target: Any) -> Box | None:
    """Bounds in another coordinate system: in degrees the whole Earth, else None, where they cannot be told.

    Across the antimeridian, right is beyond 180 degrees. Of a map of the whole Earth that is a little wider than it,
    GDAL gives the strip that is there twice: its middle is not within it.
    """
    rasterio = load_rasterio()
    from rasterio import _err, warp  # noqa: PLC0415

    try:
        left, bottom, right, top = warp.transform_bounds(source, target, *bounds, densify_pts=21)
    except (rasterio.errors.RasterioError, _err.CPLE_BaseError):
        left = bottom = right = top = np.nan
    finite = bool(np.isfinite([left, bottom, right, top]).all())
    if (turn := turn_of(target)) is None:
        return (left, bottom, right, top) if finite else None
    right += turn * (left > right)
    if finite and (_middle(bounds, source, target) - left) % turn <= right - left:
        return left, bottom, right, top
    return _frame(0.0, turn, -turn / 4, turn / 4)


def _middle(bounds: Box, source: Any, target: Any) -> float:
    """Longitude or easting of the middle of bounds in another coordinate system."""
    middle = np.array([[(bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2]])
    return float(_transformed(source, target, middle)[0, 0])


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
