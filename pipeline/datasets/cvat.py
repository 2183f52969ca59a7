"""CVAT's exports: "CVAT for images 1.1", and "Segmentation mask 1.1".

    cvat         annotations.xml      masks, polygons and boxes; https://docs.cvat.ai/docs/other/xml_format
    cvat_masks   labelmap.txt         name:red,green,blue:: on each line
                 SegmentationClass/   PNGs in these colours; .../format-smask in the same documentation

In the XML shapes have an order (`z_order`, then that of the file), and the upper one counts, as in CVAT's own masks.
Tags have no area and are ignored; a label on ellipses, points, lines or cuboids fails, by name. In masks, black is
CVAT's background: pixels that nobody labelled, unless the class map has a class of the name that `labelmap.txt` gives.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from pipeline.datasets.exports import AnnotatedImage, Shape, ToolExport, find_images, log_ignored
from pipeline.datasets.layout import ListedExample, decode_colours, fetch, fetch_listing, files_below
from pipeline.errors import ConfigError, InputError
from pipeline.image.labels import check_used, from_colours
from pipeline.records import UInt8
from pipeline.store.url import Url

XML, LABEL_MAP, MASKS = "annotations.xml", "labelmap.txt", "SegmentationClass"
_BLACK = (0, 0, 0)


class CvatXml(ToolExport):
    """Layout of "CVAT for images 1.1"."""

    def annotated(self, root: Url) -> Iterator[AnnotatedImage]:
        """Images of `annotations.xml`."""
        tree, ignored = parse_plain_xml(fetch_listing(root, XML)), Counter[str]()
        if tree.tag != "annotations" or tree.find("track") is not None:
            raise ConfigError(f"{XML} is no export of images", hint='export the task as "CVAT for images 1.1"')
        try:
            for image in tree.iter("image"):
                shapes = sorted(image, key=lambda one: int(one.get("z_order", "0")))  # stable: else as in the file
                ignored.update(one.tag for one in shapes if one.tag == "tag")
                drawn = [shape_of(one) for one in shapes if one.tag != "tag"]
                size = int(image.attrib["height"]), int(image.attrib["width"])
                yield AnnotatedImage(image.attrib["name"], *size, drawn)
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"{XML} does not have CVAT's structure: {error!r}", hint="export the task again"
            ) from error
        log_ignored(ignored)


class _Builder(ElementTree.TreeBuilder):
    """Builder of a tree without a document type: entities, which it could declare, expand without end."""

    def doctype(self, name: str, *_: Any) -> None:
        raise ValueError(f"it declares the document type {name!r}")


def parse_plain_xml(text: str) -> ElementTree.Element:
    """Root of an XML document that declares no entities.

    Raises:
        ConfigError: it does, or it is no XML.
    """
    parser = ElementTree.XMLParser(target=_Builder())  # noqa: S314  # without declarations nothing expands
    try:
        parser.feed(text)
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, ValueError) as error:
        raise ConfigError(f"{XML} cannot be read as XML: {error}", hint="export the task again") from error
    return root


def shape_of(element: ElementTree.Element) -> Shape:
    """Shape of an element; raises KeyError and ValueError for one that is not CVAT's."""
    named, kind = {"class": element.attrib["label"]}, element.tag
    if kind == "mask":
        box = [int(element.attrib[side]) for side in ("left", "top", "width", "height")]
        return named | {"box": box, "runs": [int(run) for run in element.attrib["rle"].split(",")]}
    if kind == "polygon":
        pairs = (pair.split(",") for pair in element.attrib["points"].split(";"))
        return named | {"polygons": [[float(value) for pair in pairs for value in pair]]}
    if kind == "box":
        left, top, right, bottom = (float(element.attrib[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        turn = float(element.get("rotation", "0"))
        middle = ((left + right) / 2, (top + bottom) / 2)
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return named | {"polygons": [turned(corners, middle, turn)]}
    return named | {"unread": kind}


def turned(corners: list[tuple[float, float]], pivot: tuple[float, float], degrees: float) -> list[float]:
    """Polygon x, y, ... of corners turned clockwise, as seen, about a point."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    moved = [(x - pivot[0], y - pivot[1]) for x, y in corners]
    places = [(pivot[0] + x * cosine - y * sine, pivot[1] + x * sine + y * cosine) for x, y in moved]
    return [value for place in places for value in place]


class CvatMasks(ToolExport):
    """Layout of "Segmentation mask 1.1"."""

    def annotated(self, root: Url) -> Iterator[AnnotatedImage]:
        """No images: each has a mask of its own."""
        raise NotImplementedError

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split; each example carries its mask and the label map."""
        self.check_split(split)
        files, label_map = find_images(root), fetch_listing(root, LABEL_MAP)
        colours_of(label_map)  # an error shows before the first mask is read
        examples = []
        for path in files_below(root, MASKS, ".png"):
            stem = path.removeprefix(f"{MASKS}/").removesuffix(".png")
            try:
                examples.append(self.placed(stem, files.find_stem(stem), (path, label_map)))
            except InputError as error:
                examples.append(self.placed(stem, "", (path, error.code, error.detail)))
        return [example for example in examples if example.key.startswith(f"{split}/")]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Read one PNG; colours of classes that the class map lacks are an error."""
        path, label_map = example.more
        names = self.class_map.names
        table = {_BLACK: self.nobody_s} | {
            colour: names.index(name) for colour, name in colours_of(label_map).items() if name in names
        }
        label_hw = from_colours(decode_colours(fetch(root, path), name=path), table, name=path)
        check_used(label_hw, self.class_map, name=path)
        return label_hw


def colours_of(label_map: str) -> dict[tuple[int, int, int], str]:
    """Names by colour from `labelmap.txt`.

    Raises:
        ConfigError: a line has no name and colour, or two names have one colour.
    """
    names: dict[tuple[int, int, int], str] = {}
    for line in label_map.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, colour, *_ = line.rsplit(":", 3)
            red, green, blue = (int(channel) for channel in colour.split(","))
        except ValueError as error:
            raise ConfigError(f"{LABEL_MAP} has the line {line!r}, not name:red,green,blue::") from error
        if (red, green, blue) in names:
            both = f"{names[red, green, blue]!r} and {name!r}"
            raise ConfigError(f"{LABEL_MAP} has one colour for {both}", hint="give the labels colours of their own")
        names[red, green, blue] = name
    return names
