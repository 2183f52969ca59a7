from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.functional.classification import binary_calibration_error

from pipeline.score.calibration import expected_calibration_error, reliability, reliability_curve
from tests.support.examples import examples

values = st.sampled_from([0, 1, 255])
triples = st.integers(0, 200).flatmap(
    lambda pixels: st.tuples(
        arrays(np.uint8, (1, pixels), elements=values),
        arrays(np.uint8, (1, pixels), elements=values),
        arrays(np.uint8, (1, pixels), elements=st.integers(0, 255)),
    )
)


@given(triples)
def test_pixels_are_counted_by_their_confidence(three) -> None:
    found = reliability(*three, ignore_id=255)
    truth, mask, confidence = (one[three[0] != 255] for one in three)
    for level in range(256):
        here = confidence == level
        assert found[level].tolist() == [(truth == mask)[here].sum(), here.sum()]


@given(triples, st.integers(0, 200))
def test_counts_of_parts_add_up_to_those_of_the_whole(three, cut: int) -> None:
    left, right = [one[:, :cut] for one in three], [one[:, cut:] for one in three]
    parts = reliability(*left, ignore_id=255) + reliability(*right, ignore_id=255)
    np.testing.assert_array_equal(parts, reliability(*three, ignore_id=255))


counts = arrays(np.int64, (256, 2), elements=st.integers(0, 50)).map(lambda counts: np.sort(counts, axis=1))


def slow_error(counts: np.ndarray, bins: int) -> float:
    """Guo 2017, eq. 3, with fractions: the bin of a confidence is ((m - 1) / bins, m / bins]."""
    error = Fraction(0)
    for m in range(1, bins + 1):
        low = Fraction(m - 1, bins) if m > 1 else Fraction(-1)
        levels = [level for level in range(256) if low < Fraction(level, 255) <= Fraction(m, bins)]
        right = sum(int(counts[level, 0]) for level in levels)
        sure = sum(int(counts[level, 1]) * Fraction(level, 255) for level in levels)
        error += abs(right - sure)
    return float(error / int(counts[:, 1].sum()))


@examples(25)
@given(counts.filter(lambda counts: counts[:, 1].any()), st.sampled_from([1, 2, 5, 10, 15, 17, 255]))
def test_the_error_is_its_definition_in_exact_fractions(counts: np.ndarray, bins: int) -> None:
    assert expected_calibration_error(counts, bins) == pytest.approx(slow_error(counts, bins), abs=1e-12)
    curve = reliability_curve(counts, bins)
    assert curve.pixels.sum() == counts[:, 1].sum()
    assert np.nansum(curve.accuracy * curve.pixels) == pytest.approx(counts[:, 0].sum())


@examples(25)
@given(counts.filter(lambda counts: counts[1:255, 1].any()))
def test_the_error_is_that_of_torchmetrics(counts: np.ndarray) -> None:
    """With 16 bins no level but 0 and 255 lies between two, which torchmetrics puts into the upper one."""
    counts[[0, 255]] = 0
    right, wrong = counts[:, 0], counts[:, 1] - counts[:, 0]
    levels = np.concatenate([np.repeat(np.arange(256), right), np.repeat(np.arange(256), wrong)])
    hit = np.concatenate([np.ones(right.sum()), np.zeros(wrong.sum())])
    # Of two classes: the confidence in the answer is that in class 1 where it is above a half, and in class 0 below.
    sure = torch.from_numpy(levels / 255)
    expected = binary_calibration_error(sure, torch.from_numpy(hit).long(), n_bins=16, norm="l1")
    assert expected_calibration_error(counts, 16) == pytest.approx(float(expected), abs=1e-6)


def test_who_is_as_often_right_as_sure_has_no_error_and_who_is_always_sure_has_that_of_being_wrong() -> None:
    counts = np.zeros((256, 2), np.int64)
    counts[51 * np.arange(6)] = [[20 * k, 100] for k in range(6)]
    assert expected_calibration_error(counts) == pytest.approx(0)
    counts[:] = 0
    counts[255] = 70, 100
    assert expected_calibration_error(counts) == pytest.approx(0.3)


def test_without_pixels_there_is_no_error() -> None:
    assert np.isnan(expected_calibration_error(np.zeros((256, 2), np.int64)))
