"""Potsdam and Vaihingen in miniature: official tiles, labels in colours, the two of Potsdam that are not exact."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.isprs import POTSDAM, VAIHINGEN, Isprs
from pipeline.errors import ConfigError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import put

COLOURS = np.array([[(255, 255, 255), (0, 0, 255), (0, 255, 255)], [(0, 255, 0), (255, 255, 0), (255, 0, 0)]], np.uint8)
IDS = np.array([[0, 1, 2], [3, 4, 5]])
ERODED = np.where(IDS[..., None] == 2, 0, COLOURS)


def tif(rgb_hwc: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(rgb_hwc, np.uint8), "RGB").save(out, "TIFF", compression="tiff_lzw")
    return out.getvalue()


@pytest.fixture
def potsdam(tmp_path: Path) -> Path:
    """As some of its archives unpack: images in a folder, labels without one."""
    for tile in {tile for tiles in POTSDAM.tiles.values() for tile in tiles}:
        put(tmp_path, f"2_Ortho_RGB/top_potsdam_{tile}_RGB.tif", tif(COLOURS // 2) + tile.encode())
        put(tmp_path, f"2_Ortho_RGB/top_potsdam_{tile}_RGB.tfw", "0.05")
        put(tmp_path, f"top_potsdam_{tile}_label.tif", tif(COLOURS))
        put(tmp_path, f"5_Labels_all_noBoundary/top_potsdam_{tile}_label_noBoundary.tif", tif(ERODED))
    return tmp_path


@pytest.fixture
def vaihingen(tmp_path: Path) -> Path:
    for tile in VAIHINGEN.tiles["train"]:
        put(tmp_path, f"top/top_mosaic_09cm_area{tile}.tif", tif(COLOURS // 2))
        put(tmp_path, f"gts_for_participants/top_mosaic_09cm_area{tile}.tif", tif(COLOURS))
    for tile in VAIHINGEN.tiles["test"]:
        put(tmp_path, f"top/top_mosaic_09cm_area{tile}.tif", tif(COLOURS // 2))
        put(tmp_path, f"top_mosaic_09cm_area{tile}.tif", tif(COLOURS))
        put(tmp_path, f"top_mosaic_09cm_area{tile}_noBoundary.tif", tif(ERODED))
    return tmp_path


def read(city: Isprs, root: Path, key: str) -> np.ndarray:
    (one,) = [one for one in city.examples(Url(str(root)), key.split("/")[0]) if one.key == key]
    return city.read(Url(str(root)), one).label_hw


@pytest.mark.parametrize(("city", "train", "test"), [(POTSDAM, 24, 14), (VAIHINGEN, 16, 17)])
def test_the_official_tiles_are_divided_without_overlap(city: Isprs, train: int, test: int) -> None:
    assert (len(set(city.tiles["train"])), len(set(city.tiles["test"]))) == (train, test)
    assert not set(city.tiles["train"]) & set(city.tiles["test"])
    assert city.tiles["test"] == city.tiles["test_eroded"]


def test_potsdam_is_read_in_the_order_of_its_keys(potsdam: Path) -> None:
    examples = POTSDAM.examples(Url(str(potsdam)), "train")
    keys = [one.key for one in examples]
    assert keys == sorted(f"train/{tile}" for tile in POTSDAM.tiles["train"])
    for one in examples:
        found = POTSDAM.read(Url(str(potsdam)), one)
        np.testing.assert_array_equal(found.label_hw, IDS)
        assert found.image.endswith(one.key.removeprefix("train/").encode())


@pytest.mark.parametrize("split", VAIHINGEN.splits)
def test_images_and_labels_of_one_name_are_told_apart(vaihingen: Path, split: str) -> None:
    for one in VAIHINGEN.examples(Url(str(vaihingen)), split):
        found = VAIHINGEN.read(Url(str(vaihingen)), one)
        assert found.image == tif(COLOURS // 2)
        np.testing.assert_array_equal(found.label_hw, np.where((IDS == 2) & (split == "test_eroded"), 255, IDS))


def test_borders_are_ignored_in_eroded_labels_and_wrong_in_others(potsdam: Path) -> None:
    np.testing.assert_array_equal(read(POTSDAM, potsdam, "test_eroded/7_13"), [[0, 1, 255], [3, 4, 5]])
    put(potsdam, "top_potsdam_7_13_label.tif", tif(ERODED))
    with pytest.raises(LabelError, match=r"top_potsdam_7_13_label\.tif has the colour \(0, 0, 0\) on 1 pixel"):
        read(POTSDAM, potsdam, "test/7_13")


@pytest.mark.parametrize("tile", ["4_12", "6_7"])
def test_the_two_inexact_labels_are_rounded(potsdam: Path, tile: str) -> None:
    rng = np.random.default_rng(0)
    noisy = np.abs(COLOURS.astype(int) - rng.integers(0, 60, COLOURS.shape))
    put(potsdam, f"top_potsdam_{tile}_label.tif", tif(noisy))
    np.testing.assert_array_equal(read(POTSDAM, potsdam, f"train/{tile}"), IDS)


def test_the_same_flaw_in_any_other_label_is_an_error(potsdam: Path) -> None:
    put(potsdam, "top_potsdam_6_8_label.tif", tif(np.where(COLOURS == 255, 252, COLOURS)))
    with pytest.raises(LabelError, match=r"6_8_label\.tif has the colour .*252"):
        read(POTSDAM, potsdam, "train/6_8")


@pytest.mark.parametrize("gone", ["2_Ortho_RGB/top_potsdam_2_12_RGB.tif", "top_potsdam_2_12_label.tif"])
def test_a_tile_that_is_not_there_is_named_before_any_is_read(potsdam: Path, gone: str) -> None:
    (potsdam / gone).unlink()
    with pytest.raises(ConfigError, match=gone):
        POTSDAM.examples(Url(str(potsdam)), "train")
    assert len(POTSDAM.examples(Url(str(potsdam)), "test")) == 14


def test_a_damaged_label_is_named(potsdam: Path) -> None:
    put(potsdam, "top_potsdam_2_10_label.tif", b"cut short")
    with pytest.raises(LabelError, match=r"2_10_label\.tif cannot be decoded"):
        read(POTSDAM, potsdam, "train/2_10")
