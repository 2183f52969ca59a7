"""Water of the generated farmland: rivers and ponds with their banks."""

import math

import numpy as np
from PIL import ImageDraw

from pipeline.datasets.farmland.canvas import MEADOW, WATER, FieldCanvas, River, blur_sheet
from pipeline.datasets.farmland.geometry import (
    Points,
    disc_box,
    perpendicular,
    pillow_points,
    points_along,
    random_rotation,
)
from pipeline.records import Bool, Float32


def paint_water(canvas: FieldCanvas) -> None:
    """Paint rivers and ponds with their banks; some scenes have none."""
    rng, sheet = canvas.rng, canvas.sheet("L")
    draw = ImageDraw.Draw(sheet)
    if canvas.landscape:
        rivers = canvas.landscape.rivers
    else:
        rivers = tuple(new_river(rng, canvas.size_xy) for _ in range(rng.poisson(0.45 * math.sqrt(canvas.share))))
    for river in rivers:
        _draw_river(canvas, draw, river)
    for _ in range(rng.poisson(0.5 * canvas.share)):
        _draw_pond(canvas, draw)
    shape = np.asarray(sheet)
    if not shape.any():
        return
    _paint_banks(canvas, blur_sheet(sheet, 3.0 * canvas.scale))
    _paint_surface(canvas, shape > 0, blur_sheet(sheet, 7.0 * canvas.scale))


def new_river(rng: np.random.Generator, size: Points, periods: tuple[float, ...] = (310.0, 173.0, 71.0)) -> River:
    """Draw the course of a river across land of some size, (2,), that meanders with several periods, pixels."""
    turn, reach = rng.uniform(0, 2 * math.pi), float(np.hypot(*size)) + 60
    along = np.array([math.cos(turn), math.sin(turn)])
    middle = size * rng.uniform(0.15, 0.85, 2)
    path = points_along(middle - along * reach, middle + along * reach, 2.5)
    t = np.arange(len(path)) * 2.5
    swing = sum(rng.uniform(4, 0.11 * p) * np.sin(2 * math.pi * (t / p + rng.random())) for p in periods)
    path = path + perpendicular(along) * swing[:, None]
    return River(path, rng.uniform(6, 15) * (1 + 0.25 * np.sin(t / 37.0 + rng.uniform(0, 6))))


def _draw_river(canvas: FieldCanvas, draw: ImageDraw.ImageDraw, river: River) -> None:
    """Draw a river as discs along its course."""
    near = ((river.path > -30) & (river.path < canvas.size_xy + 30)).all(1)
    for point, radius in zip(river.path[near], river.radius[near] * canvas.scale, strict=True):
        draw.ellipse(disc_box(point, float(radius)), fill=255)


def _draw_pond(canvas: FieldCanvas, draw: ImageDraw.ImageDraw) -> None:
    """Draw a pond: a stretched disc with two, three and five lobes."""
    rng = canvas.rng
    angle = np.arange(40) * (2 * math.pi / 40)
    radius = rng.uniform(13, 30) * canvas.scale * np.ones(40)
    for lobes in (2, 3, 5):
        radius *= 1 + rng.uniform(0, 0.5 / lobes) * np.sin(lobes * angle + rng.uniform(0, 6.3))
    rim = np.stack([np.cos(angle) * radius * rng.uniform(1, 1.5), np.sin(angle) * radius], 1)
    draw.polygon(pillow_points(rim @ random_rotation(rng) + rng.random(2) * canvas.size_xy), fill=255)


def _paint_banks(canvas: FieldCanvas, bank_hw: Float32) -> None:
    """Paint banks: reeds and bare soil along the water, of class meadow."""
    ragged = bank_hw + 0.05 * canvas.noise(6)
    rim = (ragged > 0.13) & (bank_hw > 0.04)
    shade = canvas.noise(5)[rim][:, None]
    reeds = np.array([96, 112, 62], np.float32) * canvas.common(WATER).uniform(0.8, 1.2)
    mud = np.clip((ragged[rim] - 0.33) * 6, 0, 1)[:, None]
    canvas.paint(rim, (reeds * (1 + 0.1 * shade)) * (1 - mud) + canvas.soil * 0.8 * mud, MEADOW)


def _paint_surface(canvas: FieldCanvas, where_hw: Bool, depth_hw: Float32) -> None:
    """Paint the water: muddy at the rim, dark in the middle, with ripples and a reflection of the sky."""
    rng = canvas.common(WATER)
    tints = np.array([(34, 52, 56), (48, 66, 58), (58, 84, 94), (84, 88, 68), (40, 62, 78), (66, 92, 82)], np.float32)
    deep = rng.choice(tints) * rng.uniform(0.85, 1.15)
    shallow = deep * 0.6 + canvas.soil * 0.45
    depth = np.clip((depth_hw[where_hw] - 0.5) * 2.4, 0, 1)[:, None]
    water = shallow + (deep - shallow) * depth
    sheen = np.clip(canvas.noise(80) + rng.normal(0, 0.5), 0, 1.6)[where_hw][:, None]
    ripple = canvas.noise(2.4)[where_hw][:, None]
    sky = np.array([150, 172, 186], np.float32)
    gloss = np.clip(0.2 * sheen * (1 + 0.22 * ripple) + 0.012 * ripple, 0, 0.55)
    canvas.paint(where_hw, water + (sky - water) * gloss, WATER)
