"""From the counts of an evaluation to tables: scores of all classes and of each, with intervals, and slices of images.

In: an `Evaluation` and the rules of a `ScoreConfig`. Out: scores, 0 to 1. Counts are not changed, so the same run can
be scored by other rules at any time.
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
"""What `Scores` gives for each class."""
DERIVED_COLUMNS = ("source", "size")
"""What images can be cut by beside the columns of their rows."""
MAX_VALUES = 20
"""Different numbers in a column that images are cut by one by one."""


def check_rules(cfg: ScoreConfig, classes: ClassMap, widths_px: Sequence[float]) -> None:
    """Refuse rules that do not fit what is counted.

    Raises:
        ConfigError: the config names a class, a band or a column that there is not.
    """
    Rules.of(cfg, classes)
    if cfg.band_px is not None and cfg.band_px not in widths_px:
        raise ConfigError(f"--score.band-px {cfg.band_px:g} is none of --judge.trimap-px {[*widths_px]}")
    _check_columns(cfg)


def _check_columns(cfg: ScoreConfig) -> None:
    known = [*IMAGE_COLUMNS, *DERIVED_COLUMNS]
    if strange := [name for name in cfg.slice_columns if name not in known]:
        hint = f"columns: {', '.join(known)}"
        raise ConfigError(f"--score.slice-columns names {strange[0]!r}, which rows do not have", hint=hint)


@dataclass(frozen=True, slots=True)
class Score:
    """One score of one answer."""

    name: str
    class_name: str
    """Empty for a score of all classes."""
    interval: Interval
    """Low and high are NaN for what is only known of all images together."""


def overall_scores(scores: Iterable[Score]) -> dict[str, Interval]:
    """Scores of all classes together, by name."""
    return {one.name: one.interval for one in scores if not one.class_name}


def score_answer(answer: AnswerCounts, classes: ClassMap, widths_px: Sequence[float], cfg: ScoreConfig) -> list[Score]:
    """Every score there is, by the rules of the config: of all classes first, then of each.

    Raises:
        ConfigError: the config names a class or a band that there is not.
    """
    check_rules(cfg, classes, widths_px)
    rules = Rules.of(cfg, classes)
    found: list[tuple[str, str, Interval]] = []
    if len(answer.counts_nkk):
        intervals = _drawn(answer.counts_nkk, rules.scored, cfg)
        found += [(*name, interval) for name, interval in zip(rules.names, intervals, strict=True)]
    found += [(*name, Interval(value, np.nan, np.nan)) for name, value in _of_sums(answer, widths_px, cfg, rules)]
    return [Score(*one) for one in sorted(found, key=lambda one: bool(one[1]))]


@dataclass(frozen=True, slots=True)
class Rules:
    """How the counts of an answer become scores."""

    cfg: ScoreConfig
    classes: ClassMap
    weights_k: Float64
    """Of each class in every mean."""
    background: int | None
    """Id of the class that the means without background leave out."""

    @classmethod
    def of(cls, cfg: ScoreConfig, classes: ClassMap) -> "Rules":
        """Check a config against a class map; raises ConfigError for a class that it does not have."""
        ids = {name: index for index, name in enumerate(classes.names)}
        if strange := sorted(cfg.class_weights.keys() - ids.keys()):
            hint = f"classes of {classes.name!r}: {', '.join(classes.names)}"
            raise ConfigError(f"--score.class-weights names {strange[0]!r}, which is no class", hint=hint)
        weights = np.array([cfg.class_weights.get(name, 1.0) for name in classes.names])
        return cls(cfg, classes, weights, ids.get(cfg.background or ""))

    @property
    def names(self) -> list[tuple[str, str]]:
        """(score, class) of every column of `scored`."""
        means = [*METRICS, *(["mean_iou_without_background"] if self.background is not None else [])]
        return [(name, "") for name in means] + [(name, one) for name in CLASS_SCORES for one in self.classes.names]

    def scored(self, plain: Scores) -> Float64:
        """(..., S) of counts (..., K, K + 1)."""
        scores = Scores(plain.counts, self.weights_k, self.cfg.absent)
        means = [getattr(scores, name) for name in METRICS]
        if self.background is not None:
            kept = self.weights_k * weights_without(len(self.classes), self.background)
            means.append(Scores(plain.counts, kept, self.cfg.absent).mean_iou)
        each = [getattr(scores, name) for name in CLASS_SCORES]
        return np.concatenate([np.stack(means, axis=-1), *each], axis=-1)


def _drawn(counts_nkk: Int64, score: Callable[[Scores], Float64], cfg: ScoreConfig) -> list[Interval]:
    return bootstrap_each(counts_nkk, score, samples=cfg.samples, seed=cfg.seed, level=cfg.level)


def _of_sums(
    answer: AnswerCounts, widths_px: Sequence[float], cfg: ScoreConfig, rules: Rules
) -> list[tuple[tuple[str, str], float]]:
    """What only the sums over all images tell: boundaries and calibration."""
    along = boundary_iou(answer.boundary)
    kept = along[~np.isnan(along)]
    found = [("mean_boundary_iou", float(kept.mean()) if len(kept) else np.nan)]
    if answer.reliability.any():
        found.append(("calibration_error", expected_calibration_error(answer.reliability)))
    bands = Scores(answer.bands_bkk, rules.weights_k, cfg.absent).mean_iou
    found += [(f"mean_iou_within_{width:g}_px", float(value)) for width, value in zip(widths_px, bands, strict=True)]
    if cfg.band_px is not None:
        band = answer.bands_bkk[list(widths_px).index(cfg.band_px)]
        weighted = with_band(answer.counts_nkk.sum(axis=0), band, cfg.band_weight)
        value = float(Scores(weighted, rules.weights_k, cfg.absent).mean_iou)
        found.append((f"mean_iou_with_{cfg.band_weight:g}_within_{cfg.band_px:g}_px", value))
    each = [(("boundary_iou", name), float(value)) for name, value in zip(rules.classes.names, along, strict=True)]
    return [((name, ""), value) for name, value in found] + each


# ---------------------------------------------------------------- slices


def score_slices(evaluation: Evaluation, cfg: ScoreConfig, sources: dict[str, str]) -> dict[str, list[Slice]]:
    """Tables of scores: images are cut by a column, by what they are, or by a named group of a pattern over keys.

    Args:
        evaluation: whose last answer is scored.
        cfg: says by what.
        sources: URL of the source of each shard.

    Raises:
        ConfigError: rows have no such column.
    """
    frame = evaluation.images.assign(
        source=evaluation.images["shard"].map(sources),
        size=[
            f"{width}x{height}"
            for width, height in zip(*(evaluation.images[c] for c in ("width", "height")), strict=True)
        ],
    )
    _check_columns(cfg)
    found: dict[str, pd.Series] = {}
    for name in cfg.slice_columns:
        found[name] = _binned(frame[name])
    if cfg.slice_pattern:
        groups = frame["key"].str.extract(cfg.slice_pattern)
        found |= {name: groups[name].fillna("(no match)") for name in re.compile(cfg.slice_pattern).groupindex}
    return {name: _slices(evaluation.answer, values, cfg) for name, values in found.items()}


def _binned(values: pd.Series) -> pd.Series:
    """Numbers of many values in quarters of as many images each; everything else as it is."""
    if not pd.api.types.is_numeric_dtype(values) or values.nunique() <= MAX_VALUES:
        return values.astype(object).where(values.notna(), "(unknown)").astype(str)
    return pd.qcut(values, 4, duplicates="drop", precision=2).astype(str)


def _slices(answer: AnswerCounts, values: pd.Series, cfg: ScoreConfig) -> list[Slice]:
    found = []
    for value in sorted(values.unique()):
        counts_nkk = answer.counts_nkk[(values == value).to_numpy()]
        mean_iou, *iou = _drawn(counts_nkk, _mean_and_iou, cfg)
        found.append(Slice(str(value), len(counts_nkk), mean_iou, [one.value for one in iou]))
    return found


def _mean_and_iou(scores: Scores) -> Float64:
    return np.concatenate([scores.mean_iou[..., None], scores.iou], axis=-1)


# ---------------------------------------------------------------- tables


def scores_table(evaluation: Evaluation, scores: dict[str, list[Score]]) -> pd.DataFrame:
    """One row per score of every answer, and per slice of the last one: where a class is empty, of all classes."""
    about = {"setting": evaluation.name, "model_fp": evaluation.model_fp, "data_fp": evaluation.data_fp}
    rows = [
        {"answer": answer, "slice_by": "", "slice": "", "images": len(evaluation.images)}
        | {"score": one.name, "class": one.class_name, **asdict(one.interval)}
        for answer, some in scores.items()
        for one in some
    ]
    for by, slices in evaluation.slices.items():
        for one in slices:
            where = {"answer": evaluation.answer.name, "slice_by": by, "slice": one.value, "images": one.images}
            rows.append(where | {"score": "mean_iou", "class": "", **asdict(one.mean_iou)})
            each = zip(evaluation.classes.names, one.iou, strict=True)
            rows += [where | {"score": "iou", "class": name, "value": value} for name, value in each]
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
