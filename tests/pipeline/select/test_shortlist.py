"""The shortlist chooses what sorting everything would, and holds little."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from pipeline.select.candidates import Candidates, draws_of
from pipeline.select.shortlist import Shortlist, places_needed


def some_candidates(keys: list[str]) -> Candidates:
    names, nothing = np.array(keys, object), np.zeros(len(keys))
    return Candidates(names, draws_of(names, 0), nothing, nothing, nothing, np.ones((len(keys), 2), np.int64))


def table(rows: list[tuple[int, int]], first: int = 0) -> pd.DataFrame:
    keys = [f"k{number:04}" for number in range(first, first + len(rows))]
    draws = draws_of(np.array(keys, object), 0)
    groups, scores = [group for group, _ in rows], [float(score) for _, score in rows]
    return pd.DataFrame({"group": np.array(groups, int), "score": scores, "draw": draws, "key": keys})


def by_sorting(rows: pd.DataFrame, count: int) -> list[str]:
    rows = rows.sort_values(["group", "score", "draw"], ascending=[True, False, True])
    rows["place"] = rows.groupby("group").cumcount()
    return rows.sort_values(["place", "score", "draw"], ascending=[True, False, True])["key"].head(count).tolist()


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=150)


@given(ROWS, st.integers(1, 12), st.integers(1, 40))
def test_the_choice_is_that_of_sorting_all_rows(rows, count: int, step: int) -> None:
    whole, shortlist = table(rows), Shortlist(count, 5)
    for start in range(0, len(rows), step):
        some = whole.iloc[start : start + step]
        shortlist.add(some[shortlist.may_be_chosen(some["group"].to_numpy(), some["score"].to_numpy())])
    assert shortlist.choose()["key"].tolist() == by_sorting(whole, count)
    assert shortlist.sizes.sum() == len(rows)


def test_memory_holds_the_choice_and_not_the_run() -> None:
    shortlist, rng, most = Shortlist(50, 10), np.random.default_rng(0), 0
    for first in range(0, 40_000, 1000):
        some = table(list(zip(rng.integers(0, 10, 1000), rng.integers(0, 10**6, 1000), strict=True)), first)
        shortlist.add(some[shortlist.may_be_chosen(some["group"].to_numpy(), some["score"].to_numpy())])
        most = max(most, sum(map(len, shortlist._held)))
    assert most <= 4 * 60 + 1000


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 40))
def test_places_needed_are_the_fewest_that_hold_the_choice(sizes: list[int], count: int) -> None:
    found = places_needed(np.array(sizes), count)
    enough = [places for places in range(max(sizes) + 1) if sum(min(size, places) for size in sizes) >= count]
    assert found == (enough[0] if enough else max(sizes))
