"""Weights of jfzhang95's pytorch-deeplab-xception, https://github.com/jfzhang95/pytorch-deeplab-xception."""

from pipeline.importing.layouts.layout import CORNERS, STRIDE_UNKNOWN, WeightsLayout
from pipeline.importing.layouts.names import CONV_AND_NORM, XCEPTION65_UNITS
from pipeline.importing.layouts.shapes import (
    ShapeOptions,
    Tensors,
    has_prefix,
    resnet_options,
    v3plus_widths,
    width_option,
)

JFZHANG = "https://github.com/jfzhang95/pytorch-deeplab-xception"
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


def _xception_rules() -> dict[str, str]:
    """Rules for Xception-65; `rep` counts ReLUs and batch norms, blocks 1 and 2 begin without ReLU.

    modeling/backbone/xception.py.
    """
    rules = {
        f"backbone.{part}{number + 1}.": f"backbone.stem.{3 * number + at}."
        for number in (0, 1)
        for at, part in CONV_AND_NORM
    }
    for unit in range(XCEPTION65_UNITS - 1):
        theirs, ours = f"backbone.block{unit + 1}.", f"backbone.units.{unit}."
        rules |= {f"{theirs}skip.": f"{ours}shortcut.0.", f"{theirs}skipbn.": f"{ours}shortcut.1."}
        for conv in range(3):
            at = 3 * conv + (0 if unit < 2 else 1)
            rules |= _separable_rules(f"{theirs}rep.{at}.", f"{theirs}rep.{at + 1}.", f"{ours}convs.{conv}.")
    for conv in range(3):
        last = f"backbone.units.{XCEPTION65_UNITS - 1}.convs.{conv}."
        rules |= _separable_rules(f"backbone.conv{conv + 3}.", f"backbone.bn{conv + 3}.", last)
    return rules


def _separable_rules(conv: str, norm: str, ours: str) -> dict[str, str]:
    return {
        f"{conv}conv1.": f"{ours}depthwise.",
        f"{conv}bn.": f"{ours}depthwise_bn.",
        f"{conv}pointwise.": f"{ours}pointwise.",
        norm: f"{ours}pointwise_bn.",
    }


def _deeplab_v3plus(tensors: Tensors) -> ShapeOptions:
    """DeepLab v3+ with multi-grid (1, 2, 4) and aligned corners: modeling/backbone/resnet.py, modeling/decoder.py."""
    if has_prefix(tensors, "backbone.block1."):
        backbone = {"backbone": "xception65", "xception_layout": "jfzhang"} | width_option(
            tensors, "backbone.conv1.weight", 32
        )
    else:
        backbone = resnet_options(tensors, "backbone.") | {"multi_grid": (1, 2, 4), "first_block": "own"}
    return (
        backbone
        | {"align_corners": True}
        | v3plus_widths(tensors, ("aspp.conv1", "decoder.conv1", "decoder.last_conv.0"))
    )


JFZHANG_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="jfzhang-deeplab-v3plus",
        title="jfzhang95's DeepLab v3+ on ResNet",
        url=JFZHANG,
        marks=("backbone.layer1.0.conv1.weight", "aspp.aspp1.atrous_conv.weight", "decoder.last_conv.8.weight"),
        architecture="deeplab_v3plus",
        options=_deeplab_v3plus,
        rules={"backbone.": "backbone.", **JFZHANG_HEAD},
        swapped={"decoder.0.0.weight": (1, "reduce.0.weight")},
        scores="decoder.last_conv.8.weight",
        notes=(STRIDE_UNKNOWN, CORNERS),
    ),
    WeightsLayout(
        name="jfzhang-deeplab-v3plus-xception",
        title="jfzhang95's DeepLab v3+ on Xception-65",
        url=JFZHANG,
        marks=("backbone.block1.skip.weight", "aspp.aspp1.atrous_conv.weight", "decoder.last_conv.8.weight"),
        architecture="deeplab_v3plus",
        options=_deeplab_v3plus,
        rules={**_xception_rules(), **JFZHANG_HEAD},
        swapped={"decoder.0.0.weight": (1, "reduce.0.weight")},
        first=("backbone.stem.0.weight",),
        scores="decoder.last_conv.8.weight",
        notes=(STRIDE_UNKNOWN, CORNERS, "its in-place ReLUs reach the shortcuts, as they do here"),
    ),
)
