from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.records import rows_to_table
from pipeline.run import parts
from pipeline.store.url import Url
from pipeline.view.query import BINS, OneOf, Query, Range, count_rows, find_rows, histogram, position_of
from tests.support.committed import FARM, failed_row, mask_row, tar
from tests.support.viewed_runs import open_index

NUMBERS = ("confidence", "entropy", "share_2", "seconds")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """300 rows with random numbers, some of them missing, and every twentieth failed."""
    run, rng, rows = Url(str(tmp_path_factory.mktemp("run"))), np.random.default_rng(4), []
    for number in range(300):
        key, shard = f"Flight_{number % 7}/img_{number:04}.jpg", tar(f"t{number // 100}")
        row = failed_row(key, shard) if number % 20 == 0 else mask_row(key, shard)
        confidence, entropy = (None if rng.random() < 0.1 else float(np.float32(rng.random())) for _ in range(2))
        rows.append(replace(row, confidence=confidence, entropy=entropy, seconds_infer=float(rng.integers(0, 5))))
    for start in range(0, 300, 70):
        parts.write_part(run, rows_to_table(rows[start : start + 70]), FARM)
    return open_index(run)


@pytest.fixture(scope="module")
def frame(index):
    with index.cursor() as cursor:
        return cursor.execute("SELECT * FROM rows").df()


bounds = st.one_of(st.none(), st.floats(0, 1, width=32))
queries = st.builds(
    Query,
    text=st.sampled_from(["", "flight_3", "IMG_02", "nothing like it", "%", "_"]),
    ranges=st.lists(st.builds(Range, column=st.sampled_from(NUMBERS), low=bounds, high=bounds), max_size=3).map(tuple),
    choices=st.lists(
        st.builds(
            OneOf,
            column=st.sampled_from(["status", "error_code", "mask_of"]),
            values=st.lists(st.sampled_from(["ok", "failed", "truncated", "refined", None]), min_size=1).map(tuple),
        ),
        max_size=2,
    ).map(tuple),
    sort=st.sampled_from(["key", *NUMBERS]),
    descending=st.booleans(),
)


def matching(frame: pd.DataFrame, query: Query) -> pd.DataFrame:
    """The rows of a query by pandas."""
    kept = frame[frame["key"].str.lower().str.contains(query.text.lower(), regex=False)]
    for one in query.ranges:
        values = kept[one.column]
        kept = kept[(values >= np.float32(one.low)) if one.low is not None else pd.Series(True, kept.index)]
        values = kept[one.column]
        kept = kept[(values <= np.float32(one.high)) if one.high is not None else pd.Series(True, kept.index)]
    for choice in query.choices:
        values = kept[choice.column]
        kept = kept[values.isin([word for word in choice.values if word]) | (values.isna() & (None in choice.values))]
    return kept


@given(query=queries)
def test_a_query_finds_the_rows_that_pandas_finds_in_the_same_order(index, frame, query):
    expected = matching(frame, query)
    assert count_rows(index, query) == len(expected)
    found = find_rows(index, query, offset=0, limit=500)
    assert sorted(row["id"] for row in found) == sorted(expected["id"])
    values = [row[query.sort] for row in found]
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=query.descending)
    assert values[len(known) :] == [None] * (len(values) - len(known))  # rows without a value come last


@given(query=queries, page=st.integers(40, 120))
def test_pages_joined_are_the_whole(index, query, page):
    whole = find_rows(index, query, offset=0, limit=500)
    joined = [row for start in range(0, 300, page) for row in find_rows(index, query, offset=start, limit=page)]
    assert joined == whole


@given(query=queries)
def test_a_row_is_at_the_position_where_it_is_listed(index, frame, query):
    listed = [row["key"] for row in find_rows(index, query, offset=0, limit=500)]
    for key in frame["key"][::23]:
        assert position_of(index, query, key) == (listed.index(key) if key in listed else None)


@given(query=queries)
def test_a_histogram_counts_each_row_once_and_ignores_its_own_condition(index, frame, query):
    for column in (one for one in index.columns if one.name in (*NUMBERS, "status", "mask_of")):
        counts = histogram(index, query, column)
        others = query.model_copy(
            update={
                "ranges": tuple(one for one in query.ranges if one.column != column.name),
                "choices": tuple(one for one in query.choices if one.column != column.name),
            }
        )
        rows = matching(frame, others)
        assert counts["without"] == int(rows[column.name].isna().sum())
        shown = (
            counts["counts"] if column.kind != "word" else [rows for _, rows in counts["words"]] + [counts["others"]]
        )
        assert sum(shown) + counts["without"] == len(rows)


def test_bins_are_those_of_numpy(index, frame):
    column = next(column for column in index.columns if column.name == "entropy")
    values = frame["entropy"].dropna().to_numpy(np.float64)
    expected, _ = np.histogram(values, bins=BINS, range=(0, 1))
    assert np.abs(np.array(histogram(index, Query(), column)["counts"]) - expected).sum() <= 2  # a value on an edge


@pytest.mark.parametrize("name", ["nothing", 'key"; DROP TABLE rows; --', "id", "mask"])
def test_a_column_that_the_index_does_not_show_is_refused_by_name(index, name):
    for query in (
        Query(sort=name),
        Query(ranges=(Range(column=name, low=0),)),
        Query(choices=(OneOf(column=name, values=("x",)),)),
    ):
        with pytest.raises(ValueError, match="no column"):
            find_rows(index, query, offset=0, limit=1)
    assert index.counts()[0] == 300


@given(text=st.text(max_size=50))
def test_no_text_breaks_out_of_a_statement(index, frame, text):
    expected = frame["key"].str.lower().str.contains(text.lower(), regex=False).sum()
    found = count_rows(index, Query(text=text))
    assert found <= 300
    if text.isascii() and "\0" not in text:
        assert found == expected
    assert index.counts()[0] == 300


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(ValidationError):
        Query.model_validate({"limit": 10})
    with pytest.raises(ValidationError):
        Query.model_validate({"ranges": [{"column": "entropy", "low": "NaN"}]})


@pytest.mark.parametrize(
    "query",
    [Query(ranges=(Range(column="status", low=1),)), Query(choices=(OneOf(column="entropy", values=("x",)),))],
)
def test_a_condition_that_a_column_cannot_have_is_refused_in_words(index, query):
    with pytest.raises(ValueError, match=r"holds (words: a range|numbers: a list) cannot choose"):
        find_rows(index, query, offset=0, limit=1)
