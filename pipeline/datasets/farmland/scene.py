"""Scene of the generated farmland: an image and the class of every pixel, from a seed."""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.datasets.farmland.camera import take_photograph
from pipeline.datasets.farmland.canvas import LAND, FieldCanvas, Landscape, common_generator
from pipeline.datasets.farmland.farmsteads import paint_farmsteads
from pipeline.datasets.farmland.fields import divide_land, paint_fields
from pipeline.datasets.farmland.roads import paint_roads
from pipeline.datasets.farmland.trees import paint_trees
from pipeline.datasets.farmland.water import paint_water
from pipeline.records import UInt8


@dataclass(frozen=True, slots=True)
class Scene:
    """Generated image and its label."""

    image_hwc: UInt8
    """(H, W, 3) uint8 RGB."""
    label_hw: UInt8
    """(H, W) uint8 class ids 0 to 6; every pixel has a class."""
    nir_hw: UInt8
    """(H, W) uint8 near infrared."""

    @property
    def four_bands_hwc(self) -> UInt8:
        """(H, W, 4) uint8 red, green, blue, near infrared."""
        return np.dstack([self.image_hwc, self.nir_hw])


def generate_scene(seed: int, *, height: int = 256, width: int = 256, landscape: Landscape | None = None) -> Scene:
    """Generate one scene; the same seed and size give the same pixels on every machine.

    Args:
        seed: 0 or larger; neighbouring seeds give unrelated scenes.
        height: pixels, at least 1.
        width: pixels, at least 1; a larger image shows more land, not larger fields.
        landscape: what the scene has in common with its neighbours in a mosaic; None: it is alone.
    """
    canvas = _new_canvas(np.random.Generator(np.random.PCG64(seed)), height, width, landscape)
    parcels, borders = divide_land(canvas)
    paint_fields(canvas, parcels)
    paint_water(canvas)
    roads = paint_roads(canvas, borders)
    paint_farmsteads(canvas, roads)
    paint_trees(canvas, borders)
    image_hwc, nir_hw = take_photograph(canvas)
    return Scene(image_hwc, canvas.label_hw, nir_hw)


def _new_canvas(rng: np.random.Generator, height: int, width: int, landscape: Landscape | None) -> FieldCanvas:
    """Draw the properties of the whole scene: sun, scale, soil, and bending of lines."""
    common = common_generator(landscape, LAND) if landscape else rng
    sun, steepness = common.uniform(0, 2 * math.pi), common.uniform(0.45, 1.25)
    soils = np.array([(128, 101, 76), (104, 86, 68), (152, 130, 102), (134, 98, 74), (118, 105, 88)], np.float32)
    turn, length = rng.uniform(0, 2 * math.pi, 4), rng.uniform(130, 420, 4)
    vectors = np.stack([np.cos(turn), np.sin(turn)], 1) * (2 * math.pi / length[:, None])
    swing = rng.normal(0, 0.016, (4, 2)) * length[:, None]
    return FieldCanvas(
        rng=rng,
        height=height,
        width=width,
        scale=common.uniform(0.85, 1.3),
        shade_xy=np.array([math.cos(sun), math.sin(sun)]) * steepness,
        soil=common.choice(soils) * np.float32(common.uniform(0.9, 1.15)),
        waves=np.concatenate([vectors, rng.uniform(0, 2 * math.pi, (4, 1)), swing], 1),
        landscape=landscape,
    )
