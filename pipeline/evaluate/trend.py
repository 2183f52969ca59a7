"""The page of a history: how scores, failures, cost and drift went from one evaluation to the next.

In: the entries of a history, oldest first. Out: one self-contained HTML file, or its plots for another page. Nothing is
read or written here; text is escaped, whatever classes and checkpoints are called.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from pipeline.evaluate.history import HistoryEntry
from pipeline.page import frame, plots
from pipeline.page.plots import ACCENT, ALARM, INK, RULE, SOFT
from pipeline.records import Float64
from pipeline.score.drift import MODERATE, QUANTITIES, SHIFTED

MAX_TABLE_ROWS = 30
"""Evaluations in the table at most, the newest."""
MAX_CLASS_ROWS = 40
"""Classes in the plot at most: those that changed most."""
LINE_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True, slots=True)
class EvaluationSeries:
    """Evaluations that can be compared: one setting on one source with one class map, oldest first."""

    source: str
    setting: str
    judged: list[HistoryEntry]
    """The answers in the masks."""
    others: dict[str, list[HistoryEntry]]
    """Further answers of the same evaluations, by name."""

    @property
    def newest(self) -> HistoryEntry:
        """The entry that is last."""
        return self.judged[-1]


def render_trend(entries: Sequence[HistoryEntry]) -> str:
    """Lay out a history, with at least one entry, as one HTML file."""
    return frame.load_template("evaluate/trend", signed=_signed).render(
        series=[(one, trend_plots(one, name=f"trend-{at}")) for at, one in enumerate(group_series(entries))],
        evaluations=sum(one.judged for one in entries),
        listed=MAX_TABLE_ROWS,
        shown=MAX_CLASS_ROWS,
    )


def group_series(entries: Iterable[HistoryEntry]) -> list[EvaluationSeries]:
    """Cut a history into series, that with the newest evaluation first."""
    found: dict[tuple[object, ...], list[HistoryEntry]] = defaultdict(list)
    for one in entries:
        found[one.source, one.setting, *one.classes].append(one)
    series = [_series(some) for some in found.values() if any(one.judged for one in some)]
    return sorted(series, key=lambda one: one.newest.time, reverse=True)


def _series(entries: Sequence[HistoryEntry]) -> EvaluationSeries:
    others: dict[str, list[HistoryEntry]] = defaultdict(list)
    for one in entries:
        if not one.judged:
            others[one.answer].append(one)
    return EvaluationSeries(entries[0].source, entries[0].setting, [one for one in entries if one.judged], dict(others))


def trend_plots(series: EvaluationSeries, *, name: str) -> list[Markup]:
    """Mean IoU with its interval, classes, failures, cost and drift over time; `name` tells their ids apart."""
    with mpl.rc_context(plots.STYLE):
        drawn = [_metric(series, name), _failed(series, name), _cost(series, name)]
        drawn += [_drift(series, name)] if _has_drift(series) else []
        return [*drawn, _classes(series, name)]


# ---------------------------------------------------------------- plots


def _metric(series: EvaluationSeries, name: str) -> Markup:
    """Of every answer; of the one in the masks with its interval and a cross where the gate failed."""
    figure, axes = plots.new_figure()
    for line, (answer, entries) in zip(LINE_STYLES[1:], series.others.items(), strict=False):
        axes.plot(_times(entries), _metrics(entries)[:, 0], line, color=SOFT, lw=1.2, label=answer)
    value, low, high = _metrics(series.judged).T
    axes.fill_between(_times(series.judged), low, high, color=ACCENT, alpha=0.18, lw=0)
    axes.plot(_times(series.judged), value, color=ACCENT, lw=1.8, marker="o", ms=3.5, label=series.newest.answer)
    failed = [one.verdict == "failed" for one in series.judged]
    if any(failed):
        axes.plot(_times(series.judged)[failed], value[failed], "X", color=ALARM, ms=7, ls="none", label="gate failed")
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1)
    axes.set(ylabel="mean IoU, %")
    return _over_time(figure, axes, f"{name}-metric", "mean IoU over time with its 95 % interval")


def _failed(series: EvaluationSeries, name: str) -> Markup:
    figure, axes = plots.new_figure()
    shares = [100 * one.failed / max(one.images + one.failed, 1) for one in series.judged]
    axes.plot(_times(series.judged), shares, color=ALARM, lw=1.6, marker="o", ms=3.5)
    axes.set(ylabel="images without a score, %", ylim=(0, max(1.0, *shares) * 1.08))
    return _over_time(figure, axes, f"{name}-failed", "share of images without a score over time")


def _cost(series: EvaluationSeries, name: str) -> Markup:
    figure, axes = plots.new_figure()
    each = [one.seconds / max(one.images + one.failed, 1) for one in series.judged]
    axes.plot(_times(series.judged), each, color=ACCENT, lw=1.6, marker="o", ms=3.5)
    axes.set(ylabel="work per image, seconds", ylim=(0, max(each) * 1.08 or 1.0))
    return _over_time(figure, axes, f"{name}-cost", "work of all workers per image over time")


def _drift(series: EvaluationSeries, name: str) -> Markup:
    figure, axes = plots.new_figure()
    for line, quantity in zip(LINE_STYLES, QUANTITIES, strict=True):
        values = [one.drift[quantity] for one in series.judged]
        label = quantity.replace("_", " ")
        axes.plot(_times(series.judged), values, line, color=ACCENT, lw=1.5, marker="o", ms=3, label=label)
    for bound, colour in ((MODERATE, SOFT), (SHIFTED, ALARM)):
        axes.axhline(bound, color=colour, lw=1, alpha=0.7)
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.8, columnspacing=1)
    axes.set(ylabel="population stability index", ylim=(0, None))
    return _over_time(figure, axes, f"{name}-drift", "distance from the images of training over time")


def _has_drift(series: EvaluationSeries) -> bool:
    return any(not np.isnan(value) for one in series.judged for value in one.drift.values())


def _classes(series: EvaluationSeries, name: str) -> Markup:
    """IoU of each class, one strip below the other, each from 0 to 100 %; what it is now on the right."""
    iou = np.array([[100 * one.value for one in entry.iou] for entry in series.judged])
    chosen = _most_changed(iou)
    figure, axes = plots.new_figure(height=0.9 + 0.34 * len(chosen))
    for row, index in enumerate(chosen):
        axes.axhline(row, color=RULE, lw=0.6)
        axes.plot(_times(series.judged), row - iou[:, index] / 125, color=ACCENT, lw=1.4, marker="o", ms=2)
        now = "–" if np.isnan(iou[-1, index]) else f"{iou[-1, index]:.1f}"
        axes.annotate(
            now,
            (1, row - 0.25),
            (4, 0),
            axes.get_yaxis_transform(),
            "offset points",
            color=INK,
            fontsize=8,
            va="center",
        )
    axes.set_yticks(np.arange(len(chosen)) - 0.25, [_short(series.newest.classes[index]) for index in chosen])
    axes.set_ylim(len(chosen) - 0.8, -1)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    return _over_time(
        figure, axes, f"{name}-classes", "IoU of each class over time; percent of the newest on the right"
    )


def _most_changed(iou_tk: Float64) -> list[int]:
    """Classes to show, in the order of their ids: all, or those between whose evaluations lies most."""
    highest, lowest = (edge(iou_tk, axis=0, initial=bad, where=~np.isnan(iou_tk)) for edge, bad in _EDGES)
    return sorted(np.argsort(lowest - highest, kind="stable")[:MAX_CLASS_ROWS].tolist())


_EDGES = ((np.max, -np.inf), (np.min, np.inf))


def _over_time(figure: Figure, axes: Axes, name: str, title: str) -> Markup:
    locator = AutoDateLocator(minticks=2, maxticks=6)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.xaxis.get_offset_text().set_color(SOFT)
    return plots.figure_svg(figure, name, title)


def _times(entries: Sequence[HistoryEntry]) -> np.ndarray[tuple[int], np.dtype[np.datetime64]]:
    return np.array([one.time.replace(tzinfo=None) for one in entries], "datetime64[us]")


def _metrics(entries: Sequence[HistoryEntry]) -> Float64:
    """(T, 3) mean IoU and its interval, percent."""
    found = [one.metrics["mean_iou"] for one in entries]
    return 100 * np.array([[one.value, one.low, one.high] for one in found])


# ---------------------------------------------------------------- words


def _short(label: str) -> str:
    return label if len(label) <= 22 else f"{label[:21]}…"


def _signed(share: float) -> str:
    """Percentage points with their sign; a dash for none."""
    return "–" if np.isnan(share) else f"{share * 100:+.2f}".replace("-", "\u2212")
