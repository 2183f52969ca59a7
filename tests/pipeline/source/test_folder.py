"""Slices are cut by content, so that a file more or less moves one or two; and reading them loses nothing."""

import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.config import ReadConfig
from pipeline.errors import AccessDenied, StorageError, StorageTimeout
from pipeline.records import Item
from pipeline.source import folder
from pipeline.source.folder import LONGEST_SLICE, ends_slice, slice_listing, twins
from pipeline.source.plan import read_items
from pipeline.source.shard import Member, Shard, slice_shard
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.examples import examples

MEAN = 8
listings = st.sets(st.integers(0, 10**6), min_size=1, max_size=300).map(
    lambda numbers: sorted(f"{number % 7}/{number}.jpg" for number in numbers)
)


def slices_of(paths: list[str]) -> list[list[str]]:
    return [[one.path for one in members] for members in slice_listing([Member(path, 1, "v1") for path in paths], MEAN)]


def put_slice(files: dict[str, bytes]) -> Shard:
    root = Url(f"memory://folder-{uuid.uuid4().hex}")
    for path, data in files.items():
        objects.put(root / path, data)
    return slice_shard(root.raw, [Member(one.path, one.size, one.etag) for one in objects.list_files(root)])


# ---------------------------------------------------------------- slicing


@given(listings)
def test_slices_joined_are_the_listing(paths):
    slices = slices_of(paths)
    assert [path for one in slices for path in one] == paths
    assert all(1 <= len(one) <= LONGEST_SLICE * MEAN for one in slices)


@given(listings, st.data())
@examples(200)
def test_a_file_more_or_less_moves_only_the_slices_up_to_the_next_boundary(paths, data):
    assume(len(paths) > 1)
    changed = data.draw(st.sampled_from(paths))
    without = [path for path in paths if path != changed]
    before, after = slices_of(without), slices_of(paths)
    # The stretch between two hashed boundaries that holds the changed file; a boundary belongs to the stretch it ends.
    start = max((path for path in without if path < changed and ends_slice(path, MEAN)), default="")
    end = min((path for path in without if path > changed and ends_slice(path, MEAN)), default="~")
    untouched = [one for one in after if one[-1] <= start or one[0] > end]
    assert [one for one in before if one[-1] <= start or one[0] > end] == untouched
    longest = LONGEST_SLICE * MEAN
    stretch = sum(start < path <= end for path in paths)
    assert len(after) - len(untouched) <= 2 + stretch // longest


def test_on_average_a_new_file_changes_fewer_than_two_slices():
    paths = [f"{number:06}.jpg" for number in range(20_000)]
    known = {tuple(one) for one in slices_of(paths)}
    changed = []
    for number in range(0, 20_000, 500):
        fresh = {tuple(one) for one in slices_of(sorted([*paths, f"{number:06}-new.jpg"]))}
        changed.append(len(fresh - known))
    assert 1 <= sum(changed) / len(changed) < 2
    assert max(changed) <= 3


def test_slices_have_the_mean_length_asked_for():
    counts = [len(one) for one in slice_listing([Member(f"{number}.jpg", 1, "") for number in range(50_000)], 64)]
    assert 58 < sum(counts) / len(counts) < 70
    assert all(len(one) == 1 for one in slice_listing([Member(f"{number}.jpg", 1, "") for number in range(20)], 1))


@given(listings)
def test_a_slice_knows_its_members_and_its_id_is_its_content(paths):
    members = [Member(path, len(path), f"etag {path}") for path in paths]
    shard = slice_shard("s3://bucket/here", members)
    assert shard.members() == members
    assert (shard.rows, shard.size) == (len(paths), sum(len(path) for path in paths))
    assert slice_shard("/elsewhere", members).id == shard.id
    assert slice_shard("/elsewhere", [*members[:-1], Member(paths[-1], 1, "new")]).id != shard.id
    assert slice_shard("/elsewhere", [*members, Member("more.jpg", 1, "v1")]).id != shard.id
    assert slice_shard("/elsewhere", [replace(member, copy=2) for member in members]).id != shard.id


def test_twins_are_found():
    paths = ["A.jpg", "a.jpg", "b.jpg", "caf\u00e9.jpg", "cafe\u0301.jpg"]
    found = twins([Member(path, 1, "") for path in paths])
    assert found == [("A.jpg", "a.jpg"), ("caf\u00e9.jpg", "cafe\u0301.jpg")]


# ---------------------------------------------------------------- reading

HARD = ["ü é/日本.jpg", "x#1?y=2.jpg", "a+b %20.JPG", "line\nbreak.png", "..dots.jpg", "'\"<script>.jpg"]


