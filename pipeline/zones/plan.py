"""Plan of the statistics of zones: which zones lie in which square of which raster.

In: zones, and rasters. Out: for each square with zones, their numbers and their shapes in its raster's pixels. Zones
are found by an index: a million fields on 400 rasters are as many lookups as there are squares.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.assemble.plan import Assembly
from pipeline.assemble.squares import Square
from pipeline.assemble.stac import footprint
from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.records import Int64
from pipeline.vector.features import Features
from pipeline.vector.geoparquet import load_shapely
from pipeline.vector.grid import GridShapes, box_of, to_grid
from pipeline.zones.counts import count_pixels
from pipeline.zones.table import Reach

_VERSION = 1
"""Of what is written: another one makes the tables anew."""
_SHARED = 1e-4
"""Share of the smaller of two rasters up to which they are neighbours: outlines in degrees are rounded."""


@dataclass(slots=True)
class ZonePlan:
    """What planning found beside the squares."""

    reaches: list[Reach] = field(default_factory=list)
    """Zones that reach beyond a raster."""
    nowhere: list[str] = field(default_factory=list)
    """Reasons why rasters have no zones on them: they have no coordinates."""


def overlapping(assemblies: Sequence[Assembly]) -> list[tuple[str, str]]:
    """Pairs of rasters of one date that cover the same ground, whose pixels there count twice."""
    shapely = load_shapely()
    places = [footprint(assembly.raster)[0] for assembly in assemblies]
    numbers = [number for number, place in enumerate(places) if place is not None]
    shapes = np.array([shapely.geometry.shape(places[number]) for number in numbers], object)
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    one, other = one[one < other], other[one < other]
    shared = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    some = shared > _SHARED * np.minimum(shapely.area(shapes[one]), shapely.area(shapes[other]))
    pairs = [(assemblies[numbers[a]], assemblies[numbers[b]]) for a, b in zip(one[some], other[some], strict=True)]
    return [(a.uri, b.uri) for a, b in pairs if (a.raster.datetime or "")[:10] == (b.raster.datetime or "")[:10]]


def zones_id(
    features: Features, ids: Sequence[str], assemblies: Sequence[Assembly], classes: ClassMap, *, bands: bool
) -> str:
    """16 hex digits: of the zones, the masks and the settings that the tables are made from."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (*load_shapely().to_wkb(features.shapes), features.crs.to_wkt().encode(), repr(list(ids)).encode()):
        digest.update(part)
    rasters = [(one.id, one.raster.datetime) for one in assemblies]
    digest.update(repr((rasters, classes.names, bands, _VERSION)).encode())
    return digest.hexdigest()


def find_squares(
    features: Features, assemblies: Sequence[Assembly], plan: ZonePlan, *, reaches: bool = True
) -> Iterator[tuple[Square, Int64, npt.NDArray[Any]]]:
    """Squares with zones, the numbers of these, and their shapes in pixels.

    Args:
        features: the zones.
        assemblies: rasters.
        plan: receives what else is found.
        reaches: count the pixels of whole zones that reach beyond a raster.
    """
    for assembly in assemblies:
        try:
            found = to_grid(features, assembly.raster)
            plan.reaches += _reaches(features, assembly, found) if reaches else ()
        except ConfigError as error:
            plan.nowhere.append(error.message)
            continue
        tree = load_shapely().STRtree(found.shapes)
        for window in assembly.squares:
            near = np.sort(tree.query(box_of(window), predicate="intersects"))
            if len(near):
                yield Square(assembly, window), found.indices[near], found.shapes[near]


def _reaches(features: Features, assembly: Assembly, found: GridShapes) -> Iterator[Reach]:
    """Zones that reach beyond a raster, with the pixels of all of them."""
    raster, bounds = assembly.raster, load_shapely().bounds(found.shapes)
    beyond = (bounds[:, :2] < 0).any(axis=1) | (bounds[:, 2] > raster.width) | (bounds[:, 3] > raster.height)
    far = found.indices[beyond | found.clipped]
    whole = to_grid(features.take(far), raster, clip=False)
    for zone, pixels, clipped in zip(far[whole.indices], count_pixels(whole.shapes), whole.clipped, strict=True):
        yield Reach(int(zone), assembly.uri, None if clipped else int(pixels))
