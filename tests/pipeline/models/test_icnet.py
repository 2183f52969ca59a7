from functools import cache

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
from tests.support.examples import examples
from tests.support.networks import assert_formats_agree, assert_one_graph, assert_trains_on_one

torch.set_num_threads(1)

TINY = {"width_multiplier": 1 / 16}


def tiny(num_classes: int = 3, **changes) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network("icnet", num_classes, **(TINY | changes))


@cache
def evaluated(align_corners: bool) -> nn.Module:
    return tiny(align_corners=align_corners).eval()


def on_meta(num_classes: int = 19, **options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network("icnet", num_classes, **options)


def macs(network: nn.Module, height: int, width: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, 3, height, width, device="meta"))
    return counter.get_total_flops() / 2


def conv_and_norm(kernel: int, in_channels: int, out_channels: int) -> int:
    """Weights of a convolution without bias, and two per channel of the batch norm behind it."""
    return kernel**2 * in_channels * out_channels + 2 * out_channels


def layers(num_classes: int, *, guidance: bool) -> int:
    """Parameters of the authors' prototxt, layer by layer."""
    total = conv_and_norm(3, 3, 32) + conv_and_norm(3, 32, 32) + conv_and_norm(3, 32, 64)  # conv1_1 to conv1_3
    entering = 64
    for count, channels in zip((3, 4, 6, 3), (32, 64, 128, 256), strict=True):  # conv2 to conv5
        total += conv_and_norm(1, entering, 4 * channels)  # proj
        for _ in range(count):  # reduce, 3x3, increase
            total += conv_and_norm(1, entering, channels) + conv_and_norm(3, channels, channels)
            total += conv_and_norm(1, channels, 4 * channels)
            entering = 4 * channels
    total += conv_and_norm(1, 1024, 256)  # conv5_4_k1
    total += conv_and_norm(3, 256, 128) + conv_and_norm(1, 256, 128)  # conv_sub4, conv3_1_sub2_proj
    total += conv_and_norm(3, 128, 128) + conv_and_norm(1, 64, 128)  # conv_sub2, conv3_sub1_proj
    total += conv_and_norm(3, 3, 32) + conv_and_norm(3, 32, 32) + conv_and_norm(3, 32, 64)  # conv1_sub1 to conv3_sub1
    classifiers = (128, 256, 128) if guidance else (128,)
    return total + sum((channels + 1) * num_classes for channels in classifiers)


@pytest.mark.parametrize("num_classes", [12, 19, 171])
@pytest.mark.parametrize("guidance", [True, False])
def test_it_has_the_parameters_of_the_authors_layers(num_classes: int, guidance: bool) -> None:
    expected = layers(num_classes, guidance=guidance)
    assert count_parameters(on_meta(num_classes, label_guidance=guidance)) == expected


def test_it_has_6_7_million_parameters_for_cityscapes() -> None:
    assert count_parameters(on_meta(19, label_guidance=False)) == 6_699_987
    assert count_parameters(on_meta(19)) == 6_707_321


def test_the_uncompressed_network_is_as_large_and_as_costly_as_openvinos() -> None:
    """icnet-camvid-ava-0001: 26.7043 M parameters, batch norm folded into biases, and 75.818 GFLOPs at 720 x 960."""
    network = on_meta(12, width_multiplier=2, label_guidance=False)
    folded = sum(one.num_features for one in network.modules() if isinstance(one, nn.BatchNorm2d))
    assert count_parameters(network) == 26_732_684
    assert count_parameters(network) - folded == 26_704_140
    assert (count_parameters(network) - folded) / 1e6 == pytest.approx(26.7043, abs=0.0002)
    assert 2 * macs(network, 720, 960) / 1e9 == pytest.approx(75.818, rel=0.002)


