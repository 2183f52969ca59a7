"""PASCAL VOC 2012 segmentation, and the training images that SBD adds to it.

The root holds what VOCtrainval_11-May-2012.tar and, for `trainaug`, SBD's benchmark.tgz unpack to:

    VOCdevkit/VOC2012/  JPEGImages/*.jpg  SegmentationClass/*.png  ImageSets/Segmentation/{train,val,trainval}.txt
    benchmark_RELEASE/dataset/  img/*.jpg  cls/*.mat  train.txt  val.txt

VOC's labels are palette PNGs of ids 0 to 20, with 255 along the borders of objects and on objects too hard to label.
SBD's are MATLAB structures `GTcls` with ids 0 to 20 in the field `Segmentation`, and no borders.

`trainaug` is the usual 10,582 images: VOC's training images with VOC's labels, and of both lists of SBD those that are
in neither list of VOC, with SBD's (Hariharan et al., ICCV 2011; used so by Chen et al. 2015, sec. 4.1).
"""

import numpy as np

from pipeline.datasets.layout import DatasetLayout, ListedExample, decode_ids, fetch, names_in
from pipeline.datasets.matlab import read_variable
from pipeline.errors import LabelError
from pipeline.image.labels import from_ids
from pipeline.records import UInt8
from pipeline.store.url import Url

_VOC = "VOCdevkit/VOC2012"
_SBD = "benchmark_RELEASE/dataset"


class VOC(DatasetLayout):
    """Layout of PASCAL VOC 2012; splits `train`, `val` and `trainval` as published, and `trainaug`."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split."""
        self.check_split(split)
        if split == "trainaug":
            return sorted(_augmented(root), key=lambda example: example.key)
        return [_voc_example(split, name) for name in _voc_names(root, split)]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Read a palette PNG of VOC or a structure of SBD."""
        data = fetch(root, example.label_file)
        raw_hw = (
            _sbd_ids(data, example.label_file)
            if example.label_file.endswith(".mat")
            else decode_ids(data, name=example.label_file)
        )
        table = {k: k for k in (*range(len(self.classes)), self.classes.ignore_id)}
        return from_ids(raw_hw, table, name=example.label_file)


VOC2012 = VOC(
    name="voc",
    palette="voc",
    splits=("train", "val", "trainval", "trainaug"),
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    license="images under Flickr's terms of use, for research; SBD likewise",
)


def _augmented(root: Url) -> list[ListedExample]:
    train, val = set(_voc_names(root, "train")), set(_voc_names(root, "val"))
    added = {name for part in ("train", "val") for name in names_in(root, f"{_SBD}/{part}.txt")} - train - val
    return [_voc_example("trainaug", name) for name in train] + [_sbd_example(name) for name in added]


def _voc_names(root: Url, split: str) -> list[str]:
    return names_in(root, f"{_VOC}/ImageSets/Segmentation/{split}.txt")


def _voc_example(split: str, name: str) -> ListedExample:
    return ListedExample(f"{split}/{name}", f"{_VOC}/JPEGImages/{name}.jpg", f"{_VOC}/SegmentationClass/{name}.png")


def _sbd_example(name: str) -> ListedExample:
    return ListedExample(f"trainaug/{name}", f"{_SBD}/img/{name}.jpg", f"{_SBD}/cls/{name}.mat")


def _sbd_ids(data: bytes, name: str) -> UInt8:
    structure = read_variable(data, "GTcls", name=name)
    if structure.dtype.names is None or "Segmentation" not in structure.dtype.names or structure.size != 1:
        raise LabelError(f"the label {name} has no structure GTcls with one field Segmentation")
    raw_hw = structure["Segmentation"].item()
    if not isinstance(raw_hw, np.ndarray) or raw_hw.dtype != np.uint8 or raw_hw.ndim != 2:
        raise LabelError(f"the label {name} has a GTcls.Segmentation that is not a matrix of uint8")
    return raw_hw
