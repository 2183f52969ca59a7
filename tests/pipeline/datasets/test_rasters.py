"""Chips of rasters: they are the pixels that GDAL reads, no ground is in both splits, and bad rasters fail alone."""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from pipeline.classes import load_class_map
from pipeline.config import BandScale
from pipeline.datasets import output, prepare, receipts
from pipeline.datasets.config import PrepareConfig
from pipeline.datasets.layout import ListedExample
from pipeline.datasets.rasters import Rasters, open_layout
from pipeline.errors import ConfigError
from pipeline.image.channels import decode_channels
from pipeline.image.scale import eight_bits
from pipeline.run.ledger import Ledger
from pipeline.store.url import Url
from tests.support.polygons import geojson
from tests.support.rasters import RGBN, values, write_raster

CLASSES = load_class_map("farmland")
HEIGHT, WIDTH = 640, 900


def ids(seed: int = 1) -> np.ndarray:
    return np.kron(np.random.default_rng(seed).integers(0, 6, (64, 90), np.uint8), np.ones((10, 10), np.uint8))


def settings(folder: Path, *, cut_px: int = 128, **raster: Any) -> PrepareConfig:
    own = {"classes": "farmland", "labels": str(folder / "labels"), "block_chips": 2, **raster}
    plain = {"layout": "rasters", "root": str(folder / "rasters"), "output": str(folder / "out")}
    return PrepareConfig.model_validate(plain | {"splits": ("train", "val"), "cut_px": cut_px, "raster": own})


def opened(cfg: PrepareConfig) -> Rasters:
    layout = output.find_layout(cfg)
    assert isinstance(layout, Rasters)
    return layout


def write(folder: Path, dtype: str = "uint16", *, name: str = "a.tif", **profile: Any) -> tuple[np.ndarray, Path]:
    pixels = values(HEIGHT, WIDTH, 4, dtype)
    pixels[:, :200, :300] = 0
    write_raster(folder / "labels" / name, ids()[None])
    return pixels, write_raster(folder / "rasters" / name, pixels, names=RGBN, nodata=0, **profile)


def chips(layout: Rasters, cfg: PrepareConfig) -> list[ListedExample]:
    return [example for split in ("train", "val") for example in layout.examples(Url(cfg.root), split)]


def window_of(example: ListedExample) -> tuple[int, int, int, int]:
    y, x, height, width = map(int, example.more[2:])
    return y, x, height, width


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_chips_have_the_stored_pixels_and_mask_that_gdal_reads(dtype: str, tmp_path: Path) -> None:
    pixels, path = write(tmp_path, dtype)
    cfg = settings(tmp_path, min_labelled=0.0)
    layout, root = opened(cfg), Url(cfg.root)
    with rasterio.open(path) as dataset:
        valid = dataset.dataset_mask() > 0
    seen = np.zeros(valid.shape, int)
    for example in chips(layout, cfg):
        y, x, height, width = window_of(example)
        here = np.s_[y : y + height, x : x + width]
        labelled = layout.read(root, example)
        assert labelled is not None
        with rasterio.open(io.BytesIO(labelled.image)) as chip:
            np.testing.assert_array_equal(chip.read(), pixels[:, *here])
            np.testing.assert_array_equal(chip.dataset_mask() > 0, valid[here])
            assert chip.descriptions == RGBN
            assert chip.nodata == 0
        np.testing.assert_array_equal(labelled.label_hw, np.where(valid[here], ids()[here], 255))
        seen[here] += 1
        if not valid[here].any():
            continue
        scale = None if dtype == "uint8" else BandScale(dtype=dtype, low=(1,) * 4, high=(90,) * 4)
        image = decode_channels(labelled.image, RGBN, scale=scale)
        ours = np.ones((height, width), bool) if image.valid_hw is None else image.valid_hw
        np.testing.assert_array_equal(ours, valid[here])
        np.testing.assert_array_equal(image.pixels_hwc, eight_bits(np.moveaxis(pixels[:, *here], 0, -1), scale))
    assert seen.max() == 1
    assert seen.mean() > 0.5


