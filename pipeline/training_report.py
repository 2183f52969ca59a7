"""The page of a training run: one self-contained HTML file with its curves, scores and predictions inside.

In: what was measured step by step, and samples of the weights that are kept. Out: a string. Nothing is read or written
here; text is escaped, whatever files and classes are called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from PIL import Image

from pipeline import page, plots
from pipeline.classes import ClassMap
from pipeline.metrics import Float64
from pipeline.paint import paint
from pipeline.plots import ACCENT, RULE, SOFT
from pipeline.records import UInt8
from pipeline.training.state import Point
from pipeline.training.tracker import Sample

VIEWS = ("image", "truth", "prediction", "wrong")
"""What is shown of each sample, left to right."""
PICTURE_PX = 360
"""Longer side of each picture at most."""
PAGE_BYTES = 4_500_000
"""Bytes all pictures of the page may take, so that the page can be mailed."""
WRONG = (208, 52, 44)
"""Colour of a pixel whose prediction is not its label."""
SMOOTHED = 40
"""The loss is also drawn as its mean over one part in this many of the run: single points of it are noise."""


@dataclass(frozen=True, slots=True)
class ClassIoU:
    """How well one class is found."""

    name: str
    colour: tuple[int, int, int]
    iou: float | None
    """0 to 1; None when it occurs neither in labels nor in predictions."""


@dataclass(frozen=True, slots=True)
class Card:
    """One sample, ready for the page."""

    key: str
    uris: tuple[str, ...]
    """Data URIs in the order of `VIEWS`."""
    width: int
    """Of each picture, pixels."""
    height: int
    wrong: float
    """Share of labelled pixels that are wrong, 0 to 1."""


def render(
    *,
    name: str,
    history: Sequence[Point],
    best_step: int,
    phases: Mapping[str, int],
    samples: Sequence[Sample],
    classes: ClassMap,
    facts: Mapping[str, str],
    next_commands: Sequence[str] = (),
) -> str:
    """Lay out a finished run as one HTML file below 5 MB.

    Args:
        name: of the run.
        history: every point of every curve, by step, under the names the tracker is given.
        best_step: the validation whose weights were kept.
        phases: name to the step it ends at, in their order.
        samples: predictions of those weights; as many are shown as fit.
        classes: names and colours.
        facts: what to know about the run, in this order. Shown as given, so without credentials.
        next_commands: shell commands worth running next.
    """
    best = _at(history, best_step)
    with mpl.rc_context(plots.STYLE):
        drawn = [_loss(history, phases), _learning_rate(history, phases), _validation(history, best_step, phases)]
    return page.template("training_report").render(
        name=name,
        best_step=best_step,
        steps=max(phases.values()),
        best=best,
        last=_curve(history, "validation/miou")[1][-1],
        speed=_mean(history, "speed/images_per_s"),
        data_wait=_mean(history, "speed/data_wait"),
        plots=drawn,
        per_class=_per_class(best, classes),
        cards=_cards(samples, classes),
        views=VIEWS,
        wrong=WRONG,
        classes=classes,
        facts=facts,
        next_commands=next_commands,
    )


# ---------------------------------------------------------------- figures


def _curve(history: Sequence[Point], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one curve."""
    points = [(one.step, one.values[name]) for one in history if name in one.values]
    return [step for step, _ in points], [value for _, value in points]


def _at(history: Sequence[Point], step: int) -> dict[str, float]:
    """What the validation after `step` steps found."""
    return next(one.values for one in history if one.step == step and "validation/miou" in one.values)


def _mean(history: Sequence[Point], name: str) -> float | None:
    """Of all points; None for a run too short to have one."""
    values = _curve(history, name)[1]
    return float(np.mean(values)) if values else None


def _per_class(best: Mapping[str, float], classes: ClassMap) -> list[ClassIoU]:
    """Every class, the best first, those that do not occur last."""
    found = [ClassIoU(one.name, one.colour, best.get(f"validation/iou/{one.name}")) for one in classes.classes]
    return sorted(found, key=lambda one: (one.iou is None, -(one.iou or 0.0)))


# ---------------------------------------------------------------- plots


