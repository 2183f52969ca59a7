import io

import numpy as np
import PIL.Image
import pytest

from pipeline import segment
from pipeline.config import DecodeConfig, InferConfig
from pipeline.errors import ConfigError, InputError, LabelError
from pipeline.image.decode import decode_image
from pipeline.run import parts
from pipeline.view.originals import Originals
from pipeline.view.pictures import THUMBNAIL_PX, Pictures, RowPlace
from tests.support.viewed_runs import FARM, committed_mask


def places(url):
    return {
        key: RowPlace(name, "", row)
        for name in parts.list_parts(url)
        for row, key in enumerate(parts.read_columns(url, name, ["key"])["key"].to_pylist())
    }


@pytest.fixture(scope="module")
def pictures(viewed):
    return Pictures(viewed.url, FARM, Originals(viewed.url, FARM))


@pytest.fixture(scope="module")
def place(viewed):
    return places(viewed.url)["farm_000003.jpg"]


def opened(data):
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


def test_the_mask_is_the_committed_one_for_every_row(viewed, pictures):
    for key, place in places(viewed.url).items():
        if key != "zz_broken.jpg":
            np.testing.assert_array_equal(pictures.mask(place), committed_mask(viewed.url, key))


@pytest.mark.parametrize("kind", ["overlay", "image", "mask"])
def test_thumbnails_are_small_pictures_of_the_right_kind(pictures, place, kind):
    picture = opened(pictures.thumbnail(place, kind))
    assert max(picture.shape[:2]) <= THUMBNAIL_PX
    colours = np.array([one.colour for one in FARM.classes])
    nearest = np.abs(picture.reshape(-1, 1, 3).astype(int) - colours).sum(-1).min(-1)
    assert (np.median(nearest) < 25) == (kind == "mask")  # of class colours alone, but for the JPEG's losses


def test_the_image_is_that_of_the_source(viewed, pictures, place):
    expected = decode_image((viewed.folder / "images/farm_000003.jpg").read_bytes(), DecodeConfig()).pixels_hwc
    np.testing.assert_array_equal(pictures.image(place).pixels_hwc, expected)
    assert np.abs(opened(pictures.jpeg(place)).astype(int) - expected).mean() < 6


def test_the_network_asked_again_gives_what_the_library_gives(viewed, pictures, place):
    image = pictures.image(place).pixels_hwc
    settings = {"refine": False, "infer": InferConfig(precision="fp32", batch=1)}
    mask, confidence = segment(image, str(viewed.folder / "network0"), **settings)
    np.testing.assert_array_equal(pictures.network(place), mask)
    np.testing.assert_array_equal(pictures.network_confidence(place), np.rint(confidence * 255))


def test_a_network_that_changed_since_is_not_asked(viewed, place, tmp_path):
    originals = Originals(viewed.url, FARM)
    originals.cfg = originals.cfg.model_copy(update={"checkpoint": str(viewed.folder / "network1")})
    with pytest.raises(ConfigError, match="other weights"):
        Pictures(viewed.url, FARM, originals).network(place)


def test_photos_have_no_maps_of_their_own_and_can_be_asked_for(pictures, place):
    assert pictures.confidence(place) is pictures.changed(place) is None
    assert pictures.layers(place) == ["mask", "truth", "network", "network_confidence"]


def test_a_failed_row_says_why_in_place_of_a_picture(viewed, pictures):
    place = places(viewed.url)["zz_broken.jpg"]
    assert pictures.mask(place) is None
    assert pictures.layers(place) == ["truth"]
    for kind in ("overlay", "image", "mask"):
        with pytest.raises(InputError, match="not_an_image"):
            pictures.thumbnail(place, kind)


def test_the_label_of_an_image_without_one_is_an_error_with_its_code(viewed, tmp_path):
    (tmp_path / "label_of_another_image.png").touch()
    pictures = Pictures(viewed.other, FARM, Originals(viewed.other, FARM, labels=str(tmp_path)))
    with pytest.raises(LabelError, match="no label"):
        pictures.truth(places(viewed.other)["farm_000003.jpg"])
