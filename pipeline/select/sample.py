"""Sample of a stream of candidates: those with the smallest hashes of seed and key, in bounded memory.

Every key is as likely, and which keys are drawn depends on the keys and the seed alone, not on the order in which parts
or threads bring them (bottom-k sampling, Cohen and Kaplan 2007, doi:10.1145/1281100.1281133).
"""

import numpy as np

from pipeline.select import candidates
from pipeline.select.candidates import Candidates


class RowSample:
    """Sample of at most `size` candidates; a key that occurs twice counts once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._held: list[Candidates] = []
        self._limit = np.uint64(2**64 - 1)
        """Largest hash that can still be drawn."""

    def add(self, some: Candidates) -> None:
        """Take what may be drawn of some candidates."""
        self._held.append(some.take(some.draws <= self._limit))
        if sum(map(len, self._held)) > 2 * self.size:
            self._held = [self.drawn()]

    def drawn(self) -> Candidates:
        """The sample so far, in the order of the hashes."""
        every = candidates.join(self._held)
        order = np.lexsort([every.keys.astype(str), every.draws])
        keys = every.keys[order]
        first = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
        kept = every.take(order[first][: self.size])
        if len(kept) == self.size:
            self._limit = kept.draws[-1]
        return kept
