from time import monotonic

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DeadlinePassed
from pipeline.refine.domain_transform import domain_transform_marginals, gradients, smooth_scores
from pipeline.refine.presets import DomainTransformParams
from pipeline.refine.unary import softmax
from tests.support.examples import examples

PAPER = DomainTransformParams()
SHARP = DomainTransformParams(sigma_r=1e-4)


def scene(height: int, width: int, *, num_classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return pixels // 16 + 100, rng.normal(size=(num_classes, height, width)).astype(np.float32)


def slow(
    scores: np.ndarray, rows: np.ndarray, columns: np.ndarray, valid: np.ndarray, params: DomainTransformParams
) -> np.ndarray:
    """Pixel by pixel, as Gastal and Oliveira 2011 write it, in float64."""
    result = scores.astype(float)
    height, width = valid.shape
    for i in range(1, params.iterations + 1):
        sigma = params.sigma_s * np.sqrt(3) * 2 ** (params.iterations - i) / np.sqrt(4**params.iterations - 1)
        a = np.exp(-np.sqrt(2) / sigma)
        for y in range(height):
            feedback = [
                a ** (1 + params.sigma_s / params.sigma_r * columns[y, x - 1]) * (valid[y, x] and valid[y, x - 1])
                for x in range(1, width)
            ]
            recurse(result[:, y, :], feedback)
        for x in range(width):
            feedback = [
                a ** (1 + params.sigma_s / params.sigma_r * rows[y - 1, x]) * (valid[y, x] and valid[y - 1, x])
                for y in range(1, height)
            ]
            recurse(result[:, :, x], feedback)
    return result


def recurse(line: np.ndarray, feedback: list[float]) -> None:
    for i, w in enumerate(feedback):
        line[:, i + 1] = (1 - w) * line[:, i + 1] + w * line[:, i]
    for i in range(len(feedback) - 1, -1, -1):
        line[:, i] = (1 - feedback[i]) * line[:, i] + feedback[i] * line[:, i + 1]


@examples(25)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.floats(0.05, 5),
    st.sampled_from([1.0, 0.7]),
    st.integers(0, 99),
)
def test_the_filter_is_the_papers(
    height: int, width: int, iterations: int, sigma_r: float, valid_share: float, seed: int
) -> None:
    pixels, scores = scene(height, width, seed=seed)
    valid = np.random.default_rng(seed).random((height, width)) < valid_share
    params = DomainTransformParams(sigma_s=7, sigma_r=sigma_r, iterations=iterations)
    rows, columns = gradients(pixels)
    expected = slow(scores, rows, columns, valid, params)
    np.testing.assert_allclose(smooth_scores(scores, rows, columns, valid, params), expected, atol=1e-4)


def test_edges_of_an_image_are_sums_over_its_bands_whichever_side_is_brighter() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 1] = 255, 0, 51
    rows, columns = gradients(pixels)
    np.testing.assert_allclose(rows, [[0, 1.2, 0]])
    np.testing.assert_allclose(columns, [[1.2, 1.2], [0, 0]])


def test_an_image_of_one_colour_is_smoothed_with_about_the_sigma_that_was_asked_for() -> None:
    """The response to an impulse in the middle: its variance along one axis is sigma_s squared."""
    scores = np.zeros((1, 1, 401), np.float32)
    scores[0, 0, 200] = 1
    params = DomainTransformParams(sigma_s=12)
    response = smooth_scores(scores, np.zeros((0, 401)), np.zeros((1, 400)), None, params)[0, 0]
    offsets = np.arange(401) - 200
    assert response.sum() == pytest.approx(1, abs=1e-3)
    assert (response * offsets).sum() == pytest.approx(0, abs=0.1)
    assert np.sqrt((response * offsets**2).sum()) == pytest.approx(12, rel=0.05)


def test_nothing_crosses_an_edge_when_sigma_r_is_tiny() -> None:
    pixels = np.full((20, 30, 3), 90, np.uint8)
    pixels[:, 13:] = 91
    _, logits = scene(20, 30)
    louder = logits.copy()
    louder[:, :, 13:] *= 50
    one, two = (domain_transform_marginals(pixels, scores, None, SHARP) for scores in (logits, louder))
    np.testing.assert_array_equal(one[:, :, :13], two[:, :, :13])
    assert np.abs(one[:, :, :13] - softmax(logits)[:, :, :13]).max() > 0.1


