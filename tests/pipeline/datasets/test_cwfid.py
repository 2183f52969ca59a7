"""CWFID in miniature: numbers of a split file, annotations in three colours."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.cwfid import CWFID
from pipeline.errors import ConfigError, InputError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import put, rgb_png

COLOURS = np.array([[(0, 0, 0), (255, 0, 0)], [(0, 255, 0), (0, 0, 0)]])
IDS = [[0, 1], [2, 0]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "dataset-1.0/train_test_split.yaml", "train: [12, 3]\ntest:\n- 1\n- 4\n")
    for number in (1, 3, 4, 12):
        put(tmp_path, f"dataset-1.0/images/{number:03}_image.png", rgb_png(np.full((2, 2, 3), number)))
        put(tmp_path, f"dataset-1.0/annotations/{number:03}_annotation.png", rgb_png(COLOURS))
        put(tmp_path, f"dataset-1.0/annotations/{number:03}_annotation.yaml", "filename: x")
        put(tmp_path, f"dataset-1.0/masks/{number:03}_mask.png", rgb_png(COLOURS))
    return tmp_path


def test_splits_are_those_of_the_split_file(root: Path) -> None:
    assert [one.key for one in CWFID.examples(Url(str(root)), "train")] == ["train/003", "train/012"]
    assert [one.key for one in CWFID.examples(Url(str(root)), "test")] == ["test/001", "test/004"]


def test_colours_become_soil_weed_and_crop(root: Path) -> None:
    read = CWFID.read(Url(str(root)), CWFID.examples(Url(str(root)), "train")[1])
    np.testing.assert_array_equal(read.label_hw, IDS)
    assert read.image == (root / "dataset-1.0/images/012_image.png").read_bytes()
    assert CWFID.classes.names == ("soil", "weed", "crop")


@pytest.mark.parametrize(
    "text",
    ["train: 5", "train: ['../1']", "train: [true]", "[1, 2]", "", "train: [1", "train: !!python/object:os.x {}"],
)
def test_a_split_file_of_another_form_is_refused(root: Path, text: str) -> None:
    put(root, "dataset-1.0/train_test_split.yaml", text)
    with pytest.raises(ConfigError, match=r"train_test_split\.yaml"):
        CWFID.examples(Url(str(root)), "train")


def test_a_colour_that_is_no_class_is_named(root: Path) -> None:
    put(root, "dataset-1.0/annotations/003_annotation.png", rgb_png(np.where(COLOURS == 255, 254, COLOURS)))
    with pytest.raises(LabelError, match=r"003_annotation\.png has the colour \(.*254.*\) on 1"):
        CWFID.read(Url(str(root)), CWFID.examples(Url(str(root)), "train")[0])


def test_an_image_that_is_not_there_fails_alone(root: Path) -> None:
    (root / "dataset-1.0/images/003_image.png").unlink()
    first, second = CWFID.examples(Url(str(root)), "train")
    with pytest.raises(InputError, match=r"not_found.*003_image\.png"):
        CWFID.read(Url(str(root)), first)
    np.testing.assert_array_equal(CWFID.read(Url(str(root)), second).label_hw, IDS)
