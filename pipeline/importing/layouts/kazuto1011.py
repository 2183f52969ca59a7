"""Weights of kazuto1011's deeplab-pytorch, https://github.com/kazuto1011/deeplab-pytorch."""

from pipeline.importing.layouts.layout import RESNET_UNUSED, STRIDE_UNKNOWN, WeightsLayout
from pipeline.importing.layouts.names import CONV_AND_NORM, RESNET101_BLOCKS, numbered_rules
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, has_prefix, v3plus_widths, width_option
from pipeline.models.normalisation import CAFFE

KAZUTO = "https://github.com/kazuto1011/deeplab-pytorch"
CONVOLUTIONS = ("reduce", "conv3x3", "increase")
"""Names of a block's convolutions, in order."""


def _resnet_rules(source: str) -> dict[str, str]:
    """Rules for the ResNet: stages 2 to 5, blocks from 1, convolutions by name. libs/models/resnet.py."""
    rules = {f"{source}layer1.conv1.conv.": "backbone.conv1.", f"{source}layer1.conv1.bn.": "backbone.bn1."}
    for stage, blocks in enumerate(RESNET101_BLOCKS, 1):
        for block in range(blocks):
            theirs, ours = f"{source}layer{stage + 1}.block{block + 1}.", f"backbone.layer{stage}.{block}."
            for number, convolution in enumerate(CONVOLUTIONS, 1):
                rules[f"{theirs}{convolution}.conv."] = f"{ours}conv{number}."
                rules[f"{theirs}{convolution}.bn."] = f"{ours}bn{number}."
            rules[f"{theirs}shortcut.conv."] = f"{ours}downsample.0."
            rules[f"{theirs}shortcut.bn."] = f"{ours}downsample.1."
    return rules


def _resnet_depth(tensors: Tensors, prefix: str) -> ShapeOptions:
    """`backbone`, depth 50 or 101 by the blocks of the fourth stage, and `width_multiplier`."""
    depth = 101 if has_prefix(tensors, f"{prefix}layer4.block23.") else 50
    return {"backbone": f"resnet{depth}"} | width_option(tensors, f"{prefix}layer1.conv1.conv.weight", 64)


def _deeplab_v2(tensors: Tensors) -> ShapeOptions:
    """DeepLab v2 wrapped in `base`, which pools the scores of three scales: libs/models/msc.py."""
    return _resnet_depth(tensors, "base.") | {"head": "aspp_l", "msc": True}


def _resnet(tensors: Tensors) -> ShapeOptions:
    """Options of the ResNet alone."""
    return _resnet_depth(tensors, "")


def _deeplab_v3plus(tensors: Tensors) -> ShapeOptions:
    """DeepLab v3+ with multi-grid (1, 2, 4) and strides in the 1x1: libs/models/deeplabv3plus.py, main.py."""
    return (
        _resnet_depth(tensors, "")
        | {"multi_grid": (1, 2, 4), "first_block": "own", "stride_in": "1x1", "ceil_pool": True}
        | v3plus_widths(tensors, ("fc1.conv", "reduce.conv", "fc2.conv1.conv"))
    )


KAZUTO_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="kazuto-deeplab-v2",
        title="kazuto1011's DeepLab v2 on ResNet",
        url=KAZUTO,
        marks=("base.layer1.conv1.conv.weight", "base.aspp.c0.weight", "base.aspp.c3.bias"),
        architecture="deeplab_v2",
        options=_deeplab_v2,
        aliases=((r"^scale\.", "base."), (r"\.proj\.", ".shortcut."), (r"^base\.aspp\.stages\.", "base.aspp.")),
        rules={**_resnet_rules("base."), **numbered_rules(4, "base.aspp.c{}.", "head.branches.{}.")},
        scores="base.aspp.c0.weight",
        output_stride=8,
        normalisation=CAFFE,
    ),
    WeightsLayout(
        name="kazuto-init",
        title="kazuto1011's ResNet backbone, trained on COCO",
        url=KAZUTO,
        marks=("layer1.conv1.conv.weight", "layer5.block1.reduce.conv.weight"),
        without=("aspp.", "reduce."),
        architecture="deeplab_v2",
        options=_resnet,
        rules=_resnet_rules(""),
        unused=RESNET_UNUSED,
        output_stride=8,
        normalisation=CAFFE,
        notes=("trained with strides in the 1x1 convolutions and a stem that rounds up",),
    ),
    WeightsLayout(
        name="kazuto-deeplab-v3plus",
        title="kazuto1011's DeepLab v3+ on ResNet",
        url=KAZUTO,
        marks=("layer1.conv1.conv.weight", "aspp.stages.imagepool.conv.conv.weight", "fc2.conv3.weight"),
        architecture="deeplab_v3plus",
        options=_deeplab_v3plus,
        rules={
            **_resnet_rules(""),
            **{f"aspp.stages.c{n}.{part}.": f"aspp.branches.{n}.{at}." for n in range(4) for at, part in CONV_AND_NORM},
            "aspp.stages.imagepool.conv.conv.": "aspp.image.0.",
            "aspp.stages.imagepool.conv.bn.": "aspp.image.1.",
            "fc1.conv.": "aspp.project.0.",
            "fc1.bn.": "aspp.project.1.",
            "reduce.conv.": "reduce.0.",
            "reduce.bn.": "reduce.1.",
            **{f"fc2.conv{n + 1}.{part}.": f"decoder.{n}.{at}." for n in (0, 1) for at, part in CONV_AND_NORM},
            "fc2.conv3.": "logits.",
        },
        swapped={"decoder.0.0.weight": (1, "reduce.0.weight")},
        scores="fc2.conv3.weight",
        normalisation=CAFFE,
        notes=(STRIDE_UNKNOWN,),
    ),
)
