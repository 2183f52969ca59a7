"""Exports of labelling tools as labelled sets: the annotated images of a folder, split by a hash of their names.

    classes.yaml                 class map of the labels, as `atrous select` writes it; or --annotated.classes
    images/photo~0123.jpg        the images, at any depth; for `cvat_masks` also JPEGImages/
    annotations.xml, *.json ...  the export, see the layout of the tool

The folder of a selection, with the export put into it, is such a folder. An export names images in its own way, so an
image is found by its file name, and by the rest of the path where several have that name; nothing outside the folder is
ever opened. Images that nobody has annotated are left out of the set, and counted in the log.
"""

import hashlib
import json
import logging
import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipeline.classes import ClassMap
from pipeline.datasets.config import AnnotatedSetConfig
from pipeline.datasets.layout import DatasetLayout, Labelled, ListedExample, missing_file_error
from pipeline.datasets.outlines import polygon_mask
from pipeline.errors import ConfigError, InputError, LabelError, NothingThere
from pipeline.image.labels import check_used
from pipeline.image.run_lengths import BoxedRuns, decode_box, decode_brush, decode_columns
from pipeline.records import Bool, UInt8
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

TRAIN, VALIDATION = "train", "val"
IMAGES = ("images", "JPEGImages")
"""Folders of the images; the first that exists counts."""
_MOST_PX = 2**30
"""Largest image, pixels: a larger size in an export is damage and is not allocated."""
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")
"""Name under which Label Studio keeps a file that was uploaded to it."""

Shape = dict[str, Any]
"""Area of one class. class: its name; and one of polygons: lists of x, y, ... in pixels; box: left, top, width, height,
and runs; brush: bytes of Label Studio's code; counts: COCO's run lengths; unread: kind of a shape that is not read."""


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """Image of an export."""

    name: str
    """Path or URL by which the export names it."""
    height: int
    width: int
    """Size by the export, pixels."""
    shapes: Sequence[Shape]
    """Shapes in the order in which they are drawn."""


@dataclass(frozen=True)
class ToolExport(DatasetLayout):
    """Layout of an export; keys are `<split>/<path of the image without its suffix>`."""

    class_map: ClassMap = field(kw_only=True)
    settings: AnnotatedSetConfig = field(kw_only=True)
    topmost: bool = field(default=False, kw_only=True)
    """True: a pixel has the class of the last shape on it, as the tool shows it. False: shapes have no order, and
    pixels of shapes of several classes are ignored."""

    @property
    def classes(self) -> ClassMap:
        """Class map of the labels."""
        return self.class_map

    @property
    def nobody_s(self) -> int:
        """Id of pixels that nobody labelled."""
        name = self.settings.unlabelled
        return self.class_map.ignore_id if name is None else self.class_map.names.index(name)

    @abstractmethod
    def annotated(self, root: Url) -> Iterator[AnnotatedImage]:
        """Images of the export, those without a shape too, in any order.

        Raises:
            ConfigError: the export is missing, or is none of this tool's.
        """

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split; each example carries the shapes of its image, or the reason why its image is not found."""
        self.check_split(split)
        files, images = find_images(root), list(self.annotated(root))
        drawn = [image for image in images if image.shapes]
        if len(drawn) < len(images):
            log.warning("%d of %d images are not annotated and left out", len(images) - len(drawn), len(images))
        found = (self._example(image, files) for image in drawn)
        return sorted(
            (one for one in (self.placed(*pair) for pair in found) if one.key.startswith(f"{split}/")), key=_key
        )

    def _example(self, image: AnnotatedImage, files: "ImageFiles") -> tuple[str, str, tuple[str, ...]]:
        """Name for the key, path of the image, and `ListedExample.more`."""
        if not 0 < image.height * image.width <= _MOST_PX or min(image.height, image.width) < 0:
            raise ConfigError(
                f"{image.name} is said to have {image.height}x{image.width} pixels", hint="export it again"
            )
        more = json.dumps({"height": image.height, "width": image.width, "shapes": list(image.shapes)})
        try:
            path = files.find(image.name)
        except InputError as error:
            return image.name, "", (more, error.code, error.detail)
        return str(PurePosixPath(path.partition("/")[2]).with_suffix("")), path, (more,)

    def placed(self, name: str, path: str, more: tuple[str, ...]) -> ListedExample:
        """Example in the split that a hash of its name decides."""
        digest = hashlib.blake2b(f"{self.settings.split_seed} {name}".encode("utf-8", "surrogatepass"), digest_size=8)
        place = int.from_bytes(digest.digest()) / 2**64
        split = VALIDATION if place < self.settings.val_share else TRAIN
        return ListedExample(f"{split}/{name}", path, None, more)

    def read(self, root: Url, example: ListedExample) -> Labelled | None:
        """Read one example.

        Raises:
            InputError: also `not_found` for an image that no file was found for.
        """
        if not example.image:
            raise InputError(*example.more[1:3])
        return super().read(root, example)

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Draw the shapes of one image from `example.more`; `root` is ignored."""
        content = json.loads(example.more[0])
        try:
            return self._drawn(content["shapes"], content["height"], content["width"], example.image)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LabelError(f"a shape on {example.image} is damaged: {error}") from error

    def _drawn(self, shapes: Sequence[Shape], height: int, width: int, name: str) -> UInt8:
        label_hw = np.full((height, width), self.nobody_s, np.uint8)
        taken_hw = np.zeros((height, width), bool)
        for shape in shapes:
            mask_hw = mask_of(shape, height, width, name)
            class_id = self._class_of(shape, name)
            disputed_hw = mask_hw & taken_hw & (label_hw != class_id)
            label_hw[mask_hw] = class_id
            if not self.topmost:
                label_hw[disputed_hw] = self.class_map.ignore_id
            taken_hw |= mask_hw
        check_used(label_hw, self.class_map, name=name)
        return label_hw

    def _class_of(self, shape: Shape, name: str) -> int:
        if shape["class"] not in self.class_map.names:
            known = ", ".join(self.class_map.names)
            seen = f"a shape on {name} has the class {shape['class']!r}, which the class map lacks"
            raise LabelError(f"{seen}; it has {known}", code="label_value", hint="set --annotated.classes")
        return self.class_map.names.index(shape["class"])


