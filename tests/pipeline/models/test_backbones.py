import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.backbones.efficientnet_lite import EfficientNetLite
from pipeline.models.backbones.mobilenet_v2 import MobileNetV2, scaled_to_multiple
from pipeline.models.backbones.resnet import ResNet
from pipeline.models.catalogue import count_macs, count_parameters
from pipeline.models.layers import ASPP, BatchNorm2d, conv3x3_bn_relu, set_batch_norm, widen
from tests.support.examples import examples
from tests.support.networks import assert_one_graph, assert_trains_on_one

CHANNELS = {"aspp_channels": 8, "decoder_channels": 8, "low_level_channels": 4}
TINY = {"backbone": "mobilenet_v2", "width_multiplier": 0.25} | CHANNELS
TINY_RESNET = {"backbone": "resnet18", "width_multiplier": 0.125} | CHANNELS
TINY_XCEPTION = {"backbone": "xception41", "width_multiplier": 1 / 32} | CHANNELS
TINY_CAFFE = {"backbone": "resnet50", "width_multiplier": 0.0625, "ceil_pool": True, "stride_in": "1x1"} | CHANNELS
TINY_FINE = TINY_RESNET | {"fine_channels": 6}
TINY_LITE = {"backbone": "efficientnet_lite0", "width_multiplier": 0.25} | CHANNELS
EVERY_KIND = {
    "efficientnet_lite0": TINY_LITE,
    "efficientnet_lite2, fine": TINY_LITE | {"backbone": "efficientnet_lite2", "fine_channels": 6},
    "mobilenet_v2": TINY,
    "resnet18": TINY_RESNET,
    "xception41": TINY_XCEPTION,
    "caffe": TINY_CAFFE,
    "fine": TINY_FINE,
}

KAZUTO1011 = {"stride_in": "1x1", "ceil_pool": True, "first_block": "own"}
JFZHANG = {"first_block": "own", "align_corners": True}
VAINF = {"decoder_convs": 1, "multi_grid": None}
SMP = {
    "separable": "plain",
    "aspp_conv": True,
    "decoder_convs": 1,
    "rates": (12, 24, 36),
    "align_corners": True,
    "multi_grid": None,
    "first_block": "own",
}
PUBLIC = {
    "the paper": ({}, 59_344_309),
    "kazuto1011/deeplab-pytorch": (KAZUTO1011, 59_344_309),
    "jfzhang95/pytorch-deeplab-xception": (JFZHANG, 59_344_309),
    "VainF/DeepLabV3Plus-Pytorch, resnet50": (VAINF | {"backbone": "resnet50"}, 39_761_845),
    "VainF/DeepLabV3Plus-Pytorch, resnet101": (VAINF, 58_753_973),
    "VainF/DeepLabV3Plus-Pytorch, mobilenet": ({"backbone": "mobilenet_v2", "decoder_convs": 1}, 5_225_717),
    "segmentation_models.pytorch, resnet50": (SMP | {"backbone": "resnet50"}, 26_682_725),
    "segmentation_models.pytorch, resnet101": (SMP, 45_674_853),
}
"""Options of the public networks on GitHub, and their parameters with 21 classes."""


def tiny(num_classes: int = 5, **changes) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network("deeplab_v3plus", num_classes, **(TINY | changes))