class Layers:
    """The authors' graph written down again: every layer a function call on the network's tensors, in test mode."""

    def __init__(self, network: nn.Module) -> None:
        self.state = network.state_dict()

    def conv(self, x: Tensor, name: str, norm: str, *, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=dilation * (weight.size(2) // 2), dilation=dilation)
        mean, var, scale, shift = (
            self.state[f"{norm}.{one}"].view(1, -1, 1, 1) for one in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def block(self, x: Tensor, name: str, *, stride: int = 1, dilation: int = 1) -> Tensor:
        reduced = self.conv(x, f"{name}.conv1", f"{name}.bn1", stride=stride).relu()
        filtered = self.conv(reduced, f"{name}.conv2", f"{name}.bn2", dilation=dilation).relu()
        increased = self.conv(filtered, f"{name}.conv3", f"{name}.bn3")
        if f"{name}.downsample.0.weight" in self.state:
            x = self.conv(x, f"{name}.downsample.0", f"{name}.downsample.1", stride=stride)
        return (x + increased).relu()

    def interp(self, x: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=True)

    def half(self, data: Tensor) -> Tensor:
        x = self.interp(data, 33, 49)
        for name, stride in (("1", 2), ("2", 1), ("3", 1)):
            x = self.conv(x, f"backbone.conv{name}", f"backbone.bn{name}", stride=stride).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        for index in range(3):
            x = self.block(x, f"backbone.layer1.{index}")
        return self.block(x, "backbone.layer2.0", stride=2)

    def quarter(self, conv3_1: Tensor) -> Tensor:
        x = self.interp(conv3_1, 3, 4)
        for stage, first, last, dilation in ((2, 1, 4, 1), (3, 0, 6, 2), (4, 0, 3, 4)):
            for index in range(first, last):
                x = self.block(x, f"backbone.layer{stage}.{index}", dilation=dilation)
        pooled = [self.interp(F.adaptive_avg_pool2d(x, bins), 3, 4) for bins in (6, 3, 2, 1)]
        return self.conv(x + pooled[0] + pooled[1] + pooled[2] + pooled[3], "reduce.0", "reduce.1").relu()

    def scores(self, data: Tensor) -> dict[str, Tensor]:
        conv3_1 = self.half(data)
        conv5_4_interp = self.interp(self.quarter(conv3_1), 5, 7)
        coarse = self.conv(conv5_4_interp, "fuse_half.coarse.0", "fuse_half.coarse.1", dilation=2)
        sub24 = (coarse + self.conv(conv3_1, "fuse_half.fine.0", "fuse_half.fine.1")).relu()
        sub24_interp = self.interp(sub24, 9, 13)
        full = data
        for index in (0, 3, 6):
            full = self.conv(full, f"full.{index}", f"full.{index + 1}", stride=2).relu()
        coarse = self.conv(sub24_interp, "fuse_full.coarse.0", "fuse_full.coarse.1", dilation=2)
        sub12 = (coarse + self.conv(full, "fuse_full.fine.0", "fuse_full.fine.1")).relu()
        looked_at = {"logits": self.interp(sub12, 17, 25), "guides.sub4": conv5_4_interp, "guides.sub24": sub24_interp}
        return {
            name.removeprefix("guides."): F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])
            for name, x in looked_at.items()
        }


def test_its_scores_are_those_of_the_authors_graph_written_down_again() -> None:
    """At 65 x 97 every halving is exact: 33 x 49, 17 x 25, 9 x 13, 5 x 7, 3 x 4."""
    network = tiny().double()
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    network(x)  # gives the batch norms statistics of their own
    network.eval()
    with torch.no_grad():
        found, expected = network.supervised(x), Layers(network).scores(x)
    assert found.keys() == expected.keys()
    for name, one in found.items():
        assert one.std() > 0
        torch.testing.assert_close(one, expected[name])


@examples(25)
@given(st.integers(1, 140), st.integers(1, 140), st.booleans())
def test_logits_leave_at_a_quarter_of_any_size_rounded_up(height: int, width: int, align_corners: bool) -> None:
    network = evaluated(align_corners)
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(2, 3, height, width))
        scores = network.supervised(torch.zeros(2, 3, height, width))
    assert logits.shape == (2, 3, -(-height // 4), -(-width // 4))
    assert features.shape == (2, network.feature_channels, *logits.shape[2:])
    torch.testing.assert_close(network.logits(features), logits)
    torch.testing.assert_close(scores["logits"], logits)
    assert scores["sub24"].shape == (2, 3, -(-height // 8), -(-width // 8))
    assert scores["sub4"].shape == (2, 3, -(-height // 16), -(-width // 16))


def test_the_coarser_views_weigh_as_published_and_can_be_left_out() -> None:
    assert tiny().loss_weights == {"logits": 1.0, "sub4": 0.16, "sub24": 0.4}
    without = tiny(label_guidance=False)
    assert without.loss_weights == {"logits": 1.0}
    assert without.supervised(torch.randn(2, 3, 33, 33)).keys() == {"logits"}
    assert not [name for name in without.state_dict() if name.startswith("guides")]


def test_half_and_quarter_of_the_image_pass_through_the_same_first_layers() -> None:
    """The layers up to conv3_1 run once, on the half; the quarter is made of their features."""
    network = tiny().eval()
    seen = []
    network.backbone.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[2:]))
    network.backbone.layer2[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[2:]))
    with torch.no_grad():
        network(torch.randn(1, 3, 128, 64))
    assert seen == [(64, 32), (4, 2)]


def test_every_parameter_learns_from_what_is_supervised() -> None:
    network = tiny()
    scores = network.supervised(torch.randn(2, 3, 128, 96))
    losses = [
        network.loss_weights[name] * F.cross_entropy(one, torch.randint(0, 3, (2, *one.shape[2:])))
        for name, one in scores.items()
    ]
    torch.stack(losses).sum().backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(side: int) -> None:
    assert_trains_on_one(tiny(), side)


@pytest.mark.parametrize("bands", [1, 2, 4, 16])
def test_bands_other_than_three_are_accepted(bands: int) -> None:
    assert tiny(in_channels=bands).eval()(torch.zeros(1, bands, 20, 20)).shape == (1, 3, 5, 5)


def test_half_precision_and_channels_last_agree_with_float32() -> None:
    network, x = tiny().eval(), torch.randn(2, 3, 64, 48)
    assert_formats_agree(network, x, atol=1e-5)


@pytest.mark.slow
def test_the_network_is_one_graph_for_the_compiler() -> None:
    network, x = tiny().eval(), torch.randn(1, 3, 64, 64)
    assert_one_graph(network, x)


@pytest.mark.parametrize("options", [{"output_stride": 8}, {"width_multiplier": 0}, {"backbone": "resnet101"}])
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        zoo.build_network("icnet", 5, **options)
