"""Plots of the evaluation report: confusion matrix, trimap IoU, reliability, IoU per image, gain per class.

In: counts and scores. Out: SVG elements in the page's colours. Callers draw within `rc_context(plots.STYLE)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from pipeline.classes import ClassMap
from pipeline.evaluate.evaluation import Evaluation
from pipeline.page import plots
from pipeline.page.plots import ACCENT, INK, SOFT
from pipeline.records import Float64, Int64
from pipeline.score.calibration import reliability_curve
from pipeline.score.metrics import Interval, Scores

SHADES = 16
"""Shades of the confusion matrix."""
DARKEST = 0.75
"""Opacity of a share of 1, at which numbers stay legible in light and dark mode."""
FAINTEST = 0.005
"""Least share of a row that is drawn."""
MAX_CELLS = 4000
"""Most cells of the confusion matrix drawn, the largest shares first: a cell takes a hundred bytes."""
MAX_NUMBERED_CLASSES, MAX_LABELLED_CLASSES = 20, 40
"""Most classes with numbers in the cells, and with names at rows and columns."""
MAX_GAIN_ROWS = 24
"""Most classes in the plot of gains: half with the largest gains, half with the largest losses."""


def confusion_plot(counts: Int64, classes: ClassMap) -> Markup:
    """Plot the confusion matrix (K, K + 1), each row in percent of its labels; the last column only if used."""
    used = counts if counts[:, -1].any() else counts[:, :-1]
    shares = used / np.maximum(used.sum(axis=1, keepdims=True), 1)
    names = [*classes.names, "(no class)"][: used.shape[1]]
    cell = 0.36 if len(classes) <= MAX_NUMBERED_CLASSES else 7.2 / len(classes)
    figure, axes = plots.new_figure(width=1.4 + cell * len(names), height=1.2 + cell * len(classes))
    _shade_cells(axes, shares)
    if len(classes) <= MAX_NUMBERED_CLASSES:
        for row, column in np.argwhere(shares >= FAINTEST):
            text = f"{shares[row, column] * 100:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=INK)
    size = 9 if len(classes) <= MAX_NUMBERED_CLASSES else 6.5
    labels = [plots.shorten_label(name, 18) for name in names] if len(classes) <= MAX_LABELLED_CLASSES else []
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=90, fontsize=size)
    axes.set_yticks(ticks[: len(classes)], labels[: len(classes)], fontsize=size)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(classes) - 0.5, -0.5), xlabel="prediction", ylabel="label")
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.spines[["top", "right"]].set_visible(True)
    return plots.figure_svg(
        figure, "matrix", "confusion matrix, each row in percent of the pixels labelled as one class"
    )


def _shade_cells(axes: Axes, shares: Float64) -> None:
    """Draw cells, opacity by the square root of the share; one path per shade keeps the SVG small."""
    shades = np.ceil(np.sqrt(shares) * SHADES).astype(int)
    faintest = np.sort(shares, axis=None)[-MAX_CELLS:][0]
    shades[shares < max(FAINTEST, faintest)] = 0
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])
    square = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    for shade in np.unique(shades[shades > 0]):
        centres = np.argwhere(shades == shade)[:, None, ::-1]
        path = Path((centres + corners).reshape(-1, 2), square * len(centres))
        axes.add_patch(PathPatch(path, facecolor=ACCENT, alpha=DARKEST * shade / SHADES, lw=0))


def trimap_plot(evaluation: Evaluation) -> Markup:
    """Plot mean IoU within bands around label boundaries over band width: the trimap figure of the DeepLab papers."""
    figure, axes = plots.new_figure()
    for (name, answer), style in zip(evaluation.answers.items(), _line_styles(evaluation.answers), strict=True):
        axes.plot(evaluation.widths_px, Scores(answer.bands_bkk).mean_iou * 100, marker="o", ms=3, label=name, **style)
    whole = float(evaluation.answer.scores.mean_iou) * 100
    axes.axhline(whole, color=SOFT, lw=0.8, ls=":")
    side = axes.get_yaxis_transform()
    axes.annotate("whole images", (1, whole), (0, 3), side, "offset points", color=SOFT, ha="right", fontsize=8)
    axes.set(xlabel="width of the band on either side of a boundary, px", ylabel="mean IoU, %", xlim=(0, None))
    _legend(axes)
    return plots.figure_svg(figure, "bands", "mean IoU within bands around boundaries")


def reliability_plot(counts: Mapping[str, Int64]) -> Markup:
    """Reliability diagram: accuracy over confidence of each answer, and the histogram of the last one's confidence."""
    figure, axes = plots.new_figure()
    axes.plot([0, 100], [0, 100], color=SOFT, lw=0.8, ls=":")
    for (name, reliability), style in zip(counts.items(), _line_styles(counts), strict=True):
        curve = reliability_curve(reliability)
        occupied = curve.pixels > 0
        axes.plot(
            curve.confidence[occupied] * 100, curve.accuracy[occupied] * 100, marker="o", ms=3, label=name, **style
        )
    edges = np.linspace(0, 100, len(curve.pixels) + 1)
    heights = curve.pixels / curve.pixels.sum() * 100
    axes.bar(edges[:-1], heights, np.diff(edges), align="edge", color=SOFT, alpha=0.25, label="share of pixels")
    axes.set(xlabel="confidence, %", ylabel="correct pixels, %", xlim=(0, 100), ylim=(0, 100))
    _legend(axes)
    return plots.figure_svg(figure, "reliability", "share of correct pixels over confidence")


def image_iou_histogram(iou: Float64) -> Markup:
    """Histogram of the mean IoU of each image."""
    figure, axes = plots.new_figure()
    known = iou[~np.isnan(iou)] * 100
    axes.hist(known, bins=list(range(0, 101, 5)), color=ACCENT, alpha=0.6)
    if len(known):
        axes.axvline(np.median(known), color=INK, lw=1)
        side = axes.get_xaxis_transform()
        axes.annotate(
            "median", (np.median(known), 1), (-3, -2), side, "offset points", ha="right", va="top", fontsize=8
        )
    axes.set(xlabel="mean IoU of an image, %", ylabel="images", xlim=(0, 100))
    return plots.figure_svg(figure, "images", "number of images over their mean IoU")


def class_gain_plot(iou: Sequence[Interval], classes: ClassMap, engine: str) -> Markup:
    """Plot the IoU change by refinement per class, largest gain on top; at most `MAX_GAIN_ROWS` classes."""
    known = [(name, gain) for name, gain in zip(classes.names, iou, strict=True) if not np.isnan(gain.value)]
    rows = sorted(known, key=lambda row: -row[1].value)
    if len(rows) > MAX_GAIN_ROWS:
        rows = rows[: MAX_GAIN_ROWS // 2] + rows[-MAX_GAIN_ROWS // 2 :]
    title = f"differences of {engine} to the network alone"
    return plots.forest_plot(rows, "gains", title=title, than="the network alone")


def _line_styles(answers: Mapping[str, object]) -> list[dict[str, Any]]:
    """Line style of each answer; the last answer, stored as masks, is solid in the accent colour."""
    return [{"color": SOFT, "lw": 1.4, "ls": "--"}] * (len(answers) - 1) + [{"color": ACCENT, "lw": 1.8}]


def _legend(axes: Axes) -> None:
    axes.figure.legend(loc="outside upper left", ncols=3, handlelength=1.4, columnspacing=1)
