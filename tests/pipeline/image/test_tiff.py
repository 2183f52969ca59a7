"""Samples of a TIFF come out alike in every layout and compression, and its tags say which pixels have no data."""

import io
import itertools
from contextlib import suppress

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from rasterio.io import MemoryFile

from pipeline.config import DecodeConfig
from pipeline.errors import InputError
from pipeline.image import tiff
from pipeline.image.decode import decode_image
from tests.support.examples import examples

CFG = DecodeConfig()
HEIGHT, WIDTH = 40, 56
LAYOUTS = [
    {},
    {"rowsperstrip": 7},
    {"tile": (16, 32)},
    {"planarconfig": "separate", "rowsperstrip": 9},
    {"planarconfig": "separate", "tile": (32, 16)},
    {"byteorder": ">"},
    {"bigtiff": True},
]
COMPRESSIONS = ["none", "lzw", "deflate", "zstd", "packbits", "lzma"]


def encode(pixels: np.ndarray, *, compression: str = "none", nodata: str | None = None, **options: object) -> bytes:
    """A TIFF of (H, W) or (H, W, C) pixels; three bands are RGB unless `photometric` says otherwise."""
    stored = np.moveaxis(pixels, 2, 0) if options.get("planarconfig") == "separate" else pixels
    tags = [] if nodata is None else [(42113, "s", 0, nodata, True)]
    usual = {"photometric": "rgb" if pixels.ndim == 3 else "minisblack"}
    out = io.BytesIO()
    tifffile.imwrite(out, stored, compression=compression, extratags=tags, **usual | options)
    return out.getvalue()


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(3).integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, *shape), dtype, endpoint=True)


def reflectance() -> np.ndarray:
    """(H, W) float32 from 0.05 to 0.6 of about as many values as pixels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (0.05 + 0.55 * (0.5 + 0.5 * np.sin(x / 7) * np.cos(y / 9))).astype(np.float32)


def wedge() -> np.ndarray:
    """(H, W), True for the upper left corner: where a mosaic has no data."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray(y + x < 30)


def code_of(data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        decode_image(data, CFG)
    return caught.value.code


# Layouts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_three_bands_are_read_alike_in_every_layout_compression_and_tag(photometric, dtype):
    pixels = noise(3, dtype=dtype)
    expected = np.rint(pixels / (257 if dtype is np.uint16 else 1))
    for layout, compression in itertools.product(LAYOUTS, COMPRESSIONS):
        usual = {"planarconfig": "contig"} if photometric == "minisblack" else {}
        data = encode(pixels, compression=compression, photometric=photometric, **usual | layout)
        image = decode_image(data, CFG)
        np.testing.assert_array_equal(image.pixels_hwc, expected, err_msg=f"{layout} {compression}")
        assert image.valid_hw is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_predictor_and_the_width_of_floats_change_no_picture(dtype):
    values = reflectance().astype(dtype)
    expected = decode_image(encode(values.astype(np.float64)), CFG).pixels_hwc
    for options in ({}, {"predictor": True, "compression": "deflate"}, {"tile": (16, 16), "compression": "zstd"}):
        np.testing.assert_array_equal(decode_image(encode(values, **options), CFG).pixels_hwc, expected)


@pytest.mark.parametrize(("count", "dtype"), [(13, np.uint16), (13, np.uint8), (4, np.float32), (2, np.uint16)])
def test_bands_without_a_meaning_as_colours_are_refused_in_every_layout(count, dtype):
    pixels = (noise(count, dtype=np.uint8)).astype(dtype)
    for layout, compression in itertools.product(({"planarconfig": "contig"}, *LAYOUTS[3:5]), ("none", "deflate")):
        assert code_of(encode(pixels, photometric="minisblack", compression=compression, **layout)) == "band_mismatch"


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_samples_of_fewer_than_sixteen_bits_scale_by_their_own_range(bits):
    values = np.linspace(0, 2**bits - 1, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    image = decode_image(encode(values, bitspersample=bits), CFG)
    np.testing.assert_array_equal(image.pixels_hwc[..., 0], np.rint(values * (255 / (2**bits - 1))))


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 32}])
def test_planes_in_jpeg_are_read_as_gdal_reads_them(count, layout):
    planes_chw = np.repeat(np.repeat(noise(count).transpose(2, 0, 1)[:, ::8, ::8], 8, axis=1), 8, axis=2)
    options = {"compress": "jpeg", "interleave": "band", "photometric": "rgb", **layout}
    with MemoryFile() as file:
        with file.open(driver="GTiff", height=HEIGHT, width=WIDTH, count=count, dtype="uint8", **options) as out:
            out.write(planes_chw)
        with file.open(driver="GTiff") as stored:
            expected = stored.read((1, 2, 3))
        data = file.read()
    np.testing.assert_array_equal(decode_image(data, CFG).pixels_hwc, expected.transpose(1, 2, 0))


