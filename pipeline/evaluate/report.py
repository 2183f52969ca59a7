"""HTML report of an evaluation: scores, plots and pictures in one self-contained file.

In: evaluation, gate verdict, drift, season, history and sample images. Out: a string. Nothing is read or written here;
names of files and classes are escaped.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup

from pipeline.classes import ClassInfo, ClassMap
from pipeline.config import ScoreConfig
from pipeline.evaluate import plots as evaluation_plots
from pipeline.evaluate import trend
from pipeline.evaluate.evaluation import AnswerCounts, Evaluation
from pipeline.evaluate.gate import GateVerdict
from pipeline.evaluate.history import HistoryEntry
from pipeline.evaluate.scoring import Score, overall_scores, summed_scores
from pipeline.evaluate.trend import EvaluationSeries, group_series
from pipeline.page import frame, plots
from pipeline.page.predictions import WRONG_COLOUR, PredictionCard, prediction_cards
from pipeline.records import Int64, Sample
from pipeline.run.report import failures_by_code
from pipeline.score.coverage import mean_over
from pipeline.score.drift import Drift
from pipeline.score.intervals import Estimates, estimate
from pipeline.score.metrics import Interval, Scores
from pipeline.store.url import Url

WORST, BEST = 24, 8
"""Most images of a group on the page."""
PICTURE_BYTES = 3_500_000
"""Most bytes of all pictures, which keeps the page below 5 MB."""
MAX_CONFUSED_PAIRS = 14
"""Rows of the table of confused classes."""
TRENDS = 3
"""Plots of `trend.trend_plots` on this page: mean IoU, failures, cost."""
_ROWS_SHOWN = 16
_SEASON_ROWS = 40
"""Rows of a table shown without a click."""
_SCORE_TITLES = (
    ("mean_iou", "Mean IoU"),
    ("mean_iou_without_background", "Without background"),
    ("pixel_accuracy", "Pixel accuracy"),
    ("mean_accuracy", "Mean accuracy"),
    ("frequency_weighted_iou", "Frequency-weighted IoU"),
    ("mean_dice", "Mean Dice (F1)"),
    ("mean_boundary_iou", "Boundary IoU"),
    ("calibration_error", "Calibration error"),
)
"""Scores of all classes together and their titles on the page."""


@dataclass(frozen=True, slots=True)
class ScoredSetting:
    """Evaluation of one setting and its scores."""

    evaluation: Evaluation
    scores: Mapping[str, Sequence[Score]]
    """Scores by answer."""


@dataclass(frozen=True, slots=True)
class ClassRow:
    """Scores of one class; NaN where undefined."""

    info: ClassInfo
    support: float
    """Share of all labelled pixels, 0 to 1."""
    iou: Interval
    change: Interval | None
    """Difference of the IoU to the baseline; None without a baseline."""
    precision: float
    recall: float
    boundary: float


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """Scores of one answer of one setting."""

    setting: str
    answer: str
    scores: Mapping[str, Interval]
    gain: Interval | None
    """Difference in mean IoU to the network's own answer, paired by image; None for the network's own answer."""


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Pixels of one class predicted as another."""

    truth: ClassInfo
    answer: ClassInfo | None
    """Predicted class; None for the ignore id."""
    share: float
    """Share of the pixels labelled `truth`, 0 to 1."""
    pixels: int


