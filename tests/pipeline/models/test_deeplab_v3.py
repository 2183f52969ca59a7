import itertools
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
from pipeline.models.backbones.resnet import ResNet
from pipeline.models.catalogue import count_parameters
from tests.support.examples import examples
from tests.support.networks import assert_formats_agree, assert_one_graph, assert_trains_on_one

torch.set_num_threads(1)

TORCHVISION = {"multi_grid": None, "head_conv": True}
"""What torchvision, VainF/DeepLabV3Plus-Pytorch and, but for `first_block`, segmentation_models.pytorch build."""
TINY = {"width_multiplier": 1 / 32, "backbone": "resnet50"}
WAYS = {
    "paper": {},
    "torchvision": TORCHVISION | {"aux": True},
    "cascade": {"mode": "cascade", "multi_grid": (1, 2, 1)},
    "efficientnet_lite1": {"backbone": "efficientnet_lite1"},
    "mobilenet_v2": {"backbone": "mobilenet_v2"},
    "without_rates": {"backbone": "mobilenet_v2", "rates": (), "align_corners": True},
}
ways = pytest.mark.parametrize("way", WAYS)


def tiny(way: str = "paper", num_classes: int = 3, **changes) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network("deeplab_v3", num_classes, **(TINY | WAYS[way] | changes))


@cache
def evaluated(way: str, output_stride: int) -> nn.Module:
    return tiny(way, output_stride=output_stride).eval()


