"""Runs of a mask: pixels of one class that follow each other in a row, and the components that runs form.

In: class ids, (H, W) integers. Out: runs, and 4-connected components with sums over their pixels. Runs are far fewer
than pixels: labels and sums cost little more than finding them.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.records import Bool, Float64, Ids, Int32, Int64, UInt8


def numbers_of(first: Int64, counts: Int64) -> Int64:
    """Numbers of ranges, one after the other: `counts` of them from each `first` on."""
    return np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of a mask, row by row from left to right; none reaches over two rows."""

    starts: Int64
    """(R,) flat index of the first pixel of each run, ascending."""
    class_ids: Ids
    """(R,) class id of each run."""
    shape: tuple[int, int]
    """Height and width of the mask."""

    @property
    def lengths(self) -> Int64:
        """(R,) pixels of each run."""
        return np.diff(self.starts, append=self.shape[0] * self.shape[1])

    def pixel_runs(self) -> Int32:
        """(H, W) number of the run that each pixel is in."""
        begins = np.zeros(self.shape, np.int32)
        begins.ravel()[self.starts[1:]] = 1
        return np.cumsum(begins, dtype=np.int32).reshape(self.shape)

    def sums(self, values_hw: UInt8 | Bool | Float64) -> Float64:
        """(R,) float64 sum of the values of each run's pixels: exact for integers."""
        return np.add.reduceat(values_hw.ravel(), self.starts, dtype=np.float64)


def find_runs(ids_hw: Ids) -> Runs:
    """Runs of a mask, (H, W) with at least one pixel."""
    begins = np.ones(ids_hw.shape, bool)
    np.not_equal(ids_hw[:, 1:], ids_hw[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    return Runs(starts, ids_hw.ravel()[starts], ids_hw.shape)


@dataclass(frozen=True, slots=True)
class Components:
    """4-connected components of equal class, in the order of their first pixels."""

    runs: Runs
    of_run: Int32
    """(R,) number of the component of each run."""
    class_ids: Ids
    """(N,) class id of each component."""

    def labels(self) -> Int32:
        """(H, W) number of the component that each pixel is in."""
        return self.of_run[self.runs.pixel_runs()]

    def total(self, of_runs: Int64 | Float64) -> Float64:
        """(N,) sum over the runs of each component, as float64: exact for integers up to 2**53."""
        return np.asarray(np.bincount(self.of_run, of_runs, minlength=len(self.class_ids)), np.float64)


def find_components(ids_hw: Ids) -> Components:
    """Components of a mask: pixels of one class that share an edge are in one, those that share a corner are not."""
    runs = find_runs(ids_hw)
    number = runs.pixel_runs()
    begins = np.zeros(ids_hw.shape, bool)
    begins.ravel()[runs.starts] = True
    # Where two runs of one class lie above each other, the first column that both have is where one of them begins.
    meets = (ids_hw[1:] == ids_hw[:-1]) & (begins[1:] | begins[:-1])
    pairs = number[:-1][meets], number[1:][meets]
    graph = coo_array((np.ones(len(pairs[0]), bool), pairs), shape=(len(runs.starts),) * 2)
    count, of_run = connected_components(graph, directed=False)
    _, first = np.unique(of_run, return_index=True)
    order = np.empty(count, np.int32)
    order[np.argsort(first)] = np.arange(count)
    class_ids = np.empty(count, ids_hw.dtype)
    class_ids[order[of_run]] = runs.class_ids
    return Components(runs, order[of_run], class_ids)
