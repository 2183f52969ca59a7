"""Canvas of the generated farmland: colours, class ids and shadows that the layers paint over each other."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL import ImageFilter

from pipeline.datasets.farmland.geometry import Points, pillow_points, points_along
from pipeline.records import Bool, Float32, UInt8

SOIL, CROP, MEADOW, WATER, ROAD, TREE, BUILDING = range(7)
"""Class ids, in the order of `pipeline/palettes/farmland.yaml`."""
LAND, CAMERA = 7, 8
"""Other subjects that scenes of a landscape have in common, see `FieldCanvas.common`."""

GRASSES = np.array([(104, 132, 62), (122, 136, 72), (86, 118, 54), (138, 138, 80), (74, 108, 56)], np.float32)
"""Colours of grass, RGB."""


@dataclass(frozen=True, slots=True)
class Border:
    """Straight border along which a piece of land was divided."""

    line: Points
    """(2, 2) both ends, pixels."""
    area_px2: float
    """Area of the piece before the division, square pixels: roads divide large pieces."""


@dataclass(frozen=True, slots=True)
class River:
    """Course of a river."""

    path: Points
    """(N, 2) centre line, pixels, dense."""
    radius: npt.NDArray[np.float64]
    """(N,) half of the breadth, units of length."""


@dataclass(frozen=True, slots=True)
class Landscape:
    """Surroundings of a scene that is part of a larger landscape, which its neighbours have in common with it."""

    flight: int
    """Seed of light, scale, soil and materials."""
    roads: tuple[Points, ...]
    """(N, 2) centre lines of asphalt roads, whole pixels of the scene."""
    rivers: tuple[River, ...]
    """Rivers in pixels of the scene, in place of the scene's own."""


@dataclass(slots=True)
class FieldCanvas:
    """Colours, labels and shadows of a scene, and the random generator and properties that all layers share."""

    rng: np.random.Generator
    height: int
    width: int
    scale: float
    """Pixels per unit of length, as if flying heights differed."""
    shade_xy: Points
    """(2,) direction and length of shadows, pixels per pixel of height."""
    soil: Float32
    """(3,) colour of the local soil, which fields, dirt tracks and ruts vary."""
    waves: Points
    """(4, 5) plane waves that bend straight lines: wave vector x, y; phase; amplitude x, y."""
    landscape: Landscape | None = None
    """None: the scene is alone."""
    colour_hwc: Float32 = field(init=False)
    """(H, W, 3) RGB, 0 to 255."""
    label_hw: UInt8 = field(init=False)
    """(H, W) class ids."""
    shadow: PILImage.Image = field(init=False)
    """Grey sheet, 255 in full shadow."""

    def __post_init__(self) -> None:
        self.colour_hwc = np.zeros((self.height, self.width, 3), np.float32)
        self.label_hw = np.zeros((self.height, self.width), np.uint8)
        self.shadow = self.sheet("L")

    @property
    def size_xy(self) -> Points:
        """(2,) width and height, pixels."""
        return np.array([self.width, self.height], np.float64)

    def common(self, subject: int) -> np.random.Generator:
        """Generator of what all scenes of a landscape have in common; the scene's own where it is alone."""
        return self.rng if self.landscape is None else common_generator(self.landscape, subject)

    @property
    def share(self) -> float:
        """Area in units of 256x256 pixels, to which numbers of objects are proportional."""
        return self.height * self.width / 256**2

    def sheet(self, mode: str) -> PILImage.Image:
        """Make a blank drawing of the scene's size."""
        return PILImage.new(mode, (self.width, self.height))

    def paint(self, where_hw: Bool, colour: npt.ArrayLike, label: int) -> None:
        """Set the colour and class of pixels."""
        self.colour_hwc[where_hw] = colour
        self.label_hw[where_hw] = label

    def noise(self, period_px: float) -> Float32:
        """Draw smooth noise, (H, W), with mean 0 and standard deviation near 1, in blobs about `period_px` wide."""
        wide, high = self.width / period_px, self.height / period_px
        grid = self.rng.standard_normal((math.ceil(high) + 3, math.ceil(wide) + 3), np.float32)
        box = (1.0, 1.0, 1.0 + wide, 1.0 + high)
        smooth = PILImage.fromarray(grid).resize((self.width, self.height), PILImage.Resampling.BICUBIC, box=box)
        return np.asarray(smooth, np.float32) * np.float32(1.3)

    def bend(self, line: Points, *, closed: bool = False) -> list[tuple[float, float]]:
        """Bend a polygon or polyline by `waves`, with denser points, for Pillow."""
        ends = np.concatenate([line, line[:1]]) if closed else line
        pieces = [points_along(a, b, 9.0) for a, b in pairwise(ends)]
        points = np.concatenate([*pieces, ends[-1:]])
        phase = points @ self.waves[:, :2].T + self.waves[:, 2]
        return pillow_points(points + np.sin(phase) @ self.waves[:, 3:])


def common_generator(landscape: Landscape, subject: int) -> np.random.Generator:
    """Generator of one subject, such as `WATER`: it begins anew for every scene of a landscape."""
    return np.random.Generator(np.random.PCG64([landscape.flight, subject]))


def smooth_wave(turns: Float32) -> Float32:
    """Evaluate a sine-like wave of period 1 between -1 and 1, from products alone: 1 at 0, -1 at a half."""
    part = np.abs(turns - np.rint(turns)) * 4 - 1
    wave: Float32 = part * (np.abs(part) - 2)
    return wave


def blur_sheet(sheet: PILImage.Image, radius_px: float) -> Float32:
    """Blur a grey sheet: (H, W), 0 to 1."""
    return np.asarray(sheet.filter(ImageFilter.GaussianBlur(radius_px)), np.float32) / np.float32(255)