@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[2]])
@pytest.mark.parametrize("count", [3, 4])
def test_webp_is_read_in_strips_and_tiles(count, layout):
    pixels = noise(count)
    pixels[..., 3:] = 255
    image = decode_image(encode(pixels, compression="webp", **layout), CFG)
    np.testing.assert_array_equal(image.pixels_hwc, pixels[..., :3])


@pytest.mark.parametrize(("compression", "planes"), [("jpeg", True), ("webp", False)])
def test_a_strip_larger_than_announced_is_refused_before_its_memory_is_taken(compression, planes):
    layout = {"planarconfig": "separate"} if planes else {}
    large = encode(noise(3), compression=compression, **layout)
    width = large.index(WIDTH.to_bytes(2, "little"), 8)  # the value of ImageWidth
    data = large[:width] + (WIDTH - 8).to_bytes(2, "little") + large[width + 2 :]
    with pytest.raises(InputError, match=f"of {HEIGHT}x{WIDTH} pixels, announced are {HEIGHT}x{WIDTH - 8}") as caught:
        decode_image(data, CFG)
    assert caught.value.code == "corrupt"


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_samples_of_few_bits_reach_from_black_to_white(bits):
    values = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8) % (2**bits)
    values[:5] = 2**bits - 1
    data = encode(values, bitspersample=bits, nodata="77")  # no sample has it: the tag leads around Pillow
    image = decode_image(data, CFG)
    np.testing.assert_array_equal(image.pixels_hwc[..., 0], np.rint(values * (255 / (2**bits - 1))))
    assert image.valid_hw is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", [{}, {"planarconfig": "separate"}])
def test_inks_become_light_whatever_their_depth_and_layout(dtype, layout):
    """R = (1 - C)(1 - K), likewise G and B."""
    ink = noise(4, dtype=dtype)
    image = decode_image(encode(ink, photometric="separated", nodata="-1", **layout), CFG)
    absent = 1 - ink / np.iinfo(dtype).max
    np.testing.assert_allclose(image.pixels_hwc, 255 * absent[..., :3] * absent[..., 3:], atol=2)


@pytest.mark.parametrize("photometric", ["minisblack", "rgb", "separated"])
def test_bands_behind_the_colours_of_unspecified_meaning_are_left_out(photometric):
    count = {"minisblack": 1, "rgb": 3, "separated": 4}[photometric]
    bands = noise(count + 1)
    options = {"photometric": photometric, "planarconfig": "separate"}
    image = decode_image(encode(bands, extrasamples=["unspecified"], **options), CFG)
    alone = bands[..., 0] if count == 1 else bands[..., :count]
    usual = {"photometric": photometric} | ({} if count == 1 else {"planarconfig": "separate"})
    np.testing.assert_array_equal(image.pixels_hwc, decode_image(encode(alone, **usual), CFG).pixels_hwc)


def test_bands_that_are_no_colours_say_what_they_are_and_how_to_use_them():
    with pytest.raises(InputError, match="13 bands of uint16 tagged as grey") as caught:
        decode_image(encode(noise(13, dtype=np.uint16), photometric="minisblack", planarconfig="contig"), CFG)
    assert caught.value.code == "band_mismatch"
    assert "--network.channels" in caught.value.hint


