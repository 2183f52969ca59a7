"""Hand-over of chosen images to a labelling tool: their files, and the masks of the run as labels to be corrected.

In: a run, keys in an order, and a folder. Out: files of `files.py`, and of each tool in a folder of its own. What a
tool exports becomes a labelled set by `atrous prepare`, whose layouts read it beside `images/` and `classes.yaml`.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import yaml

from pipeline import optional
from pipeline.classes import ClassMap
from pipeline.config import SegmentConfig
from pipeline.errors import ConfigError, JobError
from pipeline.export import coco
from pipeline.export.export import source_of_run
from pipeline.image.encode import read_mask_png
from pipeline.records import UInt8
from pipeline.run import folder, parts
from pipeline.select import cvat, files, label_studio
from pipeline.select.files import Picture
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

Tool = Literal["labelstudio", "cvat", "coco"]
CLASSES = "classes.yaml"
COCO = "coco/annotations.json"
_BEYOND_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def source_to_hand_over(run_url: Url, source: list[str] | None = None) -> SegmentConfig:
    """Config of the source of a run, whose images can be handed over; `source` replaces where it was.

    Raises:
        ConfigError: the run is one over rasters.
        StorageError: the run's config is missing or damaged.
    """
    cfg = source_of_run(run_url, source)
    if cfg.read.kind == "raster" or folder.is_of_rasters(run_url):
        hint = "select without --to, and cut the windows of selection.parquet out of their rasters"
        raise ConfigError(f"{run_url} is a run over rasters, whose windows are no files", hint=hint)
    return cfg


def hand_over(
    run_url: Url,
    keys: Sequence[str],
    output: Url,
    tools: Iterable[Tool],
    *,
    source: list[str] | None = None,
    images_at: str | None = None,
) -> dict[str, Any]:
    """Write images and pre-labels of some keys of a run; returns plain data for a summary.

    Files that are there are kept: the same call again writes what is missing, and tries again the images that could not
    be read.

    Args:
        run_url: the folder `run=...`.
        keys: keys of images with a mask, in the order in which a tool shall show them.
        output: folder of this hand-over: empty, or with the same keys; other files in it are left alone.
        tools: tools to write for.
        source: where the run's images are now; None where they were.
        images_at: start of the URLs by which Label Studio's tasks name the images; None: its own for local files.

    Raises:
        ConfigError: the run is one over rasters, the folder holds images of other keys, a class name cannot be written
            for a tool, or pycocotools is missing.
        JobError: a mask is damaged.
        StorageError: the run is damaged.
    """
    cfg = source_to_hand_over(run_url, source)
    classes = parts.read_classes(run_url, parts.list_parts(run_url)[0])
    tools = list(tools)
    if {"labelstudio", "cvat"} & set(tools):
        _refuse_names_beyond_xml(classes)
    pictures, left_out = files.read_pictures(output), dict[str, str]()
    _refuse_other_keys(output, pictures, keys)
    if len(pictures) < len(set(keys)):
        pictures, left_out = files.write_files(run_url, keys, cfg, output)
        objects.put(output / CLASSES, yaml.safe_dump(classes.model_dump(mode="json"), sort_keys=False).encode())
        _forget_annotations(output)
    for tool in tools:
        _write(tool, pictures, classes, output, images_at)
    _log(pictures, left_out, output)
    return {"handed_over": len(pictures), "not_handed_over": dict(sorted(Counter(left_out.values()).items()))}


def _refuse_other_keys(output: Url, pictures: Sequence[Picture], keys: Sequence[str]) -> None:
    other = next((picture.key for picture in pictures if picture.key not in set(keys)), None)
    if other is not None:
        raise ConfigError(f"{output} holds images of another selection: {other!r}", hint="give another --output")


def _refuse_names_beyond_xml(classes: ClassMap) -> None:
    """Refuse names with characters that XML cannot hold even escaped: https://www.w3.org/TR/xml/#charsets."""
    for name in (classes.name, *classes.names):
        if beyond := _BEYOND_XML.search(name):
            hint = "give --to coco, or rename the class"
            raise ConfigError(f"{name!r} holds {beyond[0]!r}, which the tool's XML cannot", hint=hint)


def _forget_annotations(output: Url) -> None:
    """Delete the pre-labels of fewer images."""
    for name in (label_studio.TASKS, cvat.ANNOTATIONS, COCO):
        if objects.exists(output / name):
            objects.delete(output / name)


def _write(tool: Tool, pictures: Sequence[Picture], classes: ClassMap, output: Url, images_at: str | None) -> None:
    """Write the files of one tool that are missing; that of the annotations is the last."""

    def read_mask(picture: Picture) -> UInt8:
        try:
            return read_mask_png(objects.read_bytes(output / files.MASKS / picture.mask))
        except OSError as error:
            raise JobError(
                f"the mask of {picture.key!r} is damaged", hint="delete the folder and select again"
            ) from error

    if tool == "labelstudio":
        objects.put(output / label_studio.CONFIG, label_studio.configuration(classes))
        begin = label_studio.images_at(output) if images_at is None else images_at
        _put(output / label_studio.TASKS, label_studio.tasks(pictures, classes, read_mask, begin))
    elif tool == "cvat":
        objects.put(output / cvat.LABELS, cvat.labels(classes))
        _put(output / cvat.ANNOTATIONS, cvat.annotations(pictures, classes, read_mask))
    else:
        _put(output / COCO, [coco_annotations(pictures, classes, read_mask)])


def _put(url: Url, chunks: Iterable[bytes]) -> None:
    if not objects.exists(url):
        objects.put_stream(url, chunks)


def coco_annotations(pictures: Sequence[Picture], classes: ClassMap, read_mask: Callable[[Picture], UInt8]) -> bytes:
    """`annotations.json` of `atrous export --to coco`, of pictures; `file_name` is the name in `images/`.

    Raises:
        ConfigError: pycocotools is missing.
    """
    with optional.package("pycocotools", extra="datasets", needed_by="--to coco"):
        from pycocotools import mask as coding  # noqa: PLC0415
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, picture in enumerate(pictures, start=1):
        size = {"height": picture.height, "width": picture.width}
        images.append({"id": number, "file_name": picture.file, "key": picture.key} | size)
        for annotation in coco.annotations_of(read_mask(picture), len(classes), coding):
            annotations.append({"id": len(annotations) + 1, "image_id": number} | annotation)
    head = {"info": {"description": "masks of Atrous, to be corrected"}, "licenses": []}
    every = head | {"categories": coco.categories(classes), "images": images, "annotations": annotations}
    return json.dumps(every, ensure_ascii=False).encode()


def _log(pictures: Sequence[Picture], left_out: dict[str, str], output: Url) -> None:
    log.info("%d image(s) with pre-labels in %s", len(pictures), output)
    for reason, count in sorted(Counter(left_out.values()).items()):
        first = next(key for key, why in left_out.items() if why == reason)
        log.error("%d image(s) not handed over: %s, first %r", count, reason, first)
    if tiffs := sum(picture.file.endswith(".tif") for picture in pictures):
        log.warning("%d image(s) are TIFFs, which browsers do not show: Label Studio needs them as PNG", tiffs)
