"""COCO 2017: 80 kinds of objects, the same mapped to PASCAL VOC's classes, and COCO-Stuff.

The root holds images as in the official instructions, annotations_trainval2017.zip for the objects, and for COCO-Stuff
stuffthingmaps_trainval2017.zip unpacked into annotations/ (github.com/nightrome/cocostuff, "Setup"):

    images/{train,val}2017/000000000009.jpg           or, as the archives come, {train,val}2017/000000000009.jpg
    annotations/instances_{train,val}2017.json
    annotations/{train,val}2017/000000000009.png

Objects are outlined one by one, as polygons or run lengths, and overlap. A pixel gets the class of the objects on it.
Where objects of different classes overlap, their order is unknown, so pixels are ignored; pixels that only a crowd
covers are ignored too, because its outline includes the gaps between its members. The rest is background. Labels do not
depend on the order of the objects.

For VOC's classes the objects of the other 60 are left out as if they were not annotated, and the training images are
those with more than 1,000 pixels of annotated objects of VOC's classes (Chen et al. 2017, arXiv 1706.05587, sec. 4.3).

COCO-Stuff's labels are grey PNGs of its ids - 1, 0 to 181, of which 11 are never used, and 255 for none.

Listing reads the whole JSON file (450 MB for `train`, several GB as Python objects) and stores in each example the
outlines of its image, so that an example is read without the file.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipeline.datasets.layout import (
    DatasetLayout,
    ListedExample,
    decode_ids,
    fetch,
    fetch_listing,
    file_stem,
    files_below,
)
from pipeline.datasets.outlines import load_pycocotools, polygon_mask
from pipeline.errors import ConfigError, LabelError, NothingThere
from pipeline.image.labels import from_ids
from pipeline.records import Bool, UInt8
from pipeline.store import objects
from pipeline.store.url import Url

_NEVER_USED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
"""Categories that were planned and never annotated (github.com/nightrome/cocostuff, "Labels")."""
_THINGS = [category for category in range(1, 92) if category not in _NEVER_USED]
_VOC_CATEGORIES = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
"""COCO's categories for VOC's classes 1 to 20, in VOC's order: airplane, bicycle, bird, ..., tv."""

THING_IDS: dict[int, int] = {category: k for k, category in enumerate(_THINGS, start=1)}
"""Class of every category id of the JSON files; 0 is the background."""
VOC_IDS: dict[int, int] = dict.fromkeys(_THINGS, 0) | {
    category: k for k, category in enumerate(_VOC_CATEGORIES, start=1)
}
STUFF_IDS: dict[int, int] = {
    raw: k for k, raw in enumerate(category - 1 for category in range(1, 183) if category not in _NEVER_USED)
} | {255: 255}
"""Class of every value of a PNG of COCO-Stuff."""

_ENOUGH_PX = 1000
"""Training images of VOC's classes have more pixels of annotated objects than this."""
_MOST_PX = 2**26
"""Largest image, pixels: COCO's have at most 640x640, so a larger size is damage and is not allocated."""

Annotation = dict[str, Any]
"""One object of the JSON file: category_id, iscrowd, area, segmentation."""
Outlines = dict[str, Any]
"""One image of the JSON file: file_name, height, width, and its `annotations`."""


