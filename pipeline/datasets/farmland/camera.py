"""Camera of the generated farmland: shadows, light, haze, colour cast, blur and noise."""

import math

import numpy as np
from PIL import Image as PILImage
from PIL import ImageFilter

from pipeline.datasets.farmland.canvas import BUILDING, TREE, FieldCanvas, blur_sheet
from pipeline.records import Float32, UInt8


def take_photograph(canvas: FieldCanvas) -> UInt8:
    """Photograph the scene, (H, W, 3) uint8: shadows, light, haze, a colour cast, blur and sensor noise."""
    rng = canvas.rng
    ground = (canvas.label_hw != TREE) & (canvas.label_hw != BUILDING)
    soft = blur_sheet(canvas.shadow, 0.9) * ground
    dim = np.array([0.60, 0.56, 0.48], np.float32) * np.float32(rng.uniform(0.8, 1.1))
    light = 1 + 0.05 * canvas.noise(150) + _slope(canvas) * np.float32(rng.uniform(0, 0.12))
    colour = canvas.colour_hwc * (1 - soft[..., None] * dim) * light[..., None]
    haze = np.float32(rng.uniform(0, 0.2))
    cast = rng.normal(1, 0.025, 3).astype(np.float32) * np.float32(rng.uniform(0.88, 1.16))
    colour = (colour * (1 - haze) + np.array([176, 186, 198], np.float32) * haze) * cast
    blurred = PILImage.fromarray(np.clip(colour, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(0.45, 0.85))
    )
    grain = rng.standard_normal((canvas.height, canvas.width, 3), np.float32) * np.float32(rng.uniform(1, 4.5))
    return np.clip(np.rint(np.asarray(blurred, np.float32) + grain), 0, 255).astype(np.uint8)


def _slope(canvas: FieldCanvas) -> Float32:
    """Gradient across the image in a random direction, (H, W), from about -1 to 1."""
    turn = canvas.rng.uniform(0, 2 * math.pi)
    y, x = np.ogrid[0 : canvas.height, 0 : canvas.width]
    down = (y / canvas.height - 0.5) * math.sin(turn) + (x / canvas.width - 0.5) * math.cos(turn)
    return (2 * down).astype(np.float32)
