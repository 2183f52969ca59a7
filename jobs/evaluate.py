"""Score a checkpoint, or masks that are there already, against labels: tables, intervals, a report, and a gate.

    ray job submit --working-dir . --submission-id eval-2026-11-20 -- python jobs/evaluate.py \
        --source s3://labelled/val --checkpoint s3://bucket/model --history s3://bucket/evaluations --baseline last-good

The source is a folder with images/ and labels/, or tars, or Parquet files; --read.labels says where labels are else.
Masks that a run has committed, or PNGs in a folder: `--masks s3://bucket/out/run=0123456789ab` instead of --checkpoint.
Several settings in one go are `settings:` of a YAML file, see jobs/configs/evaluate.yaml.

Two minutes on a laptop, with data made on the spot:

    python -m jobs.demo --output demo

The same command again finishes what a crash left, and does nothing when nothing is left. Exit status: 0, 1 when more
images failed than --runtime.max-failed-fraction, 3 when the gate fails.
"""

import hashlib
import io
import json
import logging
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Annotated

import pandas as pd
import tyro
from pydantic_core import to_json

from infra import log as logs
from infra import preflight
from jobs import command_line, segment_dataset, summary
from jobs.segment_dataset import Done, Run
from pipeline import classes
from pipeline.config import EvaluateConfig
from pipeline.errors import ConfigError, NothingThere
from pipeline.evaluate import evaluation, gate, history, report, samples, scoring
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.gate import Check, Gates, GateVerdict
from pipeline.redact import redact
from pipeline.run import manifest, masks
from pipeline.score import answers, drift
from pipeline.score.drift import Drift
from pipeline.score.metrics import Interval
from pipeline.source.plan import Plan, plan_source
from pipeline.store import objects

log = logging.getLogger(__name__)

GATE_FAILED = 3
"""Exit status."""
_SHOWN = ("mean_iou", "pixel_accuracy", "mean_boundary_iou", "calibration_error")
"""Scores in the log."""
IMAGES, LABELS = "images", "labels"
"""Folders of a labelled source."""
LABELS_IN = {"webdataset": "png", "parquet": "label"}
"""Where labels are in tars and Parquet files, unless said otherwise."""


@dataclass(frozen=True)
class Arguments:
    """What `evaluate` was asked to do."""

    cfg: Annotated[EvaluateConfig, tyro.conf.arg(name="")]
    config: str | None = None
    """YAML file with the same names as the flags; flags win."""
    plan: bool = False
    """Only say what would be done, for every setting."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One setting and what became of it."""

    evaluation: Evaluation
    done: Done
    scores: dict[str, list[scoring.Score]]
    """By answer."""
    drift: list[Drift]
    verdict: GateVerdict | None
    """None when no gate was asked for."""


def evaluate(args: Arguments) -> int:
    """Do the job; returns the exit status."""
    cfg = completed(args.cfg)
    preflight.check_apart(cfg.source, cfg.output)
    planned = plan_source(cfg)
    data = digest_of(planned, cfg)
    runs = {name: identify(one, data) for name, one in cfg.named().items()}
    if args.plan:
        return max(summary.print_plan(run.url, planned, manifest.footers(run.url)) for run in runs.values())
    judged = [judge(name, run, cfg, planned) for name, run in runs.items()]
    return finish(cfg, judged, planned)


# ---------------------------------------------------------------- what is asked


def completed(cfg: EvaluateConfig) -> EvaluateConfig:
    """The config with everything said that it left open: where labels are, and where runs go.

    Raises:
        ConfigError: neither checkpoint nor masks, or both; nowhere to write, or to find a baseline; no labels.
    """
    asked = {one.checkpoint or one.masks for one in cfg.named().values()}
    if None in asked or "" in asked or (cfg.masks and (cfg.checkpoint or cfg.settings)):
        raise ConfigError("an evaluation needs --checkpoint, or --masks alone")
    if not (cfg.output or cfg.history):
        raise ConfigError("nowhere to write", hint="give --output, or --history to write beside it")
    if cfg.baseline == history.LAST_GOOD and not cfg.history:
        raise ConfigError(f"--baseline {history.LAST_GOOD} without a history finds none", hint="give --history")
    output = cfg.output or objects.join(cfg.history or "", "_runs")
    return labelled(cfg.model_copy(update={"output": output}))


