"""Near infrared of the generated farmland: reflectance by what covers the ground, as a camera of four bands sees it.

Leaves reflect about half of the near infrared whatever their green is, wet plants more than dry ones; soil reflects
somewhat more of it than of red; water almost nothing. Values follow the spectra of vegetation, soil and water in
C. Tucker, "Red and photographic infrared linear combinations for monitoring vegetation", 1979, figs. 1 and 2, by eye.
"""

import numpy as np

from pipeline.datasets.farmland.canvas import BUILDING, CROP, MEADOW, ROAD, TREE, WATER, FieldCanvas
from pipeline.records import Float32

_LEAVES = {CROP: 190.0, MEADOW: 165.0, TREE: 215.0}
"""Level of closed, fresh leaves."""
_DRY = {CROP: 0.45, MEADOW: 0.5, TREE: 0.7}
"""Share of the leaves' reflectance that remains where they have lost their green."""


def infrared(canvas: FieldCanvas) -> Float32:
    """Near infrared before the camera, (H, W), levels 0 to 255 and above."""
    red, green, blue = np.moveaxis(canvas.colour_hwc, -1, 0)
    light = (red + green + blue) / 3
    excess = np.clip((2 * green - red - blue) / np.maximum(light, 1) / 0.45, 0, 1)
    level = light * np.float32(1.15) + 18  # soil, and whatever is not named below
    for label, full in _LEAVES.items():
        fresh = _DRY[label] + (1 - _DRY[label]) * excess
        level = np.where(canvas.label_hw == label, full * fresh * (0.7 + 0.3 * light / 110), level)
    level = np.where(canvas.label_hw == WATER, 10 + 0.08 * light, level)
    level = np.where(canvas.label_hw == ROAD, 30 + 0.62 * light, level)
    level = np.where(canvas.label_hw == BUILDING, 22 + 0.72 * light, level)
    return np.asarray(level, np.float32)
