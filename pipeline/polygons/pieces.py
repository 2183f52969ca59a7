"""Pieces: the polygons of a block of a mask, with what is known of their pixels and where they meet its edges.

In: class ids of a block, and layers beside them. Out: one piece for each 4-connected component, in pixels of the
raster: x to the right, y down, from the upper left corner of its first pixel. 8-connected polygons would touch
themselves at corners, which makes rings invalid.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.assemble.layers import Block
from pipeline.geotiff.decode import load_rasterio
from pipeline.records import Float64, Ids, Int64, Window
from pipeline.vector.area import PixelAreas
from pipeline.vector.geoparquet import load_shapely
from pipeline.vector.runs import Components, find_components


@dataclass(frozen=True)
class Pieces:
    """Polygons, or parts of them that other blocks continue; arrays of one length, but for the edges."""

    shapes: npt.NDArray[Any]
    """(N,) polygons of shapely."""
    class_ids: Ids
    pixels: Int64
    hectares: Float64
    """Of the pixels; NaN where the raster has no coordinates."""
    confidence_sum: Int64
    """Sum over the pixels of the largest probability of the network, 0 to 255; see `Row.confidence_map`."""
    confidence_pixels: Int64
    """Pixels that have one."""
    first: Int64
    """(N, 2) row and column of the first pixel: the order of polygons in a file."""

    def __len__(self) -> int:
        return len(self.class_ids)

    def take(self, chosen: Int64 | npt.NDArray[np.bool_]) -> "Pieces":
        """Some of the pieces."""
        return Pieces(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @staticmethod
    def concat(several: Sequence["Pieces"]) -> "Pieces":
        """All pieces of several collections, in order; at least one collection."""
        return Pieces(*(np.concatenate([getattr(one, field.name) for one in several]) for field in fields(Pieces)))


@dataclass(frozen=True)
class Edges:
    """Stretches of a block's outline where a piece ends, so that a piece of the next block may go on."""

    piece: Int64
    """(E,) number of the piece."""
    line: Int64
    """(E,) place of the line between pixels: 2 y of a horizontal line, 2 x + 1 of a vertical one."""
    start: Int64
    """(E,) first pixel along the line."""
    end: Int64
    """(E,) end along the line."""
    after: npt.NDArray[np.bool_]
    """(E,) True for a piece below or right of the line."""

    def __len__(self) -> int:
        return len(self.piece)

    def take(self, chosen: Int64 | npt.NDArray[np.bool_]) -> "Edges":
        """Some of the stretches."""
        return Edges(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def shifted(self, by: int) -> "Edges":
        """The same, of pieces that stand behind `by` others."""
        return replace(self, piece=self.piece + by)

    @staticmethod
    def concat(several: Sequence["Edges"]) -> "Edges":
        """All stretches of several collections, in order; at least one collection."""
        return Edges(*(np.concatenate([getattr(one, field.name) for one in several]) for field in fields(Edges)))


def block_pieces(
    block: Block, areas: PixelAreas | None, num_classes: int, *, simplify_px: float
) -> tuple[Pieces, Edges]:
    """Pieces of a block, and where they end at its outline.

    Args:
        block: class ids.
        areas: areas of its pixels; None where they are not known.
        num_classes: K; ids from K on are without data and in no piece.
        simplify_px: tolerance of simplification, pixels; 0 keeps every corner. Borders between pieces stay shared, and
            points on the outline of the block stay where they are.
    """
    found = find_components(block.ids_hw)
    labels = found.labels()
    shapes, numbers = _outlines(labels)
    if simplify_px:
        shapes = _simplified(shapes, simplify_px)
    shapes = load_shapely().transform(shapes, lambda xy: xy + np.array([block.window.x, block.window.y]))
    order = np.empty(len(numbers), np.int64)
    order[numbers] = np.arange(len(numbers))
    pieces = _measured(shapes[order], found, block, areas)
    solid = pieces.class_ids < num_classes
    edges = _edges(labels, block.window)
    number = np.cumsum(solid) - 1
    kept = edges.take(solid[edges.piece])
    return pieces.take(solid), replace(kept, piece=number[kept.piece])


def _outlines(labels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Int64]:
    """Polygon of each component, and its number."""
    rasterio, shapely = load_rasterio(), load_shapely()
    from rasterio import features  # noqa: PLC0415

    with rasterio.Env(GDAL_NUM_THREADS="1"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an identity transform
        found = list(features.shapes(labels, connectivity=4))
    rings = [ring for shape, _ in found for ring in shape["coordinates"]]
    points = np.array([len(ring) for ring in rings])
    xy = np.fromiter(chain.from_iterable(chain.from_iterable(rings)), np.float64, 2 * points.sum()).reshape(-1, 2)
    linear = shapely.linearrings(xy, indices=np.repeat(np.arange(len(rings)), points))
    holes = np.array([len(shape["coordinates"]) for shape, _ in found])
    polygons = shapely.polygons(linear, indices=np.repeat(np.arange(len(found)), holes))
    return polygons, np.array([number for _, number in found]).astype(np.int64)


def _simplified(shapes: npt.NDArray[Any], tolerance_px: float) -> npt.NDArray[Any]:
    """Coverage simplified by Visvalingam and Whyatt's rule (1993, https://doi.org/10.1179/000870493786962263).

    Edges are cut at every pixel first: else a corner of one polygon lies in the middle of a neighbour's edge, and they
    are no coverage.
    """
    shapely = load_shapely()
    cut = shapely.segmentize(shapes, 1.0)
    simple = shapely.coverage_simplify(cut, tolerance_px, simplify_boundary=False)
    return np.asarray(shapely.simplify(simple, 0))  # without the points of the cuts along the outline


def _measured(shapes: npt.NDArray[Any], found: Components, block: Block, areas: PixelAreas | None) -> Pieces:
    """Pieces with the sums over their pixels."""
    runs, confidence_hw = found.runs, block.confidence()
    nothing = np.zeros(len(found.class_ids))
    hectares = nothing * np.nan
    if areas is not None:
        rows, columns = np.divmod(runs.starts, block.window.width)
        hectares = found.total(areas.of_runs(rows, columns, runs.lengths))
    known, sums = nothing, nothing
    if confidence_hw is not None:
        known, sums = found.total(runs.sums(confidence_hw > 0)), found.total(runs.sums(confidence_hw))
    _, first = np.unique(found.of_run, return_index=True)
    rows, columns = np.divmod(runs.starts[first], block.window.width)
    return Pieces(
        shapes,
        found.class_ids,
        found.total(runs.lengths).astype(np.int64),
        hectares,
        sums.astype(np.int64),
        known.astype(np.int64),
        np.stack([rows + block.window.y, columns + block.window.x], axis=1),
    )


def _edges(labels: npt.NDArray[Any], window: Window) -> Edges:
    """Stretches of the four sides of a block."""
    bottom, right = window.y + window.height, window.x + window.width
    sides = [
        (labels[0], 2 * window.y, window.x, True),
        (labels[-1], 2 * bottom, window.x, False),
        (labels[:, 0], 2 * window.x + 1, window.y, True),
        (labels[:, -1], 2 * right + 1, window.y, False),
    ]
    return Edges.concat([_side(*side) for side in sides])


def _side(pieces: npt.NDArray[Any], line: int, first: int, after: bool) -> Edges:
    starts = np.flatnonzero(np.diff(pieces, prepend=-1))
    count = len(starts)
    ends = np.append(starts[1:], len(pieces))
    numbers = pieces[starts].astype(np.int64)
    return Edges(numbers, np.full(count, line), starts + first, ends + first, np.full(count, after))
