"""Farmland seen from the air, generated with its labels: for demonstrations, tests and the shipped `farmland` network.

In: a seed and a size. Out: an RGB image and the class of every pixel (`pipeline/palettes/farmland.yaml`), or whole data
sets of such images as a folder, as WebDataset tars or as Parquet, the encoded bytes being the same in all three.
A scene is painted in layers, each over the last: fields, water, roads, farmsteads, trees, and then it is photographed.
Shadows darken what they fall on and keep its class.

A seed gives the same image on every machine with the same releases of NumPy and Pillow: random numbers come from PCG64,
colours are computed with sums and products alone, which IEEE 754 fixes to the last bit, and sines only place outlines,
where an error in the last bit does not show. Colours (RGB, 0 to 255), lengths and odds were chosen by eye; lengths are
in pixels of a scene of scale 1.
"""

import io
import math
import multiprocessing
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFilter

from pipeline.records import Bool, Float32, UInt8
from pipeline.store import objects

SOIL, CROP, MEADOW, WATER, ROAD, TREE, BUILDING = range(7)

Points = npt.NDArray[np.float64]
"""(N, 2) corners of a polygon or polyline, x then y, pixels."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One generated image and what is on it."""

    image_hwc: UInt8
    """(H, W, 3) RGB."""
    label_hw: UInt8
    """(H, W) class ids 0 to 6; every pixel has a class."""


@dataclass(frozen=True, slots=True)
class _Border:
    """The straight line along which a piece of land was divided."""

    line: Points
    """(2, 2) both ends."""
    area_px2: float
    """Area of the piece before it was divided: large ones are divided by roads."""


@dataclass(slots=True)
class _Scene:
    """What the layers share while they paint over each other."""

    rng: np.random.Generator
    height: int
    width: int
    scale: float
    """Pixels per unit of length: the ground sampling distance differs from flight to flight."""
    shade_xy: Points
    """(2,) the way shadows fall, pixels per pixel of height."""
    soil: Float32
    """(3,) colour of the local soil; fields, dirt tracks and ruts all take after it."""
    waves: Points
    """(4, 5) plane waves that bend every straight line: wave vector x, y; phase; amplitude x, y."""
    colour_hwc: Float32 = field(init=False)
    label_hw: UInt8 = field(init=False)
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

    @property
    def share(self) -> float:
        """Area in units of 256x256 pixels: how many of each thing a scene has grows with it."""
        return self.height * self.width / 256**2

    def sheet(self, mode: str) -> PILImage.Image:
        """A blank drawing of the scene's size."""
        return PILImage.new(mode, (self.width, self.height))

    def paint(self, where_hw: Bool, colour: npt.ArrayLike, label: int) -> None:
        """Give pixels a colour and a class."""
        self.colour_hwc[where_hw] = colour
        self.label_hw[where_hw] = label

    def noise(self, period_px: float) -> Float32:
        """(H, W) smooth noise with mean 0 and a spread near 1, whose blobs are about `period_px` wide."""
        wide, high = self.width / period_px, self.height / period_px
        grid = self.rng.standard_normal((math.ceil(high) + 3, math.ceil(wide) + 3), np.float32)
        box = (1.0, 1.0, 1.0 + wide, 1.0 + high)
        smooth = PILImage.fromarray(grid).resize((self.width, self.height), PILImage.Resampling.BICUBIC, box=box)
        return np.asarray(smooth, np.float32) * np.float32(1.3)

    def bend(self, line: Points, *, closed: bool = False) -> list[tuple[float, float]]:
        """Turn a polygon or polyline into a denser, gently winding one, ready to be drawn."""
        ends = np.concatenate([line, line[:1]]) if closed else line
        pieces = [_walk(a, b, 9.0) for a, b in pairwise(ends)]
        points = np.concatenate([*pieces, ends[-1:]])
        phase = points @ self.waves[:, :2].T + self.waves[:, 2]
        return _corners(points + np.sin(phase) @ self.waves[:, 3:])


def generate_scene(seed: int, *, height: int = 256, width: int = 256) -> Scene:
    """Generate one scene; the same seed and size give the same pixels everywhere.

    Args:
        seed: 0 or larger. Neighbouring seeds are unrelated.
        height: pixels, at least 1.
        width: pixels, at least 1. A larger image shows more land, not larger fields.
    """
    scene = _arrive(np.random.Generator(np.random.PCG64(seed)), height, width)
    parcels, borders = _survey(scene)
    _sow(scene, parcels)
    _flood(scene)
    roads = _lay_roads(scene, borders)
    _build_farmsteads(scene, roads)
    _plant_trees(scene, borders)
    return Scene(_photograph(scene), scene.label_hw)


def _arrive(rng: np.random.Generator, height: int, width: int) -> _Scene:
    """What the whole scene has in common: the sun, the flying height, the soil, the lie of the land."""
    sun, steepness = rng.uniform(0, 2 * math.pi), rng.uniform(0.45, 1.25)
    soils = np.array([(128, 101, 76), (104, 86, 68), (152, 130, 102), (134, 98, 74), (118, 105, 88)], np.float32)
    turn, length = rng.uniform(0, 2 * math.pi, 4), rng.uniform(130, 420, 4)
    vectors = np.stack([np.cos(turn), np.sin(turn)], 1) * (2 * math.pi / length[:, None])
    swing = rng.normal(0, 0.016, (4, 2)) * length[:, None]
    return _Scene(
        rng=rng,
        height=height,
        width=width,
        scale=rng.uniform(0.85, 1.3),
        shade_xy=np.array([math.cos(sun), math.sin(sun)]) * steepness,
        soil=rng.choice(soils) * np.float32(rng.uniform(0.9, 1.15)),
        waves=np.concatenate([vectors, rng.uniform(0, 2 * math.pi, (4, 1)), swing], 1),
    )


