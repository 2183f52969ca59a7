import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.models import zoo
from tests.support.examples import examples
from tests.support.networks import assert_one_graph, assert_trains_on_one

TABLE = [
    *[(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)],
    *[(256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512)],
    *[(512, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 256)],
    *[(256, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64)],
]
"""Channels into and out of each 3x3 convolution with batch norm, 13 down and 12 up; the scores come behind them."""


def tiny(num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network("segnet", num_classes, **({"width_multiplier": 1 / 16} | options))


def parameters(num_classes: int) -> int:
    with torch.device("meta"):
        return sum(one.numel() for one in zoo.build_network("segnet", num_classes).parameters())


@pytest.mark.parametrize(("num_classes", "count"), [(12, 29_449_932), (21, 29_455_125)])
def test_the_number_of_parameters_follows_from_the_papers_table(num_classes: int, count: int) -> None:
    """Published as 29.5 million: weights and a bias, then a weight and a bias of batch norm."""
    expected = sum(9 * entering * leaving + 3 * leaving for entering, leaving in TABLE) + (9 * 64 + 1) * num_classes
    assert parameters(num_classes) == expected == count


@examples(30)
@given(st.integers(1, 70), st.integers(1, 70))
def test_logits_have_the_size_of_the_input(height: int, width: int) -> None:
    network = tiny().eval()
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(1, 3, height, width))
    assert logits.shape == (1, 3, height, width)
    assert features.shape == (1, network.feature_channels, height, width)


def pool_slowly(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima of the 2x2 windows, some of them cut off at the border, and a map that is 1 where each was found."""
    found = torch.full((*x.shape[:2], -(-x.size(2) // 2), -(-x.size(3) // 2)), -torch.inf)
    where = torch.zeros_like(x)
    for n, c, i, j in torch.cartesian_prod(*(torch.arange(length) for length in found.shape)).tolist():
        window = x[n, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        row, column = divmod(int(window.argmax()), window.size(1))
        found[n, c, i, j] = window[row, column]
        where[n, c, 2 * i + row, 2 * j + column] = 1
    return found, where


@pytest.mark.parametrize("size", [(32, 32), (21, 18)])
def test_unpooling_puts_each_maximum_back_where_it_was(size: tuple[int, int]) -> None:
    network = tiny().eval()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected, wheres = x, []
        for stage in network.encoder.stages:
            expected, where = pool_slowly(stage(expected))
            wheres.append(where)
        for stage in network.decoder[::-1]:
            where = wheres.pop()
            spread = expected.repeat_interleave(2, 2).repeat_interleave(2, 3)
            expected = stage(spread[:, :, : where.size(2), : where.size(3)] * where)
        torch.testing.assert_close(network(x), network.logits(expected))


def test_the_decoder_mirrors_the_encoder() -> None:
    with torch.device("meta"):
        network = zoo.build_network("segnet", 21)
    channels = [
        (one.in_channels, one.out_channels)
        for stages in (network.encoder.stages, network.decoder[::-1])
        for one in stages.modules()
        if isinstance(one, nn.Conv2d)
    ]
    assert channels == TABLE


def test_every_parameter_learns() -> None:
    network = tiny().eval()  # in training mode batch norm subtracts again what the biases in front of it add
    F.cross_entropy(network(torch.randn(2, 3, 64, 48)), torch.randint(0, 3, (2, 64, 48))).backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(side: int) -> None:
    assert_trains_on_one(tiny(), side)


@pytest.mark.parametrize("bands", [1, 4, 16])
def test_any_number_of_bands_is_accepted(bands: int) -> None:
    assert tiny(in_channels=bands).eval()(torch.zeros(1, bands, 9, 8)).shape == (1, 3, 9, 8)


def test_channels_last_agrees_with_contiguous() -> None:
    network, x = tiny().eval(), torch.randn(2, 3, 61, 48)
    with torch.no_grad():
        expected = network(x)
        lasting = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(lasting, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_half_precision_agrees_with_float32_wherever_the_same_maxima_are_found() -> None:
    """Rounding makes equals of near neighbours, and the first of them is taken: some values move by a pixel."""
    network, x = tiny().eval(), torch.randn(2, 3, 64, 48)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(x)
    with torch.no_grad():
        expected = network(x)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().median() < 0.02 * expected.abs().max()
    assert (half.argmax(1) == expected.argmax(1)).float().mean() > 0.9


def test_half_precision_trains() -> None:
    network = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(network(torch.randn(2, 3, 33, 47)), torch.randint(0, 3, (2, 33, 47)))
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_the_network_is_one_graph_for_the_compiler() -> None:
    network, x = tiny().eval(), torch.randn(1, 3, 33, 50)
    assert_one_graph(network, x)
