"""Weights of torchvision's segmentation networks, https://github.com/pytorch/vision."""

from pipeline.importing.layouts.layout import WeightsLayout
from pipeline.importing.layouts.names import aspp_rules
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, has_prefix, resnet_options, uniform_resnet_options

TORCHVISION = "https://github.com/pytorch/vision"


def torchvision_v3(tensors: Tensors) -> ShapeOptions:
    """DeepLab v3 without multi-grid and with a 3x3 after ASPP: models/segmentation/deeplabv3.py."""
    aux = {"aux": True} if has_prefix(tensors, "aux_classifier.") else {}
    return uniform_resnet_options(tensors, "backbone.") | {"head_conv": True} | aux


def _fcn(tensors: Tensors) -> ShapeOptions:
    """FCN on a dilated ResNet: models/segmentation/fcn.py."""
    return resnet_options(tensors, "backbone.") | {"aux": has_prefix(tensors, "aux_classifier.")}


TORCHVISION_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="torchvision-deeplab-v3",
        title="torchvision's DeepLab v3",
        url=TORCHVISION,
        marks=("backbone.conv1.weight", "classifier.0.convs.4.1.weight", "classifier.4.weight"),
        architecture="deeplab_v3",
        options=torchvision_v3,
        rules={
            "backbone.": "backbone.",
            **aspp_rules("classifier.0.", "context.aspp."),
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
    WeightsLayout(
        name="torchvision-fcn",
        title="torchvision's FCN on a dilated ResNet",
        url=TORCHVISION,
        marks=("backbone.conv1.weight", "classifier.0.weight", "classifier.4.weight"),
        architecture="fcn_dilated",
        options=_fcn,
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
)
