"""Tiles of sources of every kind, against GDAL's own reading of their levels."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio

from pipeline.config import BandScale
from pipeline.errors import InputError
from pipeline.geotiff.overview import TilePlace
from pipeline.source.raster import NetworkBands
from pipeline.store.url import Url
from pipeline.view import source_tiles
from pipeline.view.source_tiles import SourceTiles
from tests.support.rasters import config, plan_and_read, values, write_raster
from tests.support.viewed_rasters import add_overviews, level_by_gdal

HEIGHT, WIDTH = 601, 1037
RGBN = ("nir", "red", "green", "blue")
BYTES = NetworkBands(("red", "green", "blue"))
WORDS = NetworkBands(RGBN, BandScale(dtype="uint16", low=(0, 900, 800, 700), high=(60000, 50000, 40000, 65000)))
FLOATS = NetworkBands(("height",), BandScale(dtype="float32", low=(-20,), high=(60,)))
KINDS = {
    "bytes": (BYTES, {}),
    "nodata": (BYTES, {"nodata": 0}),
    "mask": (BYTES, {"mask": True}),
    "words": (WORDS, {"interleave": "band"}),
    "words with nodata": (WORDS, {"nodata": 0, "compress": "deflate", "predictor": 2}),
    "floats": (FLOATS, {"compress": "zstd"}),
    "strips": (BYTES, {"tiled": False, "blockysize": 16, "blockxsize": WIDTH}),
}


def hole():
    """(H, W) False in a wedge without data."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return y + x > 300


def written(folder, kind):
    """A raster of a kind with overviews."""
    bands, profile = KINDS[kind]
    dtype = bands.scale.dtype if bands.scale else "uint8"
    pixels = values(HEIGHT, WIDTH, len(bands.channels), dtype)
    profile = dict(profile)
    if "nodata" in profile:
        pixels[:, ~hole()] = 0
    if profile.pop("mask", False):
        profile["mask"] = hole().astype(np.uint8) * 255
    path = write_raster(folder / "a.tif", pixels, names=bands.channels, **profile)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        add_overviews(path)
    return path, bands


def smooth(height, width):
    """(3, height, width) waves that change by some levels from pixel to pixel."""
    y, x = np.mgrid[0:height, 0:width]
    wave = 127 + 60 * np.sin(x / 20) + 60 * np.cos(y / 15)
    return np.stack([wave, 255 - wave, wave]).astype(np.uint8)


def tiles_of(path, bands):
    _, pairs = plan_and_read(config(path.parent), bands)
    return SourceTiles(Url(str(path)), pairs[0][0])


def level(tiles, number):
    height, width = tiles.sizes[number]
    rows = [
        [tiles.tile(TilePlace(number, row, column)) for column in range(-(-width // 512))]
        for row in range(-(-height // 512))
    ]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def expected(path, bands, number):
    """RGB of a level by GDAL's reading of samples and mask, and the formula of the scale."""
    samples = level_by_gdal(path, number).astype(np.float64)
    with rasterio.open(path, **({"overview_level": number - 1} if number else {})) as dataset:
        valid = dataset.dataset_mask() > 0
    if bands.scale:
        low, high = (np.array(side, float)[:, None, None] for side in (bands.scale.low, bands.scale.high))
        samples = np.rint(np.clip((samples - low) / (high - low) * 255, 0, 255))
    rgb = samples[[bands.channels.index(name) for name in ("red", "green", "blue")]] if len(samples) > 1 else samples
    return np.where(valid[..., None], np.broadcast_to(np.moveaxis(rgb, 0, -1), (*valid.shape, 3)), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_level_is_the_overview_as_gdal_reads_it_scaled_as_the_run_scales(tmp_path, kind):
    path, bands = written(tmp_path, kind)
    tiles = tiles_of(path, bands)
    assert tiles.levels == [0, 1, 2]
    for number in tiles.levels:
        found, by_gdal = level(tiles, number).astype(int), expected(path, bands, number)
        tolerance = 1 if bands.scale else 0  # of float32
        assert np.abs(found - by_gdal).max() <= tolerance


@pytest.mark.parametrize("factors", [(3,), (4,), (2, 16), (7, 16)])
def test_overviews_of_other_factors_are_reduced_to_the_level(tmp_path, factors):
    path = write_raster(tmp_path / "a.tif", smooth(700, 1050), names=BYTES.channels)
    plain = level(tiles_of(path, BYTES), 2)
    add_overviews(path, factors)
    difference = np.abs(level(tiles_of(path, BYTES), 2).astype(int) - plain)
    assert difference.mean() < 1.5  # half a pixel of the level to the side it would be 4


def test_no_tile_reads_more_than_the_limit(tmp_path, monkeypatch):
    path = write_raster(tmp_path / "a.tif", smooth(1100, 1300), names=BYTES.channels)
    read = []
    stored = source_tiles.read_stored

    def counted(url, shard, header, window):
        samples, valid = stored(url, shard, header, window)
        read.append(samples.nbytes)
        return samples, valid

    monkeypatch.setattr(source_tiles, "read_stored", counted)
    tiles = tiles_of(path, BYTES)
    assert tiles.levels == [0, 1, 2]
    monkeypatch.setattr(source_tiles, "MOST_TILE_BYTES", tiles.tile_bytes[1])
    assert tiles.levels == [0, 1]
    for number in tiles.levels:
        level(tiles, number)
    assert max(read) <= tiles.tile_bytes[1]
    with pytest.raises(LookupError, match=r"level 2 of this raster is not read; levels: \[0, 1\]"):
        tiles.tile(TilePlace(2, 0, 0))


def test_another_file_at_the_place_is_refused(tmp_path):
    path, bands = written(tmp_path, "bytes")
    _, pairs = plan_and_read(config(tmp_path), bands)
    shard = pairs[0][0]
    smaller = replace(shard, raster=replace(shard.raster, height=HEIGHT - 1))
    with pytest.raises(InputError, match=r"source_changed: a\.tif has 1037x601 pixels"):
        SourceTiles(Url(str(path)), smaller)
