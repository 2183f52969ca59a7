"""Polygons in degrees: continued across the antimeridian, and moved by whole turns to where they are asked for.

In: polygons in longitude and latitude, a box there. Out: polygons whose neighbouring points are less than half a turn
apart, and the pieces of them in the box. A file may hold longitudes of -180 to 180 or of 0 to 360, polygons cut in two
at 180 (RFC 7946, sec. 3.1.9), or polygons whose edges jump from 179 to -179; a raster across the antimeridian may go on
to 181. All of them are the same places a turn apart.
"""

from math import tau
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.vector.geoparquet import load_shapely

Shapes = npt.NDArray[Any]
"""(N,) polygons and multipolygons of shapely."""
Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def turn_of(crs: Any) -> float | None:
    """Whole circle in units of a coordinate system of rasterio: 360 degrees, 400 grads; None where it is projected."""
    return round(tau / crs.units_factor[1], 6) if crs.is_geographic else None


def unroll(shapes: Shapes, turn: float, name: str) -> tuple[Shapes, int]:
    """Polygons with an edge of more than half a turn, continued instead: from 179 to 181, not back to -179.

    An edge of a whole turn stays: it is a side of a polygon around the whole Earth.

    Args:
        shapes: polygons, not necessarily valid.
        turn: whole circle in their units.
        name: of their file, for messages.

    Returns:
        the polygons, with longitudes from -180 up to 540 degrees, and how many of them changed.

    Raises:
        ConfigError: a ring goes around a pole, so it encloses no area in longitude and latitude.
    """
    shapely = load_shapely()
    parts, owner = shapely.get_parts(shapes, return_index=True)
    points, part = shapely.get_coordinates(parts, return_index=True)
    jumps = np.abs(np.diff(points[:, 0]))
    far = (jumps > turn / 2) & (jumps < turn) & (np.diff(part) == 0)
    # The step from one ring of a part to the next counts as an edge here; such a part comes back as it was.
    crossing = np.unique(part[:-1][far])
    if not len(crossing):
        return shapes, 0
    moved = parts.copy()
    moved[crossing] = [_unrolled(polygon, turn, name) for polygon in parts[crossing]]
    changed = np.unique(owner[crossing[moved[crossing] != parts[crossing]]])
    out = shapes.copy()
    for index in changed:
        first, last = np.searchsorted(owner, [index, index + 1])
        out[index] = moved[first] if last - first == 1 else shapely.multipolygons(moved[first:last])
    return out, len(changed)


def _unrolled(polygon: Any, turn: float, name: str) -> Any:
    shapely = load_shapely()
    rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(polygon)]
    for points in rings:
        steps = np.diff(points[:, 0])
        steps = np.where(np.abs(steps) < turn, np.round(steps / turn), 0)
        if steps.sum():
            hint = "close it along the pole, from -180 to 180 degrees, or give it in a polar coordinate system"
            raise ConfigError(f"a polygon of {name} goes around a pole: its longitudes never return", hint=hint)
        points[1:, 0] -= turn * np.cumsum(steps)
    shell = rings[0]
    if shell[:, 0].min() < -turn / 2:
        shell[:, 0] += turn
    for hole in rings[1:]:
        hole[:, 0] += turn * np.round((np.ptp(shell[:, 0]) / 2 + shell[:, 0].min() - hole[:, 0].mean()) / turn)
    return shapely.Polygon(shell, rings[1:])


def pieces(shapes: Shapes, box: Box, turn: float | None) -> tuple[npt.NDArray[np.int64], Shapes]:
    """Pieces of polygons in a box, also of those a turn to the left or right, which are moved there.

    Args:
        shapes: (N,) polygons.
        box: left, bottom, right, top; a place that is twice in a box wider than a turn gives two areas.
        turn: whole circle in units of the box; None where coordinates do not repeat.

    Returns:
        ascending indices of polygons with an area in the box, and that area of each as one shape.
    """
    shapely = load_shapely()
    bounds, indices, found = shapely.bounds(shapes), [], []
    for shift in shifts(turn):
        near = np.flatnonzero((bounds[:, 0] + shift <= box[2]) & (bounds[:, 2] + shift >= box[0]))
        cut = shapely.clip_by_rect(_moved(shapes[near], shift), *box)
        solid = has_area(cut)
        indices.append(near[solid])
        found.append(cut[solid])
    return joined(np.concatenate(indices), np.concatenate(found))


def _moved(shapes: Shapes, shift: float) -> Shapes:
    """Shapes moved to the right."""
    if not shift:
        return shapes
    moved: Shapes = load_shapely().transform(shapes, lambda points: points + np.array([shift, 0]))
    return moved


def shifts(turn: float | None) -> tuple[float, ...]:
    """Distances by which a place may be moved to where it is asked."""
    return (0.0,) if turn is None else (0.0, -turn, turn)


def joined(indices: npt.NDArray[np.int64], shapes: Shapes) -> tuple[npt.NDArray[np.int64], Shapes]:
    """One shape for each index, in ascending order: several of an index become their union."""
    shapely = load_shapely()
    order = np.argsort(indices, kind="stable")
    unique, first, counts = np.unique(indices[order], return_index=True, return_counts=True)
    ordered = shapes[order]
    out = ordered[first]
    for at in np.flatnonzero(counts > 1):
        out[at] = shapely.union_all(
            [areas_of(shape) for shape in shapely.make_valid(ordered[first[at] :][: counts[at]])]
        )
    return unique, out


def has_area(shapes: Shapes) -> npt.NDArray[np.bool_]:
    """(N,) True for polygons and multipolygons that are not empty."""
    shapely = load_shapely()
    return np.asarray(np.isin(shapely.get_type_id(shapes), [3, 6]) & ~shapely.is_empty(shapes))


def areas_of(shape: Any) -> Any:
    """Polygons of a repaired geometry, without the lines and points that repairing leaves."""
    shapely = load_shapely()
    parts = shapely.get_parts(shape)
    if shape.geom_type == "GeometryCollection":
        parts = np.concatenate([shapely.get_parts(part) for part in parts])
    return shapely.multipolygons([part for part in parts if part.geom_type == "Polygon"])
