"""Pixels of a work item: decoded to the bands that the network takes, cut for the refiner, and as RGB for people.

In: an item with its encoded bytes. Out: `Image`s. The stages decode an item where they need its pixels, by this rule.
"""

from dataclasses import replace

import numpy as np

from pipeline.config import SegmentConfig
from pipeline.geotiff.window import decode_window
from pipeline.image.channels import decode_channels, visible_rgb
from pipeline.records import Image, Item, Window
from pipeline.refine.engine import guide_bands
from pipeline.refine.window import inside
from pipeline.source.raster import NetworkBands


def decode_item(item: Item, cfg: SegmentConfig, bands: NetworkBands) -> Image:
    """Decode the image of an item, or the window of a raster with its halo.

    Raises:
        InputError: as `decode_channels`; a window was decoded where it was read.
    """
    if item.outer is not None:
        return decode_window(item.data)
    return decode_channels(item.data, bands.channels, cfg.decode, scale=bands.scale, numbers=cfg.raster.numbers)


def core_of(item: Item) -> Window | None:
    """Core of a window, in pixels of its decoded image; None for a whole image."""
    if item.window is None or item.outer is None:
        return None
    return replace(item.window, y=item.window.y - item.outer.y, x=item.window.x - item.outer.x)


def without_halo(item: Item, image: Image) -> Image:
    """The core of a window; a whole image as it is."""
    core = core_of(item)
    if core is None:
        return image
    here = inside(Window(0, 0, image.height, image.width), core)
    valid = None if image.valid_hw is None else image.valid_hw[here]
    return replace(image, pixels_hwc=image.pixels_hwc[here], valid_hw=valid)


def guide_of(image: Image, cfg: SegmentConfig, bands: NetworkBands) -> Image:
    """The bands that guide the refinement, (H, W, 1 to 3)."""
    chosen = guide_bands(cfg.refine, bands.channels)
    if chosen == list(range(image.pixels_hwc.shape[2])):
        return image
    return replace(image, pixels_hwc=np.ascontiguousarray(image.pixels_hwc[..., chosen]))


def visible(image: Image, bands: NetworkBands) -> Image:
    """RGB for people, of the bands that are nearest to it."""
    return replace(image, pixels_hwc=visible_rgb(image.pixels_hwc, bands.channels))
