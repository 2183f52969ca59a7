from functools import cache

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
from pipeline.models.frrn import doubled
from tests.support.examples import examples
from tests.support.networks import assert_one_graph, assert_trains_on_one

torch.set_num_threads(1)

NAMES = ("frrn_a", "frrn_b")
every_name = pytest.mark.parametrize("name", NAMES)


def tiny(name: str, num_classes: int = 3, **changes) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network(name, num_classes, **({"width_multiplier": 1 / 16} | changes))


@cache
def evaluated(name: str) -> nn.Module:
    return tiny(name).eval()


def on_meta(name: str, num_classes: int = 19) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network(name, num_classes)


# Units, scale and channels of each stage, of the paper's table 1.
ENCODER = [(3, 2, 96), (4, 4, 192), (2, 8, 384), (2, 16, 384)]
DECODER = [(2, 8, 192), (2, 4, 192), (2, 2, 96)]
STAGES = {"frrn_a": (ENCODER, DECODER), "frrn_b": ([*ENCODER, (2, 32, 384)], [(2, 16, 192), *DECODER])}


def convolution(kernel: int, entering: int, leaving: int) -> int:
    """Weights, then a weight and a bias of batch norm."""
    return kernel**2 * entering * leaving + 2 * leaving


def counted(name: str, num_classes: int) -> int:
    """Parameters of the authors' dltools/architectures.py, layer by layer."""
    total = convolution(5, 3, 48) + 6 * convolution(3, 48, 48) + convolution(1, 48, 32)
    entering = 48
    for units, _, channels in [*STAGES[name][0], *STAGES[name][1]]:
        for _ in range(units):
            total += convolution(3, entering + 32, channels) + convolution(3, channels, channels) + 33 * channels
            total += 32 - channels  # the 1x1 to the residual stream has a bias and no batch norm
            entering = channels
    total += convolution(3, entering + 32, 48) + (entering + 32) * 48 + 5 * convolution(3, 48, 48)
    return total + 49 * num_classes


@pytest.mark.parametrize(("name", "count"), [("frrn_a", 17_746_803), ("frrn_b", 24_755_699)])
def test_parameters_are_those_of_the_authors_layers(name: str, count: int) -> None:
    assert count_parameters(on_meta(name)) == counted(name, 19) == count


@pytest.mark.parametrize(
    ("name", "size", "giga"),
    [("frrn_a", (256, 512), 123.1), ("frrn_a", (512, 1024), 492.4), ("frrn_b", (512, 1024), 496.2)],
)
def test_macs_are_those_of_the_authors_input_sizes(name: str, size: tuple[int, int], giga: float) -> None:
    network = on_meta(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, *size, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, abs=0.05)


@every_name
@examples(15)
@given(st.integers(1, 70), st.integers(1, 70))
def test_logits_have_the_size_of_the_input(name: str, height: int, width: int) -> None:
    network = evaluated(name)
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(1, 3, height, width))
    assert logits.shape == (1, 3, height, width)
    assert features.shape == (1, network.feature_channels, height, width)


