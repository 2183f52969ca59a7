"""Camera of the generated farmland: shadows, light, haze, colour cast, blur and noise."""

import math

import numpy as np
from PIL import Image as PILImage
from PIL import ImageFilter

from pipeline.datasets.farmland.canvas import BUILDING, CAMERA, TREE, FieldCanvas, blur_sheet
from pipeline.datasets.farmland.infrared import infrared
from pipeline.records import Float32, UInt8

INFRARED_SEED = 4
"""Stream of the infrared grain: random numbers of its own, so that the colours of a seed stay as they were."""


def take_photograph(canvas: FieldCanvas) -> tuple[UInt8, UInt8]:
    """Photograph the scene: shadows, light, haze, a colour cast, blur and sensor noise.

    Returns (H, W, 3) uint8 RGB, and (H, W) uint8 near infrared in the same light. Scenes of a landscape were taken on
    one flight in even light.
    """
    alone, rng = canvas.landscape is None, canvas.common(CAMERA)
    ground = (canvas.label_hw != TREE) & (canvas.label_hw != BUILDING)
    soft = blur_sheet(canvas.shadow, 0.9) * ground
    dim = np.array([0.60, 0.56, 0.48], np.float32) * np.float32(rng.uniform(0.8, 1.1))
    light = np.ones(canvas.label_hw.shape, np.float32)
    if alone:
        light = 1 + 0.05 * canvas.noise(150) + _slope(canvas) * np.float32(rng.uniform(0, 0.12))
    colour = canvas.colour_hwc * (1 - soft[..., None] * dim)
    colour *= light[..., None]
    haze = np.float32(rng.uniform(0, 0.2))
    cast = rng.normal(1, 0.025, 3).astype(np.float32) * np.float32(rng.uniform(0.88, 1.16))
    colour *= 1 - haze
    colour += np.array([176, 186, 198], np.float32) * haze
    colour *= cast
    blur_px = rng.uniform(0.45, 0.85)
    blurred = _blur(colour, blur_px)
    grain = canvas.rng.standard_normal((canvas.height, canvas.width, 3), np.float32)
    image_hwc = _with_grain(blurred, grain, np.float32(rng.uniform(1, 4.5)))
    near = infrared(canvas) * (1 - soft * np.float32(0.42)) * light * (1 - haze / 3) * cast.mean()
    own = np.random.Generator(np.random.PCG64([INFRARED_SEED, int(image_hwc.sum(dtype=np.int64))]))
    noise = own.standard_normal(near.shape, np.float32)
    return image_hwc, _with_grain(_blur(near, blur_px), noise, np.float32((own if alone else rng).uniform(1.5, 4)))


def _blur(colour: Float32, radius_px: float) -> Float32:
    """Blur of the lens: (H, W) or (H, W, 3), levels."""
    sharp = PILImage.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
    return np.asarray(sharp.filter(ImageFilter.GaussianBlur(radius_px)), np.float32)


def _with_grain(levels: Float32, grain: Float32, strength: np.float32) -> UInt8:
    """Add the grain of the sensor, whose values are overwritten, and round to levels of 8 bits."""
    grain *= strength
    grain += levels
    return np.clip(np.rint(grain, out=grain), 0, 255, out=grain).astype(np.uint8)


def _slope(canvas: FieldCanvas) -> Float32:
    """Gradient across the image in a random direction, (H, W), from about -1 to 1."""
    turn = canvas.rng.uniform(0, 2 * math.pi)
    y, x = np.ogrid[0 : canvas.height, 0 : canvas.width]
    down = (y / canvas.height - 0.5) * math.sin(turn) + (x / canvas.width - 0.5) * math.cos(turn)
    return (2 * down).astype(np.float32)
