"""CWFID, the Crop/Weed Field Image Dataset: carrots and weeds from above a robot (Haug and Ostermann 2014).

The root holds what the repository's archive of version 1.0 unpacks to:

    dataset-1.0/
        images/001_image.png              1296x966 pixels
        annotations/001_annotation.png    crop green, weed red, soil black
        masks/001_mask.png                vegetation or soil: not read
        train_test_split.yaml             train: [...], test: [...], numbers of images
"""

from dataclasses import dataclass

import yaml

from pipeline.datasets.layout import DatasetLayout, ListedExample, decode_colours, fetch, fetch_listing
from pipeline.errors import ConfigError
from pipeline.image.labels import Colour, from_colours
from pipeline.records import UInt8
from pipeline.store.url import Url

_FOLDER = "dataset-1.0"
_SPLIT_FILE = f"{_FOLDER}/train_test_split.yaml"
_COLOURS: dict[Colour, int] = {(0, 0, 0): 0, (255, 0, 0): 1, (0, 255, 0): 2}


@dataclass(frozen=True)
class Cwfid(DatasetLayout):
    """Keys are `<split>/<number>`, e.g. `train/002`."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List the numbers of the split file."""
        self.check_split(split)
        return [_example(split, number) for number in sorted(_numbers(fetch_listing(root, _SPLIT_FILE), split))]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Decode the label and map colours to ids."""
        rgb_hwc = decode_colours(fetch(root, example.label_file), name=example.label_file)
        return from_colours(rgb_hwc, _COLOURS, name=example.label_file)


def _numbers(text: str, split: str) -> set[int]:
    try:
        splits = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{_SPLIT_FILE} is not YAML: {error}") from error
    numbers = splits.get(split) if isinstance(splits, dict) else None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise ConfigError(f"{_SPLIT_FILE} has no list of numbers under {split!r}")
    return set(numbers)


def _example(split: str, number: int) -> ListedExample:
    name = f"{number:03}"
    image, label = f"{_FOLDER}/images/{name}_image.png", f"{_FOLDER}/annotations/{name}_annotation.png"
    return ListedExample(f"{split}/{name}", image, label)


CWFID = Cwfid(
    name="cwfid",
    palette="cwfid",
    splits=("train", "test"),
    source="https://github.com/cwfid/dataset",
    license="non-commercial research only",
)
