"""Folders: slices that stay where they are when files come and go, and what one bad file does to its neighbours."""

import os
import random
import threading
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.config import ReadConfig
from pipeline.errors import AccessDenied, StorageTimeout
from pipeline.records import Item
from pipeline.source import folder
from pipeline.source.plan import read
from pipeline.source.shard import Member, Shard, slice_shard

HARD_NAMES = [
    "ü é 日本.jpg",
    "x#1?y=2.jpg",
    "a b %20.jpg",
    "line\nbreak.jpg",
    "n" * 200 + ".jpg",
    "d/e/f.jpg",
    "'\".jpg",
]

paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


def members_of(names: list[str]) -> list[Member]:
    return [Member(name, 1, "v1") for name in sorted(names)]


def cut(names: list[str], mean: int) -> list[tuple[str, ...]]:
    return [tuple(member.path for member in members) for members in folder.cut(members_of(names), mean)]


def store(files: dict[str, bytes]) -> str:
    root = f"memory://folder-{uuid.uuid4().hex}"
    for name, data in files.items():
        storage.put(storage.join(root, name), data)
    return root


def shard_of(root: str) -> Shard:
    """All files of a folder as one slice."""
    return slice_shard(root, [Member(file.path, file.size, file.etag) for file in storage.list_files(root)])


def read_all(shard: Shard, *, max_bytes: int = 1000, skip: frozenset[str] = frozenset()) -> list[Item]:
    return list(read(shard, ReadConfig(), max_bytes=max_bytes, skip=skip))


def codes(items: list[Item]) -> dict[str, str]:
    return {item.key: item.failure.code if item.failure else "ok" for item in items}


# ---------------------------------------------------------------- slices


@given(st.sets(paths, max_size=80), st.integers(1, 12))
def test_slices_are_the_listing_cut_without_loss(names, mean):
    slices = cut(list(names), mean)
    assert [name for one in slices for name in one] == sorted(names)
    assert all(0 < len(one) <= folder.LONGEST_SLICE * mean for one in slices)


def test_a_slice_has_the_asked_number_of_files_on_average():
    names = [f"{number:06d}.jpg" for number in range(20_000)]
    assert 20_000 / len(cut(names, 16)) == pytest.approx(16, rel=0.1)


@given(st.sets(paths, min_size=1, max_size=80), st.integers(1, 12), st.data())
def test_a_file_that_goes_changes_nothing_before_its_slice_nor_after_the_next_end(names, mean, data):
    gone = data.draw(st.sampled_from(sorted(names)))
    before, after = cut(list(names), mean), cut(list(names - {gone}), mean)
    first_hit = next(one for one in before if gone in one)
    next_end = next((name for name in sorted(names) if name > gone and folder.ends_slice(name, mean)), None)
    for one in set(before) ^ set(after):
        assert one[-1] >= first_hit[0]
        assert next_end is None or one[0] <= next_end


@pytest.mark.parametrize("seed", range(3))
def test_a_file_that_comes_or_goes_changes_at_most_three_slices_of_either_plan(seed):
    rng = random.Random(seed)
    names = [f"field/{rng.randrange(10**9):09d}.jpg" for _ in range(1500)]
    whole = set(cut(names, 8))
    for name in rng.sample(names, 40):
        less = set(cut([one for one in names if one != name], 8))
        assert len(whole - less) <= 3
        assert len(less - whole) <= 3
        assert len(whole & less) > 100


@given(st.sets(paths, min_size=1, max_size=30))
def test_members_survive_packing_and_the_id_does_not_depend_on_the_root(names):
    members = [Member(path, number, f"v{number}", 1 + number % 2) for number, path in enumerate(sorted(names))]
    here, there = slice_shard("s3://one/folder", members), slice_shard("/mnt/two", members)
    assert here.members() == there.members() == members
    assert here.id == there.id
    assert (here.rows, here.size) == (len(members), sum(range(len(members))))


@pytest.mark.parametrize("other", [Member("b", 1, "v1"), Member("a", 1, "v2"), Member("a", 1, "v1", 2)])
def test_another_name_version_or_copy_is_another_slice(other):
    assert slice_shard("r", [Member("a", 1, "v1")]).id != slice_shard("r", [other]).id


def test_twins_are_names_that_collide_on_other_file_systems():
    names = ["A.jpg", "a.jpg", "b.jpg", "\N{LATIN SMALL LETTER E WITH ACUTE}.jpg", "e\N{COMBINING ACUTE ACCENT}.jpg"]
    found = {frozenset(pair) for pair in folder.twins(members_of(names))}
    assert found == {frozenset(names[:2]), frozenset(names[3:])}


# ---------------------------------------------------------------- items


@pytest.mark.parametrize("where", ["local", "memory"])
def test_items_are_the_files_in_order_whatever_their_names(where: str, tmp_path: Path):
    files = {name: name.encode() for name in HARD_NAMES}
    root = str(tmp_path) if where == "local" else store({})
    for name, data in files.items():
        storage.put(storage.join(root, name), data)
    items = read_all(shard_of(root))
    assert [(item.key, item.data) for item in items] == sorted(files.items())
    assert [item.shard_rows for item in items] == [None] * (len(files) - 1) + [len(files)]
    assert all(item.etag and item.failure is None for item in items)


