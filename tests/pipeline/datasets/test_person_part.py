"""PASCAL-Person-Part in miniature: the lists, and `anno` structures as PASCAL-Part has them."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.person_part import PART_IDS, PERSON_PART
from pipeline.errors import LabelError
from pipeline.store.url import Url
from tests.support.miniatures import JPEG, mat, mat_structs, put

HEIGHT, WIDTH = 2, 30
PARTS = list(PART_IDS)


def mask(*columns: int) -> np.ndarray:
    mask_hw = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask_hw[:, list(columns)] = 1
    return mask_hw


def part(name: str, *columns: int) -> dict[str, object]:
    return {"part_name": name, "mask": mask(*columns)}


def thing(kind: str, columns: range, *parts: dict[str, object]) -> dict[str, object]:
    drawn = mat_structs(*parts) if parts else np.zeros((0, 0))
    return {"class": kind, "class_ind": 15.0, "mask": mask(*columns), "parts": drawn}


def anno(*things: dict[str, object]) -> bytes:
    objects = mat_structs(*things) if things else np.zeros((0, 0))
    return mat(anno={"imname": "2008_000008", "objects": objects})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lists = "pascal_person_part/pascal_person_part_trainval_list"
    line = "/JPEGImages/2008_000008.jpg /pascal_person_part_gt/2008_000008.png\n"
    for split in ("train", "trainval"):
        put(tmp_path, f"{lists}/{split}.txt", line)
    put(tmp_path, f"{lists}/val.txt", line.replace("2008_000008", "2008_000026"))
    for name in ("2008_000008", "2008_000026"):
        put(tmp_path, f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg", JPEG)
    return tmp_path


def read(root: Path, annotation: bytes) -> np.ndarray:
    put(root, "Annotations_Part/2008_000008.mat", annotation)
    return PERSON_PART.read(Url(str(root)), PERSON_PART.examples(Url(str(root)), "train")[0]).label_hw


def test_splits_are_those_of_the_lists(root: Path) -> None:
    assert [one.key for one in PERSON_PART.examples(Url(str(root)), "train")] == ["train/2008_000008"]
    assert [one.key for one in PERSON_PART.examples(Url(str(root)), "val")] == ["val/2008_000026"]


def test_24_parts_become_6_classes_and_every_class_is_reached(root: Path) -> None:
    person = thing("person", range(24), *[part(name, column) for column, name in enumerate(PARTS)])
    label_hw = read(root, anno(person))
    expected = [PART_IDS[name] for name in PARTS] + [0] * 6
    np.testing.assert_array_equal(label_hw, [expected] * HEIGHT)
    assert len(PARTS) == 24
    assert set(expected) == set(range(len(PERSON_PART.classes)))


def test_sides_are_the_same_class() -> None:
    assert all(PART_IDS[name] == PART_IDS["r" + name[1:]] for name in PARTS if name.startswith("l"))


def test_a_person_without_parts_is_not_background(root: Path) -> None:
    label_hw = read(root, anno(thing("person", range(4), part("torso", 1)), thing("person", range(6, 8))))
    assert label_hw[0, :9].tolist() == [255, 2, 255, 255, 0, 0, 255, 255, 0]


def test_the_later_of_two_parts_counts_and_no_mask_hides_a_part(root: Path) -> None:
    first = thing("person", range(4), part("torso", 0, 1, 2), part("lhand", 2, 3))
    label_hw = read(root, anno(first, thing("person", range(2, 6), part("hair", 3))))
    assert label_hw[0, :7].tolist() == [2, 2, 4, 1, 255, 255, 0]


def test_other_objects_are_background_with_their_parts(root: Path) -> None:
    assert not read(root, anno(thing("dog", range(9), part("tail", 3), part("head", 4)))).any()


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (anno(thing("person", range(3), part("tail", 1))), "'tail', which PASCAL-Part does not use"),
        (anno(), "has no object"),
        (mat(anno=np.zeros((2, 2))), "does not have PASCAL-Part.s structure"),
        (mat(anno={"objects": mat_structs({"class": "person"})}), "does not have PASCAL-Part.s structure"),
        (
            anno(thing("person", range(3), {"part_name": "head", "mask": np.ones((3, 3))})),
            "does not have PASCAL-Part.s structure",
        ),
        (mat(other=1), "no variable 'anno'"),
        (b"", "not a MATLAB file"),
    ],
    ids=["part", "nothing", "matrix", "fields", "size", "variable", "empty"],
)
def test_a_wrong_annotation_is_named(root: Path, annotation: bytes, says: str) -> None:
    with pytest.raises(LabelError, match=r"Annotations_Part/2008_000008\.mat .*" + says):
        read(root, annotation)
