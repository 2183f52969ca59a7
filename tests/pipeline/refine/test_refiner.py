from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.classes import ClassMap
from pipeline.config import RefineConfig
from pipeline.records import Image, Item, Scored, Window
from pipeline.refine import densecrf
from pipeline.refine.engine import REFINE_ENGINES, RefinedWindow, WindowInput, network_answer
from pipeline.refine.presets import PRESETS, CrfParams
from pipeline.refine.refiner import Refiner, seconds_allowed
from pipeline.refine.unary import active_classes, cells_under, softmax, upsample_window
from pipeline.refine.window import windows
from tests.support.examples import examples

CLASSES = ClassMap(name="four", classes=[{"name": name, "colour": (0, 0, 0)} for name in "abcd"])


def scored_of(logits: np.ndarray, height: int, width: int, stride: int = 4, *, align_corners: bool = False) -> Scored:
    item = Item(key="k", shard="s", etag="e")
    logits = logits.astype(np.float16)
    return Scored(item, height=height, width=width, logits_khw=logits, stride=stride, align_corners=align_corners)


def scene(height: int, width: int, *, num_classes: int = 4, seed: int = 0) -> tuple[Image, np.ndarray]:
    """An image of a few flat regions with noise, and logits at stride 4 that roughly know them."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:height, :width]
    label = ((yy // max(height // 3, 1)) + (xx // max(width // 2, 1)) * 2) % (num_classes - 1)
    colours = rng.integers(40, 215, (num_classes, 3))
    pixels = (colours[label] + rng.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)
    coarse = label[::4, ::4]
    logits = np.eye(num_classes)[coarse].transpose(2, 0, 1) * 4 + rng.normal(0, 1.5, (num_classes, *coarse.shape))
    logits[-1] = -9  # a class that cannot win
    return Image(pixels, None), (logits - logits.max(axis=0)).astype(np.float16)


# ---------------------------------------------------------------- unary


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 8, 16]))
def test_upsampling_agrees_with_torch(height: int, width: int, stride: int) -> None:
    cells = -(-height // stride), -(-width // stride)
    logits = np.random.default_rng(height + 41 * width).normal(size=(3, *cells)).astype(np.float16)
    full = torch.nn.functional.interpolate(
        torch.from_numpy(logits.astype(np.float32))[None], scale_factor=stride, mode="bilinear", align_corners=False
    )[0, :, :height, :width]
    ours = upsample_window(logits, scored_of(logits, height, width, stride), Window(0, 0, height, width))
    np.testing.assert_allclose(ours, full.numpy(), atol=1e-5)


def test_upsampling_with_aligned_corners_agrees_with_torch_on_its_own_sizes() -> None:
    """An input of 16n+1 pixels has n+1 cells, the outermost ones on the outermost pixels."""
    logits = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float16)
    full = torch.nn.functional.interpolate(
        torch.from_numpy(logits.astype(np.float32))[None], size=(65, 97), mode="bilinear", align_corners=True
    )[0]
    ours = upsample_window(logits, scored_of(logits, 65, 97, 16, align_corners=True), Window(0, 0, 65, 97))
    np.testing.assert_allclose(ours, full.numpy(), atol=1e-5)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 10), st.integers(1, 10))
def test_a_window_of_the_upsampled_map_is_the_upsampled_window(y: int, x: int, height: int, width: int) -> None:
    logits = np.random.default_rng(7).normal(size=(2, 10, 10)).astype(np.float16)
    scored = scored_of(logits, 40, 40)
    whole = upsample_window(logits, scored, Window(0, 0, 40, 40))
    part = upsample_window(logits, scored, Window(y, x, height, width))
    np.testing.assert_allclose(part, whole[:, y : y + height, x : x + width], atol=1e-6)


@given(
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.booleans(),
)
def test_the_cells_under_a_window_give_its_pixels(
    y: int, x: int, height: int, width: int, stride: int, align_corners: bool
) -> None:
    window = Window(y, x, height, width)
    cells = -(-(y + height) // stride) + align_corners, -(-(x + width) // stride) + align_corners
    logits = np.random.default_rng(y).normal(size=(2, *cells)).astype(np.float16)
    scored = scored_of(logits, y + height, x + width, stride, align_corners=align_corners)
    few, first_y, first_x = cells_under(logits, scored, window)
    moved = Window(first_y, first_x, height, width)
    np.testing.assert_array_equal(upsample_window(few, scored, moved), upsample_window(logits, scored, window))
    assert few.shape[1] <= height // stride + 3
    assert few.shape[2] <= width // stride + 3


def test_pruning_drops_what_cannot_win_and_never_a_winner() -> None:
    logits = np.full((4, 2, 2), -8.0, np.float16)
    logits[1] = 0
    logits[2, 0, 0] = 0.1  # wins one cell
    assert active_classes(logits, prune=0.05)[0] == (1, 2)
    assert active_classes(logits, prune=0) == ((0, 1, 2, 3), 0)


def test_pruning_keeps_the_winners_of_a_uniform_image_of_many_classes() -> None:
    """With 150 classes the winner may itself be below the threshold."""
    logits = np.zeros((150, 3, 3), np.float16)
    logits[42] = 0.01
    assert active_classes(logits, prune=0.05)[0] == (42,)


# ---------------------------------------------------------------- dense CRF


def brute_force(pixels: np.ndarray, logits: np.ndarray, params: CrfParams) -> np.ndarray:
    """Mean field with every pair of pixels, in float64: what the lattice approximates."""
    num_classes, height, width = logits.shape
    yy, xx = np.mgrid[:height, :width]
    place = np.stack([yy.ravel(), xx.ravel()], 1).astype(float)
    colour = pixels.reshape(-1, 3).astype(float)

    def kernel(features: np.ndarray) -> np.ndarray:
        k = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))
        norm = 1 / np.sqrt(k.sum(1) + 1e-20)
        return norm[:, None] * k * norm[None]

    both = np.concatenate([place / params.bi_xy, colour / params.bi_rgb], 1)
    message = params.pos_w * kernel(place / params.pos_xy) + params.bi_w * kernel(both)
    unary = logits.reshape(num_classes, -1).astype(float)
    q = softmax(unary)
    for _ in range(params.iterations):
        q = softmax(unary + q @ message)
    return q.reshape(num_classes, height, width)


@pytest.mark.parametrize("preset", ["deeplab-v2", "densecrf-demo", "deeplab-v1"])
def test_the_crf_agrees_with_brute_force_as_far_as_the_lattice_does(preset: str) -> None:
    """Bounds as measured for the permutohedral lattice itself: isolated pixels differ, the mean does not."""
    image, small = scene(36, 40, seed=3)
    logits = upsample_window(small, scored_of(small, 36, 40), Window(0, 0, 36, 40))
    ours = densecrf.pydensecrf_marginals(image.pixels_hwc, logits, None, PRESETS[preset])
    exact = brute_force(image.pixels_hwc, logits, PRESETS[preset])
    assert np.abs(ours - exact).mean() < 5e-3
    assert (ours.argmax(0) != exact.argmax(0)).mean() < 0.01


def test_marginals_sum_to_one_and_read_only_pixels_are_fine() -> None:
    image, small = scene(30, 20)
    image.pixels_hwc.flags.writeable = False
    logits = upsample_window(small, scored_of(small, 30, 20), Window(0, 0, 30, 20))
    np.testing.assert_allclose(
        densecrf.pydensecrf_marginals(image.pixels_hwc, logits, None, PRESETS["deeplab-v2"]).sum(0), 1, atol=1e-4
    )


def test_without_kernels_the_marginals_are_the_softmax() -> None:
    image, small = scene(16, 16)
    logits = upsample_window(small, scored_of(small, 16, 16), Window(0, 0, 16, 16))
    alone = densecrf.pydensecrf_marginals(image.pixels_hwc, logits, None, CrfParams(0, 1, 1, 0, 1))
    np.testing.assert_allclose(alone, softmax(logits), atol=1e-5)


def test_invalid_pixels_have_no_opinion_of_their_own() -> None:
    image, small = scene(24, 24)
    logits = upsample_window(small, scored_of(small, 24, 24), Window(0, 0, 24, 24))
    valid = np.ones((24, 24), bool)
    valid[8:12, 8:12] = False
    other = logits.copy()
    other[:, ~valid] = 50 * np.random.default_rng(1).normal(size=(4, 16))
    one, two = (
        densecrf.pydensecrf_marginals(image.pixels_hwc, x, valid, PRESETS["deeplab-v2"]) for x in (logits, other)
    )
    np.testing.assert_array_equal(one, two)


# ---------------------------------------------------------------- refiner


def test_without_an_engine_the_mask_is_the_networks_own() -> None:
    image, logits = scene(50, 70)
    scored = scored_of(logits, 50, 70)
    got = Refiner(RefineConfig(engine="none"), CLASSES)(scored, image)
    full = upsample_window(logits, scored, Window(0, 0, 50, 70))
    np.testing.assert_array_equal(got.mask_hw, full.argmax(0))
    assert (got.refined, got.note, got.stats.changed_pixels) == (False, None, 0)
    assert got.stats.class_pixels.sum() == 50 * 70


def test_refined_and_unrefined_masks_differ_by_the_share_that_is_reported() -> None:
    image, logits = scene(60, 80)
    scored = scored_of(logits, 60, 80)
    before = Refiner(RefineConfig(engine="none"), CLASSES)(scored, image)
    after = Refiner(RefineConfig(), CLASSES)(scored, image)
    assert after.refined
    assert after.stats.changed_pixels == (before.mask_hw != after.mask_hw).sum() > 0


def test_pruning_changes_no_more_labels_than_the_lattice_itself() -> None:
    image, logits = scene(120, 160)
    full = Refiner(RefineConfig(), CLASSES)(scored_of(logits, 120, 160), image)
    ids, lost = active_classes(logits, prune=0.05)
    assert lost == pytest.approx(softmax(logits.astype(np.float32))[3].mean(), rel=1e-4)
    assert ids == (0, 1, 2)
    few = replace(scored_of(logits[list(ids)], 120, 160), class_ids=ids)
    pruned = Refiner(RefineConfig(), CLASSES)(few, image)
    assert (full.active_classes, pruned.active_classes) == (4, 3)
    assert (pruned.mask_hw != full.mask_hw).mean() < 0.002
    assert abs(pruned.stats.entropy_sum - full.stats.entropy_sum) < 0.01 * full.stats.entropy_sum


def test_the_classes_that_are_left_keep_their_ids() -> None:
    image, logits = scene(40, 40)
    few = replace(scored_of(logits[[1]], 40, 40), class_ids=(1,))
    got = Refiner(RefineConfig(), CLASSES)(few, image)
    assert (got.mask_hw == 1).all()
    assert got.stats.class_pixels.tolist() == [0, 1600, 0, 0]


def test_an_image_refined_in_windows_agrees_with_the_image_refined_whole() -> None:
    image, logits = scene(300, 260)
    scored = scored_of(logits, 300, 260)
    cut, whole = (Refiner(RefineConfig(window_px=px), CLASSES)(scored, image) for px in (128, 1024))
    assert (cut.mask_hw != whole.mask_hw).mean() < 0.005
    assert cut.stats.valid_pixels == whole.stats.valid_pixels


def test_a_deadline_that_passes_leaves_the_networks_mask_and_says_so() -> None:
    image, logits = scene(64, 64)
    scored = scored_of(logits, 64, 64)
    late = Refiner(RefineConfig(deadline_s=1e-9), CLASSES)(scored, image)
    plain = Refiner(RefineConfig(engine="none"), CLASSES)(scored, image)
    np.testing.assert_array_equal(late.mask_hw, plain.mask_hw)
    assert not late.refined
    assert late.note.startswith("refine_timeout")


class Interrupted:
    """Engine that gives every pixel the next class, and from one window on only does some of its iterations."""

    iterations = 3

    def __init__(self, windows_in_time: int) -> None:
        self.windows_in_time, self.deadlines = windows_in_time, []

    def __call__(self, seen: WindowInput, *, deadline: float) -> RefinedWindow:
        self.deadlines.append(deadline)
        before, _ = network_answer(seen.logits_khw, seen.scored, seen.window)
        done = self.iterations if len(self.deadlines) <= self.windows_in_time else 1
        return replace(before, labels_hw=(before.labels_hw + 1) % 4, done=done)


@examples(20)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 9), st.booleans())
def test_an_image_is_refined_in_every_window_or_in_none(height: int, width: int, in_time: int, masked: bool) -> None:
    image, logits = scene(height, width)
    if masked:
        image = replace(image, valid_hw=np.random.default_rng(height).random((height, width)) < 0.7)
    scored, count = scored_of(logits, height, width), len(list(windows(height, width, 128)))
    refiner = Refiner(RefineConfig(window_px=128), CLASSES)
    refiner.engine = Interrupted(in_time)
    got = refiner(scored, image)
    valid = np.ones((height, width), bool) if image.valid_hw is None else image.valid_hw
    changed = (got.mask_hw != got.network_hw)[valid]
    assert (got.refined, changed.all() if got.refined else changed.any()) == (in_time >= count, in_time >= count)
    assert got.stats.changed_pixels == changed.sum()
    assert got.stats.class_pixels.tolist() == np.bincount(got.mask_hw[valid], minlength=4).tolist()
    assert (got.note is None) == got.refined
    if not got.refined:
        assert f"after {in_time} of {count} windows, so none is refined (--refine.deadline-s 60)" in got.note
        assert all(deadline == -np.inf for deadline in refiner.engine.deadlines[in_time + 1 :])


@given(st.floats(0.001, 1e4), st.integers(1, 20_000), st.integers(1, 20_000))
def test_the_time_allowed_follows_the_size_and_is_never_less_than_the_setting(
    deadline_s: float, height: int, width: int
) -> None:
    cfg = RefineConfig(deadline_s=deadline_s)
    allowed = seconds_allowed(cfg, height, width)
    assert allowed >= deadline_s
    assert allowed >= deadline_s * (height * width / 1e6)
    assert seconds_allowed(cfg, 2 * height, width) <= 2 * allowed * (1 + 1e-12)
    if height * width <= 1e6:
        assert allowed == deadline_s


def test_progress_is_told_of_every_window() -> None:
    image, logits = scene(300, 260)
    calls = []
    cfg = RefineConfig(window_px=128, iterations=1)
    Refiner(cfg, CLASSES)(scored_of(logits, 300, 260), image, progress=lambda: calls.append(1))
    assert len(calls) == 9


@examples(20)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from(list(REFINE_ENGINES)),
)
def test_any_size_and_any_valid_mask_is_refined_and_counted(height: int, width: int, engine: str) -> None:
    image, logits = scene(height, width, seed=height)
    valid = np.random.default_rng(width).random((height, width)) < 0.7
    got = Refiner(RefineConfig(engine=engine), CLASSES)(
        scored_of(logits, height, width), Image(image.pixels_hwc, valid)
    )
    assert ((got.mask_hw == 255) == ~valid).all()
    assert got.stats.class_pixels.sum() == got.stats.valid_pixels == valid.sum()
