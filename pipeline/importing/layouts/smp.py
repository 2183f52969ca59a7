"""Weights of segmentation_models.pytorch, https://github.com/qubvel-org/segmentation_models.pytorch."""

from functools import partial

from pipeline.importing.layouts.layout import CORNERS, STRIDE_UNKNOWN, WeightsLayout
from pipeline.importing.layouts.names import aspp_rules, numbered_rules
from pipeline.importing.layouts.shapes import (
    ShapeOptions,
    Tensors,
    resnet_options,
    uniform_resnet_options,
    v3plus_widths,
)

SMP = "https://github.com/qubvel-org/segmentation_models.pytorch"
SECOND_OUTPUT = "scores of whole images"
"""Reason for unused tensors."""


def _deeplab_v3(tensors: Tensors) -> ShapeOptions:
    """DeepLab v3; all blocks of a dilated stage have its rate: encoders/_utils.py, `replace_strides_with_dilation`."""
    return uniform_resnet_options(tensors, "encoder.") | {
        "first_block": "own",
        "head_conv": True,
        "align_corners": True,
    }


def _deeplab_v3plus(tensors: Tensors) -> ShapeOptions:
    """DeepLab v3+ with separable 3x3s, one after ASPP and one in the decoder: decoders/deeplabv3/decoder.py."""
    return (
        uniform_resnet_options(tensors, "encoder.")
        | {
            "first_block": "own",
            "separable": "plain",
            "aspp_conv": True,
            "decoder_convs": 1,
            "align_corners": True,
        }
        | v3plus_widths(tensors, ("decoder.aspp.0.project.0", "decoder.block1.0", "decoder.block2.0.1"))
    )


SMP_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="smp-deeplab-v3",
        title="segmentation_models.pytorch's DeepLabV3",
        url=SMP,
        marks=("encoder.conv1.weight", "decoder.aspp.convs.4.1.weight", "decoder.conv.weight"),
        architecture="deeplab_v3",
        options=_deeplab_v3,
        rates=(12, 24, 36),
        aliases=(
            (r"^decoder\.0\.", "decoder.aspp."),
            (r"^decoder\.1\.", "decoder.conv."),
            (r"^decoder\.2\.", "decoder.bn."),
        ),
        rules={
            "encoder.": "backbone.",
            **aspp_rules("decoder.aspp.", "context.aspp."),
            "decoder.conv.": "context.conv.0.",
            "decoder.bn.": "context.conv.1.",
            "segmentation_head.0.": "logits.",
        },
        unused={"classification_head.": SECOND_OUTPUT},
        scores="segmentation_head.0.weight",
        output_stride=8,
        notes=(STRIDE_UNKNOWN, CORNERS),
    ),
    WeightsLayout(
        name="smp-deeplab-v3plus",
        title="segmentation_models.pytorch's DeepLabV3Plus",
        url=SMP,
        marks=("encoder.conv1.weight", "decoder.aspp.0.convs.4.1.weight", "decoder.block2.0.0.weight"),
        architecture="deeplab_v3plus",
        options=_deeplab_v3plus,
        rates=(12, 24, 36),
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
        swapped={"decoder.0.0.weight": (0, "reduce.0.weight"), "decoder.0.1.weight": (1, "reduce.0.weight")},
        scores="segmentation_head.0.weight",
        notes=(STRIDE_UNKNOWN, CORNERS),
    ),
    WeightsLayout(
        name="smp-unet",
        title="segmentation_models.pytorch's Unet",
        url=SMP,
        marks=("encoder.conv1.weight", "decoder.blocks.4.conv2.0.weight", "segmentation_head.0.weight"),
        architecture="unet_resnet",
        options=partial(resnet_options, prefix="encoder."),
        rules={
            "encoder.": "backbone.",
            **numbered_rules(5, "decoder.blocks.{}.conv1.", "decoder.{}.0."),
            **numbered_rules(5, "decoder.blocks.{}.conv2.", "decoder.{}.1."),
            "segmentation_head.0.": "logits.",
        },
        unused={"classification_head.": SECOND_OUTPUT},
        scores="segmentation_head.0.weight",
        output_stride=32,
    ),
    WeightsLayout(
        name="smp-pspnet",
        title="segmentation_models.pytorch's PSPNet",
        url=SMP,
        marks=("encoder.conv1.weight", "decoder.psp.blocks.0.pool.1.0.weight", "decoder.conv.0.weight"),
        architecture="pspnet_smp",
        options=partial(resnet_options, prefix="encoder."),
        rules={
            "encoder.": "backbone.",
            **numbered_rules(4, "decoder.psp.blocks.{}.pool.1.", "pooling.levels.{}."),
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
)
