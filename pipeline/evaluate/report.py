"""The page of an evaluation: one self-contained HTML file with its scores, plots and pictures inside.

In: what was measured, what the gate said, what was measured before, and predictions to look at. Out: a string. Nothing
is read or written here; text is escaped, whatever files and classes are called.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup

from pipeline.classes import ClassInfo, ClassMap
from pipeline.config import ScoreConfig
from pipeline.evaluate import plots as evaluation_plots
from pipeline.evaluate import trend
from pipeline.evaluate.evaluation import AnswerCounts, Evaluation
from pipeline.evaluate.gate import GateVerdict
from pipeline.evaluate.history import HistoryEntry
from pipeline.evaluate.scoring import Score, overall_scores
from pipeline.evaluate.trend import EvaluationSeries, group_series
from pipeline.page import frame, plots
from pipeline.page.predictions import WRONG_COLOUR, PredictionCard, prediction_cards
from pipeline.records import Int64, Sample
from pipeline.run.report import failures_by_code
from pipeline.score.drift import Drift
from pipeline.score.intervals import Estimates, estimate
from pipeline.score.metrics import Interval, Scores

WORST, BEST = 24, 8
"""Images on the page at most."""
PICTURE_BYTES = 3_500_000
"""Bytes all pictures may take: with them the page stays below 5 MB whatever else is on it."""
MAX_CONFUSED_PAIRS = 14
"""Pairs of classes that are named as mixed up most."""
TRENDS = 3
"""Plots of the history's own page that are on this one: mean IoU, failures, cost."""
_SHOWN = 16
"""Rows of a table that are seen without a click."""
_NAMED = (
    ("mean_iou", "Mean IoU"),
    ("mean_iou_without_background", "Without background"),
    ("pixel_accuracy", "Pixel accuracy"),
    ("mean_accuracy", "Mean accuracy"),
    ("frequency_weighted_iou", "Frequency-weighted IoU"),
    ("mean_dice", "Mean Dice (F1)"),
    ("mean_boundary_iou", "Boundary IoU"),
    ("calibration_error", "Calibration error"),
)
"""Scores of all classes, and what they are called on the page."""


@dataclass(frozen=True, slots=True)
class ScoredSetting:
    """One setting and its scores."""

    evaluation: Evaluation
    scores: Mapping[str, Sequence[Score]]
    """Of each answer, by its name."""


@dataclass(frozen=True, slots=True)
class ClassRow:
    """How well one class is found; NaN for what nothing says."""

    info: ClassInfo
    support: float
    """Share of all labelled pixels, 0 to 1."""
    iou: Interval
    change: Interval | None
    """Of the IoU against the baseline; None without one."""
    precision: float
    recall: float
    boundary: float


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One answer of one setting beside the others."""

    setting: str
    answer: str
    scores: Mapping[str, Interval]
    gain: Interval | None
    """In mean IoU against the network's own answer, over the same images; None for that one."""


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Two classes of which one is taken for the other."""

    truth: ClassInfo
    answer: ClassInfo | None
    """None for no class at all."""
    share: float
    """Of the pixels labelled `truth`, 0 to 1."""
    pixels: int


def render_evaluation(
    judged: ScoredSetting,
    *,
    cfg: ScoreConfig,
    others: Sequence[ScoredSetting] = (),
    verdict: GateVerdict | None = None,
    drift: Sequence[Drift] = (),
    history: Sequence[HistoryEntry] = (),
    samples: Sequence[Sample] = (),
    next_commands: Sequence[str] = (),
) -> str:
    """Lay out an evaluation as one HTML file below 5 MB.

    Args:
        judged: what the page is about.
        cfg: rules of its scores.
        others: further settings on the same source, for the table that compares them.
        verdict: of the gate; None without one.
        drift: of the images against those of training.
        history: evaluations before this one and this one, oldest first.
        samples: of `to_show`, in any order; those that could not be read again are missing.
        next_commands: shell commands worth running next.
    """
    found = judged.evaluation
    change = verdict.comparison.change if verdict and verdict.comparison else None
    total = found.answer.counts_nkk.sum(axis=0)
    gains = {one.evaluation.name: _gain(one.evaluation, cfg) for one in (judged, *others)}
    series = _series(history, found)
    with mpl.rc_context(plots.STYLE):
        drawn = _plots(found, gains[found.name])
    return frame.load_template("evaluate/report", share=_share).render(
        found=found,
        level=f"{cfg.level:.0%}",
        named=[(name, title) for name, title in _NAMED if name in overall_scores(judged.scores[found.answer.name])],
        scores=overall_scores(judged.scores[found.answer.name]),
        verdict=verdict,
        change=change,
        rows=_class_rows(judged, change),
        mixed_up=most_confused(total, found.classes, most=MAX_CONFUSED_PAIRS),
        answers=[row for one in (judged, *others) for row in _answer_rows(one, gains[one.evaluation.name])],
        several=bool(others),
        drift=drift,
        series=series,
        trend=trend.trend_plots(series, name="trend")[:TRENDS] if series else [],
        plots=drawn,
        pictures=_pictures(found, samples),
        legend=_legend(samples, found.classes),
        wrong=WRONG_COLOUR,
        failures=failures_by_code(found.codes, found.failures),
        shown=_SHOWN,
        next_commands=next_commands,
    )


def shown_keys(found: Evaluation) -> tuple[list[str], list[str]]:
    """Keys of the worst images, the worst first, and of the best, the best first; no key twice."""
    worst = found.worst(WORST)
    return worst, [key for key in found.best(BEST) if key not in set(worst)]


def most_confused(counts: Int64, classes: ClassMap, *, most: int) -> list[ConfusedPair]:
    """Which class is taken for which in (K, K + 1) counts, by pixels: at most so many, and only what does happen."""
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


def _of_each(scores: Iterable[Score], name: str) -> dict[str, Interval]:
    """One score of each class by its name."""
    return {one.class_name: one.interval for one in scores if one.name == name and one.class_name}


def _class_rows(judged: ScoredSetting, change: Estimates | None) -> list[ClassRow]:
    """Every class, the best first, those without a score last."""
    found = judged.evaluation
    scores = judged.scores[found.answer.name]
    iou, precision, recall, boundary = (
        _of_each(scores, name) for name in ("iou", "precision", "recall", "boundary_iou")
    )
    support = found.answer.scores.support / max(found.answer.scores.support.sum(), 1)
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
        for index, info in enumerate(found.classes.classes)
    ]
    return sorted(rows, key=lambda row: (np.isnan(row.iou.value), -row.iou.value))


def _answer_rows(judged: ScoredSetting, gain: Estimates | None) -> list[AnswerRow]:
    found = judged.evaluation
    return [
        AnswerRow(
            found.name,
            name,
            overall_scores(judged.scores[name]),
            gain.metrics["mean_iou"] if gain and answer is found.answer else None,
        )
        for name, answer in found.answers.items()
    ]


def _gain(found: Evaluation, cfg: ScoreConfig) -> Estimates | None:
    """What the answer in the masks gains on the network's own, image by image; None where they are the same."""
    network: AnswerCounts = next(iter(found.answers.values()))
    if network is found.answer or not len(network.counts_nkk):
        return None
    return estimate(
        found.answer.counts_nkk,
        against_nkk=network.counts_nkk,
        samples=cfg.samples,
        seed=cfg.seed,
        level=cfg.level,
    )