def on_meta(**options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network("deeplab_v3", options.pop("num_classes", 21), **options)


def macs(network: nn.Module, side: int) -> float:
    """Of everything that training evaluates, auxiliary head included."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval().supervised(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / 2


def rates(stage: nn.Module) -> list[int]:
    return [block.conv2.dilation[0] for block in stage]


def backbone(output_stride: int, **options) -> nn.Module:
    torch.manual_seed(0)
    return ResNet(50, in_channels=3, output_stride=output_stride, width=1 / 16, **options).eval().double()


# The backbone.


@pytest.mark.parametrize(("depth", "count"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160)])
def test_a_backbone_has_as_many_parameters_as_torchvisions_without_its_last_layer(depth: int, count: int) -> None:
    """torchvision's table of weights lists 11,689,512 to 44,549,160 with a layer of 1,000 classes."""
    with torch.device("meta"):
        network = ResNet(depth, in_channels=3, output_stride=32)
    assert count_parameters(network) == count
    assert count + 1000 * (network.high_channels + 1) in {11_689_512, 21_797_672, 25_557_032, 44_549_160}


def test_a_backbones_tensors_are_named_as_torchvisions() -> None:
    """torchvision's resnet50 has 320 tensors, two of them in its last layer."""
    with torch.device("meta"):
        names = ResNet(50, in_channels=3, output_stride=8).state_dict().keys()
    assert len(names) == 318
    assert {"conv1.weight", "bn1.num_batches_tracked", "layer1.0.downsample.0.weight"} <= names
    assert {"layer3.5.conv3.weight", "layer4.0.downsample.1.running_var", "layer4.2.bn3.bias"} <= names


@pytest.mark.parametrize(
    ("output_stride", "options", "third", "fourth"),
    [
        (8, {}, [1, 2, 2, 2, 2, 2], [2, 4, 4]),  # torchvision
        (16, {}, [1, 1, 1, 1, 1, 1], [1, 2, 2]),
        (32, {}, [1, 1, 1, 1, 1, 1], [1, 1, 1]),
        (8, {"first_block": "own"}, [2, 2, 2, 2, 2, 2], [4, 4, 4]),  # SMP, Caffe
        (16, {"first_block": "own"}, [1, 1, 1, 1, 1, 1], [2, 2, 2]),
        (8, {"multi_grid": (1, 2, 4)}, [1, 2, 2, 2, 2, 2], [4, 8, 16]),
        (16, {"multi_grid": (1, 2, 4)}, [1, 1, 1, 1, 1, 1], [2, 4, 8]),
    ],
)
def test_each_block_has_the_rate_of_its_convention(
    output_stride: int, options: dict, third: list[int], fourth: list[int]
) -> None:
    with torch.device("meta"):
        network = ResNet(50, in_channels=3, output_stride=output_stride, **options)
    assert rates(network.layer1) + rates(network.layer2) == [1] * 7
    assert rates(network.layer3) == third
    assert rates(network.layer4) == fourth
    assert all(block.conv2.padding == block.conv2.dilation for block in network.layer4)


@pytest.mark.parametrize(("stride_in", "convolution"), [("3x3", "conv2"), ("1x1", "conv1")])
@pytest.mark.parametrize(("output_stride", "striding"), [(8, 1), (16, 2), (32, 3)])
def test_only_one_convolution_of_a_stages_first_block_strides(
    stride_in: str, convolution: str, output_stride: int, striding: int
) -> None:
    with torch.device("meta"):
        network = ResNet(50, in_channels=3, output_stride=output_stride, stride_in=stride_in)
    found = [name for name, one in network.named_modules() if isinstance(one, nn.Conv2d) and one.stride == (2, 2)]
    stages = ("layer2", "layer3", "layer4")[:striding]
    assert found == ["conv1", *(f"{stage}.0.{one}" for stage in stages for one in (convolution, "downsample.0"))]


def test_a_deep_stem_is_three_convolutions_and_a_wider_first_block() -> None:
    with torch.device("meta"):
        plain, deep = (ResNet(50, in_channels=3, output_stride=32, stem=stem) for stem in ("plain", "deep"))
    convolutions = 9 * (3 * 64 + 64 * 64 + 64 * 128) - 49 * 3 * 64
    batch_norms = 2 * (64 + 128)
    wider = 64 * (64 + 256)
    assert count_parameters(deep) - count_parameters(plain) == convolutions + batch_norms + wider


@given(st.integers(1, 40), st.booleans())
def test_the_stems_pooling_rounds_up_or_as_caffe_does(length: int, ceil_pool: bool) -> None:
    """Caffe lets a window begin on the padding behind the last pixel, so an even length gives one cell more."""
    pooled = ResNet(18, in_channels=1, output_stride=32, ceil_pool=ceil_pool, width=1 / 64).maxpool(
        torch.zeros(1, 1, length, 1)
    )
    assert pooled.size(2) == (length // 2 + 1 if ceil_pool else -(-length // 2))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_block": "own", "stride_in": "1x1"},
        {"multi_grid": (1, 2, 4), "stem": "deep"},
    ],
)
def test_features_at_output_stride_16_are_every_second_one_at_8(options: dict) -> None:
    sparse, dense = backbone(16, **options), backbone(8, **options)
    dense.load_state_dict(sparse.state_dict())
    x = torch.rand(1, 3, 75, 102, dtype=torch.float64)
    with torch.no_grad():
        at_16, at_8 = sparse.stages(x), dense.stages(x)
    torch.testing.assert_close(at_16[1], at_8[1])
    for stage in (2, 3):
        assert at_16[stage].shape[2:] == (5, 7)
        assert at_16[stage].std() > 0
        torch.testing.assert_close(at_16[stage], at_8[stage][:, :, ::2, ::2])


@pytest.mark.parametrize("options", [{"first_block": "own"}, {"stride_in": "1x1"}])
def test_weights_of_another_convention_fit_and_give_other_features(options: dict) -> None:
    ours, theirs = backbone(8), backbone(8, **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert not torch.allclose(ours(x)[1], theirs(x)[1])


# The network.


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"backbone": "resnet101"}, 58_040_661),
        ({"backbone": "resnet50"} | TORCHVISION, 39_638_869),
        ({"backbone": "resnet101"} | TORCHVISION, 58_630_997),
        ({"backbone": "resnet50", "aux": True} | TORCHVISION, 42_004_074),
        ({"backbone": "resnet101", "aux": True} | TORCHVISION, 60_996_202),
    ],
)
def test_parameter_counts_are_those_of_the_public_networks(options: dict, count: int) -> None:
    """The paper's, as in kazuto1011/deeplab-pytorch; VainF's and SMP's; torchvision's table of weights."""
    assert count_parameters(on_meta(**options)) == count


