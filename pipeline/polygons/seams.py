"""Seams: pieces that meet at the edges of blocks become one polygon.

In: pieces of blocks, and the stretches of their outlines. Out: whole polygons, as soon as no other block can go on with
them, and what is left open. The rule is that of components: pieces of one class that share an edge are one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.polygons.pieces import Edges, Pieces
from pipeline.records import Bool, Int32, Int64, Window
from pipeline.vector.geoparquet import load_shapely
from pipeline.vector.runs import numbers_of

_FAR = 2**33
"""More than any place along a line, so that lines can stand one after the other."""


class Seams:
    """Open polygons of one raster: pieces that reach the edge of what has been seen of it."""

    def __init__(self, height: int, width: int) -> None:
        """Of a raster of this size, pixels."""
        self.height, self.width = height, width
        self._pieces: list[Pieces] = []
        self._edges: list[Edges] = []
        self._count = 0

    def add(self, pieces: Pieces, edges: Edges) -> Pieces:
        """Take up the pieces of a block, or those that a part of the raster left open; returns those that are whole."""
        edges = edges.take(going_on(edges, (), self.height, self.width))
        whole, kept, edges = _split(pieces, edges)
        self._pieces.append(kept)
        self._edges.append(edges.shifted(self._count))
        self._count += len(kept)
        return whole

    def settle(self, seen: Sequence[Window]) -> Pieces:
        """Merge what is open; returns what is whole now, in the order of first pixels, and keeps the rest.

        Args:
            seen: rectangles of whole blocks of which all pieces have been added.
        """
        if not self._count:
            return _NONE
        merged, of_piece = merge(Pieces.concat(self._pieces), edges := Edges.concat(self._edges))
        edges = replace(edges, piece=of_piece[edges.piece].astype(np.int64))
        edges = edges.take(going_on(edges, seen, self.height, self.width))
        whole, kept, edges = _split(merged, edges)
        self._pieces, self._edges, self._count = [kept], [edges], len(kept)
        return whole.take(np.lexsort(whole.first.T[::-1]))

    def open(self) -> tuple[Pieces, Edges]:
        """Pieces that are open, and where other parts of the raster may go on with them."""
        if not self._pieces:
            return _NONE, _NO_EDGES
        return Pieces.concat(self._pieces), Edges.concat(self._edges)


_NO_INTEGERS = np.empty(0, np.int64)
_NONE = Pieces(
    np.empty(0, object),
    np.empty(0, np.uint8),
    _NO_INTEGERS,
    np.empty(0, np.float64),
    _NO_INTEGERS,
    _NO_INTEGERS,
    np.empty((0, 2), np.int64),
)
_NO_EDGES = Edges(_NO_INTEGERS, _NO_INTEGERS, _NO_INTEGERS, _NO_INTEGERS, np.empty(0, bool))


def _split(pieces: Pieces, edges: Edges) -> tuple[Pieces, Pieces, Edges]:
    """Pieces without an edge that goes on, those with one, and the edges of these."""
    reaches = np.zeros(len(pieces), bool)
    reaches[edges.piece] = True
    number = np.cumsum(reaches) - 1
    edges = replace(edges, piece=number[edges.piece])
    return pieces.take(~reaches), pieces.take(reaches), edges


def merge(pieces: Pieces, edges: Edges) -> tuple[Pieces, Int32]:
    """Merge the pieces that meet; returns the merged ones, and for each piece the number of the one that it is in."""
    one, other = meeting(edges, pieces.class_ids)
    count = len(pieces)
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    groups, of_piece = connected_components(graph, directed=False)
    order = np.argsort(of_piece, kind="stable")
    starts = np.searchsorted(of_piece[order], np.arange(groups))
    several = np.flatnonzero(np.diff(starts, append=count) > 1)
    shapes = pieces.shapes[order[starts]]
    for group in several:
        members = order[starts[group] : starts[group + 1] if group + 1 < groups else count]
        shapes[group] = _union(pieces.shapes[members])
    merged = Pieces(
        shapes=shapes,
        class_ids=pieces.class_ids[order[starts]],
        pixels=_sums(of_piece, groups, pieces.pixels),
        hectares=_sums(of_piece, groups, pieces.hectares),
        confidence_sum=_sums(of_piece, groups, pieces.confidence_sum),
        confidence_pixels=_sums(of_piece, groups, pieces.confidence_pixels),
        first=_first(pieces.first[order], starts),
    )
    return merged, of_piece


def _union(shapes: npt.NDArray[Any]) -> Any:
    """Union of pieces that share edges, without the points that only the seam had."""
    shapely = load_shapely()
    return shapely.simplify(shapely.union_all(shapes), 0)


def _sums(of_piece: Int32, groups: int, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.bincount(of_piece, values, minlength=groups).astype(values.dtype)


def _first(places: Int64, starts: Int64) -> Int64:
    """(G, 2) the first of the (N, 2) places of each group, by row and then by column."""
    if not len(starts):
        return places
    return np.stack(np.divmod(np.minimum.reduceat(places[:, 0] * _FAR + places[:, 1], starts), _FAR), axis=1)


def meeting(edges: Edges, class_ids: npt.NDArray[Any]) -> tuple[Int64, Int64]:
    """Pairs of pieces of one class whose stretches of a line overlap, one on each side of it."""
    before, after = edges.take(~edges.after), edges.take(edges.after)
    after = after.take(np.argsort(after.line * _FAR + after.start))
    # Stretches on one side of a line do not overlap: sorted by their starts, their ends are sorted too.
    first = np.searchsorted(after.line * _FAR + after.end, before.line * _FAR + before.start, side="right")
    last = np.searchsorted(after.line * _FAR + after.start, before.line * _FAR + before.end, side="left")
    counts = np.maximum(last - first, 0)
    one = np.repeat(before.piece, counts)
    other = after.piece[numbers_of(first, counts)]
    alike = class_ids[one] == class_ids[other]
    return one[alike], other[alike]


def going_on(edges: Edges, inside: Sequence[Window], height: int, width: int) -> Bool:
    """(E,) True for stretches beyond which the raster goes on outside some rectangles, each made of whole blocks."""
    level = edges.line % 2 == 0
    place = edges.line // 2
    beyond = np.where(edges.after, place - 1, place)
    y, x = np.where(level, beyond, edges.start), np.where(level, edges.start, beyond)
    on = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    for window in inside:
        here = (y >= window.y) & (y < window.y + window.height) & (x >= window.x) & (x < window.x + window.width)
        on &= ~here
    return np.asarray(on)
