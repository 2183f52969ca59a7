import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import JobError
from pipeline.records import rows_from_table
from pipeline.run import manifest, parts, verify
from pipeline.run.footers import footers_of, read_footers, write_index
from pipeline.run.pending import pending_shards
from pipeline.source.plan import Plan
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.committed import FARM, commit, failed_row, mask_row, part, row_in, rows_of, tar, watch_reads


def close(run: Path | str, plan: Plan, on_duplicate: str = "fail") -> manifest.Manifest:
    done, _ = manifest.close_run(Url(str(run)), plan, FARM, fingerprint="f" * 64, on_duplicate=on_duplicate)
    manifest.mark_finished(Url(str(run)))
    return done


# ---------------------------------------------------------------- closing


def test_a_closed_run_adds_up(tmp_path: Path) -> None:
    one, two = tar("one"), tar("two")
    commit(tmp_path, rows_of(one, 5, failed=2) + rows_of(two, 2))
    commit(tmp_path, rows_of(two, 4)[2:])
    done = close(tmp_path, Plan([one, two]))
    assert (done.shards, done.rows, done.ok, done.failed) == (2, 9, 7, 2)
    assert done.error_codes == {"truncated": 2}
    assert sum(done.class_pixels) == 7 * 30
    assert done.confidence == pytest.approx(0.5)
    assert manifest.read_manifest(Url(str(tmp_path))) == done
    assert not list(verify.run_problems(Url(str(tmp_path))))


def test_images_that_are_not_refined_are_counted_by_reason_also_those_that_older_versions_refined_in_part(
    tmp_path: Path,
) -> None:
    rows = rows_of(tar("one"), 6, failed=1)
    notes = [(False, "refine_timeout: 60 s passed"), (False, "refine_timeout: 90 s passed"), (False, None)]
    rows[1:4] = [
        replace(row, refined=refined, refine_note=note) for row, (refined, note) in zip(rows[1:4], notes, strict=True)
    ]
    commit(tmp_path, rows[:4])
    commit(tmp_path, [replace(rows[4], refine_note="refine_timeout: 60 s passed after 3 of 9 iterations"), rows[5]])
    done = close(tmp_path, Plan([tar("one")]))
    assert done.refined == 1
    assert done.refine_notes == {"refine_timeout": 2, "refined_in_part": 1}


def test_a_closed_run_has_no_temporary_files_of_writers_that_were_killed(tmp_path: Path) -> None:
    commit(tmp_path, rows_of(tar("one"), 3))
    left = [tmp_path / "parts/.tmp-0123", tmp_path / "_run/.tmp-4567"]
    left[1].parent.mkdir(exist_ok=True)
    for path in left:
        path.write_bytes(b"half")
    close(tmp_path, Plan([tar("one")]))
    assert not any(path.exists() for path in left)
    assert not list(verify.run_problems(Url(str(tmp_path))))


@pytest.mark.parametrize("seed", range(5))
def test_the_manifest_does_not_depend_on_how_rows_fell_into_parts(tmp_path: Path, seed: int) -> None:
    shards = [tar("one"), tar("two")]
    rows = [row for shard in shards for row in rows_of(shard, 7, failed=1)]
    rng = random.Random(seed)
    rng.shuffle(rows)
    cuts = sorted(rng.sample(range(1, 14), 3))
    for first, last in zip([0, *cuts], [*cuts, 14], strict=True):
        commit(tmp_path / "a", rows[first:last])
    commit(tmp_path / "b", rows)
    a, b = close(tmp_path / "a", Plan(shards)), close(tmp_path / "b", Plan(shards))
    a.parts = b.parts = []
    assert a.changed_share == pytest.approx(b.changed_share, rel=1e-12)
    assert replace(a, changed_share=0) == replace(b, changed_share=0)


def test_a_run_with_missing_rows_is_not_closed(tmp_path: Path) -> None:
    shard = tar("one")
    commit(tmp_path, rows_of(shard, 5)[:3])
    with pytest.raises(JobError, match=r"1 of 1 shards are not complete, first one.tar"):
        close(tmp_path, Plan([shard]))
    assert manifest.read_manifest(Url(str(tmp_path))) is None


