from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geotiff.pyramid import NODATA, TILE_PX, count_ids, decode_tile, encode_tiles, halve, level_sizes
from tests.support.examples import examples


def modes_by_counting(ids_hw: np.ndarray) -> np.ndarray:
    """Mode of each 2x2 block, pixel by pixel; of a tie the one that comes first."""
    height, width = ids_hw.shape
    padded = np.pad(ids_hw, ((0, height % 2), (0, width % 2)), mode="edge")
    half = np.zeros((len(padded) // 2, padded.shape[1] // 2), np.uint8)
    for y, x in np.ndindex(half.shape):
        block = padded[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel().tolist()
        half[y, x] = max(block, key=block.count)  # `max` keeps the first of equals
    return half


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 99))
@examples(100)
def test_an_overview_has_the_mode_of_each_block(height, width, seed) -> None:
    ids = np.random.default_rng(seed).choice(np.array([0, 1, 2, NODATA], np.uint8), (height, width))
    np.testing.assert_array_equal(halve(ids), modes_by_counting(ids))


def test_strips_of_a_large_array_are_halved_as_the_whole() -> None:
    ids = np.random.default_rng(0).integers(0, 3, (1501, 37), np.uint8)
    np.testing.assert_array_equal(halve(ids), modes_by_counting(ids))


def test_tiles_survive_compression_and_cover_the_array() -> None:
    ids = np.random.default_rng(0).integers(0, 5, (513, 1300), np.uint8)
    tiles = list(encode_tiles(ids))
    assert len(tiles) == 2 * 3
    whole = np.block([[decode_tile(tile) for tile in tiles[:3]], [decode_tile(tile) for tile in tiles[3:]]])
    np.testing.assert_array_equal(whole[:513, :1300], ids)
    assert (whole[513:] == NODATA).all()
    assert (whole[:, 1300:] == NODATA).all()


def test_a_tile_without_data_is_empty() -> None:
    ids = np.full((TILE_PX, 2 * TILE_PX), NODATA, np.uint8)
    ids[3, TILE_PX + 5] = 0
    first, second = encode_tiles(ids)
    assert (first, bool(second)) == (b"", True)
    assert (decode_tile(first) == NODATA).all()


@pytest.mark.parametrize(("size", "levels"), [((1, 1), 1), ((512, 512), 1), ((513, 9), 2), ((20_000, 20_000), 7)])
def test_levels_are_halved_until_one_tile_holds_them(size, levels) -> None:
    sizes = level_sizes(*size)
    assert len(sizes) == levels
    assert max(sizes[-1]) <= TILE_PX
    for (height, width), (lower, narrower) in pairwise(sizes):
        assert (lower, narrower) == ((height + 1) // 2, (width + 1) // 2)


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 99))
@examples(50)
def test_ids_are_counted_as_numpy_counts_them(height, width, seed) -> None:
    ids = np.random.default_rng(seed).integers(0, 256, (height * 60, width), np.uint8)
    np.testing.assert_array_equal(count_ids(ids), np.bincount(ids.ravel(), minlength=256))
