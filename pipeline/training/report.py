"""Report of a training run: one self-contained HTML page with curves, scores and sample predictions.

In: the history of a run, and sample predictions of its best weights. Out: a string. Nothing is read or written here;
names of files and classes are escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from pipeline.classes import ClassMap
from pipeline.page import frame, plots, predictions
from pipeline.page.plots import ACCENT, RULE, SOFT
from pipeline.records import Float64, Sample
from pipeline.training.state import Point

_PAGE_BYTES = 4_500_000
"""Largest size of all pictures together, bytes, so that the page can be mailed."""
SMOOTHED = 40
"""The smoothed loss is a moving mean over 1 / SMOOTHED of the run, because single points are noise."""


@dataclass(frozen=True, slots=True)
class ClassIoU:
    """IoU of one class."""

    name: str
    colour: tuple[int, int, int]
    iou: float | None
    """0 to 1; None if the class occurs neither in labels nor in predictions."""


def render_training(
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
    """Render a finished run as one HTML file below 5 MB.

    Args:
        name: title, the run's output.
        history: points of all curves by step, under the tracker's names.
        best_step: step of the validation whose weights were saved.
        phases: end step of each phase by name, in order.
        samples: predictions of those weights; as many are shown as fit.
        classes: names and colours.
        facts: facts about the run, shown in this order and unchanged, so without credentials.
        next_commands: shell commands to run next.
    """
    best = _validation_at(history, best_step)
    per_class = _per_class(best, classes)
    with mpl.rc_context(plots.STYLE):
        curves = [_loss(history, phases), _learning_rate(history, phases), _validation(history, best_step, phases)]
    return frame.load_template("training/report").render(
        name=name,
        best_step=best_step,
        steps=max(phases.values()),
        best=best,
        last=_curve(history, "validation/miou")[1][-1],
        speed=_mean(history, "speed/images_per_s"),
        data_wait=_mean(history, "speed/data_wait"),
        plots=curves,
        per_class=per_class,
        scored=sum(score.iou is not None for score in per_class),
        cards=predictions.prediction_cards(samples, classes, budget=_PAGE_BYTES),
        wrong=predictions.WRONG_COLOUR,
        edges=any(sample.edges_hw is not None for sample in samples),
        classes=classes,
        facts=facts,
        next_commands=next_commands,
    )


# ---------------------------------------------------------------- figures


def _curve(history: Sequence[Point], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one curve."""
    points = [(point.step, point.values[name]) for point in history if name in point.values]
    return [step for step, _ in points], [value for _, value in points]


def _validation_at(history: Sequence[Point], step: int) -> dict[str, float]:
    """Scores of the validation after `step` steps."""
    return next(point.values for point in history if point.step == step and "validation/miou" in point.values)


def _mean(history: Sequence[Point], name: str) -> float | None:
    """Mean of a curve; None if it has no point, in a very short run."""
    values = _curve(history, name)[1]
    return float(np.mean(values)) if values else None


def _per_class(best: Mapping[str, float], classes: ClassMap) -> list[ClassIoU]:
    """Classes by descending IoU; classes that do not occur come last."""
    scores = [ClassIoU(cls.name, cls.colour, best.get(f"validation/iou/{cls.name}")) for cls in classes.classes]
    return sorted(scores, key=lambda score: (score.iou is None, -(score.iou or 0.0)))


# ---------------------------------------------------------------- plots


def _loss(history: Sequence[Point], phases: Mapping[str, int]) -> Markup:
    figure, axes = plots.new_figure()
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
    return plots.figure_svg(figure, "loss", "training loss over the steps, and its moving mean")


def _learning_rate(history: Sequence[Point], phases: Mapping[str, int]) -> Markup:
    figure, axes = plots.new_figure()
    axes.plot(*_curve(history, "train/lr"), color=ACCENT, lw=1.6)
    axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    _mark(axes, phases)
    return plots.figure_svg(figure, "rate", "learning rate of the body over the steps")


def _validation(history: Sequence[Point], best_step: int, phases: Mapping[str, int]) -> Markup:
    figure, axes = plots.new_figure()
    steps, values = _curve(history, "validation/miou")
    axes.plot(steps, [100 * value for value in values], color=ACCENT, lw=1.6, marker="o", ms=3)
    axes.plot(best_step, 100 * values[steps.index(best_step)], "o", color=ACCENT, ms=7)
    axes.set(xlabel="step", ylabel="validation mean IoU, %")
    _mark(axes, phases)
    return plots.figure_svg(figure, "validation", "mean IoU of every validation; the large dot is what was kept")


def _mark(axes: Axes, phases: Mapping[str, int]) -> None:
    """Draw a vertical line where each later phase begins, with its name."""
    for name, begins in zip(list(phases)[1:], phases.values(), strict=False):
        axes.axvline(begins, color=RULE, lw=1.2)
        axes.annotate(
            name, (begins, 1), (3, -2), axes.get_xaxis_transform(), "offset points", color=SOFT, fontsize=8, va="top"
        )


def _smooth(values: Float64) -> Float64:
    """Moving mean over a centred window, which is truncated at both ends."""
    half = len(values) // (2 * SMOOTHED)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    smooth: Float64 = (sums[high] - sums[low]) / (high - low)
    return smooth
