import itertools
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import rows_from_table
from pipeline.run import duplicates, parts
from pipeline.run.footers import read_footers
from pipeline.source.plan import Plan
from pipeline.source.shard import Member, slice_shard
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.committed import FARM, commit, failed_row, mask_row, part, row_in, rows_of, tar
from tests.support.examples import examples


def remove_duplicates(run: Path | str) -> int:
    """Rows removed from all parts of a run."""
    return duplicates.remove_duplicates(Url(str(run)), parts.list_parts(Url(str(run))))


@examples(30)
@given(st.lists(st.dictionaries(st.integers(0, 5), st.booleans(), min_size=1), min_size=1, max_size=4))
def test_of_rows_of_one_key_the_first_that_is_ok_is_left_and_every_key_keeps_one(drawn: list[dict[int, bool]]) -> None:
    run, shard = f"memory://{uuid.uuid4().hex}", tar("one")
    written: dict[str, dict[str, bool]] = {}
    for number, oks in enumerate(drawn):
        made = {f"one.tar#{key}": ok for key, ok in oks.items()} | {f"one.tar#own{number}": True}
        rows = [mask_row(key, shard) if ok else failed_row(key, shard) for key, ok in made.items()]
        written[commit(run, rows)] = made
    expected: dict[str, tuple[bool, str]] = {}
    for name, made in sorted(written.items()):
        for key, ok in made.items():
            expected[key] = min(expected.get(key, (not ok, name)), (not ok, name))
    before = {key: row_in(run, name, key) for key, (_, name) in expected.items()}
    assert remove_duplicates(run) == sum(map(len, written.values())) - len(expected)
    left = [row for name in parts.list_parts(Url(run)) for row in rows_from_table(part(run, name))]
    assert {row.key: row for row in left} == before
    assert len(left) == len(expected)
    for name in parts.list_parts(Url(run)):
        assert parts.read_classes(Url(run), name) == FARM
    assert remove_duplicates(run) == 0


def test_a_part_without_a_key_left_is_deleted(tmp_path: Path) -> None:
    rows = rows_of(tar("one"), 4)
    names = [commit(tmp_path, rows[:2]), commit(tmp_path, rows[2:])]
    duplicates.rewrite_without(Url(str(tmp_path)), names[0], {row.key for row in rows[:2]})
    assert parts.list_parts(Url(str(tmp_path))) == names[1:]


def test_a_crash_between_the_two_halves_of_a_rewrite_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    shard = tar("one")
    rows = rows_of(shard, 4)
    commit(tmp_path, rows[:3])
    commit(tmp_path, rows[2:])

    def crash(url: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(objects, "delete", crash)
        with pytest.raises(KeyboardInterrupt):
            remove_duplicates(tmp_path)
    remove_duplicates(tmp_path)
    left = [row for name in parts.list_parts(Url(str(tmp_path))) for row in rows_from_table(part(tmp_path, name))]
    assert sorted(row.key for row in left) == sorted(row.key for row in rows)


@pytest.mark.parametrize("start", range(6))
def test_a_crash_is_mended_whichever_part_is_first_by_name(tmp_path: Path, monkeypatch, start: int) -> None:
    shard = tar("one")
    rows = rows_of(shard, 12)[start : start + 6]
    commit(tmp_path, rows[:4])
    commit(tmp_path, rows[2:])
    with monkeypatch.context() as patch:
        patch.setattr(objects, "delete", lambda url: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remove_duplicates(tmp_path)
    assert len(parts.list_parts(Url(str(tmp_path)))) == 3
    remove_duplicates(tmp_path)
    left = [row.key for name in parts.list_parts(Url(str(tmp_path))) for row in rows_from_table(part(tmp_path, name))]
    assert sorted(left) == sorted(row.key for row in rows)


@pytest.mark.parametrize("other", ["ok", "failed"])
def test_what_is_left_of_a_part_may_have_the_keys_of_another_part(tmp_path: Path, other: str) -> None:
    """Parts are named by their keys: of [first, second] is left [second], and another part is just that."""
    shard = tar("one")
    first, second, third = rows_of(shard, 3)
    for keys in itertools.permutations((first, second, third), 2):
        run = tmp_path / f"{keys[0].key}{keys[1].key}"
        names = [commit(run, list(keys))]
        names.append(commit(run, [keys[1] if other == "ok" else failed_row(keys[1].key, shard)]))
        names.append(
            commit(run, [keys[0], *({row.key: row for row in (first, second, third) if row not in keys}.values())])
        )
        remove_duplicates(run)
        left = [row.key for name in parts.list_parts(Url(str(run))) for row in rows_from_table(part(run, name))]
        assert sorted(left) == [first.key, second.key, third.key], names


def suspects(run: Path, plan: Plan) -> set[str]:
    url = Url(str(run))
    ids = duplicates.suspect_shards(url, plan, read_footers(url))
    return {shard.uri for shard in plan.shards if shard.id in ids}


def test_only_shards_of_several_drivers_or_with_too_many_rows_are_suspect(tmp_path: Path) -> None:
    clean, shared, unknown, over = shards = [tar(name) for name in ("clean", "shared", "unknown", "over")]
    commit(tmp_path, rows_of(clean, 4)[:2], owner=1)
    commit(tmp_path, rows_of(clean, 4)[2:], owner=1)
    commit(tmp_path, rows_of(shared, 4)[:2], owner=1)
    commit(tmp_path, rows_of(shared, 4)[2:], owner=2)
    commit(tmp_path, rows_of(unknown, 4))  # by a version whose parts do not name their driver
    commit(tmp_path, [*rows_of(over, 2), mask_row("over.tar#9", over)], owner=1)
    assert suspects(tmp_path, Plan(shards)) == {"shared.tar", "unknown.tar", "over.tar"}


def test_slices_that_took_over_files_of_a_former_slice_are_suspect(tmp_path: Path) -> None:
    files = [Member(f"{index}.jpg", 1, "e1") for index in range(6)]
    former, first, second = (slice_shard("root", some) for some in (files[:4], files[:3], files[4:]))
    commit(tmp_path, [mask_row(file.key, former) for file in files[:4]], owner=1)
    commit(tmp_path, [mask_row(file.key, second) for file in files[4:]], owner=2)
    assert suspects(tmp_path, Plan([first, second])) == {first.uri}


@examples(40)
@given(st.data())
def test_late_writes_of_fenced_drivers_are_all_among_the_suspects(data: st.DataObject) -> None:
    """Drivers commit what they find missing; one that lost the run commits any rows once more. Each key ends once."""
    run, shards = f"memory://{uuid.uuid4().hex}", [tar("a"), tar("b"), tar("c")]
    rows = [row for shard in shards for row in rows_of(shard, 4)]
    done: set[str] = set()
    drivers = data.draw(st.integers(1, 3))
    for owner in range(1, drivers + 1):
        missing = [row for row in rows if row.key not in done]
        now = missing if owner == drivers else missing[: data.draw(st.integers(0, len(missing)))]
        if now:
            commit(run, now, owner=owner)
        done |= {row.key for row in now}
    for owner in range(1, drivers):
        late = data.draw(st.lists(st.sampled_from(rows), unique_by=lambda row: row.key, max_size=3))
        if late:
            commit(run, late, owner=owner)
    footers = read_footers(Url(run))
    names = footers.names_holding(duplicates.suspect_shards(Url(run), Plan(shards), footers))
    duplicates.remove_duplicates(Url(run), names)
    left = [row.key for name in parts.list_parts(Url(run)) for row in rows_from_table(part(run, name))]
    assert sorted(left) == sorted(row.key for row in rows)
