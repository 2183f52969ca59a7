import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as PilImage

from pipeline import classes, labels
from pipeline.errors import LabelError

CAMVID = classes.load("camvid")
values = st.sampled_from([*range(11), 255])
maps = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=values)


def png(picture: PilImage.Image, **how) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", **how)
    return out.getvalue()


def palette(label: np.ndarray, **how) -> bytes:
    picture = PilImage.fromarray(label)
    picture.putpalette(CAMVID.png_palette())
    return png(picture, **how)


def read(data: bytes, height: int = 4, width: int = 6) -> np.ndarray:
    return labels.read(data, CAMVID, name="town/7.png", height=height, width=width)


@given(maps)
def test_palette_and_grey_give_the_ids_that_were_saved(label: np.ndarray) -> None:
    for data in (palette(label), png(PilImage.fromarray(label))):
        np.testing.assert_array_equal(read(data, *label.shape), label)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_of_few_bits_keeps_its_ids(bits: int) -> None:
    label = np.arange(24, dtype=np.uint8).reshape(4, 6) % min(2**bits, 11)
    data = palette(label, bits=bits)
    assert data[24] == bits
    np.testing.assert_array_equal(read(data), label)


blank = np.zeros((4, 6), np.uint8)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "town/7.png is no PNG"),
        (b"\xff\xd8\xff\xe0 a photograph of some length, to be sure", "is no PNG"),
        (png(PilImage.fromarray(blank), bits=8)[:44], "damaged PNG"),
        (png(PilImage.fromarray(np.zeros((4, 6, 3), np.uint8))), "is RGB with 8 bits per sample, not class ids"),
        (png(PilImage.fromarray(np.zeros((4, 6, 4), np.uint8))), "is RGB with alpha"),
        (png(PilImage.fromarray(np.zeros((4, 6), np.uint16))), "is grey with 16 bits per sample"),
        (png(PilImage.fromarray(np.zeros((4, 6), bool))), "is grey with 1 bits per sample"),
        (png(PilImage.new("LA", (6, 4))), "is grey with alpha"),
        (png(PilImage.fromarray(np.zeros((6, 4), np.uint8))), "has 6x4 pixels, its image 4x6"),
        (palette(blank + 11), "has the value 11 on 24 pixel.*'camvid' 0 to 10 or 255"),
        (palette(np.where(np.arange(24).reshape(4, 6) == 3, 254, 0).astype(np.uint8)), "the value 254 on 1 pixel"),
    ],
)
def test_what_is_no_label_is_named_with_its_file(data: bytes, says: str) -> None:
    with pytest.raises(LabelError, match=says) as error:
        read(data)
    assert "town/7.png" in str(error.value)


def test_a_header_that_promises_a_huge_picture_is_refused_unread() -> None:
    data = bytearray(png(PilImage.fromarray(blank)))
    data[16:24] = (2**31 - 1).to_bytes(4) * 2
    with pytest.raises(LabelError, match="2147483647x2147483647 pixels"):
        read(bytes(data))


def test_labels_and_images_meet_at_the_same_place_without_suffix() -> None:
    found = labels.by_stem(["a/1.png", "a/1.json", "b/1.PNG", "2.tar.png", "readme.md"])
    assert found == {"a/1": "a/1.png", "b/1": "b/1.PNG", "2.tar": "2.tar.png"}
    assert [labels.stem(one) in found for one in ("a/1.jpg", "b/1.jpeg", "2.tar.webp", "1.jpg")] == [1, 1, 1, 0]
