"""What other programs call their tensors, and what they do not write down: a table per layout.

A layout maps beginnings of its names to beginnings of ours; of several that fit, the longest counts. What no shape of a
tensor tells (normalisation, order of colours, rates, where a stride is) stands beside the names, with the place in the
source that says so. Nothing here touches a tensor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pipeline.errors import ConfigError

Tensors = Mapping[str, Tensor]
Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What a network subtracts and divides by, for pixels from 0 to 1 in the order red, green, blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False
    """The file's first convolution takes blue, green, red: its planes are turned around."""
    origin: str = ""


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), origin="ImageNet's, as torchvision")
INCEPTION = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), origin="0.5, as timm's Xceptions")
CAFFE = Normalisation(
    (122.675 / 255, 116.669 / 255, 104.008 / 255),
    (1 / 255, 1 / 255, 1 / 255),
    bgr=True,
    origin="mean 104.008, 116.669, 122.675 of blue, green, red in 0 to 255, folded into the card",
)
"""`mean_value` of the authors' prototxt files; deeplab-pytorch takes the same."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to write one kind of network."""

    name: str
    """As `--layout` takes it."""
    title: str
    url: str
    marks: tuple[str, ...]
    """Names that such a file has, all of them."""
    architecture: str
    """Our network; of a backbone, the one it goes into unless another is asked for."""
    rules: Mapping[str, str]
    """Beginnings of names, and of ours; what our networks call `encoder` is a `backbone` here too."""
    options: Callable[[Tensors, int], Options]
    """Options of our network, from the tensors under their aliases and the output stride."""
    without: tuple[str, ...] = ()
    """Beginnings of names that such a file has not."""
    unused: Mapping[str, str] = field(default_factory=dict)
    """Beginnings of names that are left aside, and why."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Patterns and replacements that even out names before anything else looks at them."""
    scores: str = ""
    """The tensor whose first axis counts the classes, under its alias; empty for a backbone."""
    first: tuple[str, ...] = ("backbone.conv1.weight",)
    """Our convolutions that look at the image."""
    swapped: Mapping[str, int] = field(default_factory=dict)
    """Axes of our tensors along which the source has ASPP's channels in front of the low-level ones, not behind."""
    output_stride: int = 16
    normalisation: Normalisation = IMAGENET
    notes: tuple[str, ...] = ()
    """Where outputs may differ from the source's, and what only a person can know."""

    @property
    def is_backbone(self) -> bool:
        """Whether it is a feature extractor alone: the rest of the network is filled from a seed."""
        return not self.scores


BACKBONE_HEAD = "the classifier of a backbone"
SECOND_OUTPUT = "scores of whole images"


# ---------------------------------------------------------------- what shapes say

DEPTHS = {2: 18, 6: 50, 23: 101}
"""Depth of a ResNet by the blocks of its third stage; 6 are 34 when its blocks are basic."""


def resnet(tensors: Tensors, prefix: str) -> Options:
    """`backbone`, and `width_multiplier` where it is not 1, of a ResNet with torchvision's names behind `prefix`."""
    blocks = sum(name.startswith(f"{prefix}layer3.") and name.endswith(".conv1.weight") for name in tensors)
    depth = DEPTHS.get(blocks)
    if depth is None:
        raise ConfigError(f"a ResNet with {blocks} blocks in {prefix}layer3", hint="there are 18, 34, 50 and 101")
    if depth == 50 and f"{prefix}layer3.0.conv3.weight" not in tensors:
        depth = 34
    return {"backbone": f"resnet{depth}"} | width(tensors, f"{prefix}conv1.weight", 64)


def uniform_resnet(tensors: Tensors, prefix: str) -> Options:
    """A ResNet without multi-grid, which is an option of those with three blocks in their last stage."""
    found = resnet(tensors, prefix)
    return found if found["backbone"] == "resnet18" else found | {"multi_grid": None}


def width(tensors: Tensors, name: str, full: int) -> Options:
    """`width_multiplier` by the filters of a convolution that has `full` of them in the publication."""
    filters = tensors[name].size(0)
    return {} if filters == full else {"width_multiplier": filters / full}


def has(tensors: Tensors, prefix: str) -> bool:
    """Whether a name begins so."""
    return any(name.startswith(prefix) for name in tensors)


# ---------------------------------------------------------------- shared tables


def numbered(count: int, source: str, target: str, *, first: int = 0) -> dict[str, str]:
    """The rule `source -> target` for each of `count` numbers in place of `{}`; the source counts from `first`."""
    return {source.format(index + first): target.format(index) for index in range(count)}


def aspp(source: str, target: str) -> dict[str, str]:
    """The ASPP of torchvision, which several others copied, with dense convolutions."""
    return {
        **numbered(4, source + "convs.{}.", target + "branches.{}."),
        source + "convs.4.1.": target + "image.0.",
        source + "convs.4.2.": target + "image.1.",
        source + "project.": target + "project.",
    }