class Layers:
    """The authors' builder written down again: layers taken from a state dict in the order that Lasagne saves them."""

    def __init__(self, network: nn.Module) -> None:
        state = network.state_dict()
        self.left = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]

    def conv(self, x: Tensor, *, relu: bool = True, norm: bool = True, bias: bool = False) -> Tensor:
        weight = self.left.pop(0)
        x = F.conv2d(x, weight, self.left.pop(0) if bias else None, padding=weight.size(2) // 2)
        if norm:
            gamma, beta, mean, var = (self.left.pop(0).view(1, -1, 1, 1) for _ in range(4))
            x = (x - mean) * gamma / (var + 1e-4).sqrt() + beta
        return x.relu() if relu else x

    def ru(self, x: Tensor, *, project: bool = False) -> Tensor:
        y = self.conv(self.conv(x), relu=False)
        return y + (self.conv(x, relu=False, norm=False) if project else x)

    def frru(self, y: Tensor, z: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        y = self.conv(self.conv(torch.cat([y, F.max_pool2d(z, scale)], 1)))
        added = self.conv(y, relu=False, norm=False, bias=True)
        return y, z + added.repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    def scores(self, x: Tensor, name: str) -> Tensor:
        y = self.ru(self.ru(self.ru(self.conv(x))))
        z = self.conv(y, relu=False)
        for units, scale, _ in STAGES[name][0]:
            y = F.max_pool2d(y, 2)
            for _ in range(units):
                y, z = self.frru(y, z, scale)
        for units, scale, _ in STAGES[name][1]:
            y = theano_upsampling(y)
            for _ in range(units):
                y, z = self.frru(y, z, scale)
        y = torch.cat([theano_upsampling(y), z], 1)
        return self.conv(self.ru(self.ru(self.ru(y, project=True))), relu=False, norm=False, bias=True)


def theano_upsampling(x: Tensor) -> Tensor:
    """`bilinear_upsampling` by 2: borders repeated, then a transposed convolution with 1/2, 1, 1/2, padded by 3."""
    kernel = torch.tensor([0.5, 1.0, 0.5], dtype=x.dtype)
    kernel = torch.outer(kernel, kernel).expand(x.size(1), 1, 3, 3)
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    # 2 (n + 2 - 1) + 3 - 2 * 3 = 2 n - 1 rows: the gradient of a convolution of 2 n rows has one more at the end.
    return F.conv_transpose2d(x, kernel, stride=2, padding=3, output_padding=1, groups=x.size(1))


@every_name
def test_its_scores_are_those_of_the_authors_graph_written_down_again(name: str) -> None:
    network, x = tiny(name).double(), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    network(x)  # gives the batch norms statistics of their own
    network.eval()
    again = Layers(network)
    with torch.no_grad():
        expected = again.scores(x, name)
        found = network(x)
    assert again.left == []
    assert expected.std() > 0
    torch.testing.assert_close(found, expected)


@examples(20)
@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans())
def test_doubling_keeps_every_second_value_and_means_of_neighbours_between(
    rows: int, columns: int, odd_height: bool, odd_width: bool
) -> None:
    x = torch.randn(1, 2, rows, columns, dtype=torch.float64)
    height, width = 2 * rows - odd_height, 2 * columns - odd_width
    found = doubled(x, height, width)
    assert found.shape == (1, 2, height, width)
    torch.testing.assert_close(found[:, :, ::2, ::2], x)
    torch.testing.assert_close(found, theano_upsampling(x)[:, :, :height, :width])


@every_name
def test_every_parameter_learns(name: str) -> None:
    network = tiny(name)
    F.cross_entropy(network(torch.randn(2, 3, 64, 96)), torch.randint(0, 3, (2, 64, 96))).backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@every_name
@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(name: str, side: int) -> None:
    assert_trains_on_one(tiny(name), side)


@pytest.mark.parametrize("bands", [1, 4, 16])
def test_any_number_of_bands_is_accepted(bands: int) -> None:
    assert tiny("frrn_a", in_channels=bands).eval()(torch.zeros(1, bands, 9, 8)).shape == (1, 3, 9, 8)


@every_name
def test_half_precision_and_channels_last_agree_with_float32(name: str) -> None:
    network, x = tiny(name), torch.randn(2, 3, 64, 48)
    network(x)
    network.eval()
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
        last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert (half.float() - expected).abs().median() < 0.01 * expected.abs().max()
    assert (half.argmax(1) == expected.argmax(1)).float().mean() > 0.9


@pytest.mark.slow
def test_the_network_is_one_graph_for_the_compiler() -> None:
    network, x = tiny("frrn_b").eval(), torch.randn(1, 3, 33, 50)
    assert_one_graph(network, x)


@pytest.mark.parametrize("options", [{"output_stride": 8}, {"width_multiplier": 0}, {"variant": "c"}])
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        zoo.build_network("frrn_a", 5, **options)
