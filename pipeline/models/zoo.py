"""Networks by name: a name, a number of classes and plain options in, an `nn.Module` with random weights out."""

from typing import Any

from pydantic import ValidationError
from torch import nn

from pipeline.config import explain
from pipeline.errors import ConfigError
from pipeline.models.deeplab_v3plus import DeepLabV3Plus, DeepLabV3PlusOptions

NETWORKS = {"deeplab_v3plus": (DeepLabV3Plus, DeepLabV3PlusOptions)}
"""Each network and the class that says what its options are."""

OUTPUT_STRIDES = (8, 16)


def build(name: str, num_classes: int, *, in_channels: int = 3, output_stride: int = 16, **options: Any) -> nn.Module:
    """Build a network in training mode.

    The output stride changes neither names nor shapes of the state dict: weights trained at 16 also run at 8, four
    times as dense and about four times as slow.

    Args:
        name: a key of `NETWORKS`.
        num_classes: K, channels of the logits.
        in_channels: bands of the input.
        output_stride: input pixels per cell of the encoder's features, 8 or 16.
        options: fields of the network's options class, as plain values.

    Returns:
        A module from (N, in_channels, H, W) to (N, K, h, w) logits, with the attributes `stride` and `align_corners`.

    Raises:
        ConfigError: for an unknown name, option or output stride, naming what is known.
    """
    if name not in NETWORKS:
        raise ConfigError(f"no network {name!r}", hint=f"known: {', '.join(NETWORKS)}")
    if output_stride not in OUTPUT_STRIDES:
        raise ConfigError(f"output stride {output_stride} is not one of {OUTPUT_STRIDES}")
    network, options_class = NETWORKS[name]
    try:
        chosen = options_class.model_validate(options)
    except ValidationError as error:
        known = ", ".join(options_class.model_fields)
        raise ConfigError(explain(error, origin=f"options of {name}").message, hint=f"known: {known}") from error
    return network(num_classes, chosen, in_channels=in_channels, output_stride=output_stride)
