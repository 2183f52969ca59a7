"""SUN RGB-D in miniature: folders of four cameras, labels behind references in one MATLAB 7.3 file."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.datasets.sun_rgbd import SUN_RGBD
from pipeline.errors import ConfigError, InputError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import JPEG, mat, mat_structs, put

TOOLBOX = "SUNRGBDtoolbox"
AUTHORS = "/n/fs/sun3d/data/SUNRGBD/"
FOLDERS = (
    "kv2/kinect2data/000002_2014-05-26-resize",
    "kv1/NYUdata/NYU0001",
    "xtion/sun3ddata/a/b/0001",
    "kv1/b3dodata/i",
)
VALUES = np.arange(38, dtype=np.uint8).reshape(2, 19)


def write_labels(root: Path, *labels: np.ndarray) -> None:
    """A MATLAB structure array of one field: references to arrays whose axes are reversed."""
    path = root / TOOLBOX / "Metadata/SUNRGBD2Dseg.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        cells = [
            file.create_dataset(f"#refs#/{index}", data=one.T, compression="gzip") for index, one in enumerate(labels)
        ]
        references = np.array([[cell.ref] for cell in cells], h5py.ref_dtype)
        file.create_dataset("SUNRGBD2Dseg/seglabel", data=references, dtype=h5py.ref_dtype)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in FOLDERS:
        put(tmp_path, f"SUNRGBD/{folder}/image/{folder[-4:]}.jpg", JPEG + folder.encode())
    entries = [{"rgbpath": f"{AUTHORS}{one}/image/{one[-4:]}.jpg", "rgbname": f"{one[-4:]}.jpg"} for one in FOLDERS]
    put(tmp_path, f"{TOOLBOX}/Metadata/SUNRGBDMeta.mat", mat(SUNRGBDMeta=mat_structs(*entries)))
    write_split(tmp_path, alltrain=[FOLDERS[1], FOLDERS[0] + "/"], alltest=["/" + FOLDERS[2], FOLDERS[3]])
    write_labels(tmp_path, *[np.roll(VALUES, index) for index in range(len(FOLDERS))])
    return tmp_path


def write_split(root: Path, **folders: list[str]) -> None:
    cells = {name: np.array([[AUTHORS + one for one in listed]], object) for name, listed in folders.items()}
    put(root, f"{TOOLBOX}/traintestSUNRGBD/allsplit.mat", mat(**cells))


def test_the_authors_paths_become_keys(root: Path) -> None:
    assert [one.key for one in SUN_RGBD.examples(Url(str(root)), "train")] == [
        f"train/{FOLDERS[1]}",
        f"train/{FOLDERS[0]}",
    ]
    assert [one.key for one in SUN_RGBD.examples(Url(str(root)), "test")] == [
        f"test/{FOLDERS[3]}",
        f"test/{FOLDERS[2]}",
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_each_image_has_its_own_label_upright(root: Path, split: str) -> None:
    for one in SUN_RGBD.examples(Url(str(root)), split):
        folder = one.key.removeprefix(f"{split}/")
        read = SUN_RGBD.read(Url(str(root)), one)
        assert read.image == JPEG + folder.encode()
        values = np.roll(VALUES, FOLDERS.index(folder)).astype(int)
        np.testing.assert_array_equal(read.label_hw, np.where(values, values - 1, 255))
        assert set(read.label_hw.ravel()) == {*range(len(SUN_RGBD.classes)), 255}


def test_a_folder_without_an_entry_is_named(root: Path) -> None:
    write_split(root, alltrain=[FOLDERS[1], "kv1/NYUdata/NYU9999"])
    with pytest.raises(ConfigError, match="no entry for 'kv1/NYUdata/NYU9999'"):
        SUN_RGBD.examples(Url(str(root)), "train")


def test_entries_of_another_form_are_refused(root: Path) -> None:
    put(root, f"{TOOLBOX}/Metadata/SUNRGBDMeta.mat", mat(SUNRGBDMeta=np.ones((1, 4))))
    with pytest.raises(ConfigError, match="no entries with rgbpath and rgbname"):
        SUN_RGBD.examples(Url(str(root)), "train")


@pytest.mark.parametrize("file", ["Metadata/SUNRGBDMeta.mat", "traintestSUNRGBD/allsplit.mat"])
def test_a_list_that_is_not_there_is_asked_for(root: Path, file: str) -> None:
    (root / TOOLBOX / file).unlink()
    with pytest.raises(ConfigError, match=f"has no {TOOLBOX}/{file}"):
        SUN_RGBD.examples(Url(str(root)), "train")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.full((2, 3), 38, np.uint8), "value 38 on 6"),
        (np.full((2, 3), 257, np.uint16), "not a map of ids"),
        (np.full((2, 3), 0.5), "not a map of ids"),
        (np.zeros((2, 3, 4), np.uint8), "not a map of ids"),
    ],
)
def test_a_wrong_label_is_named(root: Path, wrong: np.ndarray, says: str) -> None:
    write_labels(root, VALUES, wrong)
    with pytest.raises(LabelError, match=f"label train/{FOLDERS[1]} in .*{says}"):
        SUN_RGBD.read(Url(str(root)), SUN_RGBD.examples(Url(str(root)), "train")[0])


def test_labels_that_are_not_there_fail_their_examples_alone(root: Path) -> None:
    write_labels(root, VALUES)
    absent, there = SUN_RGBD.examples(Url(str(root)), "train")
    with pytest.raises(InputError, match="corrupt"):
        SUN_RGBD.read(Url(str(root)), absent)
    np.testing.assert_array_equal(SUN_RGBD.read(Url(str(root)), there).label_hw.ravel()[1:], np.arange(37))