def _series(history: Sequence[HistoryEntry], found: Evaluation) -> EvaluationSeries | None:
    """The evaluations that this one can be compared with; None while it stands alone."""
    this = (found.run_url, found.data_fp)
    for series in group_series(history):
        if len(series.judged) > 1 and this in {(one.run_url, one.data_fp) for one in series.judged}:
            return series
    return None


# ---------------------------------------------------------------- plots and pictures


def _plots(found: Evaluation, gain: Estimates | None) -> dict[str, Markup | None]:
    """Every plot of the page by name; None for one that there is nothing to draw for."""
    calibrated = {name: one.reliability for name, one in found.answers.items() if one.reliability.any()}
    scored = len(found.images) > 0
    return {
        "matrix": evaluation_plots.confusion_plot(found.answer.counts_nkk.sum(axis=0), found.classes)
        if scored
        else None,
        "bands": evaluation_plots.trimap_plot(found) if scored and found.widths_px else None,
        "reliability": evaluation_plots.reliability_plot(calibrated) if calibrated else None,
        "images": evaluation_plots.image_iou_histogram(found.image_iou) if scored else None,
        "gain": evaluation_plots.class_gain_plot(gain.iou, found.classes, found.answer.name) if gain else None,
    }


def _pictures(found: Evaluation, samples: Sequence[Sample]) -> list[tuple[str, str, list[tuple[PredictionCard, str]]]]:
    """(title, meaning, cards and what is said of them) of the worst and the best images."""
    by_key = {one.key: one for one in samples}
    worst, best = ([by_key[key] for key in keys if key in by_key] for keys in shown_keys(found))
    made = prediction_cards([*worst, *best], found.classes, budget=PICTURE_BYTES)
    said = _said(found, [card.key for card in made])
    shown = list(zip(made, said, strict=True))
    groups = [
        ("Worst images", "lowest mean IoU first", shown[: len(worst)]),
        ("Best images", "highest mean IoU first", shown[len(worst) :]),
    ]
    return [group for group in groups if group[2]]


def _said(found: Evaluation, keys: Sequence[str]) -> list[str]:
    """A few words on each image: its score, and what was mixed up most."""
    at = {key: index for index, key in enumerate(found.keys)}
    said = []
    for key in keys:
        counts = found.answer.counts_nkk[at[key]]
        words = f"mean IoU {_share(float(Scores(counts).mean_iou))}"
        for one in most_confused(counts, found.classes, most=1):
            words += f"; mostly {one.truth.name} taken for {one.answer.name if one.answer else 'nothing'}"
        said.append(words)
    return said


def _legend(samples: Sequence[Sample], classes: ClassMap) -> list[ClassInfo]:
    """Classes on any of the pictures, in the order of their ids."""
    seen = {index for one in samples for maps in (one.truth_hw, one.mask_hw) for index in np.unique(maps).tolist()}
    return [one for index, one in enumerate(classes.classes) if index in seen]


def _share(value: float) -> str:
    """A score in percent: 61.3; a dash where there is none."""
    return "–" if np.isnan(value) else f"{value * 100:.1f}"