# ---------------------------------------------------------------- geometry


def _walk(start: Points, end: Points, step_px: float) -> Points:
    """Points from `start` towards `end`, both (2,), the end left out."""
    count = max(1, round(float(np.hypot(*(end - start))) / step_px))
    return start + (end - start) * (np.arange(count)[:, None] / count)


def _across(direction: Points) -> Points:
    """The unit vector at a right angle to a direction, (2,)."""
    along = direction / max(float(np.hypot(*direction)), 1e-9)
    return np.array([-along[1], along[0]])


def _area(polygon: Points) -> float:
    """The shoelace formula, square pixels."""
    x, y = polygon.T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


def _cut(polygon: Points, through: Points, normal: Points) -> tuple[Points, Points, Points]:
    """Cut a convex polygon along a line; returns both halves and the two ends of the cut."""
    sides = (polygon - through) @ normal
    halves: tuple[list[Points], list[Points]] = ([], [])
    ends = []
    for index, side in enumerate(sides):
        here, there, far = polygon[index], polygon[index - len(polygon) + 1], sides[index - len(sides) + 1]
        halves[int(side < 0)].append(here)
        if (side < 0) != (far < 0):
            ends.append(here + (there - here) * (side / (side - far)))
            halves[0].append(ends[-1])
            halves[1].append(ends[-1])
    return np.array(halves[0]), np.array(halves[1]), np.array(ends)


def _box(centre: Points, along: Points, length: float, breadth: float) -> Points:
    """(4, 2) corners of a rectangle whose long side runs along a unit vector."""
    ahead, aside = along * (length / 2), _across(along) * (breadth / 2)
    corners: Points = centre + np.array([-ahead - aside, ahead - aside, ahead + aside, -ahead + aside])
    return corners


def _spin(rng: np.random.Generator) -> Points:
    """(2, 2) a rotation by a random angle."""
    turn = rng.uniform(0, math.pi)
    return np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])


def _corners(points: Points) -> list[tuple[float, float]]:
    """Points as Pillow takes them."""
    return [(float(x), float(y)) for x, y in points]


def _disc(centre: Points, radius: float) -> tuple[float, float, float, float]:
    """The box around a disc, as Pillow takes it."""
    x, y = float(centre[0]), float(centre[1])
    return (x - radius, y - radius, x + radius, y + radius)


# ---------------------------------------------------------------- fields


def _survey(scene: _Scene) -> tuple[list[Points], list[_Border]]:
    """Divide the land again and again until every parcel is as small as a field."""
    rng, size = scene.rng, scene.size_xy
    turn, reach = rng.uniform(0, math.pi), float(np.hypot(*size)) + 160.0
    field_px2 = (rng.uniform(62, 105) * scene.scale) ** 2
    along = np.array([math.cos(turn), math.sin(turn)])
    pieces, parcels, borders = [_box(size / 2, along, reach, reach)], [], []
    while pieces:
        piece = pieces.pop()
        area = _area(piece)
        if (piece.max(0) < -40).any() or (piece.min(0) > size + 40).any():
            continue
        if area < field_px2 * rng.uniform(1.3, 2.6):
            parcels.append(piece)
            continue
        first, second, line = _cut(piece, *_division(rng, piece))
        pieces += [first, second]
        borders.append(_Border(line, area))
    return parcels, borders


def _division(rng: np.random.Generator, piece: Points) -> tuple[Points, Points]:
    """A point and a normal: across the longest side, somewhere near the middle, not quite at a right angle."""
    sides = np.roll(piece, -1, 0) - piece
    longest = sides[int(np.argmax((sides**2).sum(1)))]
    tilt = rng.normal(0, 0.09)
    normal = longest + _across(longest) * float(np.hypot(*longest)) * tilt
    return piece.mean(0) + longest * rng.uniform(-0.12, 0.12), normal / float(np.hypot(*normal))


_FIELD = np.dtype(
    [
        ("kind", "u1"),
        ("ground", "f4", 3),  # colour between the plants
        ("plant", "f4", 3),  # colour of the plants
        ("normal", "f4", 2),  # unit vector across the rows
        ("period", "f4"),  # of the rows, pixels
        ("fill", "f4"),  # how wide the plants stand: 0 bare rows, above 1 a closed canopy
        ("patchy", "f4"),  # how much the stand differs from place to place
        ("ridge", "f4"),  # contrast of the rows in light and shade
        ("tramline", "f4"),  # distance of the tractor's lanes, pixels
    ]
)

_LEAVES = np.array(
    [(148, 154, 82), (120, 142, 70), (90, 122, 60), (66, 102, 54), (56, 86, 48), (182, 164, 106), (104, 122, 72)],
    np.float32,
)
_GRASSES = np.array([(104, 132, 62), (122, 136, 72), (86, 118, 54), (138, 138, 80), (74, 108, 56)], np.float32)


