"""The WebDataset source: samples of members, failures, duplicate names, labels, and resuming."""

import io
import logging
import re
import tarfile
import time
import tracemalloc
from itertools import permutations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.config import ReadConfig
from pipeline.records import Item
from pipeline.source.plan import read_items
from pipeline.source.shard import object_shard
from pipeline.source.tar import BLOCK, entries
from pipeline.source.webdataset import _IMAGES
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.tars import END_KEY, THREE, codes, pax_header, read_tar, shard_of, tar_of

# ---------------------------------------------------------------- samples


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["jpg", "png", "json", "pkl"])), max_size=12))
def test_samples_are_runs_of_members_with_one_name(pairs):
    tar = tar_of([(f"{base}.{extension}", f"{n}".encode()) for n, (base, extension) in enumerate(pairs)])
    expected: list[tuple[str, dict[str, int]]] = []
    for n, (base, extension) in enumerate(pairs):
        if extension == "pkl":
            continue
        if not expected or expected[-1][0] != base or extension in expected[-1][1]:
            expected.append((base, {}))
        expected[-1][1][extension] = n
    assume(expected)
    items = read_tar(tar, on_duplicate="suffix")
    assert len({item.key for item in items}) == len(items) == items[-1].shard_rows == len(expected)
    for item, (base, members) in zip(items, expected, strict=True):
        image = members.get("jpg", members.get("png"))
        assert re.fullmatch(rf"a\.tar#{base}(~\d+)?", item.key)
        assert item.data == (b"" if image is None else f"{image}".encode())
        assert (item.failure is not None and item.failure.code) == (image is None and "missing_pair")


def test_of_two_images_the_better_extension_wins_wherever_it_stands():
    pairs = list(permutations(_IMAGES, 2))
    members = [(f"{n:02}.{extension}", extension.encode()) for n, pair in enumerate(pairs) for extension in pair]
    best = [min(pair, key=_IMAGES.index).encode() for pair in pairs]
    assert [item.data for item in read_tar(tar_of(members))] == best


def test_keys_are_data():
    hard = ["ü é/日本", "x#1?y=2", "line\nbreak", "a b", "~", "A", "a", "trailing ", "%2e%2e", "'\""]
    items = read_tar(tar_of([(f"{name}.JPG", b"x") for name in hard]))
    assert [item.key for item in items] == [f"a.tar#{name}" for name in hard]


# ---------------------------------------------------------------- what is not an image


def test_what_does_not_belong_is_ignored_and_counted(caplog):
    bad = ["x.pkl", "x.pyd", "../../x.jpg", "/abs.jpg", "d/../x.jpg", "._x.jpg", "README", "n" * 5000 + ".jpg"]
    tar = tar_of([(name, b"x") for name in bad] + [("good.jpg", b"x")])
    with caplog.at_level(logging.INFO):
        assert codes(read_tar(tar)) == {"a.tar#good": "ok"}
    expected = "{'.pkl': 1, '.pyd': 1, '(unsafe name)': 4, '.jpg': 1, '(none)': 1}"
    assert expected in caplog.text


