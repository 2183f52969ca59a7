"""A collection is the same whatever it is stored as, what is left out is named, and nothing is read twice."""

import io
import json
import multiprocessing
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PilImage

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError, LabelError, StorageError
from pipeline.image.labels import Coding
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.training import collection
from pipeline.training.collection import Collection, image_name, open_collection
from tests.support.tars import tar_of

CLASSES = ClassMap.model_validate(
    {"name": "three", "classes": [{"name": name, "colour": (0, 0, 9)} for name in ("soil", "weed", "crop")]}
)
SIZE = 12, 16
BOXES = b'{"boxes": [{"class": "crop", "box": [1, 2, 5, 6]}]}'


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    PilImage.fromarray(array).save(out, "PNG")
    return out.getvalue()


def example(seed: int, high: int = 3) -> tuple[bytes, bytes]:
    rng = np.random.default_rng(seed)
    return png(rng.integers(0, 256, (*SIZE, 3), np.uint8)), png(rng.integers(0, high, SIZE, np.uint8))


EXAMPLES = {f"{name}": example(seed) for seed, name in enumerate(["a", "b", "c", "d", "e"])}


def put_folder(url: Url, examples=EXAMPLES) -> None:
    for name, (image, label) in examples.items():
        objects.put(url / "images" / f"{name}.png", image)
        if label is not None:
            suffix = "json" if label.startswith(b"{") else "png"
            objects.put(url / "labels" / f"{name}.{suffix}", label)


def put_tar(url: Url, examples=EXAMPLES) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, pair in examples.items():
            for suffix, data in zip(("jpg", "png"), pair, strict=True):
                header = tarfile.TarInfo(f"{name}.{suffix}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    objects.put(url / "0.tar", out.getvalue())


def put_parquet(url: Url, examples=EXAMPLES) -> None:
    images, labels = zip(*examples.values(), strict=True)
    out = io.BytesIO()
    pq.write_table(pa.table({"key": list(examples), "image": images, "label": labels}), out, row_group_size=2)
    objects.put(url / "0.parquet", out.getvalue())


def open_in(folder: Path, *parts: str, **options) -> Collection:
    return open_collection(Url(str(folder)), parts or ("part",), classes=CLASSES, cache=folder / "cache", **options)


@pytest.mark.parametrize("put", [put_folder, put_tar, put_parquet])
def test_a_collection_is_the_same_whatever_it_is_stored_as(put, tmp_path):
    put(Url(str(tmp_path / "part")))
    found = open_in(tmp_path)
    assert [(found[i].image, found[i].label) for i in range(len(found))] == list(EXAMPLES.values())
    assert [Path(key.rpartition("#")[2]).stem for key in found.keys] == list(EXAMPLES)
    expected = [
        np.bincount(np.array(PilImage.open(io.BytesIO(label))).ravel(), minlength=3) for _, label in EXAMPLES.values()
    ]
    np.testing.assert_array_equal(found.counts_nk, expected)
    assert not found.weak_n.any()
    assert found.left_out == []


def test_what_is_left_out_is_named_with_its_code(tmp_path):
    image, label = example(0)
    put_folder(
        Url(str(tmp_path / "part")),
        {"fine": (image, label), "bare": (image, None), "cut": (image[:99], label), "text": (b"text", label)},
    )
    found = open_in(tmp_path)
    assert found.keys == ["fine.png"]
    assert dict(found.left_out) == {"bare.png": "label_missing", "cut.png": "truncated", "text.png": "not_an_image"}


def test_more_images_left_out_than_allowed_stop_the_run_and_the_message_has_reasons_and_share(tmp_path):
    image, label = example(0)
    examples = {str(index): (image, label) for index in range(6)}
    put_folder(Url(str(tmp_path / "part")), examples | {"bare": (image, None), "text": (b"text", label)})
    assert len(open_in(tmp_path, max_left_out=0.25)) == 6
    with pytest.raises(
        ConfigError, match=r"2 of 8 images are left out \(25.0%\): 1 label_missing, 1 not_an_image"
    ) as stop:
        open_in(tmp_path, max_left_out=0.24)
    assert "--sets.max-left-out-share 0.25 accepts it" in stop.value.hint


@pytest.mark.parametrize("name", ["1.tif", "1.jpg", "1_mask.png", "mask_1.png", "deep/1.png"])
def test_labels_of_another_format_or_name_are_named_in_the_hint(name, tmp_path):
    url = Url(str(tmp_path / "part"))
    objects.put(url / "images/1.png", example(0)[0])
    objects.put(url / "labels" / name, example(0)[1])
    objects.put(url / "labels/12.tif", b"of another image")
    with pytest.raises(ConfigError, match="1 label_missing") as stop:
        open_in(tmp_path)
    assert f"found {name}" in stop.value.hint


@pytest.mark.parametrize("put", [put_folder, put_tar, put_parquet])
def test_labels_in_other_values_or_in_colours_become_class_ids(put, tmp_path):
    ids = {name: np.array(PilImage.open(io.BytesIO(label))) for name, (_, label) in EXAMPLES.items()}
    colours = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9]], np.uint8)
    coloured = ClassMap.model_validate(
        {"name": "three", "classes": [{"name": n, "colour": c} for n, c in zip("abc", colours.tolist(), strict=True)]}
    )
    stored = {
        "values": ({name: png(label * 100) for name, label in ids.items()}, Coding(ids={0: 0, 100: 1, 200: 2})),
        "colours": ({name: png(colours[label]) for name, label in ids.items()}, Coding("colours")),
    }
    for part, (files, coding) in stored.items():
        put(Url(str(tmp_path / part)), {name: (EXAMPLES[name][0], label) for name, label in files.items()})
        found = open_collection(Url(str(tmp_path)), (part,), classes=coloured, cache=tmp_path / "cache", coding=coding)
        for index, label in enumerate(ids.values()):
            np.testing.assert_array_equal(PilImage.open(io.BytesIO(found[index].label)), label)


