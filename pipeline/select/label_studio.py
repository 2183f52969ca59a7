"""Label Studio: a labelling configuration, and tasks with the masks as predictions of brushes.

    label_studio/config.xml    "Labeling Interface", "Code" of a project
    label_studio/tasks.json    import of a project; each class of a mask is one region

Forms: https://labelstud.io/guide/predictions, "Import brush segmentation pre-annotations in RLE format".
"""

import json
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from pipeline.classes import ClassMap
from pipeline.image.run_lengths import encode_brush
from pipeline.records import UInt8
from pipeline.select.files import IMAGES, Picture
from pipeline.store.url import Url

CONFIG, TASKS = "label_studio/config.xml", "label_studio/tasks.json"
LOCAL_FILES = f"/data/local-files/?d={IMAGES}/"
"""Start of an image's URL where Label Studio serves the folder itself (`LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`)."""
_CLASSES, _IMAGE = "classes", "image"
"""Names of the tags of the configuration, to which results refer."""


def images_at(output: Url) -> str:
    """Start of the URL of an image of a folder: Label Studio's own of local files, or the store's."""
    return LOCAL_FILES if output.scheme in ("file", "memory") else f"{output.raw}/{IMAGES}/"


def configuration(classes: ClassMap) -> bytes:
    """`config.xml`: an image, and a brush for each class in its colour."""
    labels = (
        f"    <Label value={quoteattr(one.name)} background={quoteattr(hexadecimal(one.colour))}/>"
        for one in classes.classes
    )
    lines = [
        "<View>",
        f'  <Image name="{_IMAGE}" value="$image" zoom="true"/>',
        f'  <BrushLabels name="{_CLASSES}" toName="{_IMAGE}">',
        *labels,
        "  </BrushLabels>",
        "</View>",
    ]
    return "\n".join([*lines, ""]).encode()


def hexadecimal(colour: tuple[int, int, int]) -> str:
    """Colour as `#rrggbb`."""
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def tasks(
    pictures: Sequence[Picture], classes: ClassMap, read_mask: Callable[[Picture], UInt8], begin: str
) -> Iterator[bytes]:
    """`tasks.json` in pieces, a task for each picture, in their order; `begin` is that of the URL of its image."""
    for number, picture in enumerate(pictures):
        prediction = {
            "model_version": picture.model or "",
            "score": picture.confidence,
            "result": regions(read_mask(picture), classes),
        }
        data = {"image": begin + quote(picture.file), "key": picture.key}
        task = {"data": data, "predictions": [prediction]}
        yield (",\n" if number else "[\n").encode() + json.dumps(task, ensure_ascii=False).encode()
    yield b"\n]\n" if pictures else b"[]\n"


def regions(mask_hw: UInt8, classes: ClassMap) -> list[dict[str, object]]:
    """Results of a prediction: a region for each class of a mask; pixels without a class are in none."""
    height, width = mask_hw.shape
    return [
        {
            "id": f"class_{class_id}",
            "type": "brushlabels",
            "from_name": _CLASSES,
            "to_name": _IMAGE,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": list(encode_brush(mask_hw == class_id)),
                "brushlabels": [classes.names[class_id]],
            },
        }
        for class_id in np.unique(mask_hw).tolist()
        if class_id < len(classes)
    ]
