"""Queries of an index: which rows, in which order, and how many have which value.

In: a `Query`, whose columns are checked against those of the run. Out: plain data. Every value reaches the SQL as a
parameter, so that no text of a user or of a key is ever part of a statement.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.view.columns import Column
from pipeline.view.index import RunIndex

BINS = 40
"""Bars of a histogram."""
MOST_WORDS = 50
"""Most values listed of a column of words, those of most rows; the others are counted together."""
MOST_ROWS = 500
"""Most rows of one answer."""
_LAST = 2**62
"""No row is at this place: DuckDB has no larger integers."""
_LARGEST = float(np.finfo(np.float32).max)
"""Largest number of a column; a bound beyond it is taken for it."""

_Name = Annotated[str, Field(max_length=64)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Range(_Frozen):
    """Rows whose value of a column is at least `low` and at most `high`."""

    column: _Name
    low: float | None = None
    high: float | None = None


class OneOf(_Frozen):
    """Rows whose value of a column of words is one of these; null is no value."""

    column: _Name
    values: tuple[str | None, ...] = Field(min_length=1, max_length=100)


class Query(_Frozen):
    """Rows that satisfy every condition, in an order."""

    text: str = Field("", max_length=500)
    """Part of the key, in any case."""
    ranges: tuple[Range, ...] = Field((), max_length=300)
    choices: tuple[OneOf, ...] = Field((), max_length=20)
    sort: _Name = "key"
    descending: bool = False


@dataclass(frozen=True, slots=True)
class _Condition:
    column: str
    """Column that it is about; `key` for the text."""
    sql: str
    values: list[Any]


def count_rows(index: RunIndex, query: Query) -> int:
    """Number of rows that satisfy a query."""
    where, values = _where(_conditions(index, query))
    return int(index.fetch(f"SELECT count(*) FROM shown{where}", values)[0][0])


def find_rows(index: RunIndex, query: Query, *, offset: int, limit: int) -> list[dict[str, Any]]:
    """Rows of a query from `offset` on, at most `limit`, each with all columns of the index.

    Rows without a value of the sorting column come last in both directions; equal ones are in the order of their keys.
    """
    where, values = _where(_conditions(index, query))
    names = ["id", "key", "shard", "height", "width", *(column.name for column in index.columns)]
    sort = _sorting(index, query)
    direction = "DESC" if query.descending else "ASC"
    sql = (
        f"SELECT {', '.join(names)} FROM shown{where} ORDER BY {sort} {direction} NULLS LAST, key, id LIMIT ? OFFSET ?"
    )
    found = index.fetch(sql, [*values, min(limit, MOST_ROWS), min(offset, _LAST)])
    return [dict(zip(names, row, strict=True)) for row in found]


def position_of(index: RunIndex, query: Query, key: str) -> int | None:
    """Place of a row in the order of `find_rows`, from 0; None where the query leaves it out, or there is none."""
    where, values = _where(_conditions(index, query))
    sort, later = _sorting(index, query), "<" if query.descending else ">"
    here = f"SELECT {sort} AS here_value, key AS here_key, id AS here_id FROM shown"
    earlier = (
        f"{sort} IS NOT NULL AND (here_value IS NULL OR here_value {later} {sort})"
        f" OR {sort} IS NOT DISTINCT FROM here_value AND (key, id) < (here_key, here_id)"
    )
    sql = (
        f"WITH here AS ({here}{where}{' AND' if where else ' WHERE'} key = ? ORDER BY id LIMIT 1)"
        f" SELECT any_value(here_id), count(*) FILTER ({earlier}) FROM shown, here{where}"
    )
    ((found, position),) = index.fetch(sql, [*values, key, *values])
    return None if found is None else position


def select_matching(index: RunIndex, query: Query, expressions: str, condition: str = "true") -> list[tuple[Any, ...]]:
    """Result of SQL expressions over the rows of a query that satisfy an SQL condition too; neither is ever input."""
    where, values = _where([*_conditions(index, query), _Condition("", condition, [])])
    return index.fetch(f"SELECT {expressions} FROM shown{where}", values)


def histogram(index: RunIndex, query: Query, column: Column) -> dict[str, Any]:
    """Rows by the value of one column, under all conditions of a query but those on this column.

    Returns:
        for numbers `low`, `high`, and `counts` of `BINS` bins between; for words `words` with a count each. Both with
        `without`, the number of rows that have no value.
    """
    kept = [condition for condition in _conditions(index, query) if condition.column != column.name]
    return _words(index, column, kept) if column.kind == "word" else _bins(index, column, kept)


def _bins(index: RunIndex, column: Column, kept: list[_Condition]) -> dict[str, Any]:
    name = _quoted(index, column.name)
    low, high = (0.0, 1.0) if column.kind == "share" else _extent(index, name)
    where, values = _where(kept)
    bin_of = f"CASE WHEN {name} IS NOT NULL THEN least(greatest(floor(({name} - ?) / ?), 0), {BINS - 1})::INTEGER END"
    sql = f"SELECT {bin_of} AS bin, count(*) FROM shown{where} GROUP BY bin"
    found = dict(index.fetch(sql, [low, (high - low) / BINS or 1.0, *values]))
    return {
        "low": low,
        "high": high,
        "counts": [found.get(bin_, 0) for bin_ in range(BINS)],
        "without": found.get(None, 0),
    }


def _extent(index: RunIndex, name: str) -> tuple[float, float]:
    """Smallest and largest value of a column over all rows; (0, 1) without any."""
    ((low, high),) = index.fetch(f"SELECT min({name}), max({name}) FROM shown")
    return (0.0, 1.0) if low is None else (low, high)


def _words(index: RunIndex, column: Column, kept: list[_Condition]) -> dict[str, Any]:
    name = _quoted(index, column.name)
    where, values = _where(kept)
    sql = f"SELECT {name}, count(*) AS n FROM shown{where} GROUP BY 1 ORDER BY n DESC, 1"
    found = index.fetch(sql, values)
    words = [(word, count) for word, count in found if word is not None]
    return {
        "words": words[:MOST_WORDS],
        "others": sum(count for _, count in words[MOST_WORDS:]),
        "without": sum(count for word, count in found if word is None),
    }


# ---------------------------------------------------------------- SQL


def _conditions(index: RunIndex, query: Query) -> list[_Condition]:
    return [*_of_text(query.text), *_of_ranges(index, query.ranges), *_of_choices(index, query.choices)]


def _of_text(text: str) -> Iterable[_Condition]:
    if text:
        yield _Condition("key", "contains(lower(key), lower(?))", [text])


def _of_ranges(index: RunIndex, ranges: Sequence[Range]) -> Iterable[_Condition]:
    for one in ranges:
        name = _quoted(index, one.column, of_words=False)
        for bound, sign in ((one.low, ">="), (one.high, "<=")):
            if bound is not None:
                yield _Condition(one.column, f"{name} {sign} ?::FLOAT", [min(max(bound, -_LARGEST), _LARGEST)])


def _of_choices(index: RunIndex, choices: Sequence[OneOf]) -> Iterable[_Condition]:
    for one in choices:
        name, words = _quoted(index, one.column, of_words=True), [value for value in one.values if value is not None]
        tests = [f"{name} IN ({', '.join('?' * len(words))})"] if words else []
        tests += [f"{name} IS NULL"] if None in one.values else []
        yield _Condition(one.column, f"({' OR '.join(tests)})", words)


def _where(conditions: Sequence[_Condition]) -> tuple[str, list[Any]]:
    if not conditions:
        return "", []
    return (
        " WHERE " + " AND ".join(condition.sql for condition in conditions),
        [value for condition in conditions for value in condition.values],
    )


def _sorting(index: RunIndex, query: Query) -> str:
    return '"key"' if query.sort == "key" else _quoted(index, query.sort)


def _quoted(index: RunIndex, name: str, *, of_words: bool | None = None) -> str:
    """Name of a column in SQL.

    Raises:
        ValueError: the index does not have it; or, where `of_words` is given, it holds numbers and not words, or words
            and not numbers.
    """
    kinds = {column.name: column.kind == "word" for column in index.columns}
    if name not in kinds:
        raise ValueError(f"no column {name!r}; columns: {', '.join(kinds)}")
    if of_words is not None and kinds[name] != of_words:
        chosen = "a range" if kinds[name] else "a list"
        raise ValueError(f"column {name!r} holds {'words' if kinds[name] else 'numbers'}: {chosen} cannot choose them")
    return f'"{name}"'
