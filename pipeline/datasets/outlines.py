"""Outlines of objects and regions, drawn as masks: polygons as COCO's own tools draw them."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from pipeline import optional
from pipeline.errors import LabelError
from pipeline.records import Bool


def load_pycocotools() -> ModuleType:
    """The module `pycocotools.mask`; raises ConfigError when it is missing."""
    with optional.package("pycocotools", extra="datasets", needed_by="drawing polygons"):
        from pycocotools import mask  # noqa: PLC0415
    return mask


def polygon_mask(polygons: Sequence[Sequence[float]], height: int, width: int, name: str) -> Bool:
    """(height, width) mask of the polygons of one object, each x, y, x, y, ... in pixels.

    Raises:
        LabelError: a polygon is none, or leads far out of the image `name`.
        ConfigError: pycocotools is missing.
    """
    _check_polygons(polygons, height, width, name)
    coding = load_pycocotools()
    mask: Bool = coding.decode(coding.merge(coding.frPyObjects(polygons, height, width))).astype(bool)
    return mask


def _check_polygons(polygons: Sequence[Sequence[float]], height: int, width: int, name: str) -> None:
    """Check polygons, which pycocotools does not: it reads four numbers as a box, and walks every pixel of a line."""
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise LabelError(f"a polygon on {name} has {len(polygon)} numbers; it takes an even number, six or more")
        if not np.all(np.abs(polygon) <= 2 * max(height, width)):
            raise LabelError(f"a polygon on {name} leads to {max(polygon, key=abs)}, its image is {height}x{width}")
    if not polygons:
        raise LabelError(f"an object on {name} has no polygon")
