"""Weights of the authors' ESPNetv2 for segmentation, https://github.com/sacmehta/EdgeNets."""

from pipeline.importing.layouts.layout import WeightsLayout
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, filters
from pipeline.models.espnetv2 import BRANCHES, MODULES, SCALES

UNUSED_SLOPE = "slopes that the source creates in its downsamplers and does not use"
LEVELS = (2, 3, 4)
"""Levels that begin with a downsampler, at strides 4, 8 and 16; the decoder's steps take the same numbers."""


def _numbered(theirs: str, ours: str, *parts: str) -> dict[str, str]:
    """Rules for modules with names of their own that are numbered here."""
    return {f"{theirs}{part}.": f"{ours}{index}." for index, part in enumerate(parts)}


def _pyramid(theirs: str, ours: str) -> dict[str, str]:
    """Rules for EESP."""
    rules = _numbered(f"{theirs}proj_1x1.", f"{ours}reduce.", "conv", "bn", "act")
    rules |= {f"{theirs}spp_dw.{index}.conv.": f"{ours}branches.{index}." for index in range(BRANCHES)}
    rules |= _numbered(f"{theirs}br_after_cat.", f"{ours}norm.", "bn", "act")
    return rules | _numbered(f"{theirs}conv_1x1_exp.", f"{ours}expand.", "conv", "bn")


def _encoder_rules() -> dict[str, str]:
    rules = _numbered("base_net.level1.", "encoder.first.", "conv", "bn", "act")
    for index, level in enumerate(LEVELS):
        theirs, ours = f"base_net.level{level}_0.", f"encoder.downs.{index}."
        rules |= _pyramid(f"{theirs}eesp.", f"{ours}pyramid.") | {f"{theirs}act.": f"{ours}slope."}
        rules |= _numbered(f"{theirs}inp_reinf.0.", f"{ours}image.", "conv", "bn", "act")
        rules |= {f"{theirs}inp_reinf.1.conv.": f"{ours}image.3.", f"{theirs}inp_reinf.1.bn.": f"{ours}image.4."}
    for level, modules in zip(LEVELS[1:], MODULES, strict=True):
        for index in range(modules):
            theirs, ours = f"base_net.level{level}.{index}.", f"encoder.level{level}.{index}."
            rules |= _pyramid(theirs, f"{ours}pyramid.") | {f"{theirs}module_act.": f"{ours}slope."}
    return rules


def _pool(theirs: str, ours: str) -> dict[str, str]:
    """Rules for the pyramid pooling, without its last convolution."""
    rules = {f"{theirs}projection_layer.cbr.": f"{ours}project.", f"{theirs}merge_layer.0.br.": f"{ours}norm."}
    rules |= {f"{theirs}stages.{index}.": f"{ours}filters.{index}." for index in range(len(SCALES))}
    return rules | {f"{theirs}merge_layer.2.cbr.": f"{ours}merge."}


def _decoder_rules() -> dict[str, str]:
    rules = _pool("bu_dec_l4.", "pool.") | {"bu_dec_l4.merge_layer.3.": "logits."}
    for index, level in enumerate(LEVELS):
        theirs, ours = f"bu_dec_l{level - 1}.", f"decoder.{index}."
        rules |= _pool(theirs, f"{ours}pool.") | {f"{theirs}merge_layer.3.": f"{ours}widen.0."}
        rules |= {f"{theirs}br.br.0.": f"{ours}widen.1.", f"{theirs}br.br.1.": f"{ours}widen.2."}
        rules |= {
            f"merge_enc_dec_l{level}.wt_layer.1.": f"{ours}skip.weigh.",
            f"merge_enc_dec_l{level}.expansion_layer.cbr.": f"{ours}skip.project.",
            f"bu_br_l{level}.": f"{ours}norm.",
        }
    return rules


def _options(tensors: Tensors) -> ShapeOptions:
    return {
        "scale": filters(tensors, "base_net.level2_0.inp_reinf.1.conv.weight") / 64,
        "decoder_channels": filters(tensors, "bu_dec_l1.merge_layer.3.weight") // 4,
        "pyramid_channels": filters(tensors, "bu_dec_l1.projection_layer.cbr.0.weight"),
    }


ESPNETV2_LAYOUTS: tuple[WeightsLayout, ...] = (
    WeightsLayout(
        name="edgenets-espnetv2",
        title="the authors' ESPNetv2",
        url="https://github.com/sacmehta/EdgeNets",
        marks=("base_net.level2_0.eesp.spp_dw.0.conv.weight", "bu_dec_l4.merge_layer.3.weight", "bu_br_l2.0.weight"),
        architecture="espnetv2",
        options=_options,
        rules=_encoder_rules() | _decoder_rules(),
        unused={f"base_net.level{level}_0.eesp.module_act.": UNUSED_SLOPE for level in LEVELS},
        scores="bu_dec_l4.merge_layer.3.weight",
        first=("encoder.first.0.weight", *(f"encoder.downs.{index}.image.0.weight" for index in range(len(LEVELS)))),
        notes=("the source takes sides of multiples of 16 only, for which this network's outputs are the same",),
    ),
)
