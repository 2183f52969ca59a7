"""Scoring of one setting after its run: scores, slices, drift, season, and the verdict of the gate.

In: the URL of a finished run and the config. Out: a `JudgedSetting`. Reads committed parts, the gates' file, zones and
the history; `record_in_history` appends to the history, nothing else is written.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pandas as pd

from pipeline.config import EvaluateConfig
from pipeline.evaluate import evaluation, gate, history, scoring
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.gate import Gates, GateVerdict
from pipeline.evaluate.zones_history import zones_history
from pipeline.redact import redact
from pipeline.run import manifest
from pipeline.score import drift
from pipeline.score.drift import Drift
from pipeline.score.metrics import Scores
from pipeline.score.season import season_table
from pipeline.source.plan import Plan
from pipeline.store.url import Url

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JudgedSetting:
    """Evaluation of one setting with scores, drift and verdict."""

    evaluation: Evaluation
    scores: dict[str, list[scoring.Score]]
    """Scores by answer."""
    means: dict[str, Scores]
    """Summed counts by answer with the class weights of the config: the scores behind its means."""
    drift: list[Drift]
    """Drift from the images of training; empty when existing masks are scored."""
    season: pd.DataFrame | None
    """`season.season_table` of the zones that the gates name; None when they name none."""
    verdict: GateVerdict | None
    """None without gates and without a baseline."""
    rows_now: int
    """Rows this driver committed; 0 when the run was finished before."""
    wall_s: float
    """Seconds this driver took for the run."""


def measure_season(cfg: EvaluateConfig) -> pd.DataFrame | None:
    """Season of the zones that the gates name, the same for every setting; None when they name none.

    Raises:
        ConfigError: see `zones_history`.
        StorageError: see `zones_history`.
    """
    rule = gates_of(cfg).season
    return season_table(zones_history([Url(zones) for zones in rule.zones]), rule) if rule else None


def judge_setting(
    evaluated: Evaluation,
    cfg: EvaluateConfig,
    plan: Plan,
    *,
    rows_now: int,
    wall_s: float,
    season: pd.DataFrame | None = None,
) -> JudgedSetting:
    """Score an evaluation per answer and per slice, measure drift, and apply the gates.

    Args:
        evaluated: counts of a finished run.
        cfg: score rules, gates and baseline.
        plan: plan of the source, for slices by source.
        rows_now: see `JudgedSetting`.
        wall_s: see `JudgedSetting`.
        season: of `measure_season`.
    """
    sources = {shard.id: redact(shard.root) for shard in plan.shards}
    evaluated = replace(evaluated, slices=scoring.score_slices(evaluated, cfg.score, sources))
    classes = evaluated.classes
    scores = {
        answer.name: scoring.score_answer(answer, classes, evaluated.widths_px, cfg.score)
        for answer in evaluated.answers.values()
    }
    drifts = [] if cfg.masks else drift.measure_drift(evaluated.images, evaluated.training, classes.names)
    means = {answer.name: scoring.summed_scores(answer, classes, cfg.score) for answer in evaluated.answers.values()}
    verdict = gate_verdict(evaluated, cfg, drifts, season)
    return JudgedSetting(evaluated, scores, means, drifts, season, verdict, rows_now, wall_s)


def gate_verdict(
    evaluated: Evaluation, cfg: EvaluateConfig, drifts: Sequence[Drift], season: pd.DataFrame | None
) -> GateVerdict | None:
    """Apply the gates; None when the config has neither gates nor a baseline."""
    if not (cfg.gates or cfg.baseline):
        return None
    entries = history.read_history(Url(cfg.history)) if cfg.history else []
    source = history.source_text(cfg.source)
    baseline = history.find_baseline(cfg.baseline, entries, evaluated, source=source) if cfg.baseline else None
    if cfg.baseline and not baseline:
        log.warning(
            "%s: no baseline yet, since no earlier evaluation of this source has passed its gate", evaluated.name
        )
    baseline_evaluation = (
        evaluation.read_evaluation(baseline.run_url) if baseline and manifest.read_manifest(baseline.run_url) else None
    )
    return gate.apply_gates(
        evaluated,
        gates_of(cfg),
        baseline=baseline,
        baseline_evaluation=baseline_evaluation,
        drift=drifts,
        season=season,
    )


def gates_of(cfg: EvaluateConfig) -> Gates:
    """Gates of the file `--gates`, or the defaults."""
    return gate.load_gates(cfg.gates) if cfg.gates else Gates()


def record_in_history(setting: JudgedSetting, cfg: EvaluateConfig, url: Url, *, command: str) -> None:
    """Append the evaluation and its verdict to the history at `url`; `command` is its command line."""
    entries = history.history_entries(
        setting.evaluation,
        time=datetime.now(UTC),
        command=command,
        source=history.source_text(cfg.source),
        gates=gates_of(cfg) if setting.verdict else None,
        verdict=setting.verdict,
        drift=setting.drift,
        season=setting.season,
    )
    if not history.append_history(url, entries):
        log.info("%s: this evaluation is in the history already", setting.evaluation.name)
