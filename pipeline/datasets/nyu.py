"""NYU Depth v2: 1449 rooms, labelled with 894 names that are read here as 40 or 13 classes (Silberman et al. 2012).

The root holds the files as they are downloaded; the last is from the toolbox of Gupta et al. 2013:

    nyu_depth_v2_labeled.mat    MATLAB 7.3: images (480, 640, 3, 1449) uint8, labels (480, 640, 1449) uint16, 0 for none
    splits.mat                  trainNdxs, testNdxs: numbers from 1
    classMapping40.mat          mapClass: the class, 1 to 40, of each of the 894 names

Axes are in MATLAB's order. Depth is not read. Pixels without a name are ignored. The 40 classes include the remainders
other structure, other furniture and other props; the 13 are those of Couprie et al. 2013, table 1.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.datasets import picture
from pipeline.datasets.layout import DatasetLayout, Labelled, ListedExample
from pipeline.datasets.matlab import fetch_variable, open_hdf5, read_piece, require_h5py
from pipeline.errors import ConfigError, LabelError
from pipeline.records import UInt8
from pipeline.store.url import Url

if TYPE_CHECKING:
    import h5py

_FILE, _SPLITS, _MAPPING = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
_NAMES, _CLASSES = 894, 40
_NUMBERS = {"train": "trainNdxs", "test": "testNdxs"}
_IGNORE = 255

_FORTY = tuple(range(1, _CLASSES + 1))
# fmt: off
_THIRTEEN = (
    12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5,
    7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7,
)
# fmt: on


@dataclass(frozen=True)
class Nyu(DatasetLayout):
    """Keys are `<split>/<number>`, e.g. `train/0003`, the number being that of the official lists, from 1."""

    merged: tuple[int, ...] = _FORTY
    """Class, from 1, of each of the 40 classes."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List the numbers of the split; the mapping and h5py are checked too."""
        self.check_split(split)
        require_h5py()
        self._table(root)
        numbers = fetch_variable(root, _SPLITS, _NUMBERS[split]).ravel()
        if numbers.dtype.kind not in "iuf" or numbers.min(initial=1) < 1:
            raise ConfigError(f"{_SPLITS} must have numbers from 1 in {_NUMBERS[split]}")
        return [ListedExample(f"{split}/{number:04}", _FILE, _FILE) for number in sorted(numbers.astype(int).tolist())]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Read one label."""
        with open_hdf5(root, _FILE) as file:
            return self._label(root, file, example)

    def read(self, root: Url, example: ListedExample) -> Labelled:
        """Read one image, which becomes a PNG, and its label; nothing else of the file is fetched."""
        with open_hdf5(root, _FILE) as file:
            label_hw = self._label(root, file, example)
            pixels_hwc = read_piece(file, "images", _index(example))
        if pixels_hwc.shape != (*label_hw.shape, 3) or pixels_hwc.dtype != np.uint8:
            raise LabelError(f"{example.key}: image {pixels_hwc.shape} {pixels_hwc.dtype}, label {label_hw.shape}")
        return Labelled(example.key, picture.encode_png(pixels_hwc), label_hw)

    def _label(self, root: Url, file: "h5py.File", example: ListedExample) -> UInt8:
        names_hw = read_piece(file, "labels", _index(example))
        table = self._table(root)
        if names_hw.dtype.kind != "u" or int(names_hw.max(initial=0)) > _NAMES:
            raise LabelError(f"the label {example.key} has the value {names_hw.max()}, allowed are 0 to {_NAMES}")
        label_hw: UInt8 = table[names_hw]
        return label_hw

    def _table(self, root: Url) -> UInt8:
        """Class of each name, (895,): the ignore id for no name, then ids from 0."""
        forty = fetch_variable(root, _MAPPING, "mapClass").ravel()
        if forty.shape != (_NAMES,) or not np.isin(forty, _FORTY).all():
            raise ConfigError(f"{_MAPPING} must have a class from 1 to {_CLASSES} for each of {_NAMES} names")
        classes = np.array(self.merged)[forty.astype(int) - 1]
        return np.concatenate([[_IGNORE], classes - 1]).astype(np.uint8)


def _index(example: ListedExample) -> int:
    """Index in the file, from 0."""
    return int(example.key.rpartition("/")[2]) - 1


_nyu = partial(
    Nyu,
    splits=tuple(_NUMBERS),
    source="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
    license="not stated; research",
)

NYU40 = _nyu(name="nyu40", palette="nyu40")
NYU13 = _nyu(name="nyu13", palette="nyu13", merged=_THIRTEEN)
