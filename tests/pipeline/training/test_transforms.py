"""Labels are moved and never blended, pixels and labels move together, and the same generator gives the same view."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.training import transforms
from pipeline.training.config import AugmentConfig
from pipeline.training.transforms import augment, centre_crop
from tests.support.examples import examples

IGNORE = 255
PLAIN = {"scale": (1.0, 1.0), "flip": False}

configs = st.builds(
    AugmentConfig,
    crop_px=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    scale=st.sampled_from([(0.5, 2.0), (1.0, 1.0), (0.1, 0.2)]),
    aspect=st.sampled_from([1.0, 1.5]),
    rare_share=st.sampled_from([0.0, 0.5]),
    flip=st.booleans(),
    symmetries=st.booleans(),
    brightness=st.sampled_from([0.0, 0.5]),
    saturation=st.sampled_from([0.0, 0.5]),
    hue=st.sampled_from([0.0, 0.1]),
    blur_px=st.sampled_from([0.0, 2.0]),
    haze=st.sampled_from([0.0, 0.5]),
    gamma=st.sampled_from([1.0, 2.0]),
    noise=st.sampled_from([0.0, 0.1]),
    elastic_px=st.sampled_from([0.0, 3.0]),
    jpeg=st.sampled_from([50, 100]),
)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
labels = sizes.flatmap(lambda size: hnp.arrays(np.uint8, size, elements=st.sampled_from([0, 3, 7, 200, IGNORE])))


def view_of(pixels, label, cfg, seed=0, **changed):
    known = {"ignore_id": IGNORE, "fill": [9] * pixels.shape[2], "rare": [3]} | changed
    return augment(pixels, label, cfg, np.random.default_rng(seed), **known)


def gradient(height, width, bands=3):
    """Every pixel has a value of its own in two of the bands: red tells the column, green the row."""
    pixels = np.full((height, width, bands), 50, np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return pixels


@given(labels, configs, st.integers(1, 5), st.integers(0, 99))
@examples(60)
def test_a_label_holds_only_values_it_had_and_the_ignore_id(label, cfg, bands, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (*label.shape, bands), np.uint8)
    seen, varied = view_of(pixels, label, cfg, seed)
    assert seen.shape == (*cfg.crop_px, bands)
    assert varied.shape == cfg.crop_px
    assert seen.dtype == varied.dtype == np.uint8
    assert set(np.unique(varied)) <= {*np.unique(label), IGNORE}


@given(labels, configs, st.integers(0, 99))
@examples(20)
def test_the_same_generator_gives_the_same_view_and_the_original_is_left_alone(label, cfg, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (*label.shape, 3), np.uint8)
    before = pixels.copy(), label.copy()
    for one, other in zip(view_of(pixels, label, cfg, seed), view_of(pixels, label, cfg, seed), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(before[0], pixels)
    np.testing.assert_array_equal(before[1], label)


@given(st.booleans(), st.tuples(st.integers(5, 60), st.integers(5, 60)), st.integers(0, 999))
def test_pixels_and_labels_move_together(symmetries, crop, seed):
    """The label of each pixel is written into its blue band; it must still stand there, wherever the pixel went."""
    label = np.random.default_rng(seed).integers(0, 200, (40, 30), np.uint8)
    pixels = gradient(40, 30)
    pixels[..., 2] = label
    cfg = AugmentConfig(**PLAIN | {"crop_px": crop, "flip": True, "symmetries": symmetries})
    seen, varied = view_of(pixels, label, cfg, seed, fill=[9, 9, IGNORE])
    np.testing.assert_array_equal(seen[..., 2], varied)


@given(st.integers(0, 999))
def test_scaled_pixels_stay_over_their_labels(seed):
    """Blocks of 8: in the middle of a block neither antialiasing nor rounding reaches its neighbours."""
    blocks = np.random.default_rng(seed).integers(0, 200, (8, 8), np.uint8)
    label = np.kron(blocks, np.ones((8, 8), np.uint8))
    pixels = np.repeat(label[..., None], 3, axis=2)
    cfg = AugmentConfig(crop_px=(40, 40), scale=(0.5, 2.0), aspect=1.5)
    seen, varied = view_of(pixels, label, cfg, seed, fill=[IGNORE] * 3)
    assert (seen[..., 0] == varied).mean() > 0.35
    off = np.abs(np.diff(varied.astype(int), axis=0, append=0)) + np.abs(np.diff(varied.astype(int), append=0))
    inner = np.zeros(varied.shape, bool)
    inner[3:-3, 3:-3] = True
    for shift in (-3, -2, -1, 0, 1, 2):
        inner &= np.roll(off, shift, 0) + np.roll(off, shift, 1) == 0
    far = np.abs(seen[..., 0].astype(int) - varied)[inner]
    assert far.size == 0 or np.median(far) <= 1


def test_a_crop_beyond_the_image_is_padded_with_the_fill_whatever_the_light():
    cfg = AugmentConfig(
        **PLAIN | {"crop_px": (30, 50), "brightness": 0.9, "haze": 1.0, "noise": 0.5, "blur_px": 2.0, "jpeg": 50}
    )
    label = np.full((10, 20), 7, np.uint8)
    seen, varied = view_of(np.full((10, 20, 3), 100, np.uint8), label, cfg, fill=[1, 2, 3])
    assert (varied == 7).sum() == 200
    np.testing.assert_array_equal(seen[varied == IGNORE], np.tile([1, 2, 3], (30 * 50 - 200, 1)))


def test_all_eight_symmetries_are_drawn_equally_often():
    label = np.array([[0, 1], [2, 3]], np.uint8)
    cfg = AugmentConfig(**PLAIN | {"crop_px": (2, 2), "symmetries": True})
    seen = [view_of(np.zeros((2, 2, 3), np.uint8), label, cfg, seed)[1].tobytes() for seed in range(400)]
    counts = np.unique(seen, return_counts=True)[1]
    assert len(counts) == 8
    assert counts.min() > 25


def test_crops_are_drawn_until_they_hold_enough_of_a_rare_class():
    label = np.zeros((200, 200), np.uint8)
    label[150:, 150:] = 3
    pixels = np.zeros((200, 200, 3), np.uint8)
    shares = {}
    for least in (0.0, 0.5):
        cfg = AugmentConfig(**PLAIN | {"crop_px": (40, 40), "rare_share": least, "rare_tries": 200})
        shares[least] = [(view_of(pixels, label, cfg, seed)[1] == 3).mean() for seed in range(30)]
    assert min(shares[0.5]) >= 0.45  # every fourth pixel is looked at
    assert np.mean(shares[0.0]) < 0.2


def test_brightness_and_contrast_are_the_same_for_every_band():
    pixels = np.random.default_rng(0).integers(80, 170, (20, 20, 1), np.uint8).repeat(5, axis=2)
    cfg = AugmentConfig(**PLAIN | {"crop_px": (20, 20), "brightness": 0.3, "contrast": 0.3})
    seen, _ = view_of(pixels, np.zeros((20, 20), np.uint8), cfg)
    assert (seen != pixels).any()
    np.testing.assert_array_equal(seen, seen[..., :1].repeat(5, axis=2))


@given(st.floats(0, 2), st.floats(-0.5, 0.5), st.integers(0, 255))
def test_chroma_leaves_greys_and_the_luma_of_colours(saturation, hue, grey):
    greys = np.full((2, 2, 3), grey, np.uint8)
    np.testing.assert_allclose(transforms._chroma(greys, saturation, hue), greys, atol=1)
    muted = np.random.default_rng(grey).integers(110, 146, (8, 8, 3), np.uint8)
    luma = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(transforms._chroma(muted, saturation, hue) @ luma, muted @ luma, atol=1)


def test_no_saturation_is_grey_and_a_full_circle_of_hue_is_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert np.ptp(transforms._chroma(pixels, 0.0, 0.1).astype(int), axis=2).max() <= 1
    np.testing.assert_allclose(transforms._chroma(pixels, 1.0, 1.0), pixels, atol=1)


def test_haze_draws_every_colour_towards_bright_grey():
    pixels = np.random.default_rng(0).integers(0, 120, (30, 30, 3), np.uint8)
    cfg = AugmentConfig(**PLAIN | {"crop_px": (30, 30), "haze": 0.8})
    views = [view_of(pixels, np.zeros((30, 30), np.uint8), cfg, seed)[0] for seed in range(20)]
    hazy = [view for view in views if (view != pixels).any()]
    assert 3 < len(hazy) < 17
    assert all((view >= pixels).all() and view.std() < pixels.std() for view in hazy)


def test_gamma_keeps_black_white_and_the_order_of_levels_and_darkens_as_often_as_it_brightens():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(4, axis=2)
    cfg = AugmentConfig(**PLAIN | {"crop_px": (16, 16), "gamma": 3.0})
    views = [view_of(levels, np.zeros((16, 16), np.uint8), cfg, seed)[0][..., 0].ravel() for seed in range(60)]
    assert all((view[0], view[-1]) == (0, 255) and (np.diff(view.astype(int)) >= 0).all() for view in views)
    darker = sum(int(view[128]) < 128 for view in views)
    assert 15 < darker < 45
    assert min(int(view[128]) for view in views) > 255 * (128 / 255) ** 3 - 1


def test_noise_has_at_most_the_deviation_asked_for_and_a_mean_of_0():
    grey = np.full((64, 64, 3), 128, np.uint8)
    cfg = AugmentConfig(**PLAIN | {"crop_px": (64, 64), "noise": 0.1})
    views = [view_of(grey, np.zeros((64, 64), np.uint8), cfg, seed)[0].astype(float) for seed in range(40)]
    noisy = [view for view in views if view.std() > 0]
    assert 8 < len(noisy) < 32
    assert max(view.std() for view in noisy) < 26.5
    assert all(abs(view.mean() - 128) < 1 for view in noisy)


def test_an_elastic_deformation_has_the_deviation_asked_for_and_is_smooth():
    """Red and green tell where each pixel came from."""
    moved = []
    for seed in range(20):
        cfg = AugmentConfig(**PLAIN | {"crop_px": (100, 100), "elastic_px": 4.0})
        seen, _ = view_of(gradient(200, 200), np.zeros((200, 200), np.uint8), cfg, seed)
        steps = np.diff(seen[..., :2].astype(int), axis=0)
        assert np.quantile(np.abs(steps[..., 1]), 0.99) <= 3
        field = seen[..., 1].astype(int) - np.arange(100)[:, None]
        moved.append(field[50, 50] - field.mean())
    assert 1 < np.std(moved) < 8


def test_compression_is_that_of_pillow_and_only_when_asked():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    label = np.zeros((40, 40), np.uint8)
    untouched, _ = view_of(pixels, label, AugmentConfig(**PLAIN | {"crop_px": (40, 40)}))
    np.testing.assert_array_equal(untouched, pixels)
    cfg = AugmentConfig(**PLAIN | {"crop_px": (40, 40), "jpeg": 10})
    lost = [np.abs(view_of(pixels, label, cfg, seed)[0].astype(int) - pixels).mean() for seed in range(40)]
    assert 8 < np.count_nonzero(lost) < 32, "half the images"
    assert 1 < np.mean([one for one in lost if one]) < 80


@pytest.mark.parametrize("size", [(3, 3), (10, 4), (4, 10), (9, 9)])
def test_the_centre_is_cut_or_padded_evenly(size):
    label = np.arange(35, dtype=np.uint8).reshape(5, 7)
    seen, cut = centre_crop(label[..., None].repeat(3, 2), label, size, ignore_id=IGNORE, fill=[IGNORE] * 3)
    np.testing.assert_array_equal(seen[..., 0], cut)
    assert cut.shape == size
    assert cut[size[0] // 2, size[1] // 2] in (17, 16, 10, 9, 24, 18)
    assert (cut != IGNORE).sum() == min(5, size[0]) * min(7, size[1])