def test_no_ground_is_in_both_splits_on_two_dates_of_other_grids(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, name="later.tif", transform=from_origin(485900 + 17.3, 5209245 - 9.1, 0.25, 0.25))
    write_raster(
        tmp_path / "labels/later.tif", ids()[None], transform=from_origin(485900 + 17.3, 5209245 - 9.1, 0.25, 0.25)
    )
    cfg = settings(tmp_path, val_share=0.4, cut_px=64)
    layout = opened(cfg)
    boxes: dict[str, list[tuple[float, ...]]] = {"train": [], "val": []}
    for example in chips(layout, cfg):
        y, x, height, width = window_of(example)
        with rasterio.open(tmp_path / "rasters" / example.image) as dataset:
            left, top = dataset.transform @ (x, y)
            right, bottom = dataset.transform @ (x + width, y + height)
        boxes[example.key.partition("/")[0]].append((left, bottom, right, top))
    assert min(map(len, boxes.values())) > 10
    for a, b in itertools.product(boxes["train"], boxes["val"]):
        overlap = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        assert min(overlap) < 0.25, (a, b)  # of a pixel at most


def test_bands_are_chosen_by_number_and_alpha_is_no_band(tmp_path: Path) -> None:
    pixels = values(HEIGHT, WIDTH, 4)
    pixels[3] = 255
    pixels[3, :300] = 0
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    write_raster(tmp_path / "rasters/a.tif", pixels, colours=colours, photometric="rgb")
    write_raster(tmp_path / "labels/a.tif", ids()[None])
    assert opened(settings(tmp_path)).bands == ("red", "green", "blue")
    cfg = settings(tmp_path, bands=("blue=3", "red=1"), min_labelled=0.0)
    layout = opened(cfg)
    for example in chips(layout, cfg):
        y, x, height, width = window_of(example)
        labelled = layout.read(Url(cfg.root), example)
        assert labelled is not None
        with rasterio.open(io.BytesIO(labelled.image)) as chip:
            np.testing.assert_array_equal(chip.read(), pixels[[2, 0], y : y + height, x : x + width])
            assert chip.descriptions == ("blue", "red")
            rows = np.arange(y, y + height)
            np.testing.assert_array_equal((chip.dataset_mask() > 0).all(axis=1), rows >= 300)


def test_a_raster_smaller_than_a_chip_is_one_chip(tmp_path: Path) -> None:
    write_raster(tmp_path / "rasters/a.tif", values(40, 50, 3), tiled=False, transform=from_origin(0, 9, 0.3, 0.7))
    write_raster(tmp_path / "labels/a.tif", ids()[None, :40, :50], transform=from_origin(0, 9, 0.3, 0.7))
    cfg = settings(tmp_path, val_share=0.0, cut_px=512)
    layout = opened(cfg)
    (example,) = layout.examples(Url(cfg.root), "train")
    assert window_of(example) == (0, 0, 40, 50)
    with pytest.raises(ConfigError, match="no chip"):
        layout.examples(Url(cfg.root), "val")


def test_chips_with_too_few_labelled_pixels_are_left_out(tmp_path: Path) -> None:
    write(tmp_path)
    label = ids()
    label[:, 100:] = 255
    write_raster(tmp_path / "labels/a.tif", label[None])
    cfg = settings(tmp_path, cut_px=64, val_share=0.0)
    layout = opened(cfg)
    for example in layout.examples(Url(cfg.root), "train"):
        kept = layout.read(Url(cfg.root), example)
        share = (layout.label(Url(cfg.root), example) != 255).mean()
        assert kept is None or (kept.label_hw != 255).mean() >= 0.1
        assert (kept is None) or share >= 0.1


