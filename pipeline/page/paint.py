"""Painting of masks: class colours, grey stripes for pixels without a class, and overlays on the image.

In: (H, W) uint8 class ids and (H, W, 3) uint8 images. Out: (H, W, 3) uint8 RGB. Nothing is read, written or scaled.
"""

import numpy as np

from pipeline.classes import ClassMap
from pipeline.records import Bool, UInt8

TINT = 0.5
"""Weight of the class colour in an overlay; outlines have weight 1."""
HATCH = ((206, 206, 206), (140, 140, 140))
"""Background and stripe colour of pixels without a class; plain grey could be a class colour."""


def paint(mask_hw: UInt8, classes: ClassMap) -> UInt8:
    """Draw a mask in class colours, grey stripes where there is no class: (H, W) ids to (H, W, 3) RGB."""
    rows, columns = np.ogrid[: mask_hw.shape[0], : mask_hw.shape[1]]
    stripes = np.array(HATCH, np.uint8)[((rows + columns) % 6 < 2).astype(np.intp)]
    colours = np.frombuffer(classes.png_palette(), np.uint8).reshape(256, 3)[mask_hw]
    painted: UInt8 = np.where((mask_hw < len(classes))[..., None], colours, stripes)
    return painted


def overlay(image_hwc: UInt8, mask_hw: UInt8, classes: ClassMap) -> UInt8:
    """Tint an image with `paint`ed class colours, and draw the outlines of regions in full colour.

    image_hwc: (H, W, 3) RGB; mask_hw: (H, W). Returns (H, W, 3): the rounded mean weighted by `TINT`, the colour
    alone on outlines.
    """
    weight = np.where(_outline(mask_hw), 1.0, TINT)[..., None]
    tinted: UInt8 = np.rint(image_hwc * (1 - weight) + paint(mask_hw, classes) * weight).astype(np.uint8)
    return tinted


def _outline(mask_hw: UInt8) -> Bool:
    """Pixels whose right or lower neighbour has another id: (H, W)."""
    edge = np.zeros(mask_hw.shape, np.bool_)
    edge[:, :-1] |= mask_hw[:, :-1] != mask_hw[:, 1:]
    edge[:-1] |= mask_hw[:-1] != mask_hw[1:]
    return edge
