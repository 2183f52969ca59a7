"""Options of our networks from the shapes of a file's tensors: depth, width, channels of the head."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.errors import ConfigError

Tensors = Mapping[str, Tensor]
"""Tensors of a file, by name."""
ShapeOptions = dict[str, Any]
"""Options of a network by name, as far as shapes tell them; `models.network.Options` validates them."""

_DEPTHS = {2: 18, 6: 50, 23: 101}
"""Depth of a ResNet by the blocks of its third stage; 6 basic blocks are a ResNet-34."""


def resnet_options(tensors: Tensors, prefix: str, *, stem: str = "conv1.weight") -> ShapeOptions:
    """`backbone` of a ResNet with torchvision's names after `prefix`, and `width_multiplier` if it is not 1.

    Raises:
        ConfigError: no ResNet here has so many blocks.
    """
    blocks = sum(name.startswith(f"{prefix}layer3.") and name.endswith(".conv1.weight") for name in tensors)
    depth = _DEPTHS.get(blocks)
    if depth is None:
        raise ConfigError(f"no ResNet has {blocks} blocks in {prefix}layer3", hint="known depths: 18, 34, 50 and 101")
    if depth == 50 and f"{prefix}layer3.0.conv3.weight" not in tensors:
        depth = 34
    return {"backbone": f"resnet{depth}"} | width_option(tensors, prefix + stem, 64)


def uniform_resnet_options(tensors: Tensors, prefix: str) -> ShapeOptions:
    """Options of a ResNet without multi-grid, an option of depths with three blocks in the last stage."""
    options = resnet_options(tensors, prefix)
    return options if options["backbone"] == "resnet18" else options | {"multi_grid": None}


def width_option(tensors: Tensors, name: str, full: int) -> ShapeOptions:
    """`width_multiplier` from a convolution that has `full` filters in the publication; empty if it is 1."""
    count = filters(tensors, name)
    return {} if count == full else {"width_multiplier": count / full}


def filters(tensors: Tensors, name: str, *, axis: int = 0) -> int:
    """Size of a convolution's weight along an axis: 0 for output channels, 1 for input channels.

    Raises:
        ConfigError: the file has no such weight.
    """
    if name not in tensors or tensors[name].dim() != 4:
        raise ConfigError(f"the file has no convolution {name}")
    return tensors[name].size(axis)


def has_prefix(tensors: Tensors, prefix: str) -> bool:
    """Return True if any name begins with `prefix`."""
    return any(name.startswith(prefix) for name in tensors)


V3PLUS_WIDTHS = {"aspp_channels": 256, "low_level_channels": 48, "decoder_channels": 256}
"""Channels of DeepLab v3+'s head. Chen 2018, arXiv 1802.02611."""


def v3plus_widths(tensors: Tensors, convolutions: tuple[str, str, str]) -> ShapeOptions:
    """Options for channels of DeepLab v3+'s head that differ from the paper's, read from three convolutions."""
    channels = {
        name: filters(tensors, f"{conv}.weight") for name, conv in zip(V3PLUS_WIDTHS, convolutions, strict=True)
    }
    return {name: count for name, count in channels.items() if count != V3PLUS_WIDTHS[name]}
