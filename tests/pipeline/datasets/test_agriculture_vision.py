"""Agriculture-Vision in miniature: nine maps that overlap, a boundary, a mask, and infrared beside the colours."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.datasets.agriculture_vision import AGRICULTURE_VISION, PAINTED
from pipeline.errors import InputError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import grey_png, put

ROOT = "Agriculture-Vision-2021"
FIELD = "1AWTA1QZR_1024-512-1536-1024"
SIDE = 16
IDS = {name: index for index, name in enumerate(AGRICULTURE_VISION.classes.names)}


def jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "JPEG", quality=95)
    return out.getvalue()


def write(root: Path, name: str, drawn: dict[str, np.ndarray], *, split: str = "train", **valid: np.ndarray) -> None:
    """Write one image with its maps, (16, 16) bool each; what is not given is empty, or valid everywhere."""
    rng = np.random.default_rng(len(name))
    put(root, f"{ROOT}/{split}/images/rgb/{name}.jpg", jpeg(rng.integers(0, 256, (SIDE, SIDE, 3))))
    put(root, f"{ROOT}/{split}/images/nir/{name}.jpg", jpeg(rng.integers(0, 256, (SIDE, SIDE))))
    nothing = np.zeros((SIDE, SIDE), bool)
    for kind in ("boundaries", "masks"):
        put(root, f"{ROOT}/{split}/{kind}/{name}.png", grey_png(valid.get(kind, ~nothing) * 255))
    for kind in PAINTED:
        put(root, f"{ROOT}/{split}/labels/{kind}/{name}.png", grey_png(drawn.get(kind, nothing) * 255))


def read(root: Path, name: str = FIELD) -> np.ndarray:
    examples = {one.key: one for one in AGRICULTURE_VISION.examples(Url(str(root)), "train")}
    return AGRICULTURE_VISION.read(Url(str(root)), examples[f"train/{name}"]).label_hw


def area(y: slice, x: slice) -> np.ndarray:
    drawn = np.zeros((SIDE, SIDE), bool)
    drawn[y, x] = True
    return drawn


ALL = slice(None)


def test_the_maps_are_the_classes_and_storm_damage() -> None:
    assert set(PAINTED) - {"storm_damage"} == set(IDS) - {"background"}
    assert len(PAINTED) == 9


def test_a_split_is_listed_by_its_colours(tmp_path: Path) -> None:
    for name in ("B_0-0-512-512", "A_512-0-1024-512", "A_0-0-512-512"):
        write(tmp_path, name, {})
    write(tmp_path, "C_0-0-512-512", {}, split="val")
    keys = [one.key for one in AGRICULTURE_VISION.examples(Url(str(tmp_path)), "train")]
    assert keys == ["train/A_0-0-512-512", "train/A_512-0-1024-512", "train/B_0-0-512-512"]
    assert [one.key for one in AGRICULTURE_VISION.examples(Url(str(tmp_path)), "val")] == ["val/C_0-0-512-512"]


@pytest.mark.parametrize("name", [name for name in PAINTED if name != "storm_damage"])
def test_one_map_alone_is_its_class_on_background(tmp_path: Path, name: str) -> None:
    drawn = area(slice(3, 9), slice(2, 5))
    write(tmp_path, FIELD, {name: drawn})
    np.testing.assert_array_equal(read(tmp_path), np.where(drawn, IDS[name], 0))


def test_where_maps_overlap_the_rarest_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = {name: rng.random((SIDE, SIDE)) < 0.4 for name in PAINTED}
    write(tmp_path, FIELD, drawn)
    label_hw = read(tmp_path)
    for y, x in np.ndindex(SIDE, SIDE):
        named = [name for name in PAINTED if drawn[name][y, x]]
        assert label_hw[y, x] == (IDS.get(named[-1], 255) if named else 0)


def test_storm_damage_is_ignored_unless_something_else_is_there(tmp_path: Path) -> None:
    write(tmp_path, FIELD, {"storm_damage": area(ALL, slice(0, 8)), "drydown": area(ALL, slice(4, 12))})
    np.testing.assert_array_equal(read(tmp_path)[0], [255] * 4 + [IDS["drydown"]] * 8 + [0] * 4)


def test_outside_the_boundary_or_the_mask_nothing_counts(tmp_path: Path) -> None:
    maps = {"boundaries": area(slice(0, 12), ALL), "masks": area(ALL, slice(4, 16))}
    write(tmp_path, FIELD, {"water": area(ALL, ALL)}, **maps)
    np.testing.assert_array_equal(read(tmp_path), np.where(maps["boundaries"] & maps["masks"], IDS["water"], 255))


def test_the_image_has_the_infrared_as_its_fourth_band(tmp_path: Path) -> None:
    write(tmp_path, FIELD, {})
    one = AGRICULTURE_VISION.examples(Url(str(tmp_path)), "train")[0]
    image = AGRICULTURE_VISION.read(Url(str(tmp_path)), one).image
    pixels_hwc = tifffile.imread(io.BytesIO(image))
    assert pixels_hwc.shape == (SIDE, SIDE, 4)
    for band, folder in ((slice(0, 3), "rgb"), (3, "nir")):
        original = np.asarray(Image.open(tmp_path / f"{ROOT}/train/images/{folder}/{FIELD}.jpg"))
        np.testing.assert_array_equal(pixels_hwc[..., band], original)
    assert AGRICULTURE_VISION.read(Url(str(tmp_path)), one).image == image


def test_infrared_may_be_saved_with_three_bands_but_not_in_colours(tmp_path: Path) -> None:
    write(tmp_path, FIELD, {})
    one = AGRICULTURE_VISION.examples(Url(str(tmp_path)), "train")[0]
    grey = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    put(tmp_path, one.more[0], jpeg(np.dstack([grey] * 3)))
    pixels_hwc = tifffile.imread(io.BytesIO(AGRICULTURE_VISION.read(Url(str(tmp_path)), one).image))
    assert np.abs(pixels_hwc[..., 3].astype(int) - grey).max() < 30
    put(tmp_path, one.more[0], jpeg(np.dstack([grey, 255 - grey, grey])))
    with pytest.raises(InputError, match=f"band_mismatch: {one.more[0]}"):
        AGRICULTURE_VISION.read(Url(str(tmp_path)), one)


@pytest.mark.parametrize("gone", ["images/nir/{}.jpg", "boundaries/{}.png", "labels/endrow/{}.png"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, gone: str) -> None:
    write(tmp_path, FIELD, {})
    path = f"{ROOT}/train/{gone.format(FIELD)}"
    (tmp_path / path).unlink()
    with pytest.raises(InputError, match=f"not_found: {path}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("path", "data", "says"),
    [
        ("labels/water/{}.png", grey_png(np.full((SIDE, SIDE), 128)), "value 128 on 256"),
        ("labels/water/{}.png", grey_png(np.zeros((4, 4))), r"\(4, 4\) pixels, the boundary"),
        ("masks/{}.png", b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
        ("images/nir/{}.jpg", jpeg(np.zeros((8, 8))), "differ in size"),
    ],
)
def test_a_wrong_map_is_named(tmp_path: Path, path: str, data: bytes, says: str) -> None:
    write(tmp_path, FIELD, {})
    put(tmp_path, f"{ROOT}/train/{path.format(FIELD)}", data)
    with pytest.raises(LabelError, match=f"{FIELD}.*{says}"):
        read(tmp_path)


def test_a_damaged_image_fails_alone(tmp_path: Path) -> None:
    write(tmp_path, FIELD, {})
    put(tmp_path, f"{ROOT}/train/images/rgb/{FIELD}.jpg", jpeg(np.zeros((SIDE, SIDE, 3)))[:200])
    with pytest.raises(InputError, match=f"corrupt: .*rgb/{FIELD}.jpg"):
        read(tmp_path)
