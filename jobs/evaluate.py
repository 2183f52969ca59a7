"""Score a checkpoint, or existing masks, against labels: tables, intervals, a report, and a gate.

    ray job submit --working-dir . --submission-id eval-2026-11-20 -- python jobs/evaluate.py \
        --source s3://labelled/val --checkpoint s3://bucket/model --history s3://bucket/evaluations --baseline last-good

The source is a folder with images/ and labels/, or tars, or Parquet files; --read.labels names other labels.
`--masks s3://bucket/out/run=0123456789ab` instead of --checkpoint scores the masks of a run, or PNGs of a folder.
Several settings in one go are `settings:` of a YAML file, see jobs/configs/evaluate/settings.yaml.

Two minutes on a laptop, on generated data:

    python -m jobs.demo --output demo

The same command again resumes after a crash, and runs no finished setting again. Exit status: 0, 1 when more images
failed than --runtime.max-failed-fraction, 3 when the gate fails.
"""

import logging
from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from infra import log as logs
from infra import notify
from jobs import command_line, console
from jobs.flow_choice import early_forks
from pipeline.config import EvaluateConfig
from pipeline.run.forks import Forks
from pipeline.store.url import Url

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateArguments:
    """Flags of `evaluate`."""

    job: ClassVar[str] = "evaluate"
    shown: ClassVar[tuple[str, ...]] = (
        *("output", "checkpoint", "masks", "classes", "limit", "read.labels", "refine.engine", "judge.labels_as"),
        *("score.slice_columns", "history", "baseline", "gates", "runtime.max_failed_fraction"),
    )

    cfg: Annotated[EvaluateConfig, tyro.conf.arg(name="")]
    config: str | None = None
    """Shipped recipe by name, or your YAML file by path (with a slash or .yaml); flags win over it."""
    plan: bool = False
    """Print shards, bytes, keys and committed rows of every setting, and do nothing."""
    notify: str | None = None
    """URL that gets the closing JSON line by POST, or the error that ended the job; unset: ATROUS_NOTIFY."""


def evaluate(args: EvaluateArguments, forks: Forks | None = None) -> int:
    """Segment and score every setting, write tables, history and report; returns the exit status.

    Args:
        args: the flags.
        forks: server of workers that was started early; None starts one where it is needed.
    """
    from infra import preflight
    from jobs import run as runs
    from jobs import summary
    from pipeline.classes import load_class_map
    from pipeline.evaluate import inputs, output, setting
    from pipeline.evaluate.evaluation import read_evaluation
    from pipeline.source.plan import plan_source
    from pipeline.source.truth import label_notes, raster_labels

    logs.configure(args.cfg.runtime.log_format)  # again: importing Ray has set up its own loggers
    cfg = inputs.complete_config(args.cfg)
    preflight.check_reachable([Url(cfg.history)] if cfg.history else [])
    preflight.check_apart([Url(source) for source in cfg.source], Url(cfg.output))
    card = inputs.card_of_settings(cfg)
    plan = plan_source(cfg, runs.network_bands(card))
    labels = raster_labels(cfg, load_class_map(cfg.classes) if cfg.classes else card.classes) if card else None
    for note in label_notes(labels) if labels else ():
        log.warning("%s", note)
    digest, identified = inputs.data_digest(plan, cfg), {}
    for name, named in cfg.named().items():
        identified[name] = runs.identify_labelled(named, digest)
        inputs.check_setting(named, identified[name].classes)
    if args.plan:
        return max(summary.print_plan(run, plan) for run in identified.values())
    season, judged = setting.measure_season(cfg), []
    for name, run in identified.items():
        outcome = runs.carry_out(run, plan, forks)
        training = dict(run.model.card.training) if run.model else {}
        evaluated = read_evaluation(run.url, name=name, training=training, facts=runs.run_facts(run))
        rows_now, wall_s = outcome.progress.committed, outcome.wall_s
        judged.append(setting.judge_setting(evaluated, cfg, plan, rows_now=rows_now, wall_s=wall_s, season=season))
    status, line = output.write_evaluation(judged, cfg, plan, command=command_line.command())
    console.print_json(line)
    return status


def main(argv: list[str] | None = None) -> int:
    """Parse, evaluate, and turn errors into a message and an exit status."""
    logs.configure()

    def job() -> int:
        args = command_line.parse(argv, EvaluateArguments, description=__doc__ or "")
        notify.configure(args.notify)
        logs.configure(args.cfg.runtime.log_format)
        cfg, source = args.cfg, ", ".join(args.cfg.source)
        log.info("evaluating %s on %s into %s", cfg.masks or cfg.checkpoint, source, cfg.output or cfg.history)
        console.log_changed_settings(cfg, known=("source", "output", "checkpoint", "masks"))
        with early_forks(args.cfg, only_plans=args.plan) as forks:
            return evaluate(args, forks)

    return command_line.exit_status(job)


if __name__ == "__main__":
    command_line.leave(main())
