"""PASCAL VOC 2012 and SBD in miniature: file names, palette PNGs and MATLAB structures as in the archives."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import classes
from pipeline.datasets.voc import VOC2012
from pipeline.errors import InputError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import JPEG, mat, palette_png, put, rgb_png

VOC, SBD = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
EVERY_ID = np.array([[*range(11)], [*range(11, 21), 255]], np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images to train on, one to validate on, all three and another two in SBD."""
    lists = {"train": "2007_000032\n2007_000039\n", "val": "2007_000033\n"}
    for split, names in (lists | {"trainval": lists["train"] + lists["val"]}).items():
        put(tmp_path, f"{VOC}/ImageSets/Segmentation/{split}.txt", names)
    for name in ("2007_000032", "2007_000039", "2007_000033", "2008_000002"):
        put(tmp_path, f"{VOC}/JPEGImages/{name}.jpg", JPEG + name.encode())
    for name in ("2007_000032", "2007_000039", "2007_000033"):
        put(
            tmp_path,
            f"{VOC}/SegmentationClass/{name}.png",
            palette_png(EVERY_ID, classes.load_class_map("voc").png_palette()),
        )
    put(tmp_path, f"{SBD}/train.txt", "2008_000002\n2007_000033\n2007_000032\n")
    put(tmp_path, f"{SBD}/val.txt", "2011_003271\n2007_000039\n")
    for name in ("2008_000002", "2011_003271", "2007_000032", "2007_000033", "2007_000039"):
        put(tmp_path, f"{SBD}/img/{name}.jpg", JPEG + b"SBD")
        put(tmp_path, f"{SBD}/cls/{name}.mat", sbd(EVERY_ID % 21))
    return tmp_path


def sbd(ids_hw: np.ndarray) -> bytes:
    boundaries = {"Boundaries": np.zeros((20, 1), object), "CategoriesPresent": np.unique(ids_hw)[1:, None]}
    return mat(GTcls=boundaries | {"Segmentation": ids_hw.astype(np.uint8)})


def keys(root: Path, split: str) -> list[str]:
    return [one.key for one in VOC2012.examples(Url(str(root)), split)]


def test_splits_are_those_of_the_lists(root: Path) -> None:
    assert keys(root, "train") == ["train/2007_000032", "train/2007_000039"]
    assert keys(root, "val") == ["val/2007_000033"]
    assert keys(root, "trainval") == [f"trainval/{name}" for name in ("2007_000032", "2007_000033", "2007_000039")]


def test_every_id_is_read_and_the_image_is_untouched(root: Path) -> None:
    read = VOC2012.read(Url(str(root)), VOC2012.examples(Url(str(root)), "train")[0])
    np.testing.assert_array_equal(read.label_hw, EVERY_ID)
    assert read.image == JPEG + b"2007_000032"


def test_sbd_adds_what_is_in_neither_list_and_voc_s_own_labels_go_first(root: Path) -> None:
    examples = VOC2012.examples(Url(str(root)), "trainaug")
    names = [one.key.removeprefix("trainaug/") for one in examples]
    assert names == ["2007_000032", "2007_000039", "2008_000002", "2011_003271"]
    for one in examples:
        of_voc = one.key.startswith("trainaug/2007")
        read = VOC2012.read(Url(str(root)), one)
        np.testing.assert_array_equal(read.label_hw, EVERY_ID if of_voc else EVERY_ID % 21)
        assert read.image.endswith(b"SBD") != of_voc


def test_every_class_is_reachable(root: Path) -> None:
    label_hw = VOC2012.read(Url(str(root)), VOC2012.examples(Url(str(root)), "val")[0]).label_hw
    assert set(label_hw.ravel()) == {*range(len(VOC2012.classes)), 255}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (palette_png(np.full((2, 3), 21), bytes(768)), "value 21 on 6"),
        (rgb_png(np.zeros((2, 2, 3))), "not ids"),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
    ],
    ids=["value", "colours", "damaged"],
)
def test_a_wrong_label_is_named(root: Path, data: bytes, says: str) -> None:
    put(root, f"{VOC}/SegmentationClass/2007_000032.png", data)
    with pytest.raises(LabelError, match=r"SegmentationClass/2007_000032\.png .*" + says):
        VOC2012.read(Url(str(root)), VOC2012.examples(Url(str(root)), "train")[0])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"MATLAB 5.0 MAT-file, cut short", "not a MATLAB file"),
        (sbd(EVERY_ID)[:300], "not a MATLAB file"),
        (mat(GTinst={"Segmentation": EVERY_ID}), "no variable 'GTcls'"),
        (mat(GTcls=EVERY_ID), "no structure GTcls"),
        (mat(GTcls={"Segmentation": EVERY_ID.astype(float)}), "not a matrix of uint8"),
        (sbd(np.full((2, 3), 30)), "value 30 on 6"),
    ],
    ids=["header", "cut", "instances", "matrix", "floats", "value"],
)
def test_a_wrong_structure_is_named(root: Path, data: bytes, says: str) -> None:
    put(root, f"{SBD}/cls/2008_000002.mat", data)
    with pytest.raises(LabelError, match=r"cls/2008_000002\.mat .*" + says):
        VOC2012.read(Url(str(root)), VOC2012.examples(Url(str(root)), "trainaug")[2])


def test_a_listed_image_that_is_not_there_fails_alone(root: Path) -> None:
    (root / VOC / "JPEGImages/2007_000032.jpg").unlink()
    first, second = VOC2012.examples(Url(str(root)), "train")
    with pytest.raises(InputError, match=r"not_found.*JPEGImages/2007_000032\.jpg"):
        VOC2012.read(Url(str(root)), first)
    assert VOC2012.read(Url(str(root)), second).key == "train/2007_000039"
