"""What other programs call the parts of a network: rules from beginnings of their names to beginnings of ours.

Of several rules that fit a name, the longest counts; the rest of the name stays as it is.
"""


def numbered(count: int, source: str, target: str, *, first: int = 0) -> dict[str, str]:
    """The rule `source -> target` for each of `count` numbers in place of `{}`; the source counts from `first`."""
    return {source.format(index + first): target.format(index) for index in range(count)}


def aspp(source: str, target: str) -> dict[str, str]:
    """The ASPP of torchvision, which several others copied, with dense convolutions."""
    return {
        **numbered(4, source + "convs.{}.", target + "branches.{}."),
        source + "convs.4.1.": target + "image.0.",
        source + "convs.4.2.": target + "image.1.",
        source + "project.": target + "project.",
    }


_STAGES = (3, 4, 23, 3)
"""Blocks per stage of ResNet-101, the deepest there is."""
CONVOLUTIONS = ("reduce", "conv3x3", "increase")
"""Of a block, in deeplab-pytorch."""


def kazuto_resnet(source: str) -> dict[str, str]:
    """deeplab-pytorch's ResNet: stages 2 to 5, blocks from 1, convolutions by name. libs/models/resnet.py."""
    rules = {f"{source}layer1.conv1.conv.": "backbone.conv1.", f"{source}layer1.conv1.bn.": "backbone.bn1."}
    for stage, blocks in enumerate(_STAGES, 1):
        for block in range(blocks):
            theirs, ours = f"{source}layer{stage + 1}.block{block + 1}.", f"backbone.layer{stage}.{block}."
            for number, convolution in enumerate(CONVOLUTIONS, 1):
                rules[f"{theirs}{convolution}.conv."] = f"{ours}conv{number}."
                rules[f"{theirs}{convolution}.bn."] = f"{ours}bn{number}."
            rules[f"{theirs}shortcut.conv."] = f"{ours}downsample.0."
            rules[f"{theirs}shortcut.bn."] = f"{ours}downsample.1."
    return rules


def caffe_blocks(blocks: int) -> list[str]:
    """Letters of a stage's blocks: a, b, c, or from 4 blocks on a, b1, b2, ... of the authors' ResNet-101."""
    return ["a", "b", "c"] if blocks == 3 else ["a", *(f"b{number}" for number in range(1, blocks))]


def caffe_resnet() -> dict[str, str]:
    """ResNet-101 of the authors' prototxt: res4b22_branch2c, with bn4b22_branch2c and scale4b22_branch2c behind it."""
    rules = {"conv1.": "backbone.conv1.", "bn_conv1.": "backbone.bn1.", "scale_conv1.": "backbone.bn1."}
    for stage, blocks in enumerate(_STAGES, 1):
        for block, letter in enumerate(caffe_blocks(blocks)):
            for branch, (conv, norm) in {
                "1": ("downsample.0.", "downsample.1."),
                **{f"2{end}": (f"conv{number}.", f"bn{number}.") for number, end in enumerate("abc", 1)},
            }.items():
                theirs, ours = f"{stage + 1}{letter}_branch{branch}.", f"backbone.layer{stage}.{block}."
                rules[f"res{theirs}"] = ours + conv
                rules[f"bn{theirs}"] = rules[f"scale{theirs}"] = ours + norm
    return rules


VGG16_STAGES = (2, 2, 3, 3, 3)


def caffe_vgg() -> dict[str, str]:
    """conv1_1 to conv5_3; our stages alternate convolution and ReLU."""
    return {
        f"conv{stage}_{number}.": f"backbone.stages.{stage - 1}.{2 * (number - 1)}."
        for stage, convolutions in enumerate(VGG16_STAGES, 1)
        for number in range(1, convolutions + 1)
    }


def torchvision_vgg(*, batch_norm: bool) -> dict[str, str]:
    """The `features` of torchvision: one list with the poolings in it, where ours has a list per stage without them."""
    rules, index = {}, 0
    per_convolution = 3 if batch_norm else 2
    for stage, convolutions in enumerate(VGG16_STAGES):
        for number in range(convolutions):
            for layer in range(per_convolution - 1):
                rules[f"features.{index + layer}."] = f"backbone.stages.{stage}.{number * per_convolution + layer}."
            index += per_convolution
        index += 1
    return rules


XCEPTION65_UNITS = 21
XCEPTION71_UNITS = 23
STEM = ((0, "conv"), (1, "bn"))
HALVES = ("conv_dw", "bn_dw", "conv_pw", "bn_pw")
OUR_HALVES = ("depthwise", "depthwise_bn", "pointwise", "pointwise_bn")


def timm_xception() -> dict[str, str]:
    """timm/models/xception_aligned.py, of any depth."""
    rules = {f"stem.{number}.{part}.": f"backbone.stem.{3 * number + at}." for number in (0, 1) for at, part in STEM}
    for unit in range(XCEPTION71_UNITS):
        rules[f"blocks.{unit}.shortcut.conv."] = f"backbone.units.{unit}.shortcut.0."
        rules[f"blocks.{unit}.shortcut.bn."] = f"backbone.units.{unit}.shortcut.1."
        for conv in range(3):
            for theirs, ours in zip(HALVES, OUR_HALVES, strict=True):
                rules[f"blocks.{unit}.stack.conv{conv + 1}.{theirs}."] = f"backbone.units.{unit}.convs.{conv}.{ours}."
    return rules


def jfzhang_xception() -> dict[str, str]:
    """modeling/backbone/xception.py: ReLUs and batch norms count as layers of `rep`; blocks 1 and 2 begin with none."""
    rules = {
        f"backbone.{part}{number + 1}.": f"backbone.stem.{3 * number + at}." for number in (0, 1) for at, part in STEM
    }
    for unit in range(XCEPTION65_UNITS - 1):
        theirs, ours = f"backbone.block{unit + 1}.", f"backbone.units.{unit}."
        rules |= {f"{theirs}skip.": f"{ours}shortcut.0.", f"{theirs}skipbn.": f"{ours}shortcut.1."}
        for conv in range(3):
            at = 3 * conv + (0 if unit < 2 else 1)
            rules |= _jfzhang_separable(f"{theirs}rep.{at}.", f"{theirs}rep.{at + 1}.", f"{ours}convs.{conv}.")
    for conv in range(3):
        last = f"backbone.units.{XCEPTION65_UNITS - 1}.convs.{conv}."
        rules |= _jfzhang_separable(f"backbone.conv{conv + 3}.", f"backbone.bn{conv + 3}.", last)
    return rules


def _jfzhang_separable(conv: str, norm: str, ours: str) -> dict[str, str]:
    return {
        f"{conv}conv1.": f"{ours}depthwise.",
        f"{conv}bn.": f"{ours}depthwise_bn.",
        f"{conv}pointwise.": f"{ours}pointwise.",
        norm: f"{ours}pointwise_bn.",
    }
