"""The gate: whether an evaluation is good enough, by floors and against another one, in words with figures.

In: an `Evaluation`, the gates, and what it is compared with. Out: a `Verdict` of every check. Nothing is read but the
file of gates, and nothing is written.

With two networks that are equally good a gate fails at most as often as `level` says: half of what is outside an
interval lies below it, and the metrics share it (Bonferroni). A tolerance makes it rarer still.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypedDict

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.classes import ClassMap
from pipeline.config import explain, read_yaml
from pipeline.errors import ConfigError
from pipeline.evaluate.evaluation import Evaluation
from pipeline.records import Int64
from pipeline.score.drift import Drift, Quantity
from pipeline.score.intervals import Estimates, Metric, by_group, estimate

_Share = Annotated[float, Field(ge=0, le=1)]
Limit = Annotated[float, Field(ge=0)]


class MetricGate(BaseModel):
    """What one metric must keep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tolerance: _Share = Field(0.002, description="How much worse than the baseline it may surely be, 0 to 1.")
    floor: _Share | None = Field(None, description="What it must reach, 0 to 1.")


class Gates(BaseModel):
    """What an evaluation must keep to pass: the file of `--gates`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: dict[Metric, MetricGate] = Field(
        {"mean_iou": MetricGate()}, description="Metrics that may not fall, by name."
    )
    floors: dict[str, _Share] = Field({}, description="IoU that a class must reach, by its name, 0 to 1.")
    min_images: int = Field(20, ge=2, description="Scored images or groups of them, here and shared with the baseline.")
    max_failed_share: _Share = Field(0.01, description="Images without a score over all images.")
    drift: dict[Quantity, Limit] = Field(
        {}, description="Population stability index that a quantity may reach, where it is more than chance."
    )
    group: str | None = Field(None, description="Regular expression over keys: images that agree in it are one.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Confidence of the intervals of all metrics together.")
    samples: int = Field(2000, ge=100, description="Draws of the bootstrap.")
    seed: int = Field(0, ge=0, description="Of the draws.")

    @field_validator("group")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return value

    def fingerprint(self) -> str:
        """12 hex digits of everything it asks for."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Baseline:
    """What an evaluation is to be compared with."""

    run_url: str
    """Whose parts hold the counts of each image."""
    checkpoint: str = ""
    """As the history has it; empty for a run that the history does not know."""
    estimates: Estimates | None = None
    """What the history kept of it, with intervals of 95 %: all there is when the run is gone."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was asked."""

    name: str
    """`mean_iou`, `mean_iou floor`, `crop floor`, `images`, `failed` or `brightness drift`."""
    passed: bool
    says: str
    """Figures, and the limit they are held against."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences to the baseline: above 0 is better than it."""

    run_url: str
    checkpoint: str
    paired: bool
    """Over the same images; False compares the intervals of both, and finds less."""
    images: int
    """That both have."""
    note: str
    """How it was made, in words."""
    change: Estimates


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """What the gate says."""

    checks: list[Check]
    comparison: Comparison | None
    """None without a baseline."""

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """What did not pass, in words."""
        return [f"{check.name}: {check.says}" for check in self.checks if not check.passed]


def load_gates(path: str) -> Gates:
    """Read a file of gates.

    Raises:
        ConfigError: naming each setting that is wrong.
    """
    try:
        return Gates.model_validate(read_yaml(path))
    except ValidationError as error:
        raise explain(error, origin=path) from error


def check_gates(gates: Gates, classes: ClassMap) -> None:
    """Refuse gates that no evaluation of these classes can be held against.

    Raises:
        ConfigError: a floor of a class that there is not.
    """
    if strange := sorted(gates.floors.keys() - set(classes.names)):
        raise ConfigError(f"the gates have a floor for {strange[0]!r}", hint=f"classes: {', '.join(classes.names)}")


def apply_gates(
    now: Evaluation,
    gates: Gates,
    *,
    baseline: Baseline | None = None,
    before: Evaluation | None = None,
    drift: Sequence[Drift] = (),
) -> GateVerdict:
    """Hold an evaluation against its gates.

    Args:
        now: the evaluation.
        gates: what it must keep.
        baseline: what `history.find_baseline` found; None checks floors only.
        before: the baseline's evaluation, read from its run; None when the run is gone.
        drift: of the evaluated images.

    Raises:
        ConfigError: a floor of a class that there is not; a baseline of other classes, or gone without a trace.
    """
    check_gates(gates, now.classes)
    comparison = compare_to_baseline(now, baseline, before, gates) if baseline else None
    checks = [_images(now, gates), _failed(now, gates), *_floors(now, gates)]
    if comparison:
        checks += [_kept(name, gate.tolerance, comparison) for name, gate in gates.metrics.items()]
    checks += [_drifted(one, gates.drift[one.quantity]) for one in drift if one.quantity in gates.drift]
    return GateVerdict(checks, comparison)


# ---------------------------------------------------------------- the baseline