def test_without_rates_it_is_the_network_of_the_paper_on_mobilenet_v2() -> None:
    """Sandler 2018 (arXiv 1801.04381), table 7: 2.11M parameters, 2.75B multiply-adds at 513x513."""
    network = on_meta(backbone="mobilenet_v2", rates=(), align_corners=True)
    assert count_parameters(network) == 2_113_557
    assert abs(macs(network, 513) / 2.75e9 - 1) < 0.005
    narrow = {"width_multiplier": 0.5, "channels_multiple": 1, "aspp_channels": 256}
    assert count_parameters(on_meta(backbone="mobilenet_v2", rates=(), align_corners=True, **narrow)) == 697_013
    assert [block.conv[-3][0].dilation[0] for block in network.backbone.features[13:]] == [1, 1, 2, 2, 2]


def test_mobilenet_v2_has_the_public_ports_parameters() -> None:
    """VainF's v3+ has 5,225,717 with a decoder of two inputs in place of v3's 3x3."""
    reduction, wider = 24 * 48 + 2 * 48, 9 * 48 * 256
    assert count_parameters(on_meta(backbone="mobilenet_v2", head_conv=True)) == 5_225_717 - reduction - wider


def test_each_block_of_the_cascade_is_a_copy_of_the_fourth_without_a_projection() -> None:
    counts = [count_parameters(on_meta(backbone="resnet50", mode="cascade", blocks=blocks)) for blocks in (4, 5, 6, 7)]
    copy = 3 * (2 * 2048 * 512 + 9 * 512**2 + 2 * (2 * 512 + 2048))
    assert counts[0] == 23_508_032 + 21 * (2048 + 1)
    assert [later - earlier for earlier, later in itertools.pairwise(counts)] == [copy] * 3


@pytest.mark.parametrize(("backbone", "billions"), [("resnet50", 178.722), ("resnet101", 258.743)])
def test_it_costs_what_torchvision_says_at_520_pixels(backbone: str, billions: float) -> None:
    """`_ops` of the table of weights: convolutions only, the auxiliary head among them."""
    network = on_meta(backbone=backbone, output_stride=8, aux=True, **TORCHVISION)
    assert macs(network, 520) / 1e9 == pytest.approx(billions, abs=0.0005)


@pytest.mark.parametrize(
    ("backbone", "side", "stride", "billions"),
    [("resnet50", 513, 16, 51.08), ("resnet101", 513, 16, 71.70), ("resnet50", 512, 8, 163.6)],
)
def test_it_costs_what_two_public_ports_cost(backbone: str, side: int, stride: int, billions: float) -> None:
    """VainF's at output stride 16, SMP's at 8."""
    network = on_meta(backbone=backbone, output_stride=stride, **TORCHVISION)
    assert macs(network, side) / 1e9 == pytest.approx(billions, abs=0.05)


@pytest.mark.parametrize(("output_stride", "doubled"), [(16, 1), (8, 2)])
def test_rates_of_the_pyramid_are_the_papers(output_stride: int, doubled: int) -> None:
    pyramid = on_meta(backbone="resnet50", output_stride=output_stride).context.aspp
    assert [branch[0].dilation[0] for branch in pyramid.branches] == [1, 6 * doubled, 12 * doubled, 18 * doubled]


def test_the_pyramid_of_smp_at_output_stride_16_is_expressible() -> None:
    pyramid = on_meta(backbone="resnet50", rates=(12, 24, 36), output_stride=16).context.aspp
    assert [branch[0].dilation[0] for branch in pyramid.branches] == [1, 12, 24, 36]


@pytest.mark.parametrize(("output_stride", "doubled"), [(16, 1), (8, 2)])
@pytest.mark.parametrize(("grid", "of_rate_4"), [((1, 2, 1), [4, 8, 4]), ((1, 2, 4), [4, 8, 16]), (None, [2, 4, 4])])
def test_rates_of_the_cascade_double_from_block_to_block(
    output_stride: int, doubled: int, grid: tuple | None, of_rate_4: list[int]
) -> None:
    network = on_meta(backbone="resnet50", mode="cascade", multi_grid=grid, output_stride=output_stride)
    for scale, block in zip((0.5, 1, 2, 4), (network.backbone.layer4, *network.context), strict=True):
        assert rates(block) == [scale * doubled * rate for rate in of_rate_4]
    assert [name for name, _ in network.context.named_children()] == ["block5", "block6", "block7"]


