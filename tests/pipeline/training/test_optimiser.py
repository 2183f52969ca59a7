import pytest
import torch
from torch import nn

from pipeline.models import zoo
from pipeline.models.catalogue import VARIANTS
from pipeline.models.network import Network
from pipeline.training import optimiser
from pipeline.training.config import OptimiseConfig
from tests.support.networks import small

K = 5
NEW = {"attention_to_scale": {"attend.3"}, "deeplab_dt": {"edge"}}
"""Layers that weigh, and give no scores of classes."""
FIXED = {"espnet": {"decoder_channels": 8}, "espnetv2": {"pyramid_channels": 3}}
"""Options without which layers in front of the last ones are as wide as there are classes."""


def built(name: str) -> Network:
    options = next(small(variant) for variant in VARIANTS if variant.network == name)
    return zoo.build_network(name, K, **options)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_last_layers_are_those_that_know_how_many_classes_there_are(variant) -> None:
    """By their shapes: of the same network for two numbers of classes, these convolutions, also transposed, differ."""
    with torch.device("meta"):
        options = small(variant) | FIXED.get(variant.network, {})
        few, many = (zoo.build_network(variant.network, k, **options) for k in (K, K + 1))
    names = {module: name for name, module in few.named_modules()}
    differ = {
        name
        for (name, one), other in zip(few.named_modules(), many.modules(), strict=True)
        if type(one) in (nn.Conv2d, nn.ConvTranspose2d) and one.weight.shape != other.weight.shape
    }
    assert {names[layer] for layer in few.last_layers()} == differ | NEW.get(variant.network, set())


@pytest.mark.parametrize("decay_all", [True, False])
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_every_parameter_is_in_one_group_with_its_rate_and_decay(name: str, decay_all: bool) -> None:
    network = built(name)
    cfg = OptimiseConfig(lr=0.5, head_lr=10, head_bias_lr=20, weight_decay=0.25, decay_all=decay_all)
    made = optimiser.make_optimiser(network, cfg)
    found = {parameter: group for group in made.param_groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in made.param_groups)
    assert found.keys() == set(network.parameters())
    head = set(network.last_layers())
    for module in network.modules():
        for kind, parameter in module.named_parameters(recurse=False):
            factor = {"weight": 10, "bias": 20}[kind] if module in head else 1
            assert found[parameter]["factor"] == factor
            assert found[parameter]["lr"] == 0.5 * factor
            vector = kind == "bias" or isinstance(module, nn.BatchNorm2d | nn.PReLU)
            assert found[parameter]["weight_decay"] == (0 if vector and not decay_all else 0.25)


@pytest.mark.parametrize(("kind", "expected"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_setting_the_rate_keeps_the_factors_and_moves_the_head_further(kind: str, expected: type) -> None:
    network = built("segnet")
    made = optimiser.make_optimiser(network, OptimiseConfig(kind=kind, lr=1.0, head_lr=10, weight_decay=0, momentum=0))
    assert type(made) is expected
    optimiser.set_lr(made, 0.01)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    for old, parameter in zip(before, network.parameters(), strict=True):
        factor = 10 if parameter is network.logits.weight else 1
        torch.testing.assert_close(old - parameter, torch.full_like(old, 0.01 * factor), atol=1e-6, rtol=1e-3)


def test_what_takes_no_gradient_is_left_out() -> None:
    network = built("segnet")
    network.encoder.requires_grad_(requires_grad=False)
    made = optimiser.make_optimiser(network, OptimiseConfig())
    left = {parameter for group in made.param_groups for parameter in group["params"]}
    assert left == {parameter for name, parameter in network.named_parameters() if not name.startswith("encoder")}


def stepped(cfg: OptimiseConfig, steps: int) -> list[torch.Tensor]:
    """Weights after each step with gradients of 1."""
    network = built("segnet")
    made = optimiser.make_optimiser(network, cfg)
    weight = next(network.parameters())
    weight.data.fill_(1.0)
    history = []
    for _ in range(steps):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        made.step()
        history.append(weight.detach().clone().mean())
    return history


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_sgd_remembers_the_share_of_its_last_step_that_momentum_says(momentum: float) -> None:
    cfg = OptimiseConfig(lr=0.01, momentum=momentum, weight_decay=0)
    first, second, third = stepped(cfg, 3)
    assert float(1 - first) == pytest.approx(0.01, rel=1e-3)
    assert float(first - second) == pytest.approx(0.01 * (1 + momentum), rel=1e-3)
    assert float(second - third) == pytest.approx(0.01 * (1 + momentum + momentum**2), rel=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_decay_is_an_l2_penalty_of_sgd_and_decoupled_in_adamw(decay: float) -> None:
    (sgd,) = stepped(OptimiseConfig(lr=0.01, momentum=0, weight_decay=decay), 1)
    (adamw,) = stepped(OptimiseConfig(kind="adamw", lr=0.01, weight_decay=decay), 1)
    assert float(sgd) == pytest.approx(1 - 0.01 * (1 + decay), abs=1e-5)
    assert float(adamw) == pytest.approx(1 - 0.01 * decay - 0.01, abs=1e-5)


def test_a_new_optimiser_has_the_rate_of_the_settings() -> None:
    for kind in ("sgd", "adamw"):
        made = optimiser.make_optimiser(built("segnet"), OptimiseConfig(kind=kind, lr=0.3, head_lr=4))
        assert {group["lr"] / group["factor"] for group in made.param_groups} == {0.3}
        assert made.defaults["lr"] == 0.3
