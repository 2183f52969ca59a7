"""Learning rate finder: a range test over rates that grow by a factor (Smith 2015, arXiv 1506.01186, sec. 3.3).

In: a function that takes a step at a given rate and returns the loss. Out: the loss at every rate, and the rate where
it fell fastest. The caller discards the weights afterwards.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

SMOOTHING = 0.95
"""Decay of the moving mean of losses, with the bias correction of Kingma and Ba 2014, sec. 3."""
DIVERGED = 4.0
"""The sweep ends where the mean loss exceeds its minimum by this factor."""
MIN_STEPS = 10
"""Steps before divergence and slope are judged: earlier means are of too few losses."""


@dataclass(frozen=True, slots=True)
class RatePoint:
    """Loss at one learning rate."""

    lr: float
    loss: float
    """Moving mean of losses up to this rate."""


@dataclass(frozen=True, slots=True)
class LrSearch:
    """Result of a sweep."""

    points: tuple[RatePoint, ...]
    """By ascending rate; at the last one the loss may have diverged."""
    suggested: float
    """Rate at which the loss fell fastest per factor of the rate."""

    def table(self, rows: int = 20) -> str:
        """Format about `rows` of the points for the console, with an arrow at the suggested rate."""
        every = max(1, len(self.points) // rows)
        lines = [f"{'lr':>10}  {'loss':>8}"]
        for index, point in enumerate(self.points):
            chosen = point.lr == self.suggested
            if chosen or index % every == 0:
                lines.append(f"{point.lr:>10.2e}  {point.loss:>8.4f}{'  <- suggested' if chosen else ''}")
        return "\n".join(lines)


def lr_sweep(
    step: Callable[[float], float], *, lowest: float = 1e-6, highest: float = 1.0, steps: int = 200
) -> LrSearch:
    """Take steps at rates that grow from `lowest` to `highest`, until the loss diverges.

    Args:
        step: takes one training step at the given rate and returns the loss before it.
        lowest: first rate.
        highest: last rate.
        steps: largest number of steps, at least 2.

    Raises:
        ValueError: `lowest` is not between 0 and `highest`, or `steps` is below 2.
    """
    if not 0 < lowest < highest or steps < 2:
        raise ValueError(f"need 0 < lowest < highest and 2 steps, got {lowest}, {highest} and {steps} steps")
    points: list[RatePoint] = []
    mean, least = 0.0, math.inf
    for index in range(steps):
        lr = lowest * (highest / lowest) ** (index / (steps - 1))
        loss = step(lr)
        if not math.isfinite(loss):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        points.append(RatePoint(lr, mean / (1 - SMOOTHING ** (index + 1))))
        if index >= MIN_STEPS:
            least = min(least, points[-1].loss)
            if points[-1].loss > DIVERGED * least:
                break
    return LrSearch(tuple(points), _steepest(points, lowest))


def _steepest(points: list[RatePoint], lowest: float) -> float:
    """Rate before which the mean loss fell most in one step; `lowest` if it never fell."""
    falls = [
        (after.loss - before.loss, after.lr)
        for before, after in zip(points[MIN_STEPS:], points[MIN_STEPS + 1 :], strict=False)
    ]
    slope, lr = min(falls, default=(0.0, lowest))
    return lr if slope < 0 else lowest
