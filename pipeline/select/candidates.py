"""Candidates of a choice: rows of a run with the statistics that it needs, read part by part from light columns.

Rows that cannot be chosen are counted by reason, none is dropped in silence. Masks are not read: a row costs about 100
bytes of memory while its part is in hand.
"""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import Float64, Int64, UInt64
from pipeline.run import parts
from pipeline.store.url import Url

COLUMNS = ["key", "status", "error_code", "entropy", "changed_share", "refined", "class_pixels", "brightness"]
"""Columns that are read of each part; those that an older version did not write are null."""
EXCLUDED, NO_STATISTICS = "excluded", "no_statistics"
"""Reasons for which a row that is `ok` is no candidate: its key is in `--exclude`; it has no entropy, or no pixel of
any class, such as a mask that another program made or a window without data."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Some rows, as columns of one length N."""

    keys: npt.NDArray[Any]
    """(N,) str."""
    draws: UInt64
    """(N,) hash of seed and key: the order in which a sample is drawn, and in which ties are resolved."""
    entropy: Float64
    """(N,) as in the row, 0 to 1."""
    changed: Float64
    """(N,) `changed_share` of the row, 0 to 1; NaN where no refiner made the mask."""
    brightness: Float64
    """(N,) mean luma, 0 to 255; NaN where unknown."""
    pixels_nk: Int64
    """(N, K) pixels of each class, more than 0 in sum."""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: npt.NDArray[Any]) -> "Candidates":
        """The rows of an index or a condition."""
        columns = (self.keys, self.draws, self.entropy, self.changed, self.brightness, self.pixels_nk)
        return Candidates(*(column[rows] for column in columns))


def join(some: Sequence[Candidates]) -> Candidates:
    """Rows of several groups of candidates, in their order."""
    names = ("keys", "draws", "entropy", "changed", "brightness", "pixels_nk")
    return Candidates(*(np.concatenate([getattr(one, name) for one in some]) for name in names))


@dataclass(slots=True)
class Census:
    """Counts of all rows that were read."""

    rows: int = 0
    candidates: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Failed rows by error code."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that are `ok` and no candidates, by reason."""


def read_candidates(
    run_url: Url, names: Sequence[str], classes: int, *, seed: int, exclude: Set[str], census: Census
) -> Iterator[Candidates]:
    """Candidates of the parts `names` of a run with `classes` classes, part by part; `census` counts every row.

    Raises:
        StorageError: a part is damaged, or gone.
    """
    for table in parts.read_tables(run_url, names, COLUMNS):
        yield candidates_of(table, classes, seed=seed, exclude=exclude, census=census)


def candidates_of(table: pa.Table, classes: int, *, seed: int, exclude: Set[str], census: Census) -> Candidates:
    """Candidates of a table of some of `COLUMNS`; `census` counts every row."""
    census.rows += len(table)
    ok = pc.equal(table["status"], "ok")
    census.failed.update(table.filter(pc.invert(ok))["error_code"].to_pylist() if len(table) else [])
    table = table.filter(ok)
    keys = table["key"].to_numpy()
    wanted = np.fromiter((key not in exclude for key in keys), bool, len(keys)) if exclude else np.ones(len(keys), bool)
    entropy, pixels_nk = _floats(table, "entropy"), _pixels(table, classes)
    known = np.isfinite(entropy) & (pixels_nk.sum(axis=1) > 0)
    census.left_out.update({EXCLUDED: int((~wanted).sum()), NO_STATISTICS: int((wanted & ~known).sum())})
    refined = _floats(table, "refined") == 1
    every = Candidates(
        keys=keys,
        draws=draws_of(keys, seed),
        entropy=entropy,
        changed=np.where(refined, _floats(table, "changed_share"), np.nan),
        brightness=_floats(table, "brightness"),
        pixels_nk=pixels_nk,
    )
    chosen = every.take(wanted & known)
    census.candidates += len(chosen)
    return chosen


def draws_of(keys: npt.NDArray[Any], seed: int) -> UInt64:
    """(N,) 64-bit hash of each key, another one for each seed; the same on every machine."""
    hashed = pd.util.hash_array(keys.astype(object), hash_key=f"{seed % 2**64:016x}", categorize=False)
    return np.asarray(hashed, np.uint64)


def _floats(table: pa.Table, name: str) -> Float64:
    """(N,) values of a column, NaN for null."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), np.float64)


def _pixels(table: pa.Table, classes: int) -> Int64:
    """(N, K) pixels of each class; all 0 where the row has none, or those of another number of classes."""
    pixels_nk = np.zeros((len(table), classes), np.int64)
    if "class_pixels" in table.column_names:
        lists = table["class_pixels"].combine_chunks()
        whole = pc.fill_null(pc.equal(pc.list_value_length(lists), classes), fill_value=False)
        rows = whole.to_numpy(zero_copy_only=False)
        pixels_nk[rows] = pc.list_flatten(lists.filter(whole)).to_numpy().reshape(-1, classes)
    return pixels_nk
