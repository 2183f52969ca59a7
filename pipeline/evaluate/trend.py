"""HTML report of a history: mean IoU, IoU per class, failures, cost and drift over time.

In: entries of a history, oldest first. Out: one self-contained HTML file, or its plots for another page. Nothing is
read or written here; names of classes and checkpoints are escaped.
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

from pipeline.evaluate.history import HistoryEntry, source_text
from pipeline.page import frame, plots
from pipeline.page.plots import ACCENT, ALARM, INK, RULE, SOFT
from pipeline.records import Float64
from pipeline.score.drift import MODERATE, QUANTITIES, SHIFTED

MAX_TABLE_ROWS = 30
"""Most evaluations in the table, newest first."""
MAX_CLASS_ROWS = 40
"""Most classes in the plot: those whose IoU changed most."""
LINE_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True, slots=True)
class EvaluationSeries:
    """Comparable evaluations: one setting, source and list of classes, oldest first."""

    source: str
    setting: str
    judged: list[HistoryEntry]
    """Entries of the answers stored as masks."""
    others: dict[str, list[HistoryEntry]]
    """Entries of the other answers, by answer."""

    @property
    def newest(self) -> HistoryEntry:
        """The newest entry."""
        return self.judged[-1]


def render_trend(entries: Sequence[HistoryEntry]) -> str:
    """Lay out a history of at least one entry as one HTML file."""
    return frame.load_template("evaluate/trend", signed=_signed).render(
        series=[
            (series, trend_plots(series, name=f"trend-{number}")) for number, series in enumerate(group_series(entries))
        ],
        evaluations=sum(entry.judged for entry in entries),
        listed=MAX_TABLE_ROWS,
        shown=MAX_CLASS_ROWS,
    )


def group_series(entries: Iterable[HistoryEntry]) -> list[EvaluationSeries]:
    """Group entries into series, the one with the newest evaluation first."""
    groups: dict[tuple[object, ...], list[HistoryEntry]] = defaultdict(list)
    for entry in entries:
        groups[source_text(entry.source.split(", ")), entry.setting, *entry.classes].append(entry)
    series = [_series(group) for group in groups.values() if any(entry.judged for entry in group)]
    return sorted(series, key=lambda group: group.newest.time, reverse=True)


def _series(entries: Sequence[HistoryEntry]) -> EvaluationSeries:
    others: dict[str, list[HistoryEntry]] = defaultdict(list)
    for entry in entries:
        if not entry.judged:
            others[entry.answer].append(entry)
    return EvaluationSeries(
        entries[0].source, entries[0].setting, [entry for entry in entries if entry.judged], dict(others)
    )


def trend_plots(series: EvaluationSeries, *, name: str) -> list[Markup]:
    """Plots over time: mean IoU, failures, cost, drift if known, IoU per class; `name` makes their ids unique."""
    with mpl.rc_context(plots.STYLE):
        svgs = [_miou_plot(series, name), _failure_plot(series, name), _cost_plot(series, name)]
        svgs += [_drift_plot(series, name)] if _has_drift(series) else []
        return [*svgs, _class_plot(series, name)]


# ---------------------------------------------------------------- plots


def _miou_plot(series: EvaluationSeries, name: str) -> Markup:
    """Mean IoU of every answer; of the answer stored as masks with its interval, and a cross at each failed gate."""
    figure, axes = plots.new_figure()
    for line, (answer, entries) in zip(LINE_STYLES[1:], series.others.items(), strict=False):
        axes.plot(_times(entries), _miou_intervals(entries)[:, 0], line, color=SOFT, lw=1.2, label=answer)
    value, low, high = _miou_intervals(series.judged).T
    axes.fill_between(_times(series.judged), low, high, color=ACCENT, alpha=0.18, lw=0)
    axes.plot(_times(series.judged), value, color=ACCENT, lw=1.8, marker="o", ms=3.5, label=series.newest.answer)
    failed = [entry.verdict == "failed" for entry in series.judged]
    if any(failed):
        axes.plot(_times(series.judged)[failed], value[failed], "X", color=ALARM, ms=7, ls="none", label="gate failed")
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1)
    axes.set(ylabel="mean IoU, %")
    return _finish_plot(figure, axes, f"{name}-metric", "mean IoU over time with its 95 % interval")


def _failure_plot(series: EvaluationSeries, name: str) -> Markup:
    figure, axes = plots.new_figure()
    shares = [100 * entry.failed / max(entry.images + entry.failed, 1) for entry in series.judged]
    axes.plot(_times(series.judged), shares, color=ALARM, lw=1.6, marker="o", ms=3.5)
    axes.set(ylabel="images without a score, %", ylim=(0, max(1.0, *shares) * 1.08))
    return _finish_plot(figure, axes, f"{name}-failed", "share of images without a score over time")


def _cost_plot(series: EvaluationSeries, name: str) -> Markup:
    figure, axes = plots.new_figure()
    seconds = [entry.seconds / max(entry.images + entry.failed, 1) for entry in series.judged]
    axes.plot(_times(series.judged), seconds, color=ACCENT, lw=1.6, marker="o", ms=3.5)
    axes.set(ylabel="work per image, seconds", ylim=(0, max(seconds) * 1.08 or 1.0))
    return _finish_plot(figure, axes, f"{name}-cost", "work of all workers per image over time")


def _drift_plot(series: EvaluationSeries, name: str) -> Markup:
    figure, axes = plots.new_figure()
    for line, quantity in zip(LINE_STYLES, QUANTITIES, strict=True):
        values = [entry.drift[quantity] for entry in series.judged]
        label = quantity.replace("_", " ")
        axes.plot(_times(series.judged), values, line, color=ACCENT, lw=1.5, marker="o", ms=3, label=label)
    for bound, colour in ((MODERATE, SOFT), (SHIFTED, ALARM)):
        axes.axhline(bound, color=colour, lw=1, alpha=0.7)
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.8, columnspacing=1)
    axes.set(ylabel="population stability index", ylim=(0, None))
    return _finish_plot(figure, axes, f"{name}-drift", "drift from the images of training over time")


def _has_drift(series: EvaluationSeries) -> bool:
    return any(not np.isnan(value) for entry in series.judged for value in entry.drift.values())


def _class_plot(series: EvaluationSeries, name: str) -> Markup:
    """IoU of each class, one strip of 0 to 100 % each; the newest value on the right."""
    iou = np.array([[100 * interval.value for interval in entry.iou] for entry in series.judged])
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
    axes.set_yticks(np.arange(len(chosen)) - 0.25, [_shorten(series.newest.classes[index]) for index in chosen])
    axes.set_ylim(len(chosen) - 0.8, -1)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    return _finish_plot(
        figure, axes, f"{name}-classes", "IoU of each class over time; percent of the newest on the right"
    )


def _most_changed(iou_tk: Float64) -> list[int]:
    """Ids of the classes with the largest range of IoU over (T, K), at most `MAX_CLASS_ROWS`, ascending."""
    highest, lowest = (edge(iou_tk, axis=0, initial=bad, where=~np.isnan(iou_tk)) for edge, bad in _EDGES)
    return sorted(np.argsort(lowest - highest, kind="stable")[:MAX_CLASS_ROWS].tolist())


_EDGES = ((np.max, -np.inf), (np.min, np.inf))


def _finish_plot(figure: Figure, axes: Axes, name: str, title: str) -> Markup:
    locator = AutoDateLocator(minticks=2, maxticks=6)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.xaxis.get_offset_text().set_color(SOFT)
    return plots.figure_svg(figure, name, title)


def _times(entries: Sequence[HistoryEntry]) -> np.ndarray[tuple[int], np.dtype[np.datetime64]]:
    return np.array([entry.time.replace(tzinfo=None) for entry in entries], "datetime64[us]")


def _miou_intervals(entries: Sequence[HistoryEntry]) -> Float64:
    """(T, 3) mean IoU and its interval, percent."""
    intervals = [entry.metrics["mean_iou"] for entry in entries]
    return 100 * np.array([[interval.value, interval.low, interval.high] for interval in intervals])


# ---------------------------------------------------------------- words


def _shorten(label: str) -> str:
    return label if len(label) <= 22 else f"{label[:21]}…"


def _signed(share: float) -> str:
    """Format percentage points with sign; a dash for NaN."""
    return "–" if np.isnan(share) else f"{share * 100:+.2f}".replace("-", "\u2212")
