"""Edge-aware smoothing by the domain transform's recursive filter: Gastal and Oliveira 2011, ACM TOG 30(4), 69.

DeepLab-DT puts it behind a network that predicts the edges too (Chen et al. 2016, arXiv 1511.03328): there it is
`domain_transform_torch`, which agrees to the bit.

In: 8-bit pixels, full-size logits, valid mask. Out: probabilities. A first-order recursion smooths every
row and column and almost stops at edges; it costs one multiplication per pixel, class and pass, at any sigma.
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
    deadline: float = np.inf,
) -> Float32:
    """Softmax of the smoothed scores: probabilities (K, H, W) float32.

    The scores are filtered before the softmax, as in DeepLab-DT (sec. 3). Pixels that are not valid keep their scores
    and block the recursion.

    Args:
        pixels_hwc: (H, W, B) uint8; the changes of colour between neighbouring pixels are the edges.
        logits_khw: (K, H, W) float32, finite.
        valid_hw: (H, W) bool, or None when all pixels are valid.
        params: sigmas and number of iterations.
        deadline: `time.monotonic()` after which no further iteration starts.

    Raises:
        ValueError: for shapes and dtypes other than these.
        DeadlinePassed: the deadline passed before an iteration.
    """
    _check(pixels_hwc, logits_khw, valid_hw)
    rows, columns = gradients(pixels_hwc)
    smooth = smooth_scores(logits_khw, rows, columns, valid_hw, params, deadline=deadline)
    return softmax(smooth)


def gradients(pixels_hwc: UInt8) -> tuple[Float32, Float32]:
    """Changes between rows (H - 1, W) and between columns (H, W - 1): summed over bands, colours scaled to 0 to 1.

    Gastal and Oliveira 2011, eq. 11.
    """
    return _change(pixels_hwc[1:], pixels_hwc[:-1]), _change(pixels_hwc[:, 1:], pixels_hwc[:, :-1])


def _change(pixels: UInt8, neighbours: UInt8) -> Float32:
    difference = np.maximum(pixels, neighbours) - np.minimum(pixels, neighbours)
    total: Float32 = difference.sum(axis=-1, dtype=np.float32) / np.float32(255)
    return total


def smooth_scores(
    scores_khw: Float32,
    row_edges: Float32,
    column_edges: Float32,
    valid_hw: Bool | None,
    params: DomainTransformParams,
    *,
    deadline: float = np.inf,
) -> Float32:
    """Recursive filter, linear in the scores: along the rows, then along the columns, `params.iterations` times.

    Args:
        scores_khw: (K, H, W) float32.
        row_edges: (H - 1, W), at least 0: edge between a pixel and its upper neighbour.
        column_edges: (H, W - 1), at least 0: edge between a pixel and its left neighbour.
        valid_hw: (H, W) bool; pixels that are False keep their scores and block the recursion.
        params: sigmas and number of iterations.
        deadline: as for `domain_transform_marginals`.
    """
    num_classes, height, width = scores_khw.shape
    down, along = _feedback(row_edges, params), _feedback(column_edges, params)
    if valid_hw is not None:
        down *= valid_hw[1:] & valid_hw[:-1]
        along *= valid_hw[:, 1:] & valid_hw[:, :-1]
    along = np.ascontiguousarray(along.T)
    # The axis of the recursion is outermost, so each step works on contiguous memory.
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
    """Feedback coefficient of each step in the first iteration: a ** d, Gastal and Oliveira 2011, eq. 11, 14 and 21."""
    steps = params.iterations
    sigma = params.sigma_s * 3**0.5 * 2 ** (steps - 1) / (4**steps - 1) ** 0.5
    distance = 1 + (params.sigma_s / params.sigma_r) * edges.astype(np.float64)
    feedback: Float32 = np.exp(-(2**0.5) / sigma * distance).astype(np.float32)
    return feedback


def _recurse(lines: Float32, feedback: Float32) -> None:
    """Smooth (L, K, S) lines in place, forwards and backwards: eq. 21. `feedback` (L - 1, S) is between lines."""
    change = np.empty_like(lines[0])
    for order, weights in ((lines, feedback), (lines[::-1], feedback[::-1])):
        before = order[0]
        for line, weight in zip(order[1:], weights, strict=True):
            np.subtract(before, line, out=change)
            np.multiply(change, weight, out=change)
            np.add(line, change, out=line)
            before = line


def _transpose(source: Float32, target: Float32) -> None:
    """Copy (A, K, B) to (B, K, A), class by class, since one plane fits a CPU's cache."""
    for k in range(source.shape[1]):
        target[:, k] = source[:, k].T


def _check(pixels_hwc: UInt8, logits_khw: Float32, valid_hw: Bool | None) -> None:
    if pixels_hwc.ndim != 3 or pixels_hwc.dtype != np.uint8 or 0 in pixels_hwc.shape:
        raise ValueError(f"pixels must be (H, W, B) uint8, got {pixels_hwc.shape} {pixels_hwc.dtype}")
    size = pixels_hwc.shape[:2]
    if logits_khw.ndim != 3 or logits_khw.dtype != np.float32 or logits_khw.shape[1:] != size or not len(logits_khw):
        raise ValueError(f"logits must be (K, {size[0]}, {size[1]}) float32, got {logits_khw.shape} {logits_khw.dtype}")
    if valid_hw is not None and (valid_hw.shape != size or valid_hw.dtype != np.bool_):
        raise ValueError(f"valid must be {size} bool, got {valid_hw.shape} {valid_hw.dtype}")
