"""HTML report of a parameter search: one self-contained file with its plots as SVG.

In: the outcome of a search. Out: a string. Nothing is read or written here; names of files and classes are escaped.
"""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from markupsafe import Markup

from pipeline.classes import ClassMap
from pipeline.page import frame, plots
from pipeline.page.plots import ACCENT, ALARM, SOFT
from pipeline.score.metrics import Interval
from pipeline.tune.chunks import ClassGain, ComparedCandidate, SearchOutcome
from pipeline.tune.search import SEARCHED_PARAMS

_LEFT_OUT_SHOWN = 200
"""Most left-out images on the page."""
AXIS_NAMES = {
    "bi_w": "bi_w, weight of the bilateral kernel (w1)",
    "bi_xy": "bi_xy, its spatial sigma, px (theta alpha)",
    "bi_rgb": "bi_rgb, its sigma in colour (theta beta)",
}


def render_search(
    outcome: SearchOutcome,
    *,
    classes: ClassMap,
    left_out: Sequence[tuple[str, str]],
    facts: Mapping[str, str],
    params: str,
) -> str:
    """Lay out the outcome of a search as one HTML file.

    Args:
        outcome: outcome of the search.
        classes: names and colours.
        left_out: (key, reason) of images that took no part.
        facts: facts about the search, in this order; shown as given: pass no credentials.
        params: text of params.yaml.
    """
    with mpl.rc_context(plots.STYLE):
        svgs = {
            "searched": [_parameter_plot(outcome, name) for name in SEARCHED_PARAMS],
            "contenders": _gain_plot(
                [(contender.name, contender.gain) for contender in outcome.contenders if contender.gain], "contenders"
            ),
            "classes": _gain_plot([(gain.name, gain.gain) for gain in _by_gain(outcome.class_gains)], "classes"),
            "bands": _trimap_plot(outcome) if outcome.widths_px else None,
        }
    return frame.load_template("tune/report").render(
        outcome=outcome,
        plots=svgs,
        colours={info.name: info.colour for info in classes.classes},
        class_gains=_by_gain(outcome.class_gains),
        unseen=[gain.name for gain in outcome.class_gains if np.isnan(gain.gain.value)],
        left_out=left_out,
        shown=_LEFT_OUT_SHOWN,
        facts=facts,
        params=params,
    )


def _by_gain(gains: Sequence[ClassGain]) -> list[ClassGain]:
    return sorted((gain for gain in gains if not np.isnan(gain.gain.value)), key=lambda gain: -gain.gain.value)


# ---------------------------------------------------------------- plots


def _gain_plot(rows: Sequence[tuple[str, Interval]], name: str) -> Markup:
    return plots.forest_plot(rows, f"forest-{name}", title=f"differences to no CRF: {name}", than="no CRF")


def _parameter_plot(outcome: SearchOutcome, name: str) -> Markup:
    """Plot mean IoU of every candidate over one parameter; a line joins the best grid candidate at each value."""
    figure, axes = plots.new_figure(width=3.7, height=2.9)
    tried = [
        (result.candidate.stage, getattr(result.candidate.params, name), result.mean_iou * 100)
        for result in outcome.results[1:]
    ]
    values = sorted({value for stage, value, _ in tried if stage})
    axes.plot(
        values,
        [max(iou for stage, tried_value, iou in tried if stage and tried_value == value) for value in values],
        color=ACCENT,
    )
    for published, marker in ((False, "o"), (True, "x")):
        dots = [(value, iou) for stage, value, iou in tried if published is (stage == 0)]
        axes.plot(*zip(*dots, strict=True), marker, ms=3.5, mew=0.9 if published else 0, color=SOFT, alpha=0.6)
    axes.plot(getattr(outcome.best.candidate.params, name), outcome.best.mean_iou * 100, "o", ms=7, color=ACCENT)
    level = outcome.none.mean_iou * 100
    axes.axhline(level, color=ALARM, lw=1.2, ls="--")
    side = axes.get_yaxis_transform()
    axes.annotate("no CRF", (1, level), (0, 3), side, "offset points", color=ALARM, ha="right", fontsize=8)
    axes.set(xlabel=AXIS_NAMES[name], ylabel="mean IoU, %")
    return plots.figure_svg(figure, f"searched-{name}", f"mean IoU of every candidate over {name}")


def _trimap_plot(outcome: SearchOutcome) -> Markup:
    """Plot mean IoU within bands around label boundaries over their width."""
    figure, axes = plots.new_figure()
    none, best, *presets = outcome.contenders
    for contender in presets:
        axes.plot(outcome.widths_px, _band_ious_percent(contender), color=SOFT, lw=0.8, alpha=0.5)
    axes.plot([], [], color=SOFT, lw=0.8, alpha=0.5, label="published parameters")
    axes.plot(
        outcome.widths_px,
        _band_ious_percent(best),
        color=ACCENT,
        lw=1.8,
        marker="o",
        ms=3,
        label=plots.shorten_label(best.name),
    )
    axes.plot(
        outcome.widths_px, _band_ious_percent(none), color=ALARM, lw=1.4, ls="--", marker="o", ms=3, label="no CRF"
    )
    axes.set(xlabel="width of the band on either side of a boundary, px", ylabel="mean IoU, %", xlim=(0, None))
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.4, columnspacing=1)
    return plots.figure_svg(figure, "bands", "mean IoU within bands around boundaries")


def _band_ious_percent(contender: ComparedCandidate) -> list[float]:
    return [iou * 100 for iou in contender.band_ious]
