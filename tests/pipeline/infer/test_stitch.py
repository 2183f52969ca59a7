import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.config import TileConfig
from pipeline.infer.stitch import BAND_CELLS, Canvas, to_half
from pipeline.infer.tile import TileGrid, blend_window, plan_tiles

CFG = TileConfig(tile_px=64, overlap_px=32, bucket_px=32)
STRIDES = st.sampled_from([4, 8, 16])
LOWEST = float(np.finfo(np.float16).min)


def stitched(grid: TileGrid, tiles: list[np.ndarray], stride: int) -> np.ndarray:
    canvas = Canvas(grid, num_classes=tiles[0].shape[0], stride=stride)
    for index, logits in enumerate(tiles):
        canvas.add(index, logits)
    return canvas.finish()


def tiles_of(grid: TileGrid, stride: int, dtype: type = np.float32) -> list[np.ndarray]:
    """Logits of two classes for each tile, different everywhere."""
    cells = -(-grid.tile_height // stride), -(-grid.tile_width // stride)
    return list(np.random.default_rng(0).normal(size=(len(grid.corners), 2, *cells)).astype(dtype))


@given(st.integers(65, 300), st.integers(65, 300), STRIDES)
def test_every_cell_is_the_mean_of_its_tiles_weighted_by_their_blend_windows(
    height: int, width: int, stride: int
) -> None:
    """The definition, with a weight of its own for every tile and cell."""
    grid = plan_tiles(height, width, CFG)
    tiles = tiles_of(grid, stride)
    rows, columns = tiles[0].shape[1:]
    window = blend_window(rows)[:, None] * blend_window(columns)
    weighted, weights = np.zeros((2, 500, 500)), np.zeros((500, 500))
    for (y, x), logits in zip(grid.corners, tiles, strict=True):
        here = slice(y // stride, y // stride + rows), slice(x // stride, x // stride + columns)
        weighted[:, *here] += window * logits
        weights[here] += window
    cells = -(-height // stride), -(-width // stride)
    expected = weighted[:, : cells[0], : cells[1]] / weights[: cells[0], : cells[1]]
    found = stitched(grid, tiles, stride)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(st.integers(1, 300), st.integers(1, 300), STRIDES, st.sampled_from([np.float16, np.float32]))
def test_tiles_of_one_value_give_that_value(height: int, width: int, stride: int, dtype: type) -> None:
    grid = plan_tiles(height, width, CFG)
    found = stitched(grid, [np.full_like(tile, 3) for tile in tiles_of(grid, stride, dtype)], stride)
    assert found.shape == (2, -(-height // stride), -(-width // stride))
    np.testing.assert_allclose(found, 3, rtol=1e-3 if dtype is np.float16 else 1e-5)


def test_logits_of_a_single_tile_are_passed_on_as_they_are() -> None:
    grid = plan_tiles(40, 50, CFG)
    (tile,) = tiles_of(grid, 4, np.float16)
    found = stitched(grid, [tile], 4)
    assert found.dtype == np.float16
    assert np.shares_memory(found, tile)
    np.testing.assert_array_equal(found, tile[:, :10, :13])


def test_the_message_of_missing_tiles_counts_them() -> None:
    grid = plan_tiles(100, 100, CFG)
    canvas = Canvas(grid, num_classes=2, stride=4)
    canvas.add(0, tiles_of(grid, 4)[0])
    with pytest.raises(ValueError, match=f"{len(grid.corners) - 1} of {len(grid.corners)} tiles were never added"):
        canvas.finish()


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 3 * BAND_CELLS), st.integers(1, 3)),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_the_largest_logit_of_a_cell_becomes_0_and_the_others_keep_their_distance(scores: np.ndarray) -> None:
    """As far as float16 reaches: a distance beyond it is its largest."""
    found = to_half(scores)
    assert found.dtype == np.float16
    assert (found.max(axis=0) == 0).all()
    distance = (scores - scores.max(axis=0)).astype(np.float64)
    np.testing.assert_allclose(found, np.maximum(distance, LOWEST), rtol=1e-3, atol=1e-3)


def test_half_precision_scores_are_copied_for_they_may_be_a_view_of_a_batch() -> None:
    scores = np.full((2, 3, 4), -1.5, np.float16)
    found = to_half(scores)
    assert found.dtype == np.float16
    assert not np.shares_memory(found, scores)
    np.testing.assert_array_equal(found, scores)
