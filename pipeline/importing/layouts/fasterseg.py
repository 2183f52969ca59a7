"""Weights of the authors' FasterSeg, https://github.com/VITA-Group/FasterSeg."""

from functools import partial

from pipeline.importing.layouts.layout import CORNERS, WeightsLayout
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, has_prefix, width_option
from pipeline.models.fasterseg import ARCHITECTURES

FASTERSEG = "https://github.com/VITA-Group/FasterSeg"
UNUSED = {"ffm.channel_attention.": "a channel attention behind the end of the forward pass: train/seg_oprs.py"}
"""An early version of the repository (3e84fd2) ran it; its `Head` was called `BiSeNetHead`."""
CELL = (("conv1", 0), ("bn1", 1), ("conv2", 3), ("bn2", 4))
"""Layers of a cell, with their index in ours."""
UNIT = (("conv", 0), ("bn", 1))
"""Layers of a convolution with batch norm, with their index in ours."""


def _options(tensors: Tensors, variant: str) -> ShapeOptions:
    """The variant, its width, and whether the file has the scores of training: train/model_seg.py."""
    first = ARCHITECTURES[variant].stem[0]
    aux = {} if has_prefix(tensors, "heads32.") else {"aux": False}
    return {"variant": variant} | width_option(tensors, "stem.0.conv.0.weight", first) | aux


def _cell_rules(source: str, target: str) -> dict[str, str]:
    return {f"{source}{name}.": f"{target}layers.{index}." for name, index in CELL}


def _head_rules(source: str, unit: str, scores: str) -> dict[str, str]:
    units = {f"{source}conv_3x3.{name}.": f"{unit}{index}." for name, index in UNIT}
    return units | {f"{source}conv_1x1.": scores}


def _branch_rules(variant: str, branch: int) -> dict[str, str]:
    """Rules for the cells of a branch behind the shared ones; the source numbers all cells of a branch."""
    layout = ARCHITECTURES[variant]
    name, stages = (("coarse", layout.coarse), ("fine", layout.fine))[branch]
    rules: dict[str, str] = {}
    number = len(layout.shared)
    for stage, cells in enumerate(stages):
        for cell in range(len(cells)):
            rules |= _cell_rules(f"cells.{number}-{branch}._op._op.", f"{name}.{stage}.{cell}.")
            number += 1
    return rules


def _rules(variant: str) -> dict[str, str]:
    rules = {"stem.0.conv.": "stem.0."}
    for number in (1, 2):
        rules |= _cell_rules(f"stem.{number}.", f"stem.{number}.")
    for number in range(len(ARCHITECTURES[variant].shared)):
        rules |= _cell_rules(f"cells.{number}-0._op._op.", f"shared.{number}.")
    rules |= _branch_rules(variant, 0) | _branch_rules(variant, 1)
    for source, merge in (("32.0", "merge16"), ("32.1", "merge8"), ("16", "merge_fine")):
        rules |= {f"arms{source}.conv.": f"{merge}.arm.", f"refines{source}.conv.": f"{merge}.refine."}
    rules |= {f"ffm.conv_1x1.{name}.": f"fuse.{index}." for name, index in UNIT}
    rules |= _head_rules("heads8.", "head.", "logits.")
    for name in ("heads16", "heads32"):
        rules |= _head_rules(f"{name}.", f"aux.{name}.0.", f"aux.{name}.1.")
    return rules


def _layout(variant: str, *, without: str) -> WeightsLayout:
    layout = ARCHITECTURES[variant]
    last = len(layout.shared) + sum(map(len, layout.coarse)) - 1
    return WeightsLayout(
        name=f"fasterseg-{variant}",
        title=f"the authors' FasterSeg, {variant}",
        url=FASTERSEG,
        marks=("stem.0.conv.0.weight", f"cells.{last}-0._op._op.conv1.weight", "heads8.conv_1x1.weight"),
        without=(without,),
        architecture="fasterseg",
        options=partial(_options, variant=variant),
        rules=_rules(variant),
        unused=UNUSED,
        copies={f"cells.{number}-1.": f"cells.{number}-0." for number in range(len(layout.shared))},
        first=("stem.0.0.weight",),
        scores="heads8.conv_1x1.weight",
        output_stride=32,
        notes=(CORNERS,),
    )


FASTERSEG_LAYOUTS: tuple[WeightsLayout, ...] = (
    _layout("student", without="cells.10-0."),
    _layout("teacher", without="cells.16-0."),
)
