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
from pipeline.models.layers import Downsampler
from tests.support.examples import examples
from tests.support.networks import assert_formats_agree, assert_one_graph, assert_trains_on_one

KINDS = {"authors": {}, "collection": {"factorised_pyramid": True, "encoder_scores": False}}
kinds = pytest.mark.parametrize("kind", list(KINDS))


def tiny(kind: str = "authors", num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network("lednet", num_classes, **({"width_multiplier": 1 / 8} | KINDS[kind] | options))


@cache
def evaluated(kind: str) -> nn.Module:
    return tiny(kind).eval()


def on_meta(num_classes: int, kind: str = "authors") -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network("lednet", num_classes, **KINDS[kind])


@pytest.mark.parametrize(
    ("kind", "classes", "count"),
    [
        ("authors", 20, 925_663),
        ("collection", 19, 917_387),
        ("collection", 20, 917_649),
        ("collection", 11, 915_291),
    ],
)
def test_it_has_the_parameters_of_the_public_code(kind: str, classes: int, count: int) -> None:
    """train/lednet.py of xiaoyufenfei/LEDNet, model/LEDNet.py of its Efficient-Segmentation-Networks."""
    assert count_parameters(on_meta(classes, kind)) == count


@pytest.mark.parametrize(("height", "width", "giga"), [(512, 1024, 11.21), (360, 480, 3.69)])
def test_it_costs_what_the_public_code_does(height: int, width: int, giga: float) -> None:
    network = on_meta(20).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, height, width, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, abs=0.005)


@kinds
@examples(30)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_logits_leave_at_an_eighth_of_any_size_rounded_up(kind: str, height: int, width: int) -> None:
    network = evaluated(kind)
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(1, 3, height, width))
        scores = network.supervised(torch.zeros(1, 3, height, width))
    assert logits.shape == (1, 3, -(-height // 8), -(-width // 8))
    assert features.shape == (1, network.feature_channels, *logits.shape[2:])
    assert all(one.shape == logits.shape for one in scores.values())
    assert scores.keys() == network.loss_weights.keys()


def test_a_unit_gives_channels_of_both_halves_by_turns() -> None:
    unit = evaluated("authors").encoder[5]
    x = torch.rand(1, 2 * unit.left[0].in_channels, 5, 6)
    with torch.no_grad():
        left, right = (
            (part + side(part)).relu() for part, side in zip(x.chunk(2, 1), (unit.left, unit.right), strict=True)
        )
        out = unit(x)
    torch.testing.assert_close(out[:, ::2], left)
    torch.testing.assert_close(out[:, 1::2], right)


@pytest.mark.parametrize(("entering", "pooled"), [(3, 3), (8, 0), (16, 0)])
def test_a_downsampler_pools_an_input_that_has_fewer_channels_than_its_output(entering: int, pooled: int) -> None:
    halves, x = Downsampler(entering, 8).eval(), torch.rand(1, entering, 5, 6)
    with torch.no_grad():
        nn.init.zeros_(halves.conv.weight)
        nn.init.zeros_(halves.conv.bias)
        out = halves(x)
    assert out.shape == (1, 8, 3, 3)
    assert (out.abs().sum((0, 2, 3)) > 0).sum() == pooled
    if pooled:
        torch.testing.assert_close(out[0, 5:, 0, 0], x[0, :, :2, :2].amax((1, 2)) / (1 + halves.bn.eps) ** 0.5)


@kinds
def test_every_parameter_learns_from_what_is_supervised(kind: str) -> None:
    network = tiny(kind)
    for one in network.pyramid.parameters():
        one.data.abs_()  # one channel is easily cut off by a ReLU
    network.eval()  # in training mode batch norm subtracts again what the biases in front of it add
    scores = network.supervised(torch.randn(2, 3, 128, 96))
    losses = [F.cross_entropy(one, torch.randint(0, 3, (2, *one.shape[2:]))) for one in scores.values()]
    torch.stack(losses).sum().backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@kinds
@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(kind: str, side: int) -> None:
    assert_trains_on_one(tiny(kind), side)


@pytest.mark.parametrize("bands", [1, 4, 16])
def test_any_number_of_bands_is_accepted(bands: int) -> None:
    assert tiny(in_channels=bands).eval()(torch.zeros(1, bands, 9, 8)).shape == (1, 3, 2, 1)


def test_half_precision_and_channels_last_agree_with_float32() -> None:
    network, x = tiny().eval(), torch.randn(2, 3, 61, 48)
    assert_formats_agree(network, x)


@pytest.mark.slow
def test_the_network_is_one_graph_for_the_compiler() -> None:
    network, x = tiny().eval(), torch.randn(1, 3, 33, 50)
    assert_one_graph(network, x)


@pytest.mark.parametrize("options", [{"output_stride": 16}, {"width_multiplier": 0}, {"backbone": "vgg16"}])
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        zoo.build_network("lednet", 5, **options)
