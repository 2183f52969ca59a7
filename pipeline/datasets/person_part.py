"""PASCAL-Person-Part: head, torso, arms and legs of the people in PASCAL VOC 2010.

The root holds what VOCtrainval_03-May-2010.tar, trainval.tar.gz of PASCAL-Part (Chen et al., CVPR 2014) and, for its
lists, pascal_person_part.zip (Chen et al., CVPR 2016; liangchiehchen.com/projects/DeepLab.html) unpack to:

    VOCdevkit/VOC2010/JPEGImages/*.jpg
    Annotations_Part/*.mat
    pascal_person_part/pascal_person_part_trainval_list/{train,val,trainval}.txt

Each .mat file is a structure `anno` of objects, and each object has a mask and parts with masks of their own. The 24
parts of a person become six; where two overlap, the later one in the file wins, as in PASCAL-Part's mat2map.m. Pixels
of a person without a part, such as people too small to be divided, are ignored, where mat2map.m makes them background.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.layout import DatasetLayout, ListedExample, fetch, names_in
from pipeline.datasets.matlab import read_variable
from pipeline.errors import LabelError
from pipeline.records import Bool, UInt8
from pipeline.store.url import Url

_HEAD, _TORSO, _UPPER_ARMS, _LOWER_ARMS, _UPPER_LEGS, _LOWER_LEGS = range(1, 7)

PART_IDS: dict[str, int] = {
    **dict.fromkeys(("head", "hair", "leye", "reye", "lear", "rear", "lebrow", "rebrow", "nose", "mouth"), _HEAD),
    **dict.fromkeys(("torso", "neck"), _TORSO),
    **dict.fromkeys(("luarm", "ruarm"), _UPPER_ARMS),
    **dict.fromkeys(("llarm", "rlarm", "lhand", "rhand"), _LOWER_ARMS),
    **dict.fromkeys(("luleg", "ruleg"), _UPPER_LEGS),
    **dict.fromkeys(("llleg", "rlleg", "lfoot", "rfoot"), _LOWER_LEGS),
}
"""Class of each part of a person, by PASCAL-Part's names (its part2ind.m)."""

Structure = npt.NDArray[Any]
"""MATLAB structure, an array of records."""


class PersonPart(DatasetLayout):
    """Layout of six parts of people, and the background."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split."""
        self.check_split(split)
        lists = "pascal_person_part/pascal_person_part_trainval_list"
        names = names_in(root, f"{lists}/{split}.txt")
        return [
            ListedExample(f"{split}/{name}", f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg", f"Annotations_Part/{name}.mat")
            for name in names
        ]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Draw the parts of all people of one image."""
        anno = read_variable(fetch(root, example.label_file), "anno", name=example.label_file)
        try:
            return self._paint(anno["objects"].item().ravel(), example.label_file)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise LabelError(
                f"the label {example.label_file} does not have PASCAL-Part's structure: {error}"
            ) from error

    def _paint(self, objects: Structure, name: str) -> UInt8:
        if not objects.size:
            raise LabelError(f"the label {name} has no object, so the size of its image is unknown")
        label_hw = np.zeros(objects[0]["mask"].shape, np.uint8)
        people = [structure for structure in objects if structure["class"].item() == "person"]
        for person in people:
            label_hw[(label_hw == 0) & _mask(person)] = self.classes.ignore_id
        for person in people:
            for part in person["parts"].ravel():
                label_hw[_mask(part)] = _part_id(part["part_name"].item(), name)
        return label_hw


PERSON_PART = PersonPart(
    name="person_part",
    palette="person_part",
    splits=("train", "val", "trainval"),
    source="http://www.stat.ucla.edu/~xianjie.chen/pascal_part_dataset/pascal_part.html",
    license="images under Flickr's terms of use, for research",
)


def _mask(structure: Structure) -> Bool:
    mask: Bool = structure["mask"].astype(bool)
    return mask


def _part_id(part: str, name: str) -> int:
    if part not in PART_IDS:
        raise LabelError(f"the label {name} has a person with the part {part!r}, which PASCAL-Part does not use")
    return PART_IDS[part]
