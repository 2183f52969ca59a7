"""Outputs of an evaluation: `evaluation.json`, score and image tables, the report, and the headline in the log.

In: judged settings. Out: objects in the evaluation's folder, and plain data for the summary line.
"""

import hashlib
import io
import logging
import math
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import get_args

import pandas as pd
from pydantic_core import to_json

from pipeline.config import EvaluateConfig
from pipeline.errors import NothingThere, StorageError
from pipeline.evaluate import history, report, samples, scoring
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.setting import JudgedSetting, record_in_history
from pipeline.image import labels
from pipeline.score.answers import NO_LABEL
from pipeline.score.coverage import mean_over
from pipeline.score.metrics import Interval
from pipeline.score.season import SeasonVerdict
from pipeline.source.plan import Plan
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

GATE_FAILED = 3
"""Exit status when a gate failed."""
LOGGED_SCORES = ("mean_iou", "pixel_accuracy", "mean_boundary_iou", "calibration_error")
"""Scores that the log shows."""
EDGE_MAPS = 8
"""Worst images whose edge map the report shows, as the driver runs the network for each, often without a GPU."""


def write_evaluation(
    settings: Sequence[JudgedSetting], cfg: EvaluateConfig, plan: Plan, *, command: str
) -> tuple[int, dict[str, object]]:
    """Write tables, history and report, log the headlines; returns the exit status and the summary line.

    The status is 1 when more images failed than `runtime.max_failed_fraction` allows, `GATE_FAILED` when a gate failed,
    else 0. `command` is the command line, for the history.
    """
    folder = evaluation_url(Url(cfg.output), settings)
    write_tables(folder, settings)
    for setting in settings:
        if cfg.history:
            record_in_history(setting, cfg, Url(cfg.history), command=command)
        log_headline(setting)
        log_failures(setting.evaluation, limit=cfg.runtime.max_failed_fraction)
        log_misnamed_labels(setting.evaluation, cfg)
    report_url = write_page(folder, settings, cfg, plan)
    log.info("look here first: %s", report_url)
    verdicts = [setting.verdict.passed for setting in settings if setting.verdict]
    too_many = any(setting.evaluation.failed_share > cfg.runtime.max_failed_fraction for setting in settings)
    status = 1 if too_many else 0 if all(verdicts) else GATE_FAILED
    return status, {
        "evaluation": str(folder),
        "report": str(report_url),
        "settings": {setting.evaluation.name: headline(setting) for setting in settings},
        "gate": None if not verdicts else "passed" if all(verdicts) else "failed",
        "exit_status": status,
    }


def evaluation_url(output: Url, settings: Sequence[JudgedSetting]) -> Url:
    """Folder of an evaluation: `<output>/evaluation=` and 12 digits of a digest of its runs' fingerprints."""
    fingerprints = " ".join(setting.evaluation.fingerprint for setting in settings)
    return output / f"evaluation={hashlib.sha256(fingerprints.encode()).hexdigest()[:12]}"


def write_tables(folder: Url, settings: Sequence[JudgedSetting]) -> None:
    """Write `evaluation.json`, `scores.parquet` and `images.parquet`."""
    facts = {setting.evaluation.name: setting_facts(setting) for setting in settings}
    objects.put(folder / "evaluation.json", to_json(facts, inf_nan_mode="null", indent=1))
    tables = {
        "scores": pd.concat(scoring.scores_table(setting.evaluation, setting.scores) for setting in settings),
        "images": pd.concat(scoring.images_table(setting.evaluation) for setting in settings),
    }
    for name, table in tables.items():
        out = io.BytesIO()
        table.to_parquet(out, index=False)
        objects.put(folder / f"{name}.parquet", out.getvalue())


def write_page(folder: Url, settings: Sequence[JudgedSetting], cfg: EvaluateConfig, plan: Plan) -> Url:
    """Write the report of the first setting, compared with the others; returns its URL."""
    first = settings[0]
    scored, *others = (report.ScoredSetting(setting.evaluation, setting.scores) for setting in settings)
    worst, best = report.shown_keys(first.evaluation)
    page = report.render_evaluation(
        scored,
        cfg=cfg.score,
        others=others,
        verdict=first.verdict,
        drift=first.drift,
        season=first.season,
        history=history.read_history(Url(cfg.history)) if cfg.history else [],
        samples=list(samples.reread(first.evaluation, {*worst, *best}, plan, cfg, with_edges=set(worst[:EDGE_MAPS]))),
        next_commands=[f"python -m jobs.inspect_run {shlex.quote(str(first.evaluation.run_url))} --failures"],
    )
    url = folder / "report/index.html"
    objects.put(url, page.encode())
    return url


def setting_facts(setting: JudgedSetting) -> dict[str, object]:
    """Facts of a setting, without single images, as plain data: its entry in `evaluation.json`."""
    evaluation = setting.evaluation
    return {
        "run": str(evaluation.run_url),
        "checkpoint": evaluation.checkpoint,
        "model_fp": evaluation.model_fp,
        "data_fp": evaluation.data_fp,
        "facts": evaluation.facts,
        **label_facts(setting),
        "classes": list(evaluation.classes.names),
        "images": len(evaluation.images),
        "failures": evaluation.codes,
        "not_refined": evaluation.not_refined,
        "seconds": evaluation.seconds,
        "answers": {
            name: {
                "confusion": answer.counts_nkk.sum(axis=0).tolist(),
                "scores": [asdict(score) for score in setting.scores[name]],
            }
            for name, answer in evaluation.answers.items()
        },
        "slices": {name: [asdict(row) for row in rows] for name, rows in evaluation.slices.items()},
        "drift": [asdict(drift) for drift in setting.drift],
        "season": None if setting.season is None else notable_seasons(setting.season).to_dict("records"),
        "gate": [asdict(check) for check in setting.verdict.checks] if setting.verdict else None,
    }


