import pytest
import torch
from torch import nn

from pipeline.models import zoo
from pipeline.models.fold import fold_batch_norm


def trained(network: nn.Module) -> nn.Module:
    """Statistics and weights of batch norm as training leaves them: none is what it began with."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_a_folded_network_gives_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    tiny = {"width_multiplier": 0.125} if name != "deeplab_v3plus" else {"backbone": "resnet50", "aspp_channels": 8}
    network = trained(zoo.build_network(name, 5, **tiny))
    before, x = norms(network), torch.rand(2, 3, 96, 64)
    with torch.inference_mode():
        expected = network(x)
        folded = fold_batch_norm(network, torch.rand(1, 3, 64, 64))
        got = network(x)
    assert norms(network) == before - folded
    scale = expected.abs().max().item()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * scale)


def test_nothing_is_left_of_batch_norm_in_deeplab_v3plus() -> None:
    network = trained(zoo.build_network("deeplab_v3plus", 3, backbone="mobilenet_v2", width_multiplier=0.25))
    fold_batch_norm(network, torch.rand(1, 3, 64, 64))
    assert norms(network) == 0


class Odd(nn.Module):
    """A convolution that feeds two batch norms, a batch norm fed by two convolutions, and one behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared = self.convs[0](x)
        two = self.norms[0](shared) + self.norms[1](shared)
        both = self.norms[2](self.convs[1](x)) * self.norms[2](self.convs[2](x))
        return self.norms[3](two + both) + self.convs[3](x)


def test_what_cannot_be_folded_is_left_alone() -> None:
    torch.manual_seed(0)
    network, x = trained(Odd()), torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        expected = network(x)
        assert fold_batch_norm(network, x) == 0
        torch.testing.assert_close(network(x), expected)