STAGES = (3, 4, 23, 3)
"""Blocks per stage of ResNet-101, the deepest there is."""
CONVOLUTIONS = ("reduce", "conv3x3", "increase")
"""Of a block, in deeplab-pytorch."""


def kazuto_resnet(source: str) -> dict[str, str]:
    """deeplab-pytorch's ResNet: stages 2 to 5, blocks from 1, convolutions by name. libs/models/resnet.py."""
    rules = {f"{source}layer1.conv1.conv.": "backbone.conv1.", f"{source}layer1.conv1.bn.": "backbone.bn1."}
    for stage, blocks in enumerate(STAGES, 1):
        for block in range(blocks):
            theirs, ours = f"{source}layer{stage + 1}.block{block + 1}.", f"backbone.layer{stage}.{block}."
            for number, convolution in enumerate(CONVOLUTIONS, 1):
                rules[f"{theirs}{convolution}.conv."] = f"{ours}conv{number}."
                rules[f"{theirs}{convolution}.bn."] = f"{ours}bn{number}."
            rules[f"{theirs}shortcut.conv."] = f"{ours}downsample.0."
            rules[f"{theirs}shortcut.bn."] = f"{ours}downsample.1."
    return rules


def caffe_blocks(blocks: int) -> list[str]:
    """Letters of a stage's blocks: a, b, c, or from 4 blocks on a, b1, b2, ... of the authors' ResNet-101."""
    return ["a", "b", "c"] if blocks == 3 else ["a", *(f"b{number}" for number in range(1, blocks))]


def caffe_resnet() -> dict[str, str]:
    """ResNet-101 of the authors' prototxt: res4b22_branch2c, with bn4b22_branch2c and scale4b22_branch2c behind it."""
    rules = {"conv1.": "backbone.conv1.", "bn_conv1.": "backbone.bn1.", "scale_conv1.": "backbone.bn1."}
    for stage, blocks in enumerate(STAGES, 1):
        for block, letter in enumerate(caffe_blocks(blocks)):
            for branch, (conv, norm) in {
                "1": ("downsample.0.", "downsample.1."),
                **{f"2{end}": (f"conv{number}.", f"bn{number}.") for number, end in enumerate("abc", 1)},
            }.items():
                theirs, ours = f"{stage + 1}{letter}_branch{branch}.", f"backbone.layer{stage}.{block}."
                rules[f"res{theirs}"] = ours + conv
                rules[f"bn{theirs}"] = rules[f"scale{theirs}"] = ours + norm
    return rules


VGG16_STAGES = (2, 2, 3, 3, 3)


def caffe_vgg() -> dict[str, str]:
    """conv1_1 to conv5_3; our stages alternate convolution and ReLU."""
    return {
        f"conv{stage}_{number}.": f"backbone.stages.{stage - 1}.{2 * (number - 1)}."
        for stage, convolutions in enumerate(VGG16_STAGES, 1)
        for number in range(1, convolutions + 1)
    }


def torchvision_vgg(*, batch_norm: bool) -> dict[str, str]:
    """The `features` of torchvision: one list with the poolings in it, where ours has a list per stage without them."""
    rules, index = {}, 0
    per_convolution = 3 if batch_norm else 2
    for stage, convolutions in enumerate(VGG16_STAGES):
        for number in range(convolutions):
            for layer in range(per_convolution - 1):
                rules[f"features.{index + layer}."] = f"backbone.stages.{stage}.{number * per_convolution + layer}."
            index += per_convolution
        index += 1
    return rules


XCEPTION65_UNITS = 21
XCEPTION71_UNITS = 23
STEM = ((0, "conv"), (1, "bn"))
HALVES = ("conv_dw", "bn_dw", "conv_pw", "bn_pw")
OUR_HALVES = ("depthwise", "depthwise_bn", "pointwise", "pointwise_bn")


def timm_xception() -> dict[str, str]:
    """timm/models/xception_aligned.py, of any depth."""
    rules = {f"stem.{number}.{part}.": f"backbone.stem.{3 * number + at}." for number in (0, 1) for at, part in STEM}
    for unit in range(XCEPTION71_UNITS):
        rules[f"blocks.{unit}.shortcut.conv."] = f"backbone.units.{unit}.shortcut.0."
        rules[f"blocks.{unit}.shortcut.bn."] = f"backbone.units.{unit}.shortcut.1."
        for conv in range(3):
            for theirs, ours in zip(HALVES, OUR_HALVES, strict=True):
                rules[f"blocks.{unit}.stack.conv{conv + 1}.{theirs}."] = f"backbone.units.{unit}.convs.{conv}.{ours}."
    return rules


