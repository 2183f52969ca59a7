"""Any number of bands come out as the file has them, and whatever is wrong with a file is an InputError with a code."""

import io
from contextlib import suppress

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage

from pipeline.config import DecodeConfig
from pipeline.errors import InputError
from pipeline.image import channels as bands
from pipeline.image.decode import decode_image
from tests.support.examples import examples

FIVE = ("blue", "green", "red", "edge", "near")


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **{"photometric": "minisblack", "planarconfig": "contig"} | options)
    return out.getvalue()


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def code_of(data: bytes, channels: tuple[str, ...] = FIVE) -> str:
    with pytest.raises(InputError) as caught:
        bands.decode_channels(data, channels)
    return caught.value.code


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"planarconfig": "separate"}])
def test_the_bands_of_a_tiff_come_out_however_they_lie_in_it(layout, compression):
    pixels = noise(20, 30, 5)
    stored = np.moveaxis(pixels, 2, 0) if layout.get("planarconfig") == "separate" else pixels
    np.testing.assert_array_equal(
        bands.decode_channels(tiff(stored, compression=compression, **layout), FIVE).pixels_hwc, pixels
    )


def test_one_band_is_an_image_of_one_band():
    pixels = noise(20, 30)
    out = io.BytesIO()
    PilImage.fromarray(pixels).save(out, "PNG")
    for data in (tiff(pixels, planarconfig=None), out.getvalue()):
        np.testing.assert_array_equal(bands.decode_channels(data, ("near",)).pixels_hwc[..., 0], pixels)


def test_sixteen_bits_are_divided_by_257_and_rounded():
    pixels = noise(20, 30, 5, dtype=np.uint16)
    expected = np.rint(pixels / 257).astype(np.uint8)
    np.testing.assert_array_equal(bands.decode_channels(tiff(pixels), FIVE).pixels_hwc, expected)


def test_red_green_and_blue_are_read_as_a_run_reads_them():
    out = io.BytesIO()
    PilImage.fromarray(noise(20, 30, 3)).save(out, "JPEG")
    expected = decode_image(out.getvalue(), DecodeConfig()).pixels_hwc
    np.testing.assert_array_equal(bands.decode_channels(out.getvalue(), bands.RGB).pixels_hwc, expected)


def test_bands_that_are_not_those_expected_are_refused():
    assert code_of(tiff(noise(4, 4, 3), photometric="rgb")) == "band_mismatch"
    assert code_of(tiff(noise(4, 4, 5).astype(np.float32))) == "band_mismatch"
    assert code_of(tiff(noise(4, 4, 5).astype(np.int16))) == "band_mismatch"


def test_a_size_above_the_limit_is_refused_on_the_header(monkeypatch):
    data = tiff(noise(20, 30, 5))
    monkeypatch.setattr(tifffile.TiffPage, "asarray", None)
    with pytest.raises(InputError) as raised:
        bands.decode_channels(data, tuple("abcde"), DecodeConfig(max_mpx=0.0005))
    assert raised.value.code == "too_many_pixels"


@given(st.integers(0, 3000), st.binary(max_size=20))
@examples(60)
def test_nothing_but_input_errors_comes_out_of_damaged_files(at, patch):
    data = tiff(noise(20, 30, 5), compression="deflate")
    for damaged in (data[:at], data[:at] + patch + data[at + len(patch) :]):
        with suppress(InputError):
            assert bands.decode_channels(damaged, FIVE).pixels_hwc.shape[2] == 5


@pytest.mark.parametrize(
    ("channels", "places"),
    [
        (bands.RGB, [0, 1, 2]),
        (("nir", "blue", "green", "red"), [3, 2, 1]),
        (("a", "b", "c", "d"), [0, 1, 2]),
        (("height",), [0, 0, 0]),
        (("a", "b"), [0, 0, 0]),
    ],
)
def test_what_is_shown_has_three_channels(channels, places):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, len(channels)), np.uint8)
    assert np.array_equal(bands.visible_rgb(pixels, channels), pixels[..., places])
