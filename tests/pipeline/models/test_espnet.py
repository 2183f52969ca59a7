from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.catalogue import count_parameters
from tests.support.examples import examples
from tests.support.networks import assert_formats_agree, assert_one_graph, assert_trains_on_one

KINDS = {"whole": {}, "image": {"fuse_image": True}, "encoder": {"decoder": False}}
kinds = pytest.mark.parametrize("kind", list(KINDS))


def tiny(kind: str = "whole", num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network("espnet", num_classes, **({"width_multiplier": 1 / 4, "q": 2} | KINDS[kind] | options))


@cache
def evaluated(kind: str) -> nn.Module:
    return tiny(kind).eval()


def parameters(num_classes: int, **options) -> int:
    with torch.device("meta"):
        return count_parameters(zoo.build_network("espnet", num_classes, **options))


def module(entering: int, leaving: int, kernel: int) -> int:
    """Weights of an ESP module: the reduction, five 3x3, and three per channel for batch norm and slopes."""
    inner = leaving // 5
    return kernel**2 * entering * inner + 9 * inner * leaving + 3 * leaving


def encoder(p: int, q: int) -> int:
    """Layers of the authors' train/Model.py; the image's three channels join at two places."""
    total = 27 * 16 + 3 * 16 + 3 * 19 + module(19, 64, 3) + p * module(64, 64, 1)
    return total + 3 * 131 + module(131, 128, 3) + q * module(128, 128, 1) + 3 * 256


@pytest.mark.parametrize(("p", "q"), [(2, 3), (2, 8), (0, 1)])
@pytest.mark.parametrize("classes", [12, 20])
def test_it_has_the_parameters_of_the_authors_layers(p: int, q: int, classes: int) -> None:
    decoder = 2 * classes + 131 * classes + 3 * 4 * classes**2  # batch norm, projection, three transposed 2x2
    decoder += 6 * classes + module(2 * classes, classes, 1) + 3 * classes + 9 * (16 + classes) * classes + 3 * classes
    assert parameters(classes, p=p, q=q, decoder=False) == encoder(p, q) + 256 * classes
    assert parameters(classes, p=p, q=q) == encoder(p, q) + 256 * classes + decoder
    assert parameters(classes, p=p, q=q, fuse_image=True) == encoder(p, q) + 256 * classes + decoder + 27 * classes


def test_it_is_as_large_as_the_published_files() -> None:
    """pretrained/decoder of the authors' repository: espnet_p_2_q_8.pth, espnet_p_2_q_8_camvid.pth."""
    assert parameters(20) == 364_569
    assert parameters(12, fuse_image=True) == 354_517


@kinds
@examples(30)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_logits_fit_any_size(kind: str, height: int, width: int) -> None:
    network = evaluated(kind)
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(1, 3, height, width))
    stride = 8 if kind == "encoder" else 1
    assert network.stride == stride
    assert logits.shape == (1, 3, -(-height // stride), -(-width // stride))
    assert features.size(1) == network.feature_channels


def test_a_branch_of_the_pyramid_is_added_to_the_next() -> None:
    """Hierarchical feature fusion, fig. 1b: a cell 16 away reaches only the channels of the largest dilation."""
    pyramid = evaluated("whole").encoder.level2[0]
    x = torch.zeros(1, pyramid.reduce.in_channels, 41, 41)
    x[..., 20, 20] = 1
    with torch.no_grad():
        reached = (pyramid(x) - pyramid(torch.zeros_like(x))).abs()[0]
    inner = pyramid.reduce.out_channels
    first = pyramid.norm[0].num_features - 4 * inner
    for index, dilation in enumerate((2, 4, 8, 16)):
        channels = reached[first + index * inner : first + (index + 1) * inner].sum(0)
        assert all(channels[20, 20 + smaller] > 0 for smaller in (2, 4, 8, 16) if smaller <= dilation)
        assert all(channels[20, 20 + larger] == 0 for larger in (4, 8, 16) if larger > dilation)


@pytest.mark.parametrize("num_classes", [2, 4, 5, 7])
def test_a_decoder_for_few_classes_has_a_channel_for_each_branch(num_classes: int) -> None:
    network = tiny(num_classes=num_classes).eval()
    features, logits = network.embed(torch.zeros(1, 3, 16, 16))
    assert logits.size(1) == num_classes
    assert features.size(1) == max(5, num_classes)


def test_the_encoder_is_trained_first_and_its_weights_begin_the_whole_network() -> None:
    alone, whole = tiny("encoder", 6).state_dict(), tiny("whole", 6).state_dict()
    assert alone.keys() < whole.keys()
    assert all(alone[name].shape == whole[name].shape for name in alone)
    assert {name.split(".")[0] for name in whole.keys() - alone.keys()} == {"decoder", "logits"}


@kinds
def test_every_parameter_learns(kind: str) -> None:
    network = tiny(kind)
    logits = network(torch.randn(2, 3, 64, 48))
    F.cross_entropy(logits, torch.randint(0, 3, (2, *logits.shape[2:]))).backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@kinds
@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(kind: str, side: int) -> None:
    assert_trains_on_one(tiny(kind), side)


@pytest.mark.parametrize("bands", [1, 4, 16])
def test_any_number_of_bands_is_accepted(bands: int) -> None:
    assert tiny("image", in_channels=bands).eval()(torch.zeros(1, bands, 9, 8)).shape == (1, 3, 9, 8)


def test_half_precision_and_channels_last_agree_with_float32() -> None:
    network, x = tiny().eval(), torch.randn(2, 3, 61, 48)
    assert_formats_agree(network, x)


@pytest.mark.slow
def test_the_network_is_one_graph_for_the_compiler() -> None:
    network, x = tiny().eval(), torch.randn(1, 3, 33, 50)
    assert_one_graph(network, x)


@pytest.mark.parametrize("options", [{"output_stride": 16}, {"q": -1}, {"decoder_channels": 4}, {"backbone": "vgg16"}])
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        zoo.build_network("espnet", 5, **options)
