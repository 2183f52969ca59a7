import io
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as PilImage

from pipeline import classes
from pipeline.classes import ClassMap
from pipeline.config import LabelsConfig
from pipeline.errors import ERROR_CODES, ConfigError, LabelError
from pipeline.image import labels
from pipeline.image.labels import Coding, misnamed_label
from pipeline.records import Item
from pipeline.score import answers
from tests.support import bad_labels
from tests.support.examples import examples

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
    ids_hw = labels.decode_label(data, CAMVID, name="town/7.png", height=height, width=width)
    assert ids_hw.dtype == np.uint8
    return ids_hw


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


# ---------------------------------------------------------------- ids and colours of class maps

colours = st.tuples(*[st.integers(0, 255)] * 3)
tables = st.dictionaries(colours, st.integers(0, 255), min_size=1, max_size=9)


@examples(50)
@given(st.data(), tables)
def test_colours_become_the_ids_of_a_loop_over_pixels(data, table) -> None:
    drawn = data.draw(arrays(object, (3, 4), elements=st.sampled_from(sorted(table)).map(lambda colour: (colour,))))
    rgb_hwc = np.array([[cell[0] for cell in row] for row in drawn], np.uint8)
    expected = [[table[cell[0]] for cell in row] for row in drawn]
    ids_hw = labels.from_colours(rgb_hwc, table, name="a.png")
    np.testing.assert_array_equal(ids_hw, expected)
    assert ids_hw.dtype == np.uint8


@examples(50)
@given(tables, colours)
def test_a_colour_that_is_not_in_the_table_is_named(table, strange) -> None:
    table.pop(strange, None)
    rgb_hwc = np.array([[*table, strange, strange]], np.uint8)
    with pytest.raises(LabelError) as caught:
        labels.from_colours(rgb_hwc, table, name="a.png")
    assert str(caught.value).startswith(f"the label a.png has the colour {strange} on 2 pixel(s)")


@given(arrays(np.uint8, (3, 4)), st.dictionaries(st.integers(0, 255), st.integers(0, 255)))
def test_ids_become_those_of_the_table_or_are_named(raw_hw: np.ndarray, table: dict[int, int]) -> None:
    strange = [value for value in raw_hw.ravel().tolist() if value not in table]
    if not strange:
        expected = [[table[value] for value in row] for row in raw_hw.tolist()]
        ids_hw = labels.from_ids(raw_hw, table, name="a.png")
        np.testing.assert_array_equal(ids_hw, expected)
        assert ids_hw.dtype == np.uint8
        return
    with pytest.raises(LabelError) as caught:
        labels.from_ids(raw_hw, table, name="a.png")
    messages = {f"has the value {value} on {strange.count(value)} pixel(s)" for value in strange}
    assert any(message in str(caught.value) for message in messages)


@given(maps, st.lists(colours, max_size=3))
def test_a_class_keeps_its_colour_whatever_is_ignored(label: np.ndarray, more: list[tuple[int, int, int]]) -> None:
    """The default ignores black, which in many class maps is the background's colour."""
    label = np.where(label == 255, 0, label).astype(np.uint8)
    of_classes = [label_class.colour for label_class in CAMVID.classes]
    data = png(PilImage.fromarray(np.array(of_classes, np.uint8)[label]))
    coding = Coding("colours", ignored=(*more, *of_classes))
    height, width = label.shape
    found = labels.decode_label(data, CAMVID, name="1.png", height=height, width=width, coding=coding)
    np.testing.assert_array_equal(found, label)


@given(colours)
def test_a_colour_is_told_from_those_next_to_it(colour: tuple[int, int, int]) -> None:
    table = {colour: 5}
    for channel in range(3):
        other = list(colour)
        other[channel] ^= 1
        with pytest.raises(LabelError, match=re.escape(str(tuple(other)))):
            labels.from_colours(np.array([[other]], np.uint8), table, name="a.png")


def test_a_value_above_all_of_its_table_is_named() -> None:
    """The largest value of 16 bits, and one above the largest of the table."""
    for value in (65535, 301):
        values_hw = np.array([[7, value, 300]], np.uint16)
        with pytest.raises(LabelError, match=f"the value {value} on 1 pixel") as refused:
            labels.from_ids(values_hw, {7: 0, 300: 1}, name="a.png")
        assert refused.value.code == "label_value"


def test_colours_are_ignored_only_where_labels_are_colours() -> None:
    cfg = LabelsConfig(label_ids={3: 1}, ignored_colours=((1, 2, 3),))
    assert labels.label_coding(cfg) == Coding("ids", {3: 1}, ())
    assert labels.label_coding(LabelsConfig(labels_as="colours", ignored_colours=((1, 2, 3),))) == Coding(
        "colours", {}, ((1, 2, 3),)
    )


