"""Histograms of stored values: sums over shards are those of all pixels at once, and NumPy is the oracle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets.levels import add_levels, count_levels, summarise_levels
from pipeline.image.scale import eight_bits

DTYPES = ("uint8", "uint16", "int16", "float32")


def pixels(dtype: str, count: int = 5000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal([[0.2], [0.6]], 0.1, (2, count))
    if dtype == "float32":
        return (values * 300 - 100).astype(np.float32)
    limits = np.iinfo(dtype)
    return (limits.min + values.clip(0, 1) * (int(limits.max) - int(limits.min))).astype(dtype)


@given(
    cuts=st.lists(st.integers(1, 4999), max_size=6, unique=True), dtype=st.sampled_from(DTYPES), turned=st.booleans()
)
def test_sums_of_parts_are_the_histogram_of_all_in_any_order(cuts: list[int], dtype: str, turned: bool) -> None:
    values = pixels(dtype)
    parts = [count_levels(part) for part in np.split(values, sorted(cuts), axis=1)]
    assert add_levels(parts[::-1] if turned else parts) == add_levels([count_levels(values)])


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_statistics_of_integers_are_exact(dtype: str) -> None:
    values = pixels(dtype)
    summary = summarise_levels(count_levels(values), ["red", "nir"])
    np.testing.assert_allclose(summary.mean, values.mean(axis=1, dtype=np.float64))
    np.testing.assert_allclose(summary.std, values.std(axis=1, dtype=np.float64))
    for share, found in ((2, summary.low), (98, summary.high)):
        np.testing.assert_array_equal(found, np.percentile(values, share, axis=1, method="inverted_cdf"))
    levels = eight_bits(values.T, summary.scale) / 255
    np.testing.assert_allclose(summary.level_mean, levels.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(summary.level_std, levels.std(axis=0), atol=1e-6)
    assert (summary.scale is None) == (dtype == "uint8")


@given(seed=st.integers(0, 20), offset=st.sampled_from([-1e6, 0.0, 290.0]), size=st.sampled_from([1e-3, 1.0, 1e5]))
def test_percentiles_of_floats_are_known_to_one_part_in_4096(seed: int, offset: float, size: float) -> None:
    values = (np.random.default_rng(seed).normal(offset, size, (1, 3000))).astype(np.float32)
    summary = summarise_levels(count_levels(values), ["red"])
    for share, found in ((2, summary.low), (98, summary.high)):
        exact = np.percentile(values.astype(np.float64), share, method="inverted_cdf")
        assert abs(found[0] - exact) <= abs(exact) / 4096


def test_a_constant_band_has_a_scale_and_a_deviation_to_divide_by() -> None:
    summary = summarise_levels(count_levels(np.full((1, 10), 7, np.uint16)), ["red"])
    assert summary.scale is not None
    assert summary.scale.low < summary.scale.high
    assert summary.level_std == [1.0]
