"""Totals of rows, against sums over the rows themselves."""

import json
import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import rows_to_table
from pipeline.run.footers import read_footers
from pipeline.run.totals import AVERAGED_COLUMNS, COUNTED_COLUMNS, SUMMED_COLUMNS, RowTotals, add_up, count_rows
from pipeline.store.url import Url
from tests.support.committed import commit, failed_row, mask_row, tar
from tests.support.examples import examples

stages = st.fixed_dictionaries({name: st.integers(0, 4) for name in SUMMED_COLUMNS})
averages = st.fixed_dictionaries({name: st.integers(0, 8).map(lambda n: n / 8) for name in AVERAGED_COLUMNS})
one_row = st.tuples(st.booleans(), stages, averages, st.lists(st.integers(0, 2**53 + 9), min_size=7, max_size=7))


@examples(30)
@given(st.lists(st.lists(one_row, min_size=1, max_size=4), max_size=3))
def test_totals_sum_seconds_of_all_rows_and_averages_and_pixels_of_those_that_are_ok(drawn: list) -> None:
    """Over any split into parts; pixels are whole numbers, beyond what a double holds too."""
    run, shard = f"memory://{uuid.uuid4().hex}", tar("one")
    everything = []
    for rows in drawn:
        made = []
        for ok, seconds, means, pixels in rows:
            key = f"one.tar#{len(everything) + len(made)}"
            row = replace(mask_row(key, shard), class_pixels=pixels, **means) if ok else failed_row(key, shard)
            made.append(replace(row, **seconds))
        commit(run, made)
        everything += made
    found = read_footers(Url(run)).totals
    ok = [row for row in everything if row.status == "ok"]
    assert (found.rows, found.ok, found.failed) == (len(everything), len(ok), len(everything) - len(ok))
    assert found.class_pixels == ([sum(row.class_pixels[at] for row in ok) for at in range(7)] if ok else [])
    assert {type(count) for count in found.class_pixels} <= {int}  # a double would write 9.0
    for name in SUMMED_COLUMNS if everything else ():
        assert found.seconds[name.removeprefix("seconds_")] == sum(getattr(row, name) for row in everything)
    for name in AVERAGED_COLUMNS:
        expected = sum(getattr(row, name) for row in ok) / len(ok) if ok else None
        assert found.mean(name) == (None if expected is None else pytest.approx(expected, rel=1e-6))


@examples(30)
@given(st.lists(one_row, max_size=6), st.data())
def test_totals_of_two_halves_add_up_to_those_of_the_whole_also_as_json(drawn: list, data: st.DataObject) -> None:
    shard = tar("one")
    rows = [
        replace(mask_row(f"{at}", shard), class_pixels=pixels, **means) if ok else failed_row(f"{at}", shard)
        for at, (ok, _, means, pixels) in enumerate(drawn)
    ]
    cut = data.draw(st.integers(0, len(rows)))
    halves = [count_rows(rows_to_table(half)) for half in (rows[:cut], rows[cut:])]
    whole = count_rows(rows_to_table(rows))
    assert add_up(RowTotals.from_json(half.to_json()) for half in halves) == whole


def test_windows_without_data_are_no_masks_and_do_not_lower_the_means() -> None:
    shard = tar("one")
    empty = replace(mask_row("a", shard), mask=None, class_pixels=[0] * 7, nodata_pixels=30, confidence=None)
    partly = replace(mask_row("b", shard), nodata_pixels=5)
    totals = count_rows(rows_to_table([empty, partly]))
    assert (totals.ok, totals.empty, totals.masks, totals.nodata_pixels) == (2, 1, 1, 35)
    assert totals.mean("confidence") == 0.5


def test_counts_of_a_later_version_are_left_out() -> None:
    text = json.dumps(json.loads(RowTotals(rows=3, ok=2).to_json()) | {"rotated": 7})
    assert RowTotals.from_json(text) == RowTotals(rows=3, ok=2)


def test_totals_need_no_mask() -> None:
    table = rows_to_table([mask_row("a", tar("one")), failed_row("b", tar("one"))])
    assert count_rows(table.select(COUNTED_COLUMNS)) == count_rows(table)
    assert "mask" not in COUNTED_COLUMNS
