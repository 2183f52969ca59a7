"""Options of our networks from the tensors of a file: what shapes say, and beside it what no shape tells.

Rates, strides and corners are constants of the source's code; each function names the place they come from.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.importing.names import XCEPTION65_UNITS, XCEPTION71_UNITS

Tensors = Mapping[str, Tensor]
ShapeOptions = dict[str, Any]

_DEPTHS = {2: 18, 6: 50, 23: 101}
"""Depth of a ResNet by the blocks of its third stage; 6 are 34 when its blocks are basic."""


def resnet(tensors: Tensors, prefix: str, *, stem: str = "conv1.weight") -> ShapeOptions:
    """`backbone`, and `width_multiplier` where it is not 1, of a ResNet with torchvision's names behind `prefix`."""
    blocks = sum(name.startswith(f"{prefix}layer3.") and name.endswith(".conv1.weight") for name in tensors)
    depth = _DEPTHS.get(blocks)
    if depth is None:
        raise ConfigError(f"a ResNet with {blocks} blocks in {prefix}layer3", hint="there are 18, 34, 50 and 101")
    if depth == 50 and f"{prefix}layer3.0.conv3.weight" not in tensors:
        depth = 34
    return {"backbone": f"resnet{depth}"} | width(tensors, prefix + stem, 64)


def uniform_resnet(tensors: Tensors, prefix: str) -> ShapeOptions:
    """A ResNet without multi-grid, which is an option of those with three blocks in their last stage."""
    found = resnet(tensors, prefix)
    return found if found["backbone"] == "resnet18" else found | {"multi_grid": None}


def width(tensors: Tensors, name: str, full: int) -> ShapeOptions:
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


def has(tensors: Tensors, prefix: str) -> bool:
    """Whether a name begins so."""
    return any(name.startswith(prefix) for name in tensors)


# ---------------------------------------------------------------- what shapes do not say


def torchvision_v3(tensors: Tensors) -> ShapeOptions:
    """No multi-grid, and a 3x3 behind ASPP: models/segmentation/deeplabv3.py."""
    aux = {"aux": True} if has(tensors, "aux_classifier.") else {}
    return uniform_resnet(tensors, "backbone.") | {"head_conv": True} | aux


def torchvision_fcn(tensors: Tensors) -> ShapeOptions:
    """models/segmentation/fcn.py."""
    return resnet(tensors, "backbone.") | {"aux": has(tensors, "aux_classifier.")}


def vainf_v3plus(tensors: Tensors) -> ShapeOptions:
    """The ResNet of torchvision, and a decoder of one 3x3: network/_deeplab.py."""
    return uniform_resnet(tensors, "backbone.") | {"decoder_convs": 1} | v3plus_widths(tensors, VAINF_V3PLUS)


def smp_v3(tensors: Tensors) -> ShapeOptions:
    """All blocks of a dilated stage have its rate: encoders/_utils.py, `replace_strides_with_dilation`."""
    return uniform_resnet(tensors, "encoder.") | {
        "first_block": "own",
        "head_conv": True,
        "align_corners": True,
    }


def smp_v3plus(tensors: Tensors) -> ShapeOptions:
    """Separable 3x3s, one of them behind ASPP and one in the decoder: decoders/deeplabv3/decoder.py."""
    return (
        uniform_resnet(tensors, "encoder.")
        | {
            "first_block": "own",
            "separable": "plain",
            "aspp_conv": True,
            "decoder_convs": 1,
            "align_corners": True,
        }
        | v3plus_widths(tensors, SMP_V3PLUS)
    )


def jfzhang_v3plus(tensors: Tensors) -> ShapeOptions:
    """Multi-grid (1, 2, 4), corners aligned: modeling/backbone/resnet.py, modeling/decoder.py."""
    if has(tensors, "backbone.block1."):
        backbone = {"backbone": "xception65", "xception_layout": "jfzhang"} | width(
            tensors, "backbone.conv1.weight", 32
        )
    else:
        backbone = resnet(tensors, "backbone.") | {"multi_grid": (1, 2, 4), "first_block": "own"}
    return backbone | {"align_corners": True} | v3plus_widths(tensors, JFZHANG_V3PLUS)


def semseg_pspnet(tensors: Tensors) -> ShapeOptions:
    """Our defaults: a deep stem, dilated stages with a rate of their own, corners aligned. model/pspnet.py."""
    return resnet(tensors, "", stem="layer0.0.weight") | ({} if has(tensors, "aux.") else {"aux": False})


def kazuto_v3plus(tensors: Tensors) -> ShapeOptions:
    """Multi-grid (1, 2, 4), strides in the 1x1: libs/models/deeplabv3plus.py, main.py."""
    return (
        kazuto_depth(tensors, "")
        | {"multi_grid": (1, 2, 4), "first_block": "own", "stride_in": "1x1", "ceil_pool": True}
        | v3plus_widths(tensors, KAZUTO_V3PLUS)
    )


