"""What other programs call their tensors, and what they do not write down: a table per layout.

A layout maps beginnings of its names to beginnings of ours; of several that fit, the longest counts. What no shape of a
tensor tells (normalisation, order of colours, rates, where a stride is) stands beside the names, with the place in the
source that says so. Nothing here touches a tensor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from pipeline.importing import names, shapes
from pipeline.importing.shapes import ShapeOptions, Tensors
from pipeline.models.normalisation import CAFFE, IMAGENET, INCEPTION, Normalisation


@dataclass(frozen=True, slots=True)
class WeightsLayout:
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
    options: Callable[[Tensors], ShapeOptions]
    """Options of our network, from the tensors under their aliases."""
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
    """The source's default; most files do not say theirs."""
    rates: tuple[int, ...] = ()
    """ASPP's rates where the source has the same at every output stride; ours are doubled at 8."""
    normalisation: Normalisation = IMAGENET
    notes: tuple[str, ...] = ()
    """Where outputs may differ from the source's, and what only a person can know."""

    @property
    def is_backbone(self) -> bool:
        """Whether it is a feature extractor alone: the rest of the network is filled from a seed."""
        return not self.scores


BACKBONE_HEAD = "the classifier of a backbone"
SECOND_OUTPUT = "scores of whole images"


TORCHVISION = "https://github.com/pytorch/vision"
VAINF = "https://github.com/VainF/DeepLabV3Plus-Pytorch"
SMP = "https://github.com/qubvel-org/segmentation_models.pytorch"
SEMSEG = "https://github.com/hszhao/semseg"
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