def labelled(cfg: EvaluateConfig) -> EvaluateConfig:
    """The config with `read.labels`: as given, or where a labelled source has them."""
    if cfg.read.labels:
        return cfg
    first = cfg.source[0]
    if len(cfg.source) == 1 and _holds(objects.join(first, LABELS)) and _holds(objects.join(first, IMAGES)):
        read = cfg.read.model_copy(update={"labels": objects.join(first, LABELS)})
        return cfg.model_copy(update={"read": read, "source": (objects.join(first, IMAGES),)})
    kinds = {shard.kind for shard in plan_source(cfg).shards}
    if len(kinds) != 1 or not kinds <= LABELS_IN.keys():
        raise ConfigError(f"{redact(first)} has no labels/ beside images/", hint="say where with --read.labels")
    return cfg.model_copy(update={"read": cfg.read.model_copy(update={"labels": LABELS_IN[kinds.pop()]})})


def _holds(url: str) -> bool:
    try:
        return any(True for _ in objects.list_files(url))
    except NothingThere:
        return False


def digest_of(planned: Plan, cfg: EvaluateConfig) -> str:
    """Of every planned object and every label that is an object of its own: other data is another run.

    The rows of a run say which version of an image they are of, but not which version of a label.
    """
    said: list[object] = [[shard.uri, shard.etag, shard.row_group, shard.max_rows] for shard in planned.shards]
    said += [[one.key, one.etag] for shard in planned.shards for one in shard.members()]
    if planned.shards and planned.shards[0].kind == "folder":
        said += [[file.path, file.etag] for file in objects.list_files(cfg.read.labels or "")]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def identify(cfg: EvaluateConfig, data: str) -> Run:
    """Check one setting and name its run."""
    run = _of_masks(cfg) if cfg.masks else segment_dataset.identify(cfg)
    answers.coding_of(cfg.judge).check(run.classes)
    scoring.check_rules(cfg.score, run.classes, cfg.judge.trimap_px)
    gate.check_gates(gates_of(cfg), run.classes)
    fingerprint = hashlib.sha256(f"{run.fingerprint} {data}".encode()).hexdigest()
    url = objects.join(cfg.output, f"run={fingerprint[:12]}")
    return replace(run, fingerprint=fingerprint, url=url, judge=cfg.judge)


def _of_masks(cfg: EvaluateConfig) -> Run:
    url = cfg.masks or ""
    sha256 = masks.digest(url)
    made_with = masks.class_map_of_run(url)
    class_map = classes.load_class_map(cfg.classes) if cfg.classes else made_with
    if made_with and class_map and (lines := made_with.differences(class_map)):
        raise ConfigError(f"the masks have other classes: {'; '.join(lines[:3])}", hint="leave --classes unset")
    if class_map is None:
        raise ConfigError("nothing says which classes a folder of PNGs has", hint="give --classes")
    fingerprint = cfg.fingerprint(model_sha256=sha256, classes=class_map.model_dump(mode="json"))
    return Run(cfg, class_map, None, sha256, fingerprint, url="", masks=url)


# ---------------------------------------------------------------- what came out


def judge(name: str, run: Run, cfg: EvaluateConfig, planned: Plan) -> Judged:
    """Segment and score what is owed of one setting, and hold it against its gates."""
    done = segment_dataset.carry_out(run, planned)
    training: dict[str, object] = dict(run.model.card.training) if run.model else {}
    found = evaluation.read_evaluation(run.url, name=name, training=training, facts=summary.facts_of(run))
    sources = {shard.id: redact(shard.root) for shard in planned.shards}
    found = replace(found, slices=scoring.slices_of(found, cfg.score, sources))
    scores = {
        one.name: scoring.scores_of(one, found.classes, found.widths_px, cfg.score) for one in found.answers.values()
    }
    moved = drift.measure_drift(found.images, training, found.classes.names) if run.model else []
    return Judged(found, done, scores, moved, gated(found, cfg, moved))


