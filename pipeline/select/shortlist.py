"""Shortlist: the best candidates of each group, as many as a choice can need, while the rows of a run pass by.

Going round the groups takes the best of each, then the second best of each, until N are chosen. When the groups so far
hold N candidates in their first W places, nobody behind place W of a group can be chosen any more, for groups only
grow. So memory holds N candidates and one for each group, however many rows pass.
"""

import numpy as np
import pandas as pd

from pipeline.records import Float64, Int64

ORDER = ["group", "score", "draw", "key"]
"""Columns that decide a place in a group: the higher score first, then the smaller hash."""


class Shortlist:
    """Shortlist of a choice of `count` out of `groups` groups.

    Rows are tables with the columns of `ORDER` and any others: group, 0 to groups - 1; score; draw, a hash of the key;
    key.
    """

    def __init__(self, count: int, groups: int) -> None:
        self.count = count
        self.sizes: Int64 = np.zeros(groups, np.int64)
        """(G,) rows that passed by, of each group."""
        self._floors: Float64 = np.full(groups, -np.inf)
        """(G,) score below which nobody of a group can be chosen any more."""
        self._held: list[pd.DataFrame] = []

    def may_be_chosen(self, groups: Int64, scores: Float64) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        """(N,) whether rows of these groups and scores can still be chosen; counts them as passed by."""
        self.sizes += np.bincount(groups, minlength=len(self.sizes))
        return np.asarray(scores >= self._floors[groups])

    def add(self, rows: pd.DataFrame) -> None:
        """Take rows that may be chosen."""
        self._held.append(rows)
        if sum(map(len, self._held)) > 4 * (self.count + len(self.sizes)):
            self._held = [self._best()]

    def _best(self) -> pd.DataFrame:
        """Rows that may still be chosen, in the order of their groups and places."""
        rows = pd.concat(self._held, ignore_index=True)
        rows = rows.sort_values(ORDER, ascending=[True, False, True, True], ignore_index=True)
        rows = rows.drop_duplicates("key", ignore_index=True)
        sizes = np.bincount(rows["group"], minlength=len(self.sizes))
        places = places_needed(sizes, self.count)
        rows = rows[rows.groupby("group").cumcount() < places].reset_index(drop=True)
        worst = rows.groupby("group")["score"].min()
        full = worst.index[sizes[worst.index] >= places]
        self._floors[full] = worst[full]
        return rows

    def choose(self) -> pd.DataFrame:
        """The choice in the order of its ranks, with the column `place`, 0 for the best of its group."""
        if not self._held:
            return pd.DataFrame(columns=[*ORDER, "place"])
        rows = self._best()
        rows["place"] = rows.groupby("group").cumcount()
        round_by_round = rows.sort_values(["place", "score", "draw", "key"], ascending=[True, False, True, True])
        return round_by_round.head(self.count).reset_index(drop=True)


def places_needed(sizes: Int64, count: int) -> int:
    """Smallest W for which the groups hold `count` rows in their first W places; the largest size when they do not."""
    low, high = 0, int(sizes.max(initial=0))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if np.minimum(sizes, middle).sum() >= count else (middle + 1, high)
    return low