def _sow(scene: _Scene, parcels: list[Points]) -> None:
    """Cover every parcel with a crop, a meadow or ploughed soil, headlands included."""
    numbers = scene.sheet("I")
    draw = ImageDraw.Draw(numbers)
    looks: list[npt.NDArray[Any]] = []
    for parcel in parcels:
        look = _look(scene, parcel)
        draw.polygon(scene.bend(parcel, closed=True), fill=len(looks))
        looks.append(look)
        if look["kind"][0] != MEADOW and scene.rng.random() < 0.7:
            looks += _turn_headlands(scene, draw, parcel, look, len(looks))
    scene_looks = np.concatenate(looks)[np.asarray(numbers)]
    scene.colour_hwc[:] = _grow(scene, scene_looks)
    scene.label_hw[:] = scene_looks["kind"]


def _look(scene: _Scene, parcel: Points) -> npt.NDArray[Any]:
    """(1,) of `_FIELD`: what grows on one parcel."""
    rng = scene.rng
    look = np.zeros(1, _FIELD)
    kind = look["kind"][0] = rng.choice([SOIL, CROP, MEADOW], p=[0.24, 0.46, 0.30])
    side = parcel[1] - parcel[0] if rng.random() < 0.85 else rng.normal(size=2)
    dry = rng.uniform(0, 0.4)
    look["normal"] = _across(side)
    look["ground"] = scene.soil * rng.uniform(0.82, 1.2) + rng.normal(0, 4, 3)
    if kind == MEADOW:
        grass = rng.choice(_GRASSES)
        look["plant"] = grass * rng.uniform(0.82, 1.1)
        look["ground"] = grass * (1 - dry) + (scene.soil + 24) * dry
        look["period"], look["ridge"] = rng.uniform(15, 24), rng.choice([0.0, 0.035])
        return look
    look["plant"] = rng.choice(_LEAVES) * rng.uniform(0.86, 1.12) + rng.normal(0, 4, 3)
    look["period"] = rng.uniform(4.2, 9.0) * scene.scale if kind == CROP else rng.uniform(3.2, 5.0) * scene.scale
    look["fill"] = rng.uniform(0.3, 1.35)
    look["patchy"] = rng.uniform(0.04, 0.3)
    look["ridge"] = rng.uniform(0.07, 0.15) if kind == CROP else rng.uniform(0.02, 0.11)
    look["tramline"] = rng.uniform(46, 80) * scene.scale
    return look


def _turn_headlands(
    scene: _Scene, draw: ImageDraw.ImageDraw, parcel: Points, look: npt.NDArray[Any], first: int
) -> list[npt.NDArray[Any]]:
    """The tractor turns along each side, so the rows there follow it; draws over the parcel, returns the looks."""
    centre, sides = parcel.mean(0), np.roll(parcel, -1, 0) - parcel
    rim = []
    for index, side in enumerate(sides):
        wedge = np.array([centre, parcel[index], parcel[index - len(parcel) + 1]])
        draw.polygon(scene.bend(wedge, closed=True), fill=first + index)
        rim.append(look.copy())
        rim[-1]["normal"] = _across(side)
        rim[-1]["tramline"] = 1e6
    inner = centre + (parcel - centre) * (1 - 13 * scene.scale / math.sqrt(_area(parcel)) * 2)
    draw.polygon(scene.bend(inner, closed=True), fill=first - 1)
    return rim


def _grow(scene: _Scene, look: npt.NDArray[Any]) -> Float32:
    """(H, W, 3) colours of the fields, from what grows at each pixel."""
    y, x = np.ogrid[0 : scene.height, 0 : scene.width]
    patch, mottle, fine = scene.noise(46), scene.noise(11), scene.noise(2.6)
    normal = look["normal"]
    across = x.astype(np.float32) * normal[..., 0] + y.astype(np.float32) * normal[..., 1] + scene.noise(90) * 2
    rows = _wave(across / look["period"] + 0.04 * fine)
    lane = across - look["tramline"] * np.rint(across / np.maximum(look["tramline"], 1))
    lane_free = np.clip(np.abs(np.abs(lane) - 4.5) - 0.9, 0.15, 1)
    stand = look["fill"] + look["patchy"] * (patch + 0.5 * mottle) + 0.1 * fine
    cover = np.clip((stand - 0.5 + 0.5 * rows) * 1.5 + 0.5, 0, 1) * lane_free
    cover = np.where(look["kind"] == CROP, cover, 0)
    cover = np.where(look["kind"] == MEADOW, np.clip(0.5 + 0.3 * patch + 0.3 * mottle + 0.18 * fine, 0, 1), cover)
    wet = np.clip(patch * 1.6 + 0.5 * mottle - 0.6, 0, 1) * (look["kind"] == SOIL)
    light = (1 + look["ridge"] * rows) * (1 - 0.24 * wet) * (1 + 0.03 * mottle + 0.045 * fine)
    colour: Float32 = (look["ground"] + (look["plant"] - look["ground"]) * cover[..., None]) * light[..., None]
    return colour


def _wave(turns: Float32) -> Float32:
    """A sine-like wave of period 1 between -1 and 1 built from products alone: 1 at 0, -1 at a half."""
    part = np.abs(turns - np.rint(turns)) * 4 - 1
    wave: Float32 = part * (np.abs(part) - 2)
    return wave


# ---------------------------------------------------------------- water


def _flood(scene: _Scene) -> None:
    """A winding river in some scenes, ponds in others, each with a bank."""
    rng, sheet = scene.rng, scene.sheet("L")
    draw = ImageDraw.Draw(sheet)
    for _ in range(rng.poisson(0.45 * math.sqrt(scene.share))):
        _draw_river(scene, draw)
    for _ in range(rng.poisson(0.5 * scene.share)):
        _draw_pond(scene, draw)
    shape = np.asarray(sheet)
    if not shape.any():
        return
    _soak_banks(scene, _blurred(sheet, 3.0 * scene.scale))
    _fill(scene, shape > 0, _blurred(sheet, 7.0 * scene.scale))


