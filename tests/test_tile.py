from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import TileConfig
from pipeline.stitch import Canvas
from pipeline.tile import ALIGN_PX, blend_window, cut, plan_tiles

CFG = TileConfig(tile_px=64, overlap_px=32, bucket_px=32)
sides = st.integers(1, 300)


@given(sides, sides)
def test_tiles_cover_every_pixel_and_are_equal(height: int, width: int) -> None:
    grid = plan_tiles(height, width, CFG)
    seen = np.zeros((height, width), bool)
    for y, x in grid.corners:
        seen[y : y + grid.tile_height, x : x + grid.tile_width] = True
    assert seen.all()
    assert grid.tile_height <= CFG.tile_px
    assert grid.tile_width <= CFG.tile_px


@given(sides, sides)
def test_corners_are_aligned_distinct_and_neighbours_overlap_enough(height: int, width: int) -> None:
    grid = plan_tiles(height, width, CFG)
    assert len(set(grid.corners)) == len(grid.corners)
    assert all(y % ALIGN_PX == 0 and x % ALIGN_PX == 0 for y, x in grid.corners)
    columns = sorted({x for _, x in grid.corners})
    assert all(b - a <= CFG.tile_px - CFG.overlap_px for a, b in pairwise(columns))


@given(sides, sides)
def test_padding_only_repeats_pixels_of_the_image(height: int, width: int) -> None:
    pixels = np.arange(height * width * 3, dtype=np.int64).reshape(height, width, 3).astype(np.uint8)
    grid = plan_tiles(height, width, CFG)
    tile = cut(pixels, grid, len(grid.corners) - 1)
    y, x = grid.corners[-1]
    assert tile.shape == (grid.tile_height, grid.tile_width, 3)
    np.testing.assert_array_equal(tile[: height - y, : width - x], pixels[y:, x:])
    assert set(tile[..., 0].ravel()) <= set(pixels[..., 0].ravel())


@given(sides, sides, st.sampled_from([4, 8, 16]), st.randoms(use_true_random=False))
def test_cut_then_stitch_is_identity_at_the_stride(height: int, width: int, stride: int, random) -> None:
    """A network that only looks at every stride-th pixel must come back unchanged, in whatever order tiles arrive."""
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    grid = plan_tiles(height, width, CFG)
    canvas = Canvas(grid, num_classes=3, stride=stride)
    order = list(range(len(grid.corners)))
    random.shuffle(order)
    for index in order:
        canvas.add(index, cut(pixels, grid, index)[::stride, ::stride].transpose(2, 0, 1).astype(np.float32) / 32)
    expected = pixels[::stride, ::stride].transpose(2, 0, 1).astype(np.float32) / 32
    expected -= expected.max(axis=0)
    np.testing.assert_allclose(canvas.finish(), expected, atol=0.01)


def test_a_canvas_with_missing_tiles_refuses_to_finish() -> None:
    canvas = Canvas(plan_tiles(100, 100, CFG), num_classes=2, stride=4)
    canvas.add(0, np.zeros((2, 16, 16), np.float32))
    with pytest.raises(ValueError, match="never added"):
        canvas.finish()


def test_the_blend_window_is_symmetric_positive_and_largest_in_the_middle() -> None:
    window = blend_window(16)
    np.testing.assert_allclose(window, window[::-1], rtol=1e-5)
    assert window.min() > 0
    assert window.argmax() in (7, 8)
