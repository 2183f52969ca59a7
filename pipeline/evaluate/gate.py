"""Gate: pass or fail an evaluation by floors, by regression against a baseline, by drift, and by season.

In: an `Evaluation`, the gates and the baseline. Out: a `GateVerdict` with every check. Reads the gates' file only.

False alarms: if a network is as good as the baseline, the gate fails with probability at most (1 - level) / 2. An
interval leaves (1 - level) / 2 below it, and the metrics share that (Bonferroni correction). A tolerance lowers it.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.classes import ClassMap
from pipeline.config import explain, read_yaml
from pipeline.errors import ConfigError
from pipeline.evaluate.evaluation import Evaluation
from pipeline.records import Int64
from pipeline.score.coverage import mean_over
from pipeline.score.drift import Drift, Quantity
from pipeline.score.intervals import Estimates, Metric, by_group, estimate
from pipeline.score.season import SEASON_QUANTITIES, SeasonQuantity, SeasonRule
from pipeline.store.url import Url

_Share = Annotated[float, Field(ge=0, le=1)]
Limit = Annotated[float, Field(ge=0)]
_ZONES_NAMED = 5


class MetricGate(BaseModel):
    """Limits of one metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tolerance: _Share = Field(0.002, description="Largest significant drop below the baseline, 0 to 1.")
    floor: _Share | None = Field(None, description="Least value of the metric, 0 to 1; unset checks none.")