def gated(found: Evaluation, cfg: EvaluateConfig, moved: list[Drift]) -> GateVerdict | None:
    """What the gates say; None when neither gates nor a baseline were asked for."""
    if not (cfg.gates or cfg.baseline):
        return None
    entries = history.read_history(cfg.history) if cfg.history else []
    source = ", ".join(cfg.source)
    baseline = history.find_baseline(cfg.baseline, entries, found, source=source) if cfg.baseline else None
    if cfg.baseline and not baseline:
        log.warning("%s: no other evaluation of this source has passed, so there is no baseline yet", found.name)
    before = (
        evaluation.read_evaluation(baseline.run_url) if baseline and manifest.read_manifest(baseline.run_url) else None
    )
    return gate.apply_gates(found, gates_of(cfg), baseline=baseline, before=before, drift=moved)


def gates_of(cfg: EvaluateConfig) -> Gates:
    """As the file says, or those of its defaults."""
    return gate.load_gates(cfg.gates) if cfg.gates else Gates()


def remember(judged: Judged, cfg: EvaluateConfig, url: str) -> None:
    """Append to the history."""
    entries = history.entries_of(
        judged.evaluation,
        time=datetime.now(UTC),
        command=shlex.join(sys.argv),
        source=", ".join(cfg.source),
        gates=gates_of(cfg) if judged.verdict else None,
        verdict=judged.verdict,
        drift=judged.drift,
    )
    if not history.append(url, entries):
        log.info("%s: this evaluation is in the history already", judged.evaluation.name)


def finish(cfg: EvaluateConfig, judged: Sequence[Judged], planned: Plan) -> int:
    """Write tables, print the headline and the JSON line; returns the exit status."""
    fingerprints = " ".join(one.evaluation.fingerprint for one in judged)
    folder = objects.join(cfg.output, f"evaluation={hashlib.sha256(fingerprints.encode()).hexdigest()[:12]}")
    write(folder, judged)
    for one in judged:
        if cfg.history:
            remember(one, cfg, cfg.history)
        show(one)
    report_url = write_report(folder, judged, cfg, planned)
    log.info("look here first: %s", redact(report_url))
    failed = [one.evaluation.name for one in judged if one.verdict and not one.verdict.passed]
    too_many = [one for one in judged if one.evaluation.failed_share > cfg.runtime.max_failed_fraction]
    status = 1 if too_many else GATE_FAILED if failed else 0
    said = {
        "evaluation": redact(folder),
        "report": redact(report_url),
        "settings": {one.evaluation.name: headline(one) for one in judged},
        "gate": None if all(one.verdict is None for one in judged) else "failed" if failed else "passed",
        "exit_status": status,
    }
    sys.stderr.flush()
    print(json.dumps(said), flush=True)
    return status


def headline(one: Judged) -> dict[str, object]:
    """What the JSON line says of a setting."""
    found = one.evaluation
    return {
        "run": redact(found.run_url),
        "images": len(found.images),
        "failed": found.codes,
        "rows_now": one.done.progress.committed,
        "wall_s": round(one.done.wall_s, 2),
        "mean_iou": {name: mean_iou_of(scores) for name, scores in one.scores.items()},
    }


def mean_iou_of(scores: Sequence[scoring.Score]) -> float | None:
    """By the rules of the config; None where no image has a score."""
    found = scoring.of_all(scores).get("mean_iou")
    return found.value if found and not math.isnan(found.value) else None


