import io
from contextlib import suppress

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.geotiff import directory as tiff
from pipeline.geotiff.directory import Directories, Values, encode_directories
from tests.support.examples import examples

NUMBERS = {3: "u2", 4: "u4", 11: "f4", 12: "f8", 16: "u8"}


def reader(data: bytes):
    return lambda at, size: data[at : at + size]


@st.composite
def directories(draw) -> list[dict[int, Values]]:
    pages = []
    for _ in range(draw(st.integers(1, 3))):
        page = {}
        for tag in draw(st.sets(st.integers(254, 65535), min_size=1, max_size=5)):
            kind = draw(st.sampled_from(sorted(NUMBERS)))
            numbers = draw(st.lists(st.integers(0, 65535), min_size=1, max_size=20))
            page[tag] = Values(kind, np.array(numbers, NUMBERS[kind]))
        pages.append(page)
    return pages


@given(directories(), st.booleans(), st.sampled_from("<>"))
@examples(100)
def test_directories_survive_encoding(pages, big, order) -> None:
    read = Directories(reader(encode_directories(pages, big=big, order=order)))
    found = list(read)
    assert [set(page) for page in found] == [set(page) for page in pages]
    for page, fields in zip(pages, found, strict=True):
        for tag, values in page.items():
            np.testing.assert_array_equal(read.values(fields[tag]), values.values)


@given(directories(), st.booleans(), st.sampled_from("<>"), st.data())
@examples(50)
def test_a_slice_of_values_is_a_slice_of_all_values(pages, big, order, data) -> None:
    read = Directories(reader(encode_directories(pages, big=big, order=order)))
    field = next(iter(next(iter(read)).values()))
    first = data.draw(st.integers(0, field.count - 1))
    count = data.draw(st.integers(1, field.count - first))
    np.testing.assert_array_equal(read.values(field, first, count), read.values(field)[first : first + count])


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_another_reader_finds_the_same_values(big: bool, order: str) -> None:
    page = {
        tiff.WIDTH: Values(tiff.SHORT, np.array([7])),
        tiff.LENGTH: Values(tiff.LONG, np.array([5])),
        tiff.BITS: Values(tiff.SHORT, np.array([8])),
        tiff.NODATA: Values(tiff.ASCII, b"255\0"),
        tiff.TRANSFORMATION: Values(tiff.DOUBLE, np.arange(16.0)),
    }
    with tifffile.TiffFile(io.BytesIO(encode_directories([page], big=big, order=order))) as file:
        tags = file.pages[0].tags
        assert (tags[256].value, tags[257].value, tags[42113].value) == (7, 5, "255")
        assert tags[34264].value == tuple(np.arange(16.0))
        assert file.is_bigtiff == big


@given(st.binary(max_size=60), st.integers(0, 200))
@examples(100)
def test_damaged_headers_raise_input_errors_alone(patch: bytes, at: int) -> None:
    page = {tag: Values(tiff.LONG, np.arange(3)) for tag in (256, 257, 258)}
    data = encode_directories([page, page], big=False)
    damaged = data[:at] + patch + data[at + len(patch) :]
    with suppress(InputError):
        read = Directories(reader(damaged))
        for fields in read:
            for field in fields.values():
                if field.num_bytes < 10_000:
                    read.values(field)


def test_a_loop_of_directories_ends() -> None:
    page = {256: Values(tiff.LONG, np.arange(3))}
    data = bytearray(encode_directories([page], big=False))
    data[8 + 2 + 12 : 8 + 2 + 16] = (8).to_bytes(4, "little")  # the next directory is the first
    assert len(list(Directories(reader(bytes(data))))) == 1


def test_offsets_beyond_4_gib_need_a_big_tiff() -> None:
    page = {324: Values(tiff.LONG8, np.array([2**33, 5]))}
    read = Directories(reader(encode_directories([page], big=True)))
    assert read.values(next(iter(read))[324]).tolist() == [2**33, 5]
