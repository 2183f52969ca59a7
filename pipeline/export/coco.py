"""Export to COCO: one JSON of the form of COCO-Stuff, a run-length mask for each class of each image.

    annotations.json        what tools read
    _pieces/part-*.json     images and annotations of one part each, without ids

Encoding takes the time, so it is done part by part and continued after a crash. The last step numbers images and
annotations in the order of parts and keys, and joins the pieces. COCO is one JSON file, which every reader holds in
memory several times over: an export above `LARGEST` is refused, and that is the memory bound of the join.
Form: https://cocodataset.org/#format-data, "Object Detection" and "Stuff Segmentation".
"""

import io
import json
from collections.abc import Callable, Iterator
from itertools import count
from types import ModuleType
from typing import Any

import numpy as np

from pipeline import optional
from pipeline.classes import ClassMap
from pipeline.errors import JobError
from pipeline.export.output import Outcome, delete_all, names_in
from pipeline.export.survey import Survey, masked_rows
from pipeline.image.encode import read_mask_png
from pipeline.records import UInt8
from pipeline.store import objects
from pipeline.store.url import Url

ANNOTATIONS = "annotations.json"
PIECES = "_pieces"
FIRST_CATEGORY = 1
"""Category id of class 0: many readers take category 0 for the background."""
LARGEST = 2 * 2**30
"""Bytes of `annotations.json` at most."""


def write_coco(run: Survey, output: Url, *, resumed: bool) -> Iterator[Outcome]:
    """Write a piece for each part, then `annotations.json`; pieces of parts that the run no longer has are deleted.

    Raises:
        ConfigError: pycocotools is missing.
        JobError: the pieces are larger than `LARGEST`; a mask is damaged.
    """
    with optional.package("pycocotools", extra="datasets", needed_by="--to coco"):
        from pycocotools import mask as coding  # noqa: PLC0415
    targets = {name: run.file_of_part(name, ".json") for name in run.parts}
    there = names_in(output / PIECES) if resumed else set()
    size = 0
    for name, target in targets.items():
        url = output / PIECES / target
        if target in there:
            size += objects.info(url).size
        else:
            data = encode_piece(run, name, coding)
            objects.put(url, data)
            size += len(data)
        if size > LARGEST:
            hint = "export to png or hf, or read the parts"
            raise JobError(f"COCO is one file, and this one is above the limit of {LARGEST / 2**30:g} GiB", hint=hint)
        yield Outcome("there" if target in there else "written", rows=run.masks[name])
    delete_all(output / PIECES / name for name in there.difference(targets.values()))
    objects.put(output / ANNOTATIONS, join(run, lambda name: objects.read_bytes(output / PIECES / targets[name])))


def encode_piece(run: Survey, name: str, coding: ModuleType) -> bytes:
    """JSON of the images and annotations of one part; an annotation names its image by position."""
    images, annotations = [], []
    rows = masked_rows(run, name, [])
    for number, (key, png) in enumerate(zip(rows["key"].to_pylist(), rows["mask"], strict=True)):
        try:
            mask_hw = read_mask_png(png.as_py())
        except OSError as error:
            raise JobError(
                f"{name}: the mask of {key!r} is damaged", hint=f"atrous inspect {run.url} --verify"
            ) from error
        images.append({"file_name": key, "height": mask_hw.shape[0], "width": mask_hw.shape[1]})
        annotations += [{"image_id": number} | one for one in annotations_of(mask_hw, len(run.classes), coding)]
    return json.dumps({"images": images, "annotations": annotations}, ensure_ascii=False).encode()


def annotations_of(mask_hw: UInt8, classes: int, coding: ModuleType) -> Iterator[dict[str, Any]]:
    """Annotation of each class of a mask, without the ids of image and annotation; `coding` is `pycocotools.mask`."""
    for class_id in sorted(set(np.unique(mask_hw).tolist()) & set(range(classes))):
        segmentation = coding.encode(np.asfortranarray(mask_hw == class_id, dtype=np.uint8))
        yield {
            "category_id": FIRST_CATEGORY + class_id,
            "segmentation": {"size": segmentation["size"], "counts": segmentation["counts"].decode()},
            "area": int(coding.area(segmentation)),
            "bbox": coding.toBbox(segmentation).tolist(),
            "iscrowd": 0,
        }


def join(run: Survey, read_piece: Callable[[str], bytes]) -> bytes:
    """`annotations.json` of all pieces, in the order of the parts; ids count from 1."""
    out, image_ids, annotation_ids, first = io.BytesIO(), count(1), count(1), 1
    head = {"info": {"description": f"masks of {run.url.name}", "failed": run.failed}, "licenses": []}
    out.write(json.dumps(head | {"categories": categories(run.classes)}, ensure_ascii=False)[:-1].encode())
    out.write(b',\n"images": [')
    images = (image for name in run.parts for image in json.loads(read_piece(name))["images"])
    _write_list(out, ({"id": next(image_ids)} | image for image in images))
    out.write(b'],\n"annotations": [')

    def annotations() -> Iterator[dict[str, Any]]:
        nonlocal first
        for name in run.parts:
            piece = json.loads(read_piece(name))
            for one in piece["annotations"]:
                yield {"id": next(annotation_ids)} | one | {"image_id": first + one["image_id"]}
            first += len(piece["images"])

    _write_list(out, annotations())
    out.write(b"]}\n")
    return out.getvalue()


def _write_list(out: io.BytesIO, entries: Iterator[dict[str, Any]]) -> None:
    for number, entry in enumerate(entries):
        out.write((",\n" if number else "\n").encode() + json.dumps(entry, ensure_ascii=False).encode())


def categories(classes: ClassMap) -> list[dict[str, Any]]:
    """Categories of a class map, with the colours of its palette."""
    return [
        {
            "id": FIRST_CATEGORY + index,
            "name": one.name,
            "supercategory": classes.name,
            "isthing": 0,
            "color": one.colour,
        }
        for index, one in enumerate(classes.classes)
    ]
