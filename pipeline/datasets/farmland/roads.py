"""Roads of the generated farmland: asphalt roads, dirt tracks and grass strips along borders of land."""

from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from pipeline.datasets.farmland.canvas import GRASSES, MEADOW, ROAD, WATER, Border, FieldCanvas
from pipeline.datasets.farmland.geometry import pillow_points
from pipeline.records import UInt8

VERGE, ASPHALT, WORN, PAINT, DIRT, RUT, YARD = range(1, 8)
"""Materials of roads and yards."""


@dataclass(frozen=True, slots=True)
class Road:
    """Road or track to be drawn."""

    line: list[tuple[float, float]]
    """Centre line, pixels."""
    paved: bool
    """True for asphalt, False for a dirt track."""


def paint_roads(canvas: FieldCanvas, borders: list[Border]) -> list[Road]:
    """Paint roads along borders of large pieces of land, tracks and grass strips along small ones."""
    rng, sheet = canvas.rng, canvas.sheet("L")
    draw, roads = ImageDraw.Draw(sheet), []
    for border in borders[::-1]:
        line = canvas.bend(border.line)
        far = border.area_px2 / canvas.scale**2
        if far > 330**2 or rng.random() < 0.34:
            paved = far > 330**2 and rng.random() < 0.7
            roads.append(Road(line, paved))
        elif rng.random() < 0.45:
            draw.line(line, VERGE, round(rng.uniform(4, 9) * canvas.scale), joint="curve")
    for road in sorted(roads, key=lambda road: road.paved):
        _draw_road(canvas, draw, road, rng)
    for centre in canvas.landscape.roads if canvas.landscape else ():  # the neighbour draws the same
        roads.append(Road(pillow_points(centre), paved=True))
        _draw_road(canvas, draw, roads[-1], canvas.common(ROAD))
    paint_materials(canvas, np.asarray(sheet))
    return roads


def _draw_road(canvas: FieldCanvas, draw: ImageDraw.ImageDraw, road: Road, rng: np.random.Generator) -> None:
    """Draw a road from the verge inwards: asphalt with worn lanes and a centre line, or two ruts with grass between."""
    scale = canvas.scale
    breadth = rng.uniform(10, 14) * scale if road.paved else rng.uniform(6.5, 9) * scale
    draw.line(road.line, VERGE, round(breadth + rng.uniform(3, 7) * scale), joint="curve")
    draw.line(road.line, ASPHALT if road.paved else RUT, round(breadth), joint="curve")
    if not road.paved:
        if rng.random() < 0.6:
            draw.line(road.line, DIRT, max(1, round(breadth * 0.3)), joint="curve")
        return
    draw.line(road.line, WORN, max(1, round(breadth * 0.66)), joint="curve")
    draw.line(road.line, ASPHALT, max(1, round(breadth * 0.24)), joint="curve")
    if rng.random() < 0.7:
        for start, end in zip(road.line[::2], road.line[1::2], strict=False):
            draw.line((start, end), PAINT, 1)


def paint_materials(canvas: FieldCanvas, material_hw: UInt8) -> None:
    """Paint a drawing of materials: verges get the class meadow, everything else road."""
    rng = canvas.common(ROAD)
    asphalt = rng.uniform(84, 142) + np.array([0.0, -0.5, -2.0]) * rng.uniform(-1, 3)
    dirt = canvas.soil * rng.uniform(1.0, 1.25) + 12
    grass = rng.choice(GRASSES) * rng.uniform(0.8, 1.1)
    styles = np.zeros((8, 3), np.float32)
    styles[[VERGE, ASPHALT, WORN, PAINT]] = [grass, asphalt, asphalt * 1.1, asphalt * 1.45]
    styles[[DIRT, RUT, YARD]] = [(dirt * 2 + grass) / 3, dirt * 1.08, dirt * 0.5 + asphalt * 0.55]
    there = (material_hw > VERGE) | ((material_hw == VERGE) & (canvas.label_hw != WATER))
    texture = 1 + 0.045 * canvas.noise(2.4)[there] + 0.035 * canvas.noise(14)[there]
    verge = material_hw[there] == VERGE
    texture += 0.08 * canvas.noise(4)[there] * verge
    canvas.colour_hwc[there] = styles[material_hw[there]] * texture[:, None]
    canvas.label_hw[there] = np.where(verge, MEADOW, ROAD)
