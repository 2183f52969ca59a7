"""Judging: the answers to one image, network and refined, counted against its label.

In: the encoded label of an item and the masks. Out: judgements, whole numbers of pixels that add up over images. An
unusable label raises an error with a code; nothing is guessed.
"""

from dataclasses import dataclass, replace
from math import hypot

import numpy as np

from pipeline.classes import ClassMap
from pipeline.config import JudgeConfig
from pipeline.errors import InputError, LabelError
from pipeline.image import labels
from pipeline.image.encode import brightness
from pipeline.image.labels import label_coding
from pipeline.records import Failure, Image, Item, Judgement, Refinement, Row, Scored, UInt8
from pipeline.score.metrics import count_judgement

NETWORK = "network"
"""Name of the network's own answer; a refined answer has the name of its engine."""
MASKS = "masks"
"""Name of the answer in masks from another program."""
NO_LABEL = Failure("label_missing", "this image has no label")


def answer_names(masks: str | None, engine: str) -> list[str]:
    """Names of the answers of a run, in order; the last one is in the column `mask`."""
    if masks:
        return [MASKS]
    return [NETWORK] if engine == "none" else [NETWORK, engine]


def read_truth(
    item: Item, cfg: JudgeConfig, classes: ClassMap, *, height: int, width: int, orientation: int = 1
) -> UInt8:
    """Label of an item: (height, width) uint8 class ids, the size of its upright image or of the core of its window.

    `orientation` is the EXIF orientation of the image file, 1 to 8.

    Raises:
        LabelError: the item has no label, or one that does not fit the image or the class map, or ignores every pixel
            of an image; see its `code`.
    """
    if item.window is not None:
        height, width = item.window.height, item.window.width
    if item.label is None:
        raise LabelError(NO_LABEL.detail, code=NO_LABEL.code)
    if item.label.lstrip()[:1] == b"{":
        raise LabelError("the label holds only classes or boxes, which cannot be scored", hint="give labels of pixels")
    name = f"of {item.key}"
    truth_hw = labels.decode_label(
        item.label,
        classes,
        name=name,
        height=height,
        width=width,
        coding=label_coding(cfg),
        orientation=orientation,
    )
    if item.window is None:  # of a raster, a part may be without labels
        labels.check_used(truth_hw, classes, name=name)
    return truth_hw


def read_mask(png: bytes, classes: ClassMap, *, key: str, max_mpx: float) -> UInt8:
    """Mask from another program: (H, W) uint8 ids of the class map.

    Raises:
        InputError: `mask_unusable`, for a file that is no PNG of such ids or has more than `max_mpx` megapixels.
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
    """Counts of the network's answer and, with an `engine` other than `none`, of the refined answer.

    Both use the network's confidence, since the marginals of a CRF are almost 0 or 1. The confidence is over the
    classes that pruning left: exact calibration needs `--refine.prune 0`.
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

    def truth(self, scored: Scored) -> UInt8:
        """Label of an image, (H, W) class ids; raises LabelError as `read_truth`."""
        size = {"height": scored.height, "width": scored.width}
        return read_truth(scored.item, self.cfg, self.classes, **size, orientation=scored.orientation)

    def __call__(self, row: Row, truth_hw: UInt8, refinement: Refinement, image: Image | None) -> Row:
        """The row with its columns `judgements` and `brightness`, None where the pixels were dropped.

        A window of a raster without a labelled pixel has no judgement.
        """
        if (truth_hw == self.classes.ignore_id).all():
            return row
        judgements = judgements_of(truth_hw, refinement, self.cfg, self.classes, engine=self.engine)
        return replace(row, judgements=judgements, brightness=None if image is None else brightness(image))


def judgement_of_mask(truth_hw: UInt8, mask_hw: UInt8, cfg: JudgeConfig, classes: ClassMap) -> Judgement:
    """Counts of a mask alone; its reliability counts are zero, since there is no confidence."""
    judgement = _judged(truth_hw, mask_hw, np.zeros_like(mask_hw), cfg, classes, name=MASKS)
    judgement.reliability[:] = 0
    return judgement


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
    """Failure record of an error; the hint goes into the detail, which people read."""
    return Failure(error.code, error.message + (f" ({error.hint})" if error.hint else ""))