def test_what_is_missing_says_how_to_continue(tmp_path: Path) -> None:
    shards = [tar("a"), tar("b"), tar("c")]
    commit(tmp_path, rows_of(shards[0], 2))
    with pytest.raises(JobError, match=r"2 of 3 shards are not complete, first b\.tar") as refused:
        close(tmp_path, Plan(shards))
    assert "run the same command again" in refused.value.hint


def test_a_finished_run_is_known_by_its_files_and_one_reopened_is_not(tmp_path: Path) -> None:
    run = Url(str(tmp_path))
    commit(tmp_path, rows_of(tar("one"), 2))
    manifest.close_run(run, Plan([tar("one")]), FARM, fingerprint="0123456789abcdef", on_duplicate="fail")
    assert manifest.read_manifest(run) is None  # until it is marked as finished
    manifest.mark_finished(run)
    assert {path.name for path in tmp_path.iterdir()} == {"parts", "_manifest.json", "_SUCCESS"}
    assert (tmp_path / "_SUCCESS").read_bytes() == b""
    done = manifest.read_manifest(run)
    assert done.run == "0123456789ab"
    assert done.classes == list(FARM.names)
    assert done.parts == parts.list_parts(run)
    manifest.reopen_run(run)
    assert {path.name for path in tmp_path.iterdir()} == {"parts"}
    assert manifest.read_manifest(run) is None


def test_a_run_is_unfinished_before_its_manifest_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deleted = []
    monkeypatch.setattr(objects, "delete", deleted.append)
    manifest.reopen_run(Url(str(tmp_path)))
    names = [str(url).rpartition("/")[2] for url in deleted]
    assert names == ["_SUCCESS", "_manifest.json", "manifest.json", "_points.parquet"]


def test_closing_a_run_of_one_driver_reads_footers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        commit(tmp_path, rows_of(tar(name), 3, failed=1), owner=1)
    read = watch_reads(monkeypatch)
    assert close(tmp_path, Plan([tar("one"), tar("two")])).rows == 6
    assert not read


def test_an_empty_plan_is_closed_with_nothing(tmp_path: Path) -> None:
    done = close(tmp_path, Plan([]))
    assert (done.rows, done.failed_fraction, done.confidence) == (0, 0.0, None)


def test_rows_that_a_fenced_driver_wrote_late_are_removed_and_ok_is_kept(tmp_path: Path) -> None:
    shard = tar("one")
    rows = rows_of(shard, 6)
    commit(tmp_path, rows[:4])
    commit(tmp_path, [failed_row(rows[2].key, shard), rows[3], rows[4], rows[5]])
    done = close(tmp_path, Plan([shard]))
    assert (done.rows, done.ok, done.duplicates_removed) == (6, 6, 2)
    keys = Counter(row.key for name in done.parts for row in rows_from_table(part(tmp_path, name)))
    assert set(keys.values()) == {1}


def test_a_key_met_twice_in_the_source_refuses_success_by_name(tmp_path: Path) -> None:
    shard = tar("one")
    commit(tmp_path, [*rows_of(shard, 3)[:2], failed_row("one.tar#0~2", shard, "duplicate_key", shard_rows=3)])
    with pytest.raises(JobError, match=r"one\.tar#0~2 is bad"):
        close(tmp_path, Plan([shard]))
    assert manifest.read_manifest(Url(str(tmp_path))) is None


def test_keys_met_twice_are_counted_with_a_remedy_and_kept_on_request(tmp_path: Path) -> None:
    shard = tar("one")
    twice = [failed_row(f"one.tar#{index}~2", shard, "duplicate_key") for index in (1, 0)]
    other = failed_row("one.tar#a", shard, "corrupt", shard_rows=5)
    commit(tmp_path, [*rows_of(shard, 3)[:2], *twice, other])
    with pytest.raises(JobError, match=r"2 key\(s\) occur twice in the source, first: one\.tar#0~2 is bad") as refused:
        close(tmp_path, Plan([shard]))
    assert "--read.on-duplicate suffix" in refused.value.hint
    assert close(tmp_path, Plan([shard]), on_duplicate="suffix").error_codes == {"duplicate_key": 2, "corrupt": 1}


