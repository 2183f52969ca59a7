import numpy as np
import rasterio.io
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geotiff.window import decode_window, encode_window
from tests.support.examples import examples


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    bands=st.integers(1, 16),
    place=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
@examples(60)
def test_a_window_survives_encoding_and_gdal_reads_the_same(height, width, bands, place, masked, seed) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, bands), np.uint8)
    valid = rng.random((height, width)) < 0.7 if masked else None
    data = encode_window(pixels, valid, *place)
    image = decode_window(data)
    np.testing.assert_array_equal(image.pixels_hwc, pixels)
    assert image.origin == place
    assert (image.valid_hw is None) == (valid is None)
    if valid is not None:
        np.testing.assert_array_equal(image.valid_hw, valid)
    with rasterio.io.MemoryFile(data) as memory, memory.open(driver="GTiff") as dataset:
        np.testing.assert_array_equal(np.moveaxis(dataset.read(), 0, -1), pixels)
        assert (dataset.transform.f, dataset.transform.c) == place
        if valid is not None:
            np.testing.assert_array_equal(dataset.dataset_mask() > 0, valid)


def test_a_part_of_a_larger_array_is_encoded_as_its_copy() -> None:
    whole = np.arange(20 * 30 * 2, dtype=np.uint8).reshape(20, 30, 2)
    assert encode_window(whole[3:9, 4:20], None, 1, 2) == encode_window(whole[3:9, 4:20].copy(), None, 1, 2)
