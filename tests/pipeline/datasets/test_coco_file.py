"""COCO files of labelling tools: categories by name, outlines of every form, and files that are none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.store.url import Url
from tests.pipeline.datasets.test_exports import FARM, labels_of, opened
from tests.support.miniatures import JPEG, put

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MASK = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
COUNTS = [0, 2, 2, 2, 14]


def outlines() -> dict[str, Any]:
    """The same pixels in each form that tools export."""
    coding = pytest.importorskip("pycocotools.mask")
    text = coding.encode(np.asfortranarray(MASK, dtype=np.uint8))["counts"].decode()
    return {
        "polygon": [[0, 0, 2, 0, 2, 2, 0, 2]],
        "two polygons": [[0, 0, 1, 0, 1, 2, 0, 2], [1, 0, 2, 0, 2, 2, 1, 2]],
        "numbers": {"counts": COUNTS, "size": [4, 5]},
        "text": {"counts": text, "size": [4, 5]},
    }


def write(root: Path, path: str, annotations: list[dict[str, Any]], **more: Any) -> None:
    put(root, "images/a.jpg", JPEG)
    images = [{"id": 7, "file_name": "images/a.jpg", "height": 4, "width": 5}]
    categories = [{"id": number + 10, "name": name} for number, name in enumerate(FARM.names)]
    content = {"images": images, "categories": categories, "annotations": annotations} | more
    put(root, path, json.dumps(content))


def annotation(outline: Any, class_id: int, **more: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": class_id + 10, "segmentation": outline, "iscrowd": 0} | more


@pytest.mark.parametrize("path", ["annotations.json", "result.json", "annotations/instances_default.json"])
@pytest.mark.parametrize("form", ["polygon", "two polygons", "numbers", "text"])
@pytest.mark.parametrize("iscrowd", [0, 1])
def test_outlines_of_every_form_give_the_class_of_the_category_s_name(
    path: str, form: str, iscrowd: int, tmp_path: Path
) -> None:
    write(tmp_path, path, [annotation(outlines()[form], 4, iscrowd=iscrowd)])
    np.testing.assert_array_equal(labels_of(tmp_path, "coco_file")["images/a.jpg"], np.where(MASK, 4, 255))


def test_an_annotation_of_an_image_that_is_not_listed_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "a.json", [annotation([[0, 0, 2, 0, 2, 2]], 1, image_id=99)])
    with pytest.raises(ConfigError, match=r"a\.json does not have COCO's structure.*first 99"):
        opened(tmp_path, "coco_file").examples(Url(str(tmp_path)), "train")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"images": [], "annotations": [{}], "categories": []}', "null", "7"]
)
def test_a_file_that_is_not_coco_s_is_refused(text: str, tmp_path: Path) -> None:
    put(tmp_path, "images/a.jpg", JPEG)
    put(tmp_path, "a.json", text)
    with pytest.raises(ConfigError, match="does not have COCO's structure"):
        opened(tmp_path, "coco_file").examples(Url(str(tmp_path)), "train")
