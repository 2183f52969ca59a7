import itertools
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window as RasterioWindow

from pipeline.config import BandScale
from pipeline.geotiff.window import decode_window
from pipeline.records import Item
from pipeline.source import raster_windows
from pipeline.source.plan import plan_source, read_items
from pipeline.source.raster import NetworkBands
from pipeline.source.raster_windows import merge_ranges
from pipeline.store import objects
from tests.support.rasters import RGBN, config, plan_and_read, values, write_raster

LAYOUTS = {
    "tiles": {},
    "wide tiles": {"blockxsize": 256, "blockysize": 32},
    "tiles of planes": {"interleave": "band"},
    "strips": {"tiled": False, "blockxsize": None, "blockysize": 16},
    "strips of one row": {"tiled": False, "blockxsize": None, "blockysize": 1},
    "strips of planes": {"tiled": False, "blockxsize": None, "blockysize": 40, "interleave": "band"},
    "big": {"BIGTIFF": "YES"},
    "big-endian": {"ENDIANNESS": "BIG"},
}
LOSSLESS = {
    "none": {},
    "deflate": {"compress": "deflate"},
    "deflate, predicted": {"compress": "deflate", "predictor": 2},
    "lzw": {"compress": "lzw"},
    "zstd": {"compress": "zstd"},
    "lerc": {"compress": "lerc_zstd"},
    "packbits": {"compress": "packbits"},
    "lzma": {"compress": "lzma"},
}
DTYPES = ("uint8", "uint16", "int16", "float32")
SCALES = {
    "uint8": None,
    "uint16": None,
    "int16": BandScale(dtype="int16", low=(-32768,) * 4, high=(32767,) * 4),
    "float32": BandScale(dtype="float32", low=(-30,) * 4, high=(70,) * 4),
}
GRID = [
    *itertools.product(LAYOUTS, ("none", "deflate", "zstd"), ("uint8",)),
    *itertools.product(("tiles", "strips"), LOSSLESS, DTYPES),
]
"""Layouts, compressions and types, all of which GDAL writes."""


def by_rasterio(path: Path, item: Item, scale: BandScale | None) -> tuple[np.ndarray, np.ndarray]:
    """Levels and valid pixels of a window, computed here from what GDAL reads of the file."""
    outer = item.outer
    where = RasterioWindow(outer.x, outer.y, outer.width, outer.height)
    with rasterio.open(path) as dataset:
        stored, valid = np.moveaxis(dataset.read(window=where), 0, -1), dataset.dataset_mask(window=where) > 0
    if stored.dtype == np.uint8:
        return stored, valid
    if scale is None:
        return np.rint(stored / 257.0).astype(np.uint8), valid
    low, high = np.array(scale.low), np.array(scale.high)
    return np.rint(np.clip((stored.astype(np.float64) - low) / (high - low) * 255, 0, 255)), valid


def assert_as_by_rasterio(path: Path, item: Item, scale: BandScale | None = None) -> None:
    assert item.failure is None, item.failure
    levels, valid = by_rasterio(path, item, scale)
    image = decode_window(item.data)
    ours = np.ones(valid.shape, bool) if image.valid_hw is None else image.valid_hw
    np.testing.assert_array_equal(ours, valid)
    difference = np.abs(image.pixels_hwc.astype(int) - levels)[valid]
    assert difference.max(initial=0) <= (scale is not None)  # halves of a level round either way in float32


@pytest.mark.parametrize(("layout", "compression", "dtype"), GRID)
def test_windows_have_the_pixels_and_masks_that_gdal_reads(layout, compression, dtype, tmp_path) -> None:
    pixels = values(700, 900, 4, dtype)
    empty = (np.arange(900) + np.arange(700)[:, None] * 0.3) < 250
    pixels[:, empty] = 0
    options = LAYOUTS[layout] | LOSSLESS[compression]
    if options.get("predictor") and dtype == "float32":
        options = options | {"predictor": 3}
    path = write_raster(tmp_path / "a.tif", pixels, names=RGBN, nodata=0, **options)
    _, pairs = plan_and_read(config(tmp_path), NetworkBands(RGBN, SCALES[dtype]))
    assert len(pairs) == 4
    for _, item in pairs:
        assert_as_by_rasterio(path, item, SCALES[dtype])


