from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.catalogue import count_parameters
from pipeline.models.pspnet import PyramidPooling
from tests.support.examples import examples
from tests.support.networks import assert_formats_agree, assert_one_graph, assert_trains_on_one

torch.set_num_threads(1)

TINY = {
    "pspnet": {"backbone": "resnet50", "width_multiplier": 1 / 32},
    "pspnet_smp": {"backbone": "resnet18", "width_multiplier": 1 / 8},
}
networks = pytest.mark.parametrize("name", TINY)


def tiny(name: str = "pspnet", num_classes: int = 3, **changes) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network(name, num_classes, **(TINY[name] | changes))


@cache
def evaluated(name: str, output_stride: int) -> nn.Module:
    return tiny(name, output_stride=output_stride).eval()


def on_meta(name: str = "pspnet", **options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network(name, options.pop("num_classes", 21), **options)


def macs(network: nn.Module, side: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / 2


def conv_and_norm(kernel: int, in_channels: int, out_channels: int) -> int:
    """Weights of a convolution without bias, and two per channel of the batch norm behind it."""
    return kernel**2 * in_channels * out_channels + 2 * out_channels


def deep_resnet(blocks: tuple[int, ...]) -> int:
    """Parameters of the authors' ResNet, layer by layer."""
    total = conv_and_norm(3, 3, 64) + conv_and_norm(3, 64, 64) + conv_and_norm(3, 64, 128)
    entering = 128
    for count, channels in zip(blocks, (64, 128, 256, 512), strict=True):
        total += conv_and_norm(1, entering, 4 * channels)  # the shortcut
        for _ in range(count):
            total += conv_and_norm(1, entering, channels) + conv_and_norm(3, channels, channels)
            total += conv_and_norm(1, channels, 4 * channels)
            entering = 4 * channels
    return total


@pytest.mark.parametrize(("backbone", "blocks"), [("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3))])
@pytest.mark.parametrize("num_classes", [19, 21, 150])
def test_it_has_the_parameters_of_the_authors_layers(backbone: str, blocks: tuple, num_classes: int) -> None:
    pooling = 4 * conv_and_norm(1, 2048, 512)
    head = conv_and_norm(3, 4096, 512) + (512 + 1) * num_classes
    aux = conv_and_norm(3, 1024, 256) + (256 + 1) * num_classes
    layers = deep_resnet(blocks) + pooling + head
    assert count_parameters(on_meta(backbone=backbone, num_classes=num_classes, aux=False)) == layers
    assert count_parameters(on_meta(backbone=backbone, num_classes=num_classes)) == layers + aux


def test_it_has_46_7_million_parameters_with_resnet50_and_21_classes() -> None:
    assert count_parameters(on_meta(backbone="resnet50", aux=False)) == 46_716_373
    assert count_parameters(on_meta(backbone="resnet50")) == 49_081_578


def test_smps_network_is_its_public_one_without_the_layers_that_never_run() -> None:
    """It counts 24,393,173 parameters, with the last two stages of the encoder, and 12.0 G multiplications at 512."""
    network = on_meta("pspnet_smp", backbone="resnet50")
    unused = sum(count_parameters(layer) for layer in last_two_stages())
    assert unused == 7_098_368 + 14_964_736
    assert count_parameters(network) + unused == 24_393_173
    assert macs(network, 512) / 1e9 == pytest.approx(12.0, abs=0.05)


def last_two_stages() -> list[nn.Module]:
    backbone = on_meta("deeplab_v3", backbone="resnet50").backbone
    return [backbone.layer3, backbone.layer4]


def test_rates_are_those_of_the_authors() -> None:
    """model/pspnet.py of https://github.com/hszhao/semseg: every block of a stage has the stage's rate."""
    backbone = on_meta(backbone="resnet50").backbone
    rates = [[block.conv2.dilation[0] for block in stage] for stage in (backbone.layer3, backbone.layer4)]
    assert rates == [[2] * 6, [4] * 3]


def resized(cells: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear with the corners on the corners, one value at a time."""
    found = torch.empty(*cells.shape[:2], height, width, dtype=cells.dtype)
    last_row, last_column = cells.size(2) - 1, cells.size(3) - 1
    for y in range(height):
        for x in range(width):
            down, along = y * last_row / max(1, height - 1), x * last_column / max(1, width - 1)
            top, left = int(down), int(along)
            bottom, right = min(top + 1, last_row), min(left + 1, last_column)
            upper = cells[:, :, top, left] * (1 - along + left) + cells[:, :, top, right] * (along - left)
            lower = cells[:, :, bottom, left] * (1 - along + left) + cells[:, :, bottom, right] * (along - left)
            found[:, :, y, x] = upper * (1 - down + top) + lower * (down - top)
    return found


@examples(20)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 8))
def test_pooling_is_the_mean_of_regions_that_touch_and_cover_the_map(height: int, width: int, bins: int) -> None:
    """More regions than cells repeat cells."""
    pooling = PyramidPooling(2, (bins,), align_corners=True)
    pooling.levels[0] = nn.Identity()
    x = torch.rand(1, 2, height, width, dtype=torch.float64)
    means = torch.empty(1, 2, bins, bins, dtype=torch.float64)
    for i in range(bins):
        for j in range(bins):
            rows = slice(i * height // bins, -(-(i + 1) * height // bins))
            columns = slice(j * width // bins, -(-(j + 1) * width // bins))
            means[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    torch.testing.assert_close(pooling(x)[0], resized(means, height, width))


@networks
def test_the_output_stride_changes_no_name_and_no_shape(name: str) -> None:
    shapes = [
        {key: one.shape for key, one in tiny(name, output_stride=stride).state_dict().items()}
        for stride in tiny(name).output_strides
    ]
    assert shapes[0] == shapes[-1]


@examples(25)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([("pspnet", 8), ("pspnet", 16), ("pspnet_smp", 8)]),
)
def test_logits_leave_at_the_output_stride_for_any_size(height: int, width: int, which: tuple[str, int]) -> None:
    network, stride = evaluated(*which), which[1]
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(2, 3, height, width))
    assert network.stride == stride
    assert logits.shape == (2, 3, -(-height // stride), -(-width // stride))
    assert features.shape == (2, network.feature_channels, *logits.shape[2:])
    torch.testing.assert_close(network.logits(features), logits)


@networks
def test_every_parameter_learns_from_what_is_supervised(name: str) -> None:
    network = tiny(name)
    scores = network.supervised(torch.randn(2, 3, 64, 64))
    assert scores.keys() == network.loss_weights.keys()
    target = torch.randint(0, 3, (2, 8, 8))
    torch.stack([network.loss_weights[key] * F.cross_entropy(scores[key], target) for key in scores]).sum().backward()
    idle = [key for key, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


def test_the_auxiliary_head_weighs_as_in_the_paper_and_changes_no_logits() -> None:
    network, x = tiny().eval(), torch.randn(1, 3, 40, 40)
    assert network.loss_weights == {"logits": 1.0, "aux": 0.4}
    with torch.no_grad():
        torch.testing.assert_close(network.supervised(x)["logits"], network(x))
    assert tiny(aux=False).loss_weights == {"logits": 1.0}


@networks
@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(name: str, side: int) -> None:
    assert_trains_on_one(tiny(name), side)


@networks
@pytest.mark.parametrize("bands", [1, 2, 4, 16])
def test_bands_other_than_three_are_accepted(name: str, bands: int) -> None:
    assert tiny(name, in_channels=bands).eval()(torch.zeros(1, bands, 20, 20)).shape == (1, 3, 3, 3)


@networks
def test_half_precision_and_channels_last_agree_with_float32(name: str) -> None:
    network, x = tiny(name).eval(), torch.randn(2, 3, 64, 48)
    assert_formats_agree(network, x, atol=1e-5)


@pytest.mark.slow
@networks
def test_the_network_is_one_graph_for_the_compiler(name: str) -> None:
    network, x = tiny(name).eval(), torch.randn(1, 3, 32, 32)
    assert_one_graph(network, x)


def test_means_can_be_taken_over_other_regions_and_resized_by_centres() -> None:
    network = tiny(bins=(1, 4), align_corners=False).eval()
    assert not network.align_corners
    assert [level[0].out_channels for level in network.pooling.levels] == [32, 32]
    assert network(torch.zeros(1, 3, 9, 9)).shape == (1, 3, 2, 2)


@pytest.mark.parametrize("options", [{"bins": ()}, {"bins": (0, 1)}, {"backbone": "resnet18"}, {"output_stride": 32}])
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        zoo.build_network("pspnet", 5, **options)
