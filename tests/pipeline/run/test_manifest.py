import random
import uuid
from collections import Counter
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
