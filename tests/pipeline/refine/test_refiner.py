from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.classes import ClassMap
from pipeline.config import RefineConfig
from pipeline.records import Image, Item, Scored, Window
from pipeline.refine import densecrf
from pipeline.refine.engine import REFINE_ENGINES, RefinedWindow, WindowInput, network_answer
from pipeline.refine.presets import PRESETS, CrfParams
from pipeline.refine.refiner import Refiner, seconds_allowed
from pipeline.refine.unary import active_classes, softmax, upsample_window
from pipeline.refine.window import windows
from tests.support.examples import examples

BUILT = [name for name, spec in REFINE_ENGINES.items() if spec.build]
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


def test_invalid_pixels_have_no_influence_and_keep_their_answer() -> None:
    image, small = scene(24, 24)
    logits = upsample_window(small, scored_of(small, 24, 24), Window(0, 0, 24, 24))
    valid = np.ones((24, 24), bool)
    valid[8:12, 8:12] = False
    other = logits.copy()
    other[:, ~valid] = 50 * np.random.default_rng(1).normal(size=(4, 16))
    one, two = (
        densecrf.pydensecrf_marginals(image.pixels_hwc, x, valid, PRESETS["deeplab-v2"]) for x in (logits, other)
    )
    np.testing.assert_array_equal(one[:, valid], two[:, valid])
    np.testing.assert_allclose(two[:, ~valid], softmax(other)[:, ~valid], atol=1e-6)


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


# ---------------------------------------------------------------- what an engine is given


class Watching(Interrupted):
    """Engine that remembers its windows and gives every pixel the next class."""

    def __init__(self) -> None:
        super().__init__(windows_in_time=10**6)
        self.seen = []

    def __call__(self, seen: WindowInput, *, deadline: float) -> RefinedWindow:
        self.seen.append(seen)
        return super().__call__(seen, deadline=deadline)


def watched(cfg: RefineConfig, image: Image, logits: np.ndarray) -> list[WindowInput]:
    refiner = Refiner(cfg, CLASSES)
    refiner.engine = Watching()
    refiner(scored_of(logits, image.height, image.width), image)
    return refiner.engine.seen


@pytest.mark.parametrize(
    ("settings", "reach"),
    [({"bi_xy": 25}, 50), ({"bi_xy": 25.5}, 51), ({"engine": "domain_transform", "sigma_s": 20}, 40)],
)
@examples(15)
@given(st.integers(100, 400), st.integers(100, 400))
def test_an_engine_sees_each_core_with_two_sigmas_of_halo_up_to_the_border(
    settings: dict, reach: int, height: int, width: int
) -> None:
    image, logits = scene(height, width)
    found = [seen.window for seen in watched(RefineConfig(window_px=128, **settings), image, logits)]
    expected = []
    for core in windows(height, width, 128):
        top, left = max(0, core.y - reach), max(0, core.x - reach)
        bottom, right = min(height, core.y + core.height + reach), min(width, core.x + core.width + reach)
        expected.append(Window(top, left, bottom - top, right - left))
    assert found == expected


def test_an_engine_is_given_the_pixels_and_the_valid_mask_of_its_window_and_no_others() -> None:
    image, logits = scene(300, 420)
    image = replace(image, valid_hw=np.random.default_rng(0).random((300, 420)) < 0.6)
    seen = watched(RefineConfig(window_px=128, bi_xy=10), image, logits)
    assert len(seen) == 12
    for one in seen:
        here = (
            slice(one.window.y, one.window.y + one.window.height),
            slice(one.window.x, one.window.x + one.window.width),
        )
        np.testing.assert_array_equal(one.pixels_hwc, image.pixels_hwc[here])
        np.testing.assert_array_equal(one.valid_hw, image.valid_hw[here])
    assert all(one.valid_hw is None for one in watched(RefineConfig(), *scene(40, 40)))


