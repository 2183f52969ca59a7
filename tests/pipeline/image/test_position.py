"""Position: what cameras and other writers put into a GPS directory, and what of it is a position."""

import dataclasses
import io
import math
import time
from fractions import Fraction

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import DecodeConfig
from pipeline.image.channels import decode_channels
from pipeline.image.decode import decode_image
from pipeline.records import Position
from tests.support import gps

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow remarks on broken EXIF, and goes on

CFG = DecodeConfig()
FORMATS = ["JPEG", "PNG", "WEBP", "TIFF"]
FIX = gps.fields(-70.25, -12.5, -3.125)
WEST_AND_SOUTH = Position(-70.25, -12.5, -3.125)


def position(changes: dict[int, gps.Field | None], kind: str = "JPEG") -> Position | None:
    """Position of a photo with a fix, some of whose fields are others, or missing."""
    fields = {tag: field for tag, field in (FIX | changes).items() if field is not None}
    return decode_image(gps.photo(fields, kind), CFG).position


@pytest.mark.parametrize("kind", FORMATS)
def test_a_photo_of_every_format_has_the_position_of_its_exif(kind: str) -> None:
    assert position({}, kind) == WEST_AND_SOUTH


@pytest.mark.parametrize("kind", FORMATS)
def test_a_position_that_pillow_wrote_is_read(kind: str) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8825).update({1: "N", 2: (51.0, 30.0, 36.0), 3: "E", 4: (7.0, 15.0, 0.0), 5: b"\0", 6: 101.5})
    exif[0x8825] = exif.get_ifd(0x8825)  # as Pillow's TIFF writer wants it
    Image.new("RGB", (32, 24)).save(file, kind, exif=exif)
    assert decode_image(file.getvalue(), CFG).position == Position(7.25, 51.51, 101.5)


rational = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 2**32 - 1))


