from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.config import TileConfig
from pipeline.infer.stitch import Canvas, to_half
from pipeline.infer.tile import ALIGN_PX, blend_window, cut_tile, plan_tiles
from pipeline.records import LEFT_WHOLE

CFG = TileConfig(tile_px=64, overlap_px=32, bucket_px=32)
WHOLE = TileConfig(mode="whole", tile_px=64, overlap_px=32)
sides = st.integers(1, 300)


@given(sides, sides, st.booleans())
def test_tiles_cover_every_pixel_and_are_equal(height: int, width: int, align_corners: bool) -> None:
    grid = plan_tiles(height, width, CFG, align_corners=align_corners)
    seen = np.zeros((height, width), bool)
    for y, x in grid.corners:
        seen[y : y + grid.tile_height, x : x + grid.tile_width] = True
    assert seen.all()
    assert {length % ALIGN_PX for length in (grid.tile_height, grid.tile_width)} == {int(align_corners)}
    assert max(grid.tile_height, grid.tile_width) <= CFG.tile_px * LEFT_WHOLE + CFG.bucket_px


@given(sides, sides, st.booleans())
def test_corners_are_aligned_distinct_and_neighbours_overlap_enough(
    height: int, width: int, align_corners: bool
) -> None:
    grid = plan_tiles(height, width, CFG, align_corners=align_corners)
    assert len(set(grid.corners)) == len(grid.corners)
    assert all(y % ALIGN_PX == 0 and x % ALIGN_PX == 0 for y, x in grid.corners)
    columns = sorted({x for _, x in grid.corners})
    assert all(b - a <= CFG.tile_px - CFG.overlap_px for a, b in pairwise(columns))


@given(sides, sides, st.booleans())
def test_a_whole_image_is_one_tile_with_as_little_padding_as_the_strides_allow(
    height: int, width: int, align_corners: bool
) -> None:
    grid = plan_tiles(height, width, WHOLE, align_corners=align_corners)
    assert grid.corners == ((0, 0),)
    for size, tile in ((height, grid.tile_height), (width, grid.tile_width)):
        assert tile % ALIGN_PX == int(align_corners)
        assert size <= tile < size + ALIGN_PX + align_corners


@pytest.mark.parametrize(("size", "tile"), [(513, 513), (321, 321), (512, 513), (514, 545)])
def test_the_crops_of_the_papers_need_no_padding(size: int, tile: int) -> None:
    assert plan_tiles(size, size, WHOLE, align_corners=True).tile_height == tile


@given(sides, sides)
def test_padding_only_repeats_pixels_of_the_image(height: int, width: int) -> None:
    pixels = np.arange(height * width * 3, dtype=np.int64).reshape(height, width, 3).astype(np.uint8)
    grid = plan_tiles(height, width, CFG)
    tile = cut_tile(pixels, grid, len(grid.corners) - 1)
    y, x = grid.corners[-1]
    assert tile.shape == (grid.tile_height, grid.tile_width, 3)
    np.testing.assert_array_equal(tile[: height - y, : width - x], pixels[y:, x:])
    assert set(tile[..., 0].ravel()) <= set(pixels[..., 0].ravel())


@given(sides, sides, st.sampled_from([1, 4, 8, 16]), st.booleans(), st.randoms(use_true_random=False))
def test_cut_then_stitch_is_identity_at_the_stride(
    height: int, width: int, stride: int, align_corners: bool, random
) -> None:
    """A network that only looks at every stride-th pixel must come back unchanged, in whatever order tiles arrive."""
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    grid = plan_tiles(height, width, CFG, align_corners=align_corners)
    canvas = Canvas(grid, num_classes=3, stride=stride)
    order = list(range(len(grid.corners)))
    random.shuffle(order)
    for index in order:
        canvas.add(index, cut_tile(pixels, grid, index)[::stride, ::stride].transpose(2, 0, 1).astype(np.float32) / 32)
    expected = pixels[::stride, ::stride].transpose(2, 0, 1).astype(np.float32) / 32
    np.testing.assert_allclose(canvas.finish(), expected, atol=1e-5)


@given(arrays(np.float32, (3, 5, 130), elements=st.floats(-100, 100, width=32)))
def test_half_precision_keeps_the_differences_between_classes(scores: np.ndarray) -> None:
    logits = to_half(scores.transpose(0, 2, 1))
    assert logits.dtype == np.float16
    assert (logits.max(axis=0) == 0).all()
    expected = scores - scores.max(axis=0)
    np.testing.assert_allclose(logits.transpose(0, 2, 1), expected, rtol=1e-3, atol=1e-3)


def test_half_precision_does_not_overflow() -> None:
    assert np.isfinite(to_half(np.array([0, -1e30, 1e30], np.float32).reshape(3, 1, 1))).all()


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
