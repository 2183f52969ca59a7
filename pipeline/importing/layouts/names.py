"""Rules that map prefixes of foreign tensor names to prefixes of ours, where several layouts share them.

The longest rule that fits a name applies; the rest of the name is unchanged.
"""


def numbered_rules(count: int, source: str, target: str, *, first: int = 0) -> dict[str, str]:
    """Rules `source -> target` for `count` numbers in place of `{}`; the source counts from `first`."""
    return {source.format(index + first): target.format(index) for index in range(count)}


def aspp_rules(source: str, target: str) -> dict[str, str]:
    """Rules for torchvision's ASPP with dense convolutions, which other programs copied."""
    return {
        **numbered_rules(4, source + "convs.{}.", target + "branches.{}."),
        source + "convs.4.1.": target + "image.0.",
        source + "convs.4.2.": target + "image.1.",
        source + "project.": target + "project.",
    }


RESNET101_BLOCKS = (3, 4, 23, 3)
"""Blocks per stage of ResNet-101, the deepest ResNet here."""


VGG16_STAGES = (2, 2, 3, 3, 3)
"""Convolutions per stage of VGG-16."""


def caffe_vgg_rules() -> dict[str, str]:
    """Rules for conv1_1 to conv5_3; our stages alternate convolution and ReLU."""
    return {
        f"conv{stage}_{number}.": f"backbone.stages.{stage - 1}.{2 * (number - 1)}."
        for stage, convolutions in enumerate(VGG16_STAGES, 1)
        for number in range(1, convolutions + 1)
    }


XCEPTION65_UNITS = 21
XCEPTION71_UNITS = 23
"""Units of aligned Xceptions."""
CONV_AND_NORM = ((0, "conv"), (1, "bn"))
"""Names of a convolution and its batch norm, with their index in our Sequential."""
