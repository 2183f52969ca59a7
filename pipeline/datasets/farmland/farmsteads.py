"""Farmsteads of the generated farmland: houses and silos around a yard beside a road."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL import ImageDraw

from pipeline.datasets.farmland.canvas import BUILDING, ROAD, WATER, FieldCanvas, smooth_wave
from pipeline.datasets.farmland.geometry import Points, disc_box, perpendicular, pillow_points, rectangle
from pipeline.datasets.farmland.roads import VERGE, YARD, Road, paint_materials

_ROOF = np.dtype([("colour", "f4", 3), ("ridge", "f4", 2), ("period", "f4"), ("contrast", "f4")])
_ROOFS = np.array(
    [(156, 78, 58), (172, 92, 66), (122, 80, 62), (116, 118, 126), (92, 94, 102), (206, 206, 200), (174, 178, 182)],
    np.float32,
)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Drawing of all farmsteads, before it is painted."""

    yards: PILImage.Image
    """Sheet of materials, for `paint_materials`."""
    faces: PILImage.Image
    """Sheet of roof face numbers, 0 where there is no roof."""
    styles: list[npt.NDArray[Any]]
    """Style of every face, (1,) of `_ROOF`."""

    def add(self, colour: npt.ArrayLike, ridge: Points, period_px: float, contrast: float) -> int:
        """Add the style of a roof face, with ribs at right angles to the ridge; returns its number, for drawing."""
        self.styles.append(np.array([(colour, ridge, period_px, contrast)], _ROOF))
        return len(self.styles) - 1


def paint_farmsteads(canvas: FieldCanvas, roads: list[Road]) -> None:
    """Paint farmsteads: buildings around a yard beside a road."""
    plan, gates = _Plan(canvas.sheet("L"), canvas.sheet("I"), [np.zeros(1, _ROOF)]), _gates(canvas, roads)
    for _ in range(canvas.rng.poisson(2.6 * canvas.share)):
        _draw_farmstead(canvas, plan, *_site(canvas, gates))
    yard_hw, face_hw = np.asarray(plan.yards), np.asarray(plan.faces)
    paint_materials(canvas, np.where((yard_hw == VERGE) & (canvas.label_hw == ROAD), 0, yard_hw))
    if face_hw.any():
        _paint_roofs(canvas, face_hw, np.concatenate(plan.styles))


def _gates(canvas: FieldCanvas, roads: list[Road]) -> Points:
    """Points on roads inside the scene and the road's direction there, (N, 4)."""
    ways = [np.array(road.line) for road in roads]
    gates = np.concatenate([np.zeros((0, 4)), *(np.hstack([way[:-1], np.diff(way, axis=0)]) for way in ways)])
    inside = (gates[:, :2] > 0).all(1) & (gates[:, :2] < canvas.size_xy).all(1)
    return gates[inside]


def _site(canvas: FieldCanvas, gates: Points) -> tuple[Points, Points, Points]:
    """Choose a site: a point on a road, the road's direction there, and the direction from the road to the yard."""
    rng = canvas.rng
    if len(gates) == 0:
        along = perpendicular(rng.normal(size=2))
        return rng.random(2) * canvas.size_xy, along, perpendicular(along)
    gate = gates[rng.integers(len(gates))]
    inward = perpendicular(gate[2:]) * rng.choice([-1, 1])
    return gate[:2], perpendicular(inward), inward


def _draw_farmstead(canvas: FieldCanvas, plan: _Plan, gate: Points, along: Points, inward: Points) -> None:
    """Draw one farmstead: a garden, a yard with its drive to the road, and buildings around it."""
    rng, scale = canvas.rng, canvas.scale
    yard = gate + inward * 40 * scale
    court = rectangle(yard, along, rng.uniform(30, 46) * scale, rng.uniform(26, 40) * scale)
    if not _is_clear(canvas, plan, court):
        return
    draw = ImageDraw.Draw(plan.yards)
    garden = rectangle(gate + inward * 52 * scale, along, rng.uniform(80, 112) * scale, rng.uniform(66, 84) * scale)
    draw.polygon(canvas.bend(garden, closed=True), VERGE)
    draw.line(pillow_points(np.array([gate, yard])), YARD, round(7 * scale))
    draw.polygon(pillow_points(court), YARD)
    slots = [(-32.0, 38.0), (32.0, 42.0), (0.0, 74.0), (-36.0, 78.0), (36.0, 80.0)]
    for aside, inwards in slots[: int(rng.integers(2, 6))]:
        centre = gate + (along * (aside + rng.normal(0, 2)) + inward * (inwards + rng.normal(0, 2))) * scale
        if rng.random() < 0.12:
            _draw_silo(canvas, plan, centre)
        else:
            _draw_house(canvas, plan, centre, inward if rng.random() < 0.5 else along)


