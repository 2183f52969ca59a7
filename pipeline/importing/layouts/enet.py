"""Weights of ENet: davidtvs/PyTorch-ENet, today's and those of commit 921e40c, and iArunava's.

Their files hold no statistics of images: inputs are red, green, blue from 0 to 1. The published ones are of CamVid, 12
scores in the order of its class map and unlabelled last.
"""

from pipeline.importing.layouts.layout import WeightsLayout
from pipeline.importing.layouts.names import numbered_rules
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, has_prefix, width_option
from pipeline.models.normalisation import Normalisation

DAVIDTVS = "https://github.com/davidtvs/PyTorch-ENet"
ARUNAVA = "https://github.com/iArunava/ENet-Real-Time-Semantic-Segmentation"
ZERO_TO_ONE = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), origin="none: pixels from 0 to 1")
STAGE = ("regular", "dilated", "asymmetric", "dilated", "regular", "dilated", "asymmetric", "dilated")
"""Kinds of bottlenecks of stages 2 and 3, as davidtvs names them."""
ROUNDING = "the source rounds odd sizes down where it pools, ours up; they agree for sides that are multiples of 8"
"""Note of a layout."""


def _davidtvs_blocks() -> dict[str, str]:
    """Our prefix of each bottleneck that keeps its size, by theirs."""
    blocks = numbered_rules(4, "regular1_{}.", "stage1.{}.", first=1)
    for stage, first in ((2, 1), (3, 0)):
        blocks |= {f"{kind}{stage}_{index + first}.": f"stage{stage}.{index}." for index, kind in enumerate(STAGE)}
    return blocks | numbered_rules(2, "regular4_{}.", "stage4.{}.", first=1) | {"regular5_1.": "stage5.0."}


def _step(theirs: str, ours: str, step: int, *, first: int = 0) -> dict[str, str]:
    """Rules for a convolution, its batch norm and its activation, at `first` and behind in their sequence."""
    return {
        f"{theirs}{first}.": f"{ours}branch.{step}.0.",
        f"{theirs}{first + 1}.": f"{ours}branch.{step}.1.",
        f"{theirs}{first + 2}.": f"{ours}inner.{step}.",
    }


def _davidtvs_rules() -> dict[str, str]:
    """Rules of both versions but for the branch of upsampling."""
    rules = {
        "initial_block.main_branch.": "initial.conv.",
        "initial_block.batch_norm.": "initial.norm.",
        "initial_block.out_activation.": "initial.act.",
        "transposed_conv.": "logits.",
    }
    resized = {"downsample1_0.": "down1.", "downsample2_0.": "down2.", "upsample4_0.": "up4.", "upsample5_0.": "up5."}
    for theirs, ours in (_davidtvs_blocks() | resized).items():
        asymmetric = theirs.startswith("asymmetric")
        rules |= _step(f"{theirs}ext_conv1.", ours, 0) | _step(f"{theirs}ext_conv2.", ours, 1)
        rules |= _step(f"{theirs}ext_conv2.", ours, 2, first=3) if asymmetric else {}
        rules |= _step(f"{theirs}ext_conv3.", ours, 3 if asymmetric else 2)
        rules |= {f"{theirs}main_conv1.": f"{ours}main.", f"{theirs}out_activation.": f"{ours}outer."}
    return rules


def _tconv_rules() -> dict[str, str]:
    """Rules for the branch of upsampling of today's version."""
    rules: dict[str, str] = {}
    for theirs, ours in (("upsample4_0.", "up4."), ("upsample5_0.", "up5.")):
        rules |= {
            f"{theirs}ext_tconv1.": f"{ours}branch.1.0.",
            f"{theirs}ext_tconv1_bnorm.": f"{ours}branch.1.1.",
            f"{theirs}ext_tconv1_activation.": f"{ours}inner.1.",
            f"{theirs}ext_conv2.0.": f"{ours}branch.2.0.",
            f"{theirs}ext_conv2.1.": f"{ours}branch.2.1.",
        }
    return rules


def _davidtvs(tensors: Tensors) -> ShapeOptions:
    """Each half of the network has PReLU where it has slopes: `encoder_relu` and `decoder_relu` of the source."""
    options: ShapeOptions = {"convention": "davidtvs"}
    if not has_prefix(tensors, "initial_block.out_activation."):
        options["encoder_relu"] = True
    if has_prefix(tensors, "regular5_1.out_activation."):
        options["decoder_relu"] = False
    return options | width_option(tensors, "downsample1_0.ext_conv3.0.weight", 64)


