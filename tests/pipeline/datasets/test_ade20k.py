"""The scene parsing benchmark in miniature."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.ade20k import SCENE_PARSING
from pipeline.errors import LabelError
from pipeline.store.url import Url
from tests.support.miniatures import JPEG, grey_png, put

EVERY_ID = np.arange(151, dtype=np.uint8).reshape(1, 151)
TOP = "ADEChallengeData2016"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        put(tmp_path, f"{TOP}/images/{folder}/{name}.jpg", JPEG)
        put(tmp_path, f"{TOP}/annotations/{folder}/{name}.png", grey_png(EVERY_ID))
    put(tmp_path, f"{TOP}/objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    return tmp_path


@pytest.mark.parametrize("split", ["train", "val"])
def test_ids_go_down_by_one_and_0_is_ignored(root: Path, split: str) -> None:
    (one,) = SCENE_PARSING.examples(Url(str(root)), split)
    read = SCENE_PARSING.read(Url(str(root)), one)
    assert one.key == f"{split}/ADE_{split}_00000001"
    assert read.image == JPEG
    np.testing.assert_array_equal(read.label_hw, [[255, *range(150)]])
    assert set(read.label_hw.ravel()) == {*range(len(SCENE_PARSING.classes)), 255}


def test_an_id_beyond_the_150_is_named(root: Path) -> None:
    put(root, f"{TOP}/annotations/training/ADE_train_00000001.png", grey_png(np.full((2, 2), 151)))
    with pytest.raises(LabelError, match=r"ADE_train_00000001\.png has the value 151 on 4"):
        SCENE_PARSING.read(Url(str(root)), SCENE_PARSING.examples(Url(str(root)), "train")[0])