def on_meta(**options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network("deeplab_v3plus", options.pop("num_classes", 21), **options)


def backbone(name: str, output_stride: int, **options) -> nn.Module:
    torch.manual_seed(0)
    if name == "efficientnet_lite":
        return EfficientNetLite(0, in_channels=3, output_stride=output_stride, width=0.25).eval().double()
    if name == "mobilenet_v2":
        return MobileNetV2(in_channels=3, output_stride=output_stride, width=0.25).eval().double()
    return ResNet(50, in_channels=3, output_stride=output_stride, width=0.125, **options).eval().double()


@pytest.mark.parametrize(("options", "count"), PUBLIC.values(), ids=PUBLIC)
def test_public_networks_have_exactly_their_parameters(options: dict, count: int) -> None:
    assert count_parameters(on_meta(**options)) == count


@pytest.mark.parametrize(
    ("options", "side", "billions", "within"),
    [
        (VAINF | {"backbone": "resnet50"}, 513, 62.38, 0.005),
        (VAINF, 513, 83.01, 0.005),
        (VAINF | {"output_stride": 8}, 513, 258.1, 0.05),
        (KAZUTO1011, 513, 92.0, 0.05),
        (SMP | {"backbone": "resnet50"}, 512, 36.6, 0.05),
        (SMP, 512, 56.0, 0.05),
    ],
)
def test_public_networks_cost_what_they_do(options: dict, side: int, billions: float, within: float) -> None:
    assert count_macs(on_meta(**options), side) / 1e9 == pytest.approx(billions, abs=within)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_689_512), ("resnet34", 21_797_672)])
def test_shallow_backbones_have_exactly_the_parameters_of_torchvision_but_for_the_classifier(
    name: str, count: int
) -> None:
    assert count_parameters(on_meta(backbone=name).backbone) == count - (512 + 1) * 1000


@pytest.mark.parametrize(("number", "count"), [(0, 4_652_008), (1, 5_416_680), (2, 6_092_072)])
def test_efficientnet_lites_have_exactly_the_parameters_of_their_files_but_for_the_classifier(
    number: int, count: int
) -> None:
    backbone = on_meta(backbone=f"efficientnet_lite{number}").backbone
    head = (backbone.high_channels + 2) * 1280 + (1280 + 1) * 1000
    assert count_parameters(backbone) == count - head


def test_a_class_less_is_one_filter_and_one_bias_less() -> None:
    assert count_parameters(on_meta(num_classes=21)) - count_parameters(on_meta(num_classes=19)) == 2 * (256 + 1)


READY = [tiny(**options, output_stride=stride).eval() for options in EVERY_KIND.values() for stride in (16, 8)]


@examples(60)
@given(st.sampled_from(READY), st.integers(1, 70), st.integers(1, 70))
def test_logits_leave_at_the_stride_of_any_size_rounded_up(network: nn.Module, height: int, width: int) -> None:
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(2, 3, height, width))
    assert logits.shape == (2, 5, -(-height // network.stride), -(-width // network.stride))
    assert features.shape == (2, network.feature_channels, *logits.shape[2:])


def test_a_second_decoder_step_halves_the_stride_and_leaves_all_before_it_as_it_was() -> None:
    coarse, fine = tiny(**TINY_RESNET).eval(), tiny(**TINY_FINE).eval()
    missing, unexpected = fine.load_state_dict(
        {name: value for name, value in coarse.state_dict().items() if not name.startswith("logits")}, strict=False
    )
    assert all(name.startswith(("fine.", "logits.")) for name in missing)
    assert (unexpected, coarse.stride, fine.stride) == ([], 4, 2)
    x = torch.rand(2, 3, 41, 57)
    with torch.no_grad():
        stem = fine.backbone.stem(x)
        low, _, _, high = fine.backbone.behind(stem)
        torch.testing.assert_close(fine.decode(low, high), coarse.embed(x)[0])
        torch.testing.assert_close(fine.fine(coarse.embed(x)[0], stem), fine.embed(x)[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("efficientnet_lite", {}),
        ("mobilenet_v2", {}),
        ("resnet50", {}),
        ("resnet50", {"multi_grid": (1, 2, 4)}),
        ("resnet50", {"first_block": "own", "stride_in": "1x1"}),
    ],
)
def test_features_at_output_stride_16_are_every_second_one_at_8(name: str, options: dict) -> None:
    """Dilating in place of striding only fills in the positions that were skipped; odd sizes and borders included."""
    sparse, dense = backbone(name, 16, **options), backbone(name, 8, **options)
    dense.load_state_dict(sparse.state_dict())
    x = torch.rand(1, 3, 75, 102, dtype=torch.float64)
    with torch.no_grad():
        (low_16, high_16), (low_8, high_8) = sparse(x), dense(x)
    torch.testing.assert_close(low_16, low_8)
    assert high_16.shape[2:] == (5, 7)
    assert high_16.std() > 0
    torch.testing.assert_close(high_16, high_8[:, :, ::2, ::2])


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "resnet18", "resnet50", "mobilenet_v2", "xception41", "xception71"]
)
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