def _blurred(sheet: PILImage.Image, radius_px: float) -> Float32:
    """(H, W) a grey sheet softened, 0 to 1."""
    return np.asarray(sheet.filter(ImageFilter.GaussianBlur(radius_px)), np.float32) / np.float32(255)


def _draw_river(scene: _Scene, draw: ImageDraw.ImageDraw) -> None:
    """Discs of changing size along a path that swings to and fro on three scales."""
    rng, size = scene.rng, scene.size_xy
    turn, reach = rng.uniform(0, 2 * math.pi), float(np.hypot(*size)) + 60
    along = np.array([math.cos(turn), math.sin(turn)])
    middle = size * rng.uniform(0.15, 0.85, 2)
    path = _walk(middle - along * reach, middle + along * reach, 2.5)
    t = np.arange(len(path)) * 2.5
    swing = sum(rng.uniform(4, 0.11 * p) * np.sin(2 * math.pi * (t / p + rng.random())) for p in (310.0, 173.0, 71.0))
    path = path + _across(along) * swing[:, None]
    breadth = rng.uniform(6, 15) * scene.scale * (1 + 0.25 * np.sin(t / 37.0 + rng.uniform(0, 6)))
    for point, radius in zip(path, breadth, strict=True):
        if (point > -30).all() and (point < size + 30).all():
            draw.ellipse(_disc(point, float(radius)), fill=255)


def _draw_pond(scene: _Scene, draw: ImageDraw.ImageDraw) -> None:
    """A stretched disc with two, three and five lobes."""
    rng = scene.rng
    angle = np.arange(40) * (2 * math.pi / 40)
    radius = rng.uniform(13, 30) * scene.scale * np.ones(40)
    for lobes in (2, 3, 5):
        radius *= 1 + rng.uniform(0, 0.5 / lobes) * np.sin(lobes * angle + rng.uniform(0, 6.3))
    rim = np.stack([np.cos(angle) * radius * rng.uniform(1, 1.5), np.sin(angle) * radius], 1)
    draw.polygon(_corners(rim @ _spin(rng) + rng.random(2) * scene.size_xy), fill=255)


def _soak_banks(scene: _Scene, bank_hw: Float32) -> None:
    """Reeds and trodden soil along the water: a ragged rim of meadow."""
    ragged = bank_hw + 0.05 * scene.noise(6)
    rim = (ragged > 0.13) & (bank_hw > 0.04)
    shade = scene.noise(5)[rim][:, None]
    reeds = np.array([96, 112, 62], np.float32) * scene.rng.uniform(0.8, 1.2)
    mud = np.clip((ragged[rim] - 0.33) * 6, 0, 1)[:, None]
    scene.paint(rim, (reeds * (1 + 0.1 * shade)) * (1 - mud) + scene.soil * 0.8 * mud, MEADOW)


def _fill(scene: _Scene, where_hw: Bool, depth_hw: Float32) -> None:
    """Water: muddy at the rim, dark in the middle, the sky's reflection on one side and ripples."""
    rng = scene.rng
    tints = np.array([(34, 52, 56), (48, 66, 58), (58, 84, 94), (84, 88, 68), (40, 62, 78), (66, 92, 82)], np.float32)
    deep = rng.choice(tints) * rng.uniform(0.85, 1.15)
    shallow = deep * 0.6 + scene.soil * 0.45
    depth = np.clip((depth_hw[where_hw] - 0.5) * 2.4, 0, 1)[:, None]
    water = shallow + (deep - shallow) * depth
    sheen = np.clip(scene.noise(80) + rng.normal(0, 0.5), 0, 1.6)[where_hw][:, None]
    ripple = scene.noise(2.4)[where_hw][:, None]
    sky = np.array([150, 172, 186], np.float32)
    gloss = np.clip(0.2 * sheen * (1 + 0.22 * ripple) + 0.012 * ripple, 0, 0.55)
    scene.paint(where_hw, water + (sky - water) * gloss, WATER)


# ---------------------------------------------------------------- roads

_VERGE, _ASPHALT, _WORN, _PAINT, _DIRT, _RUT, _YARD = range(1, 8)


@dataclass(frozen=True, slots=True)
class _Road:
    """A road or track as it will be drawn."""

    line: list[tuple[float, float]]
    """Its middle, pixels."""
    paved: bool
    """Asphalt, or a track of dirt."""


def _lay_roads(scene: _Scene, borders: list[_Border]) -> list[_Road]:
    """Roads divide the large pieces of land, tracks and grass strips the small ones."""
    rng, sheet = scene.rng, scene.sheet("L")
    draw, roads = ImageDraw.Draw(sheet), []
    for border in borders[::-1]:
        line = scene.bend(border.line)
        far = border.area_px2 / scene.scale**2
        if far > 330**2 or rng.random() < 0.34:
            paved = far > 330**2 and rng.random() < 0.7
            roads.append(_Road(line, paved))
        elif rng.random() < 0.45:
            draw.line(line, _VERGE, round(rng.uniform(4, 9) * scene.scale), joint="curve")
    for road in sorted(roads, key=lambda road: road.paved):
        _draw_road(scene, draw, road)
    _surface(scene, np.asarray(sheet))
    return roads


