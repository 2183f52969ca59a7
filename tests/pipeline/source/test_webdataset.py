"""The WebDataset source: samples of members, failures, duplicate names, labels, and resuming."""

import io
import logging
import re
import tarfile
import time
import tracemalloc

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.config import ReadConfig
from pipeline.records import Item
from pipeline.source import webdataset
from pipeline.source.plan import read_items
from pipeline.source.shard import object_shard
from pipeline.source.tar import BLOCK, entries
from pipeline.store import objects
from pipeline.store.url import Url
from tests.pipeline.source.test_choice import picture
from tests.support.tars import END_KEY, THREE, codes, pax_header, read_tar, shard_of, tar_of


class LeftOutLog(logging.Handler):
    """Counts the images that the log of the source says are left out beside others."""

    def __init__(self) -> None:
        super().__init__()
        self.members = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.members += sum(int(n) for n in re.findall(r"(\d+) label or preview beside", record.getMessage()))

    def __enter__(self) -> "LeftOutLog":
        webdataset.log.addHandler(self)
        webdataset.log.setLevel(logging.INFO)
        return self

    def __exit__(self, *error: object) -> None:
        webdataset.log.removeHandler(self)
        webdataset.log.setLevel(logging.NOTSET)


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


def test_a_label_or_preview_beside_an_image_is_left_out_and_named(caplog):
    members = [("a.jpg", picture("JPEG", 8)), ("a.tif", picture("TIFF", 32)), ("b.jpg", b"x"), ("b.thumb.jpg", b"x")]
    with caplog.at_level(logging.INFO):
        items = read_tar(tar_of(members))
    assert [(item.key, item.data) for item in items] == [("a.tar#a", members[1][1]), ("a.tar#b", b"x")]
    assert "1 label or preview beside a larger image ('a.jpg')" in caplog.text
    assert "1 label or preview by its name ('b.thumb.jpg')" in caplog.text


# ---------------------------------------------------------------- names with dots


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["scene.jpg", "scene.1.jpg", "scene.2.jpg"], ["scene.1", "scene.2", "scene"]),
        (["0.jpg", "0.25.jpg", "0.5.jpg"], ["0.25", "0.5", "0"]),
        (["photo.2024.06.01.jpg", "photo.2024.06.02.JPG"], ["photo.2024.06.01", "photo.2024.06.02"]),
        (["d.1/a.b.jpg", "d.1/a.c.jpg"], ["d.1/a.b", "d.1/a.c"]),
        (["a.left.png", "a.right.png", "a.json"], ["a.left", "a.right"]),
        (["a.left.png", "b.left.png", "a.right.png"], ["a.left", "b.left", "a.right"]),
        (["frame-1.color.jpg", "frame-1.depth.png"], ["frame-1.color"]),
        (["IMG_1.JPG.jpg", "IMG_1.jpg"], ["IMG_1.JPG", "IMG_1"]),
        (["x.jpg", "x.jpeg"], ["x", "x.jpeg"]),
        (["x.jpeg", "x.JPG", "x.json"], ["x", "x.jpeg"]),
        (["x.tiff", "x.tif", "x.jpg"], ["x", "x.tiff"]),
        (["x.jpeg"], ["x"]),
        (["x..jpg", "x.jpg"], ["x.", "x"]),
        (["_DSC1.JPG", ".hidden.jpg", "._x.jpg", "a/._x.jpg"], ["_DSC1"]),
        (["x.jpg", "x.png", "x.json", "x.txt", "x.cls"], ["x"]),
        (["x.jpg", "x.seg.png", "x.mask.jpg", "x.thumb.jpg", "x.meta.json"], ["x"]),
    ],
)
def test_images_whose_names_hold_dots_are_items_of_their_own(names, keys):
    items = read_tar(tar_of([(name, b"x") for name in names]))
    assert codes(items) == {f"a.tar#{key}": "ok" for key in keys}
    assert len(items) == len(keys) == items[-1].shard_rows


WORDS = st.lists(st.sampled_from(["a", "b", "1", "25m", "left", "JPG", ""]), max_size=3)


@given(st.lists(st.tuples(st.sampled_from("xy"), WORDS, st.sampled_from(["jpg", "jpeg", "JPG", "tif"])), min_size=1))
def test_every_image_member_is_an_item_a_counted_failure_or_in_the_log(parts):
    """Names of any dots: as many items as members, less previews beside a TIFF, whatever repeats."""
    names = [".".join([base, *words, suffix]) for base, words, suffix in parts]
    with LeftOutLog() as log:
        items = read_tar(tar_of([(name, name.encode()) for name in names]), on_duplicate="suffix")
    assert len(items) + log.members == len(names)
    assert len({item.key for item in items}) == len(items) == items[-1].shard_rows
    assert all(item.failure is None and item.data.decode() in names for item in items)


@given(st.permutations(["a.1.jpg", "a.1.png", "a.2.jpg", "a.2.json", "a.2.seg.png"]))
def test_images_with_dots_have_the_labels_of_their_names_where_they_stand_together(names):
    together = sorted(names, key=lambda name: name[:3])
    read = {
        item.key: (item.data, item.label)
        for item in read_tar(tar_of([(n, n.encode()) for n in together]), labels="png")
    }
    assert read == {"a.tar#a.1": (b"a.1.jpg", b"a.1.png"), "a.tar#a.2": (b"a.2.jpg", b"a.2.json")}


def test_the_label_of_the_base_name_finds_its_image_behind_other_images():
    """The order of a sorted listing."""
    names = ["a.1.jpg", "a.1.png", "a.jpg", "a.left.jpg", "a.left.png", "a.png"]
    items = read_tar(tar_of([(name, name.encode()) for name in names]), labels="png")
    assert {item.data: item.label for item in items} == {
        b"a.1.jpg": b"a.1.png",
        b"a.left.jpg": b"a.left.png",
        b"a.jpg": b"a.png",
    }


@given(st.data())
def test_resuming_a_tar_with_dots_gives_each_image_once(data):
    names = ["a.1.jpg", "a.jpeg", "a.jpg", "a.left.tif", "b.tif", "b.jpg", "c.seg.png"]
    shard = shard_of(tar_of([(name, name.encode()) for name in names]))
    everything = list(read_items(shard, ReadConfig(), max_bytes=1000))
    skip = data.draw(st.sets(st.sampled_from([item.key for item in everything])))
    rest = list(read_items(shard, ReadConfig(), max_bytes=1000, skip=frozenset(skip)))
    assert [(item.key, item.data) for item in rest] == [
        (item.key, item.data) for item in everything if item.key not in skip
    ]


def test_a_preview_is_not_taken_for_an_image_that_was_cut():
    tar = tar_of([("a.jpg", b"preview"), ("a.tif", b"x" * 2000)])
    assert codes(read_tar(tar[: 4 * BLOCK])) == {END_KEY: "archive_truncated"}


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
    assert (
        "4 unsafe name ('../../x.jpg'), 1 .pkl ('x.pkl'), 1 .pyd ('x.pyd'), 1 hidden ('._x.jpg'), 1 without"
        in caplog.text
    )


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
    items = read_tar(tar_of([("a.json", b"{}"), ("a.txt", b"x"), ("b.seg.jpg", b"x"), ("c.jpg", b"x")]))
    assert codes(items) == {"a.tar#a": "missing_pair", "a.tar#b": "missing_pair", "a.tar#c": "ok"}
    assert ".json, .txt" in items[0].failure.detail
    assert ".seg.jpg" in items[1].failure.detail


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
