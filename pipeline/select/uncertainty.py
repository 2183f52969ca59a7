"""Uncertainty of an image beside the other images of its run: ranks of entropy and of what the CRF changed.

Entropy (0 to 1) and `changed_share` (0 to 1, mostly below 0.1) have other scales in every run, so neither a sum nor a
threshold of the values says anything. Their ranks compare: 0.98 of both is as unusual.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.records import Float64
from pipeline.select.candidates import Candidates


@dataclass(frozen=True, slots=True)
class Ranks:
    """Distribution of both measures in a run, from a sample of it."""

    entropy: Float64
    """Values of the sample, ascending."""
    changed: Float64
    """The same of `changed_share`; empty when no refiner made a mask of the sample."""

    def entropy_ranks(self, some: Candidates) -> Float64:
        """(N,) share of the run with a lower entropy, 0 to 1; those of the same entropy count half."""
        return _ranks(self.entropy, some.entropy)

    def changed_ranks(self, some: Candidates) -> Float64:
        """(N,) the same of `changed_share`; NaN where the mask is the network's."""
        if not len(self.changed):
            return np.full(len(some), np.nan)
        return np.where(np.isnan(some.changed), np.nan, _ranks(self.changed, some.changed))

    def scores(self, some: Candidates) -> Float64:
        """(N,) uncertainty, 0 to 1: the mean of both ranks, that of the entropy where no refiner made the mask."""
        entropy, changed = self.entropy_ranks(some), self.changed_ranks(some)
        return np.where(np.isnan(changed), entropy, (entropy + changed) / 2)


def ranks_of(sample: Candidates) -> Ranks:
    """Distributions of a sample."""
    return Ranks(np.sort(sample.entropy), np.sort(sample.changed[~np.isnan(sample.changed)]))


def _ranks(ascending: Float64, values: Float64) -> Float64:
    """(N,) mid-ranks of values among sorted ones, 0 to 1."""
    below, up_to = (np.searchsorted(ascending, values, side=side) for side in ("left", "right"))
    return np.asarray((below + up_to) / (2 * len(ascending)), np.float64)
