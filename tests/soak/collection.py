"""Images of a soak, the rows that an undisturbed run makes of them, and what a disturbed run did otherwise."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.datasets import farmland
from pipeline.store.url import Url

DAMAGED_EVERY = 25
"""Of so many images one is damaged: cut in half, empty, or no image."""
OF_PLACE = ["shard", "shard_rows", "source_etag", "config_fp"]
"""Columns that follow from where the source is, or from the order in which drivers read it."""


@dataclass(frozen=True)
class Images:
    """Images in a folder, and their rows."""

    folder: Path
    rows: pd.DataFrame
    """Rows of a run of one node to which nothing happened, by key."""


def write_images(folder: Path, count: int, *, size_px: int, seed: int) -> None:
    """Write generated farmland into a folder, and damage one image in `DAMAGED_EVERY`."""
    farmland.write_folder(Url(str(folder)), count, size_px=size_px, seed=seed)
    for number, path in enumerate(sorted((folder / "images").iterdir())[DAMAGED_EVERY // 2 :: DAMAGED_EVERY]):
        jpeg = path.read_bytes()
        path.write_bytes((jpeg[: len(jpeg) // 2], b"", b"no image")[number % 3])


def crashed_keys(rows: pd.DataFrame) -> list[str]:
    """Keys that are recorded as the cause of their workers' deaths."""
    return rows.loc[rows["error_code"].isin(["crashed", "refine_crashed"]), "key"].tolist()


def differences(rows: pd.DataFrame, expected: pd.DataFrame, *, forgiven: Collection[str] = ()) -> Iterator[str]:
    """What rows have otherwise than expected, as text.

    Args:
        rows, expected: rows of `drivers.rows_in`.
        forgiven: keys whose row may differ; it must be there, once.
    """
    counts = rows["key"].value_counts()
    yield from _named("lost", sorted(set(expected["key"]) - set(counts.index)))
    yield from _named("more than once", sorted(counts.index[counts > 1]))
    yield from _named("of no image", sorted(set(counts.index) - set(expected["key"])))
    both = expected.merge(rows.drop_duplicates("key"), on="key", suffixes=("", " here"))
    for column in expected.columns.difference(["key", *OF_PLACE]):
        pairs = zip(both["key"], both[column], both[f"{column} here"], strict=True)
        other = [key for key, left, right in pairs if key not in forgiven and _plain(left) != _plain(right)]
        yield from _named(f"with another {column}", other)


def _named(what: str, keys: list[str]) -> Iterator[str]:
    if keys:
        yield f"{len(keys)} row(s) {what}, first {keys[0]}"


def _plain(value: Any) -> Any:
    """A value that compares by `==`: arrays as lists, one None for all that is missing."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if pd.isna(value) else value
