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
from pipeline.models.deeplab_v2 import DeepLabV2
from tests.support.examples import examples
from tests.support.networks import assert_one_graph, assert_trains_on_one

RATES = {"large_fov": [12], "aspp_s": [2, 4, 8, 12], "aspp_l": [6, 12, 18, 24]}
EACH_BACKBONE = pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
BOTH = pytest.mark.parametrize("msc", [False, True])


def tiny(
    num_classes: int = 5, *, in_channels: int = 3, output_stride: int = 8, width: float = 1 / 16, **options
) -> DeepLabV2:
    torch.manual_seed(0)
    options = {"backbone": "resnet50", "width_multiplier": width} | options
    return zoo.build_network("deeplab_v2", num_classes, in_channels=in_channels, output_stride=output_stride, **options)


def on_meta(num_classes: int = 21, **options) -> DeepLabV2:
    with torch.device("meta"):
        return zoo.build_network("deeplab_v2", num_classes, **options)


def trained(network: nn.Module) -> nn.Module:
    """Biases and statistics begin as zeros and ones; a comparison should see them."""
    for name, value in network.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            nn.init.normal_(value, std=0.1)
        if name.endswith("running_var"):
            nn.init.uniform_(value, 0.5, 1.5)
    return network.eval().double()


def caffe_resnet(x: Tensor, state: dict[str, Tensor], blocks: tuple[int, ...]) -> Tensor:
    """The published ResNet at stride 8, written down a second time: 1x1 strides, every block has its stage's rate."""

    def conv_bn(x: Tensor, conv: str, bn: str, stride: int = 1, rate: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=rate * (weight.size(2) // 2), dilation=rate)
        mean, var = state[f"{bn}.running_mean"], state[f"{bn}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{bn}.weight"], state[f"{bn}.bias"], eps=1e-5)

    x = F.max_pool2d(F.relu(conv_bn(x, "conv1", "bn1", 2)), 3, 2, 1, ceil_mode=True)
    for stage, (count, stride, rate) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), 1):
        for block in range(count):
            at, step = f"layer{stage}.{block}", stride if block == 0 else 1
            inner = F.relu(conv_bn(x, f"{at}.conv1", f"{at}.bn1", step))
            inner = F.relu(conv_bn(inner, f"{at}.conv2", f"{at}.bn2", 1, rate))
            inner = conv_bn(inner, f"{at}.conv3", f"{at}.bn3")
            x = F.relu(inner + (x if block else conv_bn(x, f"{at}.downsample.0", f"{at}.downsample.1", step)))
    return x


def vgg(c: list[int]) -> nn.Sequential:
    """VGG-16 of DeepLab as a list of layers, to pool5."""
    layers: list[nn.Module] = []
    entering = 3
    for leaving, count, pool_stride, hole in zip(c, (2, 2, 3, 3, 3), (2, 2, 2, 1, 1), (1, 1, 1, 1, 2), strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(entering, leaving, 3, padding=hole, dilation=hole), nn.ReLU()]
            entering = leaving
        layers.append(nn.MaxPool2d(3, pool_stride, 1, ceil_mode=True))
    return nn.Sequential(*layers)


def inner(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def cells(x: Tensor, stride: int = 8) -> tuple[int, int]:
    return math.ceil(x.size(2) / stride), math.ceil(x.size(3) / stride)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 44_048_532),
        ({"num_classes": 182}, 55_919_384),
        ({"backbone": "vgg16"}, 37_877_652),
        ({"backbone": "vgg16", "head": "aspp_s"}, 37_877_652),
        ({"backbone": "vgg16", "head": "large_fov"}, 20_505_429),
        ({"msc": True}, 44_048_532),
    ],
)
def test_parameter_counts_are_the_published_ones(options: dict, count: int) -> None:
    assert count_parameters(on_meta(**options)) == count


