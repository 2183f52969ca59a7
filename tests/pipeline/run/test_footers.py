"""Footers of a run: the same whatever part of them lies in index objects, and in whatever state those are."""

import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Row
from pipeline.run import footers, parts
from pipeline.run.footers import Footers
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.committed import commit, rows_of, tar
from tests.support.examples import examples


def committed(run: Path | str, count: int) -> tuple[Url, list[Row]]:
    """A run of `count` parts of one to three rows, of shards that parts share."""
    rng = random.Random(count)
    rows = [row for number in range(count) for row in rows_of(tar(f"t{number}"), 3, failed=number % 2)][: 2 * count]
    at = 0
    for number in range(count):
        end = len(rows) if number == count - 1 else at + rng.randint(1, 2)
        commit(run, rows[at:end], owner=number % 3 or None)
        at = end
    return Url(str(run)), rows


def facts(some: Footers) -> tuple[list[dict[str, object]], object]:
    return sorted(some.table.to_pylist(), key=lambda row: row["name"]), some.totals


def index(url: Url, names: Sequence[str]) -> None:
    """Put an index object of these parts."""
    footers.write_index(url, footers.footers_of([parts.read_part_footer(url, name) for name in names]))


@examples(30)
@given(st.integers(1, 9), st.data())
def test_footers_are_the_same_however_many_lie_in_indexes_also_twice_or_of_parts_that_are_gone(
    count: int, data: st.DataObject
) -> None:
    url, _ = committed(f"memory://{uuid.uuid4().hex}", count)
    names = parts.list_parts(url)
    for group in data.draw(st.lists(st.lists(st.sampled_from(names), unique=True, min_size=1), max_size=3)):
        index(url, group)
    for name in data.draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names) - 1)):
        objects.delete(parts.parts_url(url) / name)
    opened = footers.footers_of([parts.read_part_footer(url, name) for name in parts.list_parts(url)])
    assert facts(footers.read_footers(url)) == facts(opened)
    assert facts(footers.gather_footers(url)) == facts(opened)
    assert facts(footers.read_footers(url)) == facts(opened)


def test_a_gathered_run_is_read_by_its_indexes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footers, "INDEX_PARTS", 8)
    monkeypatch.setattr(footers, "FEW_PARTS", 4)
    url, _ = committed(tmp_path, 21)
    gathered = facts(footers.gather_footers(url))
    assert len(footers.list_indexes(url)) == 3
    monkeypatch.setattr(parts, "read_part_footer", None)
    assert facts(footers.read_footers(url)) == gathered


def test_few_parts_get_no_index_and_one_that_is_out_of_date_is_deleted(tmp_path: Path) -> None:
    url, _ = committed(tmp_path, 6)
    footers.gather_footers(url)
    assert not footers.list_indexes(url)
    names = parts.list_parts(url)
    index(url, names[:3])
    objects.delete(parts.parts_url(url) / names[0])
    assert len(footers.gather_footers(url)) == 5
    assert not footers.list_indexes(url)


def test_a_damaged_index_is_named_and_its_parts_are_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url, _ = committed(tmp_path, 5)
    before = facts(footers.read_footers(url))
    index(url, parts.list_parts(url))
    (name,) = footers.list_indexes(url)
    path = tmp_path / footers.FOLDER / name
    path.write_bytes(path.read_bytes()[:200])
    assert facts(footers.read_footers(url)) == before
    assert name in caplog.text


def test_parts_are_indexed_while_they_are_committed_and_a_part_that_comes_twice_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footers, "INDEX_PARTS", 4)
    url, _ = committed(tmp_path, 9)
    writer = footers.IndexWriter(url)
    first, *others = parts.list_parts(url)
    for name in [first, first, *others]:
        writer.add(parts.read_part_footer(url, name))
    sizes = [len(footers.read_index(url, name)) for name in footers.list_indexes(url)]
    assert sizes == [4, 4]
    assert len(writer.held) == 1


def test_a_run_without_parts_has_no_footers(tmp_path: Path) -> None:
    empty = footers.read_footers(Url(str(tmp_path)))
    assert (len(empty), empty.names, empty.shards().num_rows, empty.totals.rows) == (0, [], 0, 0)
    assert empty.names_holding(["x"]) == []


@pytest.mark.parametrize("count", [1, 5, 12])
def test_shards_have_the_rows_that_were_committed_of_each(tmp_path: Path, count: int) -> None:
    url, rows = committed(tmp_path, count)
    found = {row["id"]: row for row in footers.read_footers(url).shards().to_pylist()}
    expected = Counter(row.shard for row in rows)
    assert {shard: row["rows"] for shard, row in found.items()} == expected
    totals = {row.shard: row.shard_rows for row in rows if row.shard_rows}
    assert {shard: row["shard_rows"] for shard, row in found.items()} == {shard: totals.get(shard) for shard in found}
    owners: defaultdict[str, set[int | None]] = defaultdict(set)
    holders: defaultdict[str, set[str]] = defaultdict(set)
    for part in (parts.read_part_footer(url, name) for name in parts.list_parts(url)):
        for shard in part.shards:
            owners[shard].add(part.owner)
            holders[shard].add(part.name)
    for shard, seen in owners.items():
        assert found[shard]["owners"] == len(seen) + (None in seen)
        assert set(footers.read_footers(url).names_holding([shard])) == holders[shard]


def test_parts_with_failed_rows_are_found_by_name(tmp_path: Path) -> None:
    url, rows = committed(tmp_path, 8)
    failed = {row.key for row in rows if row.status == "failed"}
    expected = {
        name
        for name in parts.list_parts(url)
        if failed & set(parts.read_columns(url, name, ["key"])["key"].to_pylist())
    }
    assert set(footers.read_footers(url).names_with("failed")) == expected
