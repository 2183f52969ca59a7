"""Weights of backbones alone: torchvision, timm, VGG-16 in Caffe, EfficientNet-Lite."""

from functools import partial

from pipeline.errors import ConfigError
from pipeline.importing.layouts.layout import BACKBONE_HEAD, RESNET_UNUSED, WeightsLayout
from pipeline.importing.layouts.names import (
    CONV_AND_NORM,
    VGG16_STAGES,
    XCEPTION65_UNITS,
    XCEPTION71_UNITS,
    caffe_vgg_rules,
)
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, filters, resnet_options, width_option
from pipeline.importing.layouts.torchvision import TORCHVISION
from pipeline.models.normalisation import CAFFE, EFFICIENTNET, INCEPTION

TIMM = "https://github.com/huggingface/pytorch-image-models"
EFFICIENTNET_LITE = "https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch"
EVEN_SIZES = (
    "the source pads an even side only at its far end, ours at both: features are the same for sides of a multiple of "
    "32 plus one, and half a cell apart for others"
)
"""Note of a layout whose source is TensorFlow's."""
LITES = {(16, 320): 0, (21, 320): 1, (21, 352): 2}
"""EfficientNet-Lites by their number of blocks and the channels of the last one."""
VGG_UNUSED = dict.fromkeys(("classifier.", "pre_logits.", "head."), BACKBONE_HEAD)
HALVES = ("conv_dw", "bn_dw", "conv_pw", "bn_pw")
OUR_HALVES = ("depthwise", "depthwise_bn", "pointwise", "pointwise_bn")


def _torchvision_vgg_rules(*, batch_norm: bool) -> dict[str, str]:
    """Rules for torchvision's `features`: one list with poolings, where ours is a list per stage without them."""
    rules, index = {}, 0
    per_convolution = 3 if batch_norm else 2
    for stage, convolutions in enumerate(VGG16_STAGES):
        for number in range(convolutions):
            for layer in range(per_convolution - 1):
                rules[f"features.{index + layer}."] = f"backbone.stages.{stage}.{number * per_convolution + layer}."
            index += per_convolution
        index += 1
    return rules


def _timm_xception_rules() -> dict[str, str]:
    """Rules for an aligned Xception of any depth: timm/models/xception_aligned.py."""
    rules = {
        f"stem.{number}.{part}.": f"backbone.stem.{3 * number + at}." for number in (0, 1) for at, part in CONV_AND_NORM
    }
    for unit in range(XCEPTION71_UNITS):
        rules[f"blocks.{unit}.shortcut.conv."] = f"backbone.units.{unit}.shortcut.0."
        rules[f"blocks.{unit}.shortcut.bn."] = f"backbone.units.{unit}.shortcut.1."
        for conv in range(3):
            for theirs, ours in zip(HALVES, OUR_HALVES, strict=True):
                rules[f"blocks.{unit}.stack.conv{conv + 1}.{theirs}."] = f"backbone.units.{unit}.convs.{conv}.{ours}."
    return rules


def _efficientnet_lite_rules() -> dict[str, str]:
    """Rules for EfficientNet-Lite 0 to 2. Block 0 has no expansion, so its other layers stand further ahead."""
    first = {"_depthwise_conv": "0.0", "_bn1": "0.1", "_project_conv": "1", "_bn2": "2"}
    expanding = {
        **{"_expand_conv": "0.0", "_bn0": "0.1", "_depthwise_conv": "1.0", "_bn1": "1.1"},
        **{"_project_conv": "2", "_bn2": "3"},
    }
    rules = {"_conv_stem.": "backbone.features.0.0.", "_bn0.": "backbone.features.0.1."}
    for block in range(max(blocks for blocks, _ in LITES)):
        for theirs, ours in (expanding if block else first).items():
            rules[f"_blocks.{block}.{theirs}."] = f"backbone.features.{block + 1}.conv.{ours}."
    return rules


def _efficientnet_lite(tensors: Tensors) -> ShapeOptions:
    """Options of an EfficientNet-Lite alone, from its blocks and the channels of the last one."""
    blocks = sum(name.startswith("_blocks.") and name.endswith("._project_conv.weight") for name in tensors)
    shape = blocks, filters(tensors, f"_blocks.{blocks - 1}._project_conv.weight")
    if shape not in LITES:
        known = ", ".join(f"{number}: {some} and {wide}" for (some, wide), number in LITES.items())
        raise ConfigError(f"no EfficientNet-Lite has {shape[0]} blocks and {shape[1]} channels", hint=f"known: {known}")
    return {"backbone": f"efficientnet_lite{LITES[shape]}"}


def _vgg16(tensors: Tensors) -> ShapeOptions:
    """Options of VGG-16 alone; among its networks only DeepLab v2 has an option `backbone`."""
    return {"backbone": "vgg16"} | width_option(tensors, "features.0.weight", 64)