@dataclass(frozen=True)
class Objects(DatasetLayout):
    """Layout of annotated objects, drawn as classes."""

    as_voc: bool = False
    """Use VOC's 20 classes instead of all 80, and only training images with more than 1000 pixels of them."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split; each example carries its outlines."""
        self.check_split(split)
        load_pycocotools()  # an error shows before the file of 450 MB is read
        path = f"annotations/instances_{split}2017.json"
        text = fetch_listing(root, path)
        folder = _image_folder(root, split)
        try:
            outlines = [image for image in _outlines(text) if split == "val" or self._has_enough_pixels(image)]
            return sorted((_example(split, folder, image) for image in outlines), key=lambda example: example.key)
        except (ValueError, KeyError, TypeError) as error:
            hint = "unpack annotations_trainval2017.zip again"
            raise ConfigError(f"{path} does not have COCO's structure: {error!r}", hint=hint) from error

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Draw the objects of one image from `example.more`; `root` is ignored."""
        try:
            return self._paint(json.loads(example.more[0]), example.image)
        except (AttributeError, KeyError, TypeError) as error:
            raise LabelError(f"the objects on {example.image} do not have COCO's structure: {error!r}") from error

    def _paint(self, outlines: Outlines, name: str) -> UInt8:
        height, width = outlines["height"], outlines["width"]
        label_hw, crowded_hw = np.zeros((height, width), np.uint8), np.zeros((height, width), bool)
        for annotation in outlines["annotations"]:
            if class_id := self._class_of(annotation, name):
                mask_hw = _mask(annotation, height, width, name)
                if annotation["iscrowd"]:
                    crowded_hw |= mask_hw
                else:
                    _draw(label_hw, mask_hw, class_id, self.classes.ignore_id)
        label_hw[crowded_hw & (label_hw == 0)] = self.classes.ignore_id
        return label_hw

    def _class_of(self, annotation: Annotation, name: str) -> int:
        category = annotation["category_id"]
        if category not in THING_IDS:
            raise LabelError(f"an object on {name} has the category {category!r}, which COCO does not use")
        return (VOC_IDS if self.as_voc else THING_IDS)[category]

    def _has_enough_pixels(self, outlines: Outlines) -> bool:
        """Return True for an image to train on."""
        areas = [item["area"] for item in outlines["annotations"] if VOC_IDS.get(item["category_id"])]
        return not self.as_voc or sum(areas) > _ENOUGH_PX


class Stuff(DatasetLayout):
    """Layout of COCO-Stuff 164k: 80 things and 91 kinds of stuff."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split."""
        self.check_split(split)
        folder = _image_folder(root, split)
        labels = files_below(root, f"annotations/{split}2017", ".png")
        return [
            ListedExample(f"{split}/{file_stem(label)}", f"{folder}/{file_stem(label)}.jpg", label) for label in labels
        ]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Read one grey PNG."""
        return from_ids(
            decode_ids(fetch(root, example.label_file), name=example.label_file), STUFF_IDS, name=example.label_file
        )


def _image_folder(root: Url, split: str) -> str:
    """Folder of the images: below images/, or in the root."""
    try:
        beside = any(islice(objects.list_files(root / f"{split}2017"), 1))
    except NothingThere:
        beside = False
    return f"{split}2017" if beside else f"images/{split}2017"


def _outlines(text: str) -> list[Outlines]:
    """Parse a JSON file and group its objects by image."""
    parsed = json.loads(text)
    of_image = defaultdict(list)
    for annotation in parsed["annotations"]:
        kept = {field: annotation[field] for field in ("category_id", "iscrowd", "area", "segmentation")}
        of_image[annotation["image_id"]].append(kept)
    fields = ("file_name", "height", "width")
    return [
        {field: image[field] for field in fields} | {"annotations": of_image[image["id"]]} for image in parsed["images"]
    ]


def _example(split: str, folder: str, outlines: Outlines) -> ListedExample:
    file_name, height, width = outlines["file_name"], outlines["height"], outlines["width"]
    if PurePosixPath(file_name).name != file_name:
        raise ValueError(f"the file name {file_name!r} leads out of its folder")
    if not 0 < height * width <= _MOST_PX:
        raise ValueError(f"{file_name} is said to have {height}x{width} pixels")
    return ListedExample(f"{split}/{file_stem(file_name)}", f"{folder}/{file_name}", None, (json.dumps(outlines),))


def _draw(label_hw: UInt8, mask_hw: Bool, class_id: int, ignore_id: int) -> None:
    """Set the class of a mask's pixels; pixels of another class get the ignore id."""
    disputed_hw = mask_hw & (label_hw != 0) & (label_hw != class_id)
    label_hw[mask_hw] = class_id
    label_hw[disputed_hw] = ignore_id


def _mask(annotation: Annotation, height: int, width: int, name: str) -> Bool:
    """Mask of one object, (height, width)."""
    outline = annotation["segmentation"]
    if isinstance(outline, dict):
        return run_lengths(outline, height, width, name)
    return polygon_mask(outline, height, width, name)


def run_lengths(outline: dict[str, Any], height: int, width: int, name: str) -> Bool:
    """Mask of a crowd, (height, width), from lengths of runs, column by column, alternately off and on."""
    counts = outline["counts"]
    if not isinstance(counts, list) or min(counts, default=-1) < 0 or sum(counts) != height * width:
        raise LabelError(f"a run-length outline on {name} does not cover its {height}x{width} pixels")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


_SOURCE, _LICENSE = "https://cocodataset.org/", "annotations CC BY 4.0; images under Flickr's terms of use"
THINGS = Objects(name="coco", palette="coco", splits=("train", "val"), source=_SOURCE, license=_LICENSE)
AS_VOC = Objects(name="coco_voc", palette="voc", splits=("train", "val"), source=_SOURCE, license=_LICENSE, as_voc=True)
STUFF = Stuff(
    name="coco_stuff",
    palette="coco_stuff",
    splits=("train", "val"),
    source="https://github.com/nightrome/cocostuff",
    license=_LICENSE,
)
