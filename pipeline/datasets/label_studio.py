"""Label Studio's export "JSON": brushes, polygons and rectangles of a project.

    project-1-at-2026-05-03.json   the one JSON file of the root

Form: https://labelstud.io/guide/export, "Label Studio JSON format of annotated tasks". Of several annotations of a task
the ground truth counts, else the last one; cancelled ones and predictions do not. Regions have no order: pixels on
which regions of several classes lie are ignored. Results without an area, such as choices, are ignored and counted.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline.datasets.cvat import turned
from pipeline.datasets.exports import AnnotatedImage, Shape, ToolExport, log_ignored, only_json
from pipeline.datasets.layout import fetch_listing
from pipeline.errors import ConfigError
from pipeline.store.url import Url

Result = dict[str, Any]
"""Result of an annotation: type, value, original_width, original_height."""
_WITHOUT_AREA = {"choices", "datetime", "number", "pairwise", "rating", "relation", "taxonomy", "textarea"}


class LabelStudio(ToolExport):
    """Layout of the JSON of a project."""

    def annotated(self, root: Url) -> Iterator[AnnotatedImage]:
        """Images of all tasks."""
        path, ignored = only_json(root, ""), Counter[str]()
        try:
            for task in json.loads(fetch_listing(root, path)):
                yield annotated_image(task, ignored)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            hint = 'export the project as "JSON", not "JSON-MIN"'
            raise ConfigError(f"{path} does not have Label Studio's structure: {error!r}", hint=hint) from error
        log_ignored(ignored)


def annotated_image(task: dict[str, Any], ignored: Counter[str]) -> AnnotatedImage:
    """Image of one task; `ignored` counts results without an area, by type."""
    results = results_of(task)
    ignored.update(str(one["type"]) for one in results if one["type"] in _WITHOUT_AREA)
    areas = [one for one in results if one["type"] not in _WITHOUT_AREA]
    sizes = {(int(one["original_height"]), int(one["original_width"])) for one in areas}
    if len(sizes) > 1:
        raise ValueError(f"task {task.get('id')} has regions on images of several sizes: {sorted(sizes)}")
    height, width = sizes.pop() if sizes else (1, 1)
    return AnnotatedImage(image_name(task["data"]), height, width, [shape_of(one, height, width) for one in areas])


def results_of(task: dict[str, Any]) -> list[Result]:
    """Results of the annotation of a task that counts; empty without one."""
    valid = [one for one in task["annotations"] if not one.get("was_cancelled")]
    if not valid:
        return []
    results: list[Result] = max(valid, key=lambda one: (bool(one.get("ground_truth")), one["id"]))["result"]
    return results


def image_name(data: dict[str, Any]) -> str:
    """Path of the image of a task: of the field `image`, else of the one field with text that is a path or URL."""
    texts = [value for value in data.values() if isinstance(value, str) and "/" in value]
    url = urlsplit(str(data["image"] if "image" in data else texts[0]))
    local = parse_qs(url.query).get("d")
    return local[0] if local else unquote(url.path)


def shape_of(result: Result, height: int, width: int) -> Shape:
    """Shape of a result; of coordinates in percent of the image, as Label Studio has them, in pixels."""
    kind, value = str(result["type"]), result["value"]
    names = value.get(kind, [])
    if result.get("image_rotation"):
        return {"class": "", "unread": f"{kind} on an image turned by {result['image_rotation']} degrees"}
    if len(names) != 1:
        return {"class": names[0] if names else "", "unread": f"{kind} of {len(names)} classes"}
    named = {"class": names[0]}
    if kind == "brushlabels" and value.get("format") == "rle":
        return named | {"brush": value["rle"]}
    if kind == "polygonlabels":
        points = [(x * width / 100, y * height / 100) for x, y in value["points"]]
        return named | {"polygons": [[number for point in points for number in point]]}
    if kind == "rectanglelabels":
        left, right = value["x"] * width / 100, (value["x"] + value["width"]) * width / 100
        top, bottom = value["y"] * height / 100, (value["y"] + value["height"]) * height / 100
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return named | {"polygons": [turned(corners, (left, top), value.get("rotation", 0))]}
    return named | {"unread": kind}