def test_two_classes_of_one_colour_are_no_matter_where_labels_are_ids() -> None:
    twins = ClassMap(name="twins", classes=({"name": "a", "colour": (9, 9, 9)}, {"name": "b", "colour": (9, 9, 9)}))
    Coding().check(twins)


def test_of_unknown_class_ids_the_least_is_named() -> None:
    with pytest.raises(ConfigError, match="the class id 12,"):
        Coding(ids={1: 0, 2: 200, 3: 12, 4: 255}).check(CAMVID)


# ---------------------------------------------------------------- headers, sizes and damage


def test_the_size_in_a_header_is_height_then_width_and_what_is_no_png_is_named() -> None:
    assert labels.png_size(png(PilImage.fromarray(blank)), name="of 7") == (4, 6)
    with pytest.raises(LabelError, match="the label of 7 is no PNG"):
        labels.png_size(b"GIF89a", name="of 7")


@pytest.mark.parametrize(
    ("start", "title"),
    [(b"\xff\xd8\xff", "a JPEG"), (b"RIFF", "a WebP"), (b"II*\0", "a TIFF"), (b"MM\0*", "a TIFF"), (b"GIF8", "a GIF")],
)
def test_the_format_of_another_image_is_named(start: bytes, title: str) -> None:
    with pytest.raises(LabelError, match=f"town/7.png is no PNG but {title}$"):
        read(start + b" and then enough for a header of a PNG")


def test_a_header_alone_is_a_png_that_ends_early() -> None:
    """29 bytes are signature, size, type and fields of the first chunk; with fewer it is no PNG at all."""
    data = png(PilImage.fromarray(blank))
    with pytest.raises(LabelError, match=r"ends after 0 of 28 bytes"):
        read(data[:29])
    with pytest.raises(LabelError, match=r"is no PNG$"):
        read(data[:28])


def test_another_first_chunk_than_a_header_is_named() -> None:
    with pytest.raises(LabelError, match="damaged PNG: it begins with the chunk b'iDOT'"):
        read(png(PilImage.fromarray(blank)).replace(b"IHDR", b"iDOT", 1))


@pytest.mark.parametrize("missing", [1, 6])
def test_colours_that_end_early_are_refused_with_how_many_bytes_there_are(missing: int) -> None:
    """A row of RGB is a byte for its filter and three for each pixel."""
    height, width = 6, 5
    rows = b"".join(b"\0" + bytes([9, 9, 9]) * width for _ in range(height))
    image_data = zlib.compress(rows[: len(rows) - missing])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [bad_labels.chunk(b"IHDR", header), bad_labels.chunk(b"IDAT", image_data), bad_labels.chunk(b"IEND", b"")]
    with pytest.raises(LabelError, match=f"ends after {len(rows) - missing} of {len(rows)} bytes"):
        labels.decode_label(
            b"\x89PNG\r\n\x1a\n" + b"".join(chunks),
            CAMVID,
            name="1.png",
            height=height,
            width=width,
            coding=Coding("colours", ignored=((9, 9, 9),)),
        )


@given(st.integers(0, 10**6))
def test_a_flipped_bit_in_the_image_data_is_noticed_by_its_checksum(at: int) -> None:
    data = png(PilImage.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) % 11))
    start = data.index(b"IDAT") + 4
    size = int.from_bytes(data[start - 8 : start - 4])
    position = start + at % (size + 4)  # its checksum too
    with pytest.raises(LabelError, match="damaged PNG: a checksum is wrong"):
        read(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])


