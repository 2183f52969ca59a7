import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import PixelStats
from pipeline.refine.unary import entropy, softmax


def example(seed: int, height: int = 6, width: int = 8):
    rng = np.random.default_rng(seed)
    probs = softmax(rng.normal(size=(5, height, width)).astype(np.float32) * 3)
    return probs.argmax(0).astype(np.uint8), probs, rng.random((height, width)) < 0.3, rng.random((height, width)) < 0.8


def counted(*windows) -> PixelStats:
    stats = PixelStats(np.zeros(5, np.int64))
    for window in windows:
        mask, probs, changed, valid = window
        stats.add(mask, probs.max(axis=0), entropy(probs), changed, valid)
    return stats


@given(st.integers(0, 100))
def test_statistics_agree_with_a_loop_over_pixels(seed: int) -> None:
    mask, probs, changed, valid = example(seed)
    stats = counted((mask, probs, changed, valid))
    pixels, confidence, disorder, moved = [0] * 5, 0.0, 0.0, 0
    for y, x in zip(*np.nonzero(valid), strict=True):
        pixels[mask[y, x]] += 1
        p = probs[:, y, x].astype(float)
        confidence += p.max()
        disorder += -(p * np.log(p)).sum() / np.log(5)
        moved += bool(changed[y, x])
    assert stats.class_pixels.tolist() == pixels
    assert stats.changed_pixels == moved
    np.testing.assert_allclose([stats.confidence_sum, stats.entropy_sum], [confidence, disorder], rtol=1e-4)


@given(st.integers(0, 50), st.integers(1, 5))
def test_windows_add_up_to_the_whole(seed: int, at: int) -> None:
    whole = example(seed)
    top, bottom = (tuple(part[..., rows, :] for part in whole) for rows in (slice(None, at), slice(at, None)))
    one, two = counted(whole), counted(top, bottom)
    assert one.class_pixels.tolist() == two.class_pixels.tolist()
    assert one.valid_pixels == two.valid_pixels
    np.testing.assert_allclose(one.entropy_sum, two.entropy_sum, rtol=1e-5)


def test_entropy_is_zero_for_certainty_and_one_for_a_tie() -> None:
    certain = np.zeros((4, 1, 1), np.float32)
    certain[2] = 1
    assert entropy(certain).item() == 0
    assert abs(entropy(np.full((4, 1, 1), 0.25, np.float32)).item() - np.log(4)) < 1e-5


def test_no_valid_pixel_gives_means_of_zero() -> None:
    mask, probs, changed, _ = example(1)
    stats = counted((mask, probs, changed, np.zeros(mask.shape, bool)))
    assert stats.mean(stats.confidence_sum) == 0