def compare_to_baseline(now: Evaluation, baseline: Baseline, before: Evaluation | None, gates: Gates) -> Comparison:
    """Differences to the baseline: paired over the images that both have, else between two independent estimates.

    Raises:
        ConfigError: as `judge`.
    """
    if before is None:
        if baseline.estimates is None:
            raise ConfigError(f"the baseline {baseline.run_url} is gone", hint="name another with --baseline")
        note = "not paired, since its run is gone: by what the history kept of it"
        change = estimate(_grouped(now, gates), **_draws(gates)).minus(baseline.estimates)
        return Comparison(baseline.run_url, baseline.checkpoint, paired=False, images=0, note=note, change=change)
    if lines := before.classes.differences(now.classes):
        raise ConfigError(
            f"the baseline has other classes: {'; '.join(lines[:3])}", hint="name another with --baseline"
        )
    mine, theirs = shared_images(now, before)
    groups, against = _grouped(now, gates, mine), _grouped(before, gates, theirs)
    note = f"paired over {len(mine)} of {len(now.images)} images" + (f" in {len(groups)} groups" if gates.group else "")
    if paired := len(groups) >= gates.min_images:
        change = estimate(groups, against_nkk=against, **_draws(gates))
    else:
        note = f"not paired, since only {len(mine)} images are the same"
        mine_all, theirs_all = (estimate(_grouped(one, gates), **_draws(gates)) for one in (now, before))
        change = mine_all.minus(theirs_all)
    return Comparison(baseline.run_url, before.checkpoint, paired, len(mine), note, change)


def shared_images(now: Evaluation, before: Evaluation) -> tuple[Int64, Int64]:
    """Where both have the same image with the same label: indices into the one and into the other, in the same order.

    The same is: key and version of the image object agree, and so does the number of labelled pixels of each class.
    """
    at = {key: index for index, key in enumerate(before.keys)}
    both = [(index, at[key]) for index, key in enumerate(now.keys) if key in at]
    mine, theirs = np.array(both, np.int64).reshape(-1, 2).T
    etags = now.images["source_etag"].to_numpy()[mine] == before.images["source_etag"].to_numpy()[theirs]
    labels = now.answer.counts_nkk[mine].sum(axis=-1) == before.answer.counts_nkk[theirs].sum(axis=-1)
    same = etags & labels.all(axis=-1)
    return mine[same], theirs[same]


def _grouped(one: Evaluation, gates: Gates, where: Int64 | None = None) -> Int64:
    """Counts of each group of images, of all of them or of those at `where`."""
    chosen = np.arange(len(one.images)) if where is None else where
    return by_group(one.answer.counts_nkk[chosen], [one.keys[index] for index in chosen], gates.group)


class _Draws(TypedDict):
    samples: int
    seed: int
    level: float


def _draws(gates: Gates) -> _Draws:
    """Arguments of the bootstrap: the metrics share what lies outside their intervals."""
    level = 1 - (1 - gates.level) / max(len(gates.metrics), 1)
    return {"samples": gates.samples, "seed": gates.seed, "level": level}


# ---------------------------------------------------------------- checks


def _images(now: Evaluation, gates: Gates) -> Check:
    found, what = len(_grouped(now, gates)), "groups of images" if gates.group else "images"
    return Check(
        "images", found >= gates.min_images, f"{found} {what} have a score, at least {gates.min_images} needed"
    )


def _failed(now: Evaluation, gates: Gates) -> Check:
    codes = ", ".join(f"{code} {count}" for code, count in now.codes.items())
    says = f"{now.failed_share:.2%} of the images have no score, limit {gates.max_failed_share:.2%}"
    return Check("failed", now.failed_share <= gates.max_failed_share, says + (f"; {codes}" if codes else ""))


def _floors(now: Evaluation, gates: Gates) -> list[Check]:
    scores = now.answer.scores
    ious = dict(zip(now.classes.names, scores.iou, strict=True))
    metrics = [(name, float(getattr(scores, name)), gate.floor) for name, gate in gates.metrics.items()]
    asked = [*metrics, *((name, float(ious[name]), floor) for name, floor in gates.floors.items())]
    return [_floor(name, value, floor) for name, value, floor in asked if floor is not None]


def _floor(name: str, value: float, floor: float) -> Check:
    says = f"{value:.4f}, floor {floor:.4f}" if not math.isnan(value) else f"in no label and no mask, floor {floor:.4f}"
    return Check(f"{name} floor", value >= floor, says)


def _kept(name: Metric, tolerance: float, comparison: Comparison) -> Check:
    """Fails when the whole interval of the difference lies below minus the tolerance, or nothing could be compared."""
    change = comparison.change.metrics[name]
    says = (
        f"{change.value:+.4f}, interval {change.low:+.4f} to {change.high:+.4f}, may surely fall by {tolerance:.4f}; "
        f"against {comparison.checkpoint or comparison.run_url}, {comparison.note}"
    )
    return Check(name, bool(change.high >= -tolerance), says)


def _drifted(one: Drift, limit: float) -> Check:
    if one.verdict == "unknown":
        return Check(f"{one.quantity} drift", True, f"unknown: {one.says}")
    says = f"index {one.value:.3f}, limit {limit:.3f}, by chance up to {one.chance:.3f}; {one.says}"
    return Check(f"{one.quantity} drift", one.value <= max(limit, one.chance), says)
