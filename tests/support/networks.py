"""Every published variant made small, so that a test can run it, and what is asserted of every network alike."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models import zoo
from pipeline.models.catalogue import Variant
from pipeline.models.network import AroundOptions, Network

NARROW = {"width_multiplier": 1 / 16}
FEW = {
    "attention_to_scale": {"attention_channels": 8},
    "deeplab_v3plus": {"aspp_channels": 8, "decoder_channels": 8, "low_level_channels": 4},
}
"""Channels that options of their own decide."""


def small(variant: Variant) -> dict[str, Any]:
    """Options of a variant with as few channels as its layers allow."""
    return _narrowed(variant.network, variant.options)


def _narrowed(network: str, options: dict[str, Any]) -> dict[str, Any]:
    if issubclass(zoo.NETWORKS[network][1], AroundOptions):
        inner = _narrowed(options["network"], options.get("options", {}))
        return options | {"options": inner} | FEW.get(network, {})
    return options | NARROW | FEW.get(network, {})


def cells(length: int, stride: int) -> int:
    return math.ceil(length / stride)


def assert_formats_agree(network: nn.Module, x: Tensor, *, atol: float | None = None) -> None:
    """Half precision and channels last give what float32 gives; `atol` defaults to 1e-4 of the largest logit."""
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
        last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    largest = expected.abs().max()
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4 * largest.item() if atol is None else atol)
    assert (half.float() - expected).abs().max() < 0.05 * largest


def assert_one_graph(network: nn.Module, x: Tensor) -> None:
    """The compiler sees the network as one graph, which computes the same."""
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(network, backend="eager", fullgraph=True)(x), network(x))


def assert_trains_on_one(network: Network, side: int) -> None:
    """A batch of one square image gives finite gradients to every parameter, and finite running statistics."""
    scores = network.supervised(torch.randn(1, 3, side, side))
    torch.stack([one.sum() for one in scores.values()]).sum().backward()
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
