"""CVAT: the labels of a task, and the masks as annotations in its own XML, "CVAT 1.1".

    cvat/labels.json        "Raw" of a task's labels, or `cvat-cli task create --labels`
    cvat/annotations.xml    "Upload annotations", or `cvat-cli task create --annotation_path`

Form: https://docs.cvat.ai/docs/other/xml_format, version 1.1 for images: runs of each mask row by row in its box.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from pipeline.classes import ClassMap
from pipeline.image.run_lengths import encode_box
from pipeline.records import UInt8
from pipeline.select.files import Picture
from pipeline.select.label_studio import hexadecimal

LABELS, ANNOTATIONS = "cvat/labels.json", "cvat/annotations.xml"


def labels(classes: ClassMap) -> bytes:
    """`labels.json`: the classes with their colours, for shapes of any kind."""
    every = [
        {"name": one.name, "color": hexadecimal(one.colour), "type": "any", "attributes": []} for one in classes.classes
    ]
    return (json.dumps(every, indent=1, ensure_ascii=False) + "\n").encode()


def annotations(
    pictures: Sequence[Picture], classes: ClassMap, read_mask: Callable[[Picture], UInt8]
) -> Iterator[bytes]:
    """`annotations.xml` in pieces; frames are numbered as CVAT sorts the files of a task, by name."""
    yield _head(len(pictures), classes).encode()
    for number, picture in enumerate(sorted(pictures, key=lambda picture: picture.file)):
        size = f'width="{picture.width}" height="{picture.height}"'
        lines = [f'  <image id="{number}" name={quoteattr(picture.file)} {size}>']
        lines += masks(read_mask(picture), classes)
        yield "\n".join([*lines, "  </image>", ""]).encode()
    yield b"</annotations>\n"


def masks(mask_hw: UInt8, classes: ClassMap) -> Iterator[str]:
    """A `mask` element for each class of a mask; pixels without a class are in none."""
    for class_id in np.unique(mask_hw).tolist():
        if class_id < len(classes):
            box = encode_box(mask_hw == class_id)
            place = f'left="{box.left}" top="{box.top}" width="{box.width}" height="{box.height}"'
            name, runs = quoteattr(classes.names[class_id]), ", ".join(map(str, box.lengths))
            yield f'    <mask label={name} source="auto" occluded="0" rle="{runs}" {place} z_order="0"></mask>'


def _head(size: int, classes: ClassMap) -> str:
    named = "".join(
        f"<label><name>{escape(one.name)}</name><color>{hexadecimal(one.colour)}</color></label>"
        for one in classes.classes
    )
    task = f"<name>{escape(classes.name)}</name><size>{size}</size><mode>annotation</mode><labels>{named}</labels>"
    meta = f"  <meta><task>{task}</task></meta>"
    return "\n".join(['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>", meta, ""])
