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


@given(st.sampled_from([64, 128]), st.sampled_from([32, 64]), st.booleans())
def test_a_side_is_one_tile_up_to_five_quarters_of_a_tile_and_is_cut_from_the_next_pixel_on(
    tile_px: int, bucket_px: int, align_corners: bool
) -> None:
    cfg = TileConfig(tile_px=tile_px, overlap_px=32, bucket_px=bucket_px)
    limit = tile_px * 5 // 4
    assert LEFT_WHOLE == 1.25
    for size, whole in ((1, True), (tile_px, True), (tile_px + 1, True), (limit, True), (limit + 1, False)):
        grid = plan_tiles(size, tile_px, cfg, align_corners=align_corners)
        assert (len(grid.corners) == 1) == whole
        assert whole or grid.tile_height == tile_px + align_corners


@given(st.integers(1, 80), st.sampled_from([32, 64]), st.booleans())
def test_a_tile_of_a_whole_side_is_the_next_multiple_of_the_bucket(
    size: int, bucket_px: int, align_corners: bool
) -> None:
    cfg = TileConfig(tile_px=64, overlap_px=32, bucket_px=bucket_px)
    grid = plan_tiles(size, size, cfg, align_corners=align_corners)
    expected = next(side for side in range(bucket_px, 999, bucket_px) if side + align_corners >= size)
    assert (grid.tile_height, grid.tile_width) == (expected + align_corners,) * 2


@given(st.integers(1, 900), st.sampled_from([(64, 32), (128, 32), (128, 64), (192, 96)]), st.booleans())
def test_tiles_begin_a_tile_less_the_overlap_apart_but_for_the_last(
    size: int, cut: tuple[int, int], align_corners: bool
) -> None:
    tile_px, overlap_px = cut
    cfg = TileConfig(tile_px=tile_px, overlap_px=overlap_px, bucket_px=32)
    steps = np.diff([x for _, x in plan_tiles(1, size, cfg, align_corners=align_corners).corners])
    assert (steps[:-1] == tile_px - overlap_px).all()
    assert (steps[-1:] <= tile_px - overlap_px).all()


@given(st.integers(81, 600), st.sampled_from([64, 96]), st.booleans())
def test_the_last_tile_leaves_the_image_by_less_than_the_alignment(
    size: int, tile_px: int, align_corners: bool
) -> None:
    cfg = TileConfig(tile_px=tile_px, overlap_px=32, bucket_px=32)
    grid = plan_tiles(size, tile_px, cfg, align_corners=align_corners)
    ys = [y for y, _ in grid.corners]
    assert 0 <= ys[-1] + grid.tile_height - size < ALIGN_PX + align_corners or len(ys) == 1
    assert ys == sorted(ys)


def test_tiles_are_listed_row_by_row_and_sides_are_cut_apart_from_each_other() -> None:
    grid = plan_tiles(64, 128, CFG)
    assert (grid.height, grid.width, grid.tile_height, grid.tile_width) == (64, 128, 64, 64)
    assert grid.corners == ((0, 0), (0, 32), (0, 64))
    assert plan_tiles(128, 64, CFG).corners == ((0, 0), (32, 0), (64, 0))
    assert plan_tiles(128, 128, CFG).corners[:4] == ((0, 0), (0, 32), (0, 64), (32, 0))


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


def test_padding_reflects_the_last_rows_and_columns_nearest_first() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 25, 3)).astype(np.uint8)
    tile = cut_tile(pixels, plan_tiles(30, 25, CFG), 0)
    assert tile.shape == (32, 32, 3)
    np.testing.assert_array_equal(tile[30:, :25], pixels[:-3:-1])
    np.testing.assert_array_equal(tile[:30, 25:], pixels[:, :-8:-1])


def test_a_tile_inside_its_image_is_a_view_of_it() -> None:
    pixels = np.zeros((128, 128, 3), np.uint8)
    assert np.shares_memory(cut_tile(pixels, plan_tiles(128, 128, CFG), 0), pixels)


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


@given(st.integers(1, 600))
def test_the_blend_window_is_a_raised_cosine_over_its_floor(length: int) -> None:
    """sin^2 is (1 - cos) / 2: a cosine from 0.01 at the border to 1 in the middle, in single precision."""
    cosine = (1 - np.cos(2 * np.pi * (np.arange(length) + 0.5) / length)) / 2
    window = blend_window(length)
    assert window.dtype == np.float32
    np.testing.assert_allclose(window, 0.01 + 0.99 * cosine, atol=1e-6)


def test_the_blend_window_is_symmetric_positive_and_largest_in_the_middle() -> None:
    window = blend_window(16)
    np.testing.assert_allclose(window, window[::-1], rtol=1e-5)
    assert window.min() > 0
    assert window.argmax() in (7, 8)


@given(
    core=st.sampled_from([512, 1024]),
    halo=st.sampled_from([0, 32, 96, 160]),
    numbers=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    size=st.integers(300, 4000),
)
def test_windows_of_a_raster_share_its_tiles_but_for_the_outermost(core, halo, numbers, size) -> None:
    whole = {y for y, _ in plan_tiles(size, 64, CFG).corners}
    starts = [number * core for number in numbers if number * core < size]
    for start in starts:
        first, end = max(start - halo, 0), min(start + core + halo, size)
        corners = [y + first for y, _ in plan_tiles(end - first, 64, CFG, origin=(first, 0)).corners]
        assert set(corners[1:-1]) <= whole
        inner = {y for y in whole if first < y and y + CFG.tile_px < end}
        assert inner <= set(corners)


def test_the_origin_of_a_raster_changes_no_tile() -> None:
    assert plan_tiles(700, 900, CFG, origin=(0, 0)) == plan_tiles(700, 900, CFG)
