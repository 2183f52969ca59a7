"""What a job says at the end: a table for people on stderr, the report, and one JSON line last on stdout."""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from jobs.command_line import code_version
from pipeline.config import RefineConfig
from pipeline.redact import redact
from pipeline.run import manifest, report
from pipeline.run.ledger import RunProgress
from pipeline.run.parts import Part
from pipeline.source.plan import Plan
from pipeline.store import objects

if TYPE_CHECKING:
    from jobs.segment_dataset import Done, Run

log = logging.getLogger(__name__)

FIRST_PROBLEMS = 3
REPORT_PREVIEWS = 400
"""Previews read back at most: the report shows the least certain and a random few of them."""
REPORTED = [field.name for field in fields(report.RunSummary) if field.name not in ("parts", "wall_s", "images_per_s")]


def print_plan(run_url: str, planned: Plan, parts: Sequence[Part]) -> int:
    """Answer `--plan`: what would be done, and nothing else."""
    owed = manifest.todo(run_url, planned, parts)
    said = {
        "run": redact(run_url),
        "shards": len(planned.shards),
        "bytes": planned.bytes,
        "keys": planned.rows,
        "committed_rows": sum(part.rows for part in parts),
        "committed_parts": len(parts),
        "shards_left": len(owed),
        "ignored_files": planned.ignored,
        "problems": planned.warnings[:FIRST_PROBLEMS],
    }
    for name, value in said.items():
        log.info("%-16s %s", name, "unknown before reading" if value is None else value)
    print(json.dumps(said))
    return 0


def print_stages(progress: RunProgress) -> None:
    """Where the time went, and what each stage handed on."""
    for stage, seconds in progress.seconds.items():
        done = max(progress.done.get(stage, 0), 1)
        sent = progress.bytes_out.get(stage, 0) / done / 1024
        log.info(
            "%-7s %8.1f s busy, %7.1f ms and %7.1f KiB handed on per image", stage, seconds, seconds / done * 1e3, sent
        )


def write_report(run: "Run", done: "Done") -> None:
    """Write `report/index.html` and `report/overlays.png`."""
    kept = manifest.read_previews(run.url, limit=REPORT_PREVIEWS)
    counts = {field: getattr(done.manifest, field) for field in REPORTED}
    rate = done.progress.committed / done.wall_s
    told = report.RunSummary(**counts, parts=len(done.manifest.parts), wall_s=done.wall_s, images_per_s=rate)
    page = report.render_run(
        summary=told,
        previews=kept,
        classes=run.classes,
        failures=manifest.failures(run.url),
        facts=facts_of(run),
        next_commands=next_commands(run),
    )
    folder = objects.join(run.url, "report")
    objects.put(objects.join(folder, "index.html"), page.encode())
    objects.put(objects.join(folder, "overlays.png"), report.overlays_png(kept, run.classes))


def facts_of(run: "Run") -> dict[str, str]:
    """What explains the run, for the report."""
    return {
        "run": redact(run.url),
        "source": redact(", ".join(run.cfg.source)),
        **_answering(run),
        "classes": f"{run.classes.name}, {len(run.classes)} classes",
        "atrous": code_version(),
    }


def _answering(run: "Run") -> dict[str, str]:
    """Where the masks come from."""
    if run.model is None:
        return {"masks": redact(run.masks or "")}
    cfg, card = run.cfg, run.model.card
    return {
        "checkpoint": f"{redact(cfg.checkpoint)} ({card.architecture}, SHA-256 {run.sha256[:12]})",
        "network": f"output stride {cfg.infer.output_stride or card.output_stride}, precision {cfg.infer.precision}",
        "refinement": described(cfg.refine),
    }


def described(refine: RefineConfig) -> str:
    """How boundaries were refined, in a few words."""
    has_preset = refine.engine not in ("none", "domain_transform")
    return f"{refine.engine}, preset {refine.preset}" if has_preset else refine.engine


def next_commands(run: "Run") -> list[str]:
    """What people do next."""
    url = redact(run.url)
    return [
        f"python -m jobs.inspect_run {url} --verify",
        f"python -m jobs.inspect_run {url} --failures",
        f"python -c \"import pandas; print(pandas.read_parquet('{url}/parts').head())\"",
    ]


def finish(run: "Run", ended: "Done") -> int:
    """Print the table and the JSON line; the exit status says whether too many rows failed."""
    done, rows_now, wall_s = ended.manifest, ended.progress.committed, ended.wall_s
    limit = run.cfg.runtime.max_failed_fraction
    log.info("%-18s %9s", "status", "rows")
    for name, count in {"ok": done.ok, **done.error_codes}.items():
        log.info("%-18s %9d", name, count)
    report_url = objects.join(run.url, "report/index.html")
    log.info("look here first: %s", redact(report_url))
    status = int(done.failed_fraction > limit)
    if status:
        log.error(
            "%.1f%% of the rows failed, limit %.1f%% (--runtime.max-failed-fraction)",
            *(share * 100 for share in (done.failed_fraction, limit)),
        )
    said = {
        "run": redact(run.url),
        "rows": done.rows,
        "ok": done.ok,
        "failed": done.failed,
        "error_codes": done.error_codes,
        "parts": len(done.parts),
        "rows_now": rows_now,
        "wall_s": round(wall_s, 2),
        "images_per_s": round(rows_now / wall_s, 2),
        "bytes_between_stages": sum(ended.progress.bytes_out.values()),
        "report": redact(report_url),
        "exit_status": status,
    }
    sys.stderr.flush()
    print(json.dumps(said), flush=True)
    return status
