import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.records import Item, Scored, Window
from pipeline.refine.unary import active_classes, cells_under, entropy, softmax, upsample_window

logits_of_a_few_cells = arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    elements=st.floats(-90, 90, width=32),
)


def scored_of(logits: np.ndarray, height: int, width: int, stride: int = 4, *, align_corners: bool = False) -> Scored:
    item = Item(key="k", shard="s", etag="e")
    return Scored(item, height=height, width=width, logits_khw=logits, stride=stride, align_corners=align_corners)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 8, 16]))
def test_upsampling_agrees_with_torch(height: int, width: int, stride: int) -> None:
    cells = -(-height // stride), -(-width // stride)
    logits = np.random.default_rng(height + 41 * width).normal(size=(3, *cells)).astype(np.float16)
    full = torch.nn.functional.interpolate(
        torch.from_numpy(logits.astype(np.float32))[None], scale_factor=stride, mode="bilinear", align_corners=False
    )[0, :, :height, :width]
    ours = upsample_window(logits, scored_of(logits, height, width, stride), Window(0, 0, height, width))
    np.testing.assert_allclose(ours, full.numpy(), atol=1e-5)


def test_upsampling_with_aligned_corners_agrees_with_torch_on_its_own_sizes() -> None:
    """An input of 16n+1 pixels has n+1 cells, the outermost ones on the outermost pixels."""
    logits = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float16)
    full = torch.nn.functional.interpolate(
        torch.from_numpy(logits.astype(np.float32))[None], size=(65, 97), mode="bilinear", align_corners=True
    )[0]
    ours = upsample_window(logits, scored_of(logits, 65, 97, 16, align_corners=True), Window(0, 0, 65, 97))
    np.testing.assert_allclose(ours, full.numpy(), atol=1e-5)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 10), st.integers(1, 10))
def test_a_window_of_the_upsampled_map_is_the_upsampled_window(y: int, x: int, height: int, width: int) -> None:
    logits = np.random.default_rng(7).normal(size=(2, 10, 10)).astype(np.float16)
    scored = scored_of(logits, 40, 40)
    whole = upsample_window(logits, scored, Window(0, 0, 40, 40))
    part = upsample_window(logits, scored, Window(y, x, height, width))
    np.testing.assert_allclose(part, whole[:, y : y + height, x : x + width], atol=1e-6)