def parts(most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Rationals from 0 to `most`."""
    return st.integers(1, 10**7).flatmap(lambda below: st.tuples(st.integers(0, most * below), st.just(below)))


@given(st.tuples(parts(179), parts(59), parts(59)), st.tuples(parts(89), parts(59), parts(59)), rational, st.data())
def test_degrees_minutes_and_seconds_of_any_rationals_make_the_angle(longitude, latitude, altitude, data) -> None:
    east, north, below = (data.draw(st.sampled_from((1, -1))) for _ in range(3))
    fields = {
        gps.LONGITUDE_REF: gps.text("E" if east > 0 else "W"),
        gps.LONGITUDE: gps.rationals(*longitude),
        gps.LATITUDE_REF: gps.text("N" if north > 0 else "S"),
        gps.LATITUDE: gps.rationals(*latitude),
        gps.ALTITUDE_REF: gps.byte(int(below < 0)),
        gps.ALTITUDE: gps.rationals(altitude),
    }
    seen = decode_image(gps.photo(fields), CFG).position
    exact = [sum(Fraction(*pair) / 60**power for power, pair in enumerate(angle)) for angle in (longitude, latitude)]
    if exact == [0, 0]:
        assert seen is None
        return
    assert seen is not None
    assert seen.longitude == pytest.approx(float(east * exact[0]), abs=1e-12)
    assert seen.latitude == pytest.approx(float(north * exact[1]), abs=1e-12)
    assert seen.altitude == pytest.approx(float(below * Fraction(*altitude)), rel=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {gps.LONGITUDE: None},
        {gps.LATITUDE: None},
        {gps.LONGITUDE_REF: None},
        {gps.LATITUDE_REF: None},
        {gps.LATITUDE_REF: gps.text("")},
        {gps.LATITUDE_REF: gps.text("E")},
        {gps.LONGITUDE_REF: gps.text("x")},
        {gps.LATITUDE: gps.rationals((0, 0), (0, 0), (0, 0))},
        {gps.LONGITUDE: gps.rationals((7, 1), (5, 0), (0, 1))},
        {gps.LONGITUDE: gps.rationals((7, 1), (5, 1), (0, 0))},
        {gps.LONGITUDE: gps.rationals((181, 1), (0, 1), (0, 1))},
        {gps.LONGITUDE: gps.rationals((180, 1), (0, 1), (1, 100))},
        {gps.LATITUDE: gps.rationals((90, 1), (1, 1), (0, 1))},
        {gps.LATITUDE: gps.rationals((40, 1), (61, 1), (0, 1))},
        {gps.LATITUDE: gps.rationals((40, 1), (0, 1), (3601, 60))},
        {gps.LATITUDE: gps.signed((-40, 1), (0, 1), (0, 1))},
        {gps.LATITUDE: gps.signed((40, 1), (-1, 1), (0, 1))},
        {gps.LATITUDE: gps.rationals((40, 1))},
        {gps.LATITUDE: gps.rationals((40, 1), (3, 1))},
        {gps.LATITUDE: gps.text("40 N")},
        {gps.LATITUDE: (12, 3, np.array([40, math.nan, 0]).tobytes())},
        {gps.LATITUDE: (12, 3, np.array([math.inf, 0, 0]).tobytes())},
        {gps.LATITUDE: (99, 3, bytes(24))},
        {gps.STATUS: gps.text("V")},
        {gps.DATUM: gps.text("TOKYO")},
        {gps.LATITUDE: gps.angle(0), gps.LONGITUDE: gps.angle(0)},
    ],
    ids=str,
)
def test_what_is_no_position_is_none_and_the_image_is_decoded(changes: dict[int, gps.Field | None]) -> None:
    assert position(changes) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({gps.STATUS: None, gps.DATUM: None}, WEST_AND_SOUTH),
        ({gps.LATITUDE_REF: gps.text("n"), gps.LONGITUDE_REF: (2, 1, b"E")}, Position(70.25, 12.5, -3.125)),
        ({gps.LATITUDE: gps.angle(0)}, dataclasses.replace(WEST_AND_SOUTH, latitude=0.0)),
        ({gps.LATITUDE: gps.rationals((12, 1), (29, 1), (6000, 100))}, WEST_AND_SOUTH),
        ({gps.LATITUDE: gps.rationals((125, 10), (0, 1), (0, 1))}, WEST_AND_SOUTH),
        ({gps.LONGITUDE: gps.angle(180), gps.LATITUDE: gps.angle(90)}, Position(-180.0, -90.0, -3.125)),
    ],
    ids=str,
)
def test_positions_in_the_forms_of_various_cameras_are_read(changes: dict, expected: Position) -> None:
    assert position(changes) == expected


@pytest.mark.parametrize(
    ("ref", "value", "expected"),
    [
        (gps.byte(0), gps.rationals((314, 100)), 3.14),
        (gps.byte(1), gps.rationals((314, 100)), -3.14),
        (gps.byte(3), gps.rationals((314, 100)), -3.14),
        (None, gps.rationals((314, 100)), 3.14),
        (gps.byte(0), gps.signed((-314, 100)), -3.14),
        ((3, 1, b"\1\0"), gps.rationals((5, 1)), -5.0),
        (gps.byte(0), gps.rationals((314, 0)), None),
        (gps.byte(0), None, None),
    ],
)
def test_an_altitude_has_its_sign_from_its_reference_and_may_be_missing(ref, value, expected) -> None:
    seen = position({gps.ALTITUDE_REF: ref, gps.ALTITUDE: value})
    assert seen == dataclasses.replace(WEST_AND_SOUTH, altitude=expected)


def test_an_image_without_exif_or_with_damaged_exif_has_no_position() -> None:
    block = gps.exif(FIX)
    for exif in [b"", b"Exif\0\0", block[:60], block[:100], block.replace(b"II*\0", b"XX*\0"), b"Exif\0\0" + bytes(90)]:
        file = io.BytesIO()
        Image.new("RGB", (32, 24)).save(file, "PNG", exif=exif)
        assert decode_image(file.getvalue(), CFG).position is None


@given(st.data())
def test_no_damage_to_a_gps_directory_stops_the_decoder(data: st.DataObject) -> None:
    whole = gps.photo(FIX)
    start = whole.index(b"II*\0")
    stop = start + len(gps.exif(FIX)) - 6
    damaged = bytearray(whole)
    for at in data.draw(st.lists(st.integers(start, stop - 1), min_size=1, max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    place = decode_image(bytes(damaged), CFG).position
    assert place is None or (-180 <= place.longitude <= 180 and -90 <= place.latitude <= 90)


def test_a_directory_of_a_million_rationals_is_left_unread() -> None:
    many = (5, 10**6, bytes(8 * 10**6))
    data = gps.photo(FIX | {27: many}, "PNG")
    start = time.process_time()
    assert decode_image(data, CFG).position is None
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("big", [False, True], ids=["classic", "BigTIFF"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_tiffs_of_any_depth_and_number_of_bands_have_the_position_of_their_exif(dtype: str, big: bool) -> None:
    bands = (np.arange(20 * 24 * 5) % 251).reshape(20, 24, 5).astype(dtype)
    planes = {"photometric": "minisblack", "planarconfig": "contig", "bigtiff": big, "metadata": None}
    for pixels, names in ((bands[..., 0], None), (bands, tuple("abcde"))):
        tifffile.imwrite(file := io.BytesIO(), pixels, **planes)
        data = gps.in_tiff(file.getvalue(), FIX)
        image = decode_channels(data, names) if names else decode_image(data, CFG)
        assert image.position == WEST_AND_SOUTH


def test_the_bands_of_a_png_come_with_the_position_and_damaged_exif_is_no_failure() -> None:
    bands = Image.fromarray(np.full((20, 24, 4), 9, np.uint8))
    for exif, expected in ((gps.exif(FIX), WEST_AND_SOUTH), (b"Exif\0\0damaged", None)):
        file = io.BytesIO()
        bands.save(file, "PNG", exif=exif)
        assert decode_channels(file.getvalue(), tuple("abcd")).position == expected