def test_keys_are_paths_and_come_in_their_order():
    shard = put_slice({path: path.encode() for path in HARD})
    items = list(read_items(shard, ReadConfig(), max_bytes=100))
    assert [item.key for item in items] == sorted(HARD)
    assert all(item.data == item.key.encode() and item.shard == shard.id for item in items)
    assert [item.etag for item in items] == [member.etag for member in shard.members()]
    assert [item.shard_rows for item in items] == [None] * (len(HARD) - 1) + [len(HARD)]


def test_names_of_files_on_disk_pass_through_as_keys(tmp_path):
    for name in [*HARD, "n" * 200 + ".jpg"]:
        objects.put(Url(str(tmp_path)) / name, name.encode())
    members = [Member(one.path, one.size, one.etag) for one in objects.list_files(Url(str(tmp_path)))]
    items = list(read_items(slice_shard(str(tmp_path), members), ReadConfig(), max_bytes=1000))
    assert [(item.key, item.data) for item in items] == [
        (name, name.encode()) for name in sorted([*HARD, "n" * 200 + ".jpg"])
    ]


def test_a_file_on_disk_replaced_by_one_of_its_size_or_linked_to_nowhere_fails_alone(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b.jpg").write_bytes(b"one")
    (tmp_path / "c.jpg").write_bytes(b"fine")
    members = [Member(one.path, one.size, one.etag) for one in objects.list_files(Url(str(tmp_path)))]
    before = (tmp_path / "b.jpg").stat().st_mtime_ns
    (tmp_path / "b.jpg").write_bytes(b"two")
    os.utime(tmp_path / "b.jpg", ns=(before, before + 1))
    items = list(read_items(slice_shard(str(tmp_path), members), ReadConfig(), max_bytes=10))
    assert [item.failure.code if item.failure else item.data for item in items] == [
        "not_found",
        "source_changed",
        b"fine",
    ]


def test_every_way_a_file_can_fail_is_a_row_and_its_neighbours_are_read():
    shard = put_slice({name: name.encode() for name in ("gone", "changed", "fine", "large" * 10, "none")})
    root = Url(shard.root)
    objects.delete(root / "gone")
    objects.put(root / "changed", b"other content")
    objects.put(root / "none", b"")
    empty = objects.info(root / "none")
    members = [member if member.path != "none" else Member("none", 0, empty.etag) for member in shard.members()]
    items = list(read_items(slice_shard(root.raw, members), ReadConfig(), max_bytes=20))
    assert {item.key: item.failure.code if item.failure else "ok" for item in items} == {
        "changed": "source_changed",
        "fine": "ok",
        "gone": "not_found",
        "large" * 10: "too_many_bytes",
        "none": "empty",
    }
    assert items[-1].shard_rows == 5
    assert not any(item.data for item in items if item.failure)


@given(st.sets(st.sampled_from(HARD)))
def test_reading_with_skip_is_reading_less_skip_and_fetches_nothing_else(skip):
    shard = put_slice({path: path.encode() for path in HARD})
    fetched = []
    original = objects.read_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "read_bytes", lambda url, **known: (fetched.append(url.raw), original(url, **known))[1])
        items = list(read_items(shard, ReadConfig(), max_bytes=100, skip=frozenset(skip)))
    left = [path for path in sorted(HARD) if path not in skip]
    assert [item.key for item in items] == left
    assert sorted(fetched) == sorted((Url(shard.root) / path).raw for path in left)
    assert [item.shard_rows for item in items][-1:] == [len(HARD)] * bool(left)


def test_one_file_that_cannot_be_fetched_is_a_row_but_missing_rights_stop_the_job(monkeypatch):
    shard = put_slice({"a.jpg": b"x", "b.jpg": b"x"})

    def failing_with(error: Exception) -> Callable[..., bytes]:
        def fail(*_: object, **__: object) -> bytes:
            raise error

        return fail

    for error, code in ((StorageError("503"), "storage_error"), (StorageTimeout("slow"), "storage_timeout")):
        monkeypatch.setattr(objects, "read_bytes", failing_with(error))
        items = list(read_items(shard, ReadConfig(), max_bytes=10))
        assert [item.failure.code for item in items] == [code, code]
    monkeypatch.setattr(objects, "read_bytes", failing_with(AccessDenied("403")))
    with pytest.raises(AccessDenied):
        list(read_items(shard, ReadConfig(), max_bytes=10))


def test_files_are_fetched_together_and_given_in_order(monkeypatch):
    names = [f"{n:02}.jpg" for n in range(3 * folder.FILES_AHEAD)]
    shard = put_slice(dict.fromkeys(names, b"x"))
    together = threading.Barrier(folder.FILES_AHEAD, timeout=20)  # broken unless so many fetches run at once

    def slow(url: Url, **_: object) -> bytes:
        together.wait()
        return url.raw[-6:].encode()

    monkeypatch.setattr(objects, "read_bytes", slow)
    assert [item.data.decode() for item in read_items(shard, ReadConfig(), max_bytes=10)] == names


