import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.classes import load_class_map
from pipeline.page.paint import paint
from pipeline.page.raster_picture import _GAP_PX, raster_picture
from tests.support.rasters import values, write_raster

CLASSES = load_class_map("farmland")


def picture_of(folder: Path, pixels: np.ndarray, mask: np.ndarray, longer_px: int) -> np.ndarray:
    raster = write_raster(folder / "a.tif", pixels, nodata=0)
    png = raster_picture(raster, write_raster(folder / "m.tif", mask[None], nodata=255), CLASSES, longer_px=longer_px)
    return np.asarray(Image.open(io.BytesIO(png)))


def test_the_first_three_bands_stand_left_of_the_painted_mask(tmp_path: Path) -> None:
    pixels = values(60, 90, 4)
    mask = np.random.default_rng(0).integers(0, 7, (60, 90), np.uint8)
    mask[:, :20] = 255
    picture = picture_of(tmp_path, pixels, mask, longer_px=200)
    np.testing.assert_array_equal(picture[:, :90], np.moveaxis(pixels[:3], 0, -1))
    np.testing.assert_array_equal(picture[:, 90 + _GAP_PX :], paint(mask, CLASSES))


def test_reduced_pixels_are_averaged_and_classes_are_not(tmp_path: Path) -> None:
    pixels = np.full((4, 80, 160), 100, np.uint8)
    pixels[:, ::2] = 200
    mask = np.where(np.arange(160) < 80, 1, 5).astype(np.uint8) * np.ones((80, 1), np.uint8)
    picture = picture_of(tmp_path, pixels, mask, longer_px=40)
    assert picture.shape == (20, 80 + _GAP_PX, 3)
    assert (picture[:, :40] == 150).all()
    colours = {tuple(colour) for colour in picture[:, 40 + _GAP_PX :].reshape(-1, 3).tolist()}
    assert colours == {CLASSES.classes[index].colour for index in (1, 5)}


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.tif is \(40, 50\) pixels, its mask \(40, 51\)"):
        picture_of(tmp_path, values(40, 50, 4), np.zeros((40, 51), np.uint8), longer_px=30)
