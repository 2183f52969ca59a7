import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import InferConfig
from pipeline.infer.views import View, ViewFusion, apply_view, scaled_length, views

sides = st.integers(1, 90)
scales = st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0])


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, channels)).astype(np.uint8)


@given(sides, sides, scales, st.booleans(), st.booleans())
def test_a_look_is_what_interpolate_gives_rounded_to_whole_levels(
    height: int, width: int, scale: float, flip: bool, align_corners: bool
) -> None:
    pixels = noise(height, width)
    size = tuple(scaled_length(side, scale, align_corners=align_corners) for side in (height, width))
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    expected = F.interpolate(batch, size, mode="bilinear", align_corners=align_corners)[0].permute(1, 2, 0).numpy()
    seen = apply_view(pixels, View(scale, flip), align_corners=align_corners)
    assert seen.dtype == np.uint8
    np.testing.assert_allclose(seen, expected[:, ::-1] if flip else expected, atol=0.51)


@pytest.mark.parametrize(("scale", "made"), [(0.5, 257), (0.75, 385), (1.0, 513), (1.75, 897)])
def test_aligned_crops_of_the_papers_stay_crops_of_that_kind(scale: float, made: int) -> None:
    assert scaled_length(513, scale, align_corners=True) == made


def test_the_looks_are_every_scale_plain_and_mirrored() -> None:
    assert views(InferConfig()) == (View(1.0, False),)
    assert len(views(InferConfig(scales=(0.5, 1.0, 1.5), flip=True))) == 6


def fusion(cfg: InferConfig, height: int, width: int, stride: int, *, align_corners: bool) -> ViewFusion:
    return ViewFusion(cfg, height=height, width=width, stride=stride, align_corners=align_corners)


@given(sides, sides, scales, st.booleans(), st.sampled_from([1, 4, 8]), st.booleans())
def test_scores_that_change_evenly_across_the_image_are_the_same_from_every_look(
    height: int, width: int, scale: float, flip: bool, stride: int, align_corners: bool
) -> None:
    """Bilinear resizing keeps a slope, so a look is put back to the right place when a slope comes back as it was.

    Near the edges it cannot: beyond the last cell there is nothing to interpolate to.
    """

    def slope(length: int, seen: int) -> np.ndarray:
        """Where the cells of a look lie in the image, in pixels."""
        cells = np.arange(-(-seen // stride))
        if align_corners:
            return cells * stride * max(length - 1, 1) / max(seen - 1, 1)
        return (cells + 0.5) * stride * length / seen - 0.5

    rows, columns = (slope(side, scaled_length(side, scale, align_corners=align_corners)) for side in (height, width))
    if flip:
        columns = width - 1 - columns
    scores = np.stack(np.meshgrid(rows, columns, indexing="ij")).astype(np.float32)
    cfg = InferConfig(scales=(scale,), flip=flip, fuse="max_score")
    one = fusion(cfg, height, width, stride, align_corners=align_corners)
    one.missing = 1
    one.add(View(scale, flip), scores)
    own = np.stack(np.meshgrid(slope(height, height), slope(width, width), indexing="ij"))
    low, high = scores.reshape(2, -1).min(axis=1), scores.reshape(2, -1).max(axis=1)
    np.testing.assert_allclose(one.finish(), own.clip(low[:, None, None], high[:, None, None]), atol=1e-3)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5, 2.0])
def test_scores_of_another_size_are_resized_as_interpolate_does(scale: float, align_corners: bool) -> None:
    """On sizes that leave no padding: 32k, or 32k + 1 where corners are aligned."""
    beyond = int(align_corners)
    height, width = 64 + beyond, 96 + beyond
    seen = [scaled_length(side, scale, align_corners=align_corners) for side in (height, width)]
    scores = np.random.default_rng(0).normal(size=(5, -(-seen[0] // 8), -(-seen[1] // 8))).astype(np.float32)
    one = fusion(InferConfig(scales=(scale,)), height, width, 8, align_corners=align_corners)
    one.add(View(scale), scores)
    size = -(-height // 8), -(-width // 8)
    expected = F.interpolate(torch.from_numpy(scores)[None], size, mode="bilinear", align_corners=align_corners)
    np.testing.assert_allclose(one.finish(), expected[0], atol=1e-4)


@pytest.mark.parametrize("how", ["mean_probability", "max_score"])
def test_looks_fuse_into_what_the_papers_say_in_any_order(how: str) -> None:
    cfg = InferConfig(scales=(1.0,), flip=True, fuse=how)
    plain, mirrored = np.random.default_rng(0).normal(scale=5, size=(2, 4, 3, 6)).astype(np.float32)
    got = []
    for order in ((0, 1), (1, 0)):
        one = fusion(cfg, 12, 24, 4, align_corners=False)
        for index in order:
            one.add(views(cfg)[index], (plain, mirrored)[index])
        got.append(one.finish())
    both = torch.from_numpy(np.stack([plain, mirrored[:, :, ::-1]]))
    expected = both.softmax(dim=1).mean(dim=0).log() if how == "mean_probability" else both.amax(dim=0)
    for fused in got:
        np.testing.assert_allclose(fused, expected, atol=1e-4)


def test_a_class_that_is_impossible_everywhere_stays_finite() -> None:
    one = fusion(InferConfig(flip=True), 4, 4, 4, align_corners=False)
    for view in views(InferConfig(flip=True)):
        one.add(view, np.array([0, -1e30], np.float32).reshape(2, 1, 1))
    assert np.isfinite(one.finish()).all()


def test_missing_views_are_refused() -> None:
    one = fusion(InferConfig(flip=True), 4, 4, 4, align_corners=False)
    one.add(View(), np.zeros((2, 1, 1), np.float32))
    with pytest.raises(ValueError, match="1 of 2 views"):
        one.finish()
