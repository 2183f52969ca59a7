"""Weights of hszhao's semseg, https://github.com/hszhao/semseg."""

from pipeline.importing.layouts.layout import WeightsLayout
from pipeline.importing.layouts.names import numbered_rules
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, has_prefix, resnet_options

SEMSEG = "https://github.com/hszhao/semseg"


def _pspnet(tensors: Tensors) -> ShapeOptions:
    """PSPNet; a deep stem, dilated stages and aligned corners are our defaults too: model/pspnet.py."""
    return resnet_options(tensors, "", stem="layer0.0.weight") | ({} if has_prefix(tensors, "aux.") else {"aux": False})


SEMSEG_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="semseg-pspnet",
        title="hszhao's PSPNet",
        url=SEMSEG,
        marks=("layer0.0.weight", "layer0.6.weight", "ppm.features.3.1.weight", "cls.4.weight"),
        architecture="pspnet",
        options=_pspnet,
        rules={
            **{f"layer0.{3 * n}.": f"backbone.conv{n + 1}." for n in range(3)},
            **{f"layer0.{3 * n + 1}.": f"backbone.bn{n + 1}." for n in range(3)},
            **{f"layer{n}.": f"backbone.layer{n}." for n in range(1, 5)},
            **numbered_rules(4, "ppm.features.{}.1.", "pooling.levels.{}.0."),
            **numbered_rules(4, "ppm.features.{}.2.", "pooling.levels.{}.1."),
            "cls.0.": "head.0.0.",
            "cls.1.": "head.0.1.",
            "cls.4.": "logits.",
            "aux.0.": "aux.0.0.",
            "aux.1.": "aux.0.1.",
            "aux.4.": "aux.2.",
        },
        scores="cls.4.weight",
        output_stride=8,
    ),
)