def kazuto_v2(tensors: Tensors) -> ShapeOptions:
    """Wrapped in `base`, scores of three scales are pooled: libs/models/msc.py. The rest are our defaults."""
    return kazuto_depth(tensors, "base.") | {"head": "aspp_l", "msc": True}


def kazuto_init(tensors: Tensors) -> ShapeOptions:
    """deeplab-pytorch's ResNet alone."""
    return kazuto_depth(tensors, "")


def kazuto_depth(tensors: Tensors, prefix: str) -> ShapeOptions:
    """50 or 101, by the blocks of the fourth stage."""
    depth = 101 if has(tensors, f"{prefix}layer4.block23.") else 50
    return {"backbone": f"resnet{depth}"} | width(tensors, f"{prefix}layer1.conv1.conv.weight", 64)


def caffe_v1(tensors: Tensors) -> ShapeOptions:
    """The variant is the size of fc6: config/*/test.prototxt."""
    kernel = filters(tensors, "fc6.weight", axis=3)
    variant = {3: "large_fov", 4: "4x4", 7: "7x7"}.get(kernel)
    if variant is None:
        raise ConfigError(f"fc6 is {kernel} wide; DeepLab's are 3x3, 4x4 or 7x7")
    msc = {"msc": True} if "data_conv.weight" in tensors else {}
    return {"variant": variant} | msc | width(tensors, "conv1_1.weight", 64)


def caffe_v2_vgg(tensors: Tensors) -> ShapeOptions:
    """ASPP-L; files of ASPP-S have the same shapes, `--options head=aspp_s` says so."""
    return {"backbone": "vgg16", "head": "aspp_l", "align_corners": True} | width(tensors, "conv1_1.weight", 64)


def caffe_v2_resnet(tensors: Tensors) -> ShapeOptions:
    """The test network shares its weights with copies for two smaller scales."""
    depth = 101 if has(tensors, "res4b22_") else 50
    msc = {"msc": True} if has(tensors, "shared075.") else {}
    found = {"backbone": f"resnet{depth}", "head": "aspp_l", "align_corners": True}
    return found | msc | width(tensors, "conv1.weight", 64)


def backbone_vgg(tensors: Tensors) -> ShapeOptions:
    """VGG-16 alone: its networks have no option that names it, but for DeepLab v2."""
    return {"backbone": "vgg16"} | width(tensors, "features.0.weight", 64)


def backbone_caffe_vgg(tensors: Tensors) -> ShapeOptions:
    """VGG-16 alone."""
    return {"backbone": "vgg16"} | width(tensors, "conv1_1.weight", 64)


def backbone_mobilenet(tensors: Tensors) -> ShapeOptions:
    """MobileNetV2 alone; the stem's filters say its width, to a multiple of 8."""
    return {"backbone": "mobilenet_v2"} | width(tensors, "features.0.0.weight", 32)


def backbone_xception(tensors: Tensors) -> ShapeOptions:
    """An aligned Xception alone, by its units."""
    units = sum(name.startswith("blocks.") and name.endswith(".stack.conv1.conv_dw.weight") for name in tensors)
    depth = {13: 41, XCEPTION65_UNITS: 65, XCEPTION71_UNITS: 71}.get(units)
    if depth is None:
        raise ConfigError(f"an Xception of {units} units", hint="there are 13, 21 and 23: Xception-41, -65 and -71")
    return {"backbone": f"xception{depth}", "xception_layout": "timm"} | width(tensors, "stem.0.conv.weight", 32)


V3PLUS_WIDTHS = {"aspp_channels": 256, "low_level_channels": 48, "decoder_channels": 256}
VAINF_V3PLUS = ("classifier.aspp.project.0", "classifier.project.0", "classifier.classifier.0")
SMP_V3PLUS = ("decoder.aspp.0.project.0", "decoder.block1.0", "decoder.block2.0.1")
JFZHANG_V3PLUS = ("aspp.conv1", "decoder.conv1", "decoder.last_conv.0")
KAZUTO_V3PLUS = ("fc1.conv", "reduce.conv", "fc2.conv1.conv")


def v3plus_widths(tensors: Tensors, convolutions: tuple[str, str, str]) -> ShapeOptions:
    """Widths of DeepLab v3+'s head where they are not the paper's, by the convolutions that give them."""
    found = {name: filters(tensors, f"{conv}.weight") for name, conv in zip(V3PLUS_WIDTHS, convolutions, strict=True)}
    return {name: channels for name, channels in found.items() if channels != V3PLUS_WIDTHS[name]}
