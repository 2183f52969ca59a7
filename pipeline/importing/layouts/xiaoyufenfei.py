"""Weights of LEDNet and ESNet by their authors, https://github.com/xiaoyufenfei/LEDNet and ESNet, and their collection.

The collection, https://github.com/xiaoyufenfei/Efficient-Segmentation-Networks, has other names and, in
LEDNet, another pyramid.
"""

from collections.abc import Mapping

from pipeline.importing.layouts.espnet import CAMVID_TRAIN, CITYSCAPES_TRAIN
from pipeline.importing.layouts.layout import CORNERS, WeightsLayout
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, filters, has_prefix, width_option
from pipeline.models.esnet import DILATIONS as PARALLEL_DILATIONS
from pipeline.models.lednet import DILATIONS
from pipeline.models.normalisation import Normalisation

LEDNET, ESNET = "https://github.com/xiaoyufenfei/LEDNet", "https://github.com/xiaoyufenfei/ESNet"
COLLECTION = "https://github.com/xiaoyufenfei/Efficient-Segmentation-Networks"
ODD_SIZES = (
    "for odd sizes the source puts zeros behind the last pooled row and column; here the last row and column are pooled"
)
"""Note of layouts whose downsamplers pool."""
UNCHANGED = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), origin="pixels from 0 to 1 as they are")
"""train/main.py of LEDNet: `ToTensor` alone."""


def _centred(statistics: Normalisation) -> Normalisation:
    """Red, green, blue from 0 to 255 less the mean of the training images: the collection's dataset/camvid.py."""
    origin = f"mean of the training images, not divided by a deviation, from the {statistics.origin}"
    return Normalisation(statistics.mean, (1 / 255, 1 / 255, 1 / 255), origin=origin)


COLLECTION_INPUT = _centred(CITYSCAPES_TRAIN)
COLLECTION_INPUT_BY_SCORES = {11: _centred(CAMVID_TRAIN)}


def _numbered(first: str, others: str, ours: str, modules: int) -> dict[str, str]:
    """Rules for an encoder whose first module has a name of its own, by prefix of theirs."""
    return {first: f"{ours}0."} | {f"{others}{index}.": f"{ours}{index + 1}." for index in range(modules - 1)}


UNIT_LEFT = {"conv3x1_1_l": 0, "conv1x3_1_l": 2, "bn1_l": 3, "conv3x1_2_l": 5, "conv1x3_2_l": 7, "bn2_l": 8}
UNIT_RIGHT = {"conv1x3_1_r": 0, "conv3x1_1_r": 2, "bn1_r": 3, "conv1x3_2_r": 5, "conv3x1_2_r": 7, "bn2_r": 8}
"""Index in our Sequential of each layer of a split-shuffle unit."""


def _lednet_encoder(prefix: str) -> dict[str, str]:
    modules = len(DILATIONS) + sum(map(len, DILATIONS))
    places = _numbered(f"{prefix}initial_block.", f"{prefix}layers.", "encoder.", modules)
    units = {
        f"{theirs}{layer}.": f"{ours}{side}.{index}."
        for theirs, ours in places.items()
        for side, layers in (("left", UNIT_LEFT), ("right", UNIT_RIGHT))
        for layer, index in layers.items()
    }
    return places | units


def _pyramid(prefix: str, layers: Mapping[str, str]) -> dict[str, str]:
    """Rules of the pyramid; `layers` are those that the collection factorises, after `prefix`."""
    fixed = {"branch1.1.conv.": "image.", "mid.0.conv.": "scores."}
    return {f"{prefix}{theirs}": f"pyramid.{ours}" for theirs, ours in {**fixed, **layers}.items()}


SQUARE = {
    "down1.conv.": "down1.",
    "down2.conv.": "down2.",
    "down3.0.conv.": "down3.0.",
    "down3.1.conv.": "down3.1.",
    "conv1.conv.": "level1.",
    "conv2.conv.": "level2.",
}
FACTORISED = {
    "down1.": "down1.",
    "down2.": "down2.",
    **{f"down3.{index}.": f"down3.0.{index}." for index in range(3)},
    **{f"down3.{index + 4}.": f"down3.1.{index}." for index in range(3)},
    "conv1.": "level1.",
    "conv2.": "level2.",
}


def _lednet_width(tensors: Tensors, unit: str) -> ShapeOptions:
    """`width_multiplier` if it is not 1, from the first unit of the encoder: 16 channels on each side."""
    half = filters(tensors, unit)
    return {} if half == 16 else {"width_multiplier": half / 16}


def _lednet(tensors: Tensors) -> ShapeOptions:
    scores = {} if has_prefix(tensors, "encoder.output_conv.") else {"encoder_scores": False}
    return scores | _lednet_width(tensors, "encoder.layers.0.conv3x1_1_l.weight")


def _lednet_collection(tensors: Tensors) -> ShapeOptions:
    width = _lednet_width(tensors, "layers.0.conv3x1_1_l.weight")
    return {"factorised_pyramid": True, "encoder_scores": False} | width


