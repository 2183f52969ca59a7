"""Painting of masks and edge maps: class colours, grey stripes where there is no class, overlays on the image, greys.

In: (H, W) uint8 class ids, (H, W, 3) uint8 images, (H, W) float32 edge maps. Out: (H, W, 3) uint8 RGB. Nothing is read,
written or scaled.
"""

import numpy as np

from pipeline.classes import ClassMap
from pipeline.records import Bool, Float32, UInt8

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


def paint_edges(edges_hw: Float32) -> UInt8:
    """Draw an edge map in greys: (H, W), at least 0, to (H, W, 3) RGB; black is 0, white the strongest edge of the map.

    The strongest 1 % of the pixels are white, so that a few outliers do not darken the others.
    """
    strongest = float(np.quantile(edges_hw, 0.99)) or float(edges_hw.max()) or 1.0
    greys = np.rint(np.clip(edges_hw / strongest, 0, 1) * 255).astype(np.uint8)
    return np.repeat(greys[..., None], 3, axis=-1)


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