@pytest.mark.parametrize("layout", ["tiles", "strips"])
@pytest.mark.parametrize("compression", ["jpeg", "webp"])
def test_lossy_tiles_are_what_gdal_makes_of_them(layout, compression, tmp_path) -> None:
    photometric = {"photometric": "ycbcr"} if compression == "jpeg" else {}
    options = LAYOUTS[layout] | {"compress": compression} | photometric
    path = write_raster(tmp_path / "a.tif", values(600, 520, 3), **options)
    _, pairs = plan_and_read(config(tmp_path), NetworkBands(("red", "green", "blue")))
    for _, item in pairs:
        assert_as_by_rasterio(path, item)


@pytest.mark.parametrize("layout", ["tiles", "strips", "big-endian", "tiles of planes"])
@pytest.mark.parametrize("compress", ["deflate", "jpeg"])
def test_a_mask_page_says_which_pixels_are_valid(layout, compress, tmp_path) -> None:
    mask = np.zeros((600, 700), np.uint8)
    mask[100:420, 30:650] = 255
    path = write_raster(tmp_path / "a.tif", values(600, 700, 3), mask=mask, compress=compress, **LAYOUTS[layout])
    _, pairs = plan_and_read(config(tmp_path), NetworkBands(("red", "green", "blue")))
    for _, item in pairs:
        assert_as_by_rasterio(path, item)


@pytest.mark.parametrize("layout", ["tiles", "strips", "tiles of planes"])
def test_pixels_under_an_alpha_of_0_are_not_valid(layout, tmp_path) -> None:
    pixels = values(600, 700, 4)
    pixels[3] = 255
    pixels[3, :, :200] = 0
    pixels[3, :, 200:210] = 128
    path = write_raster(tmp_path / "a.tif", pixels, photometric="RGB", alpha="YES", **LAYOUTS[layout])
    _, pairs = plan_and_read(config(tmp_path), NetworkBands(("red", "green", "blue")))
    for shard, item in pairs:
        assert shard.raster.alpha == 4
        image = decode_window(item.data)
        valid = np.ones(image.pixels_hwc.shape[:2], bool) if image.valid_hw is None else image.valid_hw
        columns = np.arange(item.outer.x, item.outer.x + item.outer.width)
        np.testing.assert_array_equal(valid, np.broadcast_to(columns >= 200, valid.shape))
        with rasterio.open(path) as dataset:
            where = RasterioWindow(item.outer.x, item.outer.y, item.outer.width, item.outer.height)
            np.testing.assert_array_equal(valid, dataset.dataset_mask(window=where) > 0)


def test_pixels_that_are_not_finite_in_a_band_of_the_network_are_not_valid(tmp_path) -> None:
    pixels = values(300, 300, 3, "float32")
    pixels[0, 10:20, 10:20] = np.nan
    pixels[1, 50:60, 50:60] = np.inf
    pixels[2, 90:99, 90:99] = np.nan  # no band of the network
    write_raster(tmp_path / "a.tif", pixels, names=("red", "green", "other"))
    scale = BandScale(dtype="float32", low=(-30, -30), high=(70, 70))
    _, ((_, item),) = plan_and_read(config(tmp_path), NetworkBands(("red", "green"), scale))
    expected = np.ones((300, 300), bool)
    expected[10:20, 10:20] = expected[50:60, 50:60] = False
    image = decode_window(item.data)
    np.testing.assert_array_equal(image.valid_hw, expected)
    assert not image.pixels_hwc[~expected].any()


