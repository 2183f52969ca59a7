"""Agriculture-Vision, challenge of 2021: anomalies of American fields from the air, in red, green, blue and infrared.

Chiu et al. 2020. The root holds what the challenge's archive unpacks to, `train` and `val`; `test` has no labels:

    Agriculture-Vision-2021/train/
        images/rgb/<field>_<x1>-<y1>-<x2>-<y2>.jpg    512x512 pixels
        images/nir/....jpg                            near infrared, grey
        boundaries/....png                            where the field is
        masks/....png                                 where the image has data
        labels/<class>/....png                        one map of 0 and 255 for each of nine classes

The maps overlap, and the challenge counts any class of a pixel as right. Here a pixel has one class, the last in the
order of `PAINTED` that is drawn on it, so that rare classes lose nothing to common ones. It is background where none is
drawn, and ignored outside the boundary or the mask, and where storm damage alone is drawn: the challenge leaves that
class out, as it is on too few images.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.datasets import picture
from pipeline.datasets.layout import DatasetLayout, Labelled, ListedExample, decode_ids, fetch, file_stem, files_below
from pipeline.errors import InputError, LabelError
from pipeline.image.labels import from_ids
from pipeline.records import Bool, UInt8
from pipeline.store.url import Url

CHANNELS = ("red", "green", "blue", "nir")
"""Bands of the images, in their order."""
PAINTED = (
    "storm_damage",
    "drydown",
    "nutrient_deficiency",
    "weed_cluster",
    "double_plant",
    "endrow",
    "waterway",
    "planter_skip",
    "water",
)
"""The order in which classes are painted over each other: roughly from the commonest on, after storm damage."""

_FOLDER = "Agriculture-Vision-2021"
_DRAWN = {0: 0, 1: 1, 255: 1}


@dataclass(frozen=True)
class AgricultureVision(DatasetLayout):
    """Keys are `<split>/<field>_<x1>-<y1>-<x2>-<y2>`. Images are TIFFs with four bands, `CHANNELS`."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split."""
        self.check_split(split)
        found = [
            _example(split, file_stem(path)) for path in files_below(root, f"{_FOLDER}/{split}/images/rgb", ".jpg")
        ]
        return sorted(found, key=lambda one: one.key)

    def label(self, root: Url, one: ListedExample) -> UInt8:
        """Paint the classes over each other."""
        _, boundary, mask, *drawings = one.more
        valid_hw = _drawn(root, boundary)
        label_hw = np.zeros(valid_hw.shape, np.uint8)
        ids = {name: index for index, name in enumerate(self.classes.names)}
        for path, name in zip(drawings, PAINTED, strict=True):
            label_hw[_drawn(root, path, like=valid_hw)] = ids.get(name, self.classes.ignore_id)
        label_hw[~(valid_hw & _drawn(root, mask, like=valid_hw))] = self.classes.ignore_id
        return label_hw

    def read(self, root: Url, one: ListedExample) -> Labelled:
        """Join both images into one of four bands."""
        rgb_hwc = picture.decode_picture(fetch(root, one.image), name=one.image)
        nir_hw, label_hw = _infrared(root, one.more[0]), self.label(root, one)
        if not rgb_hwc.shape[:2] == nir_hw.shape == label_hw.shape:
            sizes = f"{rgb_hwc.shape[:2]}, {nir_hw.shape} and {label_hw.shape}"
            raise LabelError(f"{one.key}: colours, infrared and label differ in size: {sizes}")
        return Labelled(one.key, picture.encode_tiff(np.dstack([rgb_hwc, nir_hw])), label_hw)


def _example(split: str, name: str) -> ListedExample:
    folder = f"{_FOLDER}/{split}"
    infrared = f"{folder}/images/nir/{name}.jpg"
    valid = f"{folder}/boundaries/{name}.png", f"{folder}/masks/{name}.png"
    drawings = [f"{folder}/labels/{drawn}/{name}.png" for drawn in PAINTED]
    return ListedExample(f"{split}/{name}", f"{folder}/images/rgb/{name}.jpg", None, (infrared, *valid, *drawings))


def _infrared(root: Url, path: str) -> UInt8:
    """(H, W) of a JPEG that is grey, with one band or with three alike."""
    bands_hwc = picture.decode_picture(fetch(root, path), name=path)
    if (bands_hwc != bands_hwc[..., :1]).any():
        raise InputError("band_mismatch", f"{path} has colours, expected infrared alone")
    return bands_hwc[..., 0]


def _drawn(root: Url, path: str, *, like: Bool | None = None) -> Bool:
    """(H, W) where a map is set; `like` says the size it has to have."""
    drawn_hw = from_ids(decode_ids(fetch(root, path), name=path), _DRAWN, name=path).astype(np.bool_)
    if like is not None and drawn_hw.shape != like.shape:
        raise LabelError(f"the label {path} has {drawn_hw.shape} pixels, the boundary of its field {like.shape}")
    return drawn_hw


AGRICULTURE_VISION = AgricultureVision(
    name="agriculture_vision",
    palette="agriculture_vision",
    splits=("train", "val"),
    source="https://www.agriculture-vision.com/agriculture-vision-2021/dataset-2021",
    license="non-commercial research only",
)