def prepared(cfg: PrepareConfig, *, shard_examples: int = 7) -> receipts.SetManifest:
    layout = opened(cfg)
    shards = prepare.plan_examples(layout, Url(cfg.root), cfg.splits, shard_examples=shard_examples)
    job = output.preparation_of(cfg, layout, "label")
    for shard in shards:
        prepare.prepare_shard(job, shard, Ledger())
    origin = output.set_origin(job, "test")
    return receipts.close_set(cfg.output_url, output.shard_ids(shards), layout.classes, origin)


@pytest.mark.parametrize("shard_examples", [3, 100])
def test_statistics_of_the_set_are_those_of_the_valid_pixels_of_its_training_chips(
    shard_examples: int, tmp_path: Path
) -> None:
    pixels, path = write(tmp_path)
    cfg = settings(tmp_path)
    manifest = prepared(cfg, shard_examples=shard_examples)
    with rasterio.open(path) as dataset:
        valid = dataset.dataset_mask() > 0
    kept = np.zeros(valid.shape, bool)
    table = pq.read_table(tmp_path / "out/train")
    for key in table["key"].to_pylist():
        y, x = map(int, key.partition("#")[2].split(","))
        here = next(window_of(e) for e in chips(opened(cfg), cfg) if e.key == key)
        kept[y : y + here[2], x : x + here[3]] = True
    trained = pixels[:, kept & valid]
    assert manifest.bands is not None
    assert manifest.bands.pixels == trained.shape[1]
    assert manifest.bands.names == list(RGBN)
    np.testing.assert_allclose(manifest.bands.mean, trained.mean(axis=1, dtype=np.float64))
    np.testing.assert_array_equal(manifest.bands.low, np.percentile(trained, 2, axis=1, method="inverted_cdf"))
    assert receipts.read_set_manifest(cfg.output_url) == manifest


def test_bad_rasters_fail_alone_and_side_files_are_not_read(tmp_path: Path) -> None:
    _, path = write(tmp_path)
    (tmp_path / "rasters/a.tif.aux.xml").write_text("<PAMDataset><SRS>nonsense</SRS>")
    (tmp_path / "rasters/cut.tif").write_bytes(path.read_bytes()[:-90_000])
    (tmp_path / "rasters/page.tif").write_bytes(b"<html>")
    write_raster(tmp_path / "rasters/other.tif", values(64, 64, 4), names=RGBN)
    write_raster(tmp_path / "rasters/bare.tif", values(64, 64, 4, "uint16"), names=RGBN)
    manifest = prepared(settings(tmp_path))
    codes = [code for split in manifest.splits.values() for code in split.error_codes.items()]
    counted: dict[str, int] = {}
    for code, count in codes:
        counted[code] = counted.get(code, 0) + count
    assert counted["truncated"] == 1
    assert counted["unsupported_format"] == 1
    assert counted["band_mismatch"] == 1
    assert counted["label_missing"] >= 1
    assert manifest.splits["train"].rows > 5


def test_polygons_label_chips(tmp_path: Path) -> None:

    _, path = write(tmp_path)
    with rasterio.open(path) as dataset:
        box = shapely.box(*dataset.bounds)
    file = tmp_path / "fields.geojson"
    file.write_bytes(geojson([box], [CLASSES.names[2]], field="crop", crs="EPSG:32614"))
    cfg = settings(tmp_path, labels=str(file), label_field="crop", val_share=0.0)
    layout = opened(cfg)
    found = [layout.label(Url(cfg.root), example) for example in layout.examples(Url(cfg.root), "train")]
    assert all((label == 2).all() for label in found)


def test_missing_settings_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    for change, words in (
        ({"cut_px": None}, "--cut-px"),
        ({"raster": {"labels": "x"}}, "--raster.classes"),
        ({"raster": {"classes": "farmland"}}, "--raster.labels"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_layout(
                settings(tmp_path).model_copy(update={}).model_validate(settings(tmp_path).model_dump() | change)
            )