@pytest.mark.parametrize(("output_stride", "expected"), [(16, [12, 24, 36]), (8, [24, 48, 72])])
def test_other_rates_double_as_those_of_the_paper_do(output_stride: int, expected: list[int]) -> None:
    _, *atrous = on_meta(rates=(12, 24, 36), output_stride=output_stride).aspp.branches
    assert [branch[0].dilation[0] for branch in atrous] == expected


def test_aligned_corners_move_the_coarse_features() -> None:
    plain, aligned = tiny().eval(), tiny(align_corners=True).eval()
    assert (plain.align_corners, aligned.align_corners) == (False, True)
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        assert not torch.allclose(plain(x), aligned(x))


@pytest.mark.parametrize("separable", [False, True, "plain"])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_parameter_learns(kind: str, separable: bool | str) -> None:
    network = tiny(**EVERY_KIND[kind], separable=separable, aspp_conv=separable == "plain")
    logits = network(torch.randn(2, 3, 64, 64))
    F.cross_entropy(logits, torch.randint(0, 5, (2, *logits.shape[2:]))).backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@pytest.mark.parametrize("side", [1, 33])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_batch_of_one_trains(kind: str, side: int) -> None:
    assert_trains_on_one(tiny(**EVERY_KIND[kind]), side)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_batch_norm_is_torchs_own_wherever_there_is_a_variance(count: int, height: int, width: int) -> None:
    x = torch.arange(count * 2 * height * width, dtype=torch.float32).reshape(count, 2, height, width)
    ours, theirs = BatchNorm2d(2), nn.BatchNorm2d(2)
    theirs.train(x.numel() > 2)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_half_precision_and_channels_last_agree_with_float32(kind: str) -> None:
    network, x = tiny(**EVERY_KIND[kind]).eval(), torch.randn(2, 3, 64, 48)
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xception41", "caffe"])
def test_the_network_is_one_graph_for_the_compiler(kind: str) -> None:
    network, x = tiny(**EVERY_KIND[kind]).eval(), torch.randn(1, 3, 32, 32)
    assert_one_graph(network, x)


@given(st.integers(1, 400), st.floats(0.1, 2.0))
def test_scaled_channels_are_the_nearest_multiple_of_8_within_ten_percent(channels: int, width: float) -> None:
    wanted, given_ = channels * width, scaled_to_multiple(channels, width)
    assert given_ % 8 == 0
    assert given_ >= max(8, 0.9 * wanted)
    assert given_ <= max(8, wanted + 4) or given_ - 8 < 0.9 * wanted


@given(st.integers(1, 400), st.floats(0.1, 2.0))
def test_channels_of_any_number_are_the_nearest(channels: int, width: float) -> None:
    assert abs(max(1, channels * width) - scaled_to_multiple(channels, width, 1)) <= 0.5 or channels * width < 6


