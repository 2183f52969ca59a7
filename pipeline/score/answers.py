"""The answers to one image against its label.

In: the encoded label of an item, and the mask of the network and of what refined it. Out: judgements, whole numbers of
pixels that add up over images. A label that cannot be used is an error with a code, never a guess.
"""

from dataclasses import dataclass, replace
from math import hypot

import numpy as np

from pipeline.classes import ClassMap
from pipeline.config import JudgeConfig
from pipeline.errors import InputError, LabelError
from pipeline.image import labels
from pipeline.image.encode import brightness
from pipeline.image.labels import Coding
from pipeline.records import Failure, Image, Item, Judgement, Refinement, Row, UInt8
from pipeline.score.metrics import count_judgement

NETWORK = "network"
"""The answer before any refinement; the refined one has the name of its engine."""
MASKS = "masks"
"""The answer of masks that somebody else has made."""
NO_LABEL = Failure("label_missing", "this image has no label")


def answer_names(masks: str | None, engine: str) -> list[str]:
    """The answers of a run in their order, the one in the masks last."""
    if masks:
        return [MASKS]
    return [NETWORK] if engine == "none" else [NETWORK, engine]


def label_coding(cfg: JudgeConfig) -> Coding:
    """What the values of labels mean."""
    return Coding(cfg.labels_as, cfg.label_ids, cfg.ignored_colours)


def read_truth(item: Item, cfg: JudgeConfig, classes: ClassMap, *, height: int, width: int) -> UInt8:
    """The label of an item, (height, width) class ids, the size of its upright image.

    Raises:
        LabelError: there is none, it does not fit the image or the class map, or ignores every pixel; see its `code`.
    """
    if item.label is None:
        raise LabelError(NO_LABEL.detail, code=NO_LABEL.code)
    if item.label.lstrip()[:1] == b"{":
        raise LabelError("the label says only classes or boxes, which cannot be scored", hint="give labels of pixels")
    name = f"of {item.key}"
    truth_hw = labels.decode_label(item.label, classes, name=name, height=height, width=width, coding=label_coding(cfg))
    labels.check_used(truth_hw, classes, name=name)
    return truth_hw


def read_mask(png: bytes, classes: ClassMap, *, key: str, max_mpx: float) -> UInt8:
    """A mask that somebody else has made, (H, W) ids of the class map.

    Raises:
        InputError: `mask_unusable`, it is no PNG of such ids, or has more pixels than an image may have.
    """
    try:
        height, width = labels.png_size(png, name=f"of {key}")
        if height * width > max_mpx * 1e6:
            raise LabelError(f"{width}x{height} pixels, limit {max_mpx:g} Mpx", hint="raise --decode.max-mpx")
        return labels.decode_label(png, classes, name=f"of {key}", height=height, width=width)
    except LabelError as error:
        raise InputError("mask_unusable", f"as a mask, {error.message}", hint=error.hint) from error


def judgements_of(
    truth_hw: UInt8, refinement: Refinement, cfg: JudgeConfig, classes: ClassMap, *, engine: str
) -> list[Judgement]:
    """What was counted of the network's answer, and where an `engine` other than `none` refined it, of that one after.

    Both with the network's confidence, since what a CRF gives is all but 0 or 1; of the classes that were left where
    others were pruned, so `--refine.prune 0` is what tells calibration to the last digit.
    """
    masks = zip(answer_names(None, engine), (refinement.network_hw, refinement.mask_hw), strict=False)
    return [_judged(truth_hw, mask, refinement.confidence_hw, cfg, classes, name=name) for name, mask in masks]


@dataclass(frozen=True, slots=True)
class AnswerJudge:
    """Judging step of a run: adds to a row the counts of its answers against the label of the image."""

    cfg: JudgeConfig
    classes: ClassMap
    engine: str
    """Refine engine of the run; with `none` the network's answer is the only one."""

    def truth(self, item: Item, *, height: int, width: int) -> UInt8:
        """Label of an item, (height, width) class ids; raises LabelError as `truth_of`."""
        return read_truth(item, self.cfg, self.classes, height=height, width=width)

    def __call__(self, row: Row, truth_hw: UInt8, refinement: Refinement, image: Image | None) -> Row:
        """The row with its columns `judgements` and `brightness`, None where the pixels were dropped."""
        judgements = judgements_of(truth_hw, refinement, self.cfg, self.classes, engine=self.engine)
        return replace(row, judgements=judgements, brightness=None if image is None else brightness(image))


def judgement_of_mask(truth_hw: UInt8, mask_hw: UInt8, cfg: JudgeConfig, classes: ClassMap) -> Judgement:
    """What was counted of a mask alone; without a confidence there is no reliability, and its counts are zero."""
    found = _judged(truth_hw, mask_hw, np.zeros_like(mask_hw), cfg, classes, name=MASKS)
    found.reliability[:] = 0
    return found


def _judged(
    truth_hw: UInt8, mask_hw: UInt8, confidence_hw: UInt8, cfg: JudgeConfig, classes: ClassMap, *, name: str
) -> Judgement:
    return count_judgement(
        truth_hw,
        mask_hw,
        confidence_hw,
        len(classes),
        name=name,
        ignore_id=classes.ignore_id,
        widths_px=cfg.trimap_px,
        boundary_px=max(1, round(cfg.boundary_share * hypot(*truth_hw.shape))),
    )


def label_failure(error: LabelError) -> Failure:
    """The record of an error: its hint belongs to the line a person reads."""
    return Failure(error.code, error.message + (f" ({error.hint})" if error.hint else ""))
