"""A learning rate to begin with: Smith 2015, arXiv 1506.01186, sec. 3.3, over rates that grow by a factor.

In: something that takes a step at a given rate and says the loss. Out: what the loss did at every rate, and where it
fell fastest. Nothing is kept of the steps here: whoever gives `step` throws the weights away afterwards.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

SMOOTHING = 0.95
"""Weight of the past in the mean of losses, which is corrected for its start as in Kingma and Ba 2014, sec. 3."""
DIVERGED = 4.0
"""The search ends where the mean is this many times the least so far."""
SETTLED = 10
"""Steps before which neither is judged: the mean is of too few."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One rate."""

    lr: float
    loss: float
    """Moving mean up to here."""


@dataclass(frozen=True, slots=True)
class LrSearch:
    """What a search came to."""

    tried: tuple[Tried, ...]
    """In the order of their rates; the last one may be where the loss diverged."""
    suggested: float
    """Rate at which the loss fell fastest, per factor of the rate."""

    def table(self, rows: int = 20) -> str:
        """About `rows` of the rates with their losses, for the console; an arrow at the one suggested."""
        every = max(1, len(self.tried) // rows)
        lines = [f"{'lr':>10}  {'loss':>8}"]
        for index, one in enumerate(self.tried):
            chosen = one.lr == self.suggested
            if chosen or index % every == 0:
                lines.append(f"{one.lr:>10.2e}  {one.loss:>8.4f}{'  <- suggested' if chosen else ''}")
        return "\n".join(lines)


def lr_sweep(
    step: Callable[[float], float], *, lowest: float = 1e-6, highest: float = 1.0, steps: int = 200
) -> LrSearch:
    """Take steps at rates that grow from `lowest` to `highest`, until the loss diverges.

    Args:
        step: takes one training step at the rate it is given; the loss before the step comes back.
        lowest: first rate.
        highest: last rate.
        steps: how many at most, at least 2.

    Raises:
        ValueError: rates that do not grow, or fewer than 2 steps.
    """
    if not 0 < lowest < highest or steps < 2:
        raise ValueError(f"{steps} steps from a rate of {lowest} to {highest}")
    tried: list[Tried] = []
    mean, least = 0.0, math.inf
    for index in range(steps):
        lr = lowest * (highest / lowest) ** (index / (steps - 1))
        loss = step(lr)
        if not math.isfinite(loss):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        tried.append(Tried(lr, mean / (1 - SMOOTHING ** (index + 1))))
        if index >= SETTLED:
            least = min(least, tried[-1].loss)
            if tried[-1].loss > DIVERGED * least:
                break
    return LrSearch(tuple(tried), _steepest(tried, lowest))


def _steepest(tried: list[Tried], lowest: float) -> float:
    """The rate before which the mean fell most from one step to the next; the lowest where it never fell."""
    falls = [
        (after.loss - before.loss, after.lr)
        for before, after in zip(tried[SETTLED:], tried[SETTLED + 1 :], strict=False)
    ]
    slope, lr = min(falls, default=(0.0, lowest))
    return lr if slope < 0 else lowest
