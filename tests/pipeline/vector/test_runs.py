"""Runs and components against scipy's labelling of one class at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from pipeline.vector.runs import find_components, find_runs

masks = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 3))


@given(masks)
def test_runs_written_out_again_are_the_mask(ids: np.ndarray) -> None:
    runs = find_runs(ids)
    np.testing.assert_array_equal(np.repeat(runs.class_ids, runs.lengths).reshape(ids.shape), ids)
    np.testing.assert_array_equal(runs.class_ids[runs.pixel_runs()], ids)
    rows = runs.starts // ids.shape[1]
    assert ((runs.starts + runs.lengths - 1) // ids.shape[1] == rows).all()


@given(masks)
def test_components_are_those_of_scipy_class_by_class(ids: np.ndarray) -> None:
    labels = find_components(ids).labels()
    for class_id in np.unique(ids):
        expected, count = ndimage.label(ids == class_id)
        here = ids == class_id
        pairs = np.unique(np.stack([expected[here], labels[here]]), axis=1)
        assert pairs.shape[1] == count == len(np.unique(labels[here]))


@given(masks)
def test_components_are_numbered_in_the_order_of_their_first_pixels(ids: np.ndarray) -> None:
    labels = find_components(ids).labels().ravel()
    _, first = np.unique(labels, return_index=True)
    assert (np.diff(first) > 0).all()
    assert labels[0] == 0


@given(masks, st.integers(0, 2**31))
def test_sums_of_components_are_those_of_their_pixels(ids: np.ndarray, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, ids.shape, np.uint8)
    found = find_components(ids)
    labels = found.labels()
    np.testing.assert_array_equal(
        found.total(found.runs.sums(values)), np.bincount(labels.ravel(), values.ravel().astype(float))
    )
    np.testing.assert_array_equal(found.total(found.runs.lengths), np.bincount(labels.ravel()))
    np.testing.assert_array_equal(found.class_ids[labels], ids)
