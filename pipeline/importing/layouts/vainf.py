"""Weights of VainF's DeepLabV3Plus-Pytorch, https://github.com/VainF/DeepLabV3Plus-Pytorch."""

from pipeline.importing.layouts.layout import STRIDE_UNKNOWN, WeightsLayout
from pipeline.importing.layouts.names import aspp_rules
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, uniform_resnet_options, v3plus_widths
from pipeline.importing.layouts.torchvision import torchvision_v3

VAINF = "https://github.com/VainF/DeepLabV3Plus-Pytorch"


def _deeplab_v3plus(tensors: Tensors) -> ShapeOptions:
    """DeepLab v3+ on torchvision's ResNet, with a decoder of one 3x3: network/_deeplab.py."""
    return (
        uniform_resnet_options(tensors, "backbone.")
        | {"decoder_convs": 1}
        | v3plus_widths(tensors, ("classifier.aspp.project.0", "classifier.project.0", "classifier.classifier.0"))
    )


VAINF_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="vainf-deeplab-v3",
        title="VainF's DeepLab v3",
        url=VAINF,
        marks=("backbone.conv1.weight", "classifier.classifier.0.convs.4.1.weight", "classifier.classifier.4.weight"),
        architecture="deeplab_v3",
        options=torchvision_v3,
        rules={
            "backbone.": "backbone.",
            **aspp_rules("classifier.classifier.0.", "context.aspp."),
            "classifier.classifier.1.": "context.conv.0.",
            "classifier.classifier.2.": "context.conv.1.",
            "classifier.classifier.4.": "logits.",
        },
        scores="classifier.classifier.4.weight",
        notes=(STRIDE_UNKNOWN,),
    ),
    WeightsLayout(
        name="vainf-deeplab-v3plus",
        title="VainF's DeepLab v3+",
        url=VAINF,
        marks=("backbone.conv1.weight", "classifier.aspp.convs.4.1.weight", "classifier.classifier.3.weight"),
        architecture="deeplab_v3plus",
        options=_deeplab_v3plus,
        rules={
            "backbone.": "backbone.",
            **aspp_rules("classifier.aspp.", "aspp."),
            "classifier.project.": "reduce.",
            "classifier.classifier.0.": "decoder.0.0.",
            "classifier.classifier.1.": "decoder.0.1.",
            "classifier.classifier.3.": "logits.",
        },
        scores="classifier.classifier.3.weight",
        notes=(STRIDE_UNKNOWN,),
    ),
)