WEIGHTS_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="torchvision-deeplab-v3",
        title="torchvision's DeepLab v3",
        url=TORCHVISION,
        marks=("backbone.conv1.weight", "classifier.0.convs.4.1.weight", "classifier.4.weight"),
        architecture="deeplab_v3",
        options=shapes.torchvision_v3,
        rules={
            "backbone.": "backbone.",
            **names.aspp("classifier.0.", "context.aspp."),
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
        options=shapes.torchvision_fcn,
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
    WeightsLayout(
        name="vainf-deeplab-v3",
        title="VainF's DeepLab v3",
        url=VAINF,
        marks=("backbone.conv1.weight", "classifier.classifier.0.convs.4.1.weight", "classifier.classifier.4.weight"),
        architecture="deeplab_v3",
        options=shapes.torchvision_v3,
        rules={
            "backbone.": "backbone.",
            **names.aspp("classifier.classifier.0.", "context.aspp."),
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
        options=shapes.vainf_v3plus,
        rules={
            "backbone.": "backbone.",
            **names.aspp("classifier.aspp.", "aspp."),
            "classifier.project.": "reduce.",
            "classifier.classifier.0.": "decoder.0.0.",
            "classifier.classifier.1.": "decoder.0.1.",
            "classifier.classifier.3.": "logits.",
        },
        scores="classifier.classifier.3.weight",
        notes=(STRIDE_UNKNOWN,),
    ),
    WeightsLayout(
        name="smp-deeplab-v3",
        title="segmentation_models.pytorch's DeepLabV3",
        url=SMP,
        marks=("encoder.conv1.weight", "decoder.aspp.convs.4.1.weight", "decoder.conv.weight"),
        architecture="deeplab_v3",
        options=shapes.smp_v3,
        rates=(12, 24, 36),
        aliases=(
            (r"^decoder\.0\.", "decoder.aspp."),
            (r"^decoder\.1\.", "decoder.conv."),
            (r"^decoder\.2\.", "decoder.bn."),
        ),
        rules={
            "encoder.": "backbone.",
            **names.aspp("decoder.aspp.", "context.aspp."),
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
        options=shapes.smp_v3plus,
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
        swapped={"decoder.0.0.weight": 0, "decoder.0.1.weight": 1},
        scores="segmentation_head.0.weight",
        notes=(STRIDE_UNKNOWN, CORNERS),
    ),
    WeightsLayout(
        name="smp-unet",
        title="segmentation_models.pytorch's Unet",
        url=SMP,
        marks=("encoder.conv1.weight", "decoder.blocks.4.conv2.0.weight", "segmentation_head.0.weight"),
        architecture="unet_resnet",
        options=partial(shapes.resnet, prefix="encoder."),
        rules={
            "encoder.": "backbone.",
            **names.numbered(5, "decoder.blocks.{}.conv1.", "decoder.{}.0."),
            **names.numbered(5, "decoder.blocks.{}.conv2.", "decoder.{}.1."),
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
        options=partial(shapes.resnet, prefix="encoder."),
        rules={
            "encoder.": "backbone.",
            **names.numbered(4, "decoder.psp.blocks.{}.pool.1.", "pooling.levels.{}."),
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
    WeightsLayout(
        name="semseg-pspnet",
        title="hszhao's PSPNet",
        url=SEMSEG,
        marks=("layer0.0.weight", "layer0.6.weight", "ppm.features.3.1.weight", "cls.4.weight"),
        architecture="pspnet",
        options=shapes.semseg_pspnet,
        rules={
            **{f"layer0.{3 * n}.": f"backbone.conv{n + 1}." for n in range(3)},
            **{f"layer0.{3 * n + 1}.": f"backbone.bn{n + 1}." for n in range(3)},
            **{f"layer{n}.": f"backbone.layer{n}." for n in range(1, 5)},
            **names.numbered(4, "ppm.features.{}.1.", "pooling.levels.{}.0."),
            **names.numbered(4, "ppm.features.{}.2.", "pooling.levels.{}.1."),
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
    WeightsLayout(
        name="kazuto-deeplab-v2",
        title="kazuto1011's DeepLab v2 on ResNet",
        url=KAZUTO,
        marks=("base.layer1.conv1.conv.weight", "base.aspp.c0.weight", "base.aspp.c3.bias"),
        architecture="deeplab_v2",
        options=shapes.kazuto_v2,
        aliases=((r"^scale\.", "base."), (r"\.proj\.", ".shortcut."), (r"^base\.aspp\.stages\.", "base.aspp.")),
        rules={**names.kazuto_resnet("base."), **names.numbered(4, "base.aspp.c{}.", "head.branches.{}.")},
        scores="base.aspp.c0.weight",
        output_stride=8,
        normalisation=CAFFE,
    ),
    WeightsLayout(
        name="kazuto-init",
        title="kazuto1011's ResNet, trained on COCO, to begin with",
        url=KAZUTO,
        marks=("layer1.conv1.conv.weight", "layer5.block1.reduce.conv.weight"),
        without=("aspp.", "reduce."),
        architecture="deeplab_v2",
        options=shapes.kazuto_init,
        rules=names.kazuto_resnet(""),
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
        options=shapes.kazuto_v3plus,
        rules={
            **names.kazuto_resnet(""),
            **{f"aspp.stages.c{n}.{part}.": f"aspp.branches.{n}.{at}." for n in range(4) for at, part in names.STEM},
            "aspp.stages.imagepool.conv.conv.": "aspp.image.0.",
            "aspp.stages.imagepool.conv.bn.": "aspp.image.1.",
            "fc1.conv.": "aspp.project.0.",
            "fc1.bn.": "aspp.project.1.",
            "reduce.conv.": "reduce.0.",
            "reduce.bn.": "reduce.1.",
            **{f"fc2.conv{n + 1}.{part}.": f"decoder.{n}.{at}." for n in (0, 1) for at, part in names.STEM},
            "fc2.conv3.": "logits.",
        },
        swapped={"decoder.0.0.weight": 1},
        scores="fc2.conv3.weight",
        normalisation=CAFFE,
        notes=(STRIDE_UNKNOWN,),
    ),
    WeightsLayout(
        name="jfzhang-deeplab-v3plus",
        title="jfzhang95's DeepLab v3+ on ResNet",
        url=JFZHANG,
        marks=("backbone.layer1.0.conv1.weight", "aspp.aspp1.atrous_conv.weight", "decoder.last_conv.8.weight"),
        architecture="deeplab_v3plus",
        options=shapes.jfzhang_v3plus,
        rules={"backbone.": "backbone.", **JFZHANG_HEAD},
        swapped={"decoder.0.0.weight": 1},
        scores="decoder.last_conv.8.weight",
        notes=(STRIDE_UNKNOWN, CORNERS),
    ),
    WeightsLayout(
        name="jfzhang-deeplab-v3plus-xception",
        title="jfzhang95's DeepLab v3+ on Xception-65",
        url=JFZHANG,
        marks=("backbone.block1.skip.weight", "aspp.aspp1.atrous_conv.weight", "decoder.last_conv.8.weight"),
        architecture="deeplab_v3plus",
        options=shapes.jfzhang_v3plus,
        rules={**names.jfzhang_xception(), **JFZHANG_HEAD},
        swapped={"decoder.0.0.weight": 1},
        first=("backbone.stem.0.weight",),
        scores="decoder.last_conv.8.weight",
        notes=(STRIDE_UNKNOWN, CORNERS, "its in-place ReLUs reach the shortcuts, as they do here"),
    ),
    WeightsLayout(
        name="caffe-deeplab-v1",
        title="the authors' DeepLab v1",
        url=DEEPLAB,
        marks=("conv1_1.weight", "conv5_3.weight", "fc6.weight", "fc7.weight", "scores.weight"),
        architecture="deeplab_v1",
        options=shapes.caffe_v1,
        aliases=((r"^fc8_[^.]+", "scores"),),
        rules={
            **names.caffe_vgg(),
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
    WeightsLayout(
        name="caffe-deeplab-v2-vgg",
        title="the authors' DeepLab v2 on VGG-16",
        url=DEEPLAB,
        marks=("conv1_1.weight", "fc6_1.weight", "fc7_4.weight", "fc8_1.weight", "fc8_4.weight"),
        architecture="deeplab_v2",
        options=shapes.caffe_v2_vgg,
        aliases=((r"^fc8_[^.]+_([1-4])\.", r"fc8_\1."),),
        rules={
            **names.caffe_vgg(),
            **{f"fc{n}_{branch + 1}.": f"head.branches.{branch}.fc{n}." for n in (6, 7, 8) for branch in range(4)},
        },
        first=("backbone.stages.0.0.weight",),
        scores="fc8_1.weight",
        output_stride=8,
        normalisation=CAFFE,
        notes=("rates 6, 12, 18, 24 (ASPP-L); a file of ASPP-S has the same shapes: --options head=aspp_s",),
    ),
    WeightsLayout(
        name="caffe-deeplab-v2-resnet",
        title="the authors' DeepLab v2 on ResNet",
        url=DEEPLAB,
        marks=("conv1.weight", "bn_conv1.running_mean", "scale_conv1.weight", "res5c_branch2c.weight", "fc1_c0.weight"),
        architecture="deeplab_v2",
        options=shapes.caffe_v2_resnet,
        aliases=((r"^(?=.*res(075|05))", r"shared\1."), (r"^fc1_[^.]+_c([0-3])\.", r"fc1_c\1.")),
        rules={**names.caffe_resnet(), **names.numbered(4, "fc1_c{}.", "head.branches.{}.")},
        unused=SHARED,
        scores="fc1_c0.weight",
        output_stride=8,
        normalisation=CAFFE,
    ),
    WeightsLayout(
        name="resnet",
        title="a ResNet of torchvision or timm, to begin with",
        url=TORCHVISION,
        marks=("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv2.weight"),
        architecture="deeplab_v3plus",
        options=partial(shapes.resnet, prefix=""),
        rules={part: f"backbone.{part}" for part in ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")},
        unused=RESNET_UNUSED,
    ),
    WeightsLayout(
        name="vgg16",
        title="VGG-16 of torchvision or timm, to begin with",
        url=TORCHVISION,
        marks=("features.0.weight", "features.28.weight"),
        without=("features.1.",),
        architecture="deeplab_v1",
        options=shapes.backbone_vgg,
        rules=names.torchvision_vgg(batch_norm=False),
        unused=VGG_UNUSED,
        first=("backbone.stages.0.0.weight",),
        output_stride=8,
    ),
    WeightsLayout(
        name="vgg16-bn",
        title="VGG-16 with batch norm of torchvision or timm, to begin with",
        url=TORCHVISION,
        marks=("features.0.weight", "features.1.running_mean", "features.40.weight"),
        architecture="segnet",
        options=shapes.backbone_vgg,
        rules=names.torchvision_vgg(batch_norm=True),
        unused=VGG_UNUSED,
        first=("backbone.stages.0.0.weight",),
        output_stride=32,
    ),
    WeightsLayout(
        name="caffe-vgg16",
        title="VGG-16 in Caffe, to begin with",
        url="https://www.robots.ox.ac.uk/~vgg/research/very_deep",
        marks=("conv1_1.weight", "conv5_3.weight"),
        without=("fc8_", "fc6_1."),
        architecture="deeplab_v1",
        options=shapes.backbone_caffe_vgg,
        rules=names.caffe_vgg(),
        unused=dict.fromkeys(("fc6.", "fc7.", "fc8."), BACKBONE_HEAD),
        first=("backbone.stages.0.0.weight",),
        output_stride=8,
        normalisation=CAFFE,
    ),
    WeightsLayout(
        name="mobilenet-v2",
        title="torchvision's MobileNetV2, to begin with",
        url=TORCHVISION,
        marks=("features.0.0.weight", "features.1.conv.0.0.weight", "features.17.conv.3.weight"),
        architecture="deeplab_v3plus",
        options=shapes.backbone_mobilenet,
        rules={f"features.{number}.": f"backbone.features.{number}." for number in range(18)},
        unused={"features.18.": BACKBONE_HEAD, "classifier.": BACKBONE_HEAD},
        first=("backbone.features.0.0.weight",),
    ),
    WeightsLayout(
        name="timm-xception",
        title="timm's aligned Xception, to begin with",
        url=TIMM,
        marks=("stem.0.conv.weight", "blocks.0.stack.conv1.conv_dw.weight"),
        architecture="deeplab_v3plus",
        options=shapes.backbone_xception,
        rules=names.timm_xception(),
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

BY_NAME = {layout.name: layout for layout in WEIGHTS_LAYOUTS}
