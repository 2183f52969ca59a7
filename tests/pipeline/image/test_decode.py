import io
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.config import DecodeConfig
from pipeline.errors import InputError
from pipeline.image.decode import decode_image
from tests.support import bad_inputs
from tests.support.bad_inputs import CASES, deep, oriented, save, scene, tiff, with_alpha

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow remarks on broken EXIF, and goes on

CFG = DecodeConfig()
MADE = {case.name: case.make for case in CASES}


def outcome(data, cfg=CFG):
    """Error code or "ok", and the image if there is one. Anything but an InputError fails the test that asks."""
    try:
        return "ok", decode_image(data, cfg)
    except InputError as error:
        return error.code, None


def same(one, other):
    valid = [np.ones(i.pixels_hwc.shape[:2], bool) if i.valid_hw is None else i.valid_hw for i in (one, other)]
    return np.array_equal(one.pixels_hwc, other.pixels_hwc) and np.array_equal(*valid)


def grey_to_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


# Every case -----------------------------------------------------------------------------------------------------------


def size_of(data):
    """Width and height of the upright image; of a TIFF with samples that Pillow does not know, as stored."""
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size
    except UnidentifiedImageError:
        page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
        return page.imagewidth, page.imagelength


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_bad_input_ends_as_the_fault_table_says(case):
    data = case.make()
    start = time.process_time()
    code, image = outcome(data)
    assert time.process_time() - start < 2
    assert code == case.expected
    if image is not None:
        height, width, _ = image.pixels_hwc.shape
        assert image.pixels_hwc.dtype == np.uint8
        assert image.pixels_hwc.flags.c_contiguous
        assert (width, height) == size_of(data)
        assert image.valid_hw is None or (image.valid_hw.shape == (height, width) and not image.valid_hw.all())


def test_cases_are_deterministic_and_distinct():
    made = [case.make() for case in CASES]
    assert made == [case.make() for case in CASES]
    assert len({case.name for case in CASES}) == len(CASES)
    assert max(map(len, made)) < 2**20


def test_the_detail_is_one_line_and_always_the_same():
    details = {case.name: [detail_of(case.make()) for _ in range(2)] for case in CASES if case.expected != "ok"}
    assert [name for name, (one, other) in details.items() if one != other] == []
    assert [name for name, (one, _) in details.items() if "\n" in one] == []


def detail_of(data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        decode_image(data, CFG)
    return str(caught.value)


def test_threads_do_not_disturb_each_other():
    made = [case.make() for case in CASES if case.expected == "ok"] * 3
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode_image(data, CFG), made))
    assert all(same(image, decode_image(data, CFG)) for image, data in zip(together, made, strict=True))


