"""What all exports share: images found by name and nothing else, splits by a hash, shapes drawn by a rule."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.classes import load_class_map
from pipeline.datasets import annotated
from pipeline.datasets.config import ANNOTATED, PrepareConfig
from pipeline.datasets.exports import ImageFiles, ToolExport, mask_of
from pipeline.datasets.layout import ListedExample
from pipeline.errors import ConfigError, InputError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import JPEG, put

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FARM = load_class_map("farmland")


def opened(root: Path, layout: str, **settings: object) -> ToolExport:
    """Layout of an export whose class map is farmland's."""
    said = {"classes": "farmland"} | settings
    cfg = {"layout": layout, "root": str(root), "output": "out", "splits": ["train"], "annotated": said}
    return annotated.open_layout(PrepareConfig.model_validate(cfg))


def labels_of(root: Path, layout: str, **settings: object) -> dict[str, np.ndarray]:
    """Label of each image by its path, of both splits."""
    export = opened(root, layout, **settings)
    every = [one for split in export.splits for one in export.examples(Url(str(root)), split)]
    return {one.image: export.label(Url(str(root)), one) for one in every}


def test_the_table_of_layouts_is_that_of_the_settings() -> None:
    assert tuple(annotated.LAYOUTS) == ANNOTATED


def test_the_class_map_is_the_folder_s_or_the_setting_s(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no classes\.yaml"):
        opened(tmp_path, "cvat", classes=None)
    put(tmp_path, "classes.yaml", "name: two\nclasses: [{name: a, colour: [1, 2, 3]}, {name: b, colour: [4, 5, 6]}]\n")
    assert opened(tmp_path, "cvat", classes=None).classes.names == ("a", "b")
    assert opened(tmp_path, "cvat").classes == FARM
    with pytest.raises(ConfigError, match="'soil' is no class of two"):
        opened(tmp_path, "cvat", classes=None, unlabelled="soil")


def test_images_are_found_by_name_by_more_of_the_path_and_as_uploaded() -> None:
    files = ImageFiles(["images/a.jpg", "images/x/b.jpg", "images/y/b.jpg"])
    assert files.find("a.jpg") == "images/a.jpg"
    assert files.find("/data/upload/7/0123abcd-a.jpg") == "images/a.jpg"
    assert files.find("y/b.jpg") == files.find("elsewhere/images/y/b.jpg") == "images/y/b.jpg"
    assert files.find_stem("x/b") == "images/x/b.jpg"
    with pytest.raises(InputError, match=r"2 images may be 'b\.jpg'"):
        files.find("b.jpg")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "", ".", "images", "c.jpg", "a.jpg/.."])
def test_nothing_but_a_listed_image_is_found(name: str) -> None:
    with pytest.raises(InputError, match="not_found"):
        ImageFiles(["images/a.jpg"]).find(name)


def box(class_name: str, left: int, top: int, width: int, height: int) -> dict[str, object]:
    return {"class": class_name, "box": [left, top, width, height], "runs": [0, width * height]}


def drawn(shapes: list[dict[str, object]], layout: str = "coco_file", **settings: object) -> np.ndarray:
    return opened(Path("none"), layout, **settings)._drawn(shapes, 4, 5, "a.jpg")


SHAPES = st.lists(
    st.builds(box, st.sampled_from(FARM.names[:3]), *[st.integers(0, 2)] * 2, *[st.integers(1, 2)] * 2),
    min_size=1,
    max_size=5,
)


@given(SHAPES, st.randoms())
def test_without_an_order_of_shapes_disputed_pixels_are_ignored_whatever_the_order(shapes, random) -> None:
    shapes.append(box(FARM.names[0], 4, 3, 1, 1))  # no other reaches it: a label of disputed pixels alone is refused
    label = drawn(shapes)
    for y, x in np.ndindex(4, 5):
        here = {
            one["class"]
            for one in shapes
            if one["box"][0] <= x < one["box"][0] + one["box"][2] and one["box"][1] <= y < one["box"][1] + one["box"][3]
        }
        assert label[y, x] == (FARM.names.index(here.pop()) if len(here) == 1 else 255)
    random.shuffle(shapes)
    np.testing.assert_array_equal(drawn(shapes), label)


def test_a_label_of_disputed_pixels_alone_is_refused() -> None:
    with pytest.raises(LabelError, match="every pixel of the label"):
        drawn([box(FARM.names[0], 0, 0, 2, 1), box(FARM.names[1], 0, 0, 2, 1)])


def test_with_an_order_the_upper_shape_counts() -> None:
    label = drawn([box(FARM.names[0], 0, 0, 3, 1), box(FARM.names[1], 2, 0, 3, 1)], "cvat")
    assert label[0].tolist() == [0, 0, 1, 1, 1]


