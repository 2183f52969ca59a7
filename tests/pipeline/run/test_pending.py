import random
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.records import rows_from_table
from pipeline.run import parts
from pipeline.run.footers import read_footers
from pipeline.run.pending import pending_shards
from pipeline.source.plan import Plan
from pipeline.source.shard import Member, slice_shard
from pipeline.store.url import Url
from tests.support.committed import commit, mask_row, part, rows_of, tar, watch_reads
from tests.support.examples import examples


def owed(run: Path | str, plan: Plan) -> dict[str, frozenset[str]]:
    url = Url(str(run))
    return {todo.shard.uri: todo.skip for todo in pending_shards(url, plan, read_footers(url))}


@examples(30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_whatever_was_committed_exactly_the_rest_is_owed(sizes: list[int], rng: random.Random) -> None:
    run = f"memory://{uuid.uuid4().hex}"
    shards = [tar(f"t{index}") for index in range(len(sizes))]
    rows = [row for shard, size in zip(shards, sizes, strict=True) for row in rows_of(shard, size)]
    done = rng.sample(rows, rng.randint(0, len(rows)))
    while done:
        count = rng.randint(1, len(done))
        commit(run, done[:count])
        done = done[count:]
    committed = {row.key for name in parts.list_parts(Url(run)) for row in rows_from_table(part(run, name))}
    left = owed(run, Plan(shards))
    for shard, size in zip(shards, sizes, strict=True):
        keys = {f"{shard.uri}#{index}" for index in range(size)}
        assert left.get(shard.uri, keys) == keys & committed
        assert (shard.uri in left) == (not keys <= committed)


def test_keys_of_a_slice_that_is_gone_are_found_again_by_name(tmp_path: Path) -> None:
    files = [Member(f"{index}.jpg", 1, "e1") for index in range(6)]
    before = slice_shard("root", files[:5])
    commit(tmp_path, [mask_row(file.key, before) for file in files[:5]])
    after = slice_shard("root", files)
    assert owed(tmp_path, Plan([after])) == {after.uri: {file.key for file in files[:5]}}
    assert owed(tmp_path, Plan([slice_shard("root", files[:4])])) == {}


def test_a_file_that_changed_since_its_row_was_committed_is_refused_by_name(tmp_path: Path) -> None:
    before = slice_shard("root", [Member("a.jpg", 1, "e1")])
    commit(tmp_path, [mask_row("a.jpg", before)])
    with pytest.raises(JobError, match=r"'a\.jpg' changed"):
        owed(tmp_path, Plan([slice_shard("root", [Member("a.jpg", 1, "e2")])]))


def test_a_slice_that_grew_under_a_limit_owes_the_keys_that_came_first(tmp_path: Path) -> None:
    """With --limit 3 a slice is its first three files: a committed one that has moved behind them does not count."""
    files = [Member(f"{name}.jpg", 1, "e1") for name in "bcdef"]
    before = slice_shard("root", files)
    commit(tmp_path, [mask_row(file.key, before) for file in files[:3]])
    grown = replace(slice_shard("root", [Member("a.jpg", 1, "e1"), *files]), rows=3, max_rows=3)
    assert owed(tmp_path, Plan([grown])) == {grown.uri: {"b.jpg", "c.jpg"}}
    assert owed(tmp_path, Plan([replace(grown, rows=4, max_rows=4)])) == {grown.uri: {"b.jpg", "c.jpg", "d.jpg"}}


def test_rows_under_the_ids_of_present_and_former_slices_both_count(tmp_path: Path) -> None:
    files = [Member(f"{index}.jpg", 1, "e1") for index in range(6)]
    former, now = slice_shard("root", files[:2]), slice_shard("root", files)
    commit(tmp_path, [mask_row(file.key, former) for file in files[:2]])
    commit(tmp_path, [mask_row(file.key, now) for file in files[2:4]])
    assert owed(tmp_path, Plan([now])) == {now.uri: {file.key for file in files[:4]}}
    commit(tmp_path, [mask_row(file.key, now) for file in files[4:]])
    assert owed(tmp_path, Plan([now])) == {}


def test_a_changed_file_is_refused_with_a_remedy_also_among_unchanged_ones(tmp_path: Path) -> None:
    files = [Member(f"{name}.jpg", 1, "e1") for name in "abc"]
    before = slice_shard("root", files)
    commit(tmp_path, [mask_row(file.key, before) for file in files])
    after = slice_shard("root", [files[0], Member("b.jpg", 1, "e2"), files[2]])
    with pytest.raises(JobError, match=r"'b\.jpg' changed") as refused:
        owed(tmp_path, Plan([after]))
    assert "--output" in refused.value.hint


def test_only_parts_with_rows_of_open_shards_are_read_and_only_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, begun, untouched = tar("done"), tar("begun"), tar("untouched")
    commit(tmp_path, rows_of(done, 3))
    partial = commit(tmp_path, rows_of(begun, 3)[:2])
    read = watch_reads(monkeypatch)
    assert set(owed(tmp_path, Plan([done, begun, untouched]))) == {"begun.tar", "untouched.tar"}
    assert read == {partial: {"key", "shard", "source_etag"}}
    read.clear()
    assert owed(tmp_path, Plan([done, untouched, tar("new")])) == {"untouched.tar": set(), "new.tar": set()}
    assert set(read) == {partial}  # rows of a shard that is no longer planned may have moved
