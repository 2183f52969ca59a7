"""The layout of a public data set as it is downloaded and unpacked: what is in it, and the label of each of its images.

In: the URL of the folder into which the official archives were unpacked. Out: the examples of a split, and for each the
image's own bytes and a map of class ids. Nothing is written here and no image is decoded: what becomes of them is the
caller's business. Files are read through `pipeline.store.objects`, so a root may be local or in an object store.
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
from pipeline.errors import ConfigError, InputError, LabelError, NothingThere, StorageError
from pipeline.records import UInt8
from pipeline.store import objects
from pipeline.store.url import Url

_LISTED = 1000
"""Files looked at to say what a folder holds instead of what was expected."""


@dataclass(frozen=True, slots=True)
class ListedExample:
    """One image of a split and where its label is; nothing of it has been read yet."""

    key: str
    """Unique in the set and stable, `<split>/<name>`, e.g. `train/2007_000032`."""
    image: str
    """Path below the root."""
    label: str | None
    """Path below the root; None where the label is in `more`."""
    more: tuple[str, ...] = ()
    """Other paths, ids or text that the set needs to make the label or the image."""

    def __repr__(self) -> str:
        """The text that shard ids are a digest of: it must stay as it is, or a begun output cannot be continued."""
        return f"Example(key={self.key!r}, image={self.image!r}, label={self.label!r}, more={self.more!r})"

    @property
    def label_file(self) -> str:
        """`label`, in sets where every example has one."""
        if self.label is None:
            raise ValueError(f"{self.key} has no label file")
        return self.label


@dataclass(frozen=True, slots=True)
class Labelled:
    """One image and its label."""

    key: str
    """That of the example."""
    image: bytes
    """Encoded: the original file as it is, wherever the set has one file per image."""
    label_hw: UInt8
    """(H, W) ids of the set's class map, and its ignore id where there is no class."""


@dataclass(frozen=True)
class DatasetLayout(ABC):
    """One public data set as downloaded."""

    name: str
    """As in `catalogue.LAYOUTS`."""
    palette: str
    """Name of its class map in `pipeline/palettes`."""
    splits: tuple[str, ...]
    """Those that have labels."""
    source: str
    """URL of the official page."""
    license: str
    """What the official page allows, in a few words."""

    @property
    def classes(self) -> ClassMap:
        """What the ids of its labels mean."""
        return classes.load_class_map(self.palette)

    @abstractmethod
    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split in the order of its keys.

        Raises:
            ConfigError: the set has no such split, or what makes it up is not below `root`.
        """

    @abstractmethod
    def label(self, root: Url, one: ListedExample) -> UInt8:
        """Read the label of one example: (H, W) ids of the class map.

        Raises:
            LabelError: the file is no label of this set; names the file and the value.
            InputError: a file is missing, or cannot be read now.
        """

    def read(self, root: Url, one: ListedExample) -> Labelled:
        """Read one example; raises as `label` does."""
        return Labelled(one.key, fetch(root, one.image), self.label(root, one))

    def check_split(self, split: str) -> None:
        """Refuse a split that the set does not have."""
        if split not in self.splits:
            raise ConfigError(f"{self.name} has no split {split!r}", hint=f"its splits are {', '.join(self.splits)}")


def fetch(root: Url, path: str) -> bytes:
    """Read one file below the root.

    Raises:
        InputError: it is not there, or the store keeps failing: the failure of this one example.
    """
    try:
        return objects.read_bytes(root / path)
    except FileNotFoundError as error:
        raise InputError("not_found", f"{path} is not in {root}") from error
    except StorageError as error:
        raise objects.as_input_error(error) from error


def fetch_listing(root: Url, path: str) -> str:
    """Read a text that the set cannot be listed without.

    Raises:
        ConfigError: it is not there, or not text.
    """
    try:
        return objects.read_bytes(root / path).decode()
    except FileNotFoundError as error:
        raise not_there(root, path) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} in {root} is not UTF-8 text: {error}") from error


def names_in(root: Url, path: str) -> list[str]:
    """Names that a list file of a split holds: the first word of each line, without its folders and suffix.

    So it reads lists of names and lists of pairs of paths alike. Sorted, none twice.

    Raises:
        ConfigError: there is no such file, or nothing is in it.
    """
    names = sorted({file_stem(line.split()[0]) for line in fetch_listing(root, path).splitlines() if line.strip()})
    if not names:
        raise ConfigError(f"the list {path} in {root} is empty", hint="unpack the official archive again")
    return names


def files_below(root: Url, folder: str, suffix: str) -> list[str]:
    """Paths below the root of the files of a folder and its subfolders that end in `suffix`, sorted.

    Raises:
        ConfigError: there is none.
    """
    try:
        listed = [f"{folder}/{one.path}" for one in objects.list_files(root / folder)]
    except NothingThere as error:
        raise not_there(root, f"{folder}/") from error
    found = sorted(path for path in listed if path.endswith(suffix))
    if not found:
        raise not_there(root, f"{folder}/*{suffix}")
    return found


def not_there(root: Url, expected: str) -> ConfigError:
    """The error that says what was expected and what the root holds."""
    try:
        below = [one.path.split("/")[0] for one in islice(objects.list_files(root), _LISTED)]
    except NothingThere:
        return ConfigError(f"{root} is not there", hint=f"a folder that holds {expected}")
    held = ", ".join(list(dict.fromkeys(below))[:10]) or "nothing"
    hint = f"give the folder into which the official archives were unpacked; this one holds {held}"
    return ConfigError(f"{root} has no {expected}", hint=hint)


def file_stem(path: str) -> str:
    """The last name of a path without its suffix."""
    return PurePosixPath(path).stem


def decode_ids(data: bytes, *, name: str) -> UInt8:
    """Decode a label image whose values are ids: (H, W), the values as they are stored.

    Palette or grey with 8 bits; colours of a palette are not looked at.

    Raises:
        LabelError: of another kind, or damaged.
    """
    picture = _decode(data, name)
    if picture.mode not in ("L", "P"):
        raise LabelError(f"the label {name} has Pillow's mode {picture.mode!r}, not ids in 8 bits (L or P)")
    return np.array(picture, np.uint8)


def decode_colours(data: bytes, *, name: str) -> UInt8:
    """Decode a label image whose values are colours: (H, W, 3) RGB.

    Raises:
        LabelError: of another kind, or damaged.
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
