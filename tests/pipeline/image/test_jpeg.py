"""pipeline.image.jpeg against Pillow: the same pixels, and nothing that Pillow refuses."""

import io
from unittest import mock

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.errors import InputError
from pipeline.image import decode
from pipeline.image.jpeg import decode_jpeg, turn_upright
from tests.support.bad_inputs import save, scene

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow remarks on broken EXIF, and goes on

SIDES = st.integers(1, 70)


@st.composite
def pictures(draw, bands: int = 3) -> np.ndarray:
    """(H, W, bands): ramps that wrap around, under noise of any strength."""
    height, width = draw(SIDES), draw(SIDES)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    ramps = np.add.outer(np.arange(height) * rng.integers(1, 9), np.arange(width) * rng.integers(1, 9))
    noise = rng.normal(0, draw(st.integers(0, 60)), (height, width, bands))
    return ((ramps[..., None] + noise) % 256).astype(np.uint8)


OPTIONS = st.fixed_dictionaries(
    {"quality": st.integers(1, 100), "progressive": st.booleans(), "optimize": st.booleans()},
    optional={"restart_marker_rows": st.integers(1, 4), "restart_marker_blocks": st.integers(1, 9)},
)
COLOUR = st.one_of(
    st.fixed_dictionaries({"subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "4:1:1"])}),
    st.just({"keep_rgb": True}),
)
COLOURED = st.builds(lambda pixels, how, colour: save(pixels, "JPEG", **how, **colour), pictures(), OPTIONS, COLOUR)
GREY = st.builds(lambda pixels, how: save(pixels[..., 0], "JPEG", **how), pictures(1), OPTIONS)
TALL_CHROMA = st.builds(
    lambda pixels, quality: simplejpeg.encode_jpeg(pixels, quality, colorsubsampling="440"),
    pictures(),
    st.integers(1, 100),
)
JPEGS = st.one_of(COLOURED, GREY, TALL_CHROMA)


def opened(data: bytes) -> JpegImageFile:
    file = Image.open(io.BytesIO(data), formats=["JPEG"])
    assert isinstance(file, JpegImageFile)
    return file


@given(JPEGS)
def test_every_sound_jpeg_has_the_pixels_of_pillow_to_the_bit(data: bytes) -> None:
    pixels = decode_jpeg(data, opened(data))
    assert pixels is not None
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, np.asarray(opened(data).convert("RGB")))


def outcome(data: bytes) -> tuple[bytes, tuple[int, ...], str]:
    """Pixels and size of a decoded image, or the message of its failure."""
    try:
        pixels = decode.decode_image(data, decode.DecodeConfig()).pixels_hwc
    except InputError as error:
        return b"", (), str(error)
    return pixels.tobytes(), pixels.shape, ""


@given(JPEGS, st.data())
def test_a_damaged_jpeg_ends_as_it_does_in_pillow(data: bytes, draw) -> None:
    start, stop = sorted((draw.draw(st.integers(0, len(data))), draw.draw(st.integers(0, len(data)))))
    rest = data[stop:] if draw.draw(st.booleans()) else data[start:]
    damaged = data[:start] + draw.draw(st.binary(max_size=40)) + rest
    with mock.patch.object(decode, "decode_jpeg", return_value=None):
        by_pillow = outcome(damaged)
    assert outcome(damaged) == by_pillow


def test_a_jpeg_that_ends_early_or_has_a_damaged_scan_is_left_to_pillow() -> None:
    data = save(scene(64, 64), "JPEG")
    assert decode_jpeg(data, opened(data)) is not None
    scan = data.index(b"\xff\xda") + 40
    for damaged in (data[:-2], data[:scan], data[:scan] + b"\xff\xd9" + data[scan + 2 :]):
        assert decode_jpeg(damaged, opened(damaged)) is None


def test_inks_are_left_to_pillow() -> None:
    out = io.BytesIO()
    Image.new("CMYK", (16, 16), (10, 20, 30, 40)).save(out, "JPEG")
    assert decode_jpeg(out.getvalue(), opened(out.getvalue())) is None


def test_a_file_of_another_size_than_pillow_checked_is_left_to_pillow() -> None:
    small, large = (save(scene(height, 24), "JPEG") for height in (16, 160))
    assert decode_jpeg(large, opened(small)) is None


@given(pictures(), st.integers(1, 8))
def test_pixels_are_turned_as_pillow_turns_them(pixels: np.ndarray, orientation: int) -> None:
    turned = turn_upright(pixels, orientation)
    picture = Image.fromarray(pixels)
    expected = picture.transpose(decode._UPRIGHT[orientation]) if orientation > 1 else picture
    np.testing.assert_array_equal(turned, np.asarray(expected))
    assert turned.flags.c_contiguous


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_is_decoded_without_pillow_loading_it(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(scene(40, 56), "JPEG", exif=exif)
    monkeypatch.setattr(JpegImageFile, "load", lambda *_: pytest.fail("decoded by Pillow"))
    image = decode.decode_image(data, decode.DecodeConfig())
    assert (image.height, image.width) == ((40, 56) if orientation == 1 else (56, 40))
