"""Fields of the generated farmland: parcels of crops, meadows and ploughed soil, with rows and headlands."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ImageDraw

from pipeline.datasets.farmland.canvas import CROP, GRASSES, MEADOW, SOIL, Border, FieldCanvas, smooth_wave
from pipeline.datasets.farmland.geometry import Points, cut_polygon, perpendicular, polygon_area, rectangle
from pipeline.records import Float32

_FIELD_STYLE = np.dtype(
    [
        ("kind", "u1"),
        ("ground", "f4", 3),  # colour between the plants
        ("plant", "f4", 3),  # colour of the plants
        ("normal", "f4", 2),  # unit vector across the rows
        ("period", "f4"),  # distance of the rows, pixels
        ("fill", "f4"),  # width of the plants: 0 bare rows, above 1 a closed canopy
        ("patchy", "f4"),  # variation of the stand from place to place
        ("ridge", "f4"),  # contrast of the rows in light and shade
        ("tramline", "f4"),  # distance of the tractor's lanes, pixels
    ]
)
_LEAVES = np.array(
    [(148, 154, 82), (120, 142, 70), (90, 122, 60), (66, 102, 54), (56, 86, 48), (182, 164, 106), (104, 122, 72)],
    np.float32,
)

_BAND_ROWS = 64


def divide_land(canvas: FieldCanvas) -> tuple[list[Points], list[Border]]:
    """Divide the land repeatedly until every parcel has the size of a field; returns parcels and borders."""
    rng, size = canvas.rng, canvas.size_xy
    turn, reach = rng.uniform(0, math.pi), float(np.hypot(*size)) + 160.0
    field_px2 = (rng.uniform(62, 105) * canvas.scale) ** 2
    along = np.array([math.cos(turn), math.sin(turn)])
    pieces, parcels, borders = [rectangle(size / 2, along, reach, reach)], [], []
    while pieces:
        piece = pieces.pop()
        area = polygon_area(piece)
        if (piece.max(0) < -40).any() or (piece.min(0) > size + 40).any():
            continue
        if area < field_px2 * rng.uniform(1.3, 2.6):
            parcels.append(piece)
            continue
        first, second, line = cut_polygon(piece, *_division(rng, piece))
        pieces += [first, second]
        borders.append(Border(line, area))
    return parcels, borders


def _division(rng: np.random.Generator, piece: Points) -> tuple[Points, Points]:
    """Point and normal of a cut: across the longest side, near its middle, almost at a right angle."""
    sides = np.roll(piece, -1, 0) - piece
    longest = sides[int(np.argmax((sides**2).sum(1)))]
    tilt = rng.normal(0, 0.09)
    normal = longest + perpendicular(longest) * float(np.hypot(*longest)) * tilt
    return piece.mean(0) + longest * rng.uniform(-0.12, 0.12), normal / float(np.hypot(*normal))


def paint_fields(canvas: FieldCanvas, parcels: list[Points]) -> None:
    """Paint every parcel as a crop, a meadow or ploughed soil, with headlands."""
    numbers = canvas.sheet("I")
    draw = ImageDraw.Draw(numbers)
    styles: list[npt.NDArray[Any]] = []
    for parcel in parcels:
        style = _field_style(canvas, parcel)
        draw.polygon(canvas.bend(parcel, closed=True), fill=len(styles))
        styles.append(style)
        if style["kind"][0] != MEADOW and canvas.rng.random() < 0.7:
            styles += _draw_headlands(canvas, draw, parcel, style, len(styles))
    _paint_styles(canvas, np.asarray(numbers), np.concatenate(styles))


def _field_style(canvas: FieldCanvas, parcel: Points) -> npt.NDArray[Any]:
    """Draw the style of one parcel: (1,) of `_FIELD_STYLE`."""
    rng = canvas.rng
    style = np.zeros(1, _FIELD_STYLE)
    kind = style["kind"][0] = rng.choice([SOIL, CROP, MEADOW], p=[0.24, 0.46, 0.30])
    side = parcel[1] - parcel[0] if rng.random() < 0.85 else rng.normal(size=2)
    dry = rng.uniform(0, 0.4)
    style["normal"] = perpendicular(side)
    style["ground"] = canvas.soil * rng.uniform(0.82, 1.2) + rng.normal(0, 4, 3)
    if kind == MEADOW:
        grass = rng.choice(GRASSES)
        style["plant"] = grass * rng.uniform(0.82, 1.1)
        style["ground"] = grass * (1 - dry) + (canvas.soil + 24) * dry
        style["period"], style["ridge"] = rng.uniform(15, 24), rng.choice([0.0, 0.035])
        return style
    style["plant"] = rng.choice(_LEAVES) * rng.uniform(0.86, 1.12) + rng.normal(0, 4, 3)
    style["period"] = rng.uniform(4.2, 9.0) * canvas.scale if kind == CROP else rng.uniform(3.2, 5.0) * canvas.scale
    style["fill"] = rng.uniform(0.3, 1.35)
    style["patchy"] = rng.uniform(0.04, 0.3)
    style["ridge"] = rng.uniform(0.07, 0.15) if kind == CROP else rng.uniform(0.02, 0.11)
    style["tramline"] = rng.uniform(46, 80) * canvas.scale
    return style


def _draw_headlands(
    canvas: FieldCanvas, draw: ImageDraw.ImageDraw, parcel: Points, style: npt.NDArray[Any], first: int
) -> list[npt.NDArray[Any]]:
    """Draw headlands over a parcel, where rows follow each side because tractors turn there; returns their styles."""
    centre, sides = parcel.mean(0), np.roll(parcel, -1, 0) - parcel
    rim = []
    for index, side in enumerate(sides):
        wedge = np.array([centre, parcel[index], parcel[index - len(parcel) + 1]])
        draw.polygon(canvas.bend(wedge, closed=True), fill=first + index)
        rim.append(style.copy())
        rim[-1]["normal"] = perpendicular(side)
        rim[-1]["tramline"] = 1e6
    inner = centre + (parcel - centre) * (1 - 13 * canvas.scale / math.sqrt(polygon_area(parcel)) * 2)
    draw.polygon(canvas.bend(inner, closed=True), fill=first - 1)
    return rim


def _paint_styles(canvas: FieldCanvas, number_hw: npt.NDArray[np.int32], styles: npt.NDArray[Any]) -> None:
    """Paint every pixel in the style of its number, a band of rows at a time: a style is 53 bytes."""
    noises = [canvas.noise(period) for period in (46, 11, 2.6, 90)]
    for top in range(0, canvas.height, _BAND_ROWS):
        rows = slice(top, top + _BAND_ROWS)
        pixel_styles = styles[number_hw[rows]]
        canvas.colour_hwc[rows] = _field_colours(pixel_styles, top, [noise[rows] for noise in noises])
        canvas.label_hw[rows] = pixel_styles["kind"]


def _field_colours(style: npt.NDArray[Any], top: int, noises: list[Float32]) -> Float32:
    """Colours of the fields, (H, W, 3), from the style of each pixel.

    top: row of the scene at which these rows begin; noises: four of (H, W), with which places differ.
    """
    patch, mottle, fine, drift = noises
    y, x = np.ogrid[top : top + style.shape[0], 0 : style.shape[1]]
    normal = style["normal"]
    across = x.astype(np.float32) * normal[..., 0] + y.astype(np.float32) * normal[..., 1] + drift * 2
    rows = smooth_wave(across / style["period"] + 0.04 * fine)
    lane = across - style["tramline"] * np.rint(across / np.maximum(style["tramline"], 1))
    lane_free = np.clip(np.abs(np.abs(lane) - 4.5) - 0.9, 0.15, 1)
    stand = style["fill"] + style["patchy"] * (patch + 0.5 * mottle) + 0.1 * fine
    cover = np.clip((stand - 0.5 + 0.5 * rows) * 1.5 + 0.5, 0, 1) * lane_free
    cover = np.where(style["kind"] == CROP, cover, 0)
    cover = np.where(style["kind"] == MEADOW, np.clip(0.5 + 0.3 * patch + 0.3 * mottle + 0.18 * fine, 0, 1), cover)
    wet = np.clip(patch * 1.6 + 0.5 * mottle - 0.6, 0, 1) * (style["kind"] == SOIL)
    light = (1 + style["ridge"] * rows) * (1 - 0.24 * wet) * (1 + 0.03 * mottle + 0.045 * fine)
    colour: Float32 = (style["ground"] + (style["plant"] - style["ground"]) * cover[..., None]) * light[..., None]
    return colour