class SeasonGate(SeasonRule):
    """Zones whose newest dates are compared with the history of their season, and what fails."""

    zones: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1,
        description="URLs of `zones.parquet`, of runs, or of output folders; one may stand without a list.",
    )
    fails: tuple[SeasonQuantity | Literal["unknown"], ...] = Field(
        SEASON_QUANTITIES,
        min_length=1,
        description="What fails: a quantity outside its season; with `unknown` also a quantity without a verdict.",
    )

    @field_validator("zones", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class Gates(BaseModel):
    """Limits that an evaluation must keep to pass: the file of `--gates`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: dict[Metric, MetricGate] = Field(
        {"mean_iou": MetricGate()}, description="Metrics compared with the baseline, by name."
    )
    floors: dict[str, _Share] = Field({}, description="Least IoU of a class, by class name, 0 to 1.")
    min_images: int = Field(
        20,
        ge=2,
        description="Least number of scored images, or groups of them; also for a paired comparison.",
    )
    max_failed_share: _Share = Field(0.01, description="Largest share of images without a score, 0 to 1.")
    drift: dict[Quantity, Limit] = Field(
        {}, description="Largest population stability index of a quantity; indices that chance explains pass."
    )
    season: SeasonGate | None = Field(
        None, description="Seasons of zones, beside the evaluated images; unset compares none."
    )
    group: str | None = Field(
        None, description="Regular expression over keys: images with equal matches are resampled together as one group."
    )
    level: float = Field(0.95, gt=0.5, lt=1, description="Joint confidence level of the intervals of all metrics.")
    samples: int = Field(2000, ge=100, description="Bootstrap resamples.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")

    @field_validator("group")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"group is not a regular expression: {error}") from error
        return value

    def fingerprint(self) -> str:
        """Digest of all limits, 12 hex digits; without `season` that of versions that had none."""
        limits = self.model_dump_json(exclude=None if self.season else {"season"})
        return hashlib.sha256(limits.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Earlier run that an evaluation is compared with."""

    run_url: Url
    """Run whose parts hold the counts of each image."""
    checkpoint: str = ""
    """Checkpoint in the history; empty for a run that is not in the history."""
    estimates: Estimates | None = None
    """Metrics in the history with 95 % intervals, used when the run was deleted; None for a run not in the history."""


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check."""

    name: str
    """`mean_iou`, `mean_iou floor`, `crop floor`, `images`, `failed`, `brightness drift` or `confidence season`."""
    passed: bool
    says: str
    """Measured value and limit, as text."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences to the baseline; above 0 is better than the baseline."""

    run_url: Url
    checkpoint: str
    paired: bool
    """True: image by image over shared images. False: between two independent estimates, which detects less."""
    images: int
    """Images shared with the baseline."""
    note: str
    """Kind of comparison, as text."""
    change: Estimates


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """Checks of a gate and the comparison with the baseline."""

    checks: list[Check]
    comparison: Comparison | None
    """None without a baseline."""

    @property
    def passed(self) -> bool:
        """True when every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """Texts of the failed checks."""
        return [f"{check.name}: {check.says}" for check in self.checks if not check.passed]


def load_gates(path: str) -> Gates:
    """Read a file of gates.

    Raises:
        ConfigError: naming each invalid setting.
    """
    try:
        return Gates.model_validate(read_yaml(path))
    except ValidationError as error:
        raise explain(error, origin=path, model=Gates) from error


def check_gates(gates: Gates, classes: ClassMap) -> None:
    """Refuse gates that do not fit the class map.

    Raises:
        ConfigError: a floor names a class that the class map lacks.
    """
    if unknown := sorted(gates.floors.keys() - set(classes.names)):
        raise ConfigError(
            f"floors names {unknown[0]!r}, which is not a class of {classes.name}",
            hint=f"classes: {', '.join(classes.names)}",
        )


def apply_gates(
    evaluation: Evaluation,
    gates: Gates,
    *,
    baseline: Baseline | None = None,
    baseline_evaluation: Evaluation | None = None,
    drift: Sequence[Drift] = (),
    season: pd.DataFrame | None = None,
) -> GateVerdict:
    """Check an evaluation against its gates.

    Args:
        evaluation: counts of the run to check.
        gates: limits.
        baseline: result of `history.find_baseline`; None leaves out the comparison.
        baseline_evaluation: the baseline, read from its run; None when the run was deleted.
        drift: drift of the evaluated images.
        season: `season.season_table` of the zones that the gates name; None when it was not measured.

    Raises:
        ConfigError: a floor names an unknown class; the baseline has other classes, or is in neither store nor history.
    """
    check_gates(gates, evaluation.classes)
    comparison = compare_to_baseline(evaluation, baseline, baseline_evaluation, gates) if baseline else None
    checks = [
        _image_count_check(evaluation, gates),
        _failed_check(evaluation, gates),
        *_floor_checks(evaluation, gates),
    ]
    if comparison:
        over = mean_over(evaluation.answer.scores, evaluation.classes.names)
        checks += [_metric_check(name, gate.tolerance, comparison, over) for name, gate in gates.metrics.items()]
    checks += [_drift_check(each, gates.drift[each.quantity]) for each in drift if each.quantity in gates.drift]
    if gates.season:
        checks += [
            _season_check(name, season, gates.season) for name in SEASON_QUANTITIES if name in gates.season.fails
        ]
    return GateVerdict(checks, comparison)


# ---------------------------------------------------------------- the baseline


def compare_to_baseline(
    evaluation: Evaluation, baseline: Baseline, baseline_evaluation: Evaluation | None, gates: Gates
) -> Comparison:
    """Differences to the baseline: paired over shared images, else between two independent estimates.

    Raises:
        ConfigError: as `apply_gates`.
    """
    if baseline_evaluation is None:
        if baseline.estimates is None:
            raise ConfigError(
                f"the run of the baseline, {baseline.run_url}, is gone", hint="name another with --baseline"
            )
        note = "not paired: its run is gone, the history has its metrics only"
        change = estimate(_group_counts(evaluation, gates), **_bootstrap_settings(gates)).minus(baseline.estimates)
        return Comparison(baseline.run_url, baseline.checkpoint, paired=False, images=0, note=note, change=change)
    if lines := baseline_evaluation.classes.differences(evaluation.classes):
        raise ConfigError(
            f"the baseline has other classes: {'; '.join(lines[:3])}", hint="name another with --baseline"
        )
    indices, baseline_indices = shared_images(evaluation, baseline_evaluation)
    groups, against = (
        _group_counts(evaluation, gates, indices),
        _group_counts(baseline_evaluation, gates, baseline_indices),
    )
    note = f"paired over {len(indices)} of {len(evaluation.images)} images" + (
        f" in {len(groups)} groups" if gates.group else ""
    )
    if paired := len(groups) >= gates.min_images:
        change = estimate(groups, against_nkk=against, **_bootstrap_settings(gates))
    else:
        note = f"not paired: only {len(indices)} images are shared"
        mine_all, theirs_all = (
            estimate(_group_counts(either, gates), **_bootstrap_settings(gates))
            for either in (evaluation, baseline_evaluation)
        )
        change = mine_all.minus(theirs_all)
    return Comparison(baseline.run_url, baseline_evaluation.checkpoint, paired, len(indices), note, change)


def shared_images(evaluation: Evaluation, baseline_evaluation: Evaluation) -> tuple[Int64, Int64]:
    """Indices of the shared images in both evaluations, in the same order.

    An image is shared if key, etag and the number of labelled pixels of each class are equal.
    """
    positions = {key: index for index, key in enumerate(baseline_evaluation.keys)}
    both = [(index, positions[key]) for index, key in enumerate(evaluation.keys) if key in positions]
    indices, baseline_indices = np.array(both, np.int64).reshape(-1, 2).T
    etags = (
        evaluation.images["source_etag"].to_numpy()[indices]
        == baseline_evaluation.images["source_etag"].to_numpy()[baseline_indices]
    )
    labels = evaluation.answer.counts_nkk[indices].sum(axis=-1) == baseline_evaluation.answer.counts_nkk[
        baseline_indices
    ].sum(axis=-1)
    same = etags & labels.all(axis=-1)
    return indices[same], baseline_indices[same]


def _group_counts(evaluation: Evaluation, gates: Gates, where: Int64 | None = None) -> Int64:
    """Confusion counts of each group of images, (G, K, K + 1); `where` selects images, None takes all."""
    chosen = np.arange(len(evaluation.images)) if where is None else where
    return by_group(evaluation.answer.counts_nkk[chosen], [evaluation.keys[index] for index in chosen], gates.group)


class _BootstrapSettings(TypedDict):
    samples: int
    seed: int
    level: float


def _bootstrap_settings(gates: Gates) -> _BootstrapSettings:
    """Arguments of the bootstrap; level with Bonferroni correction over the metrics."""
    level = 1 - (1 - gates.level) / max(len(gates.metrics), 1)
    return {"samples": gates.samples, "seed": gates.seed, "level": level}


# ---------------------------------------------------------------- checks


def _image_count_check(evaluation: Evaluation, gates: Gates) -> Check:
    count, unit = len(_group_counts(evaluation, gates)), "groups of images" if gates.group else "images"
    return Check(
        "images", count >= gates.min_images, f"{count} {unit} have a score, at least {gates.min_images} are needed"
    )


def _failed_check(evaluation: Evaluation, gates: Gates) -> Check:
    codes = ", ".join(f"{code} {count}" for code, count in evaluation.codes.items())
    figures = f"{evaluation.failed_share:.2%} of the images have no score, limit {gates.max_failed_share:.2%}"
    return Check("failed", evaluation.failed_share <= gates.max_failed_share, figures + (f"; {codes}" if codes else ""))


def _floor_checks(evaluation: Evaluation, gates: Gates) -> list[Check]:
    scores = evaluation.answer.scores
    ious = dict(zip(evaluation.classes.names, scores.iou, strict=True))
    metrics = [(name, float(getattr(scores, name)), gate.floor) for name, gate in gates.metrics.items()]
    limits = [*metrics, *((name, float(ious[name]), floor) for name, floor in gates.floors.items())]
    over = mean_over(scores, evaluation.classes.names)
    return [
        _floor_check(name, value, floor, over if name in gates.metrics else "")
        for name, value, floor in limits
        if floor is not None
    ]


def _floor_check(name: str, value: float, floor: float, over: str) -> Check:
    figures = (
        f"{value:.4f}{over}, floor {floor:.4f}"
        if not math.isnan(value)
        else f"undefined: in no label and no mask, floor {floor:.4f}"
    )
    return Check(f"{name} floor", value >= floor, figures)


def _metric_check(name: Metric, tolerance: float, comparison: Comparison, over: str) -> Check:
    """Check of a metric: fails if the interval of the difference lies wholly below -tolerance, or is NaN."""
    change = comparison.change.metrics[name]
    figures = (
        f"{change.value:+.4f}{over}, interval {change.low:+.4f} to {change.high:+.4f}, tolerance {tolerance:.4f}; "
        f"against {comparison.checkpoint or comparison.run_url}, {comparison.note}"
    )
    return Check(name, bool(change.high >= -tolerance), figures)


def _drift_check(drift: Drift, limit: float) -> Check:
    if drift.verdict == "unknown":
        return Check(f"{drift.quantity} drift", True, f"unknown: {drift.says}")
    figures = f"index {drift.value:.3f}, limit {limit:.3f}, chance alone reaches {drift.chance:.3f}; {drift.says}"
    return Check(f"{drift.quantity} drift", drift.value <= max(limit, drift.chance), figures)


def _season_check(name: SeasonQuantity, season: pd.DataFrame | None, gate: SeasonGate) -> Check:
    """Check of all zones together; fails if a value is outside, or unknown where the gate asks for a verdict."""
    title = f"{name} season"
    if season is None:
        return Check(title, "unknown" not in gate.fails, "unknown: the zones were not compared")
    rows = season[season["quantity"] == name]
    pooled = rows[rows["zone"].isna()]
    said = {verdict: pooled.loc[pooled["verdict"] == verdict, "says"].tolist() for verdict in ("outside", "unknown")}
    texts = list(said["outside"])
    if (
        inside := pooled[pooled["verdict"] == "inside"]
        .sort_values("distance", ascending=False, kind="stable")["says"]
        .tolist()
    ):
        texts.append(f"{len(inside)} inside, nearest to its limit {inside[0]}")
    if said["unknown"]:
        texts.append(f"{len(said['unknown'])} {said['unknown'][0]}")
    without_verdict = said["unknown"] or not inside
    failed = said["outside"] or ("unknown" in gate.fails and without_verdict)
    return Check(
        title, not failed, "; ".join(texts + _zone_notes(rows, gate)) or "unknown: no class on the newest date"
    )


def _zone_notes(rows: pd.DataFrame, gate: SeasonGate) -> list[str]:
    """Single zones outside their season and without a verdict, which fail nothing."""
    single = rows[rows["zone"].notna()]
    outside, unknown = (list(single.loc[single["verdict"] == one, "zone"].unique()) for one in ("outside", "unknown"))
    count = single["zone"].nunique()
    names = ", ".join(map(str, outside[:_ZONES_NAMED])) + (", ..." if len(outside) > _ZONES_NAMED else "")
    chance = f"{1 - gate.level:.0%} of these may be chance"
    notes = (
        [f"single zones outside, which fail nothing: {len(outside)} of {count} ({names}; {chance})"] if outside else []
    )
    return notes + ([f"zones without a verdict: {len(unknown)} of {count}"] if unknown else [])