def test_the_cascade_at_output_stride_16_is_every_second_cell_of_that_at_8() -> None:
    sparse, dense = (tiny("cascade", output_stride=stride).eval().double() for stride in (16, 8))
    dense.load_state_dict(sparse.state_dict())
    x = torch.rand(1, 3, 75, 102, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x)[:, :, ::2, ::2])


@ways
def test_the_output_stride_changes_no_name_and_no_shape(way: str) -> None:
    at_16, at_8 = (
        {name: one.shape for name, one in tiny(way, output_stride=stride).state_dict().items()} for stride in (16, 8)
    )
    assert at_16 == at_8


@examples(20)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([8, 16]), st.sampled_from(sorted(WAYS)))
def test_logits_leave_at_the_output_stride_for_any_size(height: int, width: int, output_stride: int, way: str) -> None:
    network = evaluated(way, output_stride)
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(2, 3, height, width))
    assert network.stride == output_stride
    assert logits.shape == (2, 3, -(-height // output_stride), -(-width // output_stride))
    assert features.shape == (2, network.feature_channels, *logits.shape[2:])
    torch.testing.assert_close(network.logits(features), logits)


@ways
def test_every_parameter_learns_from_what_is_supervised(way: str) -> None:
    network = tiny(way)
    scores = network.supervised(torch.randn(2, 3, 64, 64))
    assert scores.keys() == network.loss_weights.keys()
    target = torch.randint(0, 3, (2, 4, 4))
    torch.stack(
        [network.loss_weights[name] * F.cross_entropy(scores[name], target) for name in scores]
    ).sum().backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


def test_the_auxiliary_head_weighs_half_and_changes_no_logits() -> None:
    network, x = tiny("torchvision").eval(), torch.randn(1, 3, 40, 40)
    assert network.loss_weights == {"logits": 1.0, "aux": 0.5}
    with torch.no_grad():
        torch.testing.assert_close(network.supervised(x)["logits"], network(x))
    assert tiny("paper").loss_weights == {"logits": 1.0}


@ways
@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(way: str, side: int) -> None:
    assert_trains_on_one(tiny(way), side)


@pytest.mark.parametrize("bands", [1, 2, 4, 16])
def test_bands_other_than_three_are_accepted(bands: int) -> None:
    assert tiny(in_channels=bands).eval()(torch.zeros(1, bands, 20, 20)).shape == (1, 3, 2, 2)


@ways
def test_half_precision_and_channels_last_agree_with_float32(way: str) -> None:
    network, x = tiny(way).eval(), torch.randn(2, 3, 64, 48)
    assert_formats_agree(network, x, atol=1e-5)


def test_the_network_is_one_graph_for_the_compiler() -> None:
    network, x = tiny().eval(), torch.randn(1, 3, 32, 32)
    assert_one_graph(network, x)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"blocks": 6}, "blocks has no effect with aspp"),
        ({"mode": "cascade", "rates": (6, 12)}, "rates has no effect with cascade"),
        ({"mode": "cascade", "blocks": 8}, "blocks"),
        ({"backbone": "mobilenet_v2", "aux": True}, "aux has no effect with mobilenet_v2"),
        ({"backbone": "mobilenet_v2", "mode": "cascade"}, "mobilenet_v2 has none"),
        ({"backbone": "efficientnet_lite0", "mode": "cascade"}, "efficientnet_lite0 has none"),
        ({"mode": "cascade", "aspp_channels": 8}, "aspp_channels has no effect with cascade"),
        ({"backbone": "resnet101", "channels_multiple": 1}, "channels_multiple has no effect with resnet101"),
        ({"channels_multiple": 4, "backbone": "mobilenet_v2"}, "channels_multiple"),
        ({"output_stride": 32}, "(16, 8)"),
    ],
)
def test_options_without_an_effect_are_refused(options: dict, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        zoo.build_network("deeplab_v3", 5, **options)
    assert says in str(caught.value)
