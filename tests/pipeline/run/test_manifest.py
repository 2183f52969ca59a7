import random
import uuid
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import classes
from pipeline.errors import JobError
from pipeline.image import encode
from pipeline.records import Row, rows_from_table, rows_to_table
from pipeline.run import manifest, parts, verify
from pipeline.source.plan import Plan
from pipeline.source.shard import Member, Shard, object_shard, slice_shard
from pipeline.store import objects
from pipeline.store.backend import FileInfo
from pipeline.store.url import Url
from tests.support.examples import examples

FARM = classes.load_class_map("farmland")


def tar(name: str) -> Shard:
    return object_shard("webdataset", "root", FileInfo(f"{name}.tar", 1000, "e1"))


def mask_row(key: str, shard: Shard, *, shard_rows: int | None = None, etag: str = "e1") -> Row:
    mask = np.random.default_rng(len(key)).integers(0, 7, (6, 5)).astype(np.uint8)
    pixels = np.bincount(mask.ravel(), minlength=7).tolist()
    fields = {"key": key, "status": "ok", "shard": shard.id, "source_etag": etag, "model_fp": "m", "config_fp": "c"}
    return Row(
        **fields,
        height=6,
        width=5,
        mask=encode.mask_png(mask, FARM),
        refined=True,
        class_pixels=pixels,
        confidence=0.5,
        entropy=0.25,
        changed_share=0.1,
        shard_rows=shard_rows,
    )


def failed_row(key: str, shard: Shard, code: str = "truncated", *, shard_rows: int | None = None) -> Row:
    fields = {"key": key, "status": "failed", "shard": shard.id, "source_etag": "e1", "model_fp": "m", "config_fp": "c"}
    return Row(**fields, error_code=code, error_detail=f"{key} is bad", shard_rows=shard_rows)


def rows_of(shard: Shard, count: int, *, failed: int = 0) -> list[Row]:
    """All rows of a tar: the first `failed` rows are failures, the last has `shard_rows`."""
    last = {count - 1: count}
    return [
        (failed_row if index < failed else mask_row)(f"{shard.uri}#{index}", shard, shard_rows=last.get(index))
        for index in range(count)
    ]


def commit(run: Path | str, rows: list[Row]) -> str:
    return parts.write_part(Url(str(run)), rows_to_table(rows), FARM)


def close(run: Path | str, plan: Plan, on_duplicate: str = "fail") -> manifest.Manifest:
    done = manifest.close_run(Url(str(run)), plan, FARM, fingerprint="f" * 64, on_duplicate=on_duplicate)
    manifest.mark_finished(Url(str(run)))
    return done


def owed(run: Path | str, plan: Plan) -> dict[str, frozenset[str]]:
    url = Url(str(run))
    return {todo.shard.uri: todo.skip for todo in manifest.pending_shards(url, plan, manifest.read_footers(url))}


# ---------------------------------------------------------------- what is left to do


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


