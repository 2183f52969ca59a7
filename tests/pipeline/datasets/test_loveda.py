"""LoveDA in miniature: both scenes, masks of 0 to 7."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.loveda import LOVEDA
from pipeline.errors import ConfigError, InputError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import grey_png, put, rgb_png

EVERY_VALUE = np.arange(8).reshape(2, 4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part, scene, number in [
        ("Train", "Urban", 1366),
        ("Train", "Rural", 0),
        ("Train", "Rural", 10),
        ("Val", "Urban", 3514),
    ]:
        put(tmp_path, f"{part}/{scene}/images_png/{number}.png", rgb_png(np.full((2, 4, 3), number % 256)))
        put(tmp_path, f"{part}/{scene}/masks_png/{number}.png", grey_png(EVERY_VALUE))
    put(tmp_path, "Test/Urban/images_png/5167.png", rgb_png(np.zeros((2, 4, 3))))
    return tmp_path


def test_both_scenes_are_listed_and_masks_are_no_images(root: Path) -> None:
    keys = [one.key for one in LOVEDA.examples(Url(str(root)), "train")]
    assert keys == ["train/Rural/0", "train/Rural/10", "train/Urban/1366"]
    assert [one.key for one in LOVEDA.examples(Url(str(root)), "val")] == ["val/Urban/3514"]


def test_ids_move_down_by_one_and_no_data_is_ignored(root: Path) -> None:
    read = LOVEDA.read(Url(str(root)), LOVEDA.examples(Url(str(root)), "train")[2])
    np.testing.assert_array_equal(read.label_hw, [[255, 0, 1, 2], [3, 4, 5, 6]])
    assert read.image == (root / "Train/Urban/images_png/1366.png").read_bytes()
    assert set(read.label_hw.ravel()) - {255} == set(range(len(LOVEDA.classes)))


@pytest.mark.parametrize(
    ("data", "says"),
    [(grey_png([[8]]), "value 8 on 1"), (rgb_png(np.zeros((1, 1, 3))), "not ids"), (b"GIF?", "cannot be decoded")],
)
def test_a_wrong_mask_is_named(root: Path, data: bytes, says: str) -> None:
    put(root, "Val/Urban/masks_png/3514.png", data)
    with pytest.raises(LabelError, match=r"Urban/masks_png/3514\.png .*" + says):
        LOVEDA.read(Url(str(root)), LOVEDA.examples(Url(str(root)), "val")[0])


def test_a_mask_that_is_not_there_fails_alone(root: Path) -> None:
    (root / "Train/Rural/masks_png/0.png").unlink()
    first, second, _ = LOVEDA.examples(Url(str(root)), "train")
    with pytest.raises(InputError, match=r"not_found.*Rural/masks_png/0\.png"):
        LOVEDA.read(Url(str(root)), first)
    assert LOVEDA.read(Url(str(root)), second).key == "train/Rural/10"


def test_the_test_images_have_no_labels_and_are_no_split(root: Path) -> None:
    with pytest.raises(ConfigError, match="no split 'test'"):
        LOVEDA.examples(Url(str(root)), "test")
