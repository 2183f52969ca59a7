"""COCO 2017 in miniature: polygons, crowds as run lengths, categories with gaps; and COCO-Stuff's maps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as rle

from pipeline.datasets.coco import AS_VOC, STUFF, STUFF_IDS, THING_IDS, THINGS, VOC_IDS, run_lengths
from pipeline.datasets.layout import ListedExample
from pipeline.errors import ConfigError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import JPEG, grey_png, put

# pycocotools 2.0.11 makes NumPy 2 say what NumPy 3 will refuse.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEIGHT, WIDTH = 6, 8
PERSON, BICYCLE, LAPTOP, TOOTHBRUSH = 1, 2, 73, 90
NEVER_USED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


def box(category: int, x0: int, y0: int, x1: int, y1: int, **more: Any) -> dict[str, Any]:
    """An object with one polygon, which is drawn as exactly the pixels from x0, y0 to below x1, y1."""
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    area = (x1 - x0) * (y1 - y0)
    return {"category_id": category, "iscrowd": 0, "area": area, "segmentation": [polygon]} | more


def counts_of(mask_hw: np.ndarray) -> list[int]:
    """Run lengths as in the JSON files: column by column, the first run is off."""
    flat = mask_hw.T.ravel().astype(int)
    ends = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return np.diff([0, *ends, flat.size]).tolist()


def crowd(category: int, mask_hw: np.ndarray) -> dict[str, Any]:
    outline = {"counts": counts_of(mask_hw), "size": [*mask_hw.shape]}
    return {"category_id": category, "iscrowd": 1, "area": int(mask_hw.sum()), "segmentation": outline}


def write(root: Path, split: str, *images: list[dict[str, Any]]) -> None:
    """An instances file; the ids of images and objects are in no order."""
    ids = [30 - index for index in range(len(images))]
    listed = [{"id": i, "file_name": f"{i:012}.jpg", "height": HEIGHT, "width": WIDTH, "license": 3} for i in ids]
    annotations = [
        one | {"image_id": i, "bbox": [0, 0, 1, 1]} for i, ones in zip(ids, images, strict=True) for one in ones
    ]
    text = json.dumps({"info": {}, "images": listed, "annotations": annotations[::-1], "categories": []})
    put(root, f"annotations/instances_{split}2017.json", text)
    for i in ids:
        put(root, f"images/{split}2017/{i:012}.jpg", JPEG + str(i).encode())


def drawn(objects: list[dict[str, Any]], layout=THINGS) -> np.ndarray:
    outlines = {"file_name": "1.jpg", "height": HEIGHT, "width": WIDTH, "annotations": objects}
    return layout.label("", ListedExample("val/1", "val2017/1.jpg", None, (json.dumps(outlines),)))


def test_every_image_is_listed_in_order_and_read_back(tmp_path: Path) -> None:
    write(tmp_path, "val", [box(BICYCLE, 1, 2, 4, 5)], [], [box(TOOTHBRUSH, 0, 0, 8, 6)])
    examples = THINGS.examples(Url(str(tmp_path)), "val")
    assert [one.key for one in examples] == [f"val/{i:012}" for i in (28, 29, 30)]
    third, second, first = (THINGS.read(Url(str(tmp_path)), one) for one in examples)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:5, 1:4] = 2
    np.testing.assert_array_equal(first.label_hw, expected)
    assert first.image == JPEG + b"30"
    assert not second.label_hw.any()
    assert (third.label_hw == 80).all()


def test_images_may_lie_where_the_archives_put_them(tmp_path: Path) -> None:
    write(tmp_path, "val", [])
    (tmp_path / "images/val2017").rename(tmp_path / "val2017")
    (one,) = THINGS.examples(Url(str(tmp_path)), "val")
    assert one.image == "val2017/000000000030.jpg"
    assert THINGS.read(Url(str(tmp_path)), one).image == JPEG + b"30"


def test_every_category_is_reached_in_order() -> None:
    ids = {category: np.unique(drawn([box(category, 0, 0, WIDTH, HEIGHT)])).tolist() for category in sorted(THING_IDS)}
    assert ids == {category: [category - sum(gap < category for gap in NEVER_USED)] for category in ids}


def test_classes_are_the_background_and_the_80_categories() -> None:
    assert sorted(THING_IDS.values()) == [*range(1, 81)]
    assert len(THINGS.classes) == 81
    names = THINGS.classes.names
    told = {1: "person", 11: "fire hydrant", 13: "stop sign", 44: "bottle", 72: "tv", 73: "laptop", 90: "toothbrush"}
    assert {category: names[THING_IDS[category]] for category in told} == told


def test_different_classes_on_one_pixel_are_ignored_and_alike_ones_are_not() -> None:
    label_hw = drawn([box(PERSON, 0, 0, 4, 6), box(PERSON, 2, 0, 6, 6), box(BICYCLE, 5, 0, 8, 6)])
    assert label_hw.tolist() == [[1, 1, 1, 1, 1, 255, 2, 2]] * HEIGHT


def test_a_crowd_is_ignored_where_no_object_stands() -> None:
    label_hw = drawn([crowd(PERSON, np.ones((HEIGHT, WIDTH), bool)), box(BICYCLE, 0, 0, 8, 3)])
    assert (label_hw[:3] == 2).all()
    assert (label_hw[3:] == 255).all()


objects = st.tuples(st.sampled_from([PERSON, BICYCLE, LAPTOP]), st.integers(0, 5), st.integers(0, 4), st.booleans())


@given(st.lists(objects, max_size=5), st.randoms())
def test_the_order_of_objects_does_not_matter_and_pixels_are_counted_by_hand(chosen, random) -> None:
    boxes = [box(category, x, y, x + 3, y + 2, iscrowd=int(is_crowd)) for category, x, y, is_crowd in chosen]
    label_hw = drawn(boxes)
    for row, column in np.ndindex(HEIGHT, WIDTH):
        here = [one for one in chosen if one[1] <= column < one[1] + 3 and one[2] <= row < one[2] + 2]
        ids = {THING_IDS[category] for category, _, _, is_crowd in here if not is_crowd}
        expected = ids.pop() if len(ids) == 1 else 255 if here else 0
        assert label_hw[row, column] == expected
    random.shuffle(boxes)
    np.testing.assert_array_equal(drawn(boxes), label_hw)


@given(arrays(bool, (HEIGHT, WIDTH)))
def test_run_lengths_are_those_of_coco_s_own_tools(mask_hw: np.ndarray) -> None:
    outline = {"counts": counts_of(mask_hw), "size": [HEIGHT, WIDTH]}
    found = run_lengths(outline, HEIGHT, WIDTH, "1.jpg")
    np.testing.assert_array_equal(found, mask_hw)
    np.testing.assert_array_equal(found, rle.decode(rle.frPyObjects(outline, HEIGHT, WIDTH)))


def test_voc_s_classes_are_reached_by_their_namesakes() -> None:
    theirs = {
        "aeroplane": "airplane",
        "motorbike": "motorcycle",
        "diningtable": "dining table",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
    found = {
        AS_VOC.classes.names[VOC_IDS[one]]: THINGS.classes.names[k] for one, k in THING_IDS.items() if VOC_IDS[one]
    }
    assert found == {name: theirs.get(name, name) for name in AS_VOC.classes.names[1:]}


def test_objects_of_no_class_of_voc_leave_what_is_under_them() -> None:
    label_hw = drawn([box(PERSON, 0, 0, 4, 6), box(LAPTOP, 2, 0, 8, 6), crowd(LAPTOP, np.ones((6, 8), bool))], AS_VOC)
    assert label_hw.tolist() == [[15, 15, 15, 15, 0, 0, 0, 0]] * HEIGHT


def test_only_images_with_enough_of_voc_s_classes_are_for_training(tmp_path: Path) -> None:
    one = [box(PERSON, 0, 0, 8, 6, area=600.0)]
    images = (one * 2, one, [box(LAPTOP, 0, 0, 8, 6, area=9000.0)], [])
    for split, keys in (("train", ["30"]), ("val", ["27", "28", "29", "30"])):
        write(tmp_path, split, *images)
        assert [one.key[-2:] for one in AS_VOC.examples(Url(str(tmp_path)), split)] == keys
    assert len(THINGS.examples(Url(str(tmp_path)), "train")) == 4


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"category_id": 12}, "category 12, which COCO does not use"),
        ({"category_id": "1"}, "category '1'"),
        ({"segmentation": [[0, 0, 8, 6]]}, "has 4 numbers"),
        ({"segmentation": [[0, 0, 8, 6, 1, 1, 2]]}, "has 7 numbers"),
        ({"segmentation": [[0, 0, 1e9, 6, 1, 1]]}, r"leads to 1000000000\.0"),
        ({"segmentation": [[0, 0, float("nan"), 6, 1, 1]]}, "leads to"),
        ({"segmentation": []}, "no polygon"),
        ({"segmentation": None}, "do not have COCO's"),
        ({"segmentation": ["a polygon"]}, "has 9 numbers"),
        ({"segmentation": [["0"] * 6]}, "do not have COCO's"),
        ({"segmentation": {"size": [6, 8]}}, "do not have COCO's"),
        ({"segmentation": {"counts": [47], "size": [6, 8]}}, "does not cover its 6x8"),
        ({"segmentation": {"counts": [-1, 49], "size": [6, 8]}}, "does not cover"),
        ({"segmentation": {"counts": "PPYo1", "size": [6, 8]}}, "does not cover"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else None,
)
def test_a_wrong_object_is_named_with_its_image(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(LabelError, match=r"val2017/1\.jpg.*" + says):
        drawn([box(PERSON, 0, 0, 4, 4) | wrong])


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"images": []}',
        '{"images": [{"id": 1}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": "../../etc/passwd", "height": 1, "width": 1}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": "1.jpg", "height": 1e9, "width": 1e9}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": "1.jpg", "height": "6", "width": "8"}], "annotations": []}',
        '{"images": [], "annotations": [{"image_id": 1}]}',
    ],
)
def test_a_file_that_is_not_coco_s_is_refused(tmp_path: Path, text: str) -> None:
    put(tmp_path, "annotations/instances_val2017.json", text)
    with pytest.raises(ConfigError, match=r"instances_val2017\.json does not have COCO's structure"):
        THINGS.examples(Url(str(tmp_path)), "val")


def test_stuff_closes_the_gaps_of_its_ids_and_ignores_unlabelled(tmp_path: Path) -> None:
    raw = [value for value in range(182) if value + 1 not in NEVER_USED]
    put(tmp_path, "images/val2017/000000000139.jpg", JPEG)
    put(tmp_path, "annotations/val2017/000000000139.png", grey_png(np.array([[*raw, 255]])))
    put(tmp_path, "annotations/instances_val2017.json", "{}")
    (one,) = STUFF.examples(Url(str(tmp_path)), "val")
    read = STUFF.read(Url(str(tmp_path)), one)
    assert (one.key, read.image) == ("val/000000000139", JPEG)
    assert read.label_hw.tolist() == [[*range(171), 255]]


def test_stuff_has_the_names_of_its_ids() -> None:
    names = STUFF.classes.names
    assert names[:80] == THINGS.classes.names[1:]
    told = {1: "person", 13: "stop sign", 90: "toothbrush", 92: "banner", 124: "grass", 157: "sky-other", 182: "wood"}
    assert {label: names[STUFF_IDS[label - 1]] for label in told} == told


def test_an_id_that_stuff_never_uses_is_named(tmp_path: Path) -> None:
    put(tmp_path, "annotations/val2017/000000000139.png", grey_png(np.full((2, 2), 11)))
    (one,) = STUFF.examples(Url(str(tmp_path)), "val")
    with pytest.raises(LabelError, match=r"val2017/000000000139\.png has the value 11 on 4"):
        STUFF.label(Url(str(tmp_path)), one)