def show(one: Judged) -> None:
    """The headline for people, on stderr."""
    found = one.evaluation
    log.info(
        "%s: %d image(s) scored, %d without a score %s", found.name, len(found.images), len(found.failures), found.codes
    )
    for name, scores in one.scores.items():
        by_name = scoring.of_all(scores)
        said = (f"{wanted} {told(by_name[wanted])}" for wanted in _SHOWN if wanted in by_name)
        log.info("  %-16s %s", name, ", ".join(said))
    for check in one.verdict.checks if one.verdict else []:
        log.log(logging.INFO if check.passed else logging.ERROR, "  gate %s %s: %s", *_said(check))


def _said(check: Check) -> tuple[str, str, str]:
    return "passed" if check.passed else "FAILED", check.name, check.says


def told(interval: Interval) -> str:
    """A score for people, with what a bootstrap says of it where it can."""
    known = f" ({interval.low:.4f} to {interval.high:.4f})" if not math.isnan(interval.low) else ""
    return f"{interval.value:.4f}{known}"


def write(folder: str, judged: Sequence[Judged]) -> None:
    """`evaluation.json`, and tables of scores and of images."""
    said = to_json({one.evaluation.name: described(one) for one in judged}, inf_nan_mode="null", indent=1)
    objects.put(objects.join(folder, "evaluation.json"), said)
    tables = {
        "scores": pd.concat(scoring.scores_table(one.evaluation, one.scores) for one in judged),
        "images": pd.concat(scoring.images_table(one.evaluation) for one in judged),
    }
    for name, table in tables.items():
        out = io.BytesIO()
        table.to_parquet(out, index=False)
        objects.put(objects.join(folder, f"{name}.parquet"), out.getvalue())


def write_report(folder: str, judged: Sequence[Judged], cfg: EvaluateConfig, planned: Plan) -> str:
    """The page of the first setting, with the others beside it; returns its URL."""
    first, *others = (report.ScoredSetting(one.evaluation, one.scores) for one in judged)
    one = judged[0]
    worst, best = report.to_show(one.evaluation)
    page = report.render_evaluation(
        first,
        cfg=cfg.score,
        others=others,
        verdict=one.verdict,
        drift=one.drift,
        history=history.read_history(cfg.history) if cfg.history else [],
        samples=list(samples.reread(one.evaluation, {*worst, *best}, planned, cfg)),
        next_commands=[f"python -m jobs.inspect_run {shlex.quote(redact(one.evaluation.run_url))} --failures"],
    )
    url = objects.join(folder, "report/index.html")
    objects.put(url, page.encode())
    return url


def described(one: Judged) -> dict[str, object]:
    """Everything about a setting that is not of single images, as plain data."""
    found = one.evaluation
    return {
        "run": redact(found.run_url),
        "checkpoint": found.checkpoint,
        "model_fp": found.model_fp,
        "data_fp": found.data_fp,
        "facts": found.facts,
        "classes": list(found.classes.names),
        "images": len(found.images),
        "failures": found.codes,
        "seconds": found.seconds,
        "answers": {
            name: {
                "confusion": answer.counts_nkk.sum(axis=0).tolist(),
                "scores": [asdict(score) for score in one.scores[name]],
            }
            for name, answer in found.answers.items()
        },
        "slices": {name: [asdict(row) for row in rows] for name, rows in found.slices.items()},
        "drift": [asdict(moved) for moved in one.drift],
        "gate": [asdict(check) for check in one.verdict.checks] if one.verdict else None,
    }


def main(argv: list[str] | None = None) -> int:
    """Parse, evaluate, and turn errors into a message and an exit status."""
    logs.configure()

    def job() -> int:
        given = sys.argv[1:] if argv is None else argv
        args = command_line.parse(given, Arguments, description=__doc__ or "")
        logs.configure(args.cfg.runtime.log_format)
        log.info("resolved config:\n%s", command_line.to_yaml(args.cfg))
        return evaluate(args)

    return command_line.exit_status(job)


if __name__ == "__main__":
    command_line.leave(main())
