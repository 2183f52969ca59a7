"""Caffe weights of Dilation by its authors, https://github.com/fyu/dilation: models/*_deploy.prototxt and datasets/.

Files differ in the data that they were trained on, which only the depth and the names tell: VOC's (`ct_`), KITTI's with
7 levels, CamVid's with 8, Cityscapes' with 10, and the front end alone.
"""

from functools import partial

import torch

from pipeline.errors import ConfigError
from pipeline.importing.layouts.layout import WeightsLayout
from pipeline.importing.layouts.names import caffe_vgg_rules
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, width_option
from pipeline.models.dilation import STRIDE, bilinear_kernel
from pipeline.models.normalisation import subtracted_bgr

DILATION = "https://github.com/fyu/dilation"
LAYERS_BESIDE_LEVELS = 3
"""Levels of a network less the highest number of its `ctx_conv{number}_1`."""
UPSAMPLE = "ctx_upsample.weight"
FRONT = ("conv1_1.weight", "conv5_3.weight", "fc6.weight", "fc7.weight")
"""Names in every file."""

BORDERS = (
    "the source runs on a canvas of fixed size, ours on the image: the context module's zeros begin at the image's "
    "border, and at the right and bottom up to seven pixels behind the last score take its value"
)
CLASSES = (
    "the authors' order of classes: building, tree, sky, car, sign, road, pedestrian, fence, pole, pavement, bicyclist"
)
OWN_DATA = "the mean is that of {}; for a network of other data change card.json"


def _rules(context: str, front: str) -> dict[str, str]:
    """Rules for the prototxt's names; the context module's begin with `context`, and `front` are the front's scores."""
    return {
        **caffe_vgg_rules(),
        "fc6.": "classifier.0.",
        "fc7.": "classifier.3.",
        front: "front.",
        f"{context}conv1_1.": "context.dilated.0.",
        f"{context}conv1_2.": "context.dilated.2.",
        **{f"{context}conv{number}_1.": f"context.dilated.{2 * number}." for number in range(2, 8)},
        f"{context}fc1.": "context.last.0.",
        f"{context}final.": "context.scores.",
    }


def _front(tensors: Tensors) -> ShapeOptions:
    return {"context": "none"} | width_option(tensors, "conv1_1.weight", 64)


def _small(tensors: Tensors) -> ShapeOptions:
    """Small context module; the deconvolution must be the bilinear one, since ours has no weights."""
    highest = max(number for number in range(1, 8) if f"ctx_conv{number}_1.weight" in tensors)
    options = {"context": "small", "levels": highest + LAYERS_BESIDE_LEVELS}
    if UPSAMPLE in tensors:
        weight = tensors[UPSAMPLE].float()
        if weight.dim() != 4 or not torch.allclose(weight, bilinear_kernel(STRIDE).expand_as(weight), atol=1e-4):
            raise ConfigError(f"{UPSAMPLE} is not the bilinear interpolation by {STRIDE}, the only one supported")
        options["deconvolution"] = True
    return options | width_option(tensors, "conv1_1.weight", 64)


def _large(tensors: Tensors) -> ShapeOptions:
    return {"context": "large", "levels": 8} | width_option(tensors, "conv1_1.weight", 64)


VOC_MEAN = subtracted_bgr(102.93, 111.36, 116.52)
"""train.py, the default of `--mean`."""
CAMVID_MEAN = subtracted_bgr(110.70313206, 108.77808759, 105.41212523)
KITTI_MEAN = subtracted_bgr(96.19429688, 95.55136972, 91.34692262)
"""datasets/camvid.json and kitti.json."""
CITYSCAPES_MEAN = subtracted_bgr(72.39, 82.91, 73.16)
"""Mean of Cityscapes' training images, as users of the file give it; the authors' repository has no cityscapes.json."""


_dilation_layout = partial(
    WeightsLayout, url=DILATION, architecture="dilation", first=("backbone.stages.0.0.weight",), output_stride=8
)
_small_layout = partial(
    _dilation_layout,
    options=_small,
    rules=_rules("ctx_", "final."),
    unused={UPSAMPLE: "a fixed bilinear interpolation"},
    scores="ctx_final.weight",
)

DILATION_CAFFE_LAYOUTS: tuple[WeightsLayout, ...] = (
    _dilation_layout(
        name="caffe-dilation-voc",
        title="the authors' Dilation8 for VOC",
        marks=(*FRONT, "fc-final.weight", "ct_conv5_1.weight", "ct_final.weight"),
        options=_large,
        rules=_rules("ct_", "fc-final."),
        scores="ct_final.weight",
        normalisation=VOC_MEAN,
        notes=(BORDERS,),
    ),
    _small_layout(
        name="caffe-dilation-kitti",
        title="the authors' Dilation7 for KITTI",
        marks=(*FRONT, "final.weight", "ctx_conv4_1.weight", "ctx_final.weight"),
        without=("ctx_conv5_1.",),
        normalisation=KITTI_MEAN,
        notes=(BORDERS, CLASSES, OWN_DATA.format("KITTI")),
    ),
    _small_layout(
        name="caffe-dilation-camvid",
        title="the authors' Dilation8 for CamVid",
        marks=(*FRONT, "final.weight", "ctx_conv5_1.weight", "ctx_final.weight"),
        without=("ctx_conv6_1.",),
        normalisation=CAMVID_MEAN,
        notes=(BORDERS, CLASSES, OWN_DATA.format("CamVid")),
    ),
    _small_layout(
        name="caffe-dilation-cityscapes",
        title="the authors' Dilation10 for Cityscapes",
        marks=(*FRONT, "final.weight", "ctx_conv7_1.weight", "ctx_final.weight"),
        normalisation=CITYSCAPES_MEAN,
        notes=(BORDERS, OWN_DATA.format("Cityscapes")),
    ),
    _dilation_layout(
        name="caffe-dilation-front",
        title="the authors' front end of Dilation",
        marks=(*FRONT, "final.weight"),
        without=("ctx_",),
        options=_front,
        rules=_rules("ctx_", "final."),
        scores="final.weight",
        normalisation=VOC_MEAN,
        notes=(OWN_DATA.format("VOC"),),
    ),
)