def _draw_road(scene: _Scene, draw: ImageDraw.ImageDraw, road: _Road) -> None:
    """From the verge inwards: asphalt with worn lanes and a centre line, or two ruts with grass between."""
    rng, scale = scene.rng, scene.scale
    breadth = rng.uniform(10, 14) * scale if road.paved else rng.uniform(6.5, 9) * scale
    draw.line(road.line, _VERGE, round(breadth + rng.uniform(3, 7) * scale), joint="curve")
    draw.line(road.line, _ASPHALT if road.paved else _RUT, round(breadth), joint="curve")
    if not road.paved:
        if rng.random() < 0.6:
            draw.line(road.line, _DIRT, max(1, round(breadth * 0.3)), joint="curve")
        return
    draw.line(road.line, _WORN, max(1, round(breadth * 0.66)), joint="curve")
    draw.line(road.line, _ASPHALT, max(1, round(breadth * 0.24)), joint="curve")
    if rng.random() < 0.7:
        for start, end in zip(road.line[::2], road.line[1::2], strict=False):
            draw.line((start, end), _PAINT, 1)


def _surface(scene: _Scene, material_hw: UInt8) -> None:
    """Colour what was drawn by material: verges are meadow, everything else is road."""
    rng = scene.rng
    asphalt = rng.uniform(84, 142) + np.array([0.0, -0.5, -2.0]) * rng.uniform(-1, 3)
    dirt = scene.soil * rng.uniform(1.0, 1.25) + 12
    grass = rng.choice(_GRASSES) * rng.uniform(0.8, 1.1)
    looks = np.zeros((8, 3), np.float32)
    looks[[_VERGE, _ASPHALT, _WORN, _PAINT]] = [grass, asphalt, asphalt * 1.1, asphalt * 1.45]
    looks[[_DIRT, _RUT, _YARD]] = [(dirt * 2 + grass) / 3, dirt * 1.08, dirt * 0.5 + asphalt * 0.55]
    there = (material_hw > _VERGE) | ((material_hw == _VERGE) & (scene.label_hw != WATER))
    texture = 1 + 0.045 * scene.noise(2.4)[there] + 0.035 * scene.noise(14)[there]
    verge = material_hw[there] == _VERGE
    texture += 0.08 * scene.noise(4)[there] * verge
    scene.colour_hwc[there] = looks[material_hw[there]] * texture[:, None]
    scene.label_hw[there] = np.where(verge, MEADOW, ROAD)


# ---------------------------------------------------------------- farmsteads

_ROOF = np.dtype([("colour", "f4", 3), ("ridge", "f4", 2), ("period", "f4"), ("contrast", "f4")])
_ROOFS = np.array(
    [(156, 78, 58), (172, 92, 66), (122, 80, 62), (116, 118, 126), (92, 94, 102), (206, 206, 200), (174, 178, 182)],
    np.float32,
)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Farmsteads as they are drawn, before they have colours."""

    yards: PILImage.Image
    """Materials of `_surface`."""
    faces: PILImage.Image
    """Numbers of roof faces, 0 where there is none."""
    looks: list[npt.NDArray[Any]]
    """(1,) of `_ROOF` for every face."""

    def add(self, colour: npt.ArrayLike, ridge: Points, period_px: float, contrast: float) -> int:
        """Note a roof face, its ribs at right angles to the ridge; returns its number, to be drawn with."""
        self.looks.append(np.array([(colour, ridge, period_px, contrast)], _ROOF))
        return len(self.looks) - 1


def _build_farmsteads(scene: _Scene, roads: list[_Road]) -> None:
    """Groups of buildings around a yard beside a road."""
    plan, gates = _Plan(scene.sheet("L"), scene.sheet("I"), [np.zeros(1, _ROOF)]), _gates(scene, roads)
    for _ in range(scene.rng.poisson(2.6 * scene.share)):
        _build(scene, plan, *_site(scene, gates))
    yard_hw, face_hw = np.asarray(plan.yards), np.asarray(plan.faces)
    _surface(scene, np.where((yard_hw == _VERGE) & (scene.label_hw == ROAD), 0, yard_hw))
    if face_hw.any():
        _roof(scene, face_hw, np.concatenate(plan.looks))


def _gates(scene: _Scene, roads: list[_Road]) -> Points:
    """(N, 4) points on roads inside the scene, and the way the road takes there."""
    ways = [np.array(road.line) for road in roads]
    gates = np.concatenate([np.zeros((0, 4)), *(np.hstack([way[:-1], np.diff(way, axis=0)]) for way in ways)])
    inside = (gates[:, :2] > 0).all(1) & (gates[:, :2] < scene.size_xy).all(1)
    return gates[inside]


def _site(scene: _Scene, gates: Points) -> tuple[Points, Points, Points]:
    """Where a farm stands: a point on a road, the road's direction there, and the way from the road to the yard."""
    rng = scene.rng
    if len(gates) == 0:
        along = _across(rng.normal(size=2))
        return rng.random(2) * scene.size_xy, along, _across(along)
    gate = gates[rng.integers(len(gates))]
    inward = _across(gate[2:]) * rng.choice([-1, 1])
    return gate[:2], _across(inward), inward