def test_image_data_that_does_not_inflate_is_damage_by_name() -> None:
    header = struct.pack(">IIBBBBB", 6, 4, 8, 0, 0, 0, 0)
    body = bad_labels.chunk(b"IHDR", header) + bad_labels.chunk(b"IDAT", b"no zlib stream, but a right checksum")
    with pytest.raises(LabelError, match=r"town/7\.png is a damaged PNG: .*incorrect header"):
        read(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_label_as_its_turned_photo_is_stored_names_the_orientation(orientation: int) -> None:
    """Orientations 5 to 8 swap height and width; with the others such a label is of another size."""
    stored = png(PilImage.fromarray(blank.T.copy()))
    with pytest.raises(LabelError) as refused:
        labels.decode_label(stored, CAMVID, name="a.png", height=4, width=6, orientation=orientation)
    assert refused.value.code == "label_size"
    if orientation >= 5:
        assert "has 6x4 pixels as the photo is stored" in refused.value.message
        assert f"EXIF orientation {orientation}" in refused.value.hint
    else:
        assert "has 6x4 pixels, its image 4x6" in refused.value.message
        assert "nearest neighbour" in refused.value.hint


@pytest.mark.parametrize("shape", [(5, 6), (4, 7), (6, 5), (7, 4)])
def test_of_another_size_is_not_as_it_is_stored(shape: tuple[int, int]) -> None:
    with pytest.raises(LabelError, match=rf"has {shape[0]}x{shape[1]} pixels, its image 4x6"):
        labels.decode_label(
            png(PilImage.fromarray(np.zeros(shape, np.uint8))), CAMVID, name="a.png", height=4, width=6, orientation=6
        )


def test_a_label_of_the_wrong_kind_says_how_to_save_it() -> None:
    rgb, grey = (png(PilImage.fromarray(np.zeros((4, 6, *more), np.uint8))) for more in ((3,), ()))
    with pytest.raises(LabelError, match="not class ids") as refused:
        read(rgb)
    assert "palette or grey PNG" in refused.value.hint
    with pytest.raises(LabelError, match="is grey with 8 bits per sample, not colours") as refused:
        labels.decode_label(grey, CAMVID, name="a.png", height=4, width=6, coding=Coding("colours"))
    assert "8-bit RGB PNG" in refused.value.hint


def test_colours_of_sixteen_bits_are_refused() -> None:
    """Pillow keeps their high byte, which is a colour all the same."""
    with pytest.raises(LabelError, match="RGB with 16 bits per sample, not colours"):
        labels.decode_label(
            bad_labels.rgb_of_16_bits(), CAMVID, name="a.png", height=10, width=14, coding=Coding("colours")
        )


def test_ignored_pixels_have_the_ignore_id_of_their_class_map() -> None:
    colours = {"a": (1, 1, 1), "b": (2, 2, 2)}
    own = ClassMap(
        name="own", classes=tuple({"name": name, "colour": colour} for name, colour in colours.items()), ignore_id=9
    )
    ids_hw = np.array([[0, 1, 9]], np.uint8)
    drawn = np.array([[(1, 1, 1), (2, 2, 2), VOID]], np.uint8)
    for data, coding in ((ids_hw, labels.IDS), (drawn, Coding("colours", ignored=(VOID,)))):
        found = labels.decode_label(png(PilImage.fromarray(data)), own, name="a.png", height=1, width=3, coding=coding)
        np.testing.assert_array_equal(found, ids_hw)
    with pytest.raises(LabelError, match=r"the value 255 on 1 pixel\(s\), the class map 'own' 0 to 1 or 9"):
        labels.decode_label(
            png(PilImage.fromarray(np.array([[0, 255]], np.uint8))), own, name="a.png", height=1, width=2
        )
    with pytest.raises(LabelError, match="is ignored"):
        labels.check_used(np.full((2, 2), 9, np.uint8), own, name="a.png")
    labels.check_used(np.full((2, 2), 255, np.uint8), own, name="a.png")


def test_a_value_that_the_class_map_lacks_says_what_to_give() -> None:
    with pytest.raises(LabelError, match="0 to 10 or 255") as refused:
        read(palette(blank + 11))
    assert refused.value.code == "label_value"
    assert "--classes" in refused.value.hint


@given(maps)
def test_a_label_is_refused_as_empty_exactly_when_every_pixel_is_ignored(label: np.ndarray) -> None:
    if (label != 255).any():
        labels.check_used(label, CAMVID, name="a.png")
    labels.check_used(np.append(label, 0), CAMVID, name="a.png")
    with pytest.raises(LabelError, match=r"label a\.png is ignored") as refused:
        labels.check_used(np.full_like(label, 255), CAMVID, name="a.png")
    assert refused.value.code == "label_empty"


# ---------------------------------------------------------------- labels of another name


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("a/7.tif", "labels are PNG: found a/7.tif for a/7.jpg"),
        ("a/7_mask.png", "found a/7_mask.png, expected a/7.png"),
        ("masks/gt-7.png", "found masks/gt-7.png, expected a/7.png"),
        ("masks/7.png", "found masks/7.png, expected a/7.png"),
        ("a/17.tif", None),
        ("a/7b.png", None),
        ("a/8.png", None),
    ],
)
def test_a_label_of_another_format_or_name_is_named_with_what_is_expected(path: str, says: str | None) -> None:
    text = misnamed_label(["a/7.jpg"], ["other.txt", path])
    assert text is None if says is None else says in text


def test_a_stem_is_taken_letter_by_letter() -> None:
    assert misnamed_label(["a.b+.jpg"], ["aXb_mask.png"]) is None
    assert misnamed_label(["a.b+.jpg"], ["a.b+_mask.png"]) is not None


def test_only_the_first_three_images_are_looked_for() -> None:
    images = [f"a/{number}.jpg" for number in range(5)]
    assert "for a/2.jpg" in misnamed_label(images, ["a/2.tif"])
    assert misnamed_label(images, ["a/3.tif", "a/4.tif"]) is None
    assert misnamed_label(images, []) is None
    assert misnamed_label([], ["a/3.tif"]) is None