def test_nothing_appears_on_disk(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        for name in ("link/a.jpg", "../b.jpg", f"{tmp_path}/c.jpg", "folder/d.jpg", "e.pkl"):
            header = tarfile.TarInfo(name)
            header.size = 1
            tar.addfile(header, io.BytesIO(b"x"))
    (tmp_path / "a.tar").write_bytes(out.getvalue())
    shard = object_shard("webdataset", str(tmp_path), objects.info(Url(str(tmp_path / "a.tar"))))
    before = sorted(tmp_path.rglob("*"))
    assert list(codes(list(read_items(shard, ReadConfig(), max_bytes=10)))) == ["a.tar#link/a", "a.tar#folder/d"]
    assert sorted(tmp_path.rglob("*")) == before


def test_samples_without_image_are_failures_that_name_what_was_seen():
    items = read_tar(tar_of([("a.json", b"{}"), ("a.txt", b"x"), ("b.5.jpg", b"x"), ("c.jpg", b"x")]))
    assert codes(items) == {"a.tar#a": "missing_pair", "a.tar#b": "missing_pair", "a.tar#c": "ok"}
    assert ".json, .txt" in items[0].failure.detail
    assert ".5.jpg" in items[1].failure.detail


def test_a_member_above_the_limit_fails_without_being_read():
    items = read_tar(tar_of([("a.jpg", b"x" * 101), ("b.jpg", b"x" * 100), ("c.jpg", b"")]), max_bytes=100)
    assert codes(items) == {"a.tar#a": "too_many_bytes", "a.tar#b": "ok", "a.tar#c": "empty"}


@pytest.mark.parametrize(
    ("tar", "code"),
    [
        (b"", "empty"),
        (bytes(2 * BLOCK), "empty_archive"),
        (bytes(20 * BLOCK), "empty_archive"),
        (tar_of([("x.pkl", b"x")]), "empty_archive"),
        (b"<html>404</html>", "archive_truncated"),
        (b"<html>404</html>" * 100, "archive_truncated"),
    ],
)
def test_a_tar_without_samples_is_one_failure(tar, code):
    items = read_tar(tar)
    assert codes(items) == {END_KEY: code}
    assert items[0].shard_rows == 1


# ---------------------------------------------------------------- damage


def test_every_cut_keeps_whole_samples_and_reports_the_rest():
    tar = tar_of(THREE)
    data_ends = [entry.data_at + entry.size for entry in entries(io.BytesIO(tar))]
    for at in sorted({*range(1, len(tar), 61), *range(BLOCK, len(tar), BLOCK), *data_ends}):
        items = read_tar(tar[:at])
        whole = [name[:-4] for (name, _), end in zip(THREE, data_ends, strict=True) if end <= at]
        assert [item.key for item in items if item.failure is None] == [f"a.tar#{name}" for name in whole]
        assert [item.data for item in items if item.failure is None] == [data for _, data in THREE[: len(whole)]]
        if at < len(tar) - BLOCK:  # one zero block of the two is enough
            assert items[-1].failure.code == "archive_truncated"
            assert f"byte {at} " in items[-1].failure.detail
        assert items[-1].shard_rows == len(items)


def test_a_cut_sample_is_not_given_the_label_for_the_image():
    tar = tar_of([("a.jpg", b"x"), ("b.png", b"label"), ("b.jpg", b"image")])
    assert codes(read_tar(tar[: 4 * BLOCK])) == {"a.tar#a": "ok", END_KEY: "archive_truncated"}


def test_reading_a_hostile_tar_takes_time_in_proportion_to_its_bytes():
    """Half a minute, were the records cut off one by one, or the extensions of a sample kept in a list."""
    records = pax_header(b"5 a=\n" * (2**20 // 5))
    members = b"".join(tarfile.TarInfo(f"a.{n}.txt").tobuf(tarfile.USTAR_FORMAT) for n in range(20_000))
    began = time.process_time()
    items = read_tar(members + records * 8 + tar_of([("b.jpg", b"x")]))
    assert time.process_time() - began < 6
    assert codes(items) == {"a.tar#a": "missing_pair", "a.tar#b": "ok"}
    assert len(items[0].failure.detail) < 300


# ---------------------------------------------------------------- keys met twice, resuming


def test_a_name_met_twice_is_kept_under_another_key_or_fails():
    tar = tar_of([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3"), ("a~2.jpg", b"4"), ("a.jpg", b"5")])
    kept = read_tar(tar, on_duplicate="suffix")
    assert [(item.key, item.data) for item in kept] == [
        ("a.tar#a", b"1"),
        ("a.tar#b", b"2"),
        ("a.tar#a~2", b"3"),
        ("a.tar#a~2~2", b"4"),
        ("a.tar#a~3", b"5"),
    ]
    names = ["a~2.jpg", "b.jpg", "a.jpg", "b.jpg", "a.jpg"]
    taken = read_tar(tar_of([(name, b"x") for name in names]), on_duplicate="suffix")
    assert [item.key for item in taken] == ["a.tar#a~2", "a.tar#b", "a.tar#a", "a.tar#b~2", "a.tar#a~3"]
    refused = read_tar(tar, on_duplicate="fail")
    assert [item.key for item in refused] == [item.key for item in kept]
    assert [bool(item.failure) for item in refused] == [False, False, True, True, True]
    assert {item.failure.code for item in refused if item.failure} == {"duplicate_key"}


@given(st.sets(st.sampled_from(["a.tar#a", "a.tar#b", "a.tar#c", "a.tar#d", END_KEY])), st.booleans())
def test_reading_with_skip_is_reading_less_skip(skip, cut):
    tar = tar_of([*THREE, ("d.json", b"{}")])
    shard = shard_of(tar[: -2 * BLOCK] if cut else tar)
    everything = list(read_items(shard, ReadConfig(), max_bytes=1000))
    possible = {item.key for item in everything}
    rest = list(read_items(shard, ReadConfig(), max_bytes=1000, skip=frozenset(skip & possible)))
    assert [(item.key, item.data, item.failure) for item in rest] == [
        (item.key, item.data, item.failure) for item in everything if item.key not in skip
    ]
    totals = [item.shard_rows for item in rest if item.shard_rows is not None]
    assert totals == ([everything[-1].shard_rows] if rest else [])


def test_a_tar_that_is_gone_or_replaced_is_one_failure():
    shard = shard_of(tar_of(THREE))
    objects.put(shard.url, tar_of(THREE[:1]))
    assert codes(list(read_items(shard, ReadConfig(), max_bytes=1000))) == {END_KEY: "source_changed"}
    objects.delete(shard.url)
    gone = list(read_items(shard, ReadConfig(), max_bytes=1000, skip=frozenset({"a.tar#a", "a.tar#b"})))
    assert codes(gone) == {END_KEY: "not_found"}
    assert gone[0].shard_rows == 3  # the two committed rows and this one


def test_a_tar_is_streamed():
    """100 MB of members pass through a reader that holds one of them."""
    members = [(f"{n}.jpg", bytes([n]) * 2**20) for n in range(100)]
    shard = shard_of(tar_of(members, "gnu"))
    reading = read_items(shard, ReadConfig(), max_bytes=2**20)
    tracemalloc.start()
    sizes = [len(item.data) for item in reading]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sizes == [2**20] * 100
    assert peak < 40 * 2**20


# ---------------------------------------------------------------- labels

LABELLED = [("a.jpg", b"A"), ("a.png", b"a"), ("b.json", b"{}"), ("b.jpg", b"B"), ("c.jpg", b"C"), ("c.txt", b"c")]


def read_of(items: list[Item]) -> list[tuple[str, bytes, bytes | None]]:
    return [(item.failure.code if item.failure else "ok", item.data, item.label) for item in items]


def test_a_label_is_the_member_asked_for_or_json_in_its_place():
    read = read_of(read_tar(tar_of(LABELLED), labels="png"))
    assert read == [("ok", b"A", b"a"), ("ok", b"B", b"{}"), ("ok", b"C", None)]


def test_a_label_is_never_taken_for_the_image():
    only_labels = read_of(read_tar(tar_of([("a.png", b"a")]), labels="png"))
    assert only_labels == [("missing_pair", b"", None)]
    assert read_of(read_tar(tar_of([("a.jpg", b"label"), ("a.png", b"image")]), labels="jpg")) == [
        ("ok", b"image", b"label")
    ]


@given(st.permutations(["a.jpg", "a.seg.png", "a.seg.json", "a.json"]))
def test_a_label_with_an_extension_of_two_parts_is_found_in_any_order(names):
    (item,) = read_tar(tar_of([(name, name.encode()) for name in names]), labels="seg.png")
    assert (item.data, item.label) == (b"a.jpg", b"a.seg.png")


@pytest.mark.parametrize(("label", "code"), [(b"", "empty"), (b"x" * 99, "too_many_bytes")])
def test_a_label_that_cannot_be_read_fails_its_sample_alone(label, code):
    members = [("a.jpg", b"A"), ("a.png", label), ("b.jpg", b"B"), ("b.png", b"b")]
    assert read_of(read_tar(tar_of(members), labels="png", max_bytes=50)) == [(code, b"", None), ("ok", b"B", b"b")]


@given(st.integers(0, 8 * BLOCK))
def test_a_cut_tar_gives_no_image_without_the_label_it_had(at):
    tar = tar_of([("a.jpg", b"A"), ("a.png", b"a"), ("b.jpg", b"B"), ("b.png", b"b")])
    read = read_of(read_tar(tar[:at] or tar[:1], labels="png"))
    assert all(item in (("ok", b"A", b"a"), ("ok", b"B", b"b")) for item in read if item[0] == "ok")


def test_labels_are_not_delivered_unless_asked():
    assert [item.label for item in read_tar(tar_of(LABELLED))] == [None] * 3