def test_each_bad_file_is_one_failure_and_its_neighbours_are_read(tmp_path: Path):
    for name in ("a", "changed", "deleted", "empty", "large", "z"):
        (tmp_path / f"{name}.jpg").write_bytes(b"" if name == "empty" else b"x" * (11 if name == "large" else 10))
    shard = shard_of(str(tmp_path))
    (tmp_path / "deleted.jpg").unlink()
    (tmp_path / "changed.jpg").write_bytes(b"other")
    items = read_all(shard, max_bytes=10)
    assert codes(items) == {
        "a.jpg": "ok",
        "changed.jpg": "source_changed",
        "deleted.jpg": "not_found",
        "empty.jpg": "empty",
        "large.jpg": "too_many_bytes",
        "z.jpg": "ok",
    }
    assert "11 bytes, limit 10" in items[4].failure.detail
    assert all(bool(item.data) == (item.failure is None) for item in items)


def test_a_file_replaced_by_one_of_the_same_size_has_changed(tmp_path: Path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    shard = shard_of(str(tmp_path))
    path.write_bytes(b"two")
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1))
    assert codes(read_all(shard)) == {"a.jpg": "source_changed"}


def test_a_link_to_nowhere_is_a_failure(tmp_path: Path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b.jpg").write_bytes(b"x")
    assert codes(read_all(shard_of(str(tmp_path)))) == {"a.jpg": "not_found", "b.jpg": "ok"}


@given(st.sets(st.integers(0, 19)), st.integers(1, 25))
@settings(max_examples=40)
def test_reading_with_skip_is_reading_less_skip(skipped, max_rows):
    root = store({f"{number:02d}.jpg": bytes([number]) for number in range(20)})
    shard = slice_shard(root, [Member(file.path, file.size, file.etag) for file in storage.list_files(root)])
    keys = [f"{number:02d}.jpg" for number in range(20)]
    skip = frozenset(keys[number] for number in skipped)
    rest = read_all(shard, skip=skip)
    assert [item.key for item in rest] == [key for key in keys if key not in skip]
    assert [item.shard_rows for item in rest if item.shard_rows is not None] == [20][: len(rest)]


def test_files_that_are_not_wanted_are_not_fetched(monkeypatch: pytest.MonkeyPatch):
    fetched = []
    real = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda url, **how: fetched.append(url) or real(url, **how))
    root = store({f"{number}.jpg": b"x" for number in range(6)})
    read_all(shard_of(root), skip=frozenset({"0.jpg", "3.jpg", "5.jpg"}))
    assert sorted(url[-5:] for url in fetched) == ["1.jpg", "2.jpg", "4.jpg"]


# ---------------------------------------------------------------- fetching ahead


def test_files_are_fetched_at_once_and_delivered_in_order(monkeypatch: pytest.MonkeyPatch):
    together = threading.Barrier(folder.FILES_AHEAD, timeout=20)  # broken unless so many fetches run at once
    order = []

    def slow(url: str, **_: object) -> bytes:
        together.wait()
        order.append(url)
        return url[-6:].encode()

    root = store({f"{number:02d}.jpg": b"x" for number in range(folder.FILES_AHEAD)})
    shard = shard_of(root)
    monkeypatch.setattr(storage, "read_bytes", slow)
    assert [item.data for item in read_all(shard)] == [f"{n:02d}.jpg".encode() for n in range(folder.FILES_AHEAD)]
    assert len(order) == folder.FILES_AHEAD


def test_no_more_bytes_are_fetched_ahead_than_the_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder, "BYTES_AHEAD", 25)
    held, most = set(), 0
    real = storage.read_bytes

    def counted(url: str, **how: object) -> bytes:
        nonlocal most
        held.add(url)
        most = max(most, len(held))
        return real(url, **how)

    root = store({f"{number:02d}.jpg": b"x" * 10 for number in range(20)})
    shard = shard_of(root)
    monkeypatch.setattr(storage, "read_bytes", counted)
    for item in read(shard, ReadConfig(), max_bytes=1000):
        held.discard(storage.join(root, item.key))
    assert most <= 4  # two within the bound, the one that goes beyond, and the item `read` holds back


def test_reading_can_be_given_up_half_way():
    root = store({f"{number:02d}.jpg": b"x" for number in range(30)})
    reading = read(shard_of(root), ReadConfig(), max_bytes=10)
    next(reading)
    reading.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("folder")]


def test_a_store_that_times_out_costs_one_item_but_a_refusal_stops_the_job(monkeypatch: pytest.MonkeyPatch):
    root = store({"a.jpg": b"x", "b.jpg": b"x"})
    shard = shard_of(root)
    real = storage.read_bytes

    def failing_with(error: Exception):
        def broken(url: str, **how: object) -> bytes:
            if url.endswith("a.jpg"):
                raise error
            return real(url, **how)

        return broken

    monkeypatch.setattr(storage, "read_bytes", failing_with(StorageTimeout("timed out, 6 attempts")))
    assert codes(read_all(shard)) == {"a.jpg": "storage_timeout", "b.jpg": "ok"}
    monkeypatch.setattr(storage, "read_bytes", failing_with(AccessDenied("403", hint="s3:GetObject")))
    with pytest.raises(AccessDenied):
        read_all(shard)
