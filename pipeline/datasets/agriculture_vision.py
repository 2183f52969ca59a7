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
"""Order in which classes are drawn over each other: storm damage, then roughly from common to rare."""

_FOLDER = "Agriculture-Vision-2021"
_DRAWN = {0: 0, 1: 1, 255: 1}


@dataclass(frozen=True)
class AgricultureVision(DatasetLayout):
    """Keys are `<split>/<field>_<x1>-<y1>-<x2>-<y2>`. Images are TIFFs of red, green, blue and near infrared."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split."""
        self.check_split(split)
        examples = [
            _example(split, file_stem(path)) for path in files_below(root, f"{_FOLDER}/{split}/images/rgb", ".jpg")
        ]
        return sorted(examples, key=lambda example: example.key)

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Draw the classes over each other."""
        _, boundary, mask, *drawings = example.more
        valid_hw = _drawn(root, boundary)
        label_hw = np.zeros(valid_hw.shape, np.uint8)
        ids = {name: index for index, name in enumerate(self.classes.names)}
        for path, name in zip(drawings, PAINTED, strict=True):
            label_hw[_drawn(root, path, like=valid_hw)] = ids.get(name, self.classes.ignore_id)
        label_hw[~(valid_hw & _drawn(root, mask, like=valid_hw))] = self.classes.ignore_id
        return label_hw

    def read(self, root: Url, example: ListedExample) -> Labelled:
        """Stack colours and near infrared to an image of four bands."""
        rgb_hwc = picture.decode_picture(fetch(root, example.image), name=example.image)
        nir_hw, label_hw = _infrared(root, example.more[0]), self.label(root, example)
        if not rgb_hwc.shape[:2] == nir_hw.shape == label_hw.shape:
            sizes = f"{rgb_hwc.shape[:2]}, {nir_hw.shape} and {label_hw.shape}"
            raise LabelError(f"{example.key}: colours, infrared and label differ in size: {sizes}")
        return Labelled(example.key, picture.encode_tiff(np.dstack([rgb_hwc, nir_hw])), label_hw)


def _example(split: str, name: str) -> ListedExample:
    folder = f"{_FOLDER}/{split}"
    infrared = f"{folder}/images/nir/{name}.jpg"
    valid = f"{folder}/boundaries/{name}.png", f"{folder}/masks/{name}.png"
    drawings = [f"{folder}/labels/{drawn}/{name}.png" for drawn in PAINTED]
    return ListedExample(f"{split}/{name}", f"{folder}/images/rgb/{name}.jpg", None, (infrared, *valid, *drawings))


def _infrared(root: Url, path: str) -> UInt8:
    """Decode a grey JPEG with one band or three equal ones, (H, W)."""
    bands_hwc = picture.decode_picture(fetch(root, path), name=path)
    if (bands_hwc != bands_hwc[..., :1]).any():
        raise InputError("band_mismatch", f"{path} has colours, expected infrared alone")
    return bands_hwc[..., 0]


def _drawn(root: Url, path: str, *, like: Bool | None = None) -> Bool:
    """Decode a map of 0 and 255, (H, W) bool; its size must be that of `like`."""
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