def render_evaluation(
    setting: ScoredSetting,
    *,
    cfg: ScoreConfig,
    others: Sequence[ScoredSetting] = (),
    verdict: GateVerdict | None = None,
    drift: Sequence[Drift] = (),
    season: pd.DataFrame | None = None,
    history: Sequence[HistoryEntry] = (),
    samples: Sequence[Sample] = (),
    next_commands: Sequence[str] = (),
) -> str:
    """Lay out an evaluation as one HTML file below 5 MB.

    Args:
        setting: setting that the page reports.
        cfg: rules of its scores.
        others: further settings on the same source, for the table of settings.
        verdict: verdict of the gate; None without a gate.
        drift: drift of the images from those of training.
        season: `season.season_table` of the zones that the gates name; None without.
        history: entries including this evaluation, oldest first.
        samples: images of `shown_keys`, in any order; images that could not be read again are missing.
        next_commands: shell commands worth running next.
    """
    evaluation = setting.evaluation
    change = verdict.comparison.change if verdict and verdict.comparison else None
    total = evaluation.answer.counts_nkk.sum(axis=0)
    gains = {scored.evaluation.name: _refinement_gain(scored.evaluation, cfg) for scored in (setting, *others)}
    series = _series(history, evaluation)
    with mpl.rc_context(plots.STYLE):
        svgs = _render_plots(evaluation, gains[evaluation.name])
    return frame.load_template("evaluate/report", share=_share).render(
        evaluation=evaluation,
        level=f"{cfg.level:.0%}",
        score_titles=[
            (name, title)
            for name, title in _SCORE_TITLES
            if name in overall_scores(setting.scores[evaluation.answer.name])
        ],
        scores=overall_scores(setting.scores[evaluation.answer.name]),
        over=mean_over(summed_scores(evaluation.answer, evaluation.classes, cfg), evaluation.classes.names),
        verdict=verdict,
        change=change,
        rows=_class_rows(setting, change),
        confused_pairs=most_confused(total, evaluation.classes, most=MAX_CONFUSED_PAIRS),
        answers=[row for scored in (setting, *others) for row in _answer_rows(scored, gains[scored.evaluation.name])],
        several=bool(others),
        drift=drift,
        seasons=_season_rows(season) if season is not None else [],
        series=series,
        trend=trend.trend_plots(series, name="trend")[:TRENDS] if series else [],
        plots=svgs,
        pictures=_pictures(evaluation, samples),
        legend=_legend(samples, evaluation.classes),
        wrong=WRONG_COLOUR,
        edge_maps=sum(sample.edges_hw is not None for sample in samples),
        failures=failures_by_code(evaluation.codes, evaluation.failures),
        shown=_ROWS_SHOWN,
        season_rows=_SEASON_ROWS,
        next_commands=next_commands,
    )


