import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.backbones.mobilenet_v2 import MobileNetV2, scaled
from pipeline.models.backbones.resnet import ResNet
from pipeline.models.layers import BatchNorm2d

TINY = {
    "backbone": "mobilenet_v2",
    "width_multiplier": 0.25,
    "aspp_channels": 8,
    "decoder_channels": 8,
    "low_level_channels": 4,
}
SECOND_3X3 = 256 * 256 * 9
"""Weights of the decoder's second 3x3 convolution, which the paper has and the counted public port leaves out."""


def tiny(num_classes: int = 5, **changes) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build("deeplab_v3plus", num_classes, **(TINY | changes))


def on_meta(**options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build("deeplab_v3plus", options.pop("num_classes", 21), **options)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module, side: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / 2


def backbone(name: str, output_stride: int) -> nn.Module:
    torch.manual_seed(0)
    if name == "mobilenet_v2":
        return MobileNetV2(in_channels=3, output_stride=output_stride, width=0.25).eval().double()
    return ResNet(50, in_channels=3, output_stride=output_stride, multi_grid=(1, 2, 4)).eval().double()


@pytest.mark.parametrize(
    ("name", "public_port"), [("resnet50", 39_761_845), ("resnet101", 58_753_973), ("mobilenet_v2", 5_225_717)]
)
def test_parameter_counts_are_those_of_the_public_port_plus_the_second_3x3(name: str, public_port: int) -> None:
    """github.com/VainF/DeepLabV3Plus-Pytorch, counted with 21 classes; batch norm adds a weight and a bias each."""
    assert parameters(on_meta(backbone=name)) == public_port + SECOND_3X3 + 2 * 256


def test_resnet101_has_exactly_the_parameters_of_the_paper() -> None:
    assert parameters(on_meta(backbone="resnet101")) == 59_344_309


def test_resnet101_costs_what_two_public_ports_cost() -> None:
    network = on_meta(backbone="resnet101")
    # VainF's decoder has one 3x3 less, at 129 x 129.
    assert macs(network, 513) / 1e9 == pytest.approx(83.01 + SECOND_3X3 * 129**2 / 1e9, abs=0.01)
    # kazuto1011/deeplab-pytorch strides one convolution earlier in layer2 and layer3: the 1x1 in front is cheaper.
    earlier = 256 * 128 * (129**2 - 65**2) + 512 * 256 * (65**2 - 33**2)
    assert (macs(network, 513) - earlier) / 1e9 == pytest.approx(92.0, abs=0.01)


def test_a_class_less_is_one_filter_and_one_bias_less() -> None:
    assert parameters(on_meta(num_classes=21)) - parameters(on_meta(num_classes=19)) == 2 * (256 + 1)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([8, 16]))