@pytest.mark.parametrize(
    ("dtype", "least", "most", "code"),
    [
        (np.int8, 0, 127, "ok"),
        (np.int8, -1, 127, "band_mismatch"),
        (np.int16, 0, 32767, "ok"),
        (np.int16, -1, 0, "band_mismatch"),
        (np.uint32, 0, 65535, "ok"),
        (np.uint32, 0, 65536, "band_mismatch"),
        (np.int32, -1, 65535, "band_mismatch"),
    ],
)
def test_integers_of_other_types_are_read_where_all_are_from_0_to_65535(dtype, least, most, code):
    values = np.linspace(least, most, HEIGHT * WIDTH).astype(dtype).reshape(HEIGHT, WIDTH)
    values[0, 0], values[-1, -1] = least, most
    if code == "ok":
        full = min(np.iinfo(np.dtype(f"u{np.dtype(dtype).itemsize}")).max, 65535)
        expected = np.rint(values * (255 / full))
        np.testing.assert_array_equal(decode_image(encode(values), CFG).pixels_hwc[..., 0], expected)
        return
    with pytest.raises(InputError, match="not all from 0 to 65535") as caught:
        decode_image(encode(values), CFG)
    assert caught.value.code == code


def test_floats_of_all_bands_are_stretched_together_from_the_least_valid_to_the_largest():
    values = np.dstack([reflectance(), reflectance() * 2 + 1, reflectance() - 3])
    values[0, 0, 1] = np.nan  # one band is enough to make the pixel invalid, and the others of it count no longer
    values[0, 0, 0], values[1, 1] = 1e9, -9999
    image = decode_image(encode(values, nodata="-9999"), DecodeConfig(background=(1, 2, 3)))
    invalid = np.zeros((HEIGHT, WIDTH), bool)
    invalid[0, 0] = invalid[1, 1] = True
    np.testing.assert_array_equal(image.valid_hw, ~invalid)
    assert (image.pixels_hwc[invalid] == (1, 2, 3)).all()
    low, high = values[~invalid].min(), values[~invalid].max()
    expected = (values[~invalid].astype(float) - low) * (255 / (float(high) - low))
    np.testing.assert_allclose(image.pixels_hwc[~invalid], expected, atol=0.51)


def test_a_compression_that_is_not_read_is_named_with_its_remedy():
    data = encode(noise(3, dtype=np.uint16), compression="jpegxl")
    with pytest.raises(InputError, match="compression 50002") as caught:
        decode_image(data, CFG)
    assert (caught.value.code, "deflate" in caught.value.hint) == ("unsupported_format", True)


@given(st.integers(0, 5000), st.sampled_from(["none", "lzw", "deflate", "zstd"]), st.booleans())
@examples(120)
def test_a_file_cut_anywhere_is_a_failure_or_the_whole_picture(cut, compression, planes):
    data = encode(noise(3, dtype=np.uint16), compression=compression, **LAYOUTS[3] if planes else {})
    whole = decode_image(data, CFG).pixels_hwc
    with suppress(InputError):
        np.testing.assert_array_equal(decode_image(data[: -1 - cut], CFG).pixels_hwc, whole)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_and_valid_pixels_are_turned_upright(orientation):
    pixels, empty = noise(3, dtype=np.uint16), wedge()
    pixels[empty] = 0
    upright = decode_image(encode(pixels, nodata="0"), CFG)
    turned = _stored_as(pixels, orientation)
    tag = [(274, "H", 1, orientation, True), (42113, "s", 0, "0", True)]
    out = io.BytesIO()
    tifffile.imwrite(out, turned, photometric="rgb", extratags=tag)
    image = decode_image(out.getvalue(), CFG)
    np.testing.assert_array_equal(image.pixels_hwc, upright.pixels_hwc)
    np.testing.assert_array_equal(image.valid_hw, upright.valid_hw)
    assert image.orientation == orientation


