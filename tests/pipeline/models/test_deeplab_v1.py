import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.catalogue import count_parameters
from pipeline.models.deeplab_v1 import Classifier, DeepLabV1, pools_and_taps
from tests.support.examples import examples
from tests.support.networks import assert_one_graph

VARIANTS = ["4x4", "7x7", "large_fov"]
FC6 = {"4x4": (4, 4, 6), "7x7": (7, 4, 12), "large_fov": (3, 12, 12)}
"""Kernel, hole and pad, as a prototxt says them."""
BOTH = pytest.mark.parametrize("msc", [False, True])


def tiny(num_classes: int = 5, *, width: float = 1 / 16, in_channels: int = 3, **options) -> DeepLabV1:
    torch.manual_seed(0)
    return zoo.build_network("deeplab_v1", num_classes, in_channels=in_channels, width_multiplier=width, **options)


def on_meta(num_classes: int = 21, **options) -> DeepLabV1:
    with torch.device("meta"):
        return zoo.build_network("deeplab_v1", num_classes, **options)


def with_biases(network: nn.Module) -> nn.Module:
    """Biases begin as zeros; a comparison should see them."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return network.eval().double()


def conv(entering: int, leaving: int, kernel: int, hole: int, pad: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(entering, leaving, kernel, stride=stride, padding=pad, dilation=hole), nn.ReLU()]


def prototxt(variant: str, classes: int, c: list[int], fc: int) -> nn.Sequential:
    """The published file, layer by layer; c are the channels of the five stages."""
    kernel, hole, pad = FC6[variant]
    return nn.Sequential(
        *conv(3, c[0], 3, 1, 1),
        *conv(c[0], c[0], 3, 1, 1),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        *conv(c[0], c[1], 3, 1, 1),
        *conv(c[1], c[1], 3, 1, 1),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        *conv(c[1], c[2], 3, 1, 1),
        *conv(c[2], c[2], 3, 1, 1),
        *conv(c[2], c[2], 3, 1, 1),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        *conv(c[2], c[3], 3, 1, 1),
        *conv(c[3], c[3], 3, 1, 1),
        *conv(c[3], c[3], 3, 1, 1),
        nn.MaxPool2d(3, 1, 1, ceil_mode=True),
        *conv(c[3], c[4], 3, 2, 2),
        *conv(c[4], c[4], 3, 2, 2),
        *conv(c[4], c[4], 3, 2, 2),
        nn.MaxPool2d(3, 1, 1, ceil_mode=True),
        *([nn.AvgPool2d(3, 1, 1)] if variant == "large_fov" else []),
        *conv(c[4], fc, kernel, hole, pad),
        *conv(fc, fc, 1, 1, 0),
        nn.Conv2d(fc, classes, 1),
    )


def full_size_branch(branch: Classifier, tapped: Tensor, zoom: int) -> Tensor:
    """A branch of the published test network: at the size of what it looks at, then Interp to the image's."""
    wide = F.relu(F.conv2d(tapped, branch.fc6.weight, branch.fc6.bias, padding=1))
    scores = branch.fc8(F.relu(branch.fc7(wide)))
    size = [(side - 1) * zoom + 1 for side in scores.shape[2:]]
    return F.interpolate(scores, size, mode="bilinear", align_corners=True)


@pytest.mark.parametrize(("variant", "count"), [("large_fov", 20_505_429), ("7x7", 134_346_581), ("4x4", 65_140_565)])
def test_parameter_counts_are_the_published_ones(variant: str, count: int) -> None:
    assert count_parameters(on_meta(variant=variant)) == count
    assert count_parameters(on_meta(variant=variant, msc=True)) == count + 1_206_121


@pytest.mark.parametrize(("side", "gmacs", "cells"), [(321, 50.9, 41), (513, 128.6, 65)])
def test_large_fov_costs_what_the_published_network_costs(side: int, gmacs: float, cells: int) -> None:
    network = on_meta().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = network(torch.empty(1, 3, side, side, device="meta"))
    assert logits.shape == (1, 21, cells, cells)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.05)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", [(41, 57), (30, 23)])
def test_the_network_is_the_published_list_of_layers(variant: str, side: tuple[int, int]) -> None:
    network = with_biases(tiny(variant=variant))
    channels = [4, 8, 16, 32, 32]
    reference = prototxt(variant, 5, channels, 64 if variant == "large_fov" else 256).double()
    shared = zip(reference.state_dict(), network.state_dict().values(), strict=True)
    reference.load_state_dict(dict(shared))
    x = torch.randn(2, 3, *side, dtype=torch.float64)
    with torch.no_grad():
        expected = reference(x)[:, :, : math.ceil(side[0] / 8), : math.ceil(side[1] / 8)]
        torch.testing.assert_close(network(x), expected)


