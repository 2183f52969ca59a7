"""Polygons of a mask that is cut into blocks and squares, against GDAL's polygons of the whole mask."""

from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from rasterio import features

from pipeline.assemble import layers as layers_module
from pipeline.assemble.layers import empty_layers
from pipeline.polygons.pieces import Pieces, block_pieces
from pipeline.polygons.seams import Seams
from pipeline.polygons.table import decode_open, encode_open
from pipeline.records import Window

CLASSES = 4


def polygons(ids: np.ndarray, block_px: int, square_px: int, *, simplify_px: float = 0.0, order: int = 1) -> Pieces:
    """Polygons of a mask, by squares of blocks; what squares leave open is stored and read again."""
    height, width = ids.shape
    whole, done = Seams(height, width), []
    corners = [(y, x) for y in range(0, height, square_px) for x in range(0, width, square_px)]
    for y, x in corners[::order]:
        square = Window(y, x, min(square_px, height - y), min(square_px, width - x))
        layers = empty_layers(square, maps=False)
        layers.ids_hw[:] = ids[y : y + square.height, x : x + square.width]
        seams = Seams(height, width)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers_module, "BLOCK_PX", block_px)
            blocks = list(layers.blocks())
        done += [seams.add(*block_pieces(block, None, CLASSES, simplify_px=simplify_px)) for block in blocks]
        done.append(seams.settle([square]))
        done.append(whole.add(*decode_open(encode_open(*seams.open()))))
    done.append(whole.settle([Window(0, 0, height, width)]))
    assert len(whole.open()[0]) == 0
    return Pieces.concat(done)


def by_gdal(ids: np.ndarray) -> list[tuple[int, Any]]:
    found = features.shapes(ids, mask=ids < CLASSES, connectivity=4)
    return [(int(value), shapely.geometry.shape(shape)) for shape, value in found]


def in_order(found: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    return sorted(found, key=lambda one: (one[0], one[1].bounds, one[1].area))


def random_mask(seed: int, scale: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(5, 40, 2)
    ids = rng.integers(0, CLASSES, (height, width), np.uint8)
    ids[rng.random(ids.shape) < 0.1] = 255
    return np.kron(ids, np.ones((scale, scale), np.uint8))


@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 3]),
    st.sampled_from([8, 16]),
    st.sampled_from([16, 32, 128]),
    st.sampled_from([1, -1]),
)
def test_cut_in_any_way_and_order_the_polygons_are_those_of_the_whole_mask(
    seed: int, scale: int, block_px: int, square_px: int, order: int
) -> None:
    ids = random_mask(seed, scale)
    ours = polygons(ids, block_px, square_px, order=order)
    expected = in_order(by_gdal(ids))
    found = in_order(list(zip(ours.class_ids.tolist(), ours.shapes, strict=True)))
    assert len(found) == len(expected)
    for (class_id, shape), (value, other) in zip(found, expected, strict=True):
        assert class_id == value
        assert shape.geom_type == "Polygon"
        assert shape.equals(other)


@given(st.integers(0, 2**31))
def test_polygons_are_valid_and_have_their_pixels_for_area(seed: int) -> None:
    ids = random_mask(seed, 2)
    found = polygons(ids, 8, 16)
    assert shapely.is_valid(found.shapes).all()
    np.testing.assert_array_equal(shapely.area(found.shapes), found.pixels)
    assert found.pixels.sum() == (ids < CLASSES).sum()


def test_squares_in_another_order_give_the_same_polygons_with_the_same_points() -> None:
    ids = random_mask(5, 3)
    one, other = polygons(ids, 16, 32), polygons(ids, 16, 32)
    assert shapely.to_wkb(one.shapes).tolist() == shapely.to_wkb(other.shapes).tolist()


@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.5, 4.0]))
def test_simplified_polygons_leave_no_gap_and_no_overlap(seed: int, tolerance_px: float) -> None:
    ids = random_mask(seed, 5)
    found = polygons(ids, 32, 64, simplify_px=tolerance_px)
    exact = polygons(ids, 32, 64)
    with_data = shapely.union_all(exact.shapes)
    assert shapely.is_valid(found.shapes).all()
    union = shapely.union_all(found.shapes)
    overlaps = shapely.area(found.shapes).sum() - union.area
    assert abs(overlaps) < 1e-6 * ids.size
    border = 4 * tolerance_px * shapely.length(with_data)
    assert union.symmetric_difference(with_data).area <= border
    np.testing.assert_array_equal(np.sort(found.pixels), np.sort(exact.pixels))


def test_without_nodata_simplified_polygons_cover_the_raster_exactly() -> None:
    y, x = np.mgrid[0:130, 0:170]
    ids = ((x + 2 * y) // 23 % CLASSES).astype(np.uint8)  # borders are stairs
    found, exact = polygons(ids, 32, 64, simplify_px=2), polygons(ids, 32, 64)
    assert shapely.area(found.shapes).sum() == pytest.approx(ids.size, rel=1e-9)
    assert shapely.union_all(found.shapes).area == pytest.approx(ids.size, rel=1e-9)
    points = [shapely.get_num_coordinates(one.shapes).sum() for one in (found, exact)]
    assert points[0] < 0.5 * points[1]
