"""Mean field of the dense CRF in torch; on a GPU, an iteration over one shape is captured as a CUDA graph.

In: scores (P, K) and kernels. Out: marginals (P, K). Alg. 1 of Krähenbühl and Koltun 2011, with a Potts model.

An iteration is about thirty kernels, each so short for a single image that the host launches them no faster than they
run. A CUDA graph launches them at once, but always the same kernels over the same memory. So each shape has buffers of
its own, and lattices, whose numbers of vertices depend on the image, are padded to one of a few numbers. No step of an
iteration waits for the device.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import DeadlinePassed

if TYPE_CHECKING:
    from pipeline.refine.lattice_torch import Lattice

log = logging.getLogger(__name__)

GRAPHS = 4
"""Captured shapes kept, the last used; each holds about as much memory as a call without a graph."""
SIZES_PER_OCTAVE = 8
"""Numbers of vertices between a power of two and the next: padding adds at most an eighth."""


def mean_field(scores: Tensor, kernels: Sequence["Lattice"], iterations: int, deadline: float) -> Tensor:
    """(P, K) scores -> (P, K) marginals after so many iterations, over memory of this call.

    Raises:
        DeadlinePassed: the deadline passed before an iteration.
    """
    field = Iteration(scores, kernels)
    if kernels:
        for _ in until(deadline, iterations, scores.device):
            field.step()
    return field.marginals


def until(deadline: float, iterations: int, device: torch.device) -> Iterator[int]:
    """Numbers of iterations, each once the one before has ended if there is a deadline: kernels run behind the host."""
    for done in range(iterations):
        if deadline < float("inf") and device.type == "cuda":
            torch.cuda.synchronize(device)
        if monotonic() > deadline:
            raise DeadlinePassed(f"after {done} of {iterations} iterations")
        yield done


class Iteration:
    """One iteration of the mean field over fixed tensors."""

    def __init__(self, scores: Tensor, kernels: Sequence["Lattice"]) -> None:
        self.scores, self.kernels = scores, kernels
        self.marginals, self.total = scores.softmax(1), torch.empty_like(scores)
        most = max((kernel.vertices for kernel in kernels if kernel.joins is None), default=0)
        self.scratch = scores.new_empty(2, most, scores.shape[1])

    def step(self) -> None:
        """Replace the marginals by those of the next iteration; it allocates no more than it frees."""
        self.total.copy_(self.scores)
        for kernel in self.kernels:
            kernel.add_to(self.total, self.marginals, self.scratch)
        torch.softmax(self.total, 1, out=self.marginals)

    def load(self, scores: Tensor, kernels: Sequence["Lattice"]) -> None:
        """Start over with other values of the same shapes, in the same memory."""
        self.scores.copy_(scores)
        torch.softmax(scores, 1, out=self.marginals)
        for mine, theirs in zip(self.kernels, kernels, strict=True):
            mine.copy_(theirs)


class GraphedMeanField:
    """`mean_field` on a GPU, with a CUDA graph for each shape that comes again.

    The first call of a shape runs without a graph, so a shape that comes once is not captured, and all kernels are
    loaded when one is. Where capturing fails, every later call runs without a graph, after a warning.
    """

    def __init__(self) -> None:
        self._captured: OrderedDict[tuple[int, ...], tuple[Iteration, torch.cuda.CUDAGraph] | None] = OrderedDict()
        self._fails = False

    def __call__(self, scores: Tensor, kernels: Sequence["Lattice"], iterations: int, deadline: float) -> Tensor:
        """As `mean_field`."""
        sizes = [padded_vertices(kernel) for kernel in kernels]
        shape = (*scores.shape, *(len(kernel.blurs) for kernel in kernels), *sizes)
        graphed = self._graphed(shape, scores, kernels, sizes) if kernels else None
        if graphed is None:
            return mean_field(scores, kernels, iterations, deadline)
        field, graph = graphed
        field.load(scores, [kernel.padded(size) for kernel, size in zip(kernels, sizes, strict=True)])
        for _ in until(deadline, iterations, scores.device):
            graph.replay()
        return field.marginals.clone()

    def _graphed(
        self, shape: tuple[int, ...], scores: Tensor, kernels: Sequence["Lattice"], sizes: Sequence[int]
    ) -> tuple[Iteration, torch.cuda.CUDAGraph] | None:
        """The graph of a shape, captured when it comes the second time; None the first time, and where none can be."""
        if self._fails:
            return None
        if shape not in self._captured:
            self._captured[shape] = None
        elif self._captured[shape] is None:
            try:
                self._captured[shape] = capture(scores, [k.padded(n) for k, n in zip(kernels, sizes, strict=True)])
            except RuntimeError as error:  # of CUDA, memory included
                self._captured.clear()
                self._fails = True
                log.warning("CUDA graph of the CRF: capture failed, it runs without: %s", error)
                return None
        self._captured.move_to_end(shape)
        while len(self._captured) > GRAPHS:
            self._captured.popitem(last=False)
        return self._captured[shape]


def capture(scores: Tensor, kernels: Sequence["Lattice"]) -> tuple[Iteration, torch.cuda.CUDAGraph]:
    """An iteration over copies of these tensors, and its CUDA graph."""
    field = Iteration(scores.clone(), [kernel.clone() for kernel in kernels])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        field.step()
    return field, graph


def padded_vertices(kernel: "Lattice") -> int:
    """Vertices to which a lattice is padded, so that lattices of about its size share a shape."""
    least = kernel.vertices + kernel.least_padding
    grain = max(1, (1 << least.bit_length() - 1) // SIZES_PER_OCTAVE)
    return -(-least // grain) * grain