FACTORISED_UNIT = {
    "conv3x1_1": "convs.0",
    "conv1x3_1": "convs.2",
    "bn1": "convs.3",
    "conv3x1_2": "convs.5",
    "conv1x3_2": "convs.7",
    "bn2": "convs.8",
}
PARALLEL_UNIT = {
    "conv3x1_1": "first.0",
    "conv1x3_1": "first.2",
    "bn1": "first.3",
    **{f"conv3x1_2{dilation}": f"branches.{index}.0" for index, dilation in enumerate(PARALLEL_DILATIONS)},
    **{f"conv1x3_2{dilation}": f"branches.{index}.2" for index, dilation in enumerate(PARALLEL_DILATIONS)},
    "bn2": "bn",
}
ENCODER_UNITS = {**dict.fromkeys((1, 2, 3, 5, 6), FACTORISED_UNIT), **dict.fromkeys((8, 9, 10), PARALLEL_UNIT)}
"""Layers of ESNet's units, by place in the encoder; the other places are downsamplers."""
ENCODER_MODULES = 11


def _esnet_encoder(prefix: str) -> dict[str, str]:
    places = _numbered(f"{prefix}initial_block.", f"{prefix}layers.", "encoder.", ENCODER_MODULES)
    units = {
        f"{theirs}{layer}.": f"{ours}{target}."
        for place, (theirs, ours) in enumerate(places.items())
        for layer, target in ENCODER_UNITS.get(place, {}).items()
    }
    return places | units


def _esnet_decoder(prefix: str, *, first: int) -> dict[str, str]:
    """Rules for two upsamplers, each with two units behind it; the source counts from `first`."""
    rules: dict[str, str] = {}
    for index, stride in ((first, 4), (first + 3, 2)):
        rules |= {f"{prefix}{index}.conv.": f"up{stride}.0.", f"{prefix}{index}.bn.": f"up{stride}.1."}
        rules |= {
            f"{prefix}{index + 1 + unit}.{layer}.": f"units{stride}.{unit}.{target}."
            for unit in range(2)
            for layer, target in FACTORISED_UNIT.items()
        }
    return rules


def _esnet(tensors: Tensors) -> ShapeOptions:
    scores = {} if has_prefix(tensors, "encoder_output_conv.") else {"encoder_scores": False}
    return scores | width_option(tensors, "encoder.layers.0.conv3x1_1.weight", 16)


def _esnet_collection(tensors: Tensors) -> ShapeOptions:
    return {"encoder_scores": False} | width_option(tensors, "layers.0.conv3x1_1.weight", 16)


XIAOYUFENFEI_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="lednet",
        title="the authors' LEDNet",
        url=LEDNET,
        marks=(
            "encoder.initial_block.conv.weight",
            "encoder.layers.0.conv3x1_1_l.weight",
            "decoder.apn.mid.0.conv.0.weight",
        ),
        architecture="lednet",
        options=_lednet,
        rules={
            **_lednet_encoder("encoder."),
            **_pyramid("decoder.apn.", SQUARE),
            "encoder.output_conv.": "encoder_scores.",
        },
        scores="decoder.apn.mid.0.conv.0.weight",
        first=("encoder.0.conv.weight",),
        output_stride=8,
        normalisation=UNCHANGED,
        notes=(CORNERS, ODD_SIZES),
    ),
    WeightsLayout(
        name="effseg-lednet",
        title="LEDNet of Efficient-Segmentation-Networks",
        url=COLLECTION,
        marks=(
            "initial_block.conv.weight",
            "layers.0.conv3x1_1_l.weight",
            "apn.mid.0.conv.0.weight",
            "apn.down1.0.weight",
        ),
        architecture="lednet",
        options=_lednet_collection,
        rules={**_lednet_encoder(""), **_pyramid("apn.", FACTORISED)},
        scores="apn.mid.0.conv.0.weight",
        first=("encoder.0.conv.weight",),
        output_stride=8,
        normalisation=COLLECTION_INPUT,
        normalisation_by_scores=COLLECTION_INPUT_BY_SCORES,
        notes=(CORNERS, ODD_SIZES),
    ),
    WeightsLayout(
        name="esnet",
        title="the authors' ESNet",
        url=ESNET,
        marks=("encoder.initial_block.conv.weight", "encoder.layers.0.conv3x1_1.weight", "decoder.output_conv.weight"),
        architecture="esnet",
        options=_esnet,
        rules={
            **_esnet_encoder("encoder."),
            **_esnet_decoder("decoder.layers.", first=0),
            "decoder.output_conv.": "logits.",
            "encoder_output_conv.": "encoder_scores.",
        },
        scores="decoder.output_conv.weight",
        scores_axis=1,
        first=("encoder.0.conv.weight",),
        output_stride=8,
        normalisation=UNCHANGED,
        notes=(
            ODD_SIZES,
            "the source has no code of training: pixels from 0 to 1 are assumed, as for the authors' LEDNet",
        ),
    ),
    WeightsLayout(
        name="effseg-esnet",
        title="ESNet of Efficient-Segmentation-Networks",
        url=COLLECTION,
        marks=("initial_block.conv.weight", "layers.0.conv3x1_1.weight", "output_conv.weight"),
        architecture="esnet",
        options=_esnet_collection,
        rules={
            **_esnet_encoder(""),
            **_esnet_decoder("layers.", first=ENCODER_MODULES - 1),
            "output_conv.": "logits.",
        },
        scores="output_conv.weight",
        scores_axis=1,
        first=("encoder.0.conv.weight",),
        output_stride=8,
        normalisation=COLLECTION_INPUT,
        normalisation_by_scores=COLLECTION_INPUT_BY_SCORES,
        notes=(ODD_SIZES,),
    ),
)
