import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from pipeline.training import ema


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


def move(net: nn.Module, step: int) -> None:
    """Other weights and statistics, as a step leaves them."""
    torch.manual_seed(step)
    with torch.no_grad():
        for one in net.state_dict().values():
            one.copy_(one + 1 if one.dtype == torch.int64 else torch.randn_like(one))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
def test_the_average_is_the_sum_of_all_weights_with_falling_shares(decay: float) -> None:
    net = network()
    average = ema.make_average(net, decay)
    expected = {}
    for t in range(30):
        move(net, t)
        average.update_parameters(net)
        now = {name: one.clone() for name, one in net.state_dict().items()}
        share = min(decay, (1 + t) / (10 + t)) if t else 0.0  # nothing came before the first
        expected = {
            name: share * expected[name] + (1 - share) * one if t and one.is_floating_point() else one
            for name, one in now.items()
        }
    torch.testing.assert_close(dict(average.module.state_dict()), expected)
    assert average.module.state_dict()["1.num_batches_tracked"] == 30


def test_a_resumed_average_goes_on_as_the_undisturbed_one() -> None:
    net = network()
    whole, first = ema.make_average(net, 0.99), ema.make_average(net, 0.99)
    for step in range(5):
        move(net, step)
        whole.update_parameters(net)
        first.update_parameters(net)
    resumed = ema.make_average(network(), 0.99)
    resumed.load_state_dict(load(save(first.state_dict())))
    for step in range(5, 9):
        move(net, step)
        whole.update_parameters(net)
        resumed.update_parameters(net)
    for name, one in whole.state_dict().items():
        assert torch.equal(one, resumed.state_dict()[name]), name


def test_the_network_itself_is_left_alone() -> None:
    net = network()
    average = ema.make_average(net, 0.5)
    average.update_parameters(net)
    before = {name: one.clone() for name, one in net.state_dict().items()}
    move(average.module, 1)
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