def _season_rows(season: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Rows over all zones, then those of single zones that are outside, the farthest first."""
    single = season[season["zone"].notna() & (season["verdict"] == "outside")].sort_values("distance", ascending=False)
    return pd.concat([season[season["zone"].isna()], single]).to_dict("records")


def shown_keys(evaluation: Evaluation) -> tuple[list[str], list[str]]:
    """Keys of the worst images, the worst first, and of the best, the best first; no key twice."""
    worst = evaluation.worst(WORST)
    return worst, [key for key in evaluation.best(BEST) if key not in set(worst)]


def most_confused(counts: Int64, classes: ClassMap, *, most: int) -> list[ConfusedPair]:
    """Pairs of classes with the most confused pixels in (K, K + 1) counts; at most `most`, none without a pixel."""
    support = counts.sum(axis=1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[: min(most, np.count_nonzero(wrong))]
    infos = [*classes.classes, None]
    return [
        ConfusedPair(
            classes.classes[row], infos[column], float(wrong[row, column] / support[row]), int(wrong[row, column])
        )
        for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)
    ]


# ---------------------------------------------------------------- scores


def _class_scores(scores: Iterable[Score], name: str) -> dict[str, Interval]:
    """The score `name` of each class, by class name."""
    return {score.class_name: score.interval for score in scores if score.name == name and score.class_name}


def _class_rows(setting: ScoredSetting, change: Estimates | None) -> list[ClassRow]:
    """Rows of all classes by descending IoU, undefined ones last."""
    evaluation = setting.evaluation
    scores = setting.scores[evaluation.answer.name]
    iou, precision, recall, boundary = (
        _class_scores(scores, name) for name in ("iou", "precision", "recall", "boundary_iou")
    )
    support = evaluation.answer.scores.support / max(evaluation.answer.scores.support.sum(), 1)
    nothing = Interval(np.nan, np.nan, np.nan)
    rows = [
        ClassRow(
            info,
            float(support[index]),
            iou.get(info.name, nothing),
            change.iou[index] if change else None,
            precision.get(info.name, nothing).value,
            recall.get(info.name, nothing).value,
            boundary.get(info.name, nothing).value,
        )
        for index, info in enumerate(evaluation.classes.classes)
    ]
    return sorted(rows, key=lambda row: (np.isnan(row.iou.value), -row.iou.value))


def _answer_rows(setting: ScoredSetting, gain: Estimates | None) -> list[AnswerRow]:
    evaluation = setting.evaluation
    return [
        AnswerRow(
            evaluation.name,
            name,
            overall_scores(setting.scores[name]),
            gain.metrics["mean_iou"] if gain and answer is evaluation.answer else None,
        )
        for name, answer in evaluation.answers.items()
    ]


def _refinement_gain(evaluation: Evaluation, cfg: ScoreConfig) -> Estimates | None:
    """Paired differences of the refined answer to the network's own; None without refinement or without images."""
    network: AnswerCounts = next(iter(evaluation.answers.values()))
    if network is evaluation.answer or not len(network.counts_nkk):
        return None
    return estimate(
        evaluation.answer.counts_nkk,
        against_nkk=network.counts_nkk,
        samples=cfg.samples,
        seed=cfg.seed,
        level=cfg.level,
    )


def _series(history: Sequence[HistoryEntry], evaluation: Evaluation) -> EvaluationSeries | None:
    """Series of comparable evaluations in the history; None when this evaluation is the only one."""
    identity = (evaluation.run_url.place, evaluation.data_fp)
    for series in group_series(history):
        if len(series.judged) > 1 and identity in {
            (Url(entry.run_url).place, entry.data_fp) for entry in series.judged
        }:
            return series
    return None


# ---------------------------------------------------------------- plots and pictures


def _render_plots(evaluation: Evaluation, gain: Estimates | None) -> dict[str, Markup | None]:
    """Plots of the page by name; None for a plot without data."""
    calibrated = {name: answer.reliability for name, answer in evaluation.answers.items() if answer.reliability.any()}
    scored = len(evaluation.images) > 0
    return {
        "matrix": evaluation_plots.confusion_plot(evaluation.answer.counts_nkk.sum(axis=0), evaluation.classes)
        if scored
        else None,
        "bands": evaluation_plots.trimap_plot(evaluation) if scored and evaluation.widths_px else None,
        "reliability": evaluation_plots.reliability_plot(calibrated) if calibrated else None,
        "images": evaluation_plots.image_iou_histogram(evaluation.image_iou) if scored else None,
        "gain": evaluation_plots.class_gain_plot(gain.iou, evaluation.classes, evaluation.answer.name)
        if gain
        else None,
    }


def _pictures(
    evaluation: Evaluation, samples: Sequence[Sample]
) -> list[tuple[str, str, list[tuple[PredictionCard, str]]]]:
    """(title, order, cards with captions) of the worst and the best images."""
    by_key = {sample.key: sample for sample in samples}
    worst, best = ([by_key[key] for key in keys if key in by_key] for keys in shown_keys(evaluation))
    pictures = prediction_cards([*worst, *best], evaluation.classes, budget=PICTURE_BYTES)
    captions = _captions(evaluation, [card.key for card in pictures])
    shown = list(zip(pictures, captions, strict=True))
    groups = [
        ("Worst images", "lowest mean IoU first", shown[: len(worst)]),
        ("Best images", "highest mean IoU first", shown[len(worst) :]),
    ]
    return [group for group in groups if group[2]]


def _captions(evaluation: Evaluation, keys: Sequence[str]) -> list[str]:
    """Caption of each image: its mean IoU and its most confused pair of classes."""
    positions = {key: index for index, key in enumerate(evaluation.keys)}
    captions = []
    for key in keys:
        counts = evaluation.answer.counts_nkk[positions[key]]
        caption = f"mean IoU {_share(float(Scores(counts).mean_iou))}"
        for pair in most_confused(counts, evaluation.classes, most=1):
            caption += (
                f"; most confused: {pair.truth.name} predicted as {pair.answer.name if pair.answer else 'no class'}"
            )
        captions.append(caption)
    return captions


def _legend(samples: Sequence[Sample], classes: ClassMap) -> list[ClassInfo]:
    """Classes in any label or mask of the samples, by id."""
    present = {
        index for sample in samples for maps in (sample.truth_hw, sample.mask_hw) for index in np.unique(maps).tolist()
    }
    return [info for index, info in enumerate(classes.classes) if index in present]


def _share(value: float) -> str:
    """Format a score as percent without sign: 61.3; a dash for NaN."""
    return "–" if np.isnan(value) else f"{value * 100:.1f}"