@given(
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.booleans(),
)
def test_the_cells_under_a_window_give_its_pixels(
    y: int, x: int, height: int, width: int, stride: int, align_corners: bool
) -> None:
    window = Window(y, x, height, width)
    cells = -(-(y + height) // stride) + align_corners, -(-(x + width) // stride) + align_corners
    logits = np.random.default_rng(y).normal(size=(2, *cells)).astype(np.float16)
    scored = scored_of(logits, y + height, x + width, stride, align_corners=align_corners)
    few, first_y, first_x = cells_under(logits, scored, window)
    moved = Window(first_y, first_x, height, width)
    np.testing.assert_array_equal(upsample_window(few, scored, moved), upsample_window(logits, scored, window))
    assert few.shape[1] <= height // stride + 3
    assert few.shape[2] <= width // stride + 3


def test_pruning_drops_what_cannot_win_and_never_a_winner() -> None:
    logits = np.full((4, 2, 2), -8.0, np.float16)
    logits[1] = 0
    logits[2, 0, 0] = 0.1  # wins one cell
    assert active_classes(logits, prune=0.05)[0] == (1, 2)
    assert active_classes(logits, prune=0) == ((0, 1, 2, 3), 0)


def test_pruning_keeps_the_winners_of_a_uniform_image_of_many_classes() -> None:
    """With 150 classes the winner may itself be below the threshold."""
    logits = np.zeros((150, 3, 3), np.float16)
    logits[42] = 0.01
    assert active_classes(logits, prune=0.05)[0] == (42,)


def test_an_upsampled_window_and_the_cells_under_it_take_memory_for_themselves_and_not_for_the_image() -> None:
    """Only the cells that the window reads: one more on each side than it covers, at most."""
    logits = np.zeros((2, 100, 100), np.float16)
    read = Recording(logits)
    upsample_window(read, scored_of(logits, 800, 800, 8), Window(400, 80, 16, 24))
    assert read.rows == [slice(49, 53)]
    assert cells_under(logits, scored_of(logits, 800, 800, 8), Window(400, 80, 16, 24))[0].shape == (2, 4, 5)


class Recording:
    """Logits that remember which of their rows were read."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits, self.shape, self.rows = logits, logits.shape, []

    def __getitem__(self, at: tuple) -> np.ndarray:
        self.rows.append(at[1])
        return self.logits[at]


def test_the_last_pixels_of_a_long_image_lie_between_their_own_cells() -> None:
    """Positions stay exact in float32 on a side of 80 000 pixels."""
    logits = np.arange(20_000, dtype=np.float32)[None, :, None]
    found = upsample_window(logits, scored_of(logits, 80_000, 1), Window(79_000, 0, 900, 1))
    np.testing.assert_allclose(found[0, :, 0], (np.arange(79_000, 79_900) + 0.5) / 4 - 0.5)


@given(logits_of_a_few_cells)
def test_probabilities_are_the_softmax_of_torch_however_large_the_logits(logits: np.ndarray) -> None:
    probs = softmax(logits)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, torch.from_numpy(logits).double().softmax(0).numpy(), rtol=1e-4, atol=1e-7)


@given(logits_of_a_few_cells, st.floats(-60, 60, width=32))
def test_a_shift_common_to_all_classes_changes_no_probability(logits: np.ndarray, shift: float) -> None:
    np.testing.assert_allclose(softmax(logits + np.float32(shift)), softmax(logits), rtol=1e-3, atol=1e-6)


@given(logits_of_a_few_cells)
def test_entropy_is_shannons_in_nats(logits: np.ndarray) -> None:
    probs = softmax(logits)
    found = entropy(probs)
    assert found.shape == logits.shape[1:]
    expected = torch.distributions.Categorical(torch.from_numpy(probs).double().permute(1, 2, 0)).entropy()
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_entropy_is_0_for_a_certain_class_and_that_of_a_tie_is_the_logarithm_of_the_classes() -> None:
    certain, tie = np.zeros((4, 1, 1), np.float32), np.full((4, 1, 1), 0.25, np.float32)
    certain[2] = 1
    assert entropy(certain).item() == 0
    assert entropy(tie).item() == pytest.approx(np.log(4))


@given(logits_of_a_few_cells, st.sampled_from([0.001, 0.05, 0.3, 0.5, 1.0]))
def test_pruning_drops_exactly_the_classes_below_the_threshold_that_win_no_cell(
    logits: np.ndarray, prune: float
) -> None:
    logits = logits.astype(np.float16)
    probs = softmax(logits.astype(np.float32))
    ids, lost = active_classes(logits, prune=prune)
    kept = [k for k in range(len(logits)) if probs[k].max() >= prune or (probs.argmax(0) == k).any()]
    assert ids == tuple(kept)
    dropped = [k for k in range(len(logits)) if k not in kept]
    assert lost == pytest.approx(probs[dropped].astype(np.float64).sum(axis=0).mean() if dropped else 0, rel=1e-5)
    assert 0 <= lost < 1


def test_a_class_at_the_threshold_itself_is_kept() -> None:
    logits = np.zeros((2, 1, 1), np.float16)
    assert active_classes(logits, prune=0.5) == ((0, 1), 0.0)
    assert active_classes(logits, prune=0.51) == ((0,), 0.5)


def test_the_probability_of_dropped_classes_adds_up_over_an_image_of_many_cells() -> None:
    """A sum in single precision over millions of cells would stop growing."""
    logits = np.zeros((2, 1500, 1500), np.float16)
    logits[1] = -4.6
    p = float(softmax(np.array([[[0]], [[np.float16(-4.6)]]], np.float32))[1].item())
    assert active_classes(logits, prune=0.05) == ((0,), pytest.approx(p, rel=1e-6))
