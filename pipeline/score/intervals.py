"""Bootstrap intervals of the scores of an evaluation, and of differences between two evaluations.

In: confusion counts of each image. Out: intervals of the usual scores and of the IoU of each class. Images that
resemble each other can be drawn together.
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
"""Mean scores, by the names of the properties of `Scores`."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """Scores, or differences of scores, with their intervals; NaN where a score is undefined."""

    metrics: dict[Metric, Interval]
    """Each of `METRICS`, 0 to 1."""
    iou: list[Interval]
    """(K,) of each class."""

    def minus(self, other: "Estimates") -> "Estimates":
        """Difference to an independent estimate, see `difference`; `estimate` pairs two answers to the same images."""
        metrics = {name: difference(own, other.metrics[name]) for name, own in self.metrics.items()}
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
        counts_nkk: (N, K, K + 1) of each image, or of each group of images.
        against_nkk: counts of another answer to the same images: the result is then the paired difference to it.
        samples: number of draws.
        seed: of the draws.
        level: share of the draws inside the interval.
    """
    intervals = [Interval(np.nan, np.nan, np.nan)] * (len(METRICS) + counts_nkk.shape[1])
    if len(counts_nkk):
        intervals = bootstrap_each(
            counts_nkk, _every_score, against_nkk=against_nkk, samples=samples, seed=seed, level=level
        )
    return Estimates(dict(zip(METRICS, intervals, strict=False)), intervals[len(METRICS) :])


def _every_score(scores: Scores) -> Float64:
    """(..., M + K): `METRICS`, then the IoU of each class."""
    return np.concatenate([np.stack([getattr(scores, name) for name in METRICS], axis=-1), scores.iou], axis=-1)


def difference(first: Interval, second: Interval) -> Interval:
    """Difference of two independent estimates, with an interval from their intervals.

    Zou and Donner 2008, "Construction of confidence limits about effect measures", Statistics in Medicine 27(10), by
    the square-and-add rule of their sec. 2.
    """
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value, value - below, value + above)


def by_group(counts_nkk: Int64, keys: Sequence[str], pattern: str | None) -> Int64:
    """Sum the counts of images that resemble each other, to be drawn together: (G, K, K + 1), G at most N.

    Frames of one drive and tiles of one field are not independent; drawn one by one they make every interval too narrow
    (Davison and Hinkley 1997, "Bootstrap methods and their application", sec. 3.8).

    Args:
        counts_nkk: (N, K, K + 1) of each image.
        keys: (N,) of the images.
        pattern: regular expression; keys that agree in its first group, or in the whole match if it has no group, form
            one group. A key without a match, or without that group in its match, forms its own; None groups nothing.
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