def jfzhang_xception() -> dict[str, str]:
    """modeling/backbone/xception.py: ReLUs and batch norms count as layers of `rep`; blocks 1 and 2 begin with none."""
    rules = {
        f"backbone.{part}{number + 1}.": f"backbone.stem.{3 * number + at}." for number in (0, 1) for at, part in STEM
    }
    for unit in range(XCEPTION65_UNITS - 1):
        theirs, ours = f"backbone.block{unit + 1}.", f"backbone.units.{unit}."
        rules |= {f"{theirs}skip.": f"{ours}shortcut.0.", f"{theirs}skipbn.": f"{ours}shortcut.1."}
        for conv in range(3):
            at = 3 * conv + (0 if unit < 2 else 1)
            rules |= _jfzhang_separable(f"{theirs}rep.{at}.", f"{theirs}rep.{at + 1}.", f"{ours}convs.{conv}.")
    for conv in range(3):
        last = f"backbone.units.{XCEPTION65_UNITS - 1}.convs.{conv}."
        rules |= _jfzhang_separable(f"backbone.conv{conv + 3}.", f"backbone.bn{conv + 3}.", last)
    return rules


def _jfzhang_separable(conv: str, norm: str, ours: str) -> dict[str, str]:
    return {
        f"{conv}conv1.": f"{ours}depthwise.",
        f"{conv}bn.": f"{ours}depthwise_bn.",
        f"{conv}pointwise.": f"{ours}pointwise.",
        norm: f"{ours}pointwise_bn.",
    }


# ---------------------------------------------------------------- what shapes do not say


def torchvision_v3(tensors: Tensors, output_stride: int) -> Options:
    """No multi-grid, and a 3x3 behind ASPP: models/segmentation/deeplabv3.py."""
    del output_stride  # rates double with it, as ours do
    aux = {"aux": True} if has(tensors, "aux_classifier.") else {}
    return uniform_resnet(tensors, "backbone.") | {"head_conv": True} | aux


def torchvision_fcn(tensors: Tensors, output_stride: int) -> Options:
    """models/segmentation/fcn.py."""
    del output_stride
    return resnet(tensors, "backbone.") | {"aux": has(tensors, "aux_classifier.")}


def vainf_v3plus(tensors: Tensors, output_stride: int) -> Options:
    """The ResNet of torchvision, and a decoder of one 3x3: network/_deeplab.py."""
    del output_stride
    return uniform_resnet(tensors, "backbone.") | {"decoder_convs": 1} | v3plus_widths(tensors, VAINF_V3PLUS)


