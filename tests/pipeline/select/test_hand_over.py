"""Hand-over: the original bytes, and pre-labels from which each tool's mask is the run's."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from pipeline.classes import ClassInfo, ClassMap
from pipeline.errors import ConfigError
from pipeline.image.run_lengths import decode_brush
from pipeline.run import folder, parts
from pipeline.select import cvat, files, label_studio
from pipeline.select.files import Picture, file_stem
from pipeline.select.hand_over import hand_over
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.photo_runs import FARM, HEIGHT, WIDTH, mask_of, photo, photo_run

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PHOTOS = {
    "a.jpg": photo(1),
    "b/a.jpg": photo(2),
    "turned.jpg": photo(3, orientation=6),
    "p.png": photo(4, kind="PNG"),
    "old.tif": photo(5, kind="TIFF"),
}
TOOLS = ("labelstudio", "cvat", "coco")
HOSTILE = [
    *("../../etc/passwd", "/etc/passwd", "..", ".", "", "a\nb.jpg", "a\0b.jpg", 'q".jpg', "q'.jpg", "<script>.jpg"),
    *("a/../../b.jpg", "C:\\x.jpg", "t.tar#../../x", "&amp;.jpg", "ä ö.jpg", "x" * 300 + ".jpg", "%2e%2e%2f.jpg"),
]


@pytest.fixture
def run_url(tmp_path: Path) -> Url:
    return photo_run(tmp_path, PHOTOS)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def by_key(root: Path) -> dict[str, Picture]:
    return {picture.key: picture for picture in files.read_pictures(Url(str(root)))}


def test_images_are_the_bytes_of_the_source_in_the_order_of_the_keys(run_url: Url, tmp_path: Path) -> None:
    keys = ["turned.jpg", "p.png", "old.tif", "b/a.jpg", "a.jpg"]
    summary = hand_over(run_url, keys, Url(str(tmp_path / "to")), [])
    assert summary == {"handed_over": 5, "not_handed_over": {}}
    pictures = files.read_pictures(Url(str(tmp_path / "to")))
    assert [picture.key for picture in pictures] == keys
    assert {(picture.height, picture.width) for picture in pictures} == {(HEIGHT, WIDTH)}
    for picture in pictures:
        assert (tmp_path / "to/images" / picture.file).read_bytes() == PHOTOS[picture.key]
    assert sorted(path.suffix for path in (tmp_path / "to/images").iterdir()) == [*[".jpg"] * 3, ".png", ".tif"]
    assert ClassMap.model_validate(yaml.safe_load((tmp_path / "to/classes.yaml").read_bytes())) == FARM


def label_studio_masks(root: Path) -> dict[str, np.ndarray]:
    """Masks of the predictions, and the image that each task names."""
    config = ElementTree.fromstring((root / "label_studio/config.xml").read_bytes())
    names = [label.get("value") for label in config.iter("Label")]
    masks = {}
    for task in json.loads((root / "label_studio/tasks.json").read_bytes()):
        (file,) = parse_qs(urlsplit(task["data"]["image"]).query)["d"]
        assert (root / file).exists()
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        for result in task["predictions"][0]["result"]:
            assert (result["from_name"], result["to_name"]) == ("classes", "image")
            assert (result["original_height"], result["original_width"]) == (HEIGHT, WIDTH)
            (name,) = result["value"]["brushlabels"]
            mask[decode_brush(bytes(result["value"]["rle"]), HEIGHT, WIDTH)] = names.index(name)
        masks[task["data"]["key"]] = mask
    return masks


def cvat_masks(root: Path) -> dict[str, np.ndarray]:
    """Masks of the XML, drawn as its page says, without our decoder."""
    names = [label["name"] for label in json.loads((root / "cvat/labels.json").read_bytes())]
    keys = {picture.file: picture.key for picture in files.read_pictures(Url(str(root)))}
    masks = {}
    for image in ElementTree.fromstring((root / "cvat/annotations.xml").read_bytes()).iter("image"):
        mask = np.full((int(image.get("height", 0)), int(image.get("width", 0))), 255, np.uint8)
        for one in image:
            runs = [int(run) for run in one.get("rle", "").split(", ")]
            bits = [number % 2 for number, run in enumerate(runs) for _ in range(run)]
            left, top, width, height = (int(one.get(side, "")) for side in ("left", "top", "width", "height"))
            for place, bit in enumerate(bits):
                if bit:
                    mask[top + place // width, left + place % width] = names.index(one.get("label", ""))
            assert len(bits) == width * height
        masks[keys[image.get("name", "")]] = mask
    return masks


def coco_masks(root: Path) -> dict[str, np.ndarray]:
    coco = pytest.importorskip("pycocotools.coco").COCO(str(root / "coco/annotations.json"))
    masks = {}
    for image in coco.loadImgs(coco.getImgIds()):
        mask = np.full((image["height"], image["width"]), 255, np.uint8)
        for one in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            mask[coco.annToMask(one) == 1] = FARM.names.index(coco.cats[one["category_id"]]["name"])
        masks[image["key"]] = mask
    return masks


@pytest.mark.parametrize(
    ("tool", "masks_in"), [("labelstudio", label_studio_masks), ("cvat", cvat_masks), ("coco", coco_masks)], ids=TOOLS
)
def test_pre_labels_of_each_tool_are_the_masks_of_the_run(tool: Any, masks_in, run_url: Url, tmp_path: Path) -> None:
    hand_over(run_url, sorted(PHOTOS), Url(str(tmp_path / "to")), [tool])
    masks = masks_in(tmp_path / "to")
    assert sorted(masks) == sorted(PHOTOS)
    for key, mask in masks.items():
        np.testing.assert_array_equal(mask, mask_of(key))


def test_the_same_call_again_reads_no_image_and_changes_no_byte(
    run_url: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_over(run_url, sorted(PHOTOS), Url(str(tmp_path / "to")), TOOLS)
    before = contents(tmp_path / "to")
    monkeypatch.setattr(files, "write_files", lambda *_: pytest.fail("images were read again"))
    assert hand_over(run_url, sorted(PHOTOS), Url(str(tmp_path / "to")), TOOLS)["handed_over"] == 5
    assert contents(tmp_path / "to") == before


def test_images_that_are_gone_damaged_or_replaced_are_counted_and_tried_again(
    run_url: Url, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "photos"
    (source / "a.jpg").unlink()
    (source / "p.png").write_bytes(photo(4, kind="PNG")[:20])
    keys = [*sorted(PHOTOS), "nobody.jpg"]
    summary = hand_over(run_url, keys, Url(str(tmp_path / "to")), ["cvat"])
    assert summary["not_handed_over"] == {"mask_missing": 1, "not_found": 1, "truncated": 1}
    assert "first 'a.jpg'" in caplog.text
    (source / "a.jpg").write_bytes(PHOTOS["a.jpg"])
    (source / "p.png").write_bytes(PHOTOS["p.png"])
    assert hand_over(run_url, keys, Url(str(tmp_path / "to")), ["cvat"])["not_handed_over"] == {"mask_missing": 1}
    assert len(cvat_masks(tmp_path / "to")) == 5


def test_an_image_of_another_size_than_its_mask_is_not_handed_over(run_url: Url, tmp_path: Path) -> None:
    (tmp_path / "photos/turned.jpg").write_bytes(photo(3, orientation=6).replace(b"\x01\x12", b"\x01\x13", 1))
    assert hand_over(run_url, ["turned.jpg"], Url(str(tmp_path / "to")), [])["not_handed_over"] == {"mask_unusable": 1}


def test_the_images_may_lie_elsewhere_now(run_url: Url, tmp_path: Path) -> None:
    (tmp_path / "photos").rename(tmp_path / "moved")
    hand_over(run_url, sorted(PHOTOS), Url(str(tmp_path / "to")), [], source=[str(tmp_path / "moved")])
    assert len(by_key(tmp_path / "to")) == 5


def test_a_folder_with_images_of_other_keys_is_refused(run_url: Url, tmp_path: Path) -> None:
    hand_over(run_url, ["a.jpg"], Url(str(tmp_path / "to")), [])
    with pytest.raises(ConfigError, match=r"images of another selection: 'a\.jpg'"):
        hand_over(run_url, ["p.png"], Url(str(tmp_path / "to")), [])


def test_a_run_over_rasters_is_refused(run_url: Url, tmp_path: Path) -> None:
    cfg = yaml.safe_load(objects.read_bytes(run_url / folder.CONFIG))
    cfg["read"]["kind"] = "raster"
    objects.put(run_url / folder.CONFIG, json.dumps(cfg).encode())
    with pytest.raises(ConfigError, match="a run over rasters"):
        hand_over(run_url, ["a.jpg"], Url(str(tmp_path / "to")), [])


def test_names_of_hostile_keys_are_plain_and_of_their_own() -> None:
    stems = [file_stem(key) for key in HOSTILE]
    assert len(set(stems)) == len(HOSTILE)
    for stem in stems:
        assert set(stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-~")
        assert not stem.startswith((".", "-"))
        assert len(stem) <= 100


def test_hostile_keys_and_class_names_stay_text_in_every_file() -> None:
    evil = ClassMap(
        name="e", classes=tuple(ClassInfo(name=name, colour=(1, 2, 3)) for name in ('"><x y="', "</label>&\n'"))
    )
    pictures = [Picture(key, f"{file_stem(key)}.jpg", 1, 2, None, None) for key in HOSTILE]
    mask = np.array([[0, 1]], np.uint8)
    tasks = json.loads(b"".join(label_studio.tasks(pictures, evil, lambda _: mask, label_studio.LOCAL_FILES)))
    assert [task["data"]["key"] for task in tasks] == HOSTILE
    config = ElementTree.fromstring(label_studio.configuration(evil))
    assert [label.get("value") for label in config.iter("Label")] == list(evil.names)
    tree = ElementTree.fromstring(b"".join(cvat.annotations(pictures, evil, lambda _: mask)))
    assert {one.get("label") for one in tree.iter("mask")} == set(evil.names)
    assert {image.get("name") for image in tree.iter("image")} == {picture.file for picture in pictures}


@pytest.mark.parametrize("letter", ["\0", "\x1b", "\ufffe"])
def test_a_class_name_that_xml_cannot_hold_is_refused_before_anything_is_written(
    run_url: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letter: str
) -> None:
    soil, *others = FARM.classes
    named = FARM.model_copy(update={"classes": (soil.model_copy(update={"name": f"so{letter}il"}), *others)})
    monkeypatch.setattr(parts, "read_classes", lambda *_: named)
    for tool in ("labelstudio", "cvat"):
        with pytest.raises(ConfigError, match="XML cannot"):
            hand_over(run_url, sorted(PHOTOS), Url(str(tmp_path / "to")), ["coco", tool])
    assert not (tmp_path / "to").exists()
    assert hand_over(run_url, sorted(PHOTOS), Url(str(tmp_path / "to")), ["coco"])["handed_over"] == 5


def test_files_of_hostile_keys_lie_in_the_folder(tmp_path: Path) -> None:
    names = ["q'q.jpg", 'q"q.jpg', "<b>.jpg", "a b&c.jpg", "%2e%2e.jpg", "line\nbreak.jpg"]
    url = photo_run(tmp_path, {name: photo(number) for number, name in enumerate(names)})
    before = set(contents(tmp_path))
    hand_over(url, names, Url(str(tmp_path / "to")), TOOLS)
    assert {path.split("/")[0] for path in set(contents(tmp_path)) - before} == {"to"}
    assert sorted(label_studio_masks(tmp_path / "to")) == sorted(names)
    assert sorted(cvat_masks(tmp_path / "to")) == sorted(names)


def test_tasks_name_images_where_the_tool_finds_them() -> None:
    assert label_studio.images_at(Url("s3://b/x")) == "s3://b/x/images/"
    assert label_studio.images_at(Url("/tmp/x")) == "/data/local-files/?d=images/"
