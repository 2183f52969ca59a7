import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import zoo
from pipeline.models.catalogue import count_parameters
from pipeline.models.fcn import UPSAMPLING, Upsampling
from tests.support.examples import examples
from tests.support.networks import assert_one_graph, assert_trains_on_one

CONVOLUTIONS = {"32s": 134_346_581, "16s": 134_346_581 + 10_773, "8s": 134_346_581 + 10_773 + 5_397}
"""Parameters besides the upsampling, with 21 classes; the 7x7 variant of DeepLab v1 has as many as FCN-32s."""
KERNELS = {"32s": (64,), "16s": (4, 32), "8s": (4, 4, 16)}
TINY = {"fcn": {"width_multiplier": 1 / 32}, "fcn_dilated": {"width_multiplier": 1 / 16}}

variants = st.sampled_from(["32s", "16s", "8s"])
networks = pytest.mark.parametrize("name", ["fcn", "fcn_dilated"])


def tiny(name: str = "fcn", num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network(name, num_classes, **(TINY[name] | options))


def scoring(name: str = "fcn", **options) -> nn.Module:
    """A network whose scores are no longer the zeros that the paper starts from."""
    network = tiny(name, **options)
    for score in [network.logits, *getattr(network, "skips", [])]:
        nn.init.normal_(score.weight)
    return network


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network(name, 21, **options)


def idle(network: nn.Module) -> list[str]:
    return [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]


@pytest.mark.parametrize("variant", ["32s", "16s", "8s"])
def test_the_papers_network_has_the_published_number_of_parameters(variant: str) -> None:
    upsampling = sum(21 * 21 * side * side for side in KERNELS[variant])
    assert count_parameters(on_meta("fcn", variant=variant)) == CONVOLUTIONS[variant] + upsampling


@pytest.mark.parametrize(
    ("backbone", "count", "billions"), [("resnet50", 35_322_218, 152.717), ("resnet101", 54_314_346, 232.738)]
)
def test_the_dilated_network_has_the_size_and_the_cost_of_torchvisions(
    backbone: str, count: int, billions: float
) -> None:
    """As in its table of weights, which counts multiplications at 520 x 520, the auxiliary head's too."""
    network = on_meta("fcn_dilated", backbone=backbone).eval()
    assert count_parameters(network) == count
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.supervised(torch.empty(1, 3, 520, 520, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, abs=0.001)


def test_without_the_auxiliary_head_only_its_parameters_are_missing() -> None:
    without = on_meta("fcn_dilated", aux=False)
    assert count_parameters(without) == 35_322_218 - (1024 * 256 * 9 + 2 * 256 + 256 * 21 + 21)
    assert without.loss_weights == {"logits": 1.0}


@examples(30)
@given(variants, st.integers(1, 70), st.integers(1, 70))
def test_the_papers_logits_have_the_size_of_the_input(variant: str, height: int, width: int) -> None:
    network = tiny(variant=variant, width_multiplier=1 / 64).eval()
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(1, 3, height, width))
    assert logits.shape == (1, 3, height, width)
    assert features.size(1) == network.feature_channels == 64


@examples(30)
@given(st.sampled_from([8, 16]), st.integers(1, 70), st.integers(1, 70))
def test_the_dilated_networks_logits_leave_at_its_stride(stride: int, height: int, width: int) -> None:
    network = tiny("fcn_dilated", output_stride=stride).eval()
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(1, 3, height, width))
        scores = network.supervised(torch.zeros(1, 3, height, width))
    assert network.stride == stride
    assert logits.shape == (1, 3, -(-height // stride), -(-width // stride))
    assert features.shape == (1, network.feature_channels, *logits.shape[2:])
    assert scores["aux"].shape == scores["logits"].shape == logits.shape
    assert scores.keys() == network.loss_weights.keys()
    torch.testing.assert_close(scores["logits"], logits)


@given(st.sampled_from([2, 4, 8, 16, 32]), st.integers(2, 7), st.integers(2, 7))
def test_upsampling_begins_as_bilinear_interpolation(factor: int, height: int, width: int) -> None:
    """At the border the paper's fades out, where `interpolate` repeats the last value."""
    upsampling = Upsampling(3, factor)
    upsampling.begin()
    x, half = torch.rand(1, 3, height, width), factor // 2
    inner = (slice(None), slice(None), slice(half, -half), slice(half, -half))
    with torch.no_grad():
        ours = upsampling(x)[inner]
    theirs = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours[inner], theirs[inner])


def test_a_transposed_convolution_per_upsampling_and_no_bias() -> None:
    for variant, steps in UPSAMPLING.items():
        found = [(one.stride[0], one.kernel_size[0], one.bias) for one in tiny(variant=variant).upsamplings]
        assert found == [(factor, 2 * factor, None) for factor, _ in steps]
        assert tuple(kernel for _, kernel, _ in found) == KERNELS[variant]


def test_training_starts_from_scores_of_zero() -> None:
    assert not tiny().eval()(torch.randn(1, 3, 20, 20)).any()


def passing_on(variant: str) -> nn.Module:
    """A network of which every convolution hands on the centre of its window, and no score looks at anything yet."""
    network = tiny(variant=variant, num_classes=1, in_channels=1, width_multiplier=1 / 64).eval()
    with torch.no_grad():
        for module in [*network.backbone.modules(), *network.classifier]:
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
                module.weight[0, 0, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1
    return network


@pytest.mark.parametrize(
    ("variant", "stride"), [("32s", 32), ("16s", 32), ("16s", 16), ("8s", 32), ("8s", 16), ("8s", 8)]
)
def test_what_a_pixel_says_comes_out_where_it_is(variant: str, stride: int) -> None:
    """Scores of each layer alone come out around the middle of the cell that the pixel lies in, to the pixel."""
    network = passing_on(variant)
    score = dict(zip((32, 16, 8), [network.logits, *network.skips], strict=False))[stride]
    nn.init.ones_(score.weight)
    pixels = torch.arange(64, 96)  # as many as a cell of the coarsest, so that each place within any cell occurs
    x = torch.zeros(32, 1, 160, 176)
    x[torch.arange(32), 0, pixels, pixels + 9] = 1
    with torch.no_grad():
        maps = network(x)[:, 0]
    for axis, places in ((1, pixels), (2, pixels + 9)):
        along = maps.sum(3 - axis)
        centres = (along * torch.arange(maps.size(axis))).sum(1) / along.sum(1)
        errors = centres - places
        assert errors.abs().max() <= (stride - 1) / 2 + 1e-3
        assert errors.mean().abs() < 1e-3


@pytest.mark.parametrize("variant", ["32s", "16s", "8s"])
def test_moving_the_image_by_a_cell_moves_the_logits_by_as_much(variant: str) -> None:
    """But for a cell at each border: there upsampling may lack one of the two cells that a pixel lies between."""
    network = scoring(variant=variant).eval()
    x = torch.zeros(1, 3, 160, 170)
    x[:, :, 20:60, 30:60] = torch.randn(1, 3, 40, 30)
    with torch.no_grad():
        here, there = network(x), network(x.roll((32, 32), (2, 3)))
    assert here.std() > 0
    torch.testing.assert_close(there[:, :, 64:-32, 64:-32], here[:, :, 32:-64, 32:-64], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("skip", "step"), [(0, 16), (1, 8)])
def test_finer_scores_answer_to_finer_movements(skip: int, step: int) -> None:
    """The skipped scores alone move with the image by their own stride, which the deepest ones cannot."""
    network = scoring(variant="8s").eval()
    for score in (network.logits, network.skips[1 - skip]):
        nn.init.zeros_(score.weight)
    x = torch.zeros(1, 3, 120, 120)
    x[:, :, 40:70, 40:70] = torch.randn(1, 3, 30, 30)
    with torch.no_grad():
        here, there = network(x), network(x.roll(step, 2))
    assert here.std() > 0
    torch.testing.assert_close(there[:, :, 32 + step :], here[:, :, 32:-step], rtol=1e-4, atol=1e-5)


def test_rates_follow_the_convention_asked_for() -> None:
    def rates(layer: str, first_block: str) -> list[int]:
        network = on_meta("fcn_dilated", first_block=first_block)
        return [block.conv2.dilation[0] for block in getattr(network.backbone, layer)]

    assert rates("layer3", "earlier") == [1, 2, 2, 2, 2, 2]
    assert rates("layer4", "earlier") == [2, 4, 4]
    assert rates("layer3", "own") == [2] * 6
    assert rates("layer4", "own") == [4] * 3


@networks
def test_every_parameter_learns(name: str) -> None:
    network = scoring(name).eval()  # without dropout
    scores = network.supervised(torch.randn(2, 3, 40, 40))
    loss = sum(
        weight * F.cross_entropy(scores[one], torch.randint(0, 3, (2, *scores[one].shape[2:])))
        for one, weight in network.loss_weights.items()
    )
    loss.backward()
    assert idle(network) == []


@networks
@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(name: str, side: int) -> None:
    assert_trains_on_one(scoring(name), side)


@networks
@pytest.mark.parametrize("bands", [1, 4, 16])
def test_any_number_of_bands_is_accepted(name: str, bands: int) -> None:
    network = tiny(name, in_channels=bands).eval()
    assert network(torch.zeros(1, bands, 16, 16)).shape == (1, 3, 16 // network.stride, 16 // network.stride)


@networks
def test_half_precision_and_channels_last_agree_with_float32(name: str) -> None:
    network, x = scoring(name).eval(), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        expected = network(x)
        lasting = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
    torch.testing.assert_close(lasting, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert (half.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.slow
@networks
def test_the_network_is_one_graph_for_the_compiler(name: str) -> None:
    network, x = scoring(name).eval(), torch.randn(1, 3, 33, 50)
    assert_one_graph(network, x)
