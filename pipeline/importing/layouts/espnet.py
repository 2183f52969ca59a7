"""Weights of the authors' ESPNet, https://github.com/sacmehta/ESPNet."""

from pipeline.importing.layouts.layout import WeightsLayout
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, filters, width_option
from pipeline.models.espnet import DILATIONS
from pipeline.models.normalisation import Normalisation

ESPNET = "https://github.com/sacmehta/ESPNet"
MODULES = 64
"""Largest number of ESP modules of a level."""


def _statistics(bgr_mean: tuple[float, ...], bgr_std: tuple[float, ...], images: str) -> Normalisation:
    """Statistics of images of blue, green, red from 0 to 255.

    train/Transforms.py computes (pixel - mean) / std and then divides by 255: of pixels from 0 to 1 that is (pixel -
    mean / 255) / std, with deviations of up to 255.
    """
    blue, green, red = (mean / 255 for mean in bgr_mean)
    deviations = bgr_std[2], bgr_std[1], bgr_std[0]
    origin = f"statistics of {images}, blue, green, red in 0 to 255, divided by 255 once more after the deviation"
    return Normalisation((red, green, blue), deviations, bgr=True, origin=origin)


CITYSCAPES_TRAIN = _statistics((72.3923, 82.9089, 73.1584), (45.3192, 46.1529, 44.9148), "Cityscapes train")
"""test/VisualizeResults.py."""
CAMVID_TRAIN = _statistics((109.9, 108.1, 104.8), (71.7, 72.3, 69.6), "CamVid train")
"""Computed from the 367 images of train at 480x360, as train/loadData.py does; the file does not store them."""


def _module(theirs: str, ours: str) -> dict[str, str]:
    """Rules for the convolutions of an ESP module."""
    rules = {f"{theirs}c1.conv.": f"{ours}reduce."}
    return rules | {f"{theirs}d{d}.conv.": f"{ours}branches.{index}." for index, d in enumerate(DILATIONS)}


def _norm(theirs: str, ours: str) -> dict[str, str]:
    """Rules for batch norm and PReLU."""
    return {f"{theirs}bn.": f"{ours}0.", f"{theirs}act.": f"{ours}1."}


def _encoder_rules() -> dict[str, str]:
    rules = {
        "encoder.level1.conv.": "encoder.first.0.",
        "encoder.level1.bn.": "encoder.first.1.",
        "encoder.level1.act.": "encoder.first.2.",
        "encoder.classifier.conv.": "score.",
    }
    for level in (1, 2, 3):
        rules |= _norm(f"encoder.b{level}.", f"encoder.join{level}.")
    for level in (2, 3):
        theirs, ours = f"encoder.level{level}_0.", f"encoder.down{level}."
        rules |= _module(theirs, ours) | _norm(theirs, f"{ours}norm.")
        for index in range(MODULES):
            theirs, ours = f"encoder.level{level}.{index}.", f"encoder.level{level}.{index}."
            rules |= _module(theirs, ours) | _norm(f"{theirs}bn.", f"{ours}norm.")
    return rules


DECODER_RULES = {
    "level3_C.conv.": "decoder.project2.",
    "br.": "decoder.norm3.",
    "up_l3.0.": "decoder.up3.",
    **_norm("combine_l2_l3.0.", "decoder.join2."),
    **_module("combine_l2_l3.1.", "decoder.fuse2."),
    **_norm("combine_l2_l3.1.bn.", "decoder.fuse2.norm."),
    "up_l2.0.": "decoder.up2.",
    **_norm("up_l2.1.", "decoder.norm2."),
    "conv.conv.": "decoder.fuse1.0.",
    "conv.bn.": "decoder.fuse1.1.",
    "conv.act.": "decoder.fuse1.2.",
    "classifier.": "logits.",
}


def _depths(tensors: Tensors) -> ShapeOptions:
    """`p` and `q`, and `width_multiplier` if it is not 1."""
    modules = {
        option: sum(name.startswith(f"encoder.level{level}.") and name.endswith(".c1.conv.weight") for name in tensors)
        for option, level in (("p", 2), ("q", 3))
    }
    return modules | width_option(tensors, "encoder.level1.conv.weight", 16)


def _whole(tensors: Tensors) -> ShapeOptions:
    """ESPNet; train/Model.py joins the image to the finest features of the decoder, test/Model.py does not."""
    decoder = filters(tensors, "conv.conv.weight")
    joined = filters(tensors, "conv.conv.weight", axis=1) - decoder
    fuse_image = joined > filters(tensors, "encoder.level1.conv.weight")
    return _depths(tensors) | {"fuse_image": fuse_image, "decoder_channels": decoder}


def _encoder(tensors: Tensors) -> ShapeOptions:
    return _depths(tensors) | {"decoder": False}


ESPNET_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="espnet",
        title="the authors' ESPNet",
        url=ESPNET,
        marks=("encoder.level1.conv.weight", "encoder.level2_0.d16.conv.weight", "level3_C.conv.weight", "br.weight"),
        architecture="espnet",
        options=_whole,
        rules=_encoder_rules() | DECODER_RULES,
        scores="classifier.weight",
        scores_axis=1,
        first=("encoder.first.0.weight",),
        output_stride=8,
        normalisation=CITYSCAPES_TRAIN,
        normalisation_by_scores={12: CAMVID_TRAIN},
        notes=(
            "means and deviations are of the training images that the number of classes tells: 12 CamVid's, else "
            "Cityscapes's; change card.json if the file was trained on others",
        ),
    ),
    WeightsLayout(
        name="espnet-c",
        title="the authors' ESPNet-C, the encoder alone",
        url=ESPNET,
        marks=("encoder.level1.conv.weight", "encoder.level2_0.d16.conv.weight", "encoder.classifier.conv.weight"),
        without=("level3_C.", "br."),
        aliases=((r"^(level|b[123]\.|classifier\.)", r"encoder.\1"),),
        architecture="espnet",
        options=_encoder,
        rules=_encoder_rules(),
        scores="encoder.classifier.conv.weight",
        first=("encoder.first.0.weight",),
        output_stride=8,
        normalisation=CITYSCAPES_TRAIN,
        normalisation_by_scores={12: CAMVID_TRAIN},
    ),
)