def smp_rates(output_stride: int) -> tuple[int, ...]:
    """(12, 24, 36) at any output stride: decoders/deeplabv3/model.py. Ours are counted at 16, and doubled at 8."""
    return tuple(rate * output_stride // 16 for rate in (12, 24, 36))


def smp_v3(tensors: Tensors, output_stride: int) -> Options:
    """All blocks of a dilated stage have its rate: encoders/_utils.py, `replace_strides_with_dilation`."""
    return uniform_resnet(tensors, "encoder.") | {
        "first_block": "own",
        "rates": smp_rates(output_stride),
        "head_conv": True,
        "align_corners": True,
    }


def smp_v3plus(tensors: Tensors, output_stride: int) -> Options:
    """Separable 3x3s, one of them behind ASPP and one in the decoder: decoders/deeplabv3/decoder.py."""
    return (
        uniform_resnet(tensors, "encoder.")
        | {
            "first_block": "own",
            "rates": smp_rates(output_stride),
            "separable": "plain",
            "aspp_conv": True,
            "decoder_convs": 1,
            "align_corners": True,
        }
        | v3plus_widths(tensors, SMP_V3PLUS)
    )


def jfzhang_v3plus(tensors: Tensors, output_stride: int) -> Options:
    """Multi-grid (1, 2, 4), corners aligned: modeling/backbone/resnet.py, modeling/decoder.py."""
    del output_stride
    if has(tensors, "backbone.block1."):
        backbone = {"backbone": "xception65", "xception_layout": "jfzhang"} | width(
            tensors, "backbone.conv1.weight", 32
        )
    else:
        backbone = resnet(tensors, "backbone.") | {"multi_grid": (1, 2, 4), "first_block": "own"}
    return backbone | {"align_corners": True} | v3plus_widths(tensors, JFZHANG_V3PLUS)


def kazuto_v3plus(tensors: Tensors, output_stride: int) -> Options:
    """Multi-grid (1, 2, 4), strides in the 1x1: libs/models/deeplabv3plus.py, main.py."""
    del output_stride
    return (
        kazuto_depth(tensors, "")
        | {"multi_grid": (1, 2, 4), "first_block": "own", "stride_in": "1x1", "ceil_pool": True}
        | v3plus_widths(tensors, KAZUTO_V3PLUS)
    )


def kazuto_v2(tensors: Tensors, output_stride: int) -> Options:
    """Wrapped in `base`, scores of three scales are pooled: libs/models/msc.py. The rest are our defaults."""
    del output_stride
    return kazuto_depth(tensors, "base.") | {"head": "aspp_l", "msc": True}


def kazuto_init(tensors: Tensors, output_stride: int) -> Options:
    """deeplab-pytorch's ResNet alone."""
    del output_stride
    return kazuto_depth(tensors, "")


def kazuto_depth(tensors: Tensors, prefix: str) -> Options:
    """50 or 101, by the blocks of the fourth stage."""
    depth = 101 if has(tensors, f"{prefix}layer4.block23.") else 50
    return {"backbone": f"resnet{depth}"} | width(tensors, f"{prefix}layer1.conv1.conv.weight", 64)


def caffe_v1(tensors: Tensors, output_stride: int) -> Options:
    """The variant is the size of fc6: config/*/test.prototxt."""
    del output_stride
    variant = {3: "large_fov", 4: "4x4", 7: "7x7"}.get(tensors["fc6.weight"].size(-1))
    if variant is None:
        raise ConfigError(f"fc6 is {tuple(tensors['fc6.weight'].shape)}; DeepLab's are 3x3, 4x4 or 7x7")
    msc = {"msc": True} if "data_conv.weight" in tensors else {}
    return {"variant": variant} | msc | width(tensors, "conv1_1.weight", 64)


def caffe_v2_vgg(tensors: Tensors, output_stride: int) -> Options:
    """ASPP-L; files of ASPP-S have the same shapes, `--options head=aspp_s` says so."""
    del output_stride
    return {"backbone": "vgg16", "head": "aspp_l", "align_corners": True} | width(tensors, "conv1_1.weight", 64)


def caffe_v2_resnet(tensors: Tensors, output_stride: int) -> Options:
    """The test network shares its weights with copies for two smaller scales."""
    del output_stride
    depth = 101 if has(tensors, "res4b22_") else 50
    msc = {"msc": True} if has(tensors, "shared075.") else {}
    found = {"backbone": f"resnet{depth}", "head": "aspp_l", "align_corners": True}
    return found | msc | width(tensors, "conv1.weight", 64)


def backbone_resnet(tensors: Tensors, output_stride: int) -> Options:
    """A ResNet alone."""
    del output_stride
    return resnet(tensors, "")


def backbone_vgg(tensors: Tensors, output_stride: int) -> Options:
    """VGG-16 alone: its networks have no option that names it, but for DeepLab v2."""
    del output_stride
    return {"backbone": "vgg16"} | width(tensors, "features.0.weight", 64)


def backbone_caffe_vgg(tensors: Tensors, output_stride: int) -> Options:
    """VGG-16 alone."""
    del output_stride
    return {"backbone": "vgg16"} | width(tensors, "conv1_1.weight", 64)


def backbone_mobilenet(tensors: Tensors, output_stride: int) -> Options:
    """MobileNetV2 alone; the stem's filters say its width, to a multiple of 8."""
    del output_stride
    return {"backbone": "mobilenet_v2"} | width(tensors, "features.0.0.weight", 32)


def backbone_xception(tensors: Tensors, output_stride: int) -> Options:
    """An aligned Xception alone, by its units."""
    del output_stride
    units = sum(name.startswith("blocks.") and name.endswith(".stack.conv1.conv_dw.weight") for name in tensors)
    depth = {13: 41, XCEPTION65_UNITS: 65, XCEPTION71_UNITS: 71}.get(units)
    if depth is None:
        raise ConfigError(f"an Xception of {units} units", hint="there are 13, 21 and 23: Xception-41, -65 and -71")
    return {"backbone": f"xception{depth}", "xception_layout": "timm"} | width(tensors, "stem.0.conv.weight", 32)


def unet_resnet(tensors: Tensors, output_stride: int) -> Options:
    """decoders/unet/decoder.py."""
    del output_stride
    return resnet(tensors, "encoder.")


V3PLUS_WIDTHS = {"aspp_channels": 256, "low_level_channels": 48, "decoder_channels": 256}
VAINF_V3PLUS = ("classifier.aspp.project.0", "classifier.project.0", "classifier.classifier.0")
SMP_V3PLUS = ("decoder.aspp.0.project.0", "decoder.block1.0", "decoder.block2.0.1")
JFZHANG_V3PLUS = ("aspp.conv1", "decoder.conv1", "decoder.last_conv.0")
KAZUTO_V3PLUS = ("fc1.conv", "reduce.conv", "fc2.conv1.conv")


def v3plus_widths(tensors: Tensors, convolutions: tuple[str, str, str]) -> Options:
    """Widths of DeepLab v3+'s head where they are not the paper's, by the convolutions that give them."""
    found = {name: tensors[f"{conv}.weight"].size(0) for name, conv in zip(V3PLUS_WIDTHS, convolutions, strict=True)}
    return {name: channels for name, channels in found.items() if channels != V3PLUS_WIDTHS[name]}


# ---------------------------------------------------------------- the layouts

TORCHVISION = "https://github.com/pytorch/vision"
VAINF = "https://github.com/VainF/DeepLabV3Plus-Pytorch"
SMP = "https://github.com/qubvel-org/segmentation_models.pytorch"
KAZUTO = "https://github.com/kazuto1011/deeplab-pytorch"
JFZHANG = "https://github.com/jfzhang95/pytorch-deeplab-xception"
TIMM = "https://github.com/huggingface/pytorch-image-models"
DEEPLAB = "http://liangchiehchen.com/projects/DeepLab.html"

STRIDE_UNKNOWN = "the file does not say its output stride; --output-stride does"
CORNERS = (
    "the source stretches its logits over the image, corner to corner; here cell (i, j) is at pixel (i, j) times the "
    "stride, which is the same for sides of a multiple of the stride and one more"
)
RESNET_UNUSED = {"fc.": BACKBONE_HEAD}
VGG_UNUSED = dict.fromkeys(("classifier.", "pre_logits.", "head."), BACKBONE_HEAD)
SHARED = {"shared075.": "a copy of the weights for scale 0.75", "shared05.": "a copy of the weights for scale 0.5"}

JFZHANG_HEAD = {
    **{f"aspp.aspp{n + 1}.atrous_conv.": f"aspp.branches.{n}.0." for n in range(4)},
    **{f"aspp.aspp{n + 1}.bn.": f"aspp.branches.{n}.1." for n in range(4)},
    "aspp.global_avg_pool.1.": "aspp.image.0.",
    "aspp.global_avg_pool.2.": "aspp.image.1.",
    "aspp.conv1.": "aspp.project.0.",
    "aspp.bn1.": "aspp.project.1.",
    "decoder.conv1.": "reduce.0.",
    "decoder.bn1.": "reduce.1.",
    "decoder.last_conv.0.": "decoder.0.0.",
    "decoder.last_conv.1.": "decoder.0.1.",
    "decoder.last_conv.4.": "decoder.1.0.",
    "decoder.last_conv.5.": "decoder.1.1.",
    "decoder.last_conv.8.": "logits.",
}

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="torchvision-deeplab-v3",
        title="torchvision's DeepLab v3",
        url=TORCHVISION,
        marks=("backbone.conv1.weight", "classifier.0.convs.4.1.weight", "classifier.4.weight"),
        architecture="deeplab_v3",
        options=torchvision_v3,
        rules={
            "backbone.": "backbone.",
            **aspp("classifier.0.", "context.aspp."),
            "classifier.1.": "context.conv.0.",
            "classifier.2.": "context.conv.1.",
            "classifier.4.": "logits.",
            "aux_classifier.0.": "aux.0.0.",
            "aux_classifier.1.": "aux.0.1.",
            "aux_classifier.4.": "aux.2.",
        },
        scores="classifier.4.weight",
        output_stride=8,
    ),
    Layout(
        name="torchvision-fcn",
        title="torchvision's FCN on a dilated ResNet",
        url=TORCHVISION,
        marks=("backbone.conv1.weight", "classifier.0.weight", "classifier.4.weight"),
        architecture="fcn_dilated",
        options=torchvision_fcn,
        rules={
            "backbone.": "backbone.",
            "classifier.0.": "head.0.0.",
            "classifier.1.": "head.0.1.",
            "classifier.4.": "logits.",
            "aux_classifier.0.": "aux.0.0.",
            "aux_classifier.1.": "aux.0.1.",
            "aux_classifier.4.": "aux.2.",
        },
        scores="classifier.4.weight",
        output_stride=8,
    ),
    Layout(
        name="vainf-deeplab-v3",
        title="VainF's DeepLab v3",
        url=VAINF,
        marks=("backbone.conv1.weight", "classifier.classifier.0.convs.4.1.weight", "classifier.classifier.4.weight"),
        architecture="deeplab_v3",
        options=torchvision_v3,
        rules={
            "backbone.": "backbone.",
            **aspp("classifier.classifier.0.", "context.aspp."),
            "classifier.classifier.1.": "context.conv.0.",
            "classifier.classifier.2.": "context.conv.1.",
            "classifier.classifier.4.": "logits.",
        },
        scores="classifier.classifier.4.weight",
        notes=(STRIDE_UNKNOWN,),
    ),
    Layout(
        name="vainf-deeplab-v3plus",
        title="VainF's DeepLab v3+",
        url=VAINF,
        marks=("backbone.conv1.weight", "classifier.aspp.convs.4.1.weight", "classifier.classifier.3.weight"),
        architecture="deeplab_v3plus",
        options=vainf_v3plus,
        rules={
            "backbone.": "backbone.",
            **aspp("classifier.aspp.", "aspp."),
            "classifier.project.": "reduce.",
            "classifier.classifier.0.": "decoder.0.0.",
            "classifier.classifier.1.": "decoder.0.1.",
            "classifier.classifier.3.": "logits.",
        },
        scores="classifier.classifier.3.weight",
        notes=(STRIDE_UNKNOWN,),
    ),
    Layout(
        name="smp-deeplab-v3",
        title="segmentation_models.pytorch's DeepLabV3",
        url=SMP,
        marks=("encoder.conv1.weight", "decoder.aspp.convs.4.1.weight", "decoder.conv.weight"),
        architecture="deeplab_v3",
        options=smp_v3,
        aliases=(
            (r"^decoder\.0\.", "decoder.aspp."),
            (r"^decoder\.1\.", "decoder.conv."),
            (r"^decoder\.2\.", "decoder.bn."),
        ),
        rules={
            "encoder.": "backbone.",
            **aspp("decoder.aspp.", "context.aspp."),
            "decoder.conv.": "context.conv.0.",
            "decoder.bn.": "context.conv.1.",
            "segmentation_head.0.": "logits.",
        },
        unused={"classification_head.": SECOND_OUTPUT},
        scores="segmentation_head.0.weight",
        output_stride=8,
        notes=(STRIDE_UNKNOWN, CORNERS),
    ),
    Layout(
        name="smp-deeplab-v3plus",
        title="segmentation_models.pytorch's DeepLabV3Plus",
        url=SMP,
        marks=("encoder.conv1.weight", "decoder.aspp.0.convs.4.1.weight", "decoder.block2.0.0.weight"),
        architecture="deeplab_v3plus",
        options=smp_v3plus,
        rules={
            "encoder.": "backbone.",
            "decoder.aspp.0.convs.0.": "aspp.branches.0.",
            **{
                f"decoder.aspp.0.convs.{n}.0.{half}.": f"aspp.branches.{n}.{half}."
                for n in (1, 2, 3)
                for half in (0, 1)
            },
            **{f"decoder.aspp.0.convs.{n}.1.": f"aspp.branches.{n}.2." for n in (1, 2, 3)},
            "decoder.aspp.0.convs.4.1.": "aspp.image.0.",
            "decoder.aspp.0.convs.4.2.": "aspp.image.1.",
            "decoder.aspp.0.project.": "aspp.project.",
            "decoder.aspp.1.": "aspp_conv.",
            "decoder.aspp.2.": "aspp_conv.2.",
            "decoder.block1.": "reduce.",
            "decoder.block2.0.": "decoder.0.",
            "decoder.block2.1.": "decoder.0.2.",
            "segmentation_head.0.": "logits.",
        },
        unused={"classification_head.": SECOND_OUTPUT},
        swapped={"decoder.0.0.weight": 0, "decoder.0.1.weight": 1},
        scores="segmentation_head.0.weight",
        notes=(STRIDE_UNKNOWN, CORNERS),
    ),
    Layout(
        name="smp-unet",
        title="segmentation_models.pytorch's Unet",
        url=SMP,
        marks=("encoder.conv1.weight", "decoder.blocks.4.conv2.0.weight", "segmentation_head.0.weight"),
        architecture="unet_resnet",
        options=unet_resnet,
        rules={
            "encoder.": "backbone.",
            **numbered(5, "decoder.blocks.{}.conv1.", "decoder.{}.0."),
            **numbered(5, "decoder.blocks.{}.conv2.", "decoder.{}.1."),
            "segmentation_head.0.": "logits.",
        },
        unused={"classification_head.": SECOND_OUTPUT},
        scores="segmentation_head.0.weight",
        output_stride=32,
    ),
    Layout(
        name="smp-pspnet",
        title="segmentation_models.pytorch's PSPNet",
        url=SMP,
        marks=("encoder.conv1.weight", "decoder.psp.blocks.0.pool.1.0.weight", "decoder.conv.0.weight"),
        architecture="pspnet_smp",
        options=unet_resnet,
        rules={
            "encoder.": "backbone.",
            **numbered(4, "decoder.psp.blocks.{}.pool.1.", "pooling.levels.{}."),
            "decoder.conv.": "head.0.",
            "segmentation_head.0.": "logits.",
        },
        unused={
            **dict.fromkeys(("encoder.layer3.", "encoder.layer4."), "a stage that the source's network never runs"),
            "classification_head.": SECOND_OUTPUT,
        },
        scores="segmentation_head.0.weight",
        output_stride=8,
        notes=(CORNERS,),
    ),
    Layout(
        name="kazuto-deeplab-v2",
        title="kazuto1011's DeepLab v2 on ResNet",
        url=KAZUTO,
        marks=("base.layer1.conv1.conv.weight", "base.aspp.c0.weight", "base.aspp.c3.bias"),
        architecture="deeplab_v2",
        options=kazuto_v2,
        rules={**kazuto_resnet("base."), **numbered(4, "base.aspp.c{}.", "head.branches.{}.")},
        scores="base.aspp.c0.weight",
        output_stride=8,
        normalisation=CAFFE,
    ),
    Layout(
        name="kazuto-init",
        title="kazuto1011's ResNet, trained on COCO, to begin with",
        url=KAZUTO,
        marks=("layer1.conv1.conv.weight", "layer5.block1.reduce.conv.weight"),
        without=("aspp.", "reduce."),
        architecture="deeplab_v2",
        options=kazuto_init,
        rules=kazuto_resnet(""),
        unused=RESNET_UNUSED,
        output_stride=8,
        normalisation=CAFFE,
        notes=("trained with strides in the 1x1 convolutions and a stem that rounds up",),
    ),
    Layout(
        name="kazuto-deeplab-v3plus",
        title="kazuto1011's DeepLab v3+ on ResNet",
        url=KAZUTO,
        marks=("layer1.conv1.conv.weight", "aspp.stages.imagepool.conv.conv.weight", "fc2.conv3.weight"),
        architecture="deeplab_v3plus",
        options=kazuto_v3plus,
        rules={
            **kazuto_resnet(""),
            **{f"aspp.stages.c{n}.{part}.": f"aspp.branches.{n}.{at}." for n in range(4) for at, part in STEM},
            "aspp.stages.imagepool.conv.conv.": "aspp.image.0.",
            "aspp.stages.imagepool.conv.bn.": "aspp.image.1.",
            "fc1.conv.": "aspp.project.0.",
            "fc1.bn.": "aspp.project.1.",
            "reduce.conv.": "reduce.0.",
            "reduce.bn.": "reduce.1.",
            **{f"fc2.conv{n + 1}.{part}.": f"decoder.{n}.{at}." for n in (0, 1) for at, part in STEM},
            "fc2.conv3.": "logits.",
        },
        swapped={"decoder.0.0.weight": 1},
        scores="fc2.conv3.weight",
        normalisation=CAFFE,
        notes=(STRIDE_UNKNOWN,),
    ),
    Layout(
        name="jfzhang-deeplab-v3plus",
        title="jfzhang95's DeepLab v3+ on ResNet",
        url=JFZHANG,
        marks=("backbone.layer1.0.conv1.weight", "aspp.aspp1.atrous_conv.weight", "decoder.last_conv.8.weight"),
        architecture="deeplab_v3plus",
        options=jfzhang_v3plus,
        rules={"backbone.": "backbone.", **JFZHANG_HEAD},
        swapped={"decoder.0.0.weight": 1},
        scores="decoder.last_conv.8.weight",
        notes=(STRIDE_UNKNOWN, CORNERS),
    ),
    Layout(
        name="jfzhang-deeplab-v3plus-xception",
        title="jfzhang95's DeepLab v3+ on Xception-65",
        url=JFZHANG,
        marks=("backbone.block1.skip.weight", "aspp.aspp1.atrous_conv.weight", "decoder.last_conv.8.weight"),
        architecture="deeplab_v3plus",
        options=jfzhang_v3plus,
        rules={**jfzhang_xception(), **JFZHANG_HEAD},
        swapped={"decoder.0.0.weight": 1},
        first=("backbone.stem.0.weight",),
        scores="decoder.last_conv.8.weight",
        notes=(STRIDE_UNKNOWN, CORNERS, "its in-place ReLUs reach the shortcuts, as they do here"),
    ),
    Layout(
        name="caffe-deeplab-v1",
        title="the authors' DeepLab v1",
        url=DEEPLAB,
        marks=("conv1_1.weight", "conv5_3.weight", "fc6.weight", "fc7.weight", "scores.weight"),
        architecture="deeplab_v1",
        options=caffe_v1,
        aliases=((r"^fc8_[^.]+", "scores"),),
        rules={
            **caffe_vgg(),
            "fc6.": "classifier.fc6.",
            "fc7.": "classifier.fc7.",
            "scores.": "classifier.fc8.",
            **{
                f"{theirs}_{part}.": f"branches.{branch}.fc{number}."
                for branch, theirs in enumerate(("data", "pool1", "pool2", "pool3", "pool4"))
                for number, part in enumerate(("conv", "fc", "ms"), 6)
            },
        },
        first=("backbone.stages.0.0.weight", "branches.0.fc6.weight"),
        scores="scores.weight",
        output_stride=8,
        normalisation=CAFFE,
        notes=("scores of multi-scale branches are added at every 8th pixel, not at every pixel",),
    ),
    Layout(
        name="caffe-deeplab-v2-vgg",
        title="the authors' DeepLab v2 on VGG-16",
        url=DEEPLAB,
        marks=("conv1_1.weight", "fc6_1.weight", "fc7_4.weight", "fc8_1.weight", "fc8_4.weight"),
        architecture="deeplab_v2",
        options=caffe_v2_vgg,
        aliases=((r"^fc8_[^.]+_([1-4])\.", r"fc8_\1."),),
        rules={
            **caffe_vgg(),
            **{f"fc{n}_{branch + 1}.": f"head.branches.{branch}.fc{n}." for n in (6, 7, 8) for branch in range(4)},
        },
        first=("backbone.stages.0.0.weight",),
        scores="fc8_1.weight",
        output_stride=8,
        normalisation=CAFFE,
        notes=("rates 6, 12, 18, 24 (ASPP-L); a file of ASPP-S has the same shapes: --options head=aspp_s",),
    ),
    Layout(
        name="caffe-deeplab-v2-resnet",
        title="the authors' DeepLab v2 on ResNet",
        url=DEEPLAB,
        marks=("conv1.weight", "bn_conv1.running_mean", "scale_conv1.weight", "res5c_branch2c.weight", "fc1_c0.weight"),
        architecture="deeplab_v2",
        options=caffe_v2_resnet,
        aliases=((r"^(?=.*res(075|05))", r"shared\1."), (r"^fc1_[^.]+_c([0-3])\.", r"fc1_c\1.")),
        rules={**caffe_resnet(), **numbered(4, "fc1_c{}.", "head.branches.{}.")},
        unused=SHARED,
        scores="fc1_c0.weight",
        output_stride=8,
        normalisation=CAFFE,
    ),
    Layout(
        name="resnet",
        title="a ResNet of torchvision or timm, to begin with",
        url=TORCHVISION,
        marks=("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv2.weight"),
        architecture="deeplab_v3plus",
        options=backbone_resnet,
        rules={part: f"backbone.{part}" for part in ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")},
        unused=RESNET_UNUSED,
    ),
    Layout(
        name="vgg16",
        title="VGG-16 of torchvision or timm, to begin with",
        url=TORCHVISION,
        marks=("features.0.weight", "features.28.weight"),
        without=("features.1.",),
        architecture="deeplab_v1",
        options=backbone_vgg,
        rules=torchvision_vgg(batch_norm=False),
        unused=VGG_UNUSED,
        first=("backbone.stages.0.0.weight",),
        output_stride=8,
    ),
    Layout(
        name="vgg16-bn",
        title="VGG-16 with batch norm of torchvision or timm, to begin with",
        url=TORCHVISION,
        marks=("features.0.weight", "features.1.running_mean", "features.40.weight"),
        architecture="segnet",
        options=backbone_vgg,
        rules=torchvision_vgg(batch_norm=True),
        unused=VGG_UNUSED,
        first=("backbone.stages.0.0.weight",),
        output_stride=32,
    ),
    Layout(
        name="caffe-vgg16",
        title="VGG-16 in Caffe, to begin with",
        url="https://www.robots.ox.ac.uk/~vgg/research/very_deep",
        marks=("conv1_1.weight", "conv5_3.weight"),
        without=("fc8_", "fc6_1."),
        architecture="deeplab_v1",
        options=backbone_caffe_vgg,
        rules=caffe_vgg(),
        unused=dict.fromkeys(("fc6.", "fc7.", "fc8."), BACKBONE_HEAD),
        first=("backbone.stages.0.0.weight",),
        output_stride=8,
        normalisation=CAFFE,
    ),
    Layout(
        name="mobilenet-v2",
        title="torchvision's MobileNetV2, to begin with",
        url=TORCHVISION,
        marks=("features.0.0.weight", "features.1.conv.0.0.weight", "features.17.conv.3.weight"),
        architecture="deeplab_v3plus",
        options=backbone_mobilenet,
        rules={f"features.{number}.": f"backbone.features.{number}." for number in range(18)},
        unused={"features.18.": BACKBONE_HEAD, "classifier.": BACKBONE_HEAD},
        first=("backbone.features.0.0.weight",),
    ),
    Layout(
        name="timm-xception",
        title="timm's aligned Xception, to begin with",
        url=TIMM,
        marks=("stem.0.conv.weight", "blocks.0.stack.conv1.conv_dw.weight"),
        architecture="deeplab_v3plus",
        options=backbone_xception,
        rules=timm_xception(),
        unused={"head.": BACKBONE_HEAD},
        first=("backbone.stem.0.weight",),
        normalisation=INCEPTION,
    ),
)
"""All that can be read."""