def test_bombs_are_refused_without_their_memory():
    program = """
from pipeline import config, errors
from pipeline.image.decode import decode_image
from pipeline.process_memory import peak_bytes
from tests.support.bad_inputs import CASES
cfg = config.DecodeConfig()
made = [case.make() for case in CASES if case.row in (12, 13, 14)]
decode_image(next(case.make() for case in CASES if case.name == "1x1"), cfg)
before = peak_bytes()
for data in made:
    try:
        decode_image(data, cfg)
    except errors.InputError:
        pass
print(peak_bytes() - before)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 * 2**20  # the smallest bomb alone would take 100 MB


# Damage ---------------------------------------------------------------------------------------------------------------

SMALL = [case.make() for case in CASES if case.suffix in ("jpg", "png", "webp", "tif") and case.row not in (11, 12, 13)]
SMALL = [data for data in SMALL if 100 < len(data) < 20_000]


def test_no_flipped_bits_raise_anything_but_input_errors():
    rng = np.random.default_rng(0)
    for data in SMALL:
        for _ in range(25):
            damaged = bytearray(data)
            reach = len(data) if rng.random() < 0.5 else 200  # headers are where it hurts
            for at in rng.integers(0, min(reach, len(data)), rng.integers(1, 6)):
                damaged[at] ^= 1 << rng.integers(0, 8)
            outcome(bytes(damaged))


@given(st.sampled_from(SMALL), st.data())
def test_no_cut_or_joined_files_raise_anything_but_input_errors(data, draw):
    start, stop = sorted((draw.draw(st.integers(0, len(data))), draw.draw(st.integers(0, len(data)))))
    outcome(data[:start] + draw.draw(st.binary(max_size=40)) + data[stop:])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_every_cut_is_truncated_or_harmless(kind, options):
    data = save(scene(16, 24), kind, **options)
    whole = decode_image(data, CFG)
    for stop in range(16, len(data)):
        code, image = outcome(data[:stop])
        assert code == "truncated" or same(image, whole), (stop, code)


@given(st.integers(41, 400))
def test_png_with_fewer_rows_than_announced_is_corrupt(height):
    data = bad_inputs.png(56, height, 8, 2, bad_inputs.png_rows(scene()))
    with pytest.raises(InputError, match=f"announces {height} rows") as caught:
        decode_image(data, CFG)
    assert caught.value.code == "corrupt"


SAMPLES = {"grey": (0, 1), "RGB": (2, 3), "grey with alpha": (4, 2), "RGB with alpha": (6, 4)}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("height", [1, 2, 5])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_of_any_kind_that_lacks_its_last_row_is_corrupt_and_a_black_one_is_not(kind, height, bits):
    """Opaque black: of its last rows only the alpha is not zero, and where there is none, nothing."""
    colour, bands = SAMPLES[kind]
    samples = np.zeros((height, 6, bands), np.uint8 if bits == 8 else np.uint16)
    if bands in (2, 4):
        samples[..., -1] = np.iinfo(samples.dtype).max
    make = partial(bad_inputs.png, 6, height, bits, colour)
    image = decode_image(make(bad_inputs.png_rows(samples)), CFG)
    assert not image.pixels_hwc.any()
    assert image.valid_hw is None
    stream = zlib.decompress(bad_inputs.png_rows(samples))
    assert outcome(make(zlib.compress(stream[: len(stream) // height * (height - 1)])))[0] == "corrupt"


@given(st.integers(2, 20), st.floats(0, 0.999))
def test_interlaced_png_needs_its_whole_stream(height, share):
    pixels = scene(height, 24) | 1
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [row for x, y, dx, dy in passes for row in pixels[y::dy, x::dx]]
    stream = b"".join(b"\0" + row.tobytes() for row in rows)
    make = partial(bad_inputs.png, 24, height, 8, 2, interlace=1)
    np.testing.assert_array_equal(decode_image(make(zlib.compress(stream)), CFG).pixels_hwc, pixels)
    assert outcome(make(zlib.compress(stream[: int(len(stream) * share)])))[0] == "corrupt"


# Pixels ---------------------------------------------------------------------------------------------------------------


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))),
    st.sampled_from(
        [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True}), ("BMP", {})]
    ),
)
def test_lossless_formats_return_what_was_saved(pixels, how):
    image = decode_image(save(pixels, how[0], **how[1]), DecodeConfig(formats=("png", "tiff", "webp", "bmp")))
    np.testing.assert_array_equal(image.pixels_hwc, pixels)
    assert image.valid_hw is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_agrees_with_pillow(kind, orientation):
    data = oriented(kind, orientation)
    image = decode_image(data, CFG)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(image.pixels_hwc, np.asarray(upright))
    assert image.orientation == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_validity_turns_with_the_pixels(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    samples = with_alpha()
    image = decode_image(save(samples, "PNG", exif=exif), CFG)
    alpha = Image.fromarray(samples[..., 3])
    alpha.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(image.valid_hw, np.asarray(ImageOps.exif_transpose(alpha)) > 0)


@given(arrays(np.uint8, (5, 7, 4)), st.tuples(*[st.integers(0, 255)] * 3))
def test_alpha_is_composited_on_the_background(samples, background):
    samples[0, 0, 3] = 200
    image = decode_image(save(samples, "PNG"), DecodeConfig(background=background))
    alpha = samples[..., 3:].astype(int)
    blend = (samples[..., :3] * alpha + np.array(background) * (255 - alpha)) / 255
    np.testing.assert_allclose(image.pixels_hwc, blend, atol=0.51)
    valid = np.ones((5, 7), bool) if image.valid_hw is None else image.valid_hw
    np.testing.assert_array_equal(valid, samples[..., 3] > 0)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("grey png with trns", scene(bands=1) == scene(bands=1)[3, 3]),
        ("grey4 png with trns", np.arange(40 * 56).reshape(40, 56) % 16 == 3),
        ("rgb png with trns", (scene() == scene()[3, 3]).all(-1)),
        ("grey16 png with trns", deep() == deep()[3, 3]),
        ("rgb16 png with trns", (deep(bands=3) == deep(bands=3)[3, 3]).all(-1)),
        ("palette png with one hidden colour", np.asarray(bad_inputs.PALETTE) == 3),
    ],
)
def test_the_transparent_colour_is_not_valid_and_shows_the_background(name, hidden):
    image = decode_image(MADE[name](), DecodeConfig(background=(9, 8, 7)))
    np.testing.assert_array_equal(image.valid_hw, ~hidden)
    assert (image.pixels_hwc[hidden] == (9, 8, 7)).all()


@pytest.mark.parametrize("name", ["cmyk jpeg", "cmyk jpeg without adobe marker", "ycck jpeg", "cmyk tiff"])
def test_inks_become_the_light_they_leave(name):
    image = decode_image(MADE[name](), CFG)
    light = (255 - bad_inputs.INK[:, :3].astype(int)) * (255 - bad_inputs.INK[:, 3:].astype(int)) / 255
    np.testing.assert_allclose(image.pixels_hwc[16, 8::16], light, atol=4)


DEEP = {
    "grey16 png": deep(),
    "grey16 tiff": deep(),
    "grey16 big-endian tiff": deep(),
    "grey16 compressed tiff": deep(),
    "grey16 tiff, white is zero": 65535 - deep(),
    "rgb16 png": deep(bands=3),
    "rgb16 tiff": deep(bands=3),
}


@pytest.mark.parametrize("name", DEEP)
def test_sixteen_bits_divide_by_257(name):
    values = DEEP[name] if DEEP[name].ndim == 3 else grey_to_rgb(DEEP[name])
    np.testing.assert_array_equal(decode_image(MADE[name](), CFG).pixels_hwc, np.rint(values / 257))


@pytest.mark.parametrize("name", DEEP)
def test_sixteen_bits_stretch_between_percentiles(name):
    values = DEEP[name] if DEEP[name].ndim == 3 else grey_to_rgb(DEEP[name])
    low, high = np.percentile(values, (2, 98), method="inverted_cdf").astype(float)
    expected = np.rint((values - low).clip(0, high - low) * (255 / (high - low)))
    image = decode_image(MADE[name](), DecodeConfig(sixteen_bit="percentile"))
    np.testing.assert_array_equal(image.pixels_hwc, expected)


COLOUR_TYPE = {1: 0, 3: 2, 4: 6}


def png16(samples: np.ndarray, hidden: tuple[int, ...] | None = None) -> bytes:
    """A PNG of (H, W, C) samples of 16 bits: grey, RGB or RGBA; `hidden` is the colour of its tRNS chunk."""
    height, width, count = samples.shape
    extra = [] if hidden is None else [bad_inputs.chunk(b"tRNS", np.array(hidden, ">u2").tobytes())]
    return bad_inputs.png(width, height, 16, COLOUR_TYPE[count], bad_inputs.png_rows(samples.astype(np.uint16)), *extra)


@pytest.mark.parametrize("kind", ["grey with tRNS", "RGB with tRNS", "RGBA"])
@pytest.mark.parametrize("sixteen_bit", ["divide", "percentile"])
def test_pixels_that_are_not_valid_have_no_part_in_the_stretch_of_sixteen_bits(kind, sixteen_bit):
    """A third of the pixels is hidden and far brighter than the rest: the others look as they do without them."""
    bands = 1 if kind.startswith("grey") else 3
    values = np.random.default_rng(1).integers(1000, 3000, (30, 20, bands))
    values[:10] = 65000
    alpha = np.full((30, 20, 1), 65535)
    alpha[:10] = 0
    data = png16(np.dstack([values, alpha])) if kind == "RGBA" else png16(values, (65000,) * bands)
    cfg = DecodeConfig(sixteen_bit=sixteen_bit, background=(9, 8, 7))
    image, alone = decode_image(data, cfg), decode_image(png16(values[10:]), cfg)
    np.testing.assert_array_equal(image.valid_hw, alpha[..., 0] > 0)
    np.testing.assert_array_equal(image.pixels_hwc[10:], alone.pixels_hwc)
    assert (image.pixels_hwc[:10] == (9, 8, 7)).all()
    assert alone.pixels_hwc.min() == (0 if sixteen_bit == "percentile" else round(1000 / 257))


@given(arrays(np.uint16, (2, 3, 4)), st.tuples(*[st.integers(0, 255)] * 3))
def test_colours_of_sixteen_bits_are_divided_and_then_blended_by_the_high_byte_of_their_alpha(samples, background):
    if not (samples[..., 3] >> 8).any():
        samples[0, 0, 3] = 65535
    image = decode_image(png16(samples), DecodeConfig(background=background))
    alpha = samples[..., 3:] >> 8
    colours = np.rint(samples[..., :3] / 257)
    expected = (alpha * colours + (255 - alpha) * np.array(background, float)) / 255
    np.testing.assert_allclose(image.pixels_hwc, expected, atol=0.51)
    valid = np.ones((2, 3), bool) if image.valid_hw is None else image.valid_hw
    np.testing.assert_array_equal(valid, alpha[..., 0] > 0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@given(st.data())
def test_the_hidden_grey_of_few_bits_is_the_value_in_the_file(bits, data):
    values = data.draw(arrays(np.uint8, (3, 8), elements=st.integers(0, 2**bits - 1)))
    hidden = data.draw(st.integers(0, 2**bits - 1).filter(lambda value: (values != value).any()))
    each = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(each.reshape(3, -1).astype(np.uint8), axis=1)
    chunk = bad_inputs.chunk(b"tRNS", bytes([0, hidden]))
    image = decode_image(bad_inputs.png(8, 3, bits, 0, bad_inputs.png_rows(rows), chunk), CFG)
    valid = np.ones(values.shape, bool) if image.valid_hw is None else image.valid_hw
    np.testing.assert_array_equal(valid, values != hidden)
    np.testing.assert_array_equal(image.pixels_hwc[..., 0], np.where(valid, values * (255 // (2**bits - 1)), 0))


@pytest.mark.parametrize("sixteen_bit", ["divide", "percentile"])
def test_a_bmp_of_sixteen_bits_per_pixel_is_not_stretched(sixteen_bit):
    """5, 6 and 5 bits of blue, green and red make the pixel: its samples are not of 16 bits."""
    red, green, blue = np.random.default_rng(2).integers(8, [[[16, 32, 16]]], (5, 4, 3)).transpose(2, 0, 1)
    pixels = (red << 11 | green << 5 | blue).astype("<u2")
    header = struct.pack("<IiiHHIIiiII", 40, 4, -5, 1, 16, 3, pixels.nbytes, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    start = 14 + len(header) + len(masks)
    data = struct.pack("<2sIHHI", b"BM", start + pixels.nbytes, 0, 0, start) + header + masks + pixels.tobytes()
    image = decode_image(data, DecodeConfig(sixteen_bit=sixteen_bit, formats=("bmp",)))
    expected = np.dstack([red * 255 / 31, green * 255 / 63, blue * 255 / 31])
    np.testing.assert_allclose(image.pixels_hwc, expected, atol=1)


@pytest.mark.parametrize("sixteen_bit", ["divide", "percentile"])
def test_grey_of_sixteen_bits_with_alpha_is_scaled_like_its_high_byte(sixteen_bit):
    """Pillow keeps the high byte of these."""
    grey = np.random.default_rng(4).integers(20, 200, (30, 20, 1))
    alpha = np.full_like(grey, 255)
    alpha[:10] = 0
    grey[:10] = 250
    samples = (np.dstack([grey, alpha]) * 257).astype(np.uint16)
    image = decode_image(
        bad_inputs.png(20, 30, 16, 4, bad_inputs.png_rows(samples)), DecodeConfig(sixteen_bit=sixteen_bit)
    )
    np.testing.assert_array_equal(image.valid_hw, alpha[..., 0] > 0)
    alone = decode_image(png16(grey[10:] * 257), DecodeConfig(sixteen_bit=sixteen_bit))
    np.testing.assert_array_equal(image.pixels_hwc[10:], alone.pixels_hwc)
    assert not image.pixels_hwc[:10].any()


@pytest.mark.parametrize("bands", [1, 3])
def test_a_flat_image_of_sixteen_bits_stretches_to_black(bands):
    image = decode_image(png16(np.full((4, 5, bands), 5000)), DecodeConfig(sixteen_bit="percentile"))
    assert not image.pixels_hwc.any()
    assert image.valid_hw is None


@given(arrays(np.float32, (4, 6), elements=st.floats(width=32)))
def test_floats_stretch_from_smallest_to_largest_and_holes_are_not_valid(values):
    code, image = outcome(tiff(values))
    finite = np.isfinite(values)
    if not finite.any():
        assert code == "no_valid_pixels"
        return
    wide = values[finite].astype(np.float64)
    span = wide.max() - wide.min()
    expected = (wide - wide.min()) / span * 255 if span > 0 else np.zeros_like(wide)
    np.testing.assert_allclose(image.pixels_hwc[finite][:, 0], expected, atol=0.51)
    np.testing.assert_array_equal(np.ones((4, 6), bool) if image.valid_hw is None else image.valid_hw, finite)


@pytest.mark.parametrize("values", [deep(100_000, 1), deep(100_000, 1).astype(np.float32)], ids=["16 bits", "floats"])
def test_narrow_strips_take_no_longer_than_squares(values):
    data = save(values, "TIFF")
    start = time.perf_counter()
    decode_image(data, DecodeConfig(sixteen_bit="percentile"))
    assert time.perf_counter() - start < 0.5


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF"])
def test_the_first_frame_can_be_taken(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(bad_inputs.frames(kind, **options), DecodeConfig(frame="first"))
    np.testing.assert_array_equal(image.pixels_hwc, scene())


@pytest.mark.parametrize(
    ("cfg", "code"),
    [
        (DecodeConfig(max_mpx=40 * 56 / 1e6), "ok"),
        (DecodeConfig(max_mpx=39 * 56 / 1e6), "too_many_pixels"),
        (DecodeConfig(min_px=40), "ok"),
        (DecodeConfig(min_px=41), "too_small"),
        (DecodeConfig(max_mib=1), "ok"),
        (DecodeConfig(max_mib=0.0001), "too_many_bytes"),
        (DecodeConfig(formats=("tiff",)), "unsupported_format"),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_limits_are_inclusive(kind, cfg, code):
    assert outcome(save(scene(), kind), cfg)[0] == code
