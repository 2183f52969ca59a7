"""Options of our networks from the tensors of a file: what shapes say, and beside it what no shape tells.

Rates, strides and corners are constants of the source's code; each function names the place they come from.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.errors import ConfigError

Tensors = Mapping[str, Tensor]
ShapeOptions = dict[str, Any]

_DEPTHS = {2: 18, 6: 50, 23: 101}
"""Depth of a ResNet by the blocks of its third stage; 6 are 34 when its blocks are basic."""


def resnet_options(tensors: Tensors, prefix: str, *, stem: str = "conv1.weight") -> ShapeOptions:
    """`backbone`, and `width_multiplier` where it is not 1, of a ResNet with torchvision's names behind `prefix`."""
    blocks = sum(name.startswith(f"{prefix}layer3.") and name.endswith(".conv1.weight") for name in tensors)
    depth = _DEPTHS.get(blocks)
    if depth is None:
        raise ConfigError(f"a ResNet with {blocks} blocks in {prefix}layer3", hint="there are 18, 34, 50 and 101")
    if depth == 50 and f"{prefix}layer3.0.conv3.weight" not in tensors:
        depth = 34
    return {"backbone": f"resnet{depth}"} | width_option(tensors, prefix + stem, 64)


def uniform_resnet_options(tensors: Tensors, prefix: str) -> ShapeOptions:
    """A ResNet without multi-grid, which is an option of those with three blocks in their last stage."""
    found = resnet_options(tensors, prefix)
    return found if found["backbone"] == "resnet18" else found | {"multi_grid": None}


def width_option(tensors: Tensors, name: str, full: int) -> ShapeOptions:
    """`width_multiplier` by the filters of a convolution that has `full` of them in the publication."""
    found = filters(tensors, name)
    return {} if found == full else {"width_multiplier": found / full}


def filters(tensors: Tensors, name: str, *, axis: int = 0) -> int:
    """Size of a convolution's weight along an axis: 0 counts filters, 1 what they look at.

    Raises:
        ConfigError: when there is no such weight.
    """
    if name not in tensors or tensors[name].dim() != 4:
        raise ConfigError(f"no convolution {name}")
    return tensors[name].size(axis)


def has_prefix(tensors: Tensors, prefix: str) -> bool:
    """Whether a name begins so."""
    return any(name.startswith(prefix) for name in tensors)


V3PLUS_WIDTHS = {"aspp_channels": 256, "low_level_channels": 48, "decoder_channels": 256}


def v3plus_widths(tensors: Tensors, convolutions: tuple[str, str, str]) -> ShapeOptions:
    """Widths of DeepLab v3+'s head where they are not the paper's, by the convolutions that give them."""
    found = {name: filters(tensors, f"{conv}.weight") for name, conv in zip(V3PLUS_WIDTHS, convolutions, strict=True)}
    return {name: channels for name, channels in found.items() if channels != V3PLUS_WIDTHS[name]}