def _build(scene: _Scene, plan: _Plan, gate: Points, along: Points, inward: Points) -> None:
    """Draw one farmstead: a garden, a yard with its drive to the road, buildings around it."""
    rng, scale = scene.rng, scene.scale
    yard = gate + inward * 40 * scale
    court = _box(yard, along, rng.uniform(30, 46) * scale, rng.uniform(26, 40) * scale)
    if not _is_clear(scene, plan, court):
        return
    draw = ImageDraw.Draw(plan.yards)
    garden = _box(gate + inward * 52 * scale, along, rng.uniform(80, 112) * scale, rng.uniform(66, 84) * scale)
    draw.polygon(scene.bend(garden, closed=True), _VERGE)
    draw.line(_corners(np.array([gate, yard])), _YARD, round(7 * scale))
    draw.polygon(_corners(court), _YARD)
    slots = [(-32.0, 38.0), (32.0, 42.0), (0.0, 74.0), (-36.0, 78.0), (36.0, 80.0)]
    for aside, inwards in slots[: int(rng.integers(2, 6))]:
        centre = gate + (along * (aside + rng.normal(0, 2)) + inward * (inwards + rng.normal(0, 2))) * scale
        if rng.random() < 0.12:
            _draw_silo(scene, plan, centre)
        else:
            _draw_house(scene, plan, centre, inward if rng.random() < 0.5 else along)


def _is_clear(scene: _Scene, plan: _Plan, plot: Points) -> bool:
    """Whether a rectangle meets neither water nor a road nor a roof, as far as its corners, edges and centre tell."""
    spots = np.concatenate([plot, (plot + np.roll(plot, 1, 0)) / 2, plot.mean(0)[None]])
    x, y = np.rint(spots).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < scene.width) & (y < scene.height)
    x, y = x[inside], y[inside]
    built = [plan.faces.getpixel(spot) for spot in zip(x.tolist(), y.tolist(), strict=True)]
    return not (any(built) or np.isin(scene.label_hw[y, x], (WATER, ROAD)).any())


def _draw_house(scene: _Scene, plan: _Plan, centre: Points, along: Points) -> None:
    """A pitched roof: two faces that meet at the ridge, the one towards the sun brighter; and its shadow."""
    rng, scale, draw = scene.rng, scene.scale, ImageDraw.Draw(plan.faces)
    length, breadth = rng.uniform(17, 38) * scale, rng.uniform(12, 19) * scale
    along = along + _across(along) * rng.normal(0, 0.04)
    if not _is_clear(scene, plan, _box(centre, along, length + 8, breadth + 8)):
        return
    _cast(scene, _box(centre, along, length, breadth), rng.uniform(6, 10) * scale)
    colour, ribs = rng.choice(_ROOFS) * rng.uniform(0.85, 1.12), rng.choice([4.0, 2.6])
    for aside in (-_across(along), _across(along)):
        lit = 0.88 - 0.2 * float(scene.shade_xy @ aside) / float(np.hypot(*scene.shade_xy))
        face = _box(centre + aside * breadth / 4, along, length, breadth / 2)
        draw.polygon(_corners(face), plan.add(colour * lit, along, ribs, rng.uniform(0.02, 0.07)))
    if rng.random() < 0.2:  # solar panels
        panels = _box(centre + _across(along) * breadth / 4, along, length * 0.7, breadth * 0.3)
        draw.polygon(_corners(panels), plan.add((38, 48, 78), along, 5.0, 0.16))


def _draw_silo(scene: _Scene, plan: _Plan, centre: Points) -> None:
    """A round tower of concrete or steel with a lit cap."""
    radius, draw, east = scene.rng.uniform(6, 9) * scene.scale, ImageDraw.Draw(plan.faces), np.array([1.0, 0.0])
    if not _is_clear(scene, plan, _box(centre, east, radius * 2.4, radius * 2.4)):
        return
    steps = np.arange(24) * (2 * math.pi / 24)
    _cast(scene, centre + radius * np.stack([np.cos(steps), np.sin(steps)], 1), 14 * scene.scale)
    grey, cap = scene.rng.uniform(150, 200), centre - scene.shade_xy * radius * 0.25
    draw.ellipse(_disc(centre, radius), plan.add([grey * 0.86] * 3, east, 9.0, 0.0))
    draw.ellipse(_disc(cap, radius * 0.6), plan.add([grey * 1.1] * 3, east, 9.0, 0.0))


def _cast(scene: _Scene, outline: Points, height_px: float) -> None:
    """Darken what a wall of this height shades: the outline swept along the shadow."""
    draw = ImageDraw.Draw(scene.shadow)
    tip = outline + scene.shade_xy * height_px
    draw.polygon(_corners(tip), fill=255)
    for i in range(len(outline)):
        draw.polygon(_corners(np.array([outline[i - 1], outline[i], tip[i], tip[i - 1]])), fill=255)


def _roof(scene: _Scene, face_hw: npt.NDArray[np.int32], looks: npt.NDArray[Any]) -> None:
    """Colour the roof faces, with tiles or sheets as fine ribs."""
    where = face_hw > 0
    look = looks[face_hw[where]]
    y, x = np.nonzero(where)
    along = x.astype(np.float32) * look["ridge"][:, 0] + y.astype(np.float32) * look["ridge"][:, 1]
    light = 1 + look["contrast"] * _wave(along / look["period"]) + 0.03 * scene.noise(3)[where]
    scene.paint(where, look["colour"] * light[:, None], BUILDING)


# ---------------------------------------------------------------- trees


def _plant_trees(scene: _Scene, borders: list[_Border]) -> None:
    """Woods, hedgerows, orchards and single trees, each crown shaded and casting a shadow."""
    rng = scene.rng
    stands = [_wood(scene) for _ in range(rng.poisson(0.8 * scene.share))]
    stands += [_orchard(scene) for _ in range(rng.poisson(0.22 * scene.share))]
    stands += [_hedge(scene, border) for border in borders if rng.random() < 0.3]
    stands.append(_singles(scene, rng.poisson(9 * scene.share)))
    crowns = np.concatenate(stands)
    if len(crowns):
        _draw_crowns(scene, crowns[np.argsort(crowns[:, 2], kind="stable")])