def test_unlabelled_pixels_get_the_class_of_the_setting() -> None:
    assert drawn([box(FARM.names[1], 0, 0, 1, 1)], unlabelled=FARM.names[3])[3, 4] == 3


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"class": "soil", "unread": "ellipse"}, "kind 'ellipse', which is not read"),
        ({"class": "a", "box": [4, 0, 2, 1], "runs": [0, 2]}, "leaves the image of 4x5"),
        ({"class": "a", "box": [0, 0, 2], "runs": [0, 2]}, "is damaged"),
        ({"class": "a", "brush": [300]}, "is damaged"),
        ({"class": "a", "brush": []}, "ends early"),
        ({"class": "a", "counts": ["3"]}, "is damaged"),
        ({"class": "a", "counts": [3]}, "do not cover"),
        ({"class": "a", "polygons": [[0, 0, 1, 1]]}, "has 4 numbers"),
        ({"class": "a", "polygons": [[0, 0, float("nan"), 1, 2, 2]]}, "leads to"),
        (box("tarmac", 0, 0, 1, 1), "class 'tarmac', which the class map lacks"),
    ],
)
def test_a_shape_that_cannot_be_drawn_fails_its_image_by_name(shape: dict, says: str) -> None:
    more = json.dumps({"height": 4, "width": 5, "shapes": [shape]})
    example = ListedExample("train/a", "images/a.jpg", None, (more,))
    with pytest.raises(LabelError, match=says) as caught:
        opened(Path("none"), "coco_file").label(Url("none"), example)
    assert "a.jpg" in caught.value.message


def test_a_label_on_which_nothing_is_left_fails() -> None:
    with pytest.raises(LabelError, match="every pixel") as caught:
        drawn([box(FARM.names[0], 0, 0, 1, 1), box(FARM.names[1], 0, 0, 1, 1)])
    assert caught.value.code == "label_empty"


def test_polygons_are_drawn_as_coco_s_tools_do() -> None:
    coding = pytest.importorskip("pycocotools.mask")
    polygon = [0.0, 0.0, 3.0, 0.0, 3.0, 2.0, 0.0, 2.0]
    expected = coding.decode(coding.frPyObjects([polygon], 4, 5))[..., 0]
    np.testing.assert_array_equal(mask_of({"class": "a", "polygons": [polygon]}, 4, 5, "a"), expected)


def coco(images: list[str], annotated_ones: int) -> str:
    listed = [{"id": n, "file_name": name, "height": 4, "width": 5} for n, name in enumerate(images)]
    shapes = [
        {"image_id": n, "category_id": 1, "segmentation": {"counts": [0, 20], "size": [4, 5]}, "iscrowd": 1}
        for n in range(annotated_ones)
    ]
    categories = [{"id": 1, "name": FARM.names[2]}]
    return json.dumps({"images": listed, "annotations": shapes, "categories": categories})


def test_every_annotated_image_is_in_one_split_and_the_others_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{number}.jpg" for number in range(60)]
    for name in names:
        put(tmp_path, f"images/{name}", JPEG)
    put(tmp_path, "result.json", coco(names, 50))
    export = opened(tmp_path, "coco_file")
    with caplog.at_level(logging.WARNING):
        train, val = (export.examples(Url(str(tmp_path)), split) for split in ("train", "val"))
    assert len(train) + len(val) == 50
    assert 3 <= len(val) <= 20
    assert "10 of 60 images are not annotated" in caplog.text
    assert not {one.image for one in train} & {one.image for one in val}
    again = opened(tmp_path, "coco_file", split_seed=1).examples(Url(str(tmp_path)), "val")
    assert [one.image for one in again] != [one.image for one in val]
    assert len(opened(tmp_path, "coco_file", val_share=0).examples(Url(str(tmp_path)), "train")) == 50


def test_an_image_that_is_not_there_fails_alone(tmp_path: Path) -> None:
    put(tmp_path, "images/a.jpg", JPEG)
    put(tmp_path, "result.json", coco(["a.jpg", "../../etc/passwd"], 2))
    export = opened(tmp_path, "coco_file", val_share=0)
    missing, there = sorted(export.examples(Url(str(tmp_path)), "train"), key=lambda one: one.image)
    assert export.read(Url(str(tmp_path)), there).image == JPEG
    with pytest.raises(InputError, match=r"not_found.*etc/passwd"):
        export.read(Url(str(tmp_path)), missing)


@pytest.mark.parametrize("layout", annotated.LAYOUTS)
def test_a_folder_without_images_or_without_an_export_is_refused(layout: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"images/|does not exist"):
        opened(tmp_path, layout).examples(Url(str(tmp_path)), "train")
    put(tmp_path, "images/a.jpg", JPEG)
    with pytest.raises(ConfigError, match=r"has no (\*\.json|annotations\.xml|labelmap\.txt)"):
        opened(tmp_path, layout).examples(Url(str(tmp_path)), "train")
    with pytest.raises(ConfigError, match="no split 'test'"):
        opened(tmp_path, layout).examples(Url(str(tmp_path)), "test")


@pytest.mark.parametrize("layout", ["label_studio", "coco_file"])
def test_of_several_exports_none_is_guessed(layout: str, tmp_path: Path) -> None:
    put(tmp_path, "images/a.jpg", JPEG)
    put(tmp_path, "one.json", "[]")
    put(tmp_path, "two.json", "[]")
    with pytest.raises(ConfigError, match="2 JSON files"):
        opened(tmp_path, layout).examples(Url(str(tmp_path)), "train")


@pytest.mark.parametrize("size", [(0, 5), (-4, -5), (10**6, 10**6)])
def test_sizes_that_no_image_has_are_refused(size: tuple[int, int], tmp_path: Path) -> None:
    put(tmp_path, "images/a.jpg", JPEG)
    text = coco(["a.jpg"], 1).replace('"height": 4, "width": 5', f'"height": {size[0]}, "width": {size[1]}')
    put(tmp_path, "result.json", text)
    with pytest.raises(ConfigError, match=rf"said to have {size[0]}x{size[1]} pixels"):
        opened(tmp_path, "coco_file").examples(Url(str(tmp_path)), "train")
