"""Caffe weights of DeepLab v1 and v2 by their authors, http://liangchiehchen.com/projects/DeepLab.html."""

from pipeline.errors import ConfigError
from pipeline.importing.layouts.layout import WeightsLayout
from pipeline.importing.layouts.names import RESNET101_BLOCKS, caffe_vgg_rules, numbered_rules
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, filters, has_prefix, width_option
from pipeline.models.normalisation import CAFFE

DEEPLAB = "http://liangchiehchen.com/projects/DeepLab.html"
SHARED = {"shared075.": "a copy of the weights for scale 0.75", "shared05.": "a copy of the weights for scale 0.5"}


def _block_letters(blocks: int) -> list[str]:
    """Letters of a stage's blocks: a, b, c, or a, b1, b2, ... for 4 blocks and more, as in the authors' ResNet-101."""
    return ["a", "b", "c"] if blocks == 3 else ["a", *(f"b{number}" for number in range(1, blocks))]


def _resnet_rules() -> dict[str, str]:
    """Rules for the prototxt's ResNet-101: res4b22_branch2c is followed by bn4b22_branch2c and scale4b22_branch2c."""
    rules = {"conv1.": "backbone.conv1.", "bn_conv1.": "backbone.bn1.", "scale_conv1.": "backbone.bn1."}
    for stage, blocks in enumerate(RESNET101_BLOCKS, 1):
        for block, letter in enumerate(_block_letters(blocks)):
            for branch, (conv, norm) in {
                "1": ("downsample.0.", "downsample.1."),
                **{f"2{end}": (f"conv{number}.", f"bn{number}.") for number, end in enumerate("abc", 1)},
            }.items():
                theirs, ours = f"{stage + 1}{letter}_branch{branch}.", f"backbone.layer{stage}.{block}."
                rules[f"res{theirs}"] = ours + conv
                rules[f"bn{theirs}"] = rules[f"scale{theirs}"] = ours + norm
    return rules


def _deeplab_v1(tensors: Tensors) -> ShapeOptions:
    """DeepLab v1; the kernel size of fc6 is its variant: config/*/test.prototxt."""
    kernel = filters(tensors, "fc6.weight", axis=3)
    variant = {3: "large_fov", 4: "4x4", 7: "7x7"}.get(kernel)
    if variant is None:
        raise ConfigError(f"fc6 is {kernel}x{kernel}; DeepLab v1 has 3x3, 4x4 or 7x7")
    msc = {"msc": True} if "data_conv.weight" in tensors else {}
    return {"variant": variant} | msc | width_option(tensors, "conv1_1.weight", 64)


def _deeplab_v2_vgg(tensors: Tensors) -> ShapeOptions:
    """DeepLab v2 with ASPP-L; a file of ASPP-S has the same shapes and needs `--options head=aspp_s`."""
    return {"backbone": "vgg16", "head": "aspp_l", "align_corners": True} | width_option(tensors, "conv1_1.weight", 64)


def _deeplab_v2_resnet(tensors: Tensors) -> ShapeOptions:
    """DeepLab v2 on ResNet; the multi-scale test network stores copies of its weights for two smaller scales."""
    depth = 101 if has_prefix(tensors, "res4b22_") else 50
    msc = {"msc": True} if has_prefix(tensors, "shared075.") else {}
    options = {"backbone": f"resnet{depth}", "head": "aspp_l", "align_corners": True}
    return options | msc | width_option(tensors, "conv1.weight", 64)


DEEPLAB_CAFFE_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="caffe-deeplab-v1",
        title="the authors' DeepLab v1",
        url=DEEPLAB,
        marks=("conv1_1.weight", "conv5_3.weight", "fc6.weight", "fc7.weight", "scores.weight"),
        architecture="deeplab_v1",
        options=_deeplab_v1,
        aliases=((r"^fc8_[^.]+", "scores"),),
        rules={
            **caffe_vgg_rules(),
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
        options=_deeplab_v2_vgg,
        aliases=((r"^fc8_[^.]+_([1-4])\.", r"fc8_\1."),),
        rules={
            **caffe_vgg_rules(),
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
        options=_deeplab_v2_resnet,
        aliases=((r"^(?=.*res(075|05))", r"shared\1."), (r"^fc1_[^.]+_c([0-3])\.", r"fc1_c\1.")),
        rules={**_resnet_rules(), **numbered_rules(4, "fc1_c{}.", "head.branches.{}.")},
        unused=SHARED,
        scores="fc1_c0.weight",
        output_stride=8,
        normalisation=CAFFE,
    ),
)