def _wood(scene: _Scene) -> Points:
    """(N, 3) crowns x, y, radius, packed inside a ragged outline."""
    rng, scale = scene.rng, scene.scale
    reach, step = rng.uniform(24, 62) * scale, 7.5 * scale
    grid = np.stack(np.meshgrid(np.arange(-reach, reach, step), np.arange(-reach, reach, step)), -1).reshape(-1, 2)
    spots = grid + rng.uniform(-0.5, 0.5, grid.shape) * step
    turn = np.arctan2(spots[:, 1], spots[:, 0])
    edge = reach * (0.8 + 0.2 * np.sin(2 * turn + rng.uniform(0, 6)) + 0.12 * np.sin(5 * turn + rng.uniform(0, 6)))
    spots = spots[np.hypot(spots[:, 0], spots[:, 1] * rng.uniform(1, 1.6)) < edge]
    centre = rng.random(2) * scene.size_xy
    return np.column_stack([spots + centre, rng.uniform(4.5, 9.5, len(spots)) * scale])


def _orchard(scene: _Scene) -> Points:
    """(N, 3) crowns in rows and columns."""
    rng, scale = scene.rng, scene.scale
    step, radius = rng.uniform(13, 18) * scale, rng.uniform(4.6, 6.2) * scale
    rows, columns = rng.integers(3, 7, 2)
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns)), -1).reshape(-1, 2) * step
    spots = grid @ _spin(rng) + rng.random(2) * scene.size_xy + rng.normal(0, 0.7, grid.shape)
    return np.column_stack([spots, radius * rng.uniform(0.85, 1.15, len(spots))])


def _hedge(scene: _Scene, border: _Border) -> Points:
    """(N, 3) crowns along a stretch of a border, with gaps."""
    rng, scale = scene.rng, scene.scale
    aside = _across(border.line[1] - border.line[0]) * rng.uniform(6, 10) * scale * rng.choice([-1, 1])
    line = np.array(scene.bend(border.line)) + aside
    steps = [_walk(a, b, 4.5 * scale) for a, b in pairwise(line)]
    spots = np.concatenate(steps)
    stretch = np.sort(rng.integers(0, len(spots) + 1, 2))
    spots = spots[stretch[0] : stretch[1]]
    spots = spots[rng.random(len(spots)) < 0.9]
    return np.column_stack([spots + rng.normal(0, 1.0, spots.shape), rng.uniform(3.6, 6.8, len(spots)) * scale])


def _singles(scene: _Scene, count: int) -> Points:
    """(N, 3) crowns anywhere."""
    spots = scene.rng.random((count, 2)) * scene.size_xy
    return np.column_stack([spots, scene.rng.uniform(4, 9.5, count) * scene.scale])


def _draw_crowns(scene: _Scene, crowns: Points) -> None:
    """Crowns of growing size over each other: four discs each, brighter towards the sun."""
    rng, sheet = scene.rng, scene.sheet("RGB")
    draw, ground = ImageDraw.Draw(sheet), ImageDraw.Draw(scene.shadow)
    sunward = -scene.shade_xy / float(np.hypot(*scene.shade_xy))
    for x, y, radius in crowns[_is_free(scene, crowns)]:
        spot, tint = np.array([x, y]), int(rng.integers(1, 255))
        for share in (0.5, 1.0):
            ground.ellipse(_disc(spot + scene.shade_xy * radius * 1.5 * share, radius * 0.95), fill=255)
        for size, shift, shade in ((1.0, 0.0, 70), (0.8, 0.2, 120), (0.55, 0.36, 175), (0.28, 0.5, 225)):
            draw.ellipse(_disc(spot + sunward * radius * shift, radius * size), fill=(shade, tint, 0))
    _leaf(scene, np.asarray(sheet))


def _is_free(scene: _Scene, crowns: Points) -> Bool:
    """(N,) False for crowns that would stand on water, a road or a roof, or wholly outside."""
    x, y = np.rint(crowns[:, 0]).astype(int), np.rint(crowns[:, 1]).astype(int)
    inside = (x > -12) & (y > -12) & (x < scene.width + 12) & (y < scene.height + 12)
    under = scene.label_hw[np.clip(y, 0, scene.height - 1), np.clip(x, 0, scene.width - 1)]
    free: Bool = inside & ~np.isin(under, (WATER, ROAD, BUILDING))
    return free


def _leaf(scene: _Scene, drawn_hwc: UInt8) -> None:
    """Give the drawn discs leaves: a ragged outline, speckled light, a tint of their own."""
    rng = scene.rng
    y, x = np.ogrid[0 : scene.height, 0 : scene.width]
    y = np.clip(np.rint(y + 1.1 * scene.noise(3.5)).astype(int), 0, scene.height - 1)
    x = np.clip(np.rint(x + 1.1 * scene.noise(3.5)).astype(int), 0, scene.width - 1)
    drawn = drawn_hwc[y, x]
    where = drawn[..., 0] > 0
    shade, tint = drawn[where, 0].astype(np.float32)[:, None] / 255, drawn[where, 1].astype(np.float32)[:, None] / 255
    dark, warm = np.array([46, 70, 38], np.float32), np.array([104, 112, 54], np.float32)
    leaf = dark + (warm - dark) * (tint * np.float32(rng.uniform(0.3, 0.9)))
    speckle = scene.noise(2.0)[where][:, None]
    scene.paint(where, leaf * (0.5 + 1.15 * shade) * (1 + 0.11 * speckle), TREE)


