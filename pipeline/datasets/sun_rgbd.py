"""SUN RGB-D: 10335 rooms seen by four depth cameras, 37 classes (Song et al. 2015).

The root holds what `SUNRGBD.zip` and `SUNRGBDtoolbox.zip` unpack to:

    SUNRGBD/kv1/NYUdata/NYU0001/image/NYU0001.jpg         also below kv2, realsense and xtion, at several depths
    SUNRGBDtoolbox/Metadata/SUNRGBDMeta.mat               MATLAB 5: folder and file name of each image
    SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat              MATLAB 7.3: seglabel of each, in the same order
    SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat          MATLAB 5: alltrain, alltest: folders

Folders are given as on the authors' machine: what follows the last `SUNRGBD/` counts. Labels are 0 for none, which is
ignored here, and 1 to 37. The `seg.mat` in each image's folder has free text in place of classes and is not read, nor
is depth.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.layout import DatasetLayout, ListedExample
from pipeline.datasets.matlab import fetch_variable, open_hdf5, read_piece, require_h5py
from pipeline.errors import ConfigError, LabelError
from pipeline.image.labels import from_ids
from pipeline.records import UInt8
from pipeline.store.url import Url

_META = "SUNRGBDtoolbox/Metadata/SUNRGBDMeta.mat"
_LABELS = "SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat"
_SPLITS = "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
_FOLDERS = {"train": "alltrain", "test": "alltest"}
_IDS = {0: 255} | {value: value - 1 for value in range(1, 38)}


@dataclass(frozen=True)
class SunRgbd(DatasetLayout):
    """Keys are `<split>/<folder>`, e.g. `train/kv1/NYUdata/NYU0001`; the position in the files is in `more`."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List the folders of the split; h5py is checked too."""
        self.check_split(split)
        require_h5py()
        entries = _entries(root)
        folders = sorted({_below(path) for path in _texts(fetch_variable(root, _SPLITS, _FOLDERS[split]))})
        if lacking := [folder for folder in folders if folder not in entries]:
            raise ConfigError(f"{_META} has no entry for {lacking[0]!r} and {len(lacking) - 1} more of {_SPLITS}")
        return [
            ListedExample(f"{split}/{folder}", entries[folder][0], _LABELS, entries[folder][1:]) for folder in folders
        ]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Read one label; nothing else of the file is fetched."""
        with open_hdf5(root, _LABELS) as file:
            raw_hw = read_piece(file, "SUNRGBD2Dseg/seglabel", int(example.more[0]))
        ids_hw = raw_hw.astype(np.uint8)
        if ids_hw.ndim != 2 or not np.array_equal(ids_hw, raw_hw):
            raise LabelError(f"the label {example.key} in {_LABELS} is not a map of ids: {raw_hw.dtype} {raw_hw.shape}")
        return from_ids(ids_hw, _IDS, name=f"{example.key} in {_LABELS}")


def _entries(root: Url) -> dict[str, tuple[str, str]]:
    """Path of the image and index in the files, by folder."""
    entries = fetch_variable(root, _META, "SUNRGBDMeta")
    if not {"rgbpath", "rgbname"} <= set(entries.dtype.names or ()):
        raise ConfigError(f"{_META} has no entries with rgbpath and rgbname")
    folders = [_below(path.rpartition("/image/")[0]) for path in _texts(entries["rgbpath"])]
    named = enumerate(zip(folders, _texts(entries["rgbname"]), strict=True))
    return {folder: (f"SUNRGBD/{folder}/image/{name}", str(index)) for index, (folder, name) in named}


def _texts(cells: npt.NDArray[Any]) -> list[str]:
    """Texts in an array of cells."""
    return [str(np.squeeze(cell)) for cell in cells.ravel()]


def _below(path: str) -> str:
    """Path below `SUNRGBD/`: "/n/fs/sun3d/data/SUNRGBD/kv1/b3dodata/img_0063/" gives "kv1/b3dodata/img_0063"."""
    return path.replace("//", "/").rpartition("SUNRGBD/")[2].strip("/")


SUN_RGBD = SunRgbd(
    name="sun_rgbd",
    palette="sun_rgbd",
    splits=tuple(_FOLDERS),
    source="https://rgbd.cs.princeton.edu",
    license="not stated; research",
)
