"""Label Studio's JSON in miniature: brushes, polygons, rectangles, several annotations, and what has no area."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets.label_studio import image_name
from pipeline.errors import ConfigError, LabelError
from pipeline.image.run_lengths import encode_brush
from pipeline.store.url import Url
from tests.pipeline.datasets.test_exports import FARM, labels_of, opened
from tests.support.miniatures import JPEG, put

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

A, B = FARM.names[:2]
MASK = np.arange(20).reshape(4, 5) % 3 == 0


def result(kind: str, value: dict[str, Any], name: str | None = A, **more: Any) -> dict[str, Any]:
    labels = {kind: [name]} if name else {}
    size = {"original_width": 5, "original_height": 4, "image_rotation": 0}
    return {"type": kind, "from_name": "classes", "to_name": "image", "value": value | labels} | size | more


def brush(mask: np.ndarray, name: str = A) -> dict[str, Any]:
    return result("brushlabels", {"format": "rle", "rle": list(encode_brush(mask))}, name)


def annotation(results: list[dict[str, Any]], number: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "was_cancelled": False, "ground_truth": False, "result": results} | more


def write(root: Path, *annotations: dict[str, Any], image: str = "/data/local-files/?d=images/a.jpg") -> None:
    put(root, "images/a.jpg", JPEG)
    task = {
        "id": 1,
        "data": {"image": image},
        "annotations": annotations,
        "predictions": [{"result": [brush(MASK, B)]}],
    }
    put(root, "project-1-at-2026-05-03.json", json.dumps([task]))


def drawn(root: Path, *results: dict[str, Any]) -> list[list[int]]:
    write(root, annotation(list(results)))
    return labels_of(root, "label_studio")["images/a.jpg"].tolist()


def test_a_brush_is_its_mask(tmp_path: Path) -> None:
    assert drawn(tmp_path, brush(MASK)) == np.where(MASK, 0, 255).tolist()


def test_polygons_and_rectangles_are_in_percent_of_the_image(tmp_path: Path) -> None:
    polygon = result("polygonlabels", {"points": [[0, 0], [40, 0], [40, 50], [0, 50]], "closed": True})
    rectangle = result("rectanglelabels", {"x": 60, "y": 25, "width": 40, "height": 75, "rotation": 0}, B)
    expected = [[0, 0, 255, 255, 255], [0, 0, 255, 1, 1], [255, 255, 255, 1, 1], [255, 255, 255, 1, 1]]
    assert drawn(tmp_path, polygon, rectangle) == expected


def test_a_rectangle_turns_about_its_corner(tmp_path: Path) -> None:
    rectangle = result("rectanglelabels", {"x": 60, "y": 0, "width": 80, "height": 40, "rotation": 90})
    turned = drawn(tmp_path, rectangle)
    assert [row.count(0) for row in turned] == [2, 2, 2, 2]
    assert turned[0][:3] == [255, 0, 0] or turned[0][1:3] == [0, 0]


def test_regions_of_several_classes_on_one_pixel_are_ignored(tmp_path: Path) -> None:
    rectangle = result("rectanglelabels", {"x": 0, "y": 0, "width": 20, "height": 25}, B)
    assert drawn(tmp_path, brush(MASK), rectangle)[0][0] == 255


def test_the_ground_truth_counts_else_the_last_annotation_that_is_not_cancelled(tmp_path: Path) -> None:
    mine, other = [brush(MASK, A)], [brush(MASK, B)]
    for annotations in (
        (annotation(other, 1), annotation(mine, 2)),
        (annotation(mine, 1, ground_truth=True), annotation(other, 2)),
        (annotation(mine, 1), annotation(other, 2, was_cancelled=True)),
    ):
        write(tmp_path, *annotations)
        np.testing.assert_array_equal(labels_of(tmp_path, "label_studio")["images/a.jpg"], np.where(MASK, 0, 255))


def test_predictions_are_no_labels_and_tasks_without_annotations_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for annotations in ((), (annotation([brush(MASK)], was_cancelled=True),), (annotation([]),)):
        write(tmp_path, *annotations)
        assert labels_of(tmp_path, "label_studio") == {}
        assert "1 of 1 images are not annotated" in caplog.text


def test_results_without_an_area_are_ignored_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    choice = {"type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": ["good"]}}
    assert drawn(tmp_path, choice, brush(MASK))[0][0] == 0
    assert "of the kind 'choices'" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (result("ellipselabels", {"x": 1, "y": 1, "radiusX": 1, "radiusY": 1}), "'ellipselabels', which is not read"),
        (result("keypointlabels", {"x": 1, "y": 1}), "'keypointlabels'"),
        (result("brushlabels", {"format": "rle", "rle": [1]}, None), "brushlabels of 0 classes"),
        (result("brushlabels", {"brushlabels": [A, B], "format": "rle", "rle": [1]}, None), "brushlabels of 2 classes"),
        (brush(MASK) | {"image_rotation": 90}, "turned by 90 degrees"),
        (result("brushlabels", {"format": "rle", "rle": [1, 2]}), "ends early"),
        (brush(MASK, "tarmac"), "'tarmac', which the class map lacks"),
    ],
)
def test_a_region_that_cannot_be_read_fails_its_image_by_name(wrong: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=says) as caught:
        drawn(tmp_path, wrong)
    assert "images/a.jpg" in caught.value.message


@pytest.mark.parametrize(
    "text", ["{", "{}", "null", '[{"id": 1}]', '[{"data": {"image": "a.jpg"}}]', '[{"image": "a", "tag": []}]', "[7]"]
)
def test_a_file_that_is_no_json_of_a_project_is_refused(text: str, tmp_path: Path) -> None:
    put(tmp_path, "images/a.jpg", JPEG)
    put(tmp_path, "a.json", text)
    if text == "{}":  # no task: an empty project
        assert opened(tmp_path, "label_studio").examples(Url(str(tmp_path)), "train") == []
        return
    with pytest.raises(ConfigError, match="does not have Label Studio's structure"):
        opened(tmp_path, "label_studio").examples(Url(str(tmp_path)), "train")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/data/local-files/?d=images/a%20b.jpg", "images/a b.jpg"),
        ("s3://bucket/x/images/a%23b.jpg", "/x/images/a#b.jpg"),
        ("https://host/images/a.jpg?sig=1", "/images/a.jpg"),
        ("/data/upload/1/0123abcd-a.jpg", "/data/upload/1/0123abcd-a.jpg"),
    ],
)
def test_the_path_of_an_image_is_that_of_its_url(url: str, path: str) -> None:
    assert image_name({"image": url}) == path
    assert image_name({"number": 7, "photo": url}) == path