def test_files_are_not_fetched_far_ahead(monkeypatch):
    shard = put_slice({f"{n:02}.jpg": b"x" for n in range(64)})
    original, started = objects.read_bytes, []
    monkeypatch.setattr(
        objects, "read_bytes", lambda url, **known: (started.append(url.raw), original(url, **known))[1]
    )
    next(read_items(shard, ReadConfig(), max_bytes=10))
    assert len(started) <= folder.FILES_AHEAD + 2  # the item given, and the one `read` looks ahead to


def test_large_files_are_not_all_held_at_once(monkeypatch):
    shard = put_slice({f"{n:02}.jpg": bytes(1000) for n in range(20)})
    monkeypatch.setattr(folder, "BYTES_AHEAD", 2500)
    waiting = 0
    original = objects.read_bytes

    def counted(url: Url, **known: object) -> bytes:
        nonlocal waiting
        waiting += 1
        return original(url, **known)

    monkeypatch.setattr(objects, "read_bytes", counted)
    reading = folder.folder_items(shard, max_bytes=10**6, wanted=lambda key: True)
    for delivered, _ in enumerate(reading, start=1):
        assert waiting - delivered <= 3


def test_a_limit_reads_no_more_than_it_gives(monkeypatch):
    shard = put_slice({f"{n:02}.jpg": b"x" for n in range(20)})
    fetched = []
    original = objects.read_bytes
    monkeypatch.setattr(
        objects, "read_bytes", lambda url, **known: (fetched.append(url.raw), original(url, **known))[1]
    )
    items = list(read_items(replace(shard, max_rows=5), ReadConfig(), max_bytes=10))
    assert [item.key for item in items] == [f"{n:02}.jpg" for n in range(5)]
    assert items[-1].shard_rows == len(fetched) == 5


def test_one_slow_file_costs_its_own_row_and_no_other(monkeypatch):
    shard = put_slice({f"{n}.jpg": b"x" for n in range(5)})
    original = objects.read_bytes

    def slow(url: Url, **known: object) -> bytes:
        if url.name == "2.jpg":
            raise StorageTimeout("slow")
        return original(url, **known)

    monkeypatch.setattr(objects, "read_bytes", slow)
    items = list(read_items(shard, ReadConfig(), max_bytes=10))
    assert [item.failure.code if item.failure else "ok" for item in items] == [
        "ok",
        "ok",
        "storage_timeout",
        "ok",
        "ok",
    ]
    assert items[-1].shard_rows == 5


def test_a_reader_that_is_given_up_leaves_no_thread_behind():
    shard = put_slice({f"{n:02}.jpg": b"x" for n in range(30)})
    reading = read_items(shard, ReadConfig(), max_bytes=10)
    next(reading)
    reading.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("folder")]


# ---------------------------------------------------------------- labels


def labels_beside(shard: Shard, files: dict[str, bytes], *, max_bytes: int = 100) -> list[Item]:
    folder_of_labels = f"{shard.root}-labels"
    for path, data in files.items():
        objects.put(Url(folder_of_labels) / path, data)
    return list(read_items(shard, ReadConfig(labels=folder_of_labels), max_bytes=max_bytes))


def test_a_label_stands_under_the_name_of_its_image_png_before_json_and_may_be_absent():
    shard = put_slice({"a/1.jpg": b"1", "a/2.b.jpg": b"2", "a/3.jpg": b"3", "a/4.jpg": b"4", "a/5.JPG": b"5"})
    put = {"a/1.png": b"one", "a/1.json": b"{}", "a/2.b.png": b"two", "a/3.json": b"{3}", "4.png": b"of no image"}
    put["a/5.PNG"] = b"five"
    items = labels_beside(shard, put)
    assert [(item.key, item.data, item.label) for item in items] == [
        ("a/1.jpg", b"1", b"one"),
        ("a/2.b.jpg", b"2", b"two"),
        ("a/3.jpg", b"3", b"{3}"),
        ("a/4.jpg", b"4", None),
        ("a/5.JPG", b"5", b"five"),
    ]


def test_an_image_whose_label_cannot_be_fetched_is_a_failure_and_its_neighbours_are_read():
    items = labels_beside(put_slice({"1.jpg": b"1", "2.jpg": b"2"}), {"1.png": b"x" * 30, "2.png": b"y"}, max_bytes=20)
    assert [(item.failure and item.failure.code, item.data, item.label) for item in items] == [
        ("too_many_bytes", b"", None),
        (None, b"2", b"y"),
    ]


def test_no_label_is_looked_for_unless_asked(monkeypatch):
    shard = put_slice({"1.jpg": b"1"})
    objects.put(Url(shard.root) / "1.png", b"label")
    monkeypatch.setattr(folder, "_label", None)
    (item,) = read_items(shard, ReadConfig(), max_bytes=100)
    assert item.label is None
