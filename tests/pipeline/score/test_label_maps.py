from collections.abc import Iterator
from math import ceil, hypot

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.score import label_maps
from pipeline.score.label_maps import has_neighbour, index_of, joint_counts, lookup_rings
from tests.support.examples import examples

NOT_BUILT = pytest.mark.skipif(label_maps._native is None, reason=str(label_maps.UNAVAILABLE_BECAUSE))
ALL = np.arange(256, dtype=np.uint8)


@pytest.fixture(params=["numpy", pytest.param("native", marks=NOT_BUILT)], scope="module", autouse=True)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test of this file runs with the extension and without it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(label_maps, "_native", None)
        yield request.param


@st.composite
def streaks(draw: st.DrawFn, shape: tuple[int, int], largest: int = 255) -> np.ndarray:
    """Values in runs of any length, as labels have them: words of eight equal pixels, words of several, a rest."""
    runs = draw(st.lists(st.tuples(st.integers(0, largest), st.integers(1, 40)), min_size=1, max_size=20))
    values, lengths = zip(*runs, strict=True)
    return np.resize(np.repeat(np.array(values, np.uint8), lengths), shape)


shapes = st.tuples(st.integers(1, 12), st.integers(1, 40))
maps = shapes.flatmap(lambda shape: streaks(shape, 2))
triples = shapes.flatmap(lambda shape: st.tuples(streaks(shape), streaks(shape), streaks(shape, 2)))
tables = st.tuples(st.integers(1, 255), st.integers(0, 99)).map(
    lambda of: np.random.default_rng(of[1]).integers(0, of[0], 256).astype(np.uint8)
)


@given(triples, tables, tables)
def test_values_that_meet_are_counted_as_a_loop_counts_them(three, row_of: np.ndarray, column_of: np.ndarray) -> None:
    expected = np.zeros((3, row_of.max() + 1, column_of.max() + 1), np.int64)
    for row, column, group in zip(*(one.ravel() for one in three), strict=True):
        expected[group, row_of[row], column_of[column]] += 1
    np.testing.assert_array_equal(joint_counts(*three, row_of=row_of, column_of=column_of, groups=3), expected)
    together = joint_counts(*three[:2], row_of=row_of, column_of=column_of)
    np.testing.assert_array_equal(together, expected.sum(axis=0, keepdims=True))


def test_maps_may_lie_in_memory_as_they_like() -> None:
    rng = np.random.default_rng(0)
    rows, columns, groups = rng.integers(0, 3, (3, 14, 22)).astype(np.uint8)[:, ::-2, 1::3]
    expected = joint_counts(rows.copy(), columns.copy(), groups.copy(), row_of=ALL, column_of=ALL, groups=3)
    np.testing.assert_array_equal(joint_counts(rows, columns, groups, row_of=ALL, column_of=ALL, groups=3), expected)
    np.testing.assert_array_equal(lookup_rings(rows, ALL[:10]), lookup_rings(rows.copy(), ALL[:10]))
    np.testing.assert_array_equal(has_neighbour(rows.T, 1), has_neighbour(rows.T.copy(), 1))


def test_counts_of_nothing_are_0() -> None:
    nothing = np.zeros((0, 5), np.uint8)
    assert joint_counts(nothing, nothing, nothing, row_of=ALL, column_of=ALL, groups=2).sum() == 0
    assert lookup_rings(nothing, ALL[:10]).shape == has_neighbour(nothing, 3).shape == (0, 5)


def test_a_group_that_is_not_there_is_refused() -> None:
    flat = np.zeros((2, 9), np.uint8)
    groups = flat.copy()
    groups[1, 8] = 2
    with pytest.raises(ValueError, match="a group that is not there"):
        joint_counts(flat, flat, groups, row_of=ALL, column_of=ALL, groups=2)


def test_maps_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError):
        joint_counts(np.zeros((2, 3), np.uint8), np.zeros((2, 4), np.uint8), row_of=ALL, column_of=ALL)


@pytest.mark.parametrize(
    ("num_classes", "ignore_id"), [(2, 255), (21, 255), (21, 30), (254, 255), (254, 254), (255, 255)]
)
def test_every_byte_is_a_class_or_ignored_or_neither(num_classes: int, ignore_id: int) -> None:
    index = index_of(num_classes, ignore_id)
    np.testing.assert_array_equal(index[:num_classes], ALL[:num_classes])
    assert np.flatnonzero(index == num_classes).tolist() == [ignore_id]
    assert (np.delete(index, ignore_id)[num_classes:] == num_classes + 1).all()


def slow_distance(labels: np.ndarray) -> np.ndarray:
    height, width = labels.shape
    edges = [
        (y, x)
        for y in range(height)
        for x in range(width)
        for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1))
        if 0 <= v < height and 0 <= u < width and labels[v, u] != labels[y, x]
    ]
    yy, xx = np.mgrid[:height, :width]
    return np.min([np.full(labels.shape, 10**6)] + [(yy - y) ** 2 + (xx - x) ** 2 for y, x in edges], axis=0)


@examples(50)
@given(maps, st.integers(0, 15))
def test_distances_to_boundaries_are_those_of_a_search(labels: np.ndarray, cap: int) -> None:
    """Each square of a distance up to 15 pixels is told apart, and everything beyond the cap is one."""
    ring_of = np.arange(cap**2 + 1).astype(np.uint8)
    np.testing.assert_array_equal(lookup_rings(labels, ring_of), ring_of[np.minimum(slow_distance(labels), cap**2)])


@pytest.mark.parametrize("cap", [100, 127, 128, 200])
def test_distances_are_right_on_both_sides_of_what_16_bits_hold(cap: int) -> None:
    labels = np.zeros((260, 230), np.uint8)
    labels[3, 5] = 1
    far = np.minimum([[ceil(hypot(max(abs(y - 3) - 1, 0), x - 5)) for x in range(230)] for y in range(260)], cap)
    ring_of = np.ceil(np.sqrt(np.arange(cap**2 + 1))).astype(np.uint8)
    found = lookup_rings(labels, ring_of)
    assert found[3, 5] == found[4, 5] == found[3, 6] == 0
    assert found[4, 6] == 1
    np.testing.assert_array_equal(found[:, 5], far[:, 5])
    assert found.max() == cap


def slow_neighbour(labels: np.ndarray, reach: int) -> np.ndarray:
    padded = np.pad(labels.astype(int), reach, constant_values=-1)
    side = 2 * reach + 1
    squares = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    return (squares != labels[..., None, None]).any(axis=(2, 3))


@given(maps, st.integers(0, 5))
def test_a_neighbour_is_found_where_a_look_at_the_square_finds_one(labels: np.ndarray, reach: int) -> None:
    np.testing.assert_array_equal(has_neighbour(labels, reach), slow_neighbour(labels, reach))


@pytest.mark.parametrize("reach", [4, 5, 10**6])
def test_where_the_square_is_larger_than_the_map_every_pixel_has_a_neighbour(reach: int) -> None:
    if label_maps._native is None and reach > 100:
        pytest.skip("scipy takes long")
    assert has_neighbour(np.zeros((9, 9), np.uint8), 4).sum() == 80
    assert has_neighbour(np.zeros((9, 9), np.uint8), reach).all() == (reach > 4)
