from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.catalogue import count_macs, count_parameters
from pipeline.models.espnetv2 import EESP, NARROW, ESPNetv2Options, PyramidPool
from tests.support.examples import examples
from tests.support.networks import assert_formats_agree, assert_one_graph, assert_trains_on_one


def tiny(num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network("espnetv2", num_classes, **({"width_multiplier": 1 / 8} | options))


@cache
def evaluated() -> nn.Module:
    return tiny().eval()


def on_meta(num_classes: int, **options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network("espnetv2", num_classes, **options)


def pyramid(entering: int, leaving: int) -> int:
    """Weights of EESP: two grouped 1x1, four depthwise 3x3, and batch norms and slopes."""
    inner = leaving // 4
    return entering * inner // 4 + 3 * inner + 4 * 9 * inner + 3 * leaving + leaving**2 // 4 + 2 * leaving


def encoder(scale: float) -> int:
    one, two, three, four = (32, int(64 * scale), int(128 * scale), int(256 * scale))
    total = 27 * one + 3 * one
    for entering, leaving in ((one, two), (two, three), (three, four)):
        image = 81 + 9 + 3 * leaving + 2 * leaving
        total += pyramid(entering, leaving - entering) + image + leaving
    return total + 3 * (pyramid(three, three) + three) + 7 * (pyramid(four, four) + four)


@pytest.mark.parametrize("scale", [1.0, 1.25, 1.5, 2.0])
def test_the_encoder_has_the_parameters_of_the_authors_layers(scale: float) -> None:
    assert count_parameters(on_meta(21, scale=scale).encoder) == encoder(scale)


def test_it_is_as_large_and_as_costly_as_published() -> None:
    """The authors' file for VOC has 789,253, of which 480 are used by nothing.

    EdgeNets, model/segmentation/model_zoo/README.md: 0.79 million parameters, 759.52 million FLOPs at 384x384.
    """
    network = on_meta(21)
    assert count_parameters(network) == 789_253 - (96 + 128 + 256)
    assert count_macs(network, 384) / 1e6 == pytest.approx(759.52, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({"scale": 0.5}, (16, 32, 64, 128)),
        ({"scale": 1.25}, (32, 80, 160, 320)),
        ({}, (32, 128, 256, 512)),
        ({"scale": 0.5, "width_multiplier": 0.01}, (16, 32, 48, 64)),
    ],
)
def test_channels_are_those_of_the_table_and_can_always_be_grouped(options: dict, channels: tuple) -> None:
    assert ESPNetv2Options(**options).encoder_channels() == channels


@pytest.mark.parametrize(("classes", "channels"), [(1, 1), (2, 1), (3, 1), (21, 10), (40, 16)])
def test_the_pyramid_of_the_decoder_has_half_as_many_channels_as_classes(classes: int, channels: int) -> None:
    assert on_meta(classes).feature_channels == channels


@examples(25)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_logits_fit_any_size(height: int, width: int) -> None:
    network = evaluated()
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(1, 3, height, width))
    assert logits.shape == (1, 3, height, width)
    assert features.shape == (1, network.feature_channels, -(-height // 2), -(-width // 2))


def test_a_branch_of_the_pyramid_is_added_to_the_next() -> None:
    """Hierarchical feature fusion: what one branch sees is in its own channels and in those after it alone."""
    torch.manual_seed(0)
    module = EESP(8, 16, NARROW).eval()
    for number, branch in enumerate(module.branches):
        nn.init.constant_(branch.weight, float(number == 2))
    module.expand = nn.Identity()
    reached = module(torch.rand(1, 8, 9, 9))[0].abs().sum((1, 2)) > 0
    assert not reached[:8].any()
    assert reached[8:].any()


def test_a_group_of_the_merge_sees_one_channel_at_all_scales() -> None:
    torch.manual_seed(0)
    pool = PyramidPool(4, 4).eval()
    pool.project = nn.Identity()
    x = torch.rand(1, 4, 12, 10)
    changed = x.clone()
    changed[:, 2] += 1
    differs = (pool(changed) - pool(x)).abs().amax((0, 2, 3)) > 0
    assert differs.tolist() == [False, False, True, False]


def test_every_parameter_learns() -> None:
    network = tiny(6)
    logits = network(torch.randn(2, 3, 64, 48))
    F.cross_entropy(logits, torch.randint(0, 6, (2, 64, 48))).backward()
    assert [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()] == []


@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(side: int) -> None:
    assert_trains_on_one(tiny(), side)


@pytest.mark.parametrize("bands", [1, 4, 16])
def test_any_number_of_bands_is_accepted(bands: int) -> None:
    assert tiny(in_channels=bands).eval()(torch.zeros(1, bands, 9, 8)).shape == (1, 3, 9, 8)


def test_half_precision_and_channels_last_agree_with_float32() -> None:
    network, x = tiny().eval(), torch.randn(2, 3, 61, 48)
    assert_formats_agree(network, x)


@pytest.mark.slow
def test_the_network_is_one_graph_for_the_compiler() -> None:
    network, x = tiny().eval(), torch.randn(1, 3, 33, 50)
    assert_one_graph(network, x)


@pytest.mark.parametrize("options", [{"output_stride": 8}, {"scale": 0.1}, {"pyramid_channels": 0}, {"p": 2}])
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        zoo.build_network("espnetv2", 5, **options)
