"""Cityscapes in miniature: towns, fine and coarse labels, ids and train ids."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.cityscapes import COARSE, FINE
from pipeline.errors import ConfigError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import grey_png, put, rgb_png

EVERY_ID = np.array([[*range(34), 255]], np.uint8)
TRAIN_IDS = """
    unlabeled 255, ego vehicle 255, rectification border 255, out of roi 255, static 255, dynamic 255, ground 255,
    road 0, sidewalk 1, parking 255, rail track 255, building 2, wall 3, fence 4, guard rail 255, bridge 255,
    tunnel 255, pole 5, polegroup 255, traffic light 6, traffic sign 7, vegetation 8, terrain 9, sky 10, person 11,
    rider 12, car 13, truck 14, bus 15, caravan 255, trailer 255, train 16, motorcycle 17, bicycle 18,
    license plate 255
"""
"""Names and train ids in the order of the ids: helpers/labels.py of cityscapesScripts."""
OFFICIAL = [one.split() for one in TRAIN_IDS.split(",")]
PHOTOGRAPH = rgb_png(np.zeros((2, 4, 3)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, town in (("train", "aachen"), ("train", "zurich"), ("val", "lindau"), ("train_extra", "troisdorf")):
        frame = f"{town}_000000_000019"
        put(tmp_path, f"leftImg8bit/{split}/{town}/{frame}_leftImg8bit.png", PHOTOGRAPH)
        for annotation in ("gtFine", "gtCoarse"):
            if (annotation, split) != ("gtFine", "train_extra"):
                stem = f"{annotation}/{split}/{town}/{frame}_{annotation}"
                put(tmp_path, f"{stem}_labelIds.png", grey_png(EVERY_ID))
                put(tmp_path, f"{stem}_instanceIds.png", grey_png(EVERY_ID * 0))
                put(tmp_path, f"{stem}_color.png", PHOTOGRAPH)
                put(tmp_path, f"{stem}_polygons.json", "{}")
    return tmp_path


@pytest.mark.parametrize("layout", [FINE, COARSE], ids=lambda one: one.name)
def test_ids_become_the_official_train_ids(root: Path, layout) -> None:
    for split in layout.splits:
        for one in layout.examples(Url(str(root)), split):
            read = layout.read(Url(str(root)), one)
            assert read.image == PHOTOGRAPH
            assert read.label_hw.tolist() == [[int(words[-1]) for words in OFFICIAL]]


def test_names_are_those_of_the_ids() -> None:
    assert FINE.classes.names == tuple(" ".join(words[:-1]) for words in OFFICIAL if words[-1] != "255")


def test_keys_name_split_and_frame(root: Path) -> None:
    keys = [one.key for one in FINE.examples(Url(str(root)), "train")]
    assert keys == ["train/aachen_000000_000019", "train/zurich_000000_000019"]
    (extra,) = COARSE.examples(Url(str(root)), "train_extra")
    assert extra.key == "train_extra/troisdorf_000000_000019"


def test_train_ids_are_read_where_there_are_no_others(root: Path) -> None:
    (only,) = FINE.examples(Url(str(root)), "val")
    (root / only.label_file).unlink()
    put(root, only.label_file.replace("labelIds", "labelTrainIds"), grey_png(np.array([[*range(19), 255]])))
    (one,) = FINE.examples(Url(str(root)), "val")
    assert (one.key, one.image) == (only.key, only.image)
    assert FINE.read(Url(str(root)), one).label_hw.tolist() == [[*range(19), 255]]


def test_what_is_missing_are_the_ids(tmp_path: Path) -> None:
    put(tmp_path, "gtFine/train/aachen/aachen_000000_000019_gtFine_polygons.json", "{}")
    with pytest.raises(ConfigError, match=r"has no gtFine/train/\*_labelIds\.png"):
        FINE.examples(Url(str(tmp_path)), "train")


def test_the_withheld_test_labels_are_no_split(root: Path) -> None:
    with pytest.raises(ConfigError, match="no split 'test'"):
        FINE.examples(Url(str(root)), "test")


def test_an_unknown_id_is_named(root: Path) -> None:
    (one,) = FINE.examples(Url(str(root)), "val")
    put(root, one.label_file, grey_png(np.full((1, 3), 34)))
    with pytest.raises(LabelError, match=r"lindau_000000_000019_gtFine_labelIds\.png has the value 34 on 3"):
        FINE.read(Url(str(root)), one)
