"""The image among several of one name: the largest, and never a label."""

import io
from itertools import permutations

import numpy as np
import pytest
from PIL import Image

from pipeline.source.choice import largest_image


def picture(kind: str, side_px: int, mode: str = "RGB") -> bytes:
    """Noise, encoded; without `RGB` class ids in grey or in a palette."""
    noise = np.random.default_rng(side_px).integers(0, 255 if mode == "RGB" else 5, (side_px, side_px, 3), np.uint8)
    image = Image.fromarray(noise if mode == "RGB" else noise[..., 0])
    out = io.BytesIO()
    image.convert(mode).save(out, kind)
    return out.getvalue()


def chosen(**candidates: bytes) -> str:
    return largest_image({suffix: (data, len(data)) for suffix, data in candidates.items()})


FORMATS = {"jpg": "JPEG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP", "png": "PNG"}


@pytest.mark.parametrize(("large", "small"), list(permutations(FORMATS, 2)))
def test_the_image_with_more_pixels_is_taken_whatever_the_formats(large, small):
    big, preview = picture(FORMATS[large], 64), picture(FORMATS[small], 16)
    assert chosen(**{large: big, small: preview}) == chosen(**{small: preview, large: big}) == large


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB"])
@pytest.mark.parametrize("photo", ["jpg", "webp", "tif", "bmp"])
def test_a_png_as_large_as_the_photograph_is_its_label(photo, mode):
    data = picture(FORMATS[photo], 32)
    assert chosen(png=picture("PNG", 32, mode), **{photo: data}) == photo
    if mode != "RGB":
        assert chosen(png=picture("PNG", 64, mode), **{photo: data}) == photo


@pytest.mark.parametrize("photo", ["jpg", "webp"])
def test_a_grey_tiff_as_large_as_the_photograph_is_its_label(photo):
    assert chosen(tif=picture("TIFF", 32, "L"), **{photo: picture(FORMATS[photo], 32)}) == photo


def test_a_grey_tiff_is_taken_before_its_smaller_preview():
    assert chosen(jpg=picture("JPEG", 16), tif=picture("TIFF", 32, "L")) == "tif"


@pytest.mark.parametrize("damaged", [b"", b"<html>404</html>", picture("TIFF", 32)[:4]])
def test_a_damaged_image_is_not_replaced_by_its_preview(damaged):
    assert chosen(jpg=picture("JPEG", 16), tif=damaged) == "tif"
    assert chosen(png=picture("PNG", 16), jpg=damaged) == "jpg"


def test_a_damaged_png_is_taken_for_a_label():
    assert chosen(jpg=picture("JPEG", 16), png=b"x" * 1000) == "jpg"


def test_of_files_that_were_not_read_the_one_with_more_bytes_is_taken():
    assert largest_image({"jpg": (b"", 5), "tif": (b"", 9), "webp": (b"", 7), "png": (b"", 99)}) == "tif"
