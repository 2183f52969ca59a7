"""Trees of the generated farmland: woods, hedgerows, orchards and single trees."""

from itertools import pairwise

import numpy as np
from PIL import ImageDraw

from pipeline.datasets.farmland.canvas import BUILDING, ROAD, TREE, WATER, Border, FieldCanvas
from pipeline.datasets.farmland.geometry import Points, disc_box, perpendicular, points_along, random_rotation
from pipeline.records import Bool, UInt8


def paint_trees(canvas: FieldCanvas, borders: list[Border]) -> None:
    """Paint woods, hedgerows, orchards and single trees; every crown is shaded and casts a shadow."""
    rng = canvas.rng
    stands = [_wood(canvas) for _ in range(rng.poisson(0.8 * canvas.share))]
    stands += [_orchard(canvas) for _ in range(rng.poisson(0.22 * canvas.share))]
    stands += [_hedge(canvas, border) for border in borders if rng.random() < 0.3]
    stands.append(_single_trees(canvas, rng.poisson(9 * canvas.share)))
    crowns = np.concatenate(stands)
    if len(crowns):
        _draw_crowns(canvas, crowns[np.argsort(crowns[:, 2], kind="stable")])


def _wood(canvas: FieldCanvas) -> Points:
    """Crowns of a wood, (N, 3) x, y, radius, packed inside a ragged outline."""
    rng, scale = canvas.rng, canvas.scale
    reach, step = rng.uniform(24, 62) * scale, 7.5 * scale
    grid = np.stack(np.meshgrid(np.arange(-reach, reach, step), np.arange(-reach, reach, step)), -1).reshape(-1, 2)
    spots = grid + rng.uniform(-0.5, 0.5, grid.shape) * step
    turn = np.arctan2(spots[:, 1], spots[:, 0])
    edge = reach * (0.8 + 0.2 * np.sin(2 * turn + rng.uniform(0, 6)) + 0.12 * np.sin(5 * turn + rng.uniform(0, 6)))
    spots = spots[np.hypot(spots[:, 0], spots[:, 1] * rng.uniform(1, 1.6)) < edge]
    centre = rng.random(2) * canvas.size_xy
    return np.column_stack([spots + centre, rng.uniform(4.5, 9.5, len(spots)) * scale])


def _orchard(canvas: FieldCanvas) -> Points:
    """Crowns of an orchard, (N, 3), in rows and columns."""
    rng, scale = canvas.rng, canvas.scale
    step, radius = rng.uniform(13, 18) * scale, rng.uniform(4.6, 6.2) * scale
    rows, columns = rng.integers(3, 7, 2)
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns)), -1).reshape(-1, 2) * step
    spots = grid @ random_rotation(rng) + rng.random(2) * canvas.size_xy + rng.normal(0, 0.7, grid.shape)
    return np.column_stack([spots, radius * rng.uniform(0.85, 1.15, len(spots))])


def _hedge(canvas: FieldCanvas, border: Border) -> Points:
    """Crowns of a hedge, (N, 3), along a section of a border, with gaps."""
    rng, scale = canvas.rng, canvas.scale
    aside = perpendicular(border.line[1] - border.line[0]) * rng.uniform(6, 10) * scale * rng.choice([-1, 1])
    line = np.array(canvas.bend(border.line)) + aside
    steps = [points_along(a, b, 4.5 * scale) for a, b in pairwise(line)]
    spots = np.concatenate(steps)
    stretch = np.sort(rng.integers(0, len(spots) + 1, 2))
    spots = spots[stretch[0] : stretch[1]]
    spots = spots[rng.random(len(spots)) < 0.9]
    return np.column_stack([spots + rng.normal(0, 1.0, spots.shape), rng.uniform(3.6, 6.8, len(spots)) * scale])


def _single_trees(canvas: FieldCanvas, count: int) -> Points:
    """Crowns of single trees, (N, 3), at random places."""
    spots = canvas.rng.random((count, 2)) * canvas.size_xy
    return np.column_stack([spots, canvas.rng.uniform(4, 9.5, count) * canvas.scale])


def _draw_crowns(canvas: FieldCanvas, crowns: Points) -> None:
    """Draw crowns by ascending size: four discs each, brighter towards the sun."""
    rng, sheet = canvas.rng, canvas.sheet("RGB")
    draw, ground = ImageDraw.Draw(sheet), ImageDraw.Draw(canvas.shadow)
    sunward = -canvas.shade_xy / float(np.hypot(*canvas.shade_xy))
    for x, y, radius in crowns[_is_free(canvas, crowns)]:
        spot, tint = np.array([x, y]), int(rng.integers(1, 255))
        for share in (0.5, 1.0):
            ground.ellipse(disc_box(spot + canvas.shade_xy * radius * 1.5 * share, radius * 0.95), fill=255)
        for size, shift, shade in ((1.0, 0.0, 70), (0.8, 0.2, 120), (0.55, 0.36, 175), (0.28, 0.5, 225)):
            draw.ellipse(disc_box(spot + sunward * radius * shift, radius * size), fill=(shade, tint, 0))
    _paint_leaves(canvas, np.asarray(sheet))


def _is_free(canvas: FieldCanvas, crowns: Points) -> Bool:
    """(N,) bool, False for crowns on water, a road or a roof, or wholly outside the image."""
    x, y = np.rint(crowns[:, 0]).astype(int), np.rint(crowns[:, 1]).astype(int)
    inside = (x > -12) & (y > -12) & (x < canvas.width + 12) & (y < canvas.height + 12)
    under = canvas.label_hw[np.clip(y, 0, canvas.height - 1), np.clip(x, 0, canvas.width - 1)]
    free: Bool = inside & ~np.isin(under, (WATER, ROAD, BUILDING))
    return free


def _paint_leaves(canvas: FieldCanvas, drawn_hwc: UInt8) -> None:
    """Paint leaves on the discs: a ragged outline, speckled light and a tint of each crown."""
    rng = canvas.common(TREE)
    y, x = np.ogrid[0 : canvas.height, 0 : canvas.width]
    y = np.clip(np.rint(y + 1.1 * canvas.noise(3.5)).astype(int), 0, canvas.height - 1)
    x = np.clip(np.rint(x + 1.1 * canvas.noise(3.5)).astype(int), 0, canvas.width - 1)
    drawn = drawn_hwc[y, x]
    where = drawn[..., 0] > 0
    shade, tint = drawn[where, 0].astype(np.float32)[:, None] / 255, drawn[where, 1].astype(np.float32)[:, None] / 255
    dark, warm = np.array([46, 70, 38], np.float32), np.array([104, 112, 54], np.float32)
    leaf = dark + (warm - dark) * (tint * np.float32(rng.uniform(0.3, 0.9)))
    speckle = canvas.noise(2.0)[where][:, None]
    canvas.paint(where, leaf * (0.5 + 1.15 * shade) * (1 + 0.11 * speckle), TREE)
