"""Groups: Hellinger's distance, exact arithmetic, and clusters as good as scipy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans2

from pipeline.select import groups
from pipeline.select.candidates import Candidates
from pipeline.select.uncertainty import ranks_of


def some(pixels_nk: np.ndarray, brightness: float | np.ndarray = 0.0) -> Candidates:
    count = len(pixels_nk)
    light = np.broadcast_to(np.asarray(brightness, float), count)
    keys = np.array([f"k{number}" for number in range(count)], object)
    nothing = np.zeros(count)
    return Candidates(keys, np.arange(count, dtype=np.uint64), nothing, nothing, light, np.asarray(pixels_nk, np.int64))


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.lists(st.integers(0, 1000), min_size=4, max_size=4))
def test_the_distance_of_two_images_is_hellinger_s(first: list[int], second: list[int]) -> None:
    if not sum(first) or not sum(second):
        return
    p, q = np.array(first) / sum(first), np.array(second) / sum(second)
    points = groups.points_of(some([first, second]), 0.0)
    expected = np.sqrt(max(1 - np.sqrt(p * q).sum(), 0))
    assert np.linalg.norm(points[0] - points[1]) / groups.GRID == pytest.approx(expected, abs=0.002)


def test_brightness_counts_up_to_one_and_its_mean_stands_where_it_is_unknown() -> None:
    found = groups.points_of(some([[1, 0], [1, 0], [1, 0]], np.array([0.0, 255.0, np.nan])), 127.5)[:, -1]
    assert found.tolist() == [0, 1024, 512]


def test_points_are_whole_numbers_so_that_no_order_of_sums_changes_a_distance() -> None:
    pixels = np.random.default_rng(0).integers(0, 10**9, (50, 7))
    points = groups.points_of(some(pixels, 77.7), 0.0)
    assert np.array_equal(points, np.rint(points))
    assert points.min() >= 0
    assert points.max() <= groups.GRID


def test_clusters_are_as_tight_as_scipy_s() -> None:
    rng = np.random.default_rng(1)
    sample = some(rng.dirichlet(np.full(5, 0.3), 600) * 10**6, rng.random(600) * 255)
    points = groups.points_of(sample, 0.0)
    ours, theirs = [], []
    for seed in range(9):
        centres, _ = kmeans2(points, 12, iter=25, minit="++", seed=seed)
        theirs.append(groups.nearest(points, centres)[1].sum())
        ours.append(groups.nearest(points, groups.fit_groups(sample, 12, seed=seed).centres_gd)[1].sum())
    assert np.median(ours) <= 1.05 * np.median(theirs)


def test_fewer_different_images_than_groups_give_a_group_each() -> None:
    found = groups.fit_groups(some([[1, 0]] * 5 + [[0, 1]] * 5), 8, seed=0)
    assert len(found) == 2
    assert len(set(found.of(some([[1, 0], [0, 1], [3, 0]])).tolist())) == 2


def test_blocks_of_distances_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    points = groups.points_of(some(np.random.default_rng(2).integers(1, 100, (97, 4))), 0.0)
    whole = groups.nearest(points, points[:9])
    monkeypatch.setattr(groups, "_BLOCK", 10)
    for mine, theirs in zip(groups.nearest(points, points[:9]), whole, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_ranks_are_shares_of_the_run_below_and_half_of_the_equals(values: list[float]) -> None:
    nothing = np.zeros(len(values))
    rows = some(np.ones((len(values), 2)))
    rows = Candidates(rows.keys, rows.draws, np.array(values), nothing * np.nan, nothing, rows.pixels_nk)
    expected = [
        (sum(other < one for other in values) + sum(other <= one for other in values)) / 2 / len(values)
        for one in values
    ]
    np.testing.assert_allclose(ranks_of(rows).scores(rows), expected)