# ---------------------------------------------------------------- the summary


def headline(setting: JudgedSetting) -> dict[str, object]:
    """Images, failures, time and mean IoU of a setting, as plain data: its entry in the JSON line."""
    evaluation = setting.evaluation
    return {
        "run": str(evaluation.run_url),
        "images": len(evaluation.images),
        "failed": evaluation.codes,
        "not_refined": evaluation.not_refined,
        "rows_now": setting.rows_now,
        "wall_s": round(setting.wall_s, 2),
        "mean_iou": {name: _mean_iou(scores) for name, scores in setting.scores.items()},
        **label_facts(setting),
        "season": None if setting.season is None else season_facts(setting.season),
    }


def notable_seasons(season: pd.DataFrame) -> pd.DataFrame:
    """Rows of a season over all zones together, and those of single zones that are outside."""
    return season[season["zone"].isna() | (season["verdict"] == "outside")]


def season_facts(season: pd.DataFrame) -> dict[str, object]:
    """Newest date, values by verdict over all zones, and single zones by verdict, as plain data."""
    pooled = season["zone"].isna()
    verdicts: tuple[SeasonVerdict, ...] = get_args(SeasonVerdict)
    return {
        "date": max((day.isoformat() for day in season["date"].dropna()), default=None),
        **{name: int((pooled & (season["verdict"] == name)).sum()) for name in verdicts},
        **{f"zones_{name}": int(season.loc[season["verdict"] == name, "zone"].nunique()) for name in verdicts[1:]},
    }


def log_misnamed_labels(evaluation: Evaluation, cfg: EvaluateConfig) -> None:
    """Warn when an image without a label has one under another name or format in the folder of labels."""
    bare = [key for key, code, _ in evaluation.failures if code == NO_LABEL.code]
    if not (bare and cfg.read.labels):
        return
    with suppress(NothingThere, StorageError):  # labels in tars and Parquet are no files
        paths = (file.path for file in objects.list_files(Url(cfg.read.labels)))
        if text := labels.misnamed_label(bare, paths):
            log.warning("%d image(s) have no label; %s", len(bare), text)


def label_facts(setting: JudgedSetting) -> dict[str, object]:
    """Classes behind the means and ignored pixels of the labels, as plain data."""
    coverage = setting.evaluation.coverage
    return {
        "classes": len(coverage.names),
        "classes_scored": {name: int(means.classes_scored) for name, means in setting.means.items()},
        "unlabelled": coverage.unlabelled,
        "ignored_share": round(coverage.ignored_share, 6),
    }


def _mean_iou(scores: Sequence[scoring.Score]) -> float | None:
    """Mean IoU by the rules of the config; None when no image has a score."""
    interval = scoring.overall_scores(scores).get("mean_iou")
    return interval.value if interval and not math.isnan(interval.value) else None


def log_headline(setting: JudgedSetting) -> None:
    """Log images, failures, the main scores of every answer, and every check of the gate."""
    evaluation = setting.evaluation
    images, failures = len(evaluation.images), len(evaluation.failures)
    log.info("%s: %d of %d image(s) scored", evaluation.name, images, images + failures)
    if images:
        coverage = evaluation.coverage
        log.log(logging.WARNING if coverage.unlabelled else logging.INFO, "  %s", coverage)
    if evaluation.turned:
        log.info("  EXIF turns %d image(s), whose labels must be upright too", evaluation.turned)
    for reason, count in evaluation.not_refined.items():
        log.warning("  %d image(s) scored without refinement: %s", count, reason)
    for name, scores in setting.scores.items():
        intervals = scoring.overall_scores(scores)
        over = mean_over(setting.means[name], evaluation.classes.names)
        shown = (
            f"{score} {interval_text(intervals[score])}{over if score == 'mean_iou' else ''}"
            for score in LOGGED_SCORES
            if score in intervals
        )
        log.info("  %-16s %s", name, ", ".join(shown))
    for check in setting.verdict.checks if setting.verdict else []:
        level, word = (logging.INFO, "passed") if check.passed else (logging.ERROR, "FAILED")
        log.log(level, "  gate %s %s: %s", word, check.name, check.says)


def log_failures(evaluation: Evaluation, *, limit: float) -> None:
    """Log the images without a score by code, with an example of each; an error above `limit`, a share of 0 to 1."""
    for code, count in evaluation.codes.items():
        key, detail = next((key, detail) for key, other, detail in evaluation.failures if other == code)
        log.warning("  %d image(s) without a score, %s: for example %s: %s", count, code, key, detail)
    if evaluation.failed_share > limit:
        message = "%s: %.1f%% of the images have no score, limit %.1f%% (--runtime.max-failed-fraction)"
        log.error(message, evaluation.name, evaluation.failed_share * 100, limit * 100)


def interval_text(interval: Interval) -> str:
    """`0.6123 (0.5911 to 0.6308)`; without the interval where the bootstrap gives none."""
    bounds = f" ({interval.low:.4f} to {interval.high:.4f})" if not math.isnan(interval.low) else ""
    return f"{interval.value:.4f}{bounds}"