@pytest.mark.parametrize(
    ("backbone", "side", "gmacs"), [("resnet101", 321, 75.1), ("resnet101", 513, 188.9), ("vgg16", 513, 202.0)]
)
def test_one_scale_costs_what_the_published_network_costs(backbone: str, side: int, gmacs: float) -> None:
    network = on_meta(backbone=backbone).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = network(torch.empty(1, 3, side, side, device="meta"))
    assert logits.shape == (1, 21, (side + 7) // 8, (side + 7) // 8)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.05)


@EACH_BACKBONE
@pytest.mark.parametrize("head", RATES)
def test_rates_are_those_of_the_paper_and_pad_as_much(backbone: str, head: str) -> None:
    network = on_meta(backbone=backbone, head=head)
    convs = [getattr(branch, "fc6", branch) for branch in network.head.branches]
    assert [conv.dilation for conv in convs] == [(rate, rate) for rate in RATES[head]]
    assert [conv.padding for conv in convs] == [conv.dilation for conv in convs]
    assert {conv.kernel_size for conv in convs} == {(3, 3)}


def test_batch_norm_has_the_published_epsilon() -> None:
    assert {one.eps for one in on_meta().modules() if isinstance(one, nn.BatchNorm2d)} == {1e-5}


@pytest.mark.parametrize(
    ("options", "rates", "strides"),
    [
        ({}, ([2, 2, 2], [4, 4, 4]), [(2, 2), (1, 1)]),
        ({"first_block": "earlier"}, ([1, 2, 2], [2, 4, 4]), [(2, 2), (1, 1)]),
        ({"stride_in": "3x3"}, ([2, 2, 2], [4, 4, 4]), [(1, 1), (2, 2)]),
    ],
)
def test_the_resnet_follows_the_chosen_convention(options: dict, rates: tuple, strides: list) -> None:
    network = on_meta(backbone="resnet50", **options).backbone
    stages = (network.layer3[:3], network.layer4)
    assert tuple([block.conv2.dilation[0] for block in stage] for stage in stages) == rates
    assert [network.layer2[0].conv1.stride, network.layer2[0].conv2.stride] == strides


@pytest.mark.parametrize("ceil_pool", [False, True])
def test_how_sizes_round_is_an_option(ceil_pool: bool) -> None:
    assert on_meta(ceil_pool=ceil_pool).backbone.maxpool.ceil_mode is ceil_pool


@pytest.mark.parametrize("align_corners", [False, True])
def test_how_to_resize_the_logits_is_an_option(align_corners: bool) -> None:
    assert on_meta(align_corners=align_corners).align_corners is align_corners
    assert not on_meta().align_corners


@pytest.mark.parametrize("head", ["large_fov", "aspp_l"])
@pytest.mark.parametrize("side", [(41, 57), (30, 23)])
def test_the_resnet_is_the_published_one(head: str, side: tuple[int, int]) -> None:
    network = trained(tiny(head=head))
    state, x = network.state_dict(), torch.randn(2, 3, *side, dtype=torch.float64)
    with torch.no_grad():
        top = caffe_resnet(x, inner(state, "backbone."), (3, 4, 6, 3))
        expected = 0
        for index, rate in enumerate(RATES[head]):
            conv = inner(state, f"head.branches.{index}.")
            expected = expected + F.conv2d(top, conv["weight"], conv["bias"], padding=rate, dilation=rate)
        features, logits = network.embed(x)
    height, width = cells(x)
    torch.testing.assert_close(features, top[:, :, :height, :width])
    torch.testing.assert_close(logits, expected[:, :, :height, :width])


def test_aspp_on_vgg_is_the_published_list_of_layers() -> None:
    network = trained(tiny(backbone="vgg16"))
    state, x = network.state_dict(), torch.randn(2, 3, 30, 41, dtype=torch.float64)
    trunk = vgg([4, 8, 16, 32, 32]).double()
    shared = zip(trunk.state_dict(), inner(state, "backbone.").values(), strict=True)
    trunk.load_state_dict(dict(shared))
    scores = []
    for index, rate in enumerate(RATES["aspp_l"]):
        fc6 = nn.Conv2d(32, 64, 3, padding=rate, dilation=rate)
        layers = nn.Sequential(fc6, nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 5, 1)).double()
        shared = zip(layers.state_dict(), inner(state, f"head.branches.{index}.").values(), strict=True)
        layers.load_state_dict(dict(shared))
        with torch.no_grad():
            scores.append(layers(trunk(x)))
    with torch.no_grad():
        torch.testing.assert_close(network(x), sum(scores)[:, :, :4, :6])


