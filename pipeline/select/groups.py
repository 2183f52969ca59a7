"""Groups of images that look alike to the network: k-means over class shares and brightness.

A point is the square roots of the class shares, divided by the square root of 2, and the brightness from 0 to 1. The
distance of the first ones is Hellinger's, 0 for equal shares to 1 for images without a class in common (Hellinger 1909;
Legendre and Gallagher 2001, doi:10.1007/s004420100716, for clustering by it). Square roots let a class of 2 % count,
where shares as they are would be governed by the background.

Points and centres lie on a grid of `GRID` steps per unit. So squared distances, sums and counts are whole numbers below
2^53, exact in any order: a group does not depend on threads, on the machine's BLAS or on how rows are cut into parts.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.records import Float64, Int64
from pipeline.select.candidates import Candidates

GRID = 1024
"""Steps per unit: a hundredth of the spread of the shares in a set of photos, and coarser than float32."""
ITERATIONS = 25
"""Rounds of Lloyd's algorithm at most; they end before when no centre moves."""
_BLOCK = 4096
"""Points whose distances are in memory at once: 8 MiB with 256 centres."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Centres of the groups."""

    centres_gd: Float64
    """(G, K + 1) whole numbers of grid steps."""
    brightness: float
    """Brightness where a row has none: the mean of the sample, 0 to 255."""

    def __len__(self) -> int:
        return len(self.centres_gd)

    def of(self, some: Candidates) -> Int64:
        """(N,) number of the nearest centre, the smaller one of two that are as near."""
        return nearest(points_of(some, self.brightness), self.centres_gd)[0]


def points_of(some: Candidates, brightness: float) -> Float64:
    """(N, K + 1) points in whole grid steps, 0 to `GRID`; `brightness` where a row has none."""
    shares_nk = some.pixels_nk / some.pixels_nk.sum(axis=1, keepdims=True)
    light_n = np.where(np.isnan(some.brightness), brightness, some.brightness) / 255
    return np.asarray(np.rint(GRID * np.column_stack([np.sqrt(shares_nk / 2), light_n])), np.float64)


def nearest(points_nd: Float64, centres_gd: Float64) -> tuple[Int64, Float64]:
    """(N,) nearest centre of each point, and (N,) squared distance to it in grid steps."""
    groups, distances = np.empty(len(points_nd), np.int64), np.empty(len(points_nd))
    norms_g = (centres_gd**2).sum(axis=1)
    for start in range(0, len(points_nd), _BLOCK):
        block = points_nd[start : start + _BLOCK]
        partial_ng = norms_g - 2 * (block @ centres_gd.T)  # without the point's own norm, which decides nothing
        here = slice(start, start + len(block))
        groups[here] = partial_ng.argmin(axis=1)
        distances[here] = partial_ng.min(axis=1) + (block**2).sum(axis=1)
    return groups, distances


def fit_groups(sample: Candidates, count: int, *, seed: int) -> Groups:
    """Find at most `count` groups in a sample; fewer when it has fewer different points.

    Args:
        sample: at least one row, in an order that does not depend on that of the parts.
        count: groups, at least 1.
        seed: seed of the first centres.
    """
    light = sample.brightness[~np.isnan(sample.brightness)]
    brightness = float(np.sort(light).mean()) if len(light) else 0.0
    points_nd = points_of(sample, brightness)
    centres_gd = _first_centres(points_nd, count, np.random.default_rng(seed))
    for _ in range(ITERATIONS):
        before, centres_gd = centres_gd, _moved(points_nd, centres_gd)
        if np.array_equal(before, centres_gd):
            break
    return Groups(np.unique(centres_gd, axis=0), brightness)


def _first_centres(points_nd: Float64, count: int, rng: np.random.Generator) -> Float64:
    """k-means++ (Arthur and Vassilvitskii 2007): each next centre by its squared distance to the nearest one so far."""
    chosen = [int(rng.integers(len(points_nd)))]
    squares_n = nearest(points_nd, points_nd[chosen])[1].astype(np.int64)
    while len(chosen) < count and squares_n.any():
        ends_n = np.cumsum(squares_n)
        chosen.append(int(np.searchsorted(ends_n, rng.integers(ends_n[-1]), side="right")))
        squares_n = np.minimum(squares_n, nearest(points_nd, points_nd[chosen[-1:]])[1].astype(np.int64))
    return points_nd[chosen]


def _moved(points_nd: Float64, centres_gd: Float64) -> Float64:
    """Centres at the mean of their points, rounded to the grid; one without a point stays."""
    groups_n = nearest(points_nd, centres_gd)[0]
    counts_g = np.bincount(groups_n, minlength=len(centres_gd))
    sums_gd = np.column_stack(
        [np.bincount(groups_n, weights=column, minlength=len(centres_gd)) for column in points_nd.T]
    )
    return np.where(counts_g[:, None] > 0, np.rint(sums_gd / np.maximum(counts_g, 1)[:, None]), centres_gd)