def mask_of(shape: Shape, height: int, width: int, name: str) -> Bool:
    """(height, width) mask of a shape.

    Raises:
        LabelError: the kind is not read, or a polygon is none.
        ValueError: run lengths do not fit the image.
    """
    if "polygons" in shape:
        return polygon_mask(shape["polygons"], height, width, name)
    if "box" in shape:
        return decode_box(BoxedRuns(tuple(shape["runs"]), *shape["box"]), height, width)
    if "brush" in shape:
        return decode_brush(bytes(shape["brush"]), height, width)
    if "counts" in shape:
        return decode_columns(shape["counts"], height, width)
    raise LabelError(f"{name} has a shape of the kind {shape['unread']!r}, which is not read: draw masks or polygons")


def _key(example: ListedExample) -> str:
    return example.key


# ---------------------------------------------------------------- files of the folder


class ImageFiles:
    """Images of a folder by their names."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        self._by_stem: defaultdict[str, list[str]] = defaultdict(list)
        for path in paths:
            self._by_name[PurePosixPath(path).name].append(path)
            self._by_stem[PurePosixPath(path).stem].append(path)

    def find(self, name: str) -> str:
        """Path, below the root, of the image that an export names by a path or URL.

        Raises:
            InputError: `not_found`, also when several images may be meant.
        """
        base = name.rpartition("/")[2]
        uploaded = _UPLOADED.fullmatch(base)
        paths = self._by_name.get(base) or (self._by_name.get(uploaded[1]) if uploaded else None) or []
        return self._only(paths, name, lambda path: path)

    def find_stem(self, stem: str) -> str:
        """Path of the image with a path without a suffix; raises as `find`."""
        paths = self._by_stem.get(stem.rpartition("/")[2], [])
        return self._only(paths, stem, lambda path: str(PurePosixPath(path).with_suffix("")))

    @staticmethod
    def _only(paths: Sequence[str], name: str, plain: Any) -> str:
        """The one of some paths that fits a name as far as both reach."""
        if len(paths) > 1:
            ends = [(path, f"/{plain(path)}") for path in paths]
            paths = [path for path, end in ends if end.endswith(f"/{name}") or f"/{name}".endswith(end)]
            if len(paths) != 1:
                raise InputError("not_found", f"{len(ends)} images may be {name!r}, first {ends[0][0]}")
        if not paths:
            raise InputError("not_found", f"no file below {IMAGES[0]}/ is called as {name!r}")
        return paths[0]


def find_images(root: Url) -> ImageFiles:
    """Images of an export's folder; raises ConfigError when there is no folder of images."""
    for folder in IMAGES:
        try:
            return ImageFiles(sorted(f"{folder}/{file.path}" for file in objects.list_files(root / folder)))
        except NothingThere:
            continue
    raise missing_file_error(root, f"{IMAGES[0]}/")


def only_json(root: Url, *folders: str) -> str:
    """Path of the one JSON file of a folder, below the root; names that begin with `_` are ours.

    Args:
        root: folder of the export.
        folders: folders to look in, relative to the root, `""` for itself; the first with such a file counts.

    Raises:
        ConfigError: there is none, or there are several.
    """
    for folder in folders:
        url = root / folder if folder else root
        names = [path for path in objects.list_below(url) if re.fullmatch(r"[^_/][^/]*\.json", path)]
        if len(names) > 1:
            hint = f"leave the one to read: {', '.join(sorted(names)[:5])}"
            raise ConfigError(f"{url} has {len(names)} JSON files, and one export is read", hint=hint)
        if names:
            return f"{folder}/{names[0]}" if folder else names[0]
    raise missing_file_error(root, "*.json")


def log_ignored(ignored: Counter[str]) -> None:
    """Log what an export holds beside areas of classes."""
    for kind, count in sorted(ignored.items()):
        log.warning("%d result(s) of the kind %r have no area and are ignored", count, kind)
