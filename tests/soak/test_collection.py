from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.soak.collection import DAMAGED_EVERY, crashed_keys, differences, write_images

ROWS = pd.DataFrame(
    {
        "key": ["a", "b", "c"],
        "status": ["ok", "ok", "failed"],
        "error_code": [None, None, "truncated"],
        "mask": [b"1", b"2", None],
        "class_pixels": [np.array([3, 1]), np.array([0, 4]), None],
        "confidence": [0.5, 0.25, np.nan],
        "shard": ["s", "s", "s"],
    }
)


def changed(key: str, column: str, value: object) -> pd.DataFrame:
    """`ROWS` with one other value."""
    rows = ROWS.copy()
    rows.at[rows.index[rows["key"] == key][0], column] = value
    return rows


def test_the_same_rows_in_another_order_differ_in_nothing() -> None:
    assert list(differences(ROWS.iloc[::-1], ROWS)) == []


def test_a_lost_row_is_named() -> None:
    assert list(differences(ROWS.iloc[1:], ROWS)) == ["1 row(s) lost, first a"]


def test_a_row_that_is_there_twice_is_named() -> None:
    assert list(differences(pd.concat([ROWS, ROWS.iloc[1:2]]), ROWS)) == ["1 row(s) more than once, first b"]


def test_a_row_of_no_image_is_named() -> None:
    assert list(differences(ROWS, ROWS.iloc[:2])) == ["1 row(s) of no image, first c"]


@pytest.mark.parametrize(
    ("column", "value"), [("mask", b"3"), ("class_pixels", np.array([2, 2])), ("confidence", np.nan)]
)
def test_another_value_is_named_with_its_column(column: str, value: object) -> None:
    assert list(differences(changed("a", column, value), ROWS)) == [f"1 row(s) with another {column}, first a"]


def test_where_the_source_is_makes_no_difference() -> None:
    assert list(differences(changed("a", "shard", "t"), ROWS)) == []


def test_a_forgiven_key_may_differ_but_not_be_lost() -> None:
    rows = changed("a", "error_code", "crashed")
    assert crashed_keys(rows) == ["a"]
    assert list(differences(rows, ROWS, forgiven=["a"])) == []
    assert list(differences(rows.iloc[1:], ROWS, forgiven=["a"])) == ["1 row(s) lost, first a"]


def test_some_images_are_damaged_each_in_its_way(tmp_path: Path) -> None:
    count = 3 * DAMAGED_EVERY
    for folder in ("whole", "again"):
        write_images(tmp_path / folder, count, size_px=16, seed=1)
    files = [path.read_bytes() for path in sorted((tmp_path / "whole/images").iterdir())]
    assert sum(not jpeg.endswith(b"\xff\xd9") for jpeg in files) == 3
    assert b"" in files
    assert b"no image" in files
    assert files == [path.read_bytes() for path in sorted((tmp_path / "again/images").iterdir())]