REFUSED: Mapping[str, tuple[str, ...]] = {
    "torchvision's LRASPP on MobileNetV3-Large: there is no such network here": (
        "backbone.0.0.weight",
        "classifier.cbr.0.weight",
    ),
    "torchvision's DeepLab v3 on MobileNetV3-Large: no network here has that backbone": (
        "backbone.0.0.weight",
        "classifier.0.convs.4.1.weight",
    ),
    "VainF's MobileNetV2 pads in front of its widening convolutions, ours behind them: borders would differ": (
        "backbone.low_level_features.0.0.weight",
    ),
    "VainF's HRNet: no network here has that backbone": ("backbone.stage2.0.branch1.0.conv1.weight",),
    "jfzhang95's MobileNetV2 pads in front of its widening convolutions, ours behind them: borders would differ": (
        "backbone.features.0.0.weight",
        "aspp.aspp1.atrous_conv.weight",
    ),
    "jfzhang95's DRN: no network here has that backbone": ("backbone.layer0.0.weight", "aspp.aspp1.atrous_conv.weight"),
    "timm's MobileNetV2 has names and blocks of timm's own; torchvision's can be read": (
        "conv_stem.weight",
        "blocks.0.0.conv_dw.weight",
    ),
}
"""Known files that fit no network here, each with the reason, by names they have."""

BY_NAME = {layout.name: layout for layout in LAYOUTS}