# ---------------------------------------------------------------- reading rows again


def test_failures_are_read_from_all_parts_by_key_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tar("one"), tar("two")
    first, *rest = rows_of(one, 3, failed=2)
    commit(tmp_path, [*rows_of(two, 3, failed=1), first])  # neither part comes whole before the other
    commit(tmp_path, [*rest, failed_row("one.tar#9", one, "corrupt")])
    url, read = Url(str(tmp_path)), watch_reads(monkeypatch)
    assert manifest.read_failures(url, read_footers(url)) == [
        ("one.tar#0", "truncated", "one.tar#0 is bad"),
        ("one.tar#1", "truncated", "one.tar#1 is bad"),
        ("one.tar#9", "corrupt", "one.tar#9 is bad"),
        ("two.tar#0", "truncated", "two.tar#0 is bad"),
    ]
    assert all("mask" not in columns for columns in read.values())


def test_examples_of_failures_are_a_few_of_each_code_and_intact_parts_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = tar("one"), tar("two"), tar("three")
    intact = commit(tmp_path, rows_of(one, 3))
    commit(tmp_path, rows_of(two, 9, failed=9))
    commit(tmp_path, [failed_row("three.tar#0", three, "corrupt", shard_rows=1)])
    url, read = Url(str(tmp_path)), watch_reads(monkeypatch)
    examples_of = Counter(code for _, code, _ in manifest.example_failures(url, read_footers(url), each=3))
    assert examples_of == {"truncated": 3, "corrupt": 1}
    assert intact not in read


def test_previews_are_up_to_a_limit_and_by_key_and_parts_without_any_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [replace(row, preview_image=row.key.encode()) for row in rows_of(tar("one"), 4)]
    commit(tmp_path, rows_of(tar("two"), 3))
    with_some = {
        commit(tmp_path, [shown[3], shown[1], *rows_of(tar("three"), 2)]),
        commit(tmp_path, [shown[2], shown[0]]),
    }
    url, read, read_batches = Url(str(tmp_path)), set(), parts.read_batches
    monkeypatch.setattr(
        parts, "read_batches", lambda url, name, *args, **rows: read.add(name) or read_batches(url, name, *args, **rows)
    )
    for limit, count in ((1, 1), (3, 3), (4, 4), (9, 4)):
        rows = manifest.read_previews(url, read_footers(url), limit=limit)
        assert len(rows) == count
        assert [row.key for row in rows] == sorted(row.key for row in rows)
        assert all(row.preview_image == row.key.encode() for row in rows)
    assert read == with_some


def test_a_row_is_left_where_another_part_has_its_key_failed(tmp_path: Path) -> None:
    """Two drivers wrote "one.tar#0", one of them a failure; of the other's part is left just that key."""
    shard = tar("one")
    good, failed = mask_row("one.tar#0", shard), failed_row("one.tar#0", shard)
    names = {commit(tmp_path, [good, failed_row("one.tar#1", shard)]), commit(tmp_path, [failed])}
    write_index(Url(str(tmp_path)), footers_of([parts.read_part_footer(Url(str(tmp_path)), name) for name in names]))
    assert manifest.forget_failed_rows(Url(str(tmp_path))) == 2
    footers = read_footers(Url(str(tmp_path)))
    assert (footers.totals.rows, footers.totals.failed) == (1, 0)
    assert [row_in(str(tmp_path), name, good.key).mask for name in footers.names] == [good.mask]


def test_forgotten_failures_are_owed_again(tmp_path: Path) -> None:
    one, two = tar("one"), tar("two")
    commit(tmp_path, rows_of(one, 3, failed=1) + rows_of(two, 2, failed=2))
    assert manifest.forget_failed_rows(Url(str(tmp_path))) == 3
    pending = pending_shards(Url(str(tmp_path)), Plan([one, two]), read_footers(Url(str(tmp_path))))
    skipped = {one.shard.uri: one.skip for one in pending}
    assert skipped == {"one.tar": {"one.tar#1", "one.tar#2"}, "two.tar": frozenset()}
