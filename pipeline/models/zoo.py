"""Zoo: networks by name. In: a name, a number of classes and plain options. Out: a `Network` with random weights."""

from typing import Any

from pydantic import ValidationError

from pipeline.config import explain
from pipeline.errors import ConfigError
from pipeline.models.attention import AttentionToScale, AttentionToScaleOptions
from pipeline.models.crf_rnn import CRFRNNNetwork, CRFRNNOptions
from pipeline.models.deeplab_dt import DeepLabDT, DeepLabDTOptions
from pipeline.models.deeplab_v1 import DeepLabV1, DeepLabV1Options
from pipeline.models.deeplab_v2 import DeepLabV2, DeepLabV2Options
from pipeline.models.deeplab_v3 import DeepLabV3, DeepLabV3Options
from pipeline.models.deeplab_v3plus import DeepLabV3Plus, DeepLabV3PlusOptions
from pipeline.models.dilation import Dilation, DilationOptions
from pipeline.models.enet import ENet, ENetOptions
from pipeline.models.esnet import ESNet, ESNetOptions
from pipeline.models.espnet import ESPNet, ESPNetOptions
from pipeline.models.espnetv2 import ESPNetv2, ESPNetv2Options
from pipeline.models.fasterseg import FasterSeg, FasterSegOptions
from pipeline.models.fcn import FCN, FCNDilated, FCNDilatedOptions, FCNOptions
from pipeline.models.frrn import FRRNA, FRRNB, FRRNOptions
from pipeline.models.icnet import ICNet, ICNetOptions
from pipeline.models.lednet import LEDNet, LEDNetOptions
from pipeline.models.network import AroundOptions, Network, Options
from pipeline.models.pspnet import PSPNet, PSPNetOptions, PSPNetSMP, PSPNetSMPOptions
from pipeline.models.segnet import SegNet, SegNetOptions
from pipeline.models.unet import UNet, UNetOptions, UNetResNet, UNetResNetOptions

NETWORKS: dict[str, tuple[type[Network], type[Options]]] = {
    "attention_to_scale": (AttentionToScale, AttentionToScaleOptions),
    "crf_rnn": (CRFRNNNetwork, CRFRNNOptions),
    "deeplab_dt": (DeepLabDT, DeepLabDTOptions),
    "deeplab_v1": (DeepLabV1, DeepLabV1Options),
    "deeplab_v2": (DeepLabV2, DeepLabV2Options),
    "deeplab_v3": (DeepLabV3, DeepLabV3Options),
    "deeplab_v3plus": (DeepLabV3Plus, DeepLabV3PlusOptions),
    "dilation": (Dilation, DilationOptions),
    "enet": (ENet, ENetOptions),
    "esnet": (ESNet, ESNetOptions),
    "espnet": (ESPNet, ESPNetOptions),
    "espnetv2": (ESPNetv2, ESPNetv2Options),
    "fasterseg": (FasterSeg, FasterSegOptions),
    "fcn": (FCN, FCNOptions),
    "fcn_dilated": (FCNDilated, FCNDilatedOptions),
    "frrn_a": (FRRNA, FRRNOptions),
    "frrn_b": (FRRNB, FRRNOptions),
    "icnet": (ICNet, ICNetOptions),
    "lednet": (LEDNet, LEDNetOptions),
    "pspnet": (PSPNet, PSPNetOptions),
    "pspnet_smp": (PSPNetSMP, PSPNetSMPOptions),
    "segnet": (SegNet, SegNetOptions),
    "unet": (UNet, UNetOptions),
    "unet_resnet": (UNetResNet, UNetResNetOptions),
}
"""Class and options class of each network, by name."""

MAX_CHANNELS = 16


def build_network(
    name: str, num_classes: int, *, in_channels: int = 3, output_stride: int | None = None, **options: Any
) -> Network:
    """Build a network in training mode.

    The output stride changes neither names nor shapes of the state dict: weights trained at 16 also run at 8, with four
    times the cells in about four times the time.

    Args:
        name: a key of `NETWORKS`.
        num_classes: K, channels of the logits.
        in_channels: bands of the input, 1 to 16.
        output_stride: input pixels per cell of the encoder's features; None takes the published stride. Several
            networks have only one.
        options: fields of the network's options class, as plain values.

    Raises:
        ConfigError: the name, an option, the output stride or the number of bands is unknown; lists the known ones.
    """
    if name not in NETWORKS:
        raise ConfigError(f"no network {name!r}", hint=f"known: {', '.join(NETWORKS)}")
    if not 1 <= in_channels <= MAX_CHANNELS:
        raise ConfigError(f"{in_channels} input channels, allowed are 1 to {MAX_CHANNELS}")
    network, options_class = NETWORKS[name]
    chosen = _validated(name, options_class, options)
    if isinstance(chosen, AroundOptions):
        own = chosen.inner_options()
        inner = build_network(chosen.network, num_classes, in_channels=in_channels, output_stride=output_stride, **own)
        return network(num_classes, chosen, inner=inner, in_channels=in_channels)
    stride = output_stride or network.output_strides[0]
    if stride not in network.output_strides:
        raise ConfigError(f"{name}: output stride {stride} is not one of {network.output_strides}")
    return network(num_classes, chosen, in_channels=in_channels, output_stride=stride)


def option_names(name: str) -> set[str]:
    """Names of a network's options; none for an unknown network."""
    return set(NETWORKS[name][1].model_fields) if name in NETWORKS else set()


def _validated(name: str, options_class: type[Options], options: dict[str, Any]) -> Options:
    try:
        return options_class.model_validate(options)
    except ValidationError as error:
        known = ", ".join(options_class.model_fields)
        raise ConfigError(explain(error, origin=f"options of {name}").message, hint=f"known: {known}") from error


def predicts_edges(name: str) -> bool:
    """True for a network of `NETWORKS` that has an edge map."""
    return NETWORKS[name][0].edge_map is not Network.edge_map
