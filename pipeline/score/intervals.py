"""How sure the scores of an evaluation are, and differences between two: every score with its bootstrap interval.

In: confusion counts of each image. Out: intervals of the usual scores and of the IoU of each class. Images that
resemble each other can be drawn together. Nothing is read here.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from pipeline.records import Float64, Int64
from pipeline.score.metrics import Interval, Scores, bootstrap_each

Metric = Literal["mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "mean_dice"]
METRICS: tuple[Metric, ...] = get_args(Metric)
"""By the names that `Scores` gives them."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """Scores, or differences of scores, with their intervals; NaN for what is not known."""

    metrics: dict[Metric, Interval]
    """Each of `METRICS`, 0 to 1."""
    iou: list[Interval]
    """(K,) of each class."""

    def minus(self, other: "Estimates") -> "Estimates":
        """The difference to an independent estimate; see `difference`. One over the same images is `estimate`'s."""
        metrics = {name: difference(mine, other.metrics[name]) for name, mine in self.metrics.items()}
        return Estimates(metrics, [difference(*pair) for pair in zip(self.iou, other.iou, strict=True)])


def estimate(
    counts_nkk: Int64,
    *,
    against_nkk: Int64 | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimates:
    """Every score of the sum over images with its percentile bootstrap interval; all NaN without images.

    Args:
        counts_nkk: (N, K, K + 1) of each image, or of each group of them.
        against_nkk: another answer to the same images: all are then paired differences to it.
        samples: draws.
        seed: of the draws.
        level: share of the draws inside the interval.
    """
    found = [Interval(np.nan, np.nan, np.nan)] * (len(METRICS) + counts_nkk.shape[1])
    if len(counts_nkk):
        found = bootstrap_each(
            counts_nkk, _every_score, against_nkk=against_nkk, samples=samples, seed=seed, level=level
        )
    return Estimates(dict(zip(METRICS, found, strict=False)), found[len(METRICS) :])


def _every_score(scores: Scores) -> Float64:
    """(..., M + K): `METRICS`, then the IoU of each class."""
    return np.concatenate([np.stack([getattr(scores, name) for name in METRICS], axis=-1), scores.iou], axis=-1)


def difference(one: Interval, other: Interval) -> Interval:
    """The difference of two independent estimates, with an interval made of theirs.

    Zou and Donner 2008, "Construction of confidence limits about effect measures", Statistics in Medicine 27(10), by
    the square-and-add rule of their sec. 2.
    """
    value = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, value - below, value + above)


def by_group(counts_nkk: Int64, keys: Sequence[str], pattern: str | None) -> Int64:
    """Add up images that resemble each other, so that a bootstrap draws them together: (G, K, K + 1), G at most N.

    Frames of one drive and tiles of one field are no independent images; drawn one by one they make every interval too
    narrow (Davison and Hinkley 1997, "Bootstrap methods and their application", sec. 3.8).

    Args:
        counts_nkk: (N, K, K + 1) of each image.
        keys: (N,) of the images.
        pattern: images whose keys agree in its first group, or in what it matches if it has no group, are one. A key
            without a match, or whose match leaves that group out, stands alone; None leaves every image alone.
    """
    if pattern is None:
        return counts_nkk
    codes, groups = pd.factorize(pd.Series([_group_of(key, pattern) for key in keys], dtype=object))
    summed = np.zeros((len(groups), *counts_nkk.shape[1:]), np.int64)
    np.add.at(summed, codes, counts_nkk)
    return summed


def _group_of(key: str, pattern: str) -> str:
    match = re.search(pattern, key)
    name = match[bool(match.re.groups)] if match else None
    return key if name is None else name