def test_classes_without_a_pixel_and_the_ignored_share_are_known(tmp_path, caplog):
    label = np.zeros(SIZE, np.uint8)
    label[:3] = 255
    put_folder(Url(str(tmp_path / "part")), {"1": (example(0)[0], png(label))})
    coverage = open_in(tmp_path).coverage
    assert coverage.unlabelled == ["weed", "crop"]
    assert coverage.ignored_share == 0.25
    assert "labels of 1 of 3 classes, none of: weed, crop; 25.0% of their pixels are ignored" in caplog.text


def test_photos_that_exif_turns_are_counted_and_a_label_in_their_stored_frame_says_so(tmp_path, caplog):
    caplog.set_level("INFO")
    exif = PilImage.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    PilImage.new("RGB", SIZE[::-1]).save(out, "JPEG", exif=exif)
    put_folder(Url(str(tmp_path / "part")), {"1": (out.getvalue(), png(np.zeros(SIZE[::-1], np.uint8)))})
    assert open_in(tmp_path).turned == 1
    assert "EXIF turns 1, whose labels must be upright too" in caplog.text
    put_folder(Url(str(tmp_path / "raw")), {"1": (out.getvalue(), png(np.zeros(SIZE, np.uint8)))})
    with pytest.raises(LabelError, match="12x16 pixels as the photo is stored, not as it is shown") as stop:
        open_in(tmp_path, "raw")
    assert "EXIF orientation 6" in stop.value.hint


def test_weak_labels_stand_beside_full_ones(tmp_path):
    image, label = example(0)
    put_folder(Url(str(tmp_path / "part")), {"full": (image, label), "weak": (image, BOXES)})
    found = open_in(tmp_path)
    assert found.weak_n.tolist() == [False, True]
    assert found.counts_nk.sum(axis=1).tolist() == [SIZE[0] * SIZE[1], 0]
    assert found[1].label == BOXES


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (example(0, high=5)[1], "of 1.png has the value"),
        (png(np.zeros((3, 3), np.uint8)), "3x3"),
        (b'{"classes": ["tree"]}', "tree"),
        (b'{"boxes": [{"class": "crop", "box": [0, 0, 99, 9]}]}', "99"),
    ],
)
def test_a_label_that_contradicts_image_or_class_map_stops_the_run_and_leaves_no_copy(label, said, tmp_path):
    put_folder(Url(str(tmp_path / "part")), {"1": (example(0)[0], label)})
    with pytest.raises(LabelError, match=said):
        open_in(tmp_path)
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "part does not exist"),
        ({"images/1.yaml": b"x", "labels/1.png": b"x"}, "no images in .*part/images; ignored: 1 .yaml"),
        ({"notes.txt": b"x"}, "no images in .*part; ignored: 1 .txt"),
        ({"1.tar": tar_of([("x.yaml", b"x")])}, "part has no image; left out: 1 empty_archive"),
        ({"images/1.png": example(0)[0]}, "labels does not exist"),
        ({"images/1.png": example(0)[0], "labels/2.png": example(0)[1]}, "1 label_missing"),
        ({"images/1.png": b"text", "labels/1.png": example(0)[1]}, "1 not_an_image"),
    ],
)
def test_a_part_without_a_labelled_image_is_refused(files, said, tmp_path):
    for path, data in files.items():
        objects.put(Url(str(tmp_path / "part" / path)), data)
    with pytest.raises(ConfigError, match=said):
        open_in(tmp_path)


def test_images_without_a_folder_of_labels_are_refused(tmp_path):
    objects.put(Url(str(tmp_path / "part" / "1.png")), example(0)[0])
    with pytest.raises(ConfigError, match="neither images/ and labels/"):
        open_in(tmp_path)


def test_parts_follow_each_other(tmp_path):
    put_folder(Url(str(tmp_path / "one")), {"1": example(1)})
    put_tar(Url(str(tmp_path / "two")), {"2": example(2)})
    assert open_in(tmp_path, "two", "one").keys == ["0.tar#2", "1.png"]


def test_labels_can_have_a_folder_of_another_name(tmp_path):
    put_folder(Url(str(tmp_path / "part")))
    (tmp_path / "part" / "labels").rename(tmp_path / "part" / "fine")
    assert len(open_in(tmp_path, where="fine")) == len(EXAMPLES)


