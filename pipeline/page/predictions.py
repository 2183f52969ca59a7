"""Prediction cards of a report: pictures of the image, its label, its mask, the wrong pixels, and its edge map.

In: samples. Out: cards, whose pictures are data URIs within a budget of bytes. Nothing is read or written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from pipeline.classes import ClassMap
from pipeline.page import frame
from pipeline.page.paint import paint, paint_edges
from pipeline.records import Bool, Sample, UInt8

PREDICTION_VIEWS = ("image", "truth", "prediction", "wrong")
"""Pictures of each sample, left to right."""
EDGE_VIEW = "edge map"
"""One more picture, for networks that predict edges."""
PICTURE_SIDES_PX = (360, 240, 160)
"""Longest side of the pictures, pixels: the first value at which all cards fit the budget."""
WRONG_COLOUR = (208, 52, 44)
"""Colour of a pixel whose prediction differs from its label."""


@dataclass(frozen=True, slots=True)
class PredictionCard:
    """Pictures of one sample for a page."""

    key: str
    views: dict[str, str]
    """Data URI by name of `PREDICTION_VIEWS`, and of `EDGE_VIEW` where there is an edge map."""
    width: int
    """Of each picture, pixels."""
    height: int
    wrong: float
    """Share of labelled pixels that are wrong, 0 to 1."""


def prediction_cards(samples: Sequence[Sample], classes: ClassMap, *, budget: int) -> list[PredictionCard]:
    """Cards whose data URIs take at most `budget` bytes: smaller pictures first, then fewer cards."""
    for longer_px in PICTURE_SIDES_PX:
        shown = [_card(sample, classes, longer_px) for sample in samples]
        ends = np.cumsum([sum(map(len, card.views.values())) for card in shown])
        if not shown or ends[-1] <= budget:
            return shown
    return shown[: int(np.searchsorted(ends, budget, side="right"))]


def _card(sample: Sample, classes: ClassMap, longer_px: int) -> PredictionCard:
    small = _shrunk(sample, longer_px)
    height, width = small.truth_hw.shape
    missed = np.where(_missed(small, classes)[..., None], np.array(WRONG_COLOUR, np.uint8), small.image_hwc // 2 + 96)
    painted = paint(small.truth_hw, classes), paint(small.mask_hw, classes)
    pictures = [(small.image_hwc, "JPEG"), (painted[0], "PNG"), (painted[1], "PNG"), (missed, "JPEG")]
    names = [*PREDICTION_VIEWS]
    if small.edges_hw is not None:
        pictures.append((paint_edges(small.edges_hw), "JPEG"))
        names.append(EDGE_VIEW)
    uris = [frame.data_uri(_encoded(pixels, kind), kind) for pixels, kind in pictures]
    labelled = int((sample.truth_hw != classes.ignore_id).sum())
    wrong = float(_missed(sample, classes).sum() / max(labelled, 1))
    return PredictionCard(sample.key, dict(zip(names, uris, strict=True)), width, height, wrong)


def _missed(sample: Sample, classes: ClassMap) -> Bool:
    """(H, W): labelled pixels whose prediction differs from the label."""
    missed: Bool = (sample.truth_hw != classes.ignore_id) & (sample.truth_hw != sample.mask_hw)
    return missed


def _shrunk(sample: Sample, longer_px: int) -> Sample:
    """The sample with its longer side at `longer_px` at most; labels are never interpolated."""
    height, width = sample.truth_hw.shape
    scale = min(1.0, longer_px / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    nearest = Image.Resampling.NEAREST
    edges = sample.edges_hw
    return Sample(
        sample.key,
        np.asarray(Image.fromarray(sample.image_hwc).resize(size, Image.Resampling.BOX)),
        np.asarray(Image.fromarray(sample.truth_hw).resize(size, nearest)),
        np.asarray(Image.fromarray(sample.mask_hw).resize(size, nearest)),
        None if edges is None else np.asarray(Image.fromarray(edges).resize(size, Image.Resampling.BOX)),
    )


def _encoded(pixels_hwc: UInt8, kind: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels_hwc).save(buffer, kind, quality=88, optimize=kind == "JPEG")
    return buffer.getvalue()