def test_logits_leave_at_a_quarter_of_any_size_rounded_up(height: int, width: int, output_stride: int) -> None:
    network = tiny(num_classes=3, output_stride=output_stride).eval()
    with torch.no_grad():
        logits = network(torch.zeros(2, 3, height, width))
    assert logits.shape == (2, 3, -(-height // network.stride), -(-width // network.stride))


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_features_at_output_stride_16_are_every_second_one_at_8(name: str) -> None:
    """Dilating in place of striding only fills in the positions that were skipped; odd sizes and borders included."""
    sparse, dense = backbone(name, 16), backbone(name, 8)
    dense.load_state_dict(sparse.state_dict())
    x = torch.rand(1, 3, 75, 102, dtype=torch.float64)
    with torch.no_grad():
        (low_16, high_16), (low_8, high_8) = sparse(x), dense(x)
    torch.testing.assert_close(low_16, low_8)
    assert high_16.shape[2:] == (5, 7)
    assert high_16.std() > 0
    torch.testing.assert_close(high_16, high_8[:, :, ::2, ::2])


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_the_output_stride_changes_no_name_and_no_shape(name: str) -> None:
    at_16, at_8 = (
        {key: value.shape for key, value in on_meta(backbone=name, output_stride=stride).state_dict().items()}
        for stride in (16, 8)
    )
    assert at_16 == at_8


@pytest.mark.parametrize(("output_stride", "doubled"), [(16, 1), (8, 2)])
def test_rates_are_those_of_the_paper(output_stride: int, doubled: int) -> None:
    network = on_meta(backbone="resnet50", output_stride=output_stride)
    assert [block.conv2.dilation[0] for block in network.backbone.layer4] == [2 * doubled, 4 * doubled, 8 * doubled]
    point, *atrous = (branch[0] for branch in network.aspp.branches)
    assert point.kernel_size == (1, 1)
    assert [conv.dilation[0] for conv in atrous] == [6 * doubled, 12 * doubled, 18 * doubled]


@pytest.mark.parametrize("separable", [False, True])
def test_every_parameter_learns(separable: bool) -> None:
    network = tiny(separable=separable)
    logits = network(torch.randn(2, 3, 64, 64))
    F.cross_entropy(logits, torch.randint(0, 5, (2, 16, 16))).backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(side: int) -> None:
    network = tiny()
    network(torch.randn(1, 3, side, side)).sum().backward()
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_batch_norm_is_torchs_own_wherever_there_is_a_variance(count: int, height: int, width: int) -> None:
    x = torch.arange(count * 2 * height * width, dtype=torch.float32).reshape(count, 2, height, width)
    ours, theirs = BatchNorm2d(2), nn.BatchNorm2d(2)
    theirs.train(x.numel() > 2)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_half_precision_and_channels_last_agree_with_float32() -> None:
    network, x = tiny().eval(), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(
            network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)),
            expected,
            rtol=1e-4,
            atol=1e-6,
        )
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
    assert (half.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_network_is_one_graph_for_the_compiler() -> None:
    network, x = tiny().eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(network, backend="eager", fullgraph=True)(x), network(x))


@given(st.integers(1, 400), st.floats(0.1, 2.0))
def test_scaled_channels_are_the_nearest_multiple_of_8_within_ten_percent(channels: int, width: float) -> None:
    wanted, given_ = channels * width, scaled(channels, width)
    assert given_ % 8 == 0
    assert given_ >= max(8, 0.9 * wanted)
    assert given_ <= max(8, wanted + 4) or given_ - 8 < 0.9 * wanted


def test_width_1_has_the_channels_of_the_paper() -> None:
    assert [scaled(channels, 1.0) for channels in (24, 320)] == [24, 320]
    network = on_meta(backbone="mobilenet_v2").backbone
    assert (network.low_channels, network.high_channels) == (24, 320)


def test_bands_other_than_three_are_accepted() -> None:
    assert tiny(in_channels=4).eval()(torch.zeros(1, 4, 8, 8)).shape == (1, 5, 2, 2)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("deeplab_v9", {}, "deeplab_v3plus"),
        ("deeplab_v3plus", {"backbone": "vgg"}, "'resnet101'"),
        ("deeplab_v3plus", {"depth": 3}, "known: backbone"),
        ("deeplab_v3plus", {"aspp_channels": "many"}, "aspp_channels"),
        ("deeplab_v3plus", {"output_stride": 32}, "(16, 8)"),
        ("deeplab_v3plus", {"in_channels": 17}, "1 to 16"),
        ("deeplab_v3plus", {"backbone": "resnet50", "width_multiplier": 0.5}, "no effect with resnet50"),
        ("deeplab_v3plus", {"backbone": "mobilenet_v2", "multi_grid": (1, 1, 1)}, "no effect with mobilenet_v2"),
    ],
)
def test_a_wrong_name_or_option_is_refused_and_the_known_ones_are_named(name: str, options: dict, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        zoo.build(name, 5, **options)
    assert says in str(caught.value)