# ---------------------------------------------------------------- camera


def _photograph(scene: _Scene) -> UInt8:
    """(H, W, 3) what the camera makes of the scene: shadows, light, haze, a colour cast, blur and sensor noise."""
    rng = scene.rng
    ground = (scene.label_hw != TREE) & (scene.label_hw != BUILDING)
    soft = _blurred(scene.shadow, 0.9) * ground
    dim = np.array([0.60, 0.56, 0.48], np.float32) * np.float32(rng.uniform(0.8, 1.1))
    light = 1 + 0.05 * scene.noise(150) + _slope(scene) * np.float32(rng.uniform(0, 0.12))
    colour = scene.colour_hwc * (1 - soft[..., None] * dim) * light[..., None]
    haze = np.float32(rng.uniform(0, 0.2))
    cast = rng.normal(1, 0.025, 3).astype(np.float32) * np.float32(rng.uniform(0.88, 1.16))
    colour = (colour * (1 - haze) + np.array([176, 186, 198], np.float32) * haze) * cast
    blurred = PILImage.fromarray(np.clip(colour, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(0.45, 0.85))
    )
    grain = rng.standard_normal((scene.height, scene.width, 3), np.float32) * np.float32(rng.uniform(1, 4.5))
    return np.clip(np.rint(np.asarray(blurred, np.float32) + grain), 0, 255).astype(np.uint8)


def _slope(scene: _Scene) -> Float32:
    """(H, W) from about -1 to 1 across the image, in a random direction."""
    turn = scene.rng.uniform(0, 2 * math.pi)
    y, x = np.ogrid[0 : scene.height, 0 : scene.width]
    down = (y / scene.height - 0.5) * math.sin(turn) + (x / scene.width - 0.5) * math.cos(turn)
    return (2 * down).astype(np.float32)


# ---------------------------------------------------------------- data sets


def write_folder(url: str, count: int, *, size_px: int, seed: int, with_labels: bool = False, workers: int = 1) -> None:
    """Write `images/farm_000000.jpg` and so on under a folder.

    Args:
        url: folder, local or in an object store.
        count: number of images; image i is `generate(seed + i)`.
        size_px: height and width, pixels.
        seed: of the first image.
        with_labels: also write `labels/farm_000000.png`, grey, value = class id.
        workers: processes that generate images.
    """
    for index, jpeg in enumerate(_jpegs(count, size_px=size_px, seed=seed, workers=workers)):
        objects.put(objects.join(url, "images", _name(index, "jpg")), jpeg)
        if with_labels:
            label = PILImage.fromarray(generate_scene(seed + index, height=size_px, width=size_px).label_hw)
            objects.put(objects.join(url, "labels", _name(index, "png")), _encoded(label, "PNG"))


def write_tar(url: str, count: int, *, size_px: int, seed: int, per_shard: int = 256, workers: int = 1) -> None:
    """Write the images of `write_folder` as WebDataset shards `farm-000.tar` and so on, `per_shard` in each."""
    jpegs = _jpegs(count, size_px=size_px, seed=seed, workers=workers)
    for number, rows in enumerate(_shards(jpegs, per_shard)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, jpeg in rows:
                member = tarfile.TarInfo(name)
                member.size = len(jpeg)
                tar.addfile(member, io.BytesIO(jpeg))
        objects.put(objects.join(url, f"farm-{number:03}.tar"), buffer.getvalue())


def write_parquet(url: str, count: int, *, size_px: int, seed: int, per_shard: int = 256, workers: int = 1) -> None:
    """Write the images of `write_folder` as `farm-000.parquet` and so on, the way Hugging Face stores images.

    Each row has one column `image`, a struct of `bytes` and `path`.
    """
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    jpegs = _jpegs(count, size_px=size_px, seed=seed, workers=workers)
    for number, rows in enumerate(_shards(jpegs, per_shard)):
        column = pa.array([{"bytes": jpeg, "path": name} for name, jpeg in rows], image)
        buffer = io.BytesIO()
        pq.write_table(pa.table({"image": column}), buffer)
        objects.put(objects.join(url, f"farm-{number:03}.parquet"), buffer.getvalue())


def encode_jpeg(sample: Scene) -> bytes:
    """The image as cameras leave it: JPEG of quality 88."""
    return _encoded(PILImage.fromarray(sample.image_hwc), "JPEG", quality=88)


def scene_png(sample: Scene) -> bytes:
    """The image without loss."""
    return _encoded(PILImage.fromarray(sample.image_hwc), "PNG")


def _jpegs(count: int, *, size_px: int, seed: int, workers: int) -> Iterator[bytes]:
    """The encoded images in order, however many processes make them."""
    make, seeds = partial(_jpeg, size_px=size_px), range(seed, seed + count)
    if workers == 1:
        yield from map(make, seeds)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(make, seeds, chunksize=8)


def _jpeg(seed: int, *, size_px: int) -> bytes:
    return encode_jpeg(generate_scene(seed, height=size_px, width=size_px))


def _encoded(image: PILImage.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _name(index: int, suffix: str) -> str:
    return f"farm_{index:06}.{suffix}"


def _shards(jpegs: Iterator[bytes], per_shard: int) -> Iterator[list[tuple[str, bytes]]]:
    """Named images in groups of `per_shard`, the last one smaller; one group in memory at a time."""
    named = ((_name(index, "jpg"), jpeg) for index, jpeg in enumerate(jpegs))
    while shard := list(islice(named, per_shard)):
        yield shard
