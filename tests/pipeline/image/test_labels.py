import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as PilImage

from pipeline import classes
from pipeline.classes import ClassMap
from pipeline.errors import ERROR_CODES, ConfigError, LabelError
from pipeline.image import labels
from pipeline.image.labels import Coding
from pipeline.records import Item
from pipeline.score import answers
from tests.support import bad_labels

CAMVID = classes.load_class_map("camvid")
VOID = (0, 0, 0)
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
    return labels.decode_label(data, CAMVID, name="town/7.png", height=height, width=width)


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


@given(maps)
def test_grey_of_sixteen_bits_gives_the_ids_that_were_saved(label: np.ndarray) -> None:
    np.testing.assert_array_equal(read(png(PilImage.fromarray(label.astype(np.uint16))), *label.shape), label)


@given(maps, st.booleans())
def test_colours_give_the_ids_of_their_classes(label: np.ndarray, palettes: bool) -> None:
    coding = Coding("colours", ignored=(VOID,))
    table = np.array([one.colour for one in CAMVID.classes] + [VOID] * 245, np.uint8)
    picture = PilImage.fromarray(table[label])
    data = png(picture.convert("P", palette=PilImage.Palette.ADAPTIVE) if palettes else picture)
    found = labels.decode_label(data, CAMVID, name="1.png", height=label.shape[0], width=label.shape[1], coding=coding)
    np.testing.assert_array_equal(found, label)


@given(maps, st.sampled_from([np.uint8, np.uint16]))
def test_a_table_of_ids_undoes_the_one_a_label_was_drawn_with(label: np.ndarray, dtype: type) -> None:
    raw_of = {**{index: 7 * index + 100 for index in range(11)}, 255: 3}
    raw = np.vectorize(raw_of.get)(label).astype(dtype)
    coding = Coding(ids={raw: index for index, raw in raw_of.items()})
    height, width = label.shape
    data = png(PilImage.fromarray(raw))
    found = labels.decode_label(data, CAMVID, name="1.png", height=height, width=width, coding=coding)
    np.testing.assert_array_equal(found, label)


def test_codings_that_cannot_be_right_are_refused() -> None:
    grey = {"colour": (9, 9, 9)}
    twins = ClassMap(name="twins", classes=({"name": "a", **grey}, {"name": "b", **grey}))
    with pytest.raises(ConfigError, match=r"share the colour \(9, 9, 9\)"):
        Coding("colours").check(twins)
    with pytest.raises(ConfigError, match="give the class id 11, which the class map 'camvid' does not have"):
        Coding(ids={1: 11}).check(CAMVID)
    Coding("colours", ignored=(VOID,)).check(CAMVID)
    Coding(ids={1: 10, 0: 255}).check(CAMVID)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4, 8, 16]), st.booleans())
def test_a_file_that_holds_a_row_too_few_is_refused_however_it_is_packed(
    height: int, width: int, bits: int, interlaced: bool
) -> None:
    whole = bad_labels.grey_png(np.ones((height, width), int), bits=bits, interlaced=interlaced)
    np.testing.assert_array_equal(read(whole, height, width), 1)
    with pytest.raises(LabelError, match=r"ends after \d+ of \d+ bytes"):
        read(
            bad_labels.grey_png(np.ones((height, width), int), bits=bits, interlaced=interlaced, missing=1),
            height,
            width,
        )


blank = np.zeros((4, 6), np.uint8)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "town/7.png is no PNG"),
        (b"\xff\xd8\xff\xe0 a photograph of some length, to be sure", "is no PNG"),
        (png(PilImage.fromarray(blank), bits=8)[:44], "damaged PNG"),
        (png(PilImage.fromarray(np.zeros((4, 6, 3), np.uint8))), "is RGB with 8 bits per sample, not class ids"),
        (png(PilImage.fromarray(np.zeros((4, 6, 4), np.uint8))), "is RGB with alpha"),
        (png(PilImage.fromarray(np.full((4, 6), 4000, np.uint16))), "has the value 4000 on 24 pixel"),
        (b"GIF89a and then enough to be taken for a whole file", "is no PNG but a GIF"),
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
    assert [labels.label_stem(one) in found for one in ("a/1.jpg", "b/1.jpeg", "2.tar.webp", "1.jpg")] == [1, 1, 1, 0]


@pytest.mark.parametrize("case", bad_labels.CASES, ids=str)
def test_every_way_to_save_a_label_is_read_right_or_fails_by_name(case: bad_labels.Case) -> None:
    """As far as the label alone decides; what its place in a source does is tested there."""
    item = Item("a.jpg", "shard", "etag", label=case.make() if case.file.lower() == "{}.png" else None)
    size = {"height": bad_labels.HEIGHT, "width": bad_labels.WIDTH}
    if case.expected == "ok":
        np.testing.assert_array_equal(answers.read_truth(item, case.judge, bad_labels.CLASSES, **size), case.truth)
        return
    with pytest.raises(LabelError) as caught:
        answers.read_truth(item, case.judge, bad_labels.CLASSES, **size)
    assert caught.value.code == case.expected
    assert case.expected in ERROR_CODES
    assert "a.jpg" in caught.value.message or case.expected == "label_missing" or case.name == "only classes"
