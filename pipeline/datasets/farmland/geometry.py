"""Plane geometry of the generated farmland: points, polygons and rectangles in pixels."""

import math

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
"""(N, 2) corners of a polygon or polyline, x then y, pixels."""


def points_along(start: Points, end: Points, step_px: float) -> Points:
    """Points every `step_px` from `start` towards `end`, both (2,), without the end."""
    count = max(1, round(float(np.hypot(*(end - start))) / step_px))
    return start + (end - start) * (np.arange(count)[:, None] / count)


def perpendicular(direction: Points) -> Points:
    """Unit vector at a right angle to a direction, (2,)."""
    along = direction / max(float(np.hypot(*direction)), 1e-9)
    return np.array([-along[1], along[0]])


def polygon_area(polygon: Points) -> float:
    """Area of a polygon by the shoelace formula, square pixels."""
    x, y = polygon.T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


def cut_polygon(polygon: Points, through: Points, normal: Points) -> tuple[Points, Points, Points]:
    """Cut a convex polygon along a line; returns both halves and the two ends of the cut."""
    sides = (polygon - through) @ normal
    halves: tuple[list[Points], list[Points]] = ([], [])
    ends = []
    for index, side in enumerate(sides):
        here, there, far = polygon[index], polygon[index - len(polygon) + 1], sides[index - len(sides) + 1]
        halves[int(side < 0)].append(here)
        if (side < 0) != (far < 0):
            ends.append(here + (there - here) * (side / (side - far)))
            halves[0].append(ends[-1])
            halves[1].append(ends[-1])
    return np.array(halves[0]), np.array(halves[1]), np.array(ends)


def rectangle(centre: Points, along: Points, length: float, breadth: float) -> Points:
    """(4, 2) corners of a rectangle whose long side runs along a unit vector."""
    ahead, aside = along * (length / 2), perpendicular(along) * (breadth / 2)
    corners: Points = centre + np.array([-ahead - aside, ahead - aside, ahead + aside, -ahead + aside])
    return corners


def random_rotation(rng: np.random.Generator) -> Points:
    """Rotation matrix of a random angle, (2, 2)."""
    turn = rng.uniform(0, math.pi)
    return np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])


def pillow_points(points: Points) -> list[tuple[float, float]]:
    """Convert points to Pillow's form."""
    return [(float(x), float(y)) for x, y in points]


def disc_box(centre: Points, radius: float) -> tuple[float, float, float, float]:
    """Bounding box of a disc, in Pillow's form."""
    x, y = float(centre[0]), float(centre[1])
    return (x - radius, y - radius, x + radius, y + radius)