@given(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32))
def test_the_filter_is_linear(a: float, b: float) -> None:
    pixels, one = scene(8, 11)
    _, other = scene(8, 11, seed=1)
    rows, columns = gradients(pixels)
    mixed = smooth_scores(np.float32(a) * one + np.float32(b) * other, rows, columns, None, PAPER)
    parts = [smooth_scores(scores, rows, columns, None, PAPER) for scores in (one, other)]
    np.testing.assert_allclose(mixed, np.float32(a) * parts[0] + np.float32(b) * parts[1], atol=1e-4)


def test_scores_that_are_the_same_everywhere_stay_and_all_stay_within_their_range() -> None:
    pixels, scores = scene(20, 25)
    rows, columns = gradients(pixels)
    same = np.full_like(scores, 2.5)
    np.testing.assert_allclose(smooth_scores(same, rows, columns, None, PAPER), same, atol=1e-5)
    smooth = smooth_scores(scores, rows, columns, None, PAPER)
    assert scores.min() <= smooth.min() < smooth.max() <= scores.max()


def test_a_transposed_image_differs_by_the_order_of_the_passes_only() -> None:
    """Rows come before columns: equal where only one of the two does anything."""
    pixels, scores = scene(1, 30)
    tall = domain_transform_marginals(pixels.transpose(1, 0, 2), scores.transpose(0, 2, 1), None, PAPER)
    np.testing.assert_allclose(
        tall, domain_transform_marginals(pixels, scores, None, PAPER).transpose(0, 2, 1), atol=1e-6
    )
    pixels, scores = scene(30, 30)
    params = DomainTransformParams(sigma_s=5)
    wide, tall = (
        domain_transform_marginals(np.full_like(pixels, 9), scores, None, params),
        domain_transform_marginals(np.full_like(pixels, 9), scores.transpose(0, 2, 1).copy(), None, params).transpose(
            0, 2, 1
        ),
    )
    np.testing.assert_allclose(wide, tall, atol=1e-5)  # without edges the two passes commute


def test_pixels_that_are_not_valid_keep_their_scores_and_let_nothing_through() -> None:
    pixels, logits = scene(16, 21)
    valid = np.ones((16, 21), bool)
    valid[:, 10] = False
    louder = logits.copy()
    louder[:, :, 10:] *= 50
    one, two = (domain_transform_marginals(pixels, scores, valid, PAPER) for scores in (logits, louder))
    np.testing.assert_array_equal(one[:, :, :10], two[:, :, :10])
    np.testing.assert_array_equal(one[:, :, 10], softmax(logits)[:, :, 10])
    nothing = domain_transform_marginals(pixels, logits, np.zeros_like(valid), PAPER)
    np.testing.assert_array_equal(nothing, softmax(logits))


@examples(30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(2, 30), st.permutations(range(4)))
def test_any_size_gives_probabilities_and_classes_do_not_mix(
    height: int, width: int, num_classes: int, order: list[int]
) -> None:
    pixels, logits = scene(height, width, num_classes=max(num_classes, 4))
    before = logits.copy()
    probs = domain_transform_marginals(pixels, logits, None, PAPER)
    assert (probs.shape, probs.dtype) == (logits.shape, np.float32)
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_allclose(
        domain_transform_marginals(pixels, logits[order], None, PAPER), softmax(logits_of(pixels, logits)[order])
    )


def logits_of(pixels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    return smooth_scores(logits, *gradients(pixels), None, PAPER)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pixels_hwc": np.zeros((8, 9, 3), np.float32)}, "uint8"),
        ({"pixels_hwc": np.zeros((8, 9), np.uint8)}, "pixels"),
        ({"logits_khw": np.zeros((3, 8, 9), np.float64)}, "float32"),
        ({"logits_khw": np.zeros((3, 9, 8), np.float32)}, "logits"),
        ({"valid_hw": np.ones((8, 9), np.uint8)}, "bool"),
        ({"valid_hw": np.ones((9, 8), bool)}, "valid"),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(wrong: dict, message: str) -> None:
    right = {
        "pixels_hwc": np.zeros((8, 9, 3), np.uint8),
        "logits_khw": np.zeros((3, 8, 9), np.float32),
        "valid_hw": None,
    }
    with pytest.raises(ValueError, match=message):
        domain_transform_marginals(**(right | wrong), params=PAPER)


@pytest.mark.parametrize("changes", [{"sigma_s": 0}, {"sigma_r": -1}, {"iterations": 0}])
def test_sigmas_and_iterations_that_mean_nothing_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="sigmas"):
        DomainTransformParams(**changes)


def test_no_iteration_starts_after_the_deadline() -> None:
    pixels, logits = scene(8, 8)
    with pytest.raises(DeadlinePassed, match="after 0 of 3 iterations"):
        domain_transform_marginals(pixels, logits, None, PAPER, deadline=monotonic() - 1)