def _caffe_vgg16(tensors: Tensors) -> ShapeOptions:
    """Options of VGG-16 alone, in Caffe."""
    return {"backbone": "vgg16"} | width_option(tensors, "conv1_1.weight", 64)


def _mobilenet_v2(tensors: Tensors) -> ShapeOptions:
    """Options of MobileNetV2 alone; the stem's filters give its width, in multiples of 8."""
    return {"backbone": "mobilenet_v2"} | width_option(tensors, "features.0.0.weight", 32)


def _xception(tensors: Tensors) -> ShapeOptions:
    """Options of an aligned Xception alone, from its number of units."""
    units = sum(name.startswith("blocks.") and name.endswith(".stack.conv1.conv_dw.weight") for name in tensors)
    depth = {13: 41, XCEPTION65_UNITS: 65, XCEPTION71_UNITS: 71}.get(units)
    if depth is None:
        raise ConfigError(f"no Xception has {units} units", hint="known: 13, 21 and 23, for Xception-41, -65 and -71")
    return {"backbone": f"xception{depth}", "xception_layout": "timm"} | width_option(tensors, "stem.0.conv.weight", 32)


BACKBONE_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="resnet",
        title="ResNet backbone of torchvision or timm",
        url=TORCHVISION,
        marks=("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv2.weight"),
        architecture="deeplab_v3plus",
        options=partial(resnet_options, prefix=""),
        rules={part: f"backbone.{part}" for part in ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")},
        unused=RESNET_UNUSED,
    ),
    WeightsLayout(
        name="vgg16",
        title="VGG-16 backbone of torchvision or timm",
        url=TORCHVISION,
        marks=("features.0.weight", "features.28.weight"),
        without=("features.1.",),
        architecture="deeplab_v1",
        options=_vgg16,
        rules=_torchvision_vgg_rules(batch_norm=False),
        unused=VGG_UNUSED,
        first=("backbone.stages.0.0.weight",),
        output_stride=8,
    ),
    WeightsLayout(
        name="vgg16-bn",
        title="VGG-16 backbone with batch norm of torchvision or timm",
        url=TORCHVISION,
        marks=("features.0.weight", "features.1.running_mean", "features.40.weight"),
        architecture="segnet",
        options=_vgg16,
        rules=_torchvision_vgg_rules(batch_norm=True),
        unused=VGG_UNUSED,
        first=("backbone.stages.0.0.weight",),
        output_stride=32,
    ),
    WeightsLayout(
        name="caffe-vgg16",
        title="VGG-16 backbone in Caffe",
        url="https://www.robots.ox.ac.uk/~vgg/research/very_deep",
        marks=("conv1_1.weight", "conv5_3.weight"),
        without=("fc8_", "fc6_1.", "final.", "fc-final."),
        architecture="deeplab_v1",
        options=_caffe_vgg16,
        rules=caffe_vgg_rules(),
        unused=dict.fromkeys(("fc6.", "fc7.", "fc8."), BACKBONE_HEAD),
        first=("backbone.stages.0.0.weight",),
        output_stride=8,
        normalisation=CAFFE,
    ),
    WeightsLayout(
        name="mobilenet-v2",
        title="MobileNetV2 backbone of torchvision",
        url=TORCHVISION,
        marks=("features.0.0.weight", "features.1.conv.0.0.weight", "features.17.conv.3.weight"),
        architecture="deeplab_v3plus",
        options=_mobilenet_v2,
        rules={f"features.{number}.": f"backbone.features.{number}." for number in range(18)},
        unused={"features.18.": BACKBONE_HEAD, "classifier.": BACKBONE_HEAD},
        first=("backbone.features.0.0.weight",),
    ),
    WeightsLayout(
        name="efficientnet-lite",
        title="EfficientNet-Lite backbone of EfficientNet-Lite-PyTorch",
        url=EFFICIENTNET_LITE,
        marks=("_conv_stem.weight", "_blocks.1._expand_conv.weight", "_blocks.15._project_conv.weight"),
        without=("_blocks.0._se_reduce.",),
        architecture="deeplab_v3plus",
        options=_efficientnet_lite,
        rules=_efficientnet_lite_rules(),
        unused=dict.fromkeys(("_conv_head.", "_bn1.", "_fc."), BACKBONE_HEAD),
        first=("backbone.features.0.0.weight",),
        normalisation=EFFICIENTNET,
        notes=(EVEN_SIZES,),
    ),
    WeightsLayout(
        name="timm-xception",
        title="aligned Xception backbone of timm",
        url=TIMM,
        marks=("stem.0.conv.weight", "blocks.0.stack.conv1.conv_dw.weight"),
        architecture="deeplab_v3plus",
        options=_xception,
        rules=_timm_xception_rules(),
        unused={"head.": BACKBONE_HEAD},
        first=("backbone.stem.0.weight",),
        normalisation=INCEPTION,
    ),
)
