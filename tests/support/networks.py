"""Every published variant made small: the same layers with few channels, so that a test can run it."""

import math
from typing import Any

from pipeline.models import zoo
from pipeline.models.catalogue import Variant
from pipeline.models.network import AroundOptions

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
