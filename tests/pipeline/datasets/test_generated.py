import io

import numpy as np
import tifffile
from PIL import Image

from pipeline.datasets import farmland
from pipeline.datasets.generated import _IMAGE_PX, FARMLAND, FARMLAND_NIR, SEEDS
from pipeline.store.url import Url


def test_splits_share_no_seed_and_no_key() -> None:
    keys = {split: [one.key for one in FARMLAND.examples(Url(""), split)] for split in FARMLAND.splits}
    assert not set(SEEDS["train"]) & set(SEEDS["val"])
    for split, found in keys.items():
        assert found == sorted(set(found))
        assert len(found) == len(SEEDS[split])


def test_an_example_is_the_scene_of_its_seed() -> None:
    one = FARMLAND.examples(Url(""), "val")[7]
    read = FARMLAND.read(Url(""), one)
    scene = farmland.generate_scene(SEEDS["val"][7], height=_IMAGE_PX, width=_IMAGE_PX)
    np.testing.assert_array_equal(read.label_hw, scene.label_hw)
    np.testing.assert_array_equal(FARMLAND.label(Url(""), one), scene.label_hw)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(read.image))), scene.image_hwc)


def test_with_near_infrared_an_example_is_the_same_scene_as_tiff_of_four_bands() -> None:
    one = FARMLAND_NIR.examples(Url(""), "val")[7]
    scene = farmland.generate_scene(SEEDS["val"][7], height=_IMAGE_PX, width=_IMAGE_PX)
    read = FARMLAND_NIR.read(Url(""), one)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(read.image)), scene.four_bands_hwc)
    np.testing.assert_array_equal(read.label_hw, scene.label_hw)


def test_the_same_bytes_again() -> None:
    one = FARMLAND.examples(Url(""), "train")[-1]
    assert FARMLAND.read(Url(""), one).image == FARMLAND.read(Url(""), one).image
