from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from math import ceil
from time import monotonic

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Item, Scored, Window
from pipeline.refine import lattice_torch, native
from pipeline.refine.native import LogitsGrid, NativeCrf, Refined, TooManyVertices, bytes_needed
from pipeline.refine.presets import PRESETS, CrfParams
from pipeline.refine.unary import softmax, upsample_window
from tests.support.examples import examples

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.UNAVAILABLE_BECAUSE))

DEMO = replace(PRESETS["densecrf-demo"], iterations=10)
DEEPLAB = PRESETS["deeplab-v2"]
NO_KERNELS = CrfParams(0, 1, 1, 0, 1)


def scene(
    height: int, width: int, classes: int = 4, *, bands: int = 3, seed: int = 0, noise: float = 8
) -> tuple[np.ndarray, np.ndarray]:
    """A few flat regions with noise, and full-size logits that roughly know them."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:height, :width]
    label = ((yy // max(height // 3, 1)) + (xx // max(width // 2, 1)) * 2) % classes
    colours = rng.integers(40, 215, (classes, bands))
    pixels = (colours[label] + rng.normal(0, noise, (height, width, bands))).clip(0, 255).astype(np.uint8)
    logits = np.eye(classes)[label].transpose(2, 0, 1) * 3 + rng.normal(0, 1.5, (classes, height, width))
    return pixels, logits.astype(np.float32)


def refine(
    pixels: np.ndarray, logits: np.ndarray, params: CrfParams, valid: np.ndarray | None = None, **kwargs: object
) -> np.ndarray:
    engine = NativeCrf(spatial=kwargs.pop("spatial", "lattice"), isa=kwargs.pop("isa", ""))
    return engine.refine(pixels, logits, valid, params, **kwargs).probs_khw


def brute_force(
    pixels: np.ndarray,
    logits: np.ndarray,
    params: CrfParams,
    valid: np.ndarray | None = None,
    sigmas: tuple[float, ...] | None = None,
    freeze: float = 1,
) -> np.ndarray:
    """Mean field with every pair of valid pixels, in float64: what both spatial kernels approximate.

    Pixels surer than `freeze` by their logits are put back to these after every iteration.
    """
    classes, height, width = logits.shape
    here = np.ones((height, width), bool) if valid is None else valid
    place = np.argwhere(here).astype(float)
    colour = pixels[here].astype(float) / (sigmas or params.bi_rgb)

    def kernel(features: np.ndarray) -> np.ndarray:
        k = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))
        norm = 1 / np.sqrt(k.sum(1) + 1e-20)
        return norm[:, None] * k * norm[None]

    message = params.bi_w * kernel(np.concatenate([place / params.bi_xy, colour], 1))
    message += params.pos_w * kernel(place / params.pos_xy)
    unary = logits[:, here].astype(float)
    alone = q = softmax(unary)
    frozen = alone.max(0) > freeze
    for _ in range(params.iterations):
        q = np.where(frozen, alone, softmax(unary + q @ message))
    probs = softmax(logits.astype(float))
    probs[:, here] = q
    return probs.reshape(classes, height, width)


# ---------------------------------------------------------------- right


@pytest.mark.parametrize("spatial", ["lattice", "separable"])
@pytest.mark.parametrize("params", [DEMO, DEEPLAB, PRESETS["deeplab-v1"]], ids=["demo", "deeplab-v2", "deeplab-v1"])
def test_it_agrees_with_brute_force_as_far_as_a_lattice_can(params: CrfParams, spatial: str) -> None:
    pixels, logits = scene(40, 40, seed=3)
    exact = brute_force(pixels, logits, params)
    ours = refine(pixels, logits, params, spatial=spatial)
    assert np.abs(ours - exact).mean() < 5e-3
    assert (ours.argmax(0) != exact.argmax(0)).mean() < 0.01


def test_the_separable_kernel_alone_is_exact_up_to_what_it_cuts_off() -> None:
    pixels, logits = scene(30, 34)
    for sigma in (0.5, 1, 1.7):
        params = CrfParams(0, 1, 1, 3, sigma)
        exact = brute_force(pixels, logits, params)
        np.testing.assert_allclose(refine(pixels, logits, params, spatial="separable"), exact, atol=0.02)


@pytest.mark.parametrize("classes", [2, 5, 9, 21, 40, 150])
@pytest.mark.parametrize("params", [DEMO, DEEPLAB], ids=["demo", "deeplab-v2"])
def test_it_agrees_with_pydensecrf_and_is_as_near_to_the_truth(params: CrfParams, classes: int) -> None:
    densecrf = pytest.importorskip("pipeline.refine.densecrf")
    pixels, logits = scene(61, 83, classes, seed=classes)
    theirs = densecrf.pydensecrf_marginals(pixels, logits, None, params)
    ours = refine(pixels, logits, params)
    assert (np.abs(ours - theirs) > 1e-3).any(0).mean() < 1e-3
    assert (ours.argmax(0) != theirs.argmax(0)).sum() <= 2
    if classes == 5:
        pixels, logits = pixels[:40, :40], logits[:, :40, :40]
        exact = brute_force(pixels, logits, params)
        errors = [
            np.abs(q - exact).mean()
            for q in (
                refine(pixels, logits, params),
                densecrf.pydensecrf_marginals(pixels, np.ascontiguousarray(logits), None, params),
            )
        ]
        assert errors[0] <= errors[1] * 1.01


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_answer(isa: str) -> None:
    pixels, logits = scene(50, 70, 21)
    try:
        ours = refine(pixels, logits, DEEPLAB, isa=isa)
    except ValueError as no_kernels:
        pytest.skip(str(no_kernels))
    best = refine(pixels, logits, DEEPLAB)
    assert (np.abs(ours - best) > 1e-3).any(0).sum() <= 2


@pytest.mark.parametrize(("bands", "sigmas"), [(1, (9.0,)), (2, (5.0, 30.0)), (4, (10.0, 12.0, 14.0, 20.0)), (8, None)])
def test_a_guide_may_have_any_number_of_bands_each_with_its_own_sigma(bands: int, sigmas: tuple | None) -> None:
    pixels, logits = scene(32, 28, bands=bands, seed=bands)
    params = replace(DEMO, bi_rgb=20, iterations=5)
    ours = refine(pixels, logits, params, band_sigmas=sigmas)
    exact = brute_force(pixels, logits, params, sigmas=sigmas)
    assert np.abs(ours - exact).mean() < 0.01
    assert (ours.argmax(0) != exact.argmax(0)).mean() < 0.03


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_small_logits_are_upsampled_as_the_unary_does_it(align_corners: bool, dtype: type) -> None:
    rng = np.random.default_rng(5)
    small = rng.normal(0, 3, (6, 12, 15)).astype(dtype)
    scored = Scored(
        Item(key="k", shard="s", etag="e"),
        height=90,
        width=115,
        logits_khw=small,
        stride=8,
        align_corners=align_corners,
    )
    for window in (Window(0, 0, 90, 115), Window(33, 50, 41, 65), Window(89, 114, 1, 1)):
        pixels = rng.integers(0, 256, (window.height, window.width, 3), np.uint8)
        full = np.ascontiguousarray(upsample_window(small, scored, window))
        grid = LogitsGrid(8, align_corners, window.y, window.x)
        np.testing.assert_allclose(refine(pixels, small, NO_KERNELS, grid=grid), softmax(full), atol=2e-6)
        ours, same = refine(pixels, small, DEEPLAB, grid=grid), refine(pixels, full, DEEPLAB)
        assert (np.abs(ours - same) > 1e-3).any(0).mean() < 1e-3


# ---------------------------------------------------------------- laws


@examples(60)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 140),
    classes=st.integers(2, 45),
    spatial=st.sampled_from(["lattice", "separable"]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_size_gives_marginals_that_sum_to_one_and_their_labels(
    height: int, width: int, classes: int, spatial: str, masked: bool, seed: int
) -> None:
    pixels, logits = scene(height, width, classes, seed=seed)
    valid = np.random.default_rng(seed).random((height, width)) < 0.7 if masked else None
    params = replace(DEEPLAB, pos_xy=1 + seed % 3, iterations=1 + seed % 5)
    got = NativeCrf(spatial=spatial).refine(pixels, logits, valid, params, labels=True)
    np.testing.assert_allclose(got.probs_khw.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(got.labels_hw, got.probs_khw.argmax(0))
    assert got.iterations == params.iterations
    if valid is not None:
        np.testing.assert_allclose(got.probs_khw[:, ~valid], softmax(logits)[:, ~valid], atol=1e-6)


@pytest.mark.parametrize("classes", [2, 8, 21, 33, 255])
def test_permuting_the_classes_permutes_the_marginals(classes: int) -> None:
    pixels, logits = scene(40, 51, classes)
    order = np.random.default_rng(1).permutation(classes)
    one, two = refine(pixels, logits, DEMO), refine(pixels, np.ascontiguousarray(logits[order]), DEMO)
    assert (np.abs(one[order] - two) > 1e-3).any(0).sum() <= 1


def test_a_class_that_cannot_win_changes_nothing() -> None:
    pixels, logits = scene(40, 51, 4)
    more = np.concatenate([logits, np.full((7, 40, 51), -200, np.float32)])
    np.testing.assert_allclose(refine(pixels, more, DEMO)[:4], refine(pixels, logits, DEMO), atol=1e-4)


def test_logits_count_only_up_to_a_constant_per_pixel() -> None:
    pixels, logits = scene(40, 40)
    shift = np.random.default_rng(0).normal(0, 5, (40, 40)).astype(np.float32)
    np.testing.assert_allclose(refine(pixels, logits + shift, DEMO), refine(pixels, logits, DEMO), atol=1e-3)


def test_a_constant_image_leaves_a_smooth_answer() -> None:
    _, logits = scene(48, 48, seed=2)
    pixels = np.full((48, 48, 3), 77, np.uint8)
    before, after = logits.argmax(0), refine(pixels, logits, DEMO).argmax(0)
    edges = [(np.diff(label, axis=0) != 0).sum() + (np.diff(label, axis=1) != 0).sum() for label in (before, after)]
    assert edges[1] < 0.35 * edges[0]  # the borders of the regions stay


def test_without_kernels_the_marginals_are_the_softmax() -> None:
    pixels, logits = scene(33, 47)
    np.testing.assert_allclose(refine(pixels, logits, NO_KERNELS), softmax(logits), atol=1e-6)


# ---------------------------------------------------------------- rows of halves


def with_kernels(isa: str) -> str:
    """The instruction set; the test is skipped where this processor lacks it."""
    try:
        NativeCrf(isa=isa)
    except ValueError as no_kernels:
        pytest.skip(str(no_kernels))
    return isa


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
@examples(40)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 140),
    classes=st.sampled_from([2, 8, 9, 16, 21, 24, 25, 32, 33, 40, 70, 255]),
    textured=st.booleans(),
    masked=st.booleans(),
    freeze=st.sampled_from([0.6, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_halves_change_next_to_nothing(
    isa: str, height: int, width: int, classes: int, textured: bool, masked: bool, freeze: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pixels, logits = scene(height, width, classes, seed=seed)
    pixels = rng.integers(0, 256, pixels.shape, np.uint8) if textured else pixels
    valid = rng.random((height, width)) < 0.7 if masked else None
    with_halves, floats = (
        refine(pixels, logits, DEEPLAB, valid, spatial="separable", isa=name, freeze=freeze)
        for name in (with_kernels(isa), "baseline")
    )
    difference = np.abs(with_halves - floats)
    assert difference.sum() < 1 + 3e-5 * difference.size  # 0.2 beyond the share in the worst of 1,235 cases
    assert (difference > 2e-3).any(0).sum() <= 5 + 0.01 * height * width
    assert (with_halves.argmax(0) != floats.argmax(0)).sum() <= 3 + 2e-4 * height * width


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
@pytest.mark.parametrize(
    ("params", "height", "width"),
    [(CrfParams(1e6, 67, 3, 3, 1, 3), 200, 220), (CrfParams(0, 1, 1, 1e6, 1e4, 3), 1, 6000)],
    ids=["appearance", "smoothness"],
)
def test_rows_that_could_leave_the_range_of_halves_stay_floats(
    isa: str, params: CrfParams, height: int, width: int
) -> None:
    """On one colour these parameters give rows of about 1e5 and 7e4, which halves cannot hold."""
    logits = scene(height, width, 3)[1] * 1e4
    pixels = np.full((height, width, 3), 77, np.uint8)
    ours, floats = (
        refine(pixels, logits, params, spatial="separable", isa=name) for name in (with_kernels(isa), "baseline")
    )
    assert np.isfinite(ours).all()
    assert (ours.argmax(0) != floats.argmax(0)).mean() < 1e-3


@examples(40)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 60),
    weight=st.floats(0.01, 1e6),
    sigma_xy=st.floats(0.3, 200),
    sigma_rgb=st.floats(1, 1e3),
    noise=st.sampled_from([0, 2, 200]),
    seed=st.integers(0, 99),
)
def test_no_row_exceeds_its_bound(
    height: int, width: int, weight: float, sigma_xy: float, sigma_rgb: float, noise: int, seed: int
) -> None:
    pixels = torch.from_numpy(scene(height, width, seed=seed, noise=noise)[0])[None]
    lattice = lattice_torch.bilateral_lattice(pixels, None, sigma_xy, sigma_rgb)
    ones = torch.ones(height * width, 1)
    rows = weight**0.5 * (lattice.slice @ filtered(lattice, ones)) ** -0.5
    largest = float(filtered(lattice, rows).max())  # all pixels have one class with a Q of 1
    assert largest <= bound(height, width, weight, sigma_xy)


def filtered(lattice: lattice_torch.Lattice, values: torch.Tensor) -> torch.Tensor:
    """Blurred rows of the vertices."""
    return reduce(lambda rows, blur: blur @ rows, lattice.blurs, lattice.splat @ values)


def bound(height: int, width: int, weight: float, sigma_xy: float) -> float:
    """Bound on the rows of three bands."""
    row: float = native._densecrf.largest_row(height=height, width=width, bands=3, bi_w=weight, bi_xy=sigma_xy)
    return row


@given(
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    weight=st.floats(0.01, 1e5),
    sigma_xy=st.floats(0.3, 1e4),
    more=st.floats(1, 10),
)
def test_the_bound_of_rows_grows_with_all_that_it_depends_on(
    height: int, width: int, weight: float, sigma_xy: float, more: float
) -> None:
    less = bound(height, width, weight, sigma_xy)
    assert less <= bound(int(height * more), width, weight, sigma_xy)
    assert less <= bound(height, int(width * more), weight, sigma_xy)
    assert less <= bound(height, width, weight * more, sigma_xy)
    assert less <= bound(height, width, weight, sigma_xy * more)


def test_the_rows_of_the_default_preset_fit_halves_at_any_size() -> None:
    assert bound(2**13, 2**13, DEEPLAB.bi_w, DEEPLAB.bi_xy) < 65000


# ---------------------------------------------------------------- frozen pixels


@pytest.mark.parametrize("freeze", [0.5, 0.6, 0.7, 0.8])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("spatial", ["lattice", "separable"])
def test_frozen_pixels_keep_the_answer_of_their_logits_and_go_on_sending_it(
    spatial: str, masked: bool, freeze: float
) -> None:
    weak = CrfParams(2, 20, 20, 1, 3, 5)  # strong kernels would end in the same labels with and without
    pixels, logits = scene(36, 44, seed=3, noise=4)
    logits *= 0.6
    valid = np.random.default_rng(0).random((36, 44)) < 0.8 if masked else None
    exact, exact_full = (brute_force(pixels, logits, weak, valid, freeze=least) for least in (freeze, 1))
    ours, full = (refine(pixels, logits, weak, valid, spatial=spatial, freeze=least) for least in (freeze, 1.0))
    frozen = softmax(logits).max(0) > freeze
    np.testing.assert_allclose(ours[:, frozen], softmax(logits)[:, frozen], atol=1e-6)
    assert np.abs(ours - exact).mean() < 5e-3
    effect = (exact - exact_full)[:, ~frozen]
    assert np.abs(effect).mean() > 1e-3
    assert np.abs((ours - full)[:, ~frozen] - effect).mean() < 0.1 * np.abs(effect).mean()


@examples(60)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 140),
    classes=st.integers(2, 40),
    spatial=st.sampled_from(["lattice", "separable"]),
    small=st.booleans(),
    masked=st.booleans(),
    freeze=st.sampled_from([0.0, 0.5, 0.8, 0.97]),
    seed=st.integers(0, 99),
)
def test_freezing_at_any_size_is_one_iteration_at_a_time_with_the_frozen_put_back(
    height: int, width: int, classes: int, spatial: str, small: bool, masked: bool, freeze: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pixels, logits = scene(height, width, classes, seed=seed)
    grid = LogitsGrid(8, align_corners=bool(seed % 2)) if small else None
    logits = np.ascontiguousarray(logits[:, : -(-height // 8), : -(-width // 8)]) if small else logits
    valid = rng.random((height, width)) < 0.7 if masked else None
    params = replace(DEEPLAB, pos_xy=1 + seed % 3, iterations=2)
    engine = NativeCrf(spatial=spatial)
    got = engine.refine(pixels, logits, valid, params, grid=grid, freeze=freeze, labels=True, first=True)
    once = engine.refine(pixels, logits, valid, replace(params, iterations=1), grid=grid)
    np.testing.assert_allclose(got.probs_khw.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(got.labels_hw, got.probs_khw.argmax(0))
    frozen = got.confidence_hw > freeze
    alone = engine.refine(pixels, logits, valid, NO_KERNELS, grid=grid)
    np.testing.assert_array_equal(got.probs_khw[:, frozen], alone.probs_khw[:, frozen])
    one = engine.refine(pixels, logits, valid, replace(params, iterations=1), grid=grid, freeze=freeze)
    np.testing.assert_allclose(one.probs_khw[:, ~frozen], once.probs_khw[:, ~frozen], atol=1e-3)
    if not frozen.any():
        full = engine.refine(pixels, logits, valid, params, grid=grid)
        np.testing.assert_allclose(got.probs_khw, full.probs_khw, atol=1e-6)
    assert (got.iterations, one.iterations) == (2, 1)


def test_when_all_pixels_are_frozen_the_answer_is_the_softmax() -> None:
    pixels, logits = scene(33, 47)
    np.testing.assert_allclose(refine(pixels, logits, DEMO, freeze=0.0), softmax(logits), atol=1e-6)


def test_a_deadline_leaves_frozen_pixels_their_answer() -> None:
    pixels, logits = scene(200, 300, 21)
    cut = NativeCrf().refine(
        pixels, logits, None, replace(DEMO, iterations=1000), freeze=0.8, deadline=monotonic() + 0.3, labels=True
    )
    assert 0 < cut.iterations < 1000
    np.testing.assert_array_equal(cut.labels_hw, cut.probs_khw.argmax(0))
    frozen = softmax(logits).max(0) > 0.8
    np.testing.assert_allclose(cut.probs_khw[:, frozen], softmax(logits)[:, frozen], atol=1e-6)


# ---------------------------------------------------------------- pixels without data


@pytest.mark.parametrize("spatial", ["lattice", "separable"])
def test_pixels_that_are_not_valid_take_no_part_and_keep_their_answer(spatial: str) -> None:
    pixels, logits = scene(40, 36, seed=4)
    valid = np.ones((40, 36), bool)
    valid[:11] = valid[20:24, 5:30] = False
    ours = refine(pixels, logits, DEEPLAB, valid, spatial=spatial)
    exact = brute_force(pixels, logits, DEEPLAB, valid)
    assert np.abs(ours - exact).mean() < 5e-3
    np.testing.assert_allclose(ours[:, ~valid], softmax(logits)[:, ~valid], atol=1e-6)
    other_pixels, other_logits = pixels.copy(), logits.copy()
    other_pixels[~valid] = 0
    other_logits[:, ~valid] = -other_logits[:, ~valid]
    again = refine(other_pixels, other_logits, DEEPLAB, valid, spatial=spatial)
    np.testing.assert_array_equal(again[:, valid], ours[:, valid])


@pytest.mark.parametrize("spatial", ["lattice", "separable"])
def test_an_image_without_a_valid_pixel_comes_back_as_it_was(spatial: str) -> None:
    pixels, logits = scene(20, 30)
    none = np.zeros((20, 30), bool)
    np.testing.assert_allclose(refine(pixels, logits, DEEPLAB, none, spatial=spatial), softmax(logits), atol=1e-6)


def test_a_mask_that_is_true_everywhere_is_no_mask() -> None:
    pixels, logits = scene(30, 40)
    everywhere = np.ones((30, 40), bool)
    np.testing.assert_array_equal(refine(pixels, logits, DEEPLAB, everywhere), refine(pixels, logits, DEEPLAB))


# ---------------------------------------------------------------- one engine, many calls


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_do_not_depend_on_how_many_threads_share_an_engine_or_on_what_came_before(threads: int) -> None:
    engine = NativeCrf()
    cases = [scene(20 + 7 * i % 50, 90 - 11 * i % 60, 2 + 5 * i % 30, seed=i) for i in range(12)]
    alone = [refine(*case, DEEPLAB, spatial="auto") for case in cases]

    def call(i: int) -> Refined:
        engine.refine(*cases[i % 7], None, DEEPLAB, freeze=0.7)
        return engine.refine(*cases[i % 12], None, DEEPLAB)

    with ThreadPoolExecutor(threads) as pool:
        for i, got in enumerate(pool.map(call, range(36))):
            np.testing.assert_array_equal(got.probs_khw, alone[i % 12])


@pytest.mark.parametrize("params", [DEMO, DEEPLAB], ids=["demo", "deeplab-v2"])
def test_a_deadline_that_passes_leaves_the_best_so_far_and_says_how_many_iterations(params: CrfParams) -> None:
    pixels, logits = scene(200, 300, 21)
    engine = NativeCrf()
    late = engine.refine(pixels, logits, None, params, deadline=monotonic() - 1)
    assert late.iterations == 0
    np.testing.assert_allclose(late.probs_khw, softmax(logits), atol=1e-6)
    many = replace(params, iterations=1000)
    cut = engine.refine(pixels, logits, None, many, deadline=monotonic() + 0.3)
    assert 0 < cut.iterations < 1000
    same = engine.refine(pixels, logits, None, replace(params, iterations=cut.iterations))
    np.testing.assert_array_equal(cut.probs_khw, same.probs_khw)


@pytest.mark.parametrize("spatial", ["lattice", "separable"])
@pytest.mark.parametrize(("height", "width", "classes"), [(1, 1, 2), (64, 48, 21), (150, 200, 9), (3, 400, 40)])
@pytest.mark.parametrize("small", [False, True])
def test_memory_stays_below_what_is_said_even_on_noise(
    height: int, width: int, classes: int, spatial: str, small: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    cells = (ceil(height / 8), ceil(width / 8)) if small else (height, width)
    logits = np.random.default_rng(1).normal(size=(classes, *cells)).astype(np.float32)
    for params in (DEMO, DEEPLAB):
        engine = NativeCrf(spatial=spatial)
        freeze = 0.5 if params is DEMO else 1.0
        grid = LogitsGrid(8) if small else None
        got = engine.refine(pixels, logits, None, params, grid=grid, freeze=freeze, labels=True)
        said = bytes_needed(
            height,
            width,
            classes,
            params,
            spatial=spatial,
            cells=cells[0] * cells[1] if small else None,
            freeze=freeze,
        )
        assert engine.bytes_held + got.probs_khw.nbytes + got.labels_hw.nbytes <= said
        known = bytes_needed(
            height,
            width,
            classes,
            params,
            spatial=spatial,
            vertices_per_pixel=got.bilateral_vertices / (height * width),
            cells=cells[0] * cells[1] if small else None,
            freeze=freeze,
        )
        assert engine.bytes_held + got.probs_khw.nbytes + got.labels_hw.nbytes <= known <= said


def test_more_vertices_than_allowed_are_refused_and_the_engine_stays_usable() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    logits = np.random.default_rng(1).normal(size=(3, 40, 50)).astype(np.float32)
    engine = NativeCrf()
    free = engine.refine(pixels, logits, None, DEEPLAB)
    with pytest.raises(TooManyVertices, match="more than 2000 vertices"):
        engine.refine(pixels, logits, None, DEEPLAB, most_vertices=2000)
    again = engine.refine(pixels, logits, None, DEEPLAB, most_vertices=6 * 40 * 50)
    assert free.bilateral_vertices == again.bilateral_vertices > 2000
    np.testing.assert_array_equal(again.probs_khw, free.probs_khw)


# ---------------------------------------------------------------- hostile inputs


def test_read_only_and_strided_arrays_are_fine() -> None:
    pixels, logits = scene(30, 40)
    valid = np.ones((30, 40), bool)
    valid[:5] = False
    plain = refine(pixels, logits, DEMO, valid)
    wide = np.zeros((60, 80, 6), np.uint8)
    wide[::2, ::2, ::-2] = pixels
    fortran = np.asfortranarray(logits)
    for array in (wide, fortran, valid):
        array.flags.writeable = False
    np.testing.assert_array_equal(refine(wide[::2, ::2, ::-2], fortran, DEMO, valid.T.copy().T), plain)


GOOD = {"pixels_hwc": np.zeros((4, 5, 3), np.uint8), "logits_khw": np.zeros((3, 4, 5), np.float32)}


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"pixels_hwc": np.zeros((4, 5, 3))}, TypeError, "pixels_hwc has dtype float64, allowed is uint8"),
        ({"pixels_hwc": [[1]]}, TypeError, "pixels_hwc is a list"),
        ({"pixels_hwc": np.zeros((4, 5), np.uint8)}, ValueError, "pixels_hwc has 2 axes, not 3"),
        ({"pixels_hwc": np.zeros((4, 5, 9), np.uint8)}, ValueError, "9 bands, allowed are 1 to 8"),
        ({"pixels_hwc": np.zeros((0, 5, 3), np.uint8)}, ValueError, "0x5 pixels"),
        ({"pixels_hwc": np.zeros((5, 4, 3), np.uint8)}, ValueError, "small logits need a grid"),
        ({"logits_khw": np.zeros((3, 4, 5))}, TypeError, "logits_khw has dtype float64"),
        ({"logits_khw": np.zeros((1, 4, 5), np.float32)}, ValueError, "1 classes, allowed are 2 to 255"),
        ({"logits_khw": np.zeros((256, 4, 5), np.float32)}, ValueError, "256 classes"),
        ({"logits_khw": np.full((3, 4, 5), np.nan, np.float32)}, ValueError, "finite"),
        ({"logits_khw": np.full((3, 4, 5), -np.inf, np.float32)}, ValueError, "finite"),
        ({"logits_khw": np.full((3, 4, 5), 3e38, np.float32)}, ValueError, "within 1e30"),
        ({"logits_khw": np.zeros((3, 0, 5), np.float32), "grid": LogitsGrid(8)}, ValueError, "no cells"),
        ({"grid": LogitsGrid(0)}, ValueError, "out of range"),
        ({"grid": LogitsGrid(8, y=-1)}, ValueError, "out of range"),
        ({"valid_hw": np.ones((4, 5), np.uint8)}, TypeError, "valid_hw has dtype uint8"),
        ({"valid_hw": np.ones((5, 4), bool)}, ValueError, "valid_hw covers"),
        ({"params": CrfParams(1, 0, 1, 1, 1)}, ValueError, "bi_xy is 0"),
        ({"params": CrfParams(1, 1, np.nan, 1, 1)}, ValueError, "sigma of band 0 is nan"),
        ({"params": CrfParams(-1, 1, 1, 1, 1)}, ValueError, "bi_w is -1"),
        ({"params": CrfParams(1, 1, 1, np.inf, 1)}, ValueError, "pos_w is inf"),
        ({"params": CrfParams(1, 1, 1, 1, 1, 0)}, ValueError, "iterations is 0"),
        ({"band_sigmas": (1.0, 2.0)}, ValueError, "2 band_sigmas for 3 bands"),
        ({"freeze": -0.1}, ValueError, "freeze is -0.1, allowed is 0 to 1"),
        ({"freeze": np.nan}, ValueError, "freeze is nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_inputs_are_refused_with_what_was_seen(bad: dict, error: type, message: str) -> None:
    given = {**GOOD, "valid_hw": None, "params": DEMO, **bad}
    with pytest.raises(error, match=message):
        NativeCrf().refine(**given)


def test_a_sigma_too_small_for_the_lattice_is_refused() -> None:
    pixels, logits = scene(300, 400)
    with pytest.raises(ValueError, match="a sigma is too small"):
        refine(pixels, logits, replace(DEMO, bi_xy=1e-3))


def test_extreme_logits_stay_finite() -> None:
    pixels, logits = scene(20, 20)
    for scale in (1e-30, 1e3, 1e25):
        assert np.isfinite(refine(pixels, logits * np.float32(scale), DEMO)).all()


def test_an_engine_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="spatial must be auto, lattice or separable"):
        NativeCrf(spatial="fft")
    with pytest.raises(ValueError, match="no kernels for instruction set 'mmx'"):
        NativeCrf(isa="mmx")


def test_without_the_extension_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "UNAVAILABLE_BECAUSE", "it was not built")
    assert not native.available()
    with pytest.raises(RuntimeError, match="no native CRF: it was not built"):
        NativeCrf()
