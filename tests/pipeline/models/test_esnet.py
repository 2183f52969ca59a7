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
from tests.support.examples import examples
from tests.support.networks import assert_formats_agree, assert_one_graph, assert_trains_on_one


def tiny(num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network("esnet", num_classes, **({"width_multiplier": 1 / 8} | options))


@cache
def evaluated() -> nn.Module:
    return tiny().eval()


def on_meta(num_classes: int, **options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network("esnet", num_classes, **options)


@pytest.mark.parametrize(
    ("classes", "encoder_scores", "count"),
    [(19, True, 1_661_522), (19, False, 1_659_071), (11, False, 1_658_551)],
)
def test_it_has_the_parameters_of_the_public_code(classes: int, encoder_scores: bool, count: int) -> None:
    """model/ESNet.py of xiaoyufenfei/ESNet; without the encoder's scores that of Efficient-Segmentation-Networks."""
    assert count_parameters(on_meta(classes, encoder_scores=encoder_scores)) == count


@pytest.mark.parametrize(("height", "width", "giga"), [(512, 1024, 24.05), (360, 480, 7.93)])
def test_it_costs_what_its_layers_do(height: int, width: int, giga: float) -> None:
    network = on_meta(19).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, height, width, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, abs=0.005)


@examples(30)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_logits_have_the_size_of_the_input(height: int, width: int) -> None:
    network, x = evaluated(), torch.zeros(1, 3, height, width)
    with torch.no_grad():
        features, logits = network.embed(x)
        scores = network.supervised(x)
    assert logits.shape == scores["logits"].shape == (1, 3, height, width)
    assert features.shape == (1, network.feature_channels, -(-height // 2), -(-width // 2))
    assert scores["encoder"].shape == (1, 3, -(-height // 8), -(-width // 8))
    assert scores.keys() == network.loss_weights.keys()


def test_the_branches_of_a_unit_share_a_batch_norm_which_counts_each_of_them() -> None:
    unit = tiny().encoder[8].train()
    unit(torch.randn(2, unit.bn.num_features, 9, 9))
    assert unit.bn.num_batches_tracked == 3
    assert unit.first[3].num_batches_tracked == 1


def test_a_parallel_unit_reaches_as_far_as_its_dilations() -> None:
    unit = evaluated().encoder[8]
    x = torch.zeros(1, unit.bn.num_features, 41, 41)
    with torch.no_grad():
        quiet = unit(x)
        x[..., 20, 20] = 1
        reached = (unit(x) - quiet).abs().sum((0, 1))
    rows = {abs(row - 20) for row in reached.sum(1).nonzero().flatten().tolist()}
    assert rows <= {0, 1, *(dilation + off for dilation in (2, 5, 9) for off in (-1, 0, 1))}
    assert {9, 5, 2} <= rows


def test_every_parameter_learns_from_what_is_supervised() -> None:
    network = tiny().eval()  # in training mode batch norm subtracts again what the biases in front of it add
    scores = network.supervised(torch.randn(2, 3, 64, 48))
    losses = [F.cross_entropy(one, torch.randint(0, 3, (2, *one.shape[2:]))) for one in scores.values()]
    torch.stack(losses).sum().backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(side: int) -> None:
    assert_trains_on_one(tiny(), side)


@pytest.mark.parametrize("bands", [1, 4, 16])
def test_any_number_of_bands_is_accepted(bands: int) -> None:
    network = zoo.build_network("esnet", 3, in_channels=bands).eval()
    assert network(torch.zeros(1, bands, 9, 8)).shape == (1, 3, 9, 8)


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
        zoo.build_network("esnet", 5, **options)
