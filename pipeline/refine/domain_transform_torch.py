"""The domain transform's recursive filter as an operator of torch, with exact gradients for scores and edges.

In: a batch of full-size scores and the edge map of each image. Out: smoothed scores, those of `domain_transform` for
the same edges. Gastal and Oliveira 2011, ACM TOG 30(4), 69; with gradients Chen et al. 2016, arXiv 1511.03328.

Lines follow one another, so on a GPU a pass over L lines is L small kernels: the time grows with the sides of the
image, not with its pixels.
"""

from typing import Any

import torch
from torch import Tensor

_COLUMNS, _ROWS = 3, 2
"""Axis of (N, K, H, W) along which a pass runs: first across the columns, then across the rows."""


@torch.library.custom_op("atrous::domain_transform", mutates_args=())
def domain_transform(  # operators take their arguments by position
    scores: Tensor, edges: Tensor, sigma_s: float, sigma_r: float, iterations: int
) -> Tensor:
    """Recursive filter: along the rows, then along the columns, `iterations` times.

    One operator, since the number of its steps depends on the image. Its backward pass computes the iterations again
    and keeps the scores at the start of each, and those of four passes.

    Args:
        scores: (N, K, H, W) float32 or float64.
        edges: (N, H, W) of the same dtype, at least 0: edge between a pixel and its left, and its upper neighbour.
        sigma_s: spatial standard deviation in areas without edges, pixels.
        sigma_r: range standard deviation: larger smooths across stronger edges.
        iterations: at least 1.
    """
    along, down = _feedback(scores, edges, sigma_s, sigma_r, iterations)
    for _ in range(iterations):
        scores = _iterate(scores, along, down)
        along, down = along.square(), down.square()
    return scores.contiguous()


@domain_transform.register_fake
def _(scores: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


@torch.library.custom_op("atrous::domain_transform_backward", mutates_args=())
def domain_transform_backward(  # noqa: PLR0917
    grad: Tensor, scores: Tensor, edges: Tensor, sigma_s: float, sigma_r: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """Gradients of `domain_transform` with respect to scores and edges."""
    along, down = _feedback(scores, edges, sigma_s, sigma_r, iterations)
    starts, feedbacks = [scores], [(along, down)]
    for _ in range(iterations - 1):
        starts.append(_iterate(starts[-1], *feedbacks[-1]))
        along, down = along.square(), down.square()
        feedbacks.append((along, down))
    to_edges = torch.zeros_like(edges, memory_format=torch.contiguous_format)
    for done, (start, (along, down)) in reversed(list(enumerate(zip(starts, feedbacks, strict=True)))):
        columns = _states(start, _COLUMNS, along)
        rows = _states(columns[-1].movedim(0, _COLUMNS), _ROWS, down)
        grad, to_down = _backward_along(grad, _ROWS, rows, down)
        grad, to_along = _backward_along(grad, _COLUMNS, columns, along)
        # The feedback of the first iteration is exp(rate * (1 + ratio * edge)), and squared in each one after it.
        slope = 2**done * _rate(sigma_s, iterations) * (sigma_s / sigma_r)
        to_edges[:, 1:] += (slope * to_down * down).squeeze(2).movedim(0, 1)
        to_edges[:, :, 1:] += (slope * to_along * along).squeeze(2).movedim(0, 2)
    return grad.contiguous(), to_edges


@domain_transform_backward.register_fake
def _(grad: Tensor, scores: Tensor, edges: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    empty = torch.contiguous_format
    return torch.empty_like(scores, memory_format=empty), torch.empty_like(edges, memory_format=empty)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    scores, edges, *ctx.settings = inputs
    ctx.save_for_backward(scores, edges)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    scores, edges = domain_transform_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return scores, edges, None, None, None


domain_transform.register_autograd(_backward, setup_context=_remember)


def _rate(sigma_s: float, iterations: int) -> float:
    """Logarithm of the feedback per unit of distance, first iteration: Gastal and Oliveira 2011, eq. 14 and 21."""
    sigma: float = sigma_s * 3**0.5 * 2 ** (iterations - 1) / (4**iterations - 1) ** 0.5
    return -(2**0.5) / sigma


def _feedback(scores: Tensor, edges: Tensor, sigma_s: float, sigma_r: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Feedback in the first iteration, between columns (W - 1, N, 1, H) and between rows (H - 1, N, 1, W): eq. 11."""
    distance = 1 + (sigma_s / sigma_r) * edges.double()
    feedback = (_rate(sigma_s, iterations) * distance).exp().to(scores.dtype).unsqueeze(1)
    along, down = feedback[:, :, :, 1:].movedim(_COLUMNS, 0), feedback[:, :, 1:].movedim(_ROWS, 0)
    return along.contiguous(), down.contiguous()


def _lines(scores: Tensor, axis: int) -> Tensor:
    """Copy of (N, K, H, W) with the axis of the recursion outermost, so that each step works on contiguous memory."""
    return scores.movedim(axis, 0).clone(memory_format=torch.contiguous_format)


def _iterate(scores: Tensor, along: Tensor, down: Tensor) -> Tensor:
    """One iteration on (N, K, H, W)."""
    for axis, feedback in ((_COLUMNS, along), (_ROWS, down)):
        lines = _lines(scores, axis)
        _recurse(lines, feedback)
        _recurse(lines, feedback, backwards=True)
        scores = lines.movedim(0, axis)
    return scores


def _states(scores: Tensor, axis: int, feedback: Tensor) -> list[Tensor]:
    """Lines before, between and after the two passes along an axis."""
    states = [_lines(scores, axis)]
    for backwards in (False, True):
        states.append(states[-1].clone())
        _recurse(states[-1], feedback, backwards=backwards)
    return states


def _recurse(lines: Tensor, feedback: Tensor, *, backwards: bool = False) -> None:
    """One pass over (L, N, K, S) lines in place: eq. 21. `feedback` (L - 1, N, 1, S) is between lines."""
    order = -1 if backwards else 1
    steps, weights = lines.unbind()[::order], feedback.unbind()[::order]
    for before, line, weight in zip(steps, steps[1:], weights, strict=False):
        line.add_((before - line) * weight)


def _backward_along(grad: Tensor, axis: int, states: list[Tensor], feedback: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients through both passes along an axis: with respect to (N, K, H, W) scores, and to the feedback."""
    above, to_feedback = _lines(grad, axis), torch.zeros_like(feedback)
    for backwards in (True, False):
        entering, leaving = states[int(backwards)], states[int(backwards) + 1]
        to_feedback += _backward_pass(above, entering, leaving, feedback, backwards=backwards)
    return above.movedim(0, axis), to_feedback


def _backward_pass(above: Tensor, entering: Tensor, leaving: Tensor, feedback: Tensor, *, backwards: bool) -> Tensor:
    """Replace the gradient of the lines that leave a pass by that of those that enter it; returns the feedback's.

    A line takes part in the line after it, so gradients run against the pass.
    """
    order = 1 if backwards else -1
    steps, weights = above.unbind()[::order], feedback.unbind()[::order]
    for line, before, weight in zip(steps, steps[1:], weights, strict=False):
        before.add_(line * weight)
    before_all, line_all = (slice(1, None), slice(-1)) if backwards else (slice(-1), slice(1, None))
    to_feedback = ((leaving[before_all] - entering[line_all]) * above[line_all]).sum(2, keepdim=True)
    above[line_all] *= 1 - feedback
    return to_feedback