# ---------------------------------------------------------------- the cache


def test_what_is_in_the_cache_is_not_read_again(tmp_path, monkeypatch):
    put_folder(Url(str(tmp_path / "part")))
    first = open_in(tmp_path)
    monkeypatch.setattr(collection, "read_items", None)
    again = open_in(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert again[2] == first[2]


def test_a_damaged_cache_file_is_named(tmp_path):
    put_folder(Url(str(tmp_path / "part")))
    open_in(tmp_path)
    for file in (tmp_path / "cache").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StorageError, match=r"cache/.*\.arrow is damaged.*\n.*delete it"):
        open_in(tmp_path)


def test_a_copy_that_cannot_be_written_is_an_error_with_a_way_out(tmp_path):
    put_folder(Url(str(tmp_path / "part")))
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(StorageError, match=r"--runtime\.cache"):
        open_in(tmp_path)


def test_a_changed_label_is_read_again_though_its_image_is_the_same(tmp_path):
    put_folder(Url(str(tmp_path / "part")))
    before = open_in(tmp_path)
    other = example(77)[1]
    objects.put(Url(str(tmp_path / "part" / "labels" / "c.png")), other)
    now = open_in(tmp_path)
    assert now[2].label == other
    assert now.fingerprint != before.fingerprint


def test_the_fingerprint_is_of_the_content_and_not_of_where_it_is(tmp_path):
    for name in ("one", "two"):
        put_folder(Url(str(tmp_path / name / "part")))
    one, two = (open_in(tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert one.subset([0, 1]).fingerprint != one.subset([1, 0]).fingerprint != one.fingerprint


def _open_and_print(folder: str, queue: multiprocessing.Queue) -> None:
    queue.put(open_in(Path(folder)).fingerprint)


def test_processes_that_open_at_once_share_one_copy(tmp_path):
    put_folder(Url(str(tmp_path / "part")))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_open_and_print, args=(str(tmp_path), queue)) for _ in range(3)]
    for process in processes:
        process.start()
    found = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1
    assert not list((tmp_path / "cache").glob("*.tmp*"))


def test_another_process_is_sent_names_of_files_and_no_bytes(tmp_path):
    put_folder(Url(str(tmp_path / "part")))
    found = open_in(tmp_path).subset([3, 1])
    rebuild, arguments = found.__reduce__()
    assert len(json.dumps([str(one) for one in arguments])) < 3000
    again = rebuild(*arguments)
    assert [again[i] for i in range(2)] == [found[0], found[1]]
    assert again.fingerprint == found.fingerprint


# ---------------------------------------------------------------- cutting


def test_a_split_is_exact_near_its_share_and_stable_when_images_come(tmp_path):
    image, label = example(0)
    names = [f"{n:03}" for n in range(120)]
    for part, kept in (("few", names[::2]), ("all", names)):
        put_tar(Url(str(tmp_path / part)), dict.fromkeys(kept, (image, label)))
    few, full = (open_in(tmp_path, part) for part in ("few", "all"))
    train, validation = full.split(0.25)
    assert sorted(train.keys + validation.keys) == full.keys
    assert 15 < len(validation) < 45
    assert set(few.split(0.25)[1].keys) == set(validation.keys) & set(few.keys)


def test_both_sides_of_a_split_hold_something(tmp_path):
    put_folder(Url(str(tmp_path / "part")))
    found = open_in(tmp_path)
    assert [len(side) for side in found.split(1e-9)] == [4, 1]
    assert [len(side) for side in found.split(1 - 1e-9)] == [1, 4]
    with pytest.raises(ConfigError, match="one labelled image"):
        found.subset([0]).split(0.5)


def test_held_out_groups_are_the_images_whose_names_begin_so_in_any_folder_or_tar(tmp_path):
    image, label = example(0)
    names = ["day1_000", "day1_001", "day2_000", "day12_000", "xday2_0"]
    put_tar(Url(str(tmp_path / "part")), dict.fromkeys(names, (image, label)))
    found = open_in(tmp_path)
    rest, held = found.hold_out(("day1_", "day2"))
    assert sorted(rest.keys + held.keys) == sorted(found.keys)
    assert sorted(image_name(key).partition(".")[0] for key in held.keys) == ["day1_000", "day1_001", "day2_000"]


# ---------------------------------------------------------------- other bands


def test_images_of_other_bands_are_taken_when_they_are_named(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    tifffile.imwrite(out, np.zeros((*SIZE, 5), np.uint16), photometric="minisblack", planarconfig="contig")
    (tmp_path / "part" / "images").mkdir(parents=True)
    (tmp_path / "part" / "images" / "1.tif").write_bytes(out.getvalue())
    objects.put(Url(str(tmp_path / "part" / "labels" / "1.png")), example(0)[1])
    assert len(open_in(tmp_path, channels=("1", "2", "3", "4", "5"))) == 1
    with pytest.raises(ConfigError, match="band_mismatch"):
        open_in(tmp_path)