def test_a_pixel_is_without_data_where_all_bands_have_the_nodata_value(tmp_path) -> None:
    pixels = values(200, 200, 4)
    pixels[0, :50] = pixels[3, :50] = 0  # black in two bands alone
    pixels[:, 150:] = 0
    path = write_raster(tmp_path / "a.tif", pixels, names=RGBN, nodata=0)
    _, ((_, item),) = plan_and_read(config(tmp_path), NetworkBands(("red", "nir")))
    valid = decode_window(item.data).valid_hw
    assert valid[:150].all()
    assert not valid[150:].any()
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(valid, dataset.dataset_mask() > 0)


def test_a_nodata_value_of_the_user_is_that_of_the_file(tmp_path) -> None:
    pixels = values(300, 300, 4)
    pixels[:, :, 200:] = 0
    write_raster(tmp_path / "bare/a.tif", pixels, names=RGBN)
    write_raster(tmp_path / "tagged/a.tif", pixels, names=RGBN, nodata=0)
    bands = NetworkBands(RGBN)
    (given,) = [item for _, item in plan_and_read(config(tmp_path / "bare", nodata=0), bands)[1]]
    (tagged,) = [item for _, item in plan_and_read(config(tmp_path / "tagged"), bands)[1]]
    assert given.data == tagged.data
    (plain,) = [item for _, item in plan_and_read(config(tmp_path / "bare"), bands)[1]]
    assert decode_window(plain.data).valid_hw is None


def test_infrared_that_is_tagged_as_alpha_is_a_band_when_the_user_says_so(tmp_path) -> None:
    pixels = values(200, 200, 4)
    pixels[3, :, :90] = 0
    write_raster(tmp_path / "a.tif", pixels, photometric="RGB", alpha="YES")
    numbers = ("red=1", "green=2", "blue=3", "nir=4")
    _, ((shard, item),) = plan_and_read(config(tmp_path, bands=numbers), NetworkBands(RGBN))
    assert shard.raster.alpha is None
    image = decode_window(item.data)
    assert image.valid_hw is None
    np.testing.assert_array_equal(image.pixels_hwc, np.moveaxis(pixels, 0, -1))


def test_bands_come_in_the_order_of_the_checkpoint(tmp_path) -> None:
    pixels = values(200, 200, 4)
    write_raster(tmp_path / "a.tif", pixels, names=("nir", "blue", "green", "red"))
    _, ((_, item),) = plan_and_read(config(tmp_path), NetworkBands(RGBN))
    np.testing.assert_array_equal(decode_window(item.data).pixels_hwc, np.moveaxis(pixels[[3, 2, 1, 0]], 0, -1))


# Sparse tiles, and what is fetched ------------------------------------------------------------------------------------


def test_windows_of_sparse_tiles_are_not_read_and_known_to_be_empty(tmp_path, monkeypatch) -> None:
    pixels = values(1024, 2048, 4)
    pixels[:, :, 600:] = 0
    write_raster(tmp_path / "a.tif", pixels, names=RGBN, nodata=0, SPARSE_OK=True, compress="deflate")
    decoded = []
    monkeypatch.setattr(raster_windows, "read_blocks", lambda *given: decoded.append(given[1]) or read_blocks(*given))
    _, pairs = plan_and_read(config(tmp_path), NetworkBands(RGBN))
    empty = [item.window.x for _, item in pairs if not item.data]
    assert empty == [1024, 1536] * 2
    assert max(window.x + window.width for window in decoded) <= 1088 + 64
    for _, item in pairs:
        if item.data:
            assert_as_by_rasterio(tmp_path / "a.tif", item)


read_blocks = raster_windows.read_blocks


def test_a_sparse_tile_without_a_nodata_value_has_zeros(tmp_path) -> None:
    pixels = values(512, 1024, 4)
    pixels[:, :, 512:] = 0
    write_raster(tmp_path / "a.tif", pixels, names=RGBN, SPARSE_OK=True, compress="deflate")
    _, pairs = plan_and_read(config(tmp_path), NetworkBands(RGBN))
    for _, item in pairs:
        assert_as_by_rasterio(tmp_path / "a.tif", item)


