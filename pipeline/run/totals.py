"""Totals of rows: counts by status, pixels by class, busy seconds, and sums from which means are taken.

Each part has those of its rows in its footer. Totals add up, so those of a run need none of its rows.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import zip_longest
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SUMMED_COLUMNS = ["seconds_read", "seconds_decode", "seconds_infer", "seconds_refine", "seconds_encode"]
AVERAGED_COLUMNS = ["confidence", "entropy", "changed_share"]
COUNTED_COLUMNS = [
    *["status", "error_code", "class_pixels", "nodata_pixels", "refined", "refine_note", "longitude", "preview_image"],
    *SUMMED_COLUMNS,
    *AVERAGED_COLUMNS,
]
"""Columns of `ROW_SCHEMA` that totals are made from."""
REFINED_IN_PART = "refined_in_part"
"""Reason that stands for rows with `refined` and a `refine_note`; no version writes such rows any more."""


@dataclass(slots=True)
class RowTotals:
    """Totals of some rows. `ok` rows alone count, but in `rows`, `error_codes` and `seconds`."""

    rows: int = 0
    ok: int = 0
    error_codes: dict[str, int] = field(default_factory=dict)
    """Failed rows by error code."""
    class_pixels: list[int] = field(default_factory=list)
    """Pixels by class id; empty without a row that has them."""
    nodata_pixels: int = 0
    empty: int = 0
    """Windows of rasters without data, which have no mask."""
    refined: int = 0
    """Rows whose whole mask a refiner produced."""
    refine_notes: dict[str, int] = field(default_factory=dict)
    """Rows that are not refined although a refiner was configured, by reason, or that are `refined_in_part`."""
    positions: int = 0
    """Rows with the position of their photo."""
    previews: int = 0
    """Rows with previews."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Busy seconds by stage."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of `AVERAGED_COLUMNS`, whose rows are `masks`."""

    @property
    def failed(self) -> int:
        """Failed rows."""
        return self.rows - self.ok

    @property
    def masks(self) -> int:
        """Rows with a mask."""
        return self.ok - self.empty

    @property
    def counts(self) -> Self:
        """The whole numbers alone: sums of seconds and means depend on the order of the rows in their last digits."""
        return replace(self, seconds={}, sums={})

    def mean(self, column: str) -> float | None:
        """Mean of one of `AVERAGED_COLUMNS` over the rows with a mask; None without any."""
        return self.sums.get(column, 0.0) / self.masks if self.masks else None

    def __add__(self, other: Self) -> Self:
        return type(self)(**{each.name: _add(getattr(self, each.name), getattr(other, each.name)) for each in _FIELDS})

    def to_json(self) -> str:
        """As JSON, for the footer of a part."""
        return json.dumps({name: value for name, value in asdict(self).items() if value})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Inverse of `to_json`; what another version counts is left out."""
        known = {each.name for each in _FIELDS}
        return cls(**{name: value for name, value in json.loads(text).items() if name in known})


_FIELDS = fields(RowTotals)


def _add(one: Any, other: Any) -> Any:
    """Sum of two numbers, of lists by index, or of dictionaries by key."""
    if isinstance(one, dict):
        return {key: one.get(key, 0) + other.get(key, 0) for key in one | other}
    if isinstance(one, list):
        return [a + b for a, b in zip_longest(one, other, fillvalue=0)]
    return one + other


def add_up(totals: Iterable[RowTotals]) -> RowTotals:
    """Sum of any number of totals."""
    return sum(totals, start=RowTotals())


def count_rows(table: pa.Table) -> RowTotals:
    """Totals of a table of `ROW_SCHEMA`, or of `COUNTED_COLUMNS`; columns of later versions may be missing."""
    ok = table.filter(pc.equal(table["status"], "ok"))
    columns = {name: ok[name] for name in ok.column_names}
    totals = RowTotals(rows=len(table), ok=len(ok), error_codes=_occurrences(table["error_code"]))
    totals.refined = pc.sum(pc.and_(pc.fill_null(ok["refined"], False), ok["refine_note"].is_null())).as_py() or 0
    totals.refine_notes = _not_refined(ok)
    totals.positions = _not_null(columns, "longitude")
    totals.previews = _not_null(columns, "preview_image")
    totals.seconds = {name.removeprefix("seconds_"): _sum(table[name]) for name in SUMMED_COLUMNS}
    totals.sums = {name: _sum(ok[name]) for name in AVERAGED_COLUMNS}
    counted = ok["class_pixels"].drop_null()
    if len(counted):
        counts_nk = counted.combine_chunks().flatten().to_numpy().reshape(len(counted), -1)
        totals.class_pixels = counts_nk.sum(axis=0).tolist()
    if "nodata_pixels" in columns:
        totals.nodata_pixels = pc.sum(columns["nodata_pixels"]).as_py() or 0
        totals.empty = _count_empty(ok.filter(pc.greater(ok["nodata_pixels"], 0)))
    return totals


def _occurrences(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(Counter(text for text in column.to_pylist() if text))


def _sum(column: pa.ChunkedArray) -> float:
    return float(pc.sum(column.cast(pa.float64())).as_py() or 0.0)


def _not_null(columns: Mapping[str, pa.ChunkedArray], name: str) -> int:
    column = columns.get(name)
    return 0 if column is None else len(column) - column.null_count


def _count_empty(with_nodata: pa.Table) -> int:
    """Rows without a pixel of any class."""
    return sum(not np.any(counts) for counts in with_nodata["class_pixels"].to_pylist())


def _not_refined(ok: pa.Table) -> dict[str, int]:
    """Rows that are not refined by the name in `refine_note`.

    Versions before the rule "the whole image or nothing" left some images refined in part: `REFINED_IN_PART`.
    """
    noted = zip(ok["refined"].to_pylist(), ok["refine_note"].to_pylist(), strict=True)
    reasons = (REFINED_IN_PART if refined else note.partition(":")[0] for refined, note in noted if note is not None)
    return dict(Counter(reasons))
