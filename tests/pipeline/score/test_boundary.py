import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion

from pipeline.score.boundary import boundary_iou, boundary_reach_px, boundary_rings, overlap

K = 3
values = st.sampled_from([0, 1, 2, 255])
maps = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=values, fill=values)


def trimap(truth: np.ndarray, width: float) -> np.ndarray:
    return boundary_rings(truth, [width]) == 0


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Maps of the same size, in blocks of 1 to 3 pixels, so that there is something inside of boundaries."""
    height, width, block = draw(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)))
    both = (draw(arrays(np.uint8, (height, width), elements=values)) for _ in range(2))
    truth, mask = (np.kron(one, np.ones((block, block), np.uint8)) for one in both)
    return truth, mask


@given(maps)
def test_a_wider_band_holds_a_narrower_one(truth: np.ndarray) -> None:
    bands = [trimap(truth, width) for width in (0, 1, 2, 5, 100)]
    assert not bands[0].any()
    for narrow, wide in itertools.pairwise(bands):
        assert (wide >= narrow).all()
    assert bands[-1].all() == (len(np.unique(truth)) > 1)


@given(maps, st.lists(st.floats(0, 20), unique=True, max_size=6).map(sorted))
def test_rings_are_the_bands_without_the_narrower_ones(truth: np.ndarray, widths: list[float]) -> None:
    found = boundary_rings(truth, widths)
    for index, width in enumerate(widths):
        np.testing.assert_array_equal(found <= index, trimap(truth, width))


@given(maps)
def test_without_widths_no_pixel_is_in_a_band_and_254_are_as_many_as_there_may_be(truth: np.ndarray) -> None:
    assert not boundary_rings(truth, []).any()
    rings = boundary_rings(truth, range(254))
    assert rings.dtype == np.uint8
    np.testing.assert_array_equal(rings == 1, trimap(truth, 1))
    assert (rings == 254).all() == (len(np.unique(truth)) == 1)  # without a boundary all are outside


def test_a_band_holds_pixels_nearer_than_its_width_and_none_at_it() -> None:
    """The pixels on either side of a boundary are at 0, those behind them at 1."""
    truth = np.array([[0, 0, 0, 1, 1, 1]], np.uint8)
    assert boundary_rings(truth, [0, 1, 2]).tolist() == [[3, 2, 1, 1, 2, 3]]
    assert boundary_rings(truth, [1.5, 2.5]).tolist() == [[1, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("widths", [[3, 2], [1, 1], [-1], list(range(255))])
def test_widths_that_are_no_bands_are_refused(widths: list[int]) -> None:
    with pytest.raises(ValueError, match="widths of bands must increase strictly"):
        boundary_rings(np.zeros((2, 2), np.uint8), widths)


def contour(labels: np.ndarray, k: int, reach: int) -> np.ndarray:
    """As in the code of Boundary IoU's authors: the mask, less what is left of it after `reach` erosions by 3x3."""
    inside = labels == k
    return inside & ~binary_erosion(inside, np.ones((3, 3)), iterations=reach, border_value=0)


@given(pairs(), st.integers(1, 4))
def test_contours_overlap_as_eroding_each_class_says(pair, reach: int) -> None:
    truth, mask = pair
    found = overlap(truth, mask, K, ignore_id=255, reach_px=reach)
    for k in range(K):
        ours, theirs = contour(truth, k, reach), contour(mask, k, reach) & (truth != 255)
        assert found[k].tolist() == [ours.sum(), theirs.sum(), (ours & theirs).sum()]
    either = (found[:, 0] + found[:, 1] - found[:, 2]) > 0
    np.testing.assert_array_equal(boundary_iou(found)[either], found[either, 2] / (found @ [1, 1, -1])[either])
    assert np.isnan(boundary_iou(found)[~either]).all()


@given(arrays(np.int64, (4, 2, 5, 2), elements=st.integers(0, 50)))
def test_boundary_iou_of_many_images_is_that_of_each(counts: np.ndarray) -> None:
    """(..., K, 3): counts of images and settings in front of the classes."""
    truth, answer = counts[..., 0] + counts[..., 1], counts[..., 1] + 3
    boundary = np.stack([truth, answer, np.minimum(truth, answer)], axis=-1)
    found = boundary_iou(boundary)
    assert found.shape == (4, 2, 5)
    for index in np.ndindex(4, 2):
        np.testing.assert_array_equal(found[index], boundary_iou(boundary[index]))


@given(maps, st.integers(1, 9))
def test_the_truth_has_a_boundary_iou_of_1_with_itself(truth: np.ndarray, reach: int) -> None:
    found = boundary_iou(overlap(truth, truth, K, ignore_id=255, reach_px=reach))
    assert set(found[np.isin(range(K), truth)]) <= {1.0}


def test_boundary_iou_sees_what_iou_does_not() -> None:
    """Two large squares that are a pixel apart: nearly the same, but for their rims."""
    truth, mask = np.zeros((2, 60, 60), np.uint8)
    truth[10:50, 10:50], mask[10:50, 11:51] = 1, 1
    narrow, wide = (boundary_iou(overlap(truth, mask, 2, ignore_id=255, reach_px=reach))[1] for reach in (1, 30))
    iou = ((truth & mask).sum()) / ((truth | mask).sum())
    assert narrow < 0.4 < 0.9 < iou
    assert wide == pytest.approx(iou)


@pytest.mark.parametrize(("height", "width", "reach"), [(512, 512, 14), (1024, 2048, 46), (3, 4, 1), (1, 1, 1)])
def test_the_reach_is_2_percent_of_the_diagonal_and_at_least_1(height: int, width: int, reach: int) -> None:
    assert boundary_reach_px(height, width) == reach
