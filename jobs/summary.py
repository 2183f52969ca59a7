"""Console output about a run: tables for people on stderr, one JSON line last on stdout."""

import logging
from collections.abc import Mapping
from typing import Any

from jobs.console import print_json
from jobs.run import Run, RunOutcome
from pipeline.run import folder
from pipeline.run.footers import read_footers
from pipeline.run.pending import pending_shards
from pipeline.source.left_out import in_words
from pipeline.source.plan import Plan
from pipeline.source.raster_survey import survey_rasters

log = logging.getLogger(__name__)

REFINE_S_PER_MPX = 2.4
"""Seconds of one core per megapixel of raster for the default CRF with seven classes: docs/benchmarks/rasters.md."""
FIRST_PROBLEMS = 3
"""Most problems of a source that `--plan` prints."""


def print_plan(run: Run, plan: Plan) -> int:
    """Print the plan of a run, for `--plan`: shards, bytes, keys, committed rows, first problems; returns 0."""
    footers = read_footers(run.url)
    facts: dict[str, Any] = {
        "run": str(run.url),
        "shards": len(plan.shards),
        "bytes": plan.bytes,
        "keys": plan.rows,
        "committed_rows": footers.totals.rows,
        "committed_parts": len(footers),
        "shards_left": len(pending_shards(run.url, plan, footers)),
        "ignored_files": dict(plan.ignored),
        "problems": plan.warnings[:FIRST_PROBLEMS],
        "substituted": run.substituted,
    }
    if run.cfg.read.kind == "raster":
        facts |= raster_facts(run, plan)
    in_text = {
        "ignored_files": in_words(plan.ignored),
        "problems": "; ".join(facts["problems"]) or "none",
        "substituted": run.substituted or "none",
    }
    for name, value in (facts | in_text).items():
        log.info("%-16s %s", name, "unknown until read" if value is None else value)
    print_json(facts)
    return 0


def raster_facts(run: Run, plan: Plan) -> dict[str, Any]:
    """Figures of the rasters of a plan: windows, gigapixels, estimated pixels without data, and hours of one core."""
    survey = survey_rasters(plan)
    for warning in survey.warnings:
        log.warning("%s", warning)
    share = survey.nodata_share
    mpx = survey.gigapixels * 1e3 * (1 - (share or 0.0))
    refined = run.cfg.refine.engine != "none"
    return {
        "rasters": survey.rasters,
        "unreadable": survey.unreadable,
        "windows": survey.windows,
        "gigapixels": round(survey.gigapixels, 3),
        "nodata_share": None if share is None else round(share, 3),
        "overviews_read": survey.overviews,
        "refine_core_hours": round(mpx * REFINE_S_PER_MPX / 3600, 2) if refined else 0.0,
        "problems": [*plan.warnings, *survey.warnings][:FIRST_PROBLEMS],
    }


def log_not_refined(reasons: Mapping[str, int]) -> None:
    """Warn of masks that are not refined although an engine is configured, by reason."""
    for reason, count in reasons.items():
        log.warning("%d image(s) not refined: %s; the column refine_note has the values", count, reason)


def busy_shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Share of each stage in the busy seconds of all workers, 0 to 1; empty before anything was done."""
    total = sum(seconds.values())
    return {stage: round(spent / total, 4) for stage, spent in seconds.items()} if total else {}


def log_shares(outcome: RunOutcome) -> None:
    """Log what share of the time was the work on images, and what share of that was each stage."""
    working_s, shares = outcome.progress.working_s, busy_shares(outcome.manifest.seconds)
    if not working_s or not shares:
        return
    idle_s = max(outcome.wall_s - working_s, 0.0)
    log.info("start and end: %.1f of %.1f s, %.0f%%", idle_s, outcome.wall_s, 100 * idle_s / outcome.wall_s)
    texts = [f"{stage} {share:.1%}" for stage, share in shares.items()]
    log.info("busy time of the workers: %s", ", ".join(texts))


def print_outcome(run: Run, outcome: RunOutcome) -> int:
    """Print rows by status and the JSON line; the exit status is 1 when too many rows failed."""
    totals, rows_now, wall_s = outcome.manifest, outcome.progress.committed, outcome.wall_s
    log.info("%-18s %9s", "status", "rows")
    for name, count in {"ok": totals.ok, **totals.error_codes}.items():
        log.info("%-18s %9d", name, count)
    log_not_refined(totals.refine_notes)
    log_shares(outcome)
    report_url = folder.find_object(run.url, folder.REPORT)
    log.info("look here first: %s", report_url)
    limit = run.cfg.runtime.max_failed_fraction
    status = int(totals.failed_fraction > limit)
    if status:
        log.error(
            "%.1f%% of the rows failed, limit %.1f%% (--runtime.max-failed-fraction)",
            *(share * 100 for share in (totals.failed_fraction, limit)),
        )
    print_json(
        {
            "run": str(run.url),
            "rows": totals.rows,
            "ok": totals.ok,
            "failed": totals.failed,
            "error_codes": totals.error_codes,
            "refined": totals.refined,
            "substituted": run.substituted,
            "not_refined": totals.refine_notes,
            "ignored_files": dict(outcome.ignored),
            "left_out": dict(outcome.progress.left_out.counts),
            "parts": len(totals.parts),
            "rows_now": rows_now,
            "flow": outcome.flow,
            "wall_s": round(wall_s, 2),
            "working_s": round(outcome.progress.working_s, 2),
            "busy_shares": busy_shares(totals.seconds),
            "images_per_s": round(rows_now / wall_s, 2),
            "bytes_between_stages": sum(outcome.progress.bytes_out.values()),
            **(outcome.assembled.facts() if outcome.assembled else {}),
            **(outcome.made.facts() if outcome.made else {}),
            **(
                {"points": totals.positions, "without_position": totals.ok - totals.positions}
                if totals.positions
                else {}
            ),
            "report": str(report_url),
            "exit_status": status,
        }
    )
    return status
