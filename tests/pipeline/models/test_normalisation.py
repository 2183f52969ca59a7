import pytest

from pipeline.models.normalisation import CAFFE, IMAGENET, INCEPTION
from pipeline.training.config import NetworkConfig


def test_imagenets_mean_and_deviation_are_torchvisions() -> None:
    """https://pytorch.org/vision/stable/models.html, the transforms of every ImageNet weight: order RGB, 0 to 1."""
    assert IMAGENET.mean == (0.485, 0.456, 0.406)
    assert IMAGENET.std == (0.229, 0.224, 0.225)
    assert not IMAGENET.bgr


def test_caffes_mean_is_subtracted_from_8_bit_blue_green_red_and_nothing_divides() -> None:
    """`mean_value` 104.008, 116.669 and 122.675 in config/DeepLab-LargeFOV/train.prototxt of the authors' release."""
    assert [255 * mean for mean in reversed(CAFFE.mean)] == pytest.approx([104.008, 116.669, 122.675])
    assert [255 * std for std in CAFFE.std] == pytest.approx([1, 1, 1])
    assert CAFFE.bgr


def test_timms_xceptions_map_0_to_1_onto_minus_1_to_1() -> None:
    """`IMAGENET_INCEPTION_MEAN` and `_STD` of timm/data/constants.py."""
    assert INCEPTION.mean == INCEPTION.std == (0.5, 0.5, 0.5)
    assert not INCEPTION.bgr


def test_a_network_that_is_told_no_normalisation_has_imagenets() -> None:
    assert (NetworkConfig().mean, NetworkConfig().std) == (IMAGENET.mean, IMAGENET.std)
