"""Division of a large generated landscape into territories, each of which is a scene.

In: a size and a seed. Out: territories between winding roads that cover the land. Light, scale, soil and materials are
those of one flight, rivers run through all of them, and a road on a border is drawn the same by both neighbours.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

from pipeline.datasets.farmland.canvas import Landscape, River
from pipeline.datasets.farmland.geometry import Points, pillow_points
from pipeline.datasets.farmland.scene import generate_scene
from pipeline.datasets.farmland.water import new_river
from pipeline.records import Bool, UInt8

NODATA = 0
"""Level of bands without data, which no generated pixel has."""

_TERRITORY_PX = 1536
_REACH_PX = 24
"""Land around a territory that is generated and cut off: what it blurs or shades reaches no farther."""
_SLOPE = 0.05
"""Slope of the roads between rows of territories."""
_BEND_PX = 28
"""Largest shift of a road between neighbours of a row from the straight line."""
_RIVER_PERIODS = (4200.0, 1500.0, 310.0, 173.0, 71.0)
_PIXELS_PER_RIVER = 4000


@dataclass(frozen=True, slots=True)
class Territory:
    """Part of the mosaic that is generated as one scene."""

    seed: int
    left: int
    """First column of the scene in the mosaic."""
    top: int
    """First row of the scene in the mosaic."""
    width: int
    height: int
    outline: Points
    """(N, 2) corners of the territory, whole pixels of the scene."""
    landscape: Landscape

    def paint(self) -> UInt8:
        """Generate the scene: (H, W, 5) red, green, blue, near infrared, class; bands are never `NODATA`."""
        scene = generate_scene(self.seed, height=self.height, width=self.width, landscape=self.landscape)
        return np.dstack([np.maximum(scene.four_bands_hwc, NODATA + 1), scene.label_hw])

    def is_inside(self) -> Bool:
        """(H, W), True in the territory. Neighbours overlap by a few pixels, so that no gap is left between them."""
        sheet, corners = PILImage.new("L", (self.width, self.height)), pillow_points(self.outline)
        draw = ImageDraw.Draw(sheet)
        draw.polygon(corners, fill=1)
        draw.line([*corners, corners[0]], fill=1, width=5)
        return np.asarray(sheet) > 0


def plan_territories(size_px: int, seed: int) -> list[Territory]:
    """Divide the land along winding roads into rows of territories that cover the mosaic, from north to south.

    Args:
        size_px: height and width of the mosaic, pixels.
        seed: 0 or larger.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    size = np.array([size_px, size_px], np.float64)
    rivers = [new_river(rng, size, _RIVER_PERIODS) for _ in range(max(1, round(size_px / _PIXELS_PER_RIVER)))]
    territories: list[Territory] = []
    for upper, lower in itertools.pairwise(_roads_between_rows(rng, size_px)):
        for west, east in itertools.pairwise(_roads_across(rng, size_px, upper, lower)):
            north, south = _between(upper, west[0], east[0]), _between(lower, east[-1], west[-1])
            outline = np.concatenate([north, east, south, west[::-1]])
            corner = (outline.min(0) - _REACH_PX).clip(0, size_px)
            far = (outline.max(0) + _REACH_PX + 1).clip(0, size_px)
            if (far > corner).all():
                land = _seen_from(corner, far, flight=seed, roads=(west, east, upper, lower), rivers=rivers)
                left, top, right, bottom = np.concatenate([corner, far]).astype(int).tolist()
                number = (seed << 16) + len(territories)
                territories.append(Territory(number, left, top, right - left, bottom - top, outline - corner, land))
    return territories


def _roads_between_rows(rng: np.random.Generator, size_px: int) -> list[Points]:
    """Roads from west to east, (N, 2) whole pixels each, the first one north of the mosaic and the last one south."""
    x = np.arange(-_TERRITORY_PX, size_px + _TERRITORY_PX, 12.0)
    beyond = _SLOPE * (size_px / 2 + _TERRITORY_PX) + 150
    level, roads = -beyond, []
    while True:
        bends = sum(
            a * np.sin(2 * math.pi * (x / p + rng.random())) for a, p in ((45, 2300.0), (30, 900.0), (8, 370.0))
        )
        roads.append(np.rint(np.stack([x, level + _SLOPE * (x - size_px / 2) + bends], 1)))
        if level > size_px + beyond:
            return roads
        level += _TERRITORY_PX * rng.uniform(0.85, 1.15)


def _roads_across(rng: np.random.Generator, size_px: int, upper: Points, lower: Points) -> list[Points]:
    """Roads from one road between rows to the next one, (N, 2) whole pixels each, from west of the mosaic to east."""
    start, roads, t = -0.5 * _TERRITORY_PX * rng.uniform(0.3, 1), [], np.linspace(0, 1, 120)
    while True:
        ends = start, start - _SLOPE * _TERRITORY_PX + rng.uniform(-0.08, 0.08) * _TERRITORY_PX
        top, bottom = (np.interp(end, *road.T) for end, road in zip(ends, (upper, lower), strict=True))
        bends = _BEND_PX * np.sin(math.pi * t) * np.sin(2 * math.pi * (1.3 * t + rng.random()))
        roads.append(np.rint(np.stack([ends[0] + (ends[1] - ends[0]) * t + bends, top + (bottom - top) * t], 1)))
        if min(ends) > size_px + _REACH_PX + _BEND_PX:
            return roads
        start += _TERRITORY_PX * rng.uniform(0.8, 1.2)


def _between(road: Points, start: Points, end: Points) -> Points:
    """Points of a road strictly between two others, in the order from `start` to `end`."""
    west, east = sorted((start[0], end[0]))
    part: Points = road[(road[:, 0] > west) & (road[:, 0] < east)]
    return part if start[0] <= end[0] else part[::-1]


def _seen_from(
    corner: Points, far: Points, *, flight: int, roads: Sequence[Points], rivers: Sequence[River]
) -> Landscape:
    """Move roads and rivers to the pixels of a scene between two opposite corners, (2,), and leave out what is far."""

    def near(points: Points) -> Bool:
        return np.asarray(((points > corner - 60) & (points < far + 60)).all(1))

    return Landscape(
        flight,
        tuple(road[near(road)] - corner for road in roads if near(road).sum() > 1),
        tuple(River(one.path[near(one.path)] - corner, one.radius[near(one.path)]) for one in rivers),
    )
