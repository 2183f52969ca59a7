import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.store.url import Url
from pipeline.view.pairs import check_comparable, class_changes, pair_rows
from pipeline.view.query import Query, Range, find_rows
from tests.support.committed import FARM, commit, failed_row, mask_row, tar
from tests.support.viewed_runs import committed_mask, open_index


@pytest.fixture
def pair(viewed):
    first, second = open_index(viewed.url), open_index(viewed.other)
    pair_rows(first, second)
    return first


def shares(mask):
    return np.bincount(mask.ravel(), minlength=len(FARM)) / mask.size


def test_shares_moved_is_half_the_distance_of_the_two_masks_class_shares(viewed, pair):
    for row in find_rows(pair, Query(), offset=0, limit=500):
        if row["status"] == "ok":
            before, after = (committed_mask(url, row["key"]) for url in (viewed.url, viewed.other))
            assert row["shift"] == pytest.approx(np.abs(shares(before) - shares(after)).sum() / 2, abs=1e-6)
            assert row["shift"] <= (before != after).mean() + 1e-6  # never more than the pixels that changed


def test_a_run_beside_itself_has_not_moved(viewed):
    index = open_index(viewed.url)
    pair_rows(index, open_index(viewed.url))
    assert {row["shift"] for row in find_rows(index, Query(), offset=0, limit=500)} == {0.0, None}


def test_moved_shares_sort_and_filter_like_any_column(pair):
    query = Query(sort="shift", descending=True, ranges=(Range(column="shift", low=0.01),))
    moved = [row["shift"] for row in find_rows(pair, query, offset=0, limit=500)]
    assert moved == sorted(moved, reverse=True)
    assert min(moved) >= 0.01


def test_class_changes_are_the_sums_over_both_masks(viewed, pair):
    keys = [row["key"] for row in find_rows(pair, Query(), offset=0, limit=500) if row["status"] == "ok"]
    for side, url in (("before", viewed.url), ("after", viewed.other)):
        pixels = sum(np.bincount(committed_mask(url, key).ravel(), minlength=len(FARM)) for key in keys)
        assert [change[side] for change in class_changes(pair, Query())] == pytest.approx(pixels / 1e6, rel=1e-4)


def test_class_changes_count_rows_that_were_stored_without_their_pixels_without_data(tmp_path):
    commit(tmp_path / "run", [mask_row(key, tar("a")) for key in "abc"])
    first, second = (open_index(Url(str(tmp_path / "run"))) for _ in range(2))
    pair_rows(first, second)
    assert first.fetch("SELECT count(nodata_share) FROM rows") == [(0,)]
    assert sum(change["before"] for change in class_changes(first, Query())) == pytest.approx(3 * 6 * 5 / 1e6)


def test_rows_that_the_other_run_lacks_or_failed_say_so(tmp_path):
    shard = tar("a")
    commit(tmp_path / "first", [mask_row(key, shard) for key in "abc"])
    commit(tmp_path / "second", [mask_row("a", shard), failed_row("b", shard)])
    first, second = (open_index(Url(str(tmp_path / name))) for name in ("first", "second"))
    pair_rows(first, second)
    rows = find_rows(first, Query(), offset=0, limit=10)
    assert [(row["other_status"], row["shift"]) for row in rows] == [
        ("ok", 0.0),
        ("failed", None),
        ("no such row", None),
    ]


def test_runs_of_other_classes_are_refused_by_name(viewed):
    first, second = open_index(viewed.url), open_index(viewed.other)
    renamed = FARM.classes[0].model_copy(update={"name": "desert"})
    second.classes = FARM.model_copy(update={"classes": (renamed, *FARM.classes[1:])})
    with pytest.raises(ConfigError, match=r"bare_soil / desert"):
        check_comparable(first, second)
