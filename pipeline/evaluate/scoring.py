"""Scores of an evaluation with bootstrap intervals: over all classes, per class, and per slice of images.

In: an `Evaluation` and the rules of a `ScoreConfig`. Out: scores, 0 to 1, and tables. Counts are not changed, so a run
can be scored again by other rules.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from pipeline.classes import ClassMap
from pipeline.config import ScoreConfig
from pipeline.errors import ConfigError
from pipeline.evaluate.evaluation import IMAGE_COLUMNS, AnswerCounts, Evaluation, Slice
from pipeline.records import Float64, Int64
from pipeline.score.boundary import boundary_iou
from pipeline.score.calibration import expected_calibration_error
from pipeline.score.intervals import METRICS
from pipeline.score.metrics import Interval, Scores, bootstrap_each, weights_without, with_band

CLASS_SCORES = ("iou", "dice", "recall", "precision")
"""Properties of `Scores` with one value per class."""
DERIVED_COLUMNS = ("source", "size")
"""Columns for slices that are computed: URL of the source, and `width`x`height`."""
MAX_VALUES = 20
"""Most distinct values of a numeric column with one slice each; a column with more is cut into quartiles."""


def check_rules(cfg: ScoreConfig, classes: ClassMap, widths_px: Sequence[float]) -> None:
    """Refuse score settings that do not fit classes, trimap widths or columns.

    Raises:
        ConfigError: the config names a class, a trimap width or a column that does not exist.
    """
    Rules.from_config(cfg, classes)
    if cfg.band_px is not None and cfg.band_px not in widths_px:
        raise ConfigError(f"--score.band-px {cfg.band_px:g} is not one of --judge.trimap-px {[*widths_px]}")
    _check_columns(cfg)


def _check_columns(cfg: ScoreConfig) -> None:
    known = [*IMAGE_COLUMNS, *DERIVED_COLUMNS]
    if unknown := [name for name in cfg.slice_columns if name not in known]:
        hint = f"columns: {', '.join(known)}"
        raise ConfigError(f"--score.slice-columns names {unknown[0]!r}, which is not a column of the rows", hint=hint)


@dataclass(frozen=True, slots=True)
class Score:
    """One score of one answer."""

    name: str
    class_name: str
    """Empty for a score of all classes."""
    interval: Interval
    """Value with interval; low and high are NaN for a score of all images pooled."""


def overall_scores(scores: Iterable[Score]) -> dict[str, Interval]:
    """Scores over all classes, by name."""
    return {score.name: score.interval for score in scores if not score.class_name}


def score_answer(answer: AnswerCounts, classes: ClassMap, widths_px: Sequence[float], cfg: ScoreConfig) -> list[Score]:
    """All scores of one answer: over all classes first, then per class.

    Raises:
        ConfigError: as `check_rules`.
    """
    check_rules(cfg, classes, widths_px)
    rules = Rules.from_config(cfg, classes)
    scores: list[tuple[str, str, Interval]] = []
    if len(answer.counts_nkk):
        intervals = _bootstrap(answer.counts_nkk, rules.score_counts, cfg)
        scores += [(*name, interval) for name, interval in zip(rules.names, intervals, strict=True)]
    scores += [
        (*name, Interval(value, np.nan, np.nan)) for name, value in _pooled_scores(answer, widths_px, cfg, rules)
    ]
    return [Score(*score) for score in sorted(scores, key=lambda score: bool(score[1]))]


def summed_scores(answer: AnswerCounts, classes: ClassMap, cfg: ScoreConfig) -> Scores:
    """Scores of the counts of all images together, with the class weights of the config."""
    return Scores(answer.counts_nkk.sum(axis=0), Rules.from_config(cfg, classes).weights_k, cfg.absent)


@dataclass(frozen=True, slots=True)
class Rules:
    """Class weights and background of a `ScoreConfig` resolved against a class map."""

    cfg: ScoreConfig
    classes: ClassMap
    weights_k: Float64
    """(K,) weight of each class in every mean."""
    background: int | None
    """Id of the class that `mean_iou_without_background` leaves out; None leaves out the score."""

    @classmethod
    def from_config(cls, cfg: ScoreConfig, classes: ClassMap) -> "Rules":
        """Resolve a config against a class map; raises ConfigError for an unknown class."""
        ids = {name: index for index, name in enumerate(classes.names)}
        if unknown := sorted(cfg.class_weights.keys() - ids.keys()):
            hint = f"classes of {classes.name!r}: {', '.join(classes.names)}"
            raise ConfigError(f"--score.class-weights names {unknown[0]!r}, which is not a class", hint=hint)
        weights = np.array([cfg.class_weights.get(name, 1.0) for name in classes.names])
        return cls(cfg, classes, weights, ids.get(cfg.background or ""))

    @property
    def names(self) -> list[tuple[str, str]]:
        """(score, class) of every column of `score_counts`; class is empty for a mean."""
        means = [*METRICS, *(["mean_iou_without_background"] if self.background is not None else [])]
        return [(name, "") for name in means] + [
            (name, class_name) for name in CLASS_SCORES for class_name in self.classes.names
        ]

    def score_counts(self, unweighted: Scores) -> Float64:
        """(..., S) scores of counts (..., K, K + 1)."""
        scores = Scores(unweighted.counts, self.weights_k, self.cfg.absent)
        means = [getattr(scores, name) for name in METRICS]
        if self.background is not None:
            kept = self.weights_k * weights_without(len(self.classes), self.background)
            means.append(Scores(unweighted.counts, kept, self.cfg.absent).mean_iou)
        per_class = [getattr(scores, name) for name in CLASS_SCORES]
        return np.concatenate([np.stack(means, axis=-1), *per_class], axis=-1)


def _bootstrap(counts_nkk: Int64, score: Callable[[Scores], Float64], cfg: ScoreConfig) -> list[Interval]:
    return bootstrap_each(counts_nkk, score, samples=cfg.samples, seed=cfg.seed, level=cfg.level)


def _pooled_scores(
    answer: AnswerCounts, widths_px: Sequence[float], cfg: ScoreConfig, rules: Rules
) -> list[tuple[tuple[str, str], float]]:
    """((score, class), value) of scores of all images pooled: boundary IoU, calibration error, trimaps."""
    along = boundary_iou(answer.boundary)
    kept = along[~np.isnan(along)]
    pooled = [("mean_boundary_iou", float(kept.mean()) if len(kept) else np.nan)]
    if answer.reliability.any():
        pooled.append(("calibration_error", expected_calibration_error(answer.reliability)))
    bands = Scores(answer.bands_bkk, rules.weights_k, cfg.absent).mean_iou
    pooled += [(f"mean_iou_within_{width:g}_px", float(value)) for width, value in zip(widths_px, bands, strict=True)]
    if cfg.band_px is not None:
        band = answer.bands_bkk[list(widths_px).index(cfg.band_px)]
        weighted = with_band(answer.counts_nkk.sum(axis=0), band, cfg.band_weight)
        value = float(Scores(weighted, rules.weights_k, cfg.absent).mean_iou)
        pooled.append((f"mean_iou_with_{cfg.band_weight:g}_within_{cfg.band_px:g}_px", value))
    per_class = [(("boundary_iou", name), float(value)) for name, value in zip(rules.classes.names, along, strict=True)]
    return [((name, ""), value) for name, value in pooled] + per_class


# ---------------------------------------------------------------- slices


def score_slices(evaluation: Evaluation, cfg: ScoreConfig, sources: dict[str, str]) -> dict[str, list[Slice]]:
    """Score slices of the images by column values, and by named groups of a pattern over keys.

    Args:
        evaluation: its last answer is scored.
        cfg: columns and pattern.
        sources: URL of the source of each shard.

    Raises:
        ConfigError: a column does not exist.
    """
    frame = evaluation.images.assign(
        source=evaluation.images["shard"].map(sources),
        size=[
            f"{width}x{height}"
            for width, height in zip(*(evaluation.images[c] for c in ("width", "height")), strict=True)
        ],
    )
    _check_columns(cfg)
    columns: dict[str, pd.Series] = {}
    for name in cfg.slice_columns:
        columns[name] = _bin_values(frame[name])
    if cfg.slice_pattern:
        groups = frame["key"].str.extract(cfg.slice_pattern)
        columns |= {name: groups[name].fillna("(no match)") for name in re.compile(cfg.slice_pattern).groupindex}
    return {name: _score_parts(evaluation.answer, values, cfg) for name, values in columns.items()}


def _bin_values(values: pd.Series) -> pd.Series:
    """Quartiles of a numeric column with more than `MAX_VALUES` values; other columns as text."""
    if not pd.api.types.is_numeric_dtype(values) or values.nunique() <= MAX_VALUES:
        return values.astype(object).where(values.notna(), "(unknown)").astype(str)
    return pd.qcut(values, 4, duplicates="drop", precision=2).astype(str)


def _score_parts(answer: AnswerCounts, values: pd.Series, cfg: ScoreConfig) -> list[Slice]:
    slices = []
    for value in sorted(values.unique()):
        counts_nkk = answer.counts_nkk[(values == value).to_numpy()]
        mean_iou, *iou = _bootstrap(counts_nkk, _mean_and_iou, cfg)
        slices.append(Slice(str(value), len(counts_nkk), mean_iou, [interval.value for interval in iou]))
    return slices


def _mean_and_iou(scores: Scores) -> Float64:
    return np.concatenate([scores.mean_iou[..., None], scores.iou], axis=-1)


# ---------------------------------------------------------------- tables


def scores_table(evaluation: Evaluation, scores: dict[str, list[Score]]) -> pd.DataFrame:
    """One row per score of every answer, and per slice of the last answer; `class` is empty for means."""
    about = {"setting": evaluation.name, "model_fp": evaluation.model_fp, "data_fp": evaluation.data_fp}
    rows = [
        {"answer": answer, "slice_by": "", "slice": "", "images": len(evaluation.images)}
        | {"score": score.name, "class": score.class_name, **asdict(score.interval)}
        for answer, answer_scores in scores.items()
        for score in answer_scores
    ]
    for by, slices in evaluation.slices.items():
        for part in slices:
            where = {"answer": evaluation.answer.name, "slice_by": by, "slice": part.value, "images": part.images}
            rows.append(where | {"score": "mean_iou", "class": "", **asdict(part.mean_iou)})
            per_class = zip(evaluation.classes.names, part.iou, strict=True)
            rows += [where | {"score": "iou", "class": name, "value": value} for name, value in per_class]
    return pd.DataFrame([about | row for row in rows])


def images_table(evaluation: Evaluation) -> pd.DataFrame:
    """One row per scored image and answer, the lowest mean IoU first."""
    frames = []
    for answer in evaluation.answers.values():
        scores = Scores(answer.counts_nkk)
        frames.append(
            evaluation.images.assign(
                setting=evaluation.name,
                answer=answer.name,
                mean_iou=scores.mean_iou,
                pixel_accuracy=scores.pixel_accuracy,
                iou=list(scores.iou),
            )
        )
    return pd.concat(frames).sort_values("mean_iou", ignore_index=True)
