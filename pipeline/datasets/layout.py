"""Layout of a public data set as downloaded: its splits, examples, images and labels.

In: the URL of the folder into which the official archives were unpacked. Out: the examples of a split, and for each the
encoded image and a map of class ids. Nothing is written here. Files are read through `pipeline.store.objects`, so a
root may be local or in an object store.
"""

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

import numpy as np
from PIL import Image as PILImage

from pipeline import classes
from pipeline.classes import ClassMap
from pipeline.datasets.levels import Levels
from pipeline.errors import ConfigError, InputError, LabelError, NothingThere, StorageError
from pipeline.records import UInt8
from pipeline.store import objects
from pipeline.store.url import Url

_LISTED = 1000
"""Largest number of files listed to describe the root in an error."""


@dataclass(frozen=True, slots=True)
class ListedExample:
    """Paths of one image and its label; neither has been read."""

    key: str
    """Stable key, unique in the set: `<split>/<name>`, e.g. `train/2007_000032`."""
    image: str
    """Path of the image below the root."""
    label: str | None
    """Path of the label below the root; None where it is in `more`."""
    more: tuple[str, ...] = ()
    """Other paths, ids or text from which the layout makes the label or the image."""

    def __repr__(self) -> str:
        """Text that shard ids are a hash of: a change would make begun outputs impossible to continue."""
        return f"Example(key={self.key!r}, image={self.image!r}, label={self.label!r}, more={self.more!r})"

    @property
    def label_file(self) -> str:
        """`label`, in sets where every example has a label file."""
        if self.label is None:
            raise ValueError(f"{self.key} has no label file")
        return self.label


@dataclass(frozen=True, slots=True)
class Labelled:
    """Encoded image and decoded label of one example."""

    key: str
    """Key of the example."""
    image: bytes
    """Encoded image: the original file if the set has one file per image."""
    label_hw: UInt8
    """(H, W) uint8 ids of the set's class map, and its ignore id on unlabelled pixels."""
    levels: Levels | None = None
    """Histogram of the stored values of a chip of a raster, which is not decoded again; None for an image."""


@dataclass(frozen=True)
class DatasetLayout(ABC):
    """Layout of one public data set."""

    name: str
    """Key in `catalogue.DATASET_LAYOUTS`."""
    palette: str
    """Name of the class map in `pipeline/palettes`."""
    splits: tuple[str, ...]
    """Names of the splits that have labels."""
    source: str
    """URL of the official page."""
    license: str
    """Licence by the official page, in a few words."""

    @property
    def classes(self) -> ClassMap:
        """Class map of the labels."""
        return classes.load_class_map(self.palette)

    @abstractmethod
    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split in the order of its keys.

        Raises:
            ConfigError: the set has no such split, or files of the split are not below `root`.
        """

    @abstractmethod
    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Read the label of one example: (H, W) ids of the class map.

        Raises:
            LabelError: the file is not a label of this set; the message names the file and the value.
            InputError: a file is missing or cannot be read.
        """

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands of the images; empty where the set does not name them."""
        return ()

    def read(self, root: Url, example: ListedExample) -> Labelled | None:
        """Read one example, None for one to leave out; raises the errors of `label`."""
        return Labelled(example.key, fetch(root, example.image), self.label(root, example))

    def check_split(self, split: str) -> None:
        """Check that the set has a split.

        Raises:
            ConfigError: it does not.
        """
        if split not in self.splits:
            raise ConfigError(f"{self.name} has no split {split!r}", hint=f"its splits are {', '.join(self.splits)}")


def fetch(root: Url, path: str) -> bytes:
    """Read one file below the root.

    Raises:
        InputError: the file does not exist, or the store failed: the failure of this example alone.
    """
    try:
        return objects.read_bytes(root / path)
    except FileNotFoundError as error:
        raise InputError("not_found", f"{path} is not in {root}") from error
    except StorageError as error:
        raise objects.as_input_error(error) from error


def fetch_listing(root: Url, path: str) -> str:
    """Read a text file that is needed to list the set.

    Raises:
        ConfigError: the file does not exist or is not UTF-8.
    """
    try:
        return objects.read_bytes(root / path).decode()
    except FileNotFoundError as error:
        raise missing_file_error(root, path) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} in {root} is not UTF-8 text: {error}") from error


def names_in(root: Url, path: str) -> list[str]:
    """Names in the list file of a split: the first word of each line without folders and suffix, sorted, none twice.

    Lists of names and lists of pairs of paths are both read.

    Raises:
        ConfigError: the file does not exist or is empty.
    """
    names = sorted({file_stem(line.split()[0]) for line in fetch_listing(root, path).splitlines() if line.strip()})
    if not names:
        raise ConfigError(f"the list {path} in {root} is empty", hint="unpack the official archive again")
    return names


def files_below(root: Url, folder: str, suffix: str) -> list[str]:
    """Sorted paths, below the root, of files in a folder and its subfolders that end in `suffix`.

    Raises:
        ConfigError: there is no such file.
    """
    try:
        listed = [f"{folder}/{file.path}" for file in objects.list_files(root / folder)]
    except NothingThere as error:
        raise missing_file_error(root, f"{folder}/") from error
    paths = sorted(path for path in listed if path.endswith(suffix))
    if not paths:
        raise missing_file_error(root, f"{folder}/*{suffix}")
    return paths


def missing_file_error(root: Url, expected: str) -> ConfigError:
    """Error for a missing file or folder; it lists the content of the root."""
    try:
        below = [file.path.split("/")[0] for file in islice(objects.list_files(root), _LISTED)]
    except NothingThere:
        return ConfigError(f"{root.located} does not exist", hint=f"set --root to the folder that holds {expected}")
    content = ", ".join(list(dict.fromkeys(below))[:10]) or "nothing"
    hint = f"set --root to the folder into which the official archives were unpacked; this one holds {content}"
    return ConfigError(f"{root} has no {expected}", hint=hint)


def file_stem(path: str) -> str:
    """File name of a path without its suffix."""
    return PurePosixPath(path).stem


def decode_ids(data: bytes, *, name: str) -> UInt8:
    """Decode a label image of ids: (H, W) uint8 values as stored.

    The image is grey or has a palette, 8 bits; the palette's colours are ignored.

    Raises:
        LabelError: the image has another mode or is damaged.
    """
    picture = _decode(data, name)
    if picture.mode not in ("L", "P"):
        raise LabelError(f"the label {name} has Pillow's mode {picture.mode!r}, not ids in 8 bits (L or P)")
    return np.array(picture, np.uint8)


def decode_colours(data: bytes, *, name: str) -> UInt8:
    """Decode a label image of colours: (H, W, 3) uint8 RGB.

    Raises:
        LabelError: the image has another mode or is damaged.
    """
    picture = _decode(data, name)
    if picture.mode not in ("RGB", "P"):
        raise LabelError(f"the label {name} has Pillow's mode {picture.mode!r}, not colours (RGB or P)")
    return np.array(picture.convert("RGB"), np.uint8)


def _decode(data: bytes, name: str) -> PILImage.Image:
    try:
        picture = PILImage.open(io.BytesIO(data), formats=["PNG", "TIFF", "BMP", "GIF"])
        picture.load()
    except Exception as error:  # Pillow raises many types on damaged data, and lists none of them
        raise LabelError(f"the label {name} cannot be decoded: {error}") from error
    return picture
