import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import zoo
from pipeline.models.enet import CONVENTIONS
from tests.support.examples import examples
from tests.support.networks import assert_one_graph, assert_trains_on_one

every_convention = pytest.mark.parametrize("convention", CONVENTIONS)
MIDDLES = (1, 2, 0, 4, 1, 8, 0, 16)
"""Dilations of stages 2 and 3; 0: asymmetric. Table 1 of the paper."""


def tiny(num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network("enet", num_classes, **({"width_multiplier": 1 / 2} | options))


def whole(num_classes: int, convention: str, **options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network("enet", num_classes, convention=convention, **options)


@pytest.mark.parametrize(
    ("convention", "counts"),
    [
        ("authors", {19: 364_311, 20: 364_376, 12: 363_856, 11: 363_791}),
        ("davidtvs", {19: 351_660, 20: 351_804, 12: 350_652, 11: 350_508}),
        ("davidtvs_prelu", {12: 359_780}),
    ],
)
def test_the_number_of_parameters_is_that_of_the_program(convention: str, counts: dict[int, int]) -> None:
    found = {classes: sum(one.numel() for one in whole(classes, convention).parameters()) for classes in counts}
    assert found == counts


def test_relu_in_the_encoder_of_davidtvs_lacks_its_93_slopes() -> None:
    """Four in each of 22 bottlenecks, one more in each of the four asymmetric ones, and the initial block's."""
    count = sum(one.numel() for one in whole(19, "davidtvs", encoder_relu=True).parameters())
    assert count == 351_660 - (22 * 4 + 4 + 1)


@pytest.mark.parametrize(("decoder_relu", "tensors"), [(True, 622), (False, 640)])
def test_davidtvs_saves_so_many_tensors(decoder_relu: bool, tensors: int) -> None:
    assert len(whole(12, "davidtvs", decoder_relu=decoder_relu).state_dict()) == tensors


@pytest.mark.parametrize(
    ("convention", "classes", "size", "gmacs"),
    [
        ("authors", 19, (512, 1024), 3.92),
        ("authors", 19, (360, 640), 1.72),
        ("authors", 12, (360, 480), 1.27),
        ("davidtvs", 19, (512, 1024), 4.04),
        ("davidtvs_prelu", 12, (360, 480), 1.32),
    ],
)
def test_macs_are_those_of_the_program(convention: str, classes: int, size: tuple[int, int], gmacs: float) -> None:
    network = whole(classes, convention).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, *size, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.006)


# ---------------------------------------------------------------- the authors' network, written a second time


class Authors:
    """train/models/encoder.lua and decoder.lua of e-lab/ENet-training, on a state dict of ours."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) / (var.view(shape) + 1e-3).sqrt()
        return x * weight.view(shape) + bias.view(shape)

    def act(self, name: str, x: Tensor) -> Tensor:
        slopes = self.state.get(f"{name}.weight")
        return x.clamp(min=0) if slopes is None else torch.where(x > 0, x, x * slopes.view(1, -1, 1, 1))

    def conv(self, name: str, x: Tensor, stride: int = 1, rate: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = [0 if stride == 2 else rate * (length // 2) for length in weight.shape[2:]]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, padding, rate)

    def side(self, name: str, x: Tensor, *, rate: int = 1, down: bool = False, up: bool = False) -> Tensor:
        x = self.act(f"{name}.inner.0", self.norm(f"{name}.branch.0.1", self.conv(f"{name}.branch.0.0", x, 1 + down)))
        norm = f"{name}.branch.1.{1 if rate else 2}"
        if up:
            weight, bias = (self.state[f"{name}.branch.1.0.{part}"] for part in ("weight", "bias"))
            x = F.conv_transpose2d(x, weight, bias, 2, 1, 1)
        else:
            x = self.conv(f"{name}.branch.1.0", x, rate=max(rate, 1))
            x = x if rate else self.conv(f"{name}.branch.1.1", x)
        x = self.act(f"{name}.inner.1", self.norm(norm, x))
        return self.norm(f"{name}.branch.2.1", self.conv(f"{name}.branch.2.0", x))

    def regular(self, name: str, x: Tensor, rate: int = 1) -> Tensor:
        return self.act(f"{name}.outer", x + self.side(name, x, rate=rate))

    def down(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        side = self.side(name, x, down=True)
        windows = F.unfold(x, 2, stride=2).view(*x.shape[:2], 4, *side.shape[2:])
        maxima = torch.cat([windows.amax(2), torch.zeros_like(side)[:, x.size(1) :]], 1)
        return self.act(f"{name}.outer", maxima + side), windows.argmax(2)

    def up(self, name: str, x: Tensor, where: Tensor) -> Tensor:
        main = self.norm(f"{name}.main.1", self.conv(f"{name}.main.0", x))
        spread = main.repeat_interleave(2, 2).repeat_interleave(2, 3)
        there = where.repeat_interleave(2, 2).repeat_interleave(2, 3)
        rows, columns = (torch.arange(length) % 2 for length in spread.shape[2:])
        spread = spread * (there == 2 * rows[:, None] + columns)
        return self.act(f"{name}.outer", spread + self.side(name, x, up=True))

    def __call__(self, x: Tensor) -> Tensor:
        state = self.state
        start = F.conv2d(x, state["initial.conv.weight"], state["initial.conv.bias"], 2, 1)
        pooled = F.unfold(x, 2, stride=2).view(*x.shape[:2], 4, *start.shape[2:]).amax(2)
        x = self.act("initial.act", self.norm("initial.norm", torch.cat([start, pooled], 1)))
        x, first = self.down("down1", x)
        for index in range(4):
            x = self.regular(f"stage1.{index}", x)
        x, second = self.down("down2", x)
        for stage in (2, 3):
            for index, rate in enumerate(MIDDLES):
                x = self.regular(f"stage{stage}.{index}", x, rate)
        x = self.up("up4", x, second)
        x = self.regular("stage4.1", self.regular("stage4.0", x))
        x = self.regular("stage5.0", self.up("up5", x, first))
        return F.conv_transpose2d(x, state["logits.weight"], state["logits.bias"], 2)


def shaken(network: nn.Module) -> nn.Module:
    """Every tensor has values of its own."""
    random = torch.Generator().manual_seed(1)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.2 * torch.rand(tensor.shape, generator=random) - 0.1)
    return network.eval()


@pytest.mark.parametrize("width", [1 / 2, 1])
def test_the_authors_network_agrees_with_another_writing_of_it(width: float) -> None:
    network, x = shaken(tiny(width_multiplier=width)), torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        wanted = Authors(network.state_dict())(x)
        torch.testing.assert_close(network(x), wanted, rtol=0, atol=2e-5 * wanted.abs().max().item())


# ---------------------------------------------------------------- laws


@every_convention
@examples(10)
@given(st.integers(1, 40), st.integers(1, 40))
def test_logits_have_the_size_of_the_input(convention: str, height: int, width: int) -> None:
    network = tiny(convention=convention, width_multiplier=1 / 16).eval()
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(1, 3, height, width))
    assert logits.shape == (1, 3, height, width)
    assert features.shape == (1, network.feature_channels, -(-height // 2), -(-width // 2))


@every_convention
@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(convention: str, side: int) -> None:
    assert_trains_on_one(tiny(convention=convention), side)


@every_convention
def test_every_parameter_learns(convention: str) -> None:
    network = shaken(tiny(convention=convention))
    F.cross_entropy(network(torch.randn(2, 3, 64, 48)), torch.randint(0, 3, (2, 64, 48))).backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@pytest.mark.parametrize("bands", [1, 2, 4, 16])
def test_equal_bands_pool_as_three_of_them(bands: int) -> None:
    three, other = tiny().initial.eval(), tiny(in_channels=bands).initial.eval()
    grey = torch.randn(1, 1, 9, 8)
    with torch.no_grad():
        other.conv.weight.copy_(three.conv.weight.sum(1, keepdim=True).expand(-1, bands, -1, -1) / bands)
        torch.testing.assert_close(other(grey.expand(-1, bands, -1, -1)), three(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(("option", "stages"), [("encoder_relu", ("down1", "stage2")), ("decoder_relu", ("up4",))])
def test_relu_takes_the_place_of_prelu_in_one_half(option: str, stages: tuple[str, ...]) -> None:
    for relu in (False, True):
        network = tiny(**{option: relu})
        kinds = {type(one) for stage in stages for one in getattr(network, stage).modules()}
        assert (nn.ReLU in kinds, nn.PReLU in kinds) == (relu, not relu)


@every_convention
def test_half_precision_agrees_with_float32(convention: str) -> None:
    network, x = tiny(convention=convention).eval(), torch.randn(2, 3, 64, 48)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(x)
    with torch.no_grad():
        expected = network(x)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().median() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("convention", ["authors", "iarunava"])
def test_the_network_is_one_graph_for_the_compiler(convention: str) -> None:
    network, x = tiny(convention=convention).eval(), torch.randn(1, 3, 41, 30)
    assert_one_graph(network, x)