def test_large_fov_on_vgg_is_that_of_v1() -> None:
    network = trained(tiny(backbone="vgg16", head="large_fov"))
    first = zoo.build_network("deeplab_v1", 5, width_multiplier=1 / 16).eval().double()
    renamed = {name.replace("head.branches.0", "classifier"): one for name, one in network.state_dict().items()}
    first.load_state_dict(renamed)
    x = torch.randn(1, 3, 50, 33, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(network.embed(x), first.embed(x), strict=True):
            torch.testing.assert_close(ours, theirs)


@EACH_BACKBONE
@pytest.mark.parametrize("side", [(41, 57), (30, 23), (1, 3)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_multi_scale_logits_are_the_highest_scores_of_three_images(
    backbone: str, side: tuple[int, int], align_corners: bool
) -> None:
    network = trained(tiny(backbone=backbone, msc=True, align_corners=align_corners))
    single = tiny(backbone=backbone, align_corners=align_corners).eval().double()
    single.load_state_dict(network.state_dict())
    single.stride = 1  # all cells there are, the ones that rounding up adds included
    x = torch.randn(2, 3, *side, dtype=torch.float64)

    def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(image, size, mode="bilinear", align_corners=align_corners)

    if align_corners:  # Caffe's Interp: shrink_factor 4 with zoom_factor 3, and shrink_factor 2
        sizes = {"scale_0.75": [3 * ((n - 1) // 4) + 1 for n in side], "scale_0.5": [(n - 1) // 2 + 1 for n in side]}
    else:  # deeplab-pytorch
        sizes = {f"scale_{p}": [max(1, int(n * p)) for n in side] for p in (0.75, 0.5)}
    height, width = cells(x)
    with torch.no_grad():
        found = network.supervised(x)
        full = single(x)
        highest = full
        torch.testing.assert_close(found["scale_1"], full[:, :, :height, :width])
        for name, size in sizes.items():
            scores = single(resized(x, tuple(size)))
            torch.testing.assert_close(found[name], scores)
            highest = torch.maximum(highest, resized(scores, full.shape[2:]))
        torch.testing.assert_close(found["logits"], highest[:, :, :height, :width])
        torch.testing.assert_close(network(x), found["logits"])


@pytest.mark.parametrize("head", RATES)
@pytest.mark.parametrize("side", [(75, 102), (64, 33)])
def test_logits_at_output_stride_16_are_every_second_one_at_8(head: str, side: tuple[int, int]) -> None:
    """Halved rates on half the cells cover the same pixels; odd sizes and borders included."""
    dense = trained(tiny(head=head))
    sparse = tiny(head=head, output_stride=16).eval().double()
    sparse.load_state_dict(dense.state_dict())
    x = torch.randn(1, 3, *side, dtype=torch.float64)
    with torch.no_grad():
        for at_16, at_8 in zip(sparse.embed(x), dense.embed(x), strict=True):
            assert at_16.shape[2:] == cells(x, 16)
            torch.testing.assert_close(at_16, at_8[:, :, ::2, ::2])


@examples(40)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([("vgg16", 8), ("resnet50", 8), ("resnet50", 16)]),
    st.booleans(),
)
def test_features_and_logits_leave_at_the_output_stride_of_any_size_rounded_up(
    height: int, width: int, built: tuple[str, int], msc: bool
) -> None:
    network = tiny(3, backbone=built[0], output_stride=built[1], width=1 / 64, msc=msc).eval()
    x = torch.zeros(2, 3, height, width)
    with torch.no_grad():
        features, logits = network.embed(x)
    assert network.stride == built[1]
    assert logits.shape == (2, 3, *cells(x, built[1]))
    assert features.shape == (2, network.feature_channels, *logits.shape[2:])


@EACH_BACKBONE
@BOTH
@pytest.mark.parametrize("head", RATES)
def test_every_parameter_learns(backbone: str, head: str, msc: bool) -> None:
    network = tiny(backbone=backbone, head=head, msc=msc, width=1 / 8)
    scores = network.supervised(torch.randn(2, 3, 40, 40))
    assert scores.keys() == network.loss_weights.keys()
    loss = sum(F.cross_entropy(one, torch.randint(0, 5, (2, *one.shape[2:]))) for one in scores.values())
    loss.backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@EACH_BACKBONE
@BOTH
@pytest.mark.parametrize("side", [1, 2, 33])
def test_a_batch_of_one_trains(backbone: str, side: int, msc: bool) -> None:
    assert_trains_on_one(tiny(backbone=backbone, msc=msc), side)


@EACH_BACKBONE
@pytest.mark.parametrize("in_channels", range(1, 17))
def test_any_number_of_bands_is_accepted(backbone: str, in_channels: int) -> None:
    network = tiny(backbone=backbone, in_channels=in_channels, msc=True, width=1 / 64).eval()
    assert network(torch.zeros(1, in_channels, 17, 9)).shape == (1, 5, 3, 2)


@EACH_BACKBONE
def test_half_precision_and_channels_last_agree_with_float32(backbone: str) -> None:
    network, x = tiny(backbone=backbone, msc=True).eval(), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        expected = network(x)
        network = network.to(memory_format=torch.channels_last)
        again = network(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
    assert (half.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.slow
@EACH_BACKBONE
def test_the_network_is_one_graph_for_the_compiler(backbone: str) -> None:
    network, x = tiny(backbone=backbone, msc=True).eval(), torch.randn(1, 3, 32, 25)
    assert_one_graph(network, x)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backbone": "resnet18"}, "'resnet101'"),
        ({"head": "aspp"}, "'aspp_l'"),
        ({"output_stride": 32}, "(8, 16)"),
        ({"backbone": "vgg16", "output_stride": 16}, "vgg16 has output stride 8"),
        ({"backbone": "vgg16", "stride_in": "1x1"}, "no effect with vgg16"),
    ],
)
def test_what_there_is_not_is_refused_by_name(options: dict, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        zoo.build_network("deeplab_v2", 5, **options)
    assert says in str(caught.value)
