"""Outputs of a parameter search: `params.yaml`, `results.parquet`, `report/index.html`, and the summary.

In: the outcome of a search. Out: objects in the output folder, log lines, and plain data for the summary line.
"""

import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.parquet as pq

from pipeline.classes import ClassMap
from pipeline.redact import redact
from pipeline.score.coverage import mean_over
from pipeline.store import objects
from pipeline.tune import chunks, report
from pipeline.tune.chunks import SearchOutcome
from pipeline.tune.config import TuneConfig
from pipeline.tune.search import FIXED_PARAMS, SEARCHED_PARAMS

log = logging.getLogger(__name__)

LOGGED_KEYS = 5
"""Most left-out images that the log names per reason; the report names more."""


def search_facts(cfg: TuneConfig, outcome: SearchOutcome, run_facts: Mapping[str, str]) -> dict[str, str]:
    """Facts of a search for the report: data, checkpoint, grid, engine; `run_facts` are those of its run."""
    return {
        "images": f"{redact(cfg.images)}, {outcome.none.images} with labels",
        "labels": redact(cfg.labels),
        "checkpoint": run_facts["checkpoint"],
        "classes": run_facts["classes"],
        "search": f"grid {cfg.grid}, {cfg.finer} time(s) finer, {len(outcome.results) - 1} candidates",
        "engine": f"{cfg.refine.engine}, classes below {cfg.refine.prune:g} pruned",
        "atrous": run_facts["atrous"],
    }


def write_search(
    cfg: TuneConfig,
    outcome: SearchOutcome,
    classes: ClassMap,
    left_out: Sequence[tuple[str, str]],
    facts: Mapping[str, str],
) -> None:
    """Write parameters, table and report, and log the final comparison.

    Args:
        cfg: config with the output folder.
        outcome: outcome of the search.
        classes: names and colours.
        left_out: (key, reason) of images that took no part.
        facts: see `search_facts`.
    """
    over = mean_over(outcome.none.scores, classes.names)
    facts = {**facts, "mean IoU": over.strip()} if over else facts
    params = chunks.params_yaml(outcome, cfg.refine, facts=facts)
    page = report.render_search(outcome, classes=classes, left_out=left_out, facts=facts, params=params)
    table = io.BytesIO()
    pq.write_table(chunks.results_table(outcome), table)
    objects.put(cfg.output_url / "results.parquet", table.getvalue())
    objects.put(cfg.output_url / "report/index.html", page.encode())
    objects.put(cfg.output_url / "params.yaml", params.encode())
    for contender in outcome.contenders:
        gain = contender.gain
        shown = "" if gain is None else f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        log.info("%-32s mean IoU %.4f%s %s", contender.name, contender.result.mean_iou, over, shown)
    for reason, count in sum((result.notes for result in outcome.results), Counter[str]()).items():
        log.warning("%d mask(s) were counted without refinement: %s", count, reason)
    log.info("look here first: %s", cfg.output_url / "report/index.html")


def log_left_out(left_out: Sequence[tuple[str, str]]) -> None:
    """Log how many images took no part, by reason, with the first keys."""
    for reason, count in Counter(reason for _, reason in left_out).items():
        keys = [key for key, reason_of_key in left_out if reason_of_key == reason][:LOGGED_KEYS]
        log.warning("%d image(s) left out, %s: %s", count, reason, ", ".join(keys) + ", ..." * (count > LOGGED_KEYS))


def search_summary(cfg: TuneConfig, outcome: SearchOutcome, left_out: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Verdict, gains, best parameters and URLs, as plain data: the JSON line without its times."""
    verdict, params = outcome.verdict, outcome.best.candidate.params
    gains = {"gain": verdict.gain, "fair_gain": verdict.fair_gain}
    return {
        "verdict": "crf" if verdict.helps else "no CRF",
        "images": outcome.none.images,
        "left_out": dict(Counter(reason for _, reason in left_out)),
        "candidates": len(outcome.results) - 1,
        "classes": outcome.none.scores.counts.shape[-2],
        "classes_scored": int(outcome.none.scores.classes_scored),
        "classes_labelled": int(np.count_nonzero(outcome.none.scores.support)),
        "not_refined": sum(result.notes.total() for result in outcome.results),
        "mean_iou_without": round(outcome.none.mean_iou, 5),
        "mean_iou_best": round(outcome.best.mean_iou, 5),
        **{name: [round(end, 5) for end in (gain.value, gain.low, gain.high)] for name, gain in gains.items()},
        "best": {name: getattr(params, name) for name in (*SEARCHED_PARAMS, *FIXED_PARAMS)},
        "seconds_per_image": round(outcome.best.seconds / outcome.best.images, 4),
        "params": str(cfg.output_url / "params.yaml"),
        "report": str(cfg.output_url / "report/index.html"),
    }
