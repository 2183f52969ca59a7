"""KITTI's semantic benchmark in miniature."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.kitti import KITTI
from pipeline.errors import LabelError
from pipeline.store.url import Url
from tests.support.miniatures import grey_png, put, rgb_png

TRAINING = "data_semantics/training"
PHOTOGRAPH = rgb_png(np.zeros((2, 4, 3)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("000000_10", "000001_10"):
        put(tmp_path, f"{TRAINING}/image_2/{name}.png", PHOTOGRAPH)
        put(tmp_path, f"{TRAINING}/semantic/{name}.png", grey_png(np.array([[*range(34), 255]])))
        put(tmp_path, f"{TRAINING}/semantic_rgb/{name}.png", PHOTOGRAPH)
    put(tmp_path, "data_semantics/testing/image_2/000000_10.png", PHOTOGRAPH)
    return tmp_path


def test_the_labelled_images_are_read_with_the_ids_of_cityscapes(root: Path) -> None:
    examples = KITTI.examples(Url(str(root)), "train")
    assert [one.key for one in examples] == ["train/000000_10", "train/000001_10"]
    read = KITTI.read(Url(str(root)), examples[1])
    assert read.image == PHOTOGRAPH
    by_name = {7: "road", 11: "building", 23: "sky", 26: "car", 33: "bicycle"}
    assert {raw: KITTI.classes.names[read.label_hw[0, raw]] for raw in by_name} == by_name
    assert set(read.label_hw.ravel()) == {*range(len(KITTI.classes)), 255}


def test_an_unknown_id_is_named(root: Path) -> None:
    put(root, f"{TRAINING}/semantic/000000_10.png", grey_png(np.full((2, 2), 40)))
    with pytest.raises(LabelError, match=r"semantic/000000_10\.png has the value 40 on 4"):
        KITTI.read(Url(str(root)), KITTI.examples(Url(str(root)), "train")[0])
