"""COCO files of labelling tools: categories by name, polygons and run lengths, of any classes.

    annotations.json, result.json, ...     the one JSON file of the root; or
    annotations/instances_default.json     the one of this folder, as CVAT exports it

The data set COCO itself is `coco`: its categories and splits are fixed. Here a category is the class of its name.
`iscrowd` says how a tool stores a mask and does not matter: a crowd's pixels are of its class. Pixels on which objects
of several classes lie are ignored.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from pipeline.datasets.exports import AnnotatedImage, Shape, ToolExport, only_json
from pipeline.datasets.layout import fetch_listing
from pipeline.errors import ConfigError
from pipeline.store.url import Url


class CocoFile(ToolExport):
    """Layout of a COCO file."""

    def annotated(self, root: Url) -> Iterator[AnnotatedImage]:
        """Images of the file."""
        path = only_json(root, "", "annotations")
        try:
            yield from annotated_images(json.loads(fetch_listing(root, path)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            hint = "export the images as COCO with segmentations"
            raise ConfigError(f"{path} does not have COCO's structure: {error!r}", hint=hint) from error


def annotated_images(content: dict[str, Any]) -> Iterator[AnnotatedImage]:
    """Images of a parsed file.

    Raises:
        KeyError, TypeError, ValueError: it does not have COCO's structure, or an annotation is of no image in it.
    """
    names = {category["id"]: category["name"] for category in content["categories"]}
    shapes: defaultdict[object, list[Shape]] = defaultdict(list)
    for annotation in content["annotations"]:
        shapes[annotation["image_id"]].append(shape_of(annotation, names[annotation["category_id"]]))
    if strangers := shapes.keys() - {image["id"] for image in content["images"]}:
        raise ValueError(
            f"annotations of {len(strangers)} images that it does not list, first {min(map(str, strangers))}"
        )
    for image in content["images"]:
        yield AnnotatedImage(image["file_name"], int(image["height"]), int(image["width"]), shapes[image["id"]])


def shape_of(annotation: dict[str, Any], name: str) -> Shape:
    """Shape of an annotation: polygons, or run lengths as numbers or text."""
    outline = annotation["segmentation"]
    if isinstance(outline, dict):
        return {"class": name, "counts": outline["counts"]}
    return {"class": name, "polygons": outline}