@pytest.mark.parametrize("engine", BUILT)
def test_colours_of_pixels_that_are_not_valid_change_no_mask(engine: str) -> None:
    image, logits = scene(70, 90)
    valid = np.ones((70, 90), bool)
    valid[20:50, 30:60] = False
    other = image.pixels_hwc.copy()
    other[~valid] = np.random.default_rng(1).integers(0, 255, (int((~valid).sum()), 3))
    masks = [
        Refiner(RefineConfig(engine=engine), CLASSES)(scored_of(logits, 70, 90), Image(pixels, valid)).mask_hw
        for pixels in (image.pixels_hwc, other)
    ]
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("engine", list(REFINE_ENGINES))
@pytest.mark.parametrize("window_px", [128, 256])
def test_confidence_is_the_networks_largest_probability_of_each_pixel_to_the_nearest_level(
    engine: str, window_px: int
) -> None:
    image, logits = scene(90, 170)
    got = Refiner(RefineConfig(engine=engine, window_px=window_px, iterations=1), CLASSES)(
        scored_of(logits, 90, 170), image
    )
    best = softmax(upsample_window(logits, scored_of(logits, 90, 170), Window(0, 0, 90, 170))).max(axis=0)
    assert got.confidence_hw.dtype == np.uint8
    np.testing.assert_allclose(got.confidence_hw, best * 255, atol=0.501)
    assert got.stats.mean(got.stats.confidence_sum) == pytest.approx(float(best.mean(dtype=np.float64)), rel=1e-4)


def test_the_time_allowed_counts_from_the_call_and_is_the_same_for_every_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, logits = scene(200, 260)
    monkeypatch.setattr("pipeline.refine.refiner.monotonic", lambda: 1000.0)
    refiner = Refiner(RefineConfig(window_px=128, deadline_s=7), CLASSES)
    refiner.engine = Watching()
    refiner(scored_of(logits, 200, 260), image)
    assert set(refiner.engine.deadlines) == {1007.0}


def test_one_class_that_is_left_needs_no_engine() -> None:
    image, logits = scene(40, 40)
    refiner = Refiner(RefineConfig(), CLASSES)
    refiner.engine = Watching()
    got = refiner(replace(scored_of(logits[[2]], 40, 40), class_ids=(2,)), image)
    assert refiner.engine.seen == []
    assert (got.refined, got.note, got.active_classes) == (True, None, 1)
    assert (got.network_hw == 2).all()


def test_without_an_engine_the_mask_is_the_networks_whether_or_not_there_are_pixels() -> None:
    image, logits = scene(40, 52)
    for given_image in (image, None):
        got = Refiner(RefineConfig(engine="none"), CLASSES)(scored_of(logits, 40, 52), given_image)
        assert (got.refined, got.note) == (False, None)
        np.testing.assert_array_equal(got.mask_hw, got.network_hw)
        assert got.stats.valid_pixels == 40 * 52


def test_what_is_missing_is_named_with_the_key_and_the_engine() -> None:
    image, logits = scene(8, 8)
    refiner = Refiner(RefineConfig(engine="torch"), CLASSES)
    with pytest.raises(ValueError, match=r"k has no pixels, refine\.engine torch needs them"):
        refiner(scored_of(logits, 8, 8), None)
    with pytest.raises(ValueError, match="k has no logits"):
        refiner(replace(scored_of(logits, 8, 8), logits_khw=None), image)


def test_a_note_has_the_time_the_size_the_windows_and_the_setting() -> None:
    image, logits = scene(1000, 2500)
    refiner = Refiner(RefineConfig(window_px=1024, deadline_s=3), CLASSES)
    refiner.engine = Interrupted(windows_in_time=1)
    note = refiner(scored_of(logits, 1000, 2500), image).note
    assert note.startswith("refine_timeout: 7.5 s for 2.5 Mpx passed after 1 of 3 windows")
    assert "--refine.deadline-s 3)" in note


@pytest.mark.parametrize("engine", BUILT)
def test_the_core_of_a_window_is_answered_as_a_part_of_the_whole(engine: str) -> None:
    image, logits = scene(150, 170)
    rng = np.random.default_rng(3)
    image = replace(image, valid_hw=rng.random((150, 170)) < 0.95)
    cfg = RefineConfig(engine=engine, iterations=3, bi_xy=8, sigma_s=8, window_px=128, prune=0)
    core = Window(20, 30, 90, 100)
    here = slice(20, 110), slice(30, 130)
    scored = scored_of(logits, 150, 170)
    whole, part = Refiner(cfg, CLASSES)(scored, image), Refiner(cfg, CLASSES)(scored, image, core=core)
    assert part.mask_hw.shape == (90, 100)
    np.testing.assert_array_equal(part.network_hw, whole.network_hw[here])
    np.testing.assert_array_equal(part.confidence_hw, whole.confidence_hw[here])
    assert (part.mask_hw != whole.mask_hw[here]).mean() < 0.02  # windows lie differently
    assert part.stats.valid_pixels == image.valid_hw[here].sum() == part.stats.class_pixels.sum()