def _is_clear(canvas: FieldCanvas, plan: _Plan, plot: Points) -> bool:
    """Return True if corners, edge centres and centre of a rectangle are on no water, road or roof."""
    spots = np.concatenate([plot, (plot + np.roll(plot, 1, 0)) / 2, plot.mean(0)[None]])
    x, y = np.rint(spots).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < canvas.width) & (y < canvas.height)
    x, y = x[inside], y[inside]
    built = [plan.faces.getpixel(spot) for spot in zip(x.tolist(), y.tolist(), strict=True)]
    return not (any(built) or np.isin(canvas.label_hw[y, x], (WATER, ROAD)).any())


def _draw_house(canvas: FieldCanvas, plan: _Plan, centre: Points, along: Points) -> None:
    """Draw a house: two roof faces that meet at the ridge, the one towards the sun brighter, and a shadow."""
    rng, scale, draw = canvas.rng, canvas.scale, ImageDraw.Draw(plan.faces)
    length, breadth = rng.uniform(17, 38) * scale, rng.uniform(12, 19) * scale
    along = along + perpendicular(along) * rng.normal(0, 0.04)
    if not _is_clear(canvas, plan, rectangle(centre, along, length + 8, breadth + 8)):
        return
    _cast_shadow(canvas, rectangle(centre, along, length, breadth), rng.uniform(6, 10) * scale)
    colour, ribs = rng.choice(_ROOFS) * rng.uniform(0.85, 1.12), rng.choice([4.0, 2.6])
    for aside in (-perpendicular(along), perpendicular(along)):
        lit = 0.88 - 0.2 * float(canvas.shade_xy @ aside) / float(np.hypot(*canvas.shade_xy))
        face = rectangle(centre + aside * breadth / 4, along, length, breadth / 2)
        draw.polygon(pillow_points(face), plan.add(colour * lit, along, ribs, rng.uniform(0.02, 0.07)))
    if rng.random() < 0.2:  # solar panels
        panels = rectangle(centre + perpendicular(along) * breadth / 4, along, length * 0.7, breadth * 0.3)
        draw.polygon(pillow_points(panels), plan.add((38, 48, 78), along, 5.0, 0.16))


def _draw_silo(canvas: FieldCanvas, plan: _Plan, centre: Points) -> None:
    """Draw a silo: a round tower with a lit cap, and a shadow."""
    radius, draw, east = canvas.rng.uniform(6, 9) * canvas.scale, ImageDraw.Draw(plan.faces), np.array([1.0, 0.0])
    if not _is_clear(canvas, plan, rectangle(centre, east, radius * 2.4, radius * 2.4)):
        return
    steps = np.arange(24) * (2 * math.pi / 24)
    _cast_shadow(canvas, centre + radius * np.stack([np.cos(steps), np.sin(steps)], 1), 14 * canvas.scale)
    grey, cap = canvas.rng.uniform(150, 200), centre - canvas.shade_xy * radius * 0.25
    draw.ellipse(disc_box(centre, radius), plan.add([grey * 0.86] * 3, east, 9.0, 0.0))
    draw.ellipse(disc_box(cap, radius * 0.6), plan.add([grey * 1.1] * 3, east, 9.0, 0.0))


def _cast_shadow(canvas: FieldCanvas, outline: Points, height_px: float) -> None:
    """Draw the shadow of walls of this height: the outline swept along the shadow's direction."""
    draw = ImageDraw.Draw(canvas.shadow)
    tip = outline + canvas.shade_xy * height_px
    draw.polygon(pillow_points(tip), fill=255)
    for i in range(len(outline)):
        draw.polygon(pillow_points(np.array([outline[i - 1], outline[i], tip[i], tip[i - 1]])), fill=255)


def _paint_roofs(canvas: FieldCanvas, face_hw: npt.NDArray[np.int32], styles: npt.NDArray[Any]) -> None:
    """Paint the roof faces, with fine ribs for tiles or sheets."""
    where = face_hw > 0
    style = styles[face_hw[where]]
    y, x = np.nonzero(where)
    along = x.astype(np.float32) * style["ridge"][:, 0] + y.astype(np.float32) * style["ridge"][:, 1]
    light = 1 + style["contrast"] * smooth_wave(along / style["period"]) + 0.03 * canvas.noise(3)[where]
    canvas.paint(where, style["colour"] * light[:, None], BUILDING)