@pytest.mark.parametrize("layout", ["tiles", "strips"])
def test_the_blocks_of_a_square_are_fetched_once(layout, tmp_path, monkeypatch) -> None:
    path = write_raster(tmp_path / "a.tif", values(1500, 1700, 4), names=RGBN, compress="deflate", **LAYOUTS[layout])
    plan = plan_source(config(tmp_path, halo_px=160), NetworkBands(RGBN))
    fetched = []
    read_range = objects.read_range

    def counted(url, start, end, *, etag):
        fetched.append(end - start)
        return read_range(url, start, end, etag=etag)

    monkeypatch.setattr(objects, "read_range", counted)
    for shard in plan.shards:
        assert all(item.failure is None for item in read_items(shard, config(tmp_path).read, max_bytes=1))
    assert sum(fetched) < 1.02 * path.stat().st_size + 2**16


def test_windows_after_those_that_are_committed_are_the_same(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(1100, 1600, 4), names=RGBN, compress="deflate")
    cfg = config(tmp_path)
    (shard,) = plan_source(cfg, NetworkBands(RGBN)).shards
    everything = {item.key: item for item in read_items(shard, cfg.read, max_bytes=1)}
    committed = {"a.tif#0,0", "a.tif#0,1024", "a.tif#512,512", "a.tif#1024,1536"}
    rest = list(read_items(shard, cfg.read, max_bytes=1, skip=committed))
    assert {item.key for item in rest} == everything.keys() - committed
    for item in rest:
        assert item.data == everything[item.key].data
    assert rest[-1].shard_rows == len(everything) == 12


def test_ranges_that_are_near_are_merged_and_no_byte_is_lost() -> None:
    spans = [(0, 10, 0), (20, 5, 1), (10**6, 7, 2), (10**6 + 3, 2, 3), (10**6 + 65_543 + 7, 1, 4)]
    assert [[index for _, _, index in run] for run in merge_ranges(spans)] == [[0, 1], [2, 3], [4]]


# Failures -------------------------------------------------------------------------------------------------------------


def test_a_damaged_tile_fails_the_windows_that_touch_it(tmp_path) -> None:
    path = write_raster(tmp_path / "a.tif", values(1024, 2048, 4), names=RGBN, compress="deflate")
    with rasterio.open(path) as dataset:
        at, size = (int(dataset.get_tag_item(f"BLOCK_{name}_2_2", "TIFF", bidx=1)) for name in ("OFFSET", "SIZE"))
    data = bytearray(path.read_bytes())
    data[at : at + size] = bytes(size)
    path.write_bytes(data)
    _, pairs = plan_and_read(config(tmp_path), NetworkBands(RGBN))
    failed = {item.key: item.failure.code for _, item in pairs if item.failure}
    assert failed == {"a.tif#0,0": "corrupt"}
    assert all(item.window is not None for _, item in pairs)


def test_a_raster_that_is_replaced_while_it_is_read_fails_as_changed(tmp_path) -> None:
    path = write_raster(tmp_path / "a.tif", values(600, 600, 4), names=RGBN)
    cfg = config(tmp_path)
    plan = plan_source(cfg, NetworkBands(RGBN))
    write_raster(path, values(600, 600, 4, seed=1), names=RGBN)
    items = [item for shard in plan.shards for item in read_items(shard, cfg.read, max_bytes=1)]
    assert {item.failure.code for item in items} == {"source_changed"}
    assert len(items) == 4


def test_every_window_of_a_square_has_memory_for_one_row_of_windows_alone(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(2100, 1100, 4), names=RGBN)
    (shard,) = plan_source(config(tmp_path), NetworkBands(RGBN)).shards
    from contextlib import ExitStack

    from pipeline.source.raster import unpack

    here = unpack(shard)
    with ExitStack() as stack:
        reader = raster_windows.WindowReader(shard.url, here, stack)
        for core in here.cores():
            reader.encoded(here.outer(core))
            assert reader._buffer.window.height <= 512 + 2 * 64 + 2 * 64