def test_multi_scale_scores_are_those_of_the_published_test_network_at_every_8th_pixel() -> None:
    network = with_biases(tiny(msc=True))
    x = torch.randn(2, 3, 41, 57, dtype=torch.float64)
    with torch.no_grad():
        pooled = pools_and_taps(network.backbone, x)[0]
        main = network.classifier(network.pool5a(pooled[4]))[1]
        maps = [F.interpolate(main, (41, 57), mode="bilinear", align_corners=True)]
        for branch, tapped, zoom in zip(network.branches, [x, *pooled[:4]], (1, 2, 4, 8, 8), strict=True):
            maps.append(full_size_branch(branch, tapped, zoom))
        assert [scores.shape[2:] for scores in maps] == [(41, 57)] * 6
        torch.testing.assert_close(network(x), sum(maps)[:, :, ::8, ::8])


def test_without_the_branches_scores_the_main_one_is_left() -> None:
    network, plain = tiny(msc=True).eval(), tiny().eval()
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if "branches" not in name})
    for branch in network.branches:
        nn.init.zeros_(branch.fc8.weight)
    x = torch.randn(1, 3, 33, 30)
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(x))


def test_layers_that_hold_no_numbers_are_the_published_ones_too() -> None:
    network = on_meta(msc=True)
    assert network.align_corners
    assert [one.p for one in network.modules() if isinstance(one, nn.Dropout)] == [0.5] * 6


@BOTH
def test_logits_are_a_linear_function_of_the_features(msc: bool) -> None:
    network = with_biases(tiny(msc=msc))
    classifiers = [network.classifier, *network.branches]
    weight = torch.cat([one.fc8.weight for one in classifiers], dim=1)
    with torch.no_grad():
        features, logits = network.embed(torch.randn(1, 3, 20, 33, dtype=torch.float64))
        assert features.size(1) == network.feature_channels
        torch.testing.assert_close(F.conv2d(features, weight, sum(one.fc8.bias for one in classifiers)), logits)


@examples(40)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(VARIANTS), st.booleans())
def test_features_and_logits_leave_at_an_eighth_of_any_size_rounded_up(
    height: int, width: int, variant: str, msc: bool
) -> None:
    network = tiny(3, width=1 / 64, variant=variant, msc=msc).eval()
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(2, 3, height, width))
    assert logits.shape == (2, 3, math.ceil(height / 8), math.ceil(width / 8))
    assert features.shape == (2, network.feature_channels, *logits.shape[2:])


def test_poolings_have_caffes_sizes() -> None:
    """pooling_layer.cpp of Caffe: rounded up, less a window that would start behind the border."""
    network = tiny(width=1 / 64)
    for side in range(1, 70):
        expected, cells = [], side
        for stride in (2, 2, 2, 1, 1):
            pooled = math.ceil((cells + 2 - 3) / stride) + 1
            cells = pooled - ((pooled - 1) * stride >= cells + 1)
            expected.append(cells)
        assert [pool.size(2) for pool in pools_and_taps(network.backbone, torch.zeros(1, 3, side, 1))[0]] == expected


def test_averaging_counts_the_border_as_caffe_does() -> None:
    """AVE divides by the whole window, zeros around the image included."""
    averaged = tiny().pool5a(torch.ones(1, 1, 3, 3))[0, 0]
    torch.testing.assert_close(averaged * 9, torch.tensor([[4.0, 6, 4], [6, 9, 6], [4, 6, 4]]))


@BOTH
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant: str, msc: bool) -> None:
    network = tiny(variant=variant, msc=msc, width=1 / 8)
    logits = network(torch.randn(2, 3, 40, 40))
    F.cross_entropy(logits, torch.randint(0, 5, (2, 5, 5))).backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@BOTH
@pytest.mark.parametrize("side", [1, 2, 33])
def test_a_batch_of_one_trains(side: int, msc: bool) -> None:
    network = tiny(msc=msc)
    scores = network.supervised(torch.randn(1, 3, side, side))
    assert scores.keys() == network.loss_weights.keys()
    scores["logits"].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("in_channels", range(1, 17))
def test_any_number_of_bands_is_accepted(in_channels: int) -> None:
    network = tiny(in_channels=in_channels, msc=True).eval()
    assert network(torch.zeros(1, in_channels, 17, 9)).shape == (1, 5, 3, 2)


def test_half_precision_and_channels_last_agree_with_float32() -> None:
    network, x = tiny(msc=True).eval(), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        expected = network(x)
        network = network.to(memory_format=torch.channels_last)
        again = network(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
    assert (half.float() - expected).abs().max() < 0.05 * expected.abs().max()


@BOTH
def test_the_network_is_one_graph_for_the_compiler(msc: bool) -> None:
    network, x = tiny(msc=msc).eval(), torch.randn(1, 3, 32, 25)
    assert_one_graph(network, x)


@pytest.mark.parametrize("options", [{"variant": "5x5"}, {"output_stride": 16}, {"width_multiplier": 0}])
def test_what_there_is_not_is_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        zoo.build_network("deeplab_v1", 5, **options)