def _stored_as(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The rows and columns as a file of this EXIF orientation stores an upright picture."""
    turns = {
        1: pixels,
        2: np.fliplr(pixels),
        3: np.rot90(pixels, 2),
        4: np.flipud(pixels),
        5: np.transpose(pixels, (1, 0, 2)),
        6: np.rot90(pixels, 1),
        7: np.rot90(np.transpose(pixels, (1, 0, 2)), 2),
        8: np.rot90(pixels, -1),
    }
    return np.ascontiguousarray(turns[orientation])


# Pixels without data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        (np.uint8, 0, "0"),
        (np.uint8, 255, "255"),
        (np.uint8, 255, "255.0"),
        (np.uint16, 65535, "65535"),
        (np.int16, -9999, "-9999"),
        (np.float32, -9999, "-9999"),
        (np.float32, -9999, "-9999.000000"),
        (np.float32, np.finfo(np.float32).min, "-3.4028234663852886e+38"),
        (np.float32, np.finfo(np.float32).min, "-3.4e+38"),
        (np.float32, 1e20, "1e20"),
        (np.float32, 0, "0"),
        (np.float64, -32768.5, "-32768,5"),
        (np.float32, np.nan, "nan"),
        (np.float32, np.nan, "-9999"),
    ],
)
def test_pixels_of_the_nodata_value_are_not_valid_and_change_no_other(dtype, value, text):
    values = (reflectance() * 200 + 5).astype(dtype)
    empty = wedge()
    stored = np.where(empty, np.asarray(value, dtype), values)
    for sixteen_bit in ("divide", "percentile"):
        image = decode_image(encode(stored, nodata=text, compression="deflate"), DecodeConfig(sixteen_bit=sixteen_bit))
        np.testing.assert_array_equal(image.valid_hw, ~empty)
        assert (image.pixels_hwc[empty] == 0).all()
        expected = levels(values[~empty], sixteen_bit)
        np.testing.assert_allclose(image.pixels_hwc[~empty][:, 0], expected, atol=0.51)


def levels(values: np.ndarray, sixteen_bit: str) -> np.ndarray:
    """8-bit level of each valid value, as `DecodeConfig.sixteen_bit` says, not rounded."""
    if values.dtype == np.uint8:
        return values
    low, high = (0, 65535) if sixteen_bit == "divide" else np.percentile(values, (2, 98), method="inverted_cdf")
    if values.dtype.kind == "f":
        low, high = values.min(), values.max()
    return (values.astype(np.float64).clip(low, high) - low) * (255 / (float(high) - float(low)))


def test_a_pixel_is_without_data_only_where_all_bands_have_the_value():
    pixels = noise(3)
    pixels[pixels == 255] = 254
    pixels[wedge()] = 255
    pixels[-1, :, 0] = 255
    for layout in LAYOUTS:
        image = decode_image(encode(pixels, nodata="255", **layout), CFG)
        np.testing.assert_array_equal(image.valid_hw, ~wedge())


@pytest.mark.parametrize("text", ["-9999", "256", "none", "", "1.5"])
def test_a_nodata_value_that_no_sample_can_have_leaves_all_pixels_valid(text):
    assert decode_image(encode(noise(3), nodata=text), CFG).valid_hw is None


@pytest.mark.parametrize("compression", ["none", "deflate", "jpeg"])
def test_pixels_outside_the_mask_page_are_not_valid(compression):
    empty = wedge()
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        file.write(np.full((HEIGHT, WIDTH, 3), 90, np.uint8), photometric="rgb", compression=compression)
        file.write(~empty, subfiletype=4, photometric=4, compression="deflate")
        file.write(np.ones((HEIGHT // 2, WIDTH // 2), bool), subfiletype=5, photometric=4)  # of an overview
    image = decode_image(out.getvalue(), CFG)
    np.testing.assert_array_equal(image.valid_hw, ~empty)
    np.testing.assert_allclose(image.pixels_hwc[~empty], 90, atol=1)


def test_an_image_without_a_valid_pixel_is_a_failure():
    assert code_of(encode(np.full((HEIGHT, WIDTH, 3), 7, np.uint8), nodata="7")) == "no_valid_pixels"


@pytest.mark.parametrize("kind", ["nodata", "mask", "both bands"])
def test_valid_pixels_are_those_of_gdal(kind, tmp_path):
    pixels = noise(3)
    pixels[wedge()] = 0
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(path, "w", **profile | ({} if kind == "mask" else {"nodata": 0})) as file:
            file.write(np.moveaxis(pixels, 2, 0))
            if kind == "mask":
                file.write_mask(~wedge())
            if kind == "both bands":
                file.write(np.zeros((HEIGHT, WIDTH), np.uint8), 1)
        with rasterio.open(path) as file:
            expected = file.dataset_mask() > 0
    image = decode_image(path.read_bytes(), CFG)
    np.testing.assert_array_equal(image.valid_hw, expected)


# Alpha ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tag", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[3]])
def test_infrared_tagged_as_alpha_leaves_colours_and_pixels_as_they_are(dtype, tag, layout):
    scale = np.iinfo(dtype).max // 255
    colours = (noise(3).astype(np.uint32) * scale).astype(dtype)
    infrared = (np.random.default_rng(5).integers(40, 230, (HEIGHT, WIDTH)) * scale).astype(dtype)
    infrared[:, 10:] = 0  # open water
    data = encode(np.dstack([colours, infrared]), extrasamples=[tag], compression="deflate", **layout)
    image = decode_image(data, CFG)
    np.testing.assert_array_equal(image.pixels_hwc, decode_image(encode(colours), CFG).pixels_hwc)
    assert image.valid_hw is None


@pytest.mark.parametrize(("dtype", "opaque"), [(np.uint8, 255), (np.uint16, 65535), (np.uint16, 255)])
def test_an_alpha_with_soft_borders_is_one(dtype, opaque):
    colours = np.full((HEIGHT, WIDTH, 3), 200 * (np.iinfo(dtype).max // 255), dtype)
    alpha = np.full((HEIGHT, WIDTH), opaque, dtype)
    alpha[:10], alpha[10] = 0, opaque // 2
    data = encode(np.dstack([colours, alpha]), extrasamples=["unassalpha"])
    image = decode_image(data, DecodeConfig(background=(0, 0, 100)))
    np.testing.assert_array_equal(image.valid_hw, alpha > 0)
    assert (image.pixels_hwc[11:] == 200).all()
    assert (image.pixels_hwc[:10] == (0, 0, 100)).all()
    np.testing.assert_allclose(image.pixels_hwc[10, 0], (100, 100, 150), atol=1)


def test_an_alpha_before_another_extra_band_is_one() -> None:
    colours, alpha = noise(3), np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:9] = 0
    data = encode(np.dstack([colours, alpha, noise()]), extrasamples=["unassalpha", "unspecified"])
    image = decode_image(data, CFG)
    np.testing.assert_array_equal(image.valid_hw, alpha > 0)
    np.testing.assert_array_equal(image.pixels_hwc[9:], colours[9:])


@pytest.mark.parametrize("tag", ["unassalpha", "assocalpha"])
@given(st.integers(0, 255), st.tuples(*[st.integers(0, 255)] * 3), st.tuples(*[st.integers(0, 255)] * 3))
@examples(30)
def test_a_colour_is_blended_over_the_background_by_its_alpha_and_rounded(tag, alpha, colour, background):
    """(alpha * colour + (255 - alpha) * background) / 255; a premultiplied colour is alpha * colour / 255 already.

    One that is brighter than its alpha allows stays as bright as it can be.
    """
    colours, opacity = np.full((HEIGHT, WIDTH, 3), 200, np.uint8), np.full((HEIGHT, WIDTH), 255, np.uint8)
    colours[:5], opacity[:5] = colour, alpha
    opacity[5:7] = 0  # so that the sample is an alpha at all
    data = encode(np.dstack([colours, opacity]), extrasamples=[tag])
    image = decode_image(data, DecodeConfig(background=background))
    share = 255 if tag == "assocalpha" else alpha
    expected = np.rint((share * np.array(colour) + (255 - alpha) * np.array(background)) / 255).clip(0, 255)
    assert image.pixels_hwc[0, 0].tolist() == (expected.tolist() if alpha else list(background))
    assert (image.pixels_hwc[8:] == 200).all()


def test_colours_multiplied_by_their_alpha_are_not_multiplied_again():
    straight, alpha = np.full((HEIGHT, WIDTH, 3), 200, np.uint8), np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:5] = 128
    multiplied = (straight * (alpha[..., None] / 255)).round().astype(np.uint8)
    of_straight, of_multiplied = (
        decode_image(encode(np.dstack([pixels, alpha]), extrasamples=[tag]), CFG).pixels_hwc
        for pixels, tag in ((straight, "unassalpha"), (multiplied, "assocalpha"))
    )
    np.testing.assert_allclose(of_multiplied.astype(int), of_straight, atol=1)


@pytest.mark.parametrize(
    ("text", "value"), [("-9999", -9999), (" 1e3\0", 1000), ("0,5", 0.5), ("+7.", 7), ("none", None), ("", None)]
)
def test_the_number_of_the_nodata_tag_is_read_as_it_is_written(text, value):
    assert tiff.nodata_value({42113: text}) == value
