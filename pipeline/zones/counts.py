"""Counts: pixels of each class within zones, and sums over them, block by block of a raster.

In: a block with its layers, and zones in pixels of the raster. Out: sums by zone and class, which add up over blocks:
integers exactly, however the blocks lie. A pixel belongs to a zone that covers its centre; to each of several that do.

A zone is cut into horizontal runs, as the mask is; what they share is found by sorting, and sums over it are
differences of cumulative sums. So the work grows with borders more than with pixels, and no zone is a raster.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.assemble.layers import Block
from pipeline.records import Float64, Int64, Window
from pipeline.vector.area import PixelAreas
from pipeline.vector.geoparquet import load_shapely
from pipeline.vector.runs import find_runs, numbers_of

PIXELS, HECTARES = "pixels", "hectares"
_ROWS_AT_ONCE = 2**16
_CELLS_AT_ONCE = 2**22
"""Zones times classes whose sums are in memory at a time, and rows of a zone."""


@dataclass(frozen=True)
class ZoneRuns:
    """Runs of pixels within zones, in the pixels of one window; sorted by zone, then by row and column."""

    zone: Int64
    """(R,) number of the zone."""
    row: Int64
    """(R,) row in the window."""
    start: Int64
    """(R,) first column."""
    end: Int64
    """(R,) column behind the last one."""


def zone_runs(shapes: npt.NDArray[Any], window: Window) -> ZoneRuns:
    """Runs of the pixels of a window whose centres lie in a shape, or on its left or upper edge.

    Args:
        shapes: (N,) valid polygons or multipolygons, in pixels of the raster.
        window: rectangle of the raster.
    """
    zone, edges = _edges(shapes, window)
    row, edge = _crossed(edges, window.height)
    x0, y0, x1, y1 = edges[edge].T
    x = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    column = np.clip(np.ceil(x - 0.5), 0, window.width).astype(np.int64)
    line = zone[edge] * window.height + row
    order = np.lexsort((column, line))
    line, column = line[order], column[order]
    # A closed ring crosses a row an even number of times: the first crossing enters the zone, the second leaves it.
    start, end = column[::2], column[1::2]
    some = end > start
    number, row = np.divmod(line[::2][some], window.height)
    return ZoneRuns(number, row, start[some], end[some])


def _edges(shapes: npt.NDArray[Any], window: Window) -> tuple[Int64, Float64]:
    """Zone of each edge, and its ends (E, 4) x0, y0, x1, y1 in pixels of the window; horizontal edges are left out."""
    shapely = load_shapely()
    parts, zone_of_part = shapely.get_parts(shapes, return_index=True)
    rings, part_of_ring = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    points = points - (window.x, window.y)
    edges = np.concatenate([points[:-1], points[1:]], axis=1)
    kept = (np.diff(ring) == 0) & (edges[:, 1] != edges[:, 3])
    kept &= (np.maximum(edges[:, 1], edges[:, 3]) > 0) & (np.minimum(edges[:, 1], edges[:, 3]) < window.height)
    return zone_of_part[part_of_ring[ring[:-1][kept]]], edges[kept]


def _crossed(edges: Float64, height: int) -> tuple[Int64, Int64]:
    """Rows whose middle an edge crosses, and the number of the edge: its upper end counts, its lower one does not."""
    first, last = (
        np.clip(np.ceil(ends - 0.5), 0, height).astype(np.int64)
        for ends in (np.minimum(edges[:, 1], edges[:, 3]), np.maximum(edges[:, 1], edges[:, 3]))
    )
    counts = last - first
    return numbers_of(first, counts), np.repeat(np.arange(len(edges)), counts)


def count_pixels(shapes: npt.NDArray[Any]) -> Int64:
    """(N,) pixels of each whole zone, also those outside the raster."""
    shapely = load_shapely()
    counts = np.zeros(len(shapes), np.int64)
    bounds = shapely.bounds(shapes)
    for number, (left, top, right, bottom) in enumerate(np.stack([*np.floor(bounds.T[:2]), *np.ceil(bounds.T[2:])], 1)):
        width = int(right - left) + 1
        for y in range(int(top), int(bottom) + 1, _ROWS_AT_ONCE):
            runs = zone_runs(shapes[number : number + 1], Window(y, int(left), _ROWS_AT_ONCE, width))
            counts[number] += (runs.end - runs.start).sum()
    return counts


def zone_sums(
    block: Block,
    shapes: npt.NDArray[Any],
    layers: Mapping[str, npt.NDArray[Any]],
    num_classes: int,
    areas: PixelAreas | None = None,
) -> Iterator[tuple[slice, dict[str, Float64]]]:
    """Sums over the pixels of each class in each zone, within a block.

    Args:
        block: class ids.
        shapes: (N,) zones in pixels of the raster.
        layers: further values of each pixel by name, (h, w) each: numbers without NaN.
        num_classes: K; ids from K on are without data.
        areas: areas of the block's pixels.

    Yields:
        some zones, and by name their sums (n, K + 1) float64: `pixels`, with areas `hectares`, and that of each layer;
        column K is without data. Sums of integers are exact.
    """
    ids_hw = np.minimum(block.ids_hw, num_classes)
    mask = find_runs(ids_hw)
    ends = np.append(mask.starts[1:], ids_hw.size)
    totals = {name: np.concatenate([[0], np.cumsum(values, dtype=_exact(values))]) for name, values in layers.items()}
    step = max(1, _CELLS_AT_ONCE // (num_classes + 1))
    for first in range(0, len(shapes), step):
        some = slice(first, min(first + step, len(shapes)))
        runs = zone_runs(shapes[some], block.window)
        begin, end = runs.row * block.window.width + runs.start, runs.row * block.window.width + runs.end
        one = np.searchsorted(mask.starts, begin, side="right") - 1
        counts = np.searchsorted(mask.starts, end, side="left") - one
        shared = numbers_of(one, counts)
        begin = np.maximum(np.repeat(begin, counts), mask.starts[shared])
        end = np.minimum(np.repeat(end, counts), ends[shared])
        cell = np.repeat(runs.zone, counts) * (num_classes + 1) + mask.class_ids[shared]
        size = some.stop - some.start, num_classes + 1
        sums = {PIXELS: end - begin} | {name: total[end] - total[begin] for name, total in totals.items()}
        if areas is not None:
            row, column = np.divmod(begin, block.window.width)
            sums[HECTARES] = areas.of_runs(row, column, end - begin)
        added = {name: np.bincount(cell, each, size[0] * size[1]).reshape(size) for name, each in sums.items()}
        yield some, {name: np.asarray(each, np.float64) for name, each in added.items()}


def _exact(values: npt.NDArray[Any]) -> Any:
    """Type of sums: 64-bit integers for integers."""
    return np.float64 if values.dtype.kind == "f" else np.int64
