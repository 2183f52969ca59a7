"""ISPRS 2D semantic labelling: the cities of Potsdam (0.05 m per pixel) and Vaihingen (0.09 m per pixel) from the air.

The root holds what these archives unpack to. Files are found by their names, as some archives hold a folder and some do
not; only images have to be in a folder of the name given here:

    Potsdam: 38 tiles of 6000x6000 pixels, red, green, blue
      2_Ortho_RGB.zip                2_Ortho_RGB/top_potsdam_2_10_RGB.tif
      5_Labels_all.zip               top_potsdam_2_10_label.tif
      5_Labels_all_noBoundary.zip    top_potsdam_2_10_label_noBoundary.tif

    Vaihingen: 33 areas of about 2500x2000 pixels, near infrared, red, green
      ISPRS_semantic_labeling_Vaihingen.zip                               top/top_mosaic_09cm_area1.tif
                                                                          gts_for_participants/top_mosaic_09cm_area1.tif
      ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip         top_mosaic_09cm_area2.tif
      ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip  top_mosaic_09cm_area2_noBoundary.tif

The benchmark scores on `test_eroded`, the labels of `test` whose borders between classes are black and ignored, and
leaves clutter out of its mean.

Two labels of Potsdam were not saved in the six colours: 4_12 went through lossy compression (24850 colours), and most
cars of 6_7 are (252, 255, 0). All colours are corners of the RGB cube and those values lie close to them, so channels
of these two tiles are rounded to 0 or 255. Any other label has to have the exact colours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

import numpy as np

from pipeline.datasets.layout import DatasetLayout, ListedExample, decode_colours, fetch, missing_file_error
from pipeline.errors import NothingThere
from pipeline.image.labels import Colour, from_colours
from pipeline.records import UInt8
from pipeline.store import objects
from pipeline.store.url import Url

_SUFFIXES = {"train": ".tif", "test": ".tif", "test_eroded": "_noBoundary.tif"}
_COLOURS: dict[Colour, int] = {
    (255, 255, 255): 0,
    (0, 0, 255): 1,
    (0, 255, 255): 2,
    (0, 255, 0): 3,
    (255, 255, 0): 4,
    (255, 0, 0): 5,
}
_BORDERS: dict[Colour, int] = {(0, 0, 0): 255}


@dataclass(frozen=True)
class Isprs(DatasetLayout):
    """Layout of one city; keys are `<split>/<tile>`, e.g. `train/2_10`. A tile is read whole."""

    folder: str
    """Name of the folder of images."""
    image: str
    """Name of an image file, with `{}` for its tile."""
    label_stem: str
    """Name of a label file without its suffix, with `{}` for its tile."""
    tiles: Mapping[str, tuple[str, ...]]
    """Official tiles of each split."""
    inexact: frozenset[str] = frozenset()
    """Tiles whose label does not have the exact colours."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List the official tiles; every file must exist."""
        self.check_split(split)
        images, others = self._by_name(root)
        examples = []
        for tile in sorted(self.tiles[split]):
            image, label = self.image.format(tile), self.label_stem.format(tile) + _SUFFIXES[split]
            if image not in images or label not in others:
                raise missing_file_error(root, f"{self.folder}/{image}" if image not in images else label)
            examples.append(ListedExample(f"{split}/{tile}", images[image], others[label]))
        return examples

    def _by_name(self, root: Url) -> tuple[dict[str, str], dict[str, str]]:
        """Paths of the images and of all other files, by name."""
        try:
            paths = [PurePosixPath(file.path) for file in objects.list_files(root)]
        except NothingThere as error:
            raise missing_file_error(root, f"{self.folder}/") from error
        images = {path.name: str(path) for path in paths if path.parent.name == self.folder}
        return images, {path.name: str(path) for path in paths if path.parent.name != self.folder}

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Decode the label and map colours to ids."""
        split, tile = example.key.split("/")
        rgb_hwc = decode_colours(fetch(root, example.label_file), name=example.label_file)
        if tile in self.inexact:
            rgb_hwc = np.where(rgb_hwc < 128, 0, 255).astype(np.uint8)
        table = _COLOURS | _BORDERS if split == "test_eroded" else _COLOURS
        return from_colours(rgb_hwc, table, name=example.label_file)


_City = partial(
    Isprs,
    palette="isprs",
    splits=tuple(_SUFFIXES),
    source="https://www.isprs.org/resources/datasets/benchmarks/UrbanSemLab",
    license="research only, on request",
)


def _splits(train: str, test: str) -> dict[str, tuple[str, ...]]:
    held_out = tuple(test.split())
    return {"train": tuple(train.split()), "test": held_out, "test_eroded": held_out}


POTSDAM = _City(
    name="potsdam",
    folder="2_Ortho_RGB",
    image="top_potsdam_{}_RGB.tif",
    label_stem="top_potsdam_{}_label",
    tiles=_splits(
        train="2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 "
        "6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12",
        test="2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13",
    ),
    inexact=frozenset({"4_12", "6_7"}),
)

VAIHINGEN = _City(
    name="vaihingen",
    folder="top",
    image="top_mosaic_09cm_area{}.tif",
    label_stem="top_mosaic_09cm_area{}",
    tiles=_splits(
        train="1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37",
        test="2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38",
    ),
)
