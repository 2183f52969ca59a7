"""Counts of zones against GDAL's rasterisation of each zone by itself."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from rasterio import features

from pipeline.assemble.layers import Block
from pipeline.records import Window
from pipeline.zones.counts import count_pixels, zone_runs, zone_sums

CLASSES = 5


def block(seed: int, window: Window) -> Block:
    rng = np.random.default_rng(seed)
    ids = np.kron(rng.integers(0, CLASSES + 1, (30, 30), np.uint8), np.ones((3, 3), np.uint8))
    ids[rng.random(ids.shape) < 0.05] = 255
    return Block(window, np.ascontiguousarray(ids[: window.height, : window.width]), None, None, ())


def zones(seed: int, count: int, window: Window) -> np.ndarray:
    """Polygons with holes and several parts in and around a window; no vertex at a pixel's middle."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        turns = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
        radii = rng.uniform(1, 50) * rng.uniform(0.3, 1, len(turns))
        x, y = window.x + rng.uniform(-10, window.width + 10), window.y + rng.uniform(-10, window.height + 10)
        shape = shapely.Polygon(np.stack([x + radii * np.cos(turns), y + radii * np.sin(turns)], axis=1)).buffer(0)
        hole = shapely.Point(x, y).buffer(rng.uniform(0.5, 6))
        other = shapely.box(x + 60.3, y + 0.7, x + 71.9, y + 9.2)
        out.append(shapely.union_all([shape.difference(hole), other]))
    return np.array(out, object)


def burned(shape: Any, window: Window) -> np.ndarray:
    here = shapely.transform(shape, lambda xy: xy - (window.x, window.y))
    return features.rasterize([(here, 1)], (window.height, window.width), dtype="uint8").astype(bool)


@given(st.integers(0, 2**31), st.integers(1, 90), st.integers(1, 90))
def test_each_zone_counts_the_pixels_that_gdal_burns(seed: int, height: int, width: int) -> None:
    window = Window(700, 300, height, width)
    here, shapes = block(seed, window), zones(seed, 7, window)
    values = np.random.default_rng(seed).integers(0, 200, here.ids_hw.shape).astype(np.uint16)
    ((some, sums),) = zone_sums(here, shapes, {"value": values}, CLASSES)
    assert some == slice(0, 7)
    ids = np.minimum(here.ids_hw, CLASSES)
    for shape, pixels, value in zip(shapes, sums["pixels"], sums["value"], strict=True):
        inside = burned(shape, window)
        np.testing.assert_array_equal(pixels, np.bincount(ids[inside], minlength=CLASSES + 1))
        np.testing.assert_array_equal(value, np.bincount(ids[inside], values[inside], minlength=CLASSES + 1))


@given(st.integers(0, 2**31), st.integers(1, 89), st.integers(1, 89))
def test_counts_of_parts_of_a_block_add_up_to_those_of_the_whole(seed: int, y: int, x: int) -> None:
    window = Window(0, 0, 90, 90)
    whole, shapes = block(seed, window), zones(seed, 5, window)
    total = np.zeros((5, CLASSES + 1))
    for part in (Window(0, 0, y, x), Window(0, x, y, 90 - x), Window(y, 0, 90 - y, x), Window(y, x, 90 - y, 90 - x)):
        ids = np.ascontiguousarray(whole.ids_hw[part.y : part.y + part.height, part.x : part.x + part.width])
        for some, sums in zone_sums(Block(part, ids, None, None, ()), shapes, {}, CLASSES):
            total[some] += sums["pixels"]
    ((_, expected),) = zone_sums(whole, shapes, {}, CLASSES)
    np.testing.assert_array_equal(total, expected["pixels"])


def test_zones_that_share_a_border_share_no_pixel_and_leave_none_out() -> None:
    window = Window(0, 0, 60, 60)
    for step in (7.0, 7.5, 10.0):  # borders through middles and along edges of pixels
        edges = np.append(np.arange(0, 60, step), 60.0)
        cells = [
            shapely.box(left, top, right, bottom) for left, right in pairwise(edges) for top, bottom in pairwise(edges)
        ]
        ((_, sums),) = zone_sums(block(1, window), np.array(cells, object), {}, CLASSES)
        assert sums["pixels"].sum() == 3600


@given(st.integers(0, 2**31))
def test_the_pixels_of_whole_zones_are_those_of_a_window_that_holds_them(seed: int) -> None:
    window = Window(500, 500, 50, 50)
    shapes = zones(seed, 4, window)
    around = zone_runs(shapes, Window(300, 300, 500, 500))
    expected = np.bincount(around.zone, around.end - around.start, minlength=4)
    np.testing.assert_array_equal(count_pixels(shapes), expected)


def test_many_zones_with_many_classes_are_counted_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(0, 0, 90, 90)
    here, shapes = block(2, window), zones(2, 11, window)
    ((_, expected),) = zone_sums(here, shapes, {}, CLASSES)
    monkeypatch.setattr("pipeline.zones.counts._CELLS_AT_ONCE", 4 * (CLASSES + 1))
    parts = list(zone_sums(here, shapes, {}, CLASSES))
    assert [some for some, _ in parts] == [slice(0, 4), slice(4, 8), slice(8, 11)]
    np.testing.assert_array_equal(np.concatenate([sums["pixels"] for _, sums in parts]), expected["pixels"])