def part(run: Path | str, name: str):
    return parts.read_columns(Url(str(run)), name, parts.ROW_SCHEMA.names)


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


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Columns that are read of each part from now on, by its name."""
    read: defaultdict[str, set[str]] = defaultdict(set)
    original = parts.read_columns

    def watched(run_url: Url, name: str, columns: list[str]):
        table = original(run_url, name, columns)
        read[name] |= set(table.column_names)
        return table

    monkeypatch.setattr(parts, "read_columns", watched)
    return read


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


stages = st.fixed_dictionaries({name: st.integers(0, 4) for name in manifest.SUMMED_COLUMNS})
averages = st.fixed_dictionaries({name: st.integers(0, 8).map(lambda n: n / 8) for name in manifest.AVERAGED_COLUMNS})
one_row = st.tuples(st.booleans(), stages, averages, st.lists(st.integers(0, 2**53 + 9), min_size=7, max_size=7))


@examples(30)
@given(st.lists(st.lists(one_row, min_size=1, max_size=4), max_size=3))
def test_a_manifest_sums_seconds_of_all_rows_and_averages_and_pixels_of_those_that_are_ok(drawn: list) -> None:
    """Over any split into parts; pixels are whole numbers, beyond what a double holds too."""
    run, shard = f"memory://{uuid.uuid4().hex}", tar("one")
    everything = []
    for rows in drawn:
        made = []
        for ok, seconds, means, pixels in rows:
            key = f"one.tar#{len(everything) + len(made)}"
            row = replace(mask_row(key, shard), class_pixels=pixels, **means) if ok else failed_row(key, shard)
            made.append(replace(row, **seconds))
        commit(run, made)
        everything += made
    found = manifest.summarise_run(Url(run), FARM, fingerprint="f" * 64, shards=1)
    ok = [row for row in everything if row.status == "ok"]
    assert (found.rows, found.ok, found.failed) == (len(everything), len(ok), len(everything) - len(ok))
    assert found.class_pixels == [sum(row.class_pixels[at] for row in ok) for at in range(7)]
    assert {type(count) for count in found.class_pixels} == {int}  # a double would write 9.0
    for name in manifest.SUMMED_COLUMNS if everything else ():
        assert found.seconds[name.removeprefix("seconds_")] == sum(getattr(row, name) for row in everything)
    for name in manifest.AVERAGED_COLUMNS:
        expected = sum(getattr(row, name) for row in ok) / len(ok) if ok else None
        assert getattr(found, name) == (None if expected is None else pytest.approx(expected, rel=1e-6))
    assert found.failed_fraction == (pytest.approx(found.failed / found.rows) if everything else 0)


def test_closing_reads_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = commit(tmp_path, rows_of(tar("one"), 3, failed=1))
    read = watch_reads(monkeypatch)
    close(tmp_path, Plan([tar("one")]))
    assert {"key", "status"} < read[name]
    assert not read[name] & {"mask", "preview_image", "preview_confidence"}


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
    assert manifest.remove_duplicates(Url(run)) == sum(map(len, written.values())) - len(expected)
    left = [row for name in parts.list_parts(Url(run)) for row in rows_from_table(part(run, name))]
    assert {row.key: row for row in left} == before
    assert len(left) == len(expected)
    for name in parts.list_parts(Url(run)):
        assert parts.read_classes(Url(run), name) == FARM
    assert manifest.remove_duplicates(Url(run)) == 0


def row_in(run: str, name: str, key: str) -> Row:
    return next(row for row in rows_from_table(part(run, name)) if row.key == key)


def test_a_part_without_a_key_left_is_deleted(tmp_path: Path) -> None:
    rows = rows_of(tar("one"), 4)
    names = [commit(tmp_path, rows[:2]), commit(tmp_path, rows[2:])]
    manifest.rewrite_without(Url(str(tmp_path)), names[0], {row.key for row in rows[:2]})
    assert parts.list_parts(Url(str(tmp_path))) == names[1:]


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
            manifest.remove_duplicates(Url(str(tmp_path)))
    assert close(tmp_path, Plan([shard])).rows == 4


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
    read = watch_reads(monkeypatch)
    assert manifest.read_failures(Url(str(tmp_path))) == [
        ("one.tar#0", "truncated", "one.tar#0 is bad"),
        ("one.tar#1", "truncated", "one.tar#1 is bad"),
        ("one.tar#9", "corrupt", "one.tar#9 is bad"),
        ("two.tar#0", "truncated", "two.tar#0 is bad"),
    ]
    assert all("mask" not in columns for columns in read.values())


def test_previews_are_up_to_a_limit_and_by_key_and_parts_without_any_are_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [replace(row, preview_image=row.key.encode()) for row in rows_of(tar("one"), 4)]
    plain = commit(tmp_path, rows_of(tar("two"), 3))
    with_some = commit(tmp_path, [shown[3], shown[1], *rows_of(tar("three"), 2)])
    commit(tmp_path, [shown[2], shown[0]])
    read = watch_reads(monkeypatch)
    for limit, count in ((1, 1), (3, 3), (4, 4), (9, 4)):
        rows = manifest.read_previews(Url(str(tmp_path)), limit=limit)
        assert len(rows) == count
        assert [row.key for row in rows] == sorted(row.key for row in rows)
        assert all(row.preview_image == row.key.encode() for row in rows)
    assert read[plain] == {"preview_image"}
    assert "mask" in read[with_some]


def test_tables_of_parts_come_in_the_order_asked_for_with_the_columns_asked_for(tmp_path: Path) -> None:
    names = [commit(tmp_path, [mask_row(f"{index}.jpg", tar("one"))]) for index in range(40)]
    tables = list(manifest.read_parts(Url(str(tmp_path)), names, ["key"]))
    assert [table.to_pylist() for table in tables] == [[{"key": f"{index}.jpg"}] for index in range(40)]
    assert [part.name for part in manifest.read_footers(Url(str(tmp_path)))] == sorted(names)


def test_parts_are_read_no_more_than_17_ahead_of_their_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [commit(tmp_path, [mask_row(f"{index}.jpg", tar("one"))]) for index in range(40)]
    read = watch_reads(monkeypatch)
    tables = manifest.read_parts(Url(str(tmp_path)), names, ["key"])
    next(tables)
    tables.close()
    assert len(read) == 17


def test_forgotten_failures_are_owed_again(tmp_path: Path) -> None:
    one, two = tar("one"), tar("two")
    commit(tmp_path, rows_of(one, 3, failed=1) + rows_of(two, 2, failed=2))
    assert manifest.forget_failed_rows(Url(str(tmp_path))) == 3
    assert owed(tmp_path, Plan([one, two])) == {"one.tar": {"one.tar#1", "one.tar#2"}, "two.tar": frozenset()}


# ---------------------------------------------------------------- verify


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    shard = tar("one")
    good = mask_row("one.tar#0", shard)
    wrong = mask_row("one.tar#1", shard)
    wrong.class_pixels[0] += 1
    name = commit(tmp_path, [good, wrong])
    (tmp_path / "parts" / name).rename(tmp_path / "parts/part-00000000000000000000.parquet")
    (tmp_path / "parts/.tmp-left").write_bytes(b"half")
    commit(tmp_path, [good])
    found = "\n".join(verify.run_problems(Url(str(tmp_path))))
    for expected in ("not the digest", "do not agree with the mask", "is also in", "left behind"):
        assert expected in found