def _loss(history: Sequence[Point], phases: Mapping[str, int]) -> Markup:
    figure, axes = plots.figure()
    steps, values = _curve(history, "train/loss")
    axes.plot(steps, values, color=SOFT, lw=0.7, alpha=0.5)
    axes.plot(steps, _smooth(np.array(values)), color=ACCENT, lw=1.6)
    if values and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.set(xlabel="step", ylabel="loss")
    _mark(axes, phases)
    return plots.svg(figure, "loss", "training loss over the steps, and its moving mean")


def _learning_rate(history: Sequence[Point], phases: Mapping[str, int]) -> Markup:
    figure, axes = plots.figure()
    axes.plot(*_curve(history, "train/lr"), color=ACCENT, lw=1.6)
    axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    _mark(axes, phases)
    return plots.svg(figure, "rate", "learning rate of the body over the steps")


def _validation(history: Sequence[Point], best_step: int, phases: Mapping[str, int]) -> Markup:
    figure, axes = plots.figure()
    steps, values = _curve(history, "validation/miou")
    axes.plot(steps, [100 * value for value in values], color=ACCENT, lw=1.6, marker="o", ms=3)
    axes.plot(best_step, 100 * values[steps.index(best_step)], "o", color=ACCENT, ms=7)
    axes.set(xlabel="step", ylabel="validation mean IoU, %")
    _mark(axes, phases)
    return plots.svg(figure, "validation", "mean IoU of every validation; the large dot is what was kept")


def _mark(axes: Axes, phases: Mapping[str, int]) -> None:
    """A line where each later phase begins, with its name."""
    for name, begins in zip(list(phases)[1:], phases.values(), strict=False):
        axes.axvline(begins, color=RULE, lw=1.2)
        axes.annotate(
            name, (begins, 1), (3, -2), axes.get_xaxis_transform(), "offset points", color=SOFT, fontsize=8, va="top"
        )


def _smooth(values: Float64) -> Float64:
    """Mean over a window around each point, which is cut off at both ends."""
    half = len(values) // (2 * SMOOTHED)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    smooth: Float64 = (sums[high] - sums[low]) / (high - low)
    return smooth


# ---------------------------------------------------------------- pictures


def _cards(samples: Sequence[Sample], classes: ClassMap) -> list[Card]:
    """Cards of the first samples whose data URIs fit into `PAGE_BYTES`."""
    cards: list[Card] = []
    left = PAGE_BYTES
    for sample in samples:
        card = _card(_shrunk(sample), classes)
        left -= sum(map(len, card.uris))
        if left < 0:
            break
        cards.append(card)
    return cards


def _card(sample: Sample, classes: ClassMap) -> Card:
    labelled = sample.truth_hw != classes.ignore_id
    missed = labelled & (sample.truth_hw != sample.mask_hw)
    pictures = (
        (sample.image_hwc, "JPEG"),
        (paint(sample.truth_hw, classes), "PNG"),
        (paint(sample.mask_hw, classes), "PNG"),
        (np.where(missed[..., None], np.array(WRONG, np.uint8), sample.image_hwc // 2 + 96), "JPEG"),
    )
    height, width = sample.truth_hw.shape
    uris = tuple(page.uri(_encoded(pixels, kind), kind) for pixels, kind in pictures)
    return Card(sample.key, uris, width, height, float(missed.sum() / max(labelled.sum(), 1)))


def _shrunk(sample: Sample) -> Sample:
    """The sample with its longer side at `PICTURE_PX` at most; labels are never interpolated."""
    height, width = sample.truth_hw.shape
    scale = min(1.0, PICTURE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    nearest = Image.Resampling.NEAREST
    return Sample(
        sample.key,
        np.asarray(Image.fromarray(sample.image_hwc).resize(size, Image.Resampling.BOX)),
        np.asarray(Image.fromarray(sample.truth_hw).resize(size, nearest)),
        np.asarray(Image.fromarray(sample.mask_hw).resize(size, nearest)),
    )


def _encoded(pixels_hwc: UInt8, kind: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels_hwc).save(buffer, kind, quality=88, optimize=True)
    return buffer.getvalue()
