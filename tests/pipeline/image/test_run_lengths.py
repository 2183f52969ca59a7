"""Run-length codes: round trips, codes that the tools' own packages made, and damage."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.image import run_lengths
from pipeline.image.run_lengths import BoxedRuns

MASK = np.array([[0, 1, 1], [0, 0, 1]], bool)
MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


def alpha_by_the_page(data: bytes) -> list[int]:
    """Alpha of each pixel, by the description of rle-pack bit by bit: slow, and written without our decoder."""
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def number(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    size, word = number(32), number(5) + 1
    widths = [number(4) + 1 for _ in range(4)]
    words: list[int] = []
    while len(words) < size:
        run = number(1)
        length = number(widths[number(2)]) + 1
        words += [number(word)] * length if run else [number(word) for _ in range(length)]
    assert len(words) == size
    return words[3::4]


@given(MASKS)
def test_a_brush_decodes_to_its_mask_by_ours_and_by_the_page(mask_hw: np.ndarray) -> None:
    code = run_lengths.encode_brush(mask_hw)
    assert alpha_by_the_page(code) == (mask_hw.ravel() * 255).tolist()
    np.testing.assert_array_equal(run_lengths.decode_brush(code, *mask_hw.shape), mask_hw)


def test_a_run_longer_than_one_block_can_say_is_cut() -> None:
    mask_hw = np.ones((300, 301), bool)
    mask_hw[100] = False
    np.testing.assert_array_equal(run_lengths.decode_brush(run_lengths.encode_brush(mask_hw), 300, 301), mask_hw)


@pytest.mark.parametrize(
    "code",
    [
        [0, 0, 0, 24, 57, 27, 252, 96, 19, 255, 206, 1, 31, 248],  # white
        [
            *(0, 0, 0, 24, 57, 27, 252, 96, 0, 6, 1, 144, 0, 56, 31, 224),  # a colour, whose bytes differ
            *(6, 1, 144, 0, 56, 31, 243, 128, 0, 24, 6, 64, 0, 224, 127, 128),
        ],
    ],
)
def test_brushes_that_label_studio_s_own_package_made_are_read(code: list[int]) -> None:
    """label-studio-sdk 2.1.2, `converter.brush.encode_rle`."""
    np.testing.assert_array_equal(run_lengths.decode_brush(bytes(code), 2, 3), MASK)


def test_words_that_are_no_run_are_read() -> None:
    """One block of 24 words, as rle-pack writes what does not repeat; no encoder of Python does."""
    rgba = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    rgba[..., 3] = MASK * 9
    text = f"{24:032b}{7:05b}" + "".join(f"{bits - 1:04b}" for bits in (3, 4, 8, 16)) + f"010{23:08b}"
    text += "".join(f"{value:08b}" for value in rgba.ravel())
    code = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8))
    np.testing.assert_array_equal(run_lengths.decode_brush(code, 2, 3), MASK)


@given(st.binary(max_size=40))
def test_damaged_brushes_end_in_a_value_error(data: bytes) -> None:
    whole = run_lengths.encode_brush(MASK)
    for code in (data, whole[:7] + data):
        with contextlib.suppress(ValueError):
            assert run_lengths.decode_brush(code, 2, 3).shape == (2, 3)


def test_a_brush_of_another_size_is_refused_before_anything_is_allocated() -> None:
    code = (2**32 - 1).to_bytes(4) + run_lengths.encode_brush(MASK)[4:]
    with pytest.raises(ValueError, match="4294967295 words of 8 bits is none of 2x3"):
        run_lengths.decode_brush(code, 2, 3)


@given(MASKS.filter(np.any))
def test_runs_in_a_box_decode_to_their_mask(mask_hw: np.ndarray) -> None:
    code = run_lengths.encode_box(mask_hw)
    assert sum(code.lengths) == code.width * code.height
    np.testing.assert_array_equal(run_lengths.decode_box(code, *mask_hw.shape), mask_hw)


def test_runs_in_a_box_are_those_of_cvat_s_own_package() -> None:
    """cvat-sdk 2.80, `masks.encode_mask`: [0, 2, 1, 1, 1, 0, 2, 1], the box by its last pixels."""
    assert run_lengths.encode_box(MASK) == BoxedRuns((0, 2, 1, 1), left=1, top=0, width=2, height=2)


def test_a_mask_without_a_pixel_has_no_box() -> None:
    with pytest.raises(ValueError, match="no pixel"):
        run_lengths.encode_box(np.zeros((2, 2), bool))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (BoxedRuns((4,), 2, 0, 2, 2), "leaves the image of 2x3"),
        (BoxedRuns((4,), -1, 0, 2, 2), "leaves the image"),
        (BoxedRuns((3,), 0, 0, 2, 2), "runs of 3 pixels do not cover 2x2"),
        (BoxedRuns((-1, 5), 0, 0, 2, 2), "do not cover"),
        (BoxedRuns((10**15,), 0, 0, 2, 2), "do not cover"),
        (BoxedRuns((), 0, 0, 0, 0), "do not cover"),
    ],
)
def test_wrong_boxes_are_refused(code: BoxedRuns, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run_lengths.decode_box(code, 2, 3)


@given(MASKS)
def test_coco_s_runs_are_read_as_numbers_and_as_text(mask_hw: np.ndarray) -> None:
    coding = pytest.importorskip("pycocotools.mask")
    text = coding.encode(np.asfortranarray(mask_hw, dtype=np.uint8))["counts"].decode()
    counts = run_lengths.runs_of(mask_hw.T.ravel()).tolist()
    assert run_lengths.counts_of_text(text) == counts
    for code in (text, counts):
        np.testing.assert_array_equal(run_lengths.decode_columns(code, *mask_hw.shape), mask_hw)


@given(st.text(max_size=12))
def test_text_that_is_none_of_coco_s_ends_in_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert run_lengths.decode_columns(text, 2, 3).shape == (2, 3)
