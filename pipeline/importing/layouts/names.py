"""What other programs call the parts of a network: rules from beginnings of their names to beginnings of ours.

Of several rules that fit a name, the longest counts; the rest of the name stays as it is.
"""


def numbered_rules(count: int, source: str, target: str, *, first: int = 0) -> dict[str, str]:
    """The rule `source -> target` for each of `count` numbers in place of `{}`; the source counts from `first`."""
    return {source.format(index + first): target.format(index) for index in range(count)}


def aspp_rules(source: str, target: str) -> dict[str, str]:
    """The ASPP of torchvision, which several others copied, with dense convolutions."""
    return {
        **numbered_rules(4, source + "convs.{}.", target + "branches.{}."),
        source + "convs.4.1.": target + "image.0.",
        source + "convs.4.2.": target + "image.1.",
        source + "project.": target + "project.",
    }


RESNET101_BLOCKS = (3, 4, 23, 3)
"""Blocks per stage of ResNet-101, the deepest there is."""


VGG16_STAGES = (2, 2, 3, 3, 3)


def caffe_vgg_rules() -> dict[str, str]:
    """conv1_1 to conv5_3; our stages alternate convolution and ReLU."""
    return {
        f"conv{stage}_{number}.": f"backbone.stages.{stage - 1}.{2 * (number - 1)}."
        for stage, convolutions in enumerate(VGG16_STAGES, 1)
        for number in range(1, convolutions + 1)
    }


XCEPTION65_UNITS = 21
XCEPTION71_UNITS = 23
CONV_AND_NORM = ((0, "conv"), (1, "bn"))