def _davidtvs_prelu(tensors: Tensors) -> ShapeOptions:
    return {"convention": "davidtvs_prelu"} | width_option(tensors, "downsample1_0.ext_conv3.0.weight", 64)


def _arunava(tensors: Tensors) -> ShapeOptions:
    return {"convention": "iarunava"} | width_option(tensors, "b10.conv3.weight", 64)


def _arunava_blocks() -> dict[str, str]:
    """Our prefix of each bottleneck, by theirs."""
    return {
        **{"b10.": "down1.", "b20.": "down2.", "b40.": "up4.", "b50.": "up5.", "b51.": "stage5.0."},
        **numbered_rules(4, "b1{}.", "stage1.{}.", first=1),
        **numbered_rules(8, "b2{}.", "stage2.{}.", first=1),
        **numbered_rules(8, "b3{}.", "stage3.{}.", first=1),
        **numbered_rules(2, "b4{}.", "stage4.{}.", first=1),
    }


ASYMMETRIC = ("b23.", "b27.", "b33.", "b37.")
"""Bottlenecks of iArunava with a slope for each activation; the others have one, saved three times."""


def _arunava_rules() -> dict[str, str]:
    rules = {
        "init.conv.": "initial.conv.",
        "init.batchnorm.": "initial.norm.",
        "init.prelu.": "initial.act.",
        "fullconv.": "logits.",
    }
    for theirs, ours in _arunava_blocks().items():
        asymmetric = theirs in ASYMMETRIC
        rules |= {f"{theirs}{conv}{step + 1}.": f"{ours}branch.{step}.0." for step in range(3) for conv in CONVOLUTIONS}
        rules |= {f"{theirs}bnorm{step + 1}.": f"{ours}branch.{step}.1." for step in range(3)}
        rules |= {f"{theirs}main_conv.": f"{ours}main.0.", f"{theirs}prelu3.": f"{ours}outer."}
        if asymmetric:
            rules |= {f"{theirs}conv21.": f"{ours}branch.1.0.", f"{theirs}conv22.": f"{ours}branch.1.1."}
            rules |= {f"{theirs}bnorm2.": f"{ours}branch.1.2."}
            rules |= {f"{theirs}prelu1.": f"{ours}inner.0.", f"{theirs}prelu2.": f"{ours}inner.1."}
    return rules


CONVOLUTIONS = ("conv", "convt")
"""Names of convolutions, and of transposed ones in bottlenecks that upsample."""

ENET_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="davidtvs-enet",
        title="davidtvs's ENet",
        url=DAVIDTVS,
        marks=("initial_block.main_branch.weight", "upsample4_0.ext_tconv1.weight", "transposed_conv.weight"),
        architecture="enet",
        options=_davidtvs,
        rules=_davidtvs_rules() | _tconv_rules(),
        aliases=((r"\.out_prelu\.", ".out_activation."),),
        scores="transposed_conv.weight",
        scores_axis=1,
        first=("initial.conv.weight",),
        output_stride=8,
        normalisation=ZERO_TO_ONE,
        notes=(
            "versions before commit 7cd31d4 have one activation more in each upsampling, which the file does not show",
            ROUNDING,
        ),
    ),
    WeightsLayout(
        name="davidtvs-enet-prelu",
        title="davidtvs's ENet of commit 921e40c",
        url=DAVIDTVS,
        marks=("initial_block.main_branch.weight", "upsample4_0.ext_conv3.0.weight", "transposed_conv.weight"),
        architecture="enet",
        options=_davidtvs_prelu,
        rules=_davidtvs_rules(),
        aliases=((r"\.out_prelu\.", ".out_activation."),),
        scores="transposed_conv.weight",
        scores_axis=1,
        first=("initial.conv.weight",),
        output_stride=8,
        normalisation=ZERO_TO_ONE,
        notes=(ROUNDING,),
    ),
    WeightsLayout(
        name="iarunava-enet",
        title="iArunava's ENet",
        url=ARUNAVA,
        marks=("init.conv.weight", "b10.bnorm1.weight", "b40.convt1.weight", "fullconv.weight"),
        architecture="enet",
        options=_arunava,
        rules=_arunava_rules(),
        copies={
            f"{block}prelu{number}.": f"{block}prelu3."
            for block in _arunava_blocks()
            if block not in ASYMMETRIC
            for number in (1, 2)
        },
        scores="fullconv.weight",
        scores_axis=1,
        first=("initial.conv.weight",),
        output_stride=8,
        normalisation=ZERO_TO_ONE,
        notes=(ROUNDING,),
    ),
)
"""Layouts of ENet."""