def test_width_1_has_the_channels_of_the_paper() -> None:
    assert [scaled_to_multiple(channels, 1.0) for channels in (24, 320)] == [24, 320]
    network = on_meta(backbone="mobilenet_v2").backbone
    assert (network.low_channels, network.high_channels) == (24, 320)


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("bands", [1, 16])
def test_bands_other_than_three_are_accepted(kind: str, bands: int) -> None:
    network = tiny(**EVERY_KIND[kind], in_channels=bands).eval()
    assert network(torch.zeros(1, bands, 8, 8)).shape == (1, 5, 8 // network.stride, 8 // network.stride)


def test_a_separable_convolution_with_nothing_within_is_a_full_one_of_low_rank() -> None:
    block = conv3x3_bn_relu(4, 6, dilation=2, separable="plain").eval()
    depthwise, pointwise, batch_norm, _ = block
    full = pointwise.weight * depthwise.weight.transpose(0, 1)
    x = torch.randn(2, 4, 9, 7)
    torch.testing.assert_close(block(x), batch_norm(F.conv2d(x, full, padding=2, dilation=2)).relu())


@pytest.mark.parametrize("separable", [False, True, "plain"])
def test_aspp_sees_each_cell_at_every_rate_and_the_mean_of_all(separable: bool | str) -> None:
    """Cell by cell: ASPP of a cell is what its nine neighbours at each rate, itself and the mean say."""
    torch.manual_seed(0)
    aspp = ASPP(3, 2, rates=(1, 2), separable=separable).eval()
    x = torch.randn(1, 3, 5, 6)
    wide = F.pad(x, [2] * 4)
    found = aspp(x)
    for row in range(5):
        for column in range(6):
            around = wide[:, :, row : row + 5, column : column + 5]
            seen = [branch(around)[:, :, 2:3, 2:3] for branch in aspp.branches]
            expected = aspp.project(torch.cat([*seen, aspp.image(x.mean((2, 3), keepdim=True))], dim=1))
            torch.testing.assert_close(found[:, :, row, column], expected[:, :, 0, 0])


@given(st.integers(1, 16))
def test_equal_bands_give_the_response_that_three_gave(bands: int) -> None:
    weight, band = torch.randn(5, 3, 3, 3, dtype=torch.float64), torch.randn(1, 1, 8, 8, dtype=torch.float64)
    widened = widen(weight, bands)
    assert widened.shape == (5, bands, 3, 3)
    if bands == 1 or bands % 3 == 0:
        torch.testing.assert_close(
            F.conv2d(band.expand(-1, bands, -1, -1), widened), F.conv2d(band.expand(-1, 3, -1, -1), weight)
        )


def test_a_first_layer_for_three_bands_stays_as_it_is() -> None:
    weight = torch.randn(5, 3, 3, 3)
    assert widen(weight, 3) is weight


def test_bands_take_turns_with_the_filters_of_red_green_and_blue() -> None:
    weight = torch.randn(5, 3, 3, 3)
    torch.testing.assert_close(widen(weight, 4), weight[:, [0, 1, 2, 0]] * 3 / 4)


def test_batch_norm_takes_the_epsilon_it_is_given_everywhere() -> None:
    network = tiny()
    set_batch_norm(network, eps=0.25)
    assert {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {0.25}


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("deeplab_v9", {}, "deeplab_v3plus"),
        ("deeplab_v3plus", {"backbone": "vgg"}, "'resnet101'"),
        ("deeplab_v3plus", {"depth": 3}, "known: backbone"),
        ("deeplab_v3plus", {"aspp_channels": "many"}, "aspp_channels"),
        ("deeplab_v3plus", {"output_stride": 32}, "(16, 8)"),
        ("deeplab_v3plus", {"in_channels": 17}, "1 to 16"),
        ("deeplab_v3plus", {"backbone": "resnet50", "xception_layout": "timm"}, "no effect with resnet50"),
        ("deeplab_v3plus", {"backbone": "mobilenet_v2", "multi_grid": (1, 1, 1)}, "no effect with mobilenet_v2"),
        ("deeplab_v3plus", {"backbone": "xception65", "ceil_pool": True}, "ceil_pool has no effect with xception65"),
        ("deeplab_v3plus", {"backbone": "resnet18", "multi_grid": None}, "multi_grid has no effect with resnet18"),
        ("deeplab_v3plus", {"decoder_convs": 3}, "decoder_convs"),
        ("deeplab_v3plus", {"backbone": "xception65", "fine_channels": 8}, "no effect with xception65"),
        ("deeplab_v3plus", {"rates": ()}, "rates"),
    ],
)
def test_a_wrong_name_or_option_is_refused_and_the_known_ones_are_named(name: str, options: dict, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        zoo.build_network(name, 5, **options)
    assert says in str(caught.value)
