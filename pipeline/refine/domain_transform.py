"""Edge-aware smoothing by the domain transform's recursive filter: Gastal and Oliveira 2011, ACM TOG 30(4), 69.

It was put behind a network as DeepLab-DT by Chen et al. 2016, arXiv 1511.03328, where the network draws the edges too.

In: 8-bit pixels or an edge map, full-size logits, valid mask. Out: probabilities. Every row and column is smoothed by a
first-order recursion that all but stops at edges: one multiplication per pixel, class and pass, whatever the sigmas.
"""

from time import monotonic

import numpy as np

from pipeline.errors import DeadlinePassed
from pipeline.records import Bool, Float32, UInt8
from pipeline.refine.presets import DomainTransformParams
from pipeline.refine.unary import softmax


def domain_transform_marginals(
    pixels_hwc: UInt8,
    logits_khw: Float32,
    valid_hw: Bool | None,
    params: DomainTransformParams,
    *,
    edges_hw: Float32 | None = None,
    deadline: float = np.inf,
) -> Float32:
    """Probabilities: the softmax of the scores, smoothed; (K, H, W) float32.

    The scores are filtered before the softmax, as in DeepLab-DT (sec. 3). Pixels that are not valid are walls: they
    keep their scores and nothing passes them.

    Args:
        pixels_hwc: (H, W, B) uint8; only its size counts when there is an edge map.
        logits_khw: (K, H, W) float32, finite.
        valid_hw: (H, W) bool, or None when all pixels are valid.
        params: sigmas and number of iterations.
        edges_hw: (H, W) float, 0 or more, finite: how strong an edge runs through each pixel. Without it, the changes
            of colour from pixel to pixel are the edges.
        deadline: `time.monotonic()` after which no further iteration starts.

    Raises:
        ValueError: for shapes and dtypes other than these.
        DeadlinePassed: between two iterations.
    """
    _check(pixels_hwc, logits_khw, valid_hw, edges_hw)
    rows, columns = gradients(pixels_hwc) if edges_hw is None else (edges_hw[1:], edges_hw[:, 1:])
    smooth = smoothed(logits_khw, rows, columns, valid_hw, params, deadline=deadline)
    return softmax(smooth)


def gradients(pixels_hwc: UInt8) -> tuple[Float32, Float32]:
    """Changes from row to row (H - 1, W) and from column to column (H, W - 1): sum over the bands, colours in 0 to 1.

    Gastal and Oliveira 2011, eq. 11.
    """
    return _change(pixels_hwc[1:], pixels_hwc[:-1]), _change(pixels_hwc[:, 1:], pixels_hwc[:, :-1])


def _change(one: UInt8, other: UInt8) -> Float32:
    up = np.maximum(one, other) - np.minimum(one, other)
    total: Float32 = up.sum(axis=-1, dtype=np.float32) / np.float32(255)
    return total


def smoothed(
    scores_khw: Float32,
    row_edges: Float32,
    column_edges: Float32,
    valid_hw: Bool | None,
    params: DomainTransformParams,
    *,
    deadline: float = np.inf,
) -> Float32:
    """The filter itself, linear in the scores: along the rows, then along the columns, `params.iterations` times.

    Args:
        scores_khw: (K, H, W) float32.
        row_edges: (H - 1, W), 0 or more: what lies between a pixel and the one above it.
        column_edges: (H, W - 1): what lies between a pixel and the one to its left.
        valid_hw: (H, W) bool; pixels that are not keep their scores and pass nothing on.
        params: sigmas and number of iterations.
        deadline: as for `refine`.
    """
    num_classes, height, width = scores_khw.shape
    down, along = _feedback(row_edges, params), _feedback(column_edges, params)
    if valid_hw is not None:
        down *= valid_hw[1:] & valid_hw[:-1]
        along *= valid_hw[:, 1:] & valid_hw[:, :-1]
    along = np.ascontiguousarray(along.T)
    # Lines outermost, so that each step of the recursion works on contiguous memory.
    by_row = np.array(scores_khw.transpose(1, 0, 2), order="C")
    by_column = np.empty((width, num_classes, height), np.float32)
    for done in range(params.iterations):
        if monotonic() > deadline:
            raise DeadlinePassed(f"after {done} of {params.iterations} iterations")
        _transpose(by_row, by_column)
        _recurse(by_column, along)
        _transpose(by_column, by_row)
        _recurse(by_row, down)
        # Sigma is halved from one iteration to the next (eq. 14): the feedback is squared.
        np.square(down, out=down)
        np.square(along, out=along)
    return np.ascontiguousarray(by_row.transpose(1, 0, 2))


def _feedback(edges: Float32, params: DomainTransformParams) -> Float32:
    """Feedback over each step in the first iteration: a ** d, Gastal and Oliveira 2011, eq. 11, 14 and 21."""
    steps = params.iterations
    sigma = params.sigma_s * 3**0.5 * 2 ** (steps - 1) / (4**steps - 1) ** 0.5
    distance = 1 + (params.sigma_s / params.sigma_r) * edges.astype(np.float64)
    feedback: Float32 = np.exp(-(2**0.5) / sigma * distance).astype(np.float32)
    return feedback


def _recurse(lines: Float32, feedback: Float32) -> None:
    """Smooth (L, K, S) lines in place, first to last and back: eq. 21. `feedback` (L - 1, S) is between lines."""
    change = np.empty_like(lines[0])
    for order, weights in ((lines, feedback), (lines[::-1], feedback[::-1])):
        before = order[0]
        for line, weight in zip(order[1:], weights, strict=True):
            np.subtract(before, line, out=change)
            np.multiply(change, weight, out=change)
            np.add(line, change, out=line)
            before = line


def _transpose(source: Float32, target: Float32) -> None:
    """Copy (A, K, B) to (B, K, A), class by class: one plane fits a CPU's cache."""
    for k in range(source.shape[1]):
        target[:, k] = source[:, k].T


def _check(pixels_hwc: UInt8, logits_khw: Float32, valid_hw: Bool | None, edges_hw: Float32 | None) -> None:
    if pixels_hwc.ndim != 3 or pixels_hwc.dtype != np.uint8 or 0 in pixels_hwc.shape:
        raise ValueError(f"pixels should be (H, W, B) uint8, not {pixels_hwc.shape} {pixels_hwc.dtype}")
    size = pixels_hwc.shape[:2]
    if logits_khw.ndim != 3 or logits_khw.dtype != np.float32 or logits_khw.shape[1:] != size or not len(logits_khw):
        raise ValueError(
            f"logits should be (K, {size[0]}, {size[1]}) float32, not {logits_khw.shape} {logits_khw.dtype}"
        )
    if valid_hw is not None and (valid_hw.shape != size or valid_hw.dtype != np.bool_):
        raise ValueError(f"valid should be {size} bool, not {valid_hw.shape} {valid_hw.dtype}")
    if edges_hw is not None and (edges_hw.shape != size or edges_hw.dtype.kind != "f"):
        raise ValueError(f"edges should be {size} float, not {edges_hw.shape} {edges_hw.dtype}")
