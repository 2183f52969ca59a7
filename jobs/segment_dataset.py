"""Segment every image of a collection and commit masks and statistics as Parquet.

    ray job submit --working-dir . -- python jobs/segment_dataset.py --source s3://bucket/images \
        --output s3://bucket/out --checkpoint s3://bucket/model

Two minutes on a laptop, on generated data:

    python -m jobs.demo --output demo

The same command again resumes after a crash, and does nothing when the run is finished.
"""

import logging
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from infra import log as logs
from infra import notify
from jobs import command_line, console
from jobs.flow_choice import early_forks
from pipeline.config import SegmentConfig
from pipeline.errors import ConfigError
from pipeline.run.forks import Forks
from pipeline.store.url import Url

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentArguments:
    """Flags of `segment_dataset`."""

    job: ClassVar[str] = "segment"
    shown: ClassVar[tuple[str, ...]] = (
        *("classes", "limit", "tile.mode", "infer.output_stride", "infer.scales", "infer.flip", "infer.fuse"),
        *("infer.compile", "refine.engine", "refine.preset", "runtime.max_failed_fraction", "runtime.log_format"),
    )

    cfg: Annotated[SegmentConfig, tyro.conf.arg(name="")]
    config: str | None = None
    """Your YAML file, by path (with a slash or .yaml); its names are those of the flags, and flags win over it."""
    plan: bool = False
    """Print shards, bytes, keys, committed rows and first problems, and do nothing."""
    rehearse: int | None = None
    """With --plan: run N images, evenly spread, and forecast rates, workers, hours, requests and money of the plan."""
    budget_hours: float | None = None
    """With --rehearse: forecast the networks, refiners, cores and GPUs that finish the plan in H hours."""
    prices: str | None = None
    """With --rehearse: your YAML file of prices; unset: infra/prices.yaml."""
    crew_output: str | None = None
    """With --rehearse: file that gets the workers of the forecast, for --runtime.crew."""
    notify: str | None = None
    """URL that gets the closing JSON line by POST, or the error that ended the job; unset: ATROUS_NOTIFY."""


def check_rehearsal(args: SegmentArguments) -> None:
    """Refuse flags of a rehearsal that mean nothing.

    Raises:
        ConfigError: names the flag, and what it needs or allows.
    """
    if args.rehearse is None:
        flags = {"--budget-hours": args.budget_hours, "--prices": args.prices, "--crew-output": args.crew_output}
        if given := [flag for flag, value in flags.items() if value is not None]:
            raise ConfigError(f"{given[0]} needs a rehearsal", hint="add --plan --rehearse 64")
        return
    if not args.plan:
        raise ConfigError("--rehearse belongs to --plan: it runs nothing of the plan itself", hint="add --plan")
    if args.rehearse < 1:
        raise ConfigError(f"--rehearse {args.rehearse}: at least 1 image", hint="64 give a forecast")
    if args.budget_hours is not None and not 0 < args.budget_hours < math.inf:
        raise ConfigError(f"--budget-hours {args.budget_hours:g}: hours above 0")


def segment_collection(args: SegmentArguments, forks: Forks | None = None) -> int:
    """Segment what is missing, or print the plan for `--plan`; returns the exit status.

    Args:
        args: the flags.
        forks: server of workers that was started early; None starts one where it is needed.
    """
    check_rehearsal(args)
    from infra import preflight
    from jobs import run, summary
    from pipeline.source.plan import plan_source

    logs.configure(args.cfg.runtime.log_format)  # again: importing Ray has set up its own loggers
    identified = run.identify(args.cfg)
    preflight.check_apart([Url(source) for source in args.cfg.source], Url(args.cfg.output))
    if args.cfg.asks_of_masks:
        from jobs.from_masks import check_settings

        check_settings(args.cfg)
    plan = plan_source(args.cfg, identified.bands)
    if args.rehearse:
        from jobs import rehearse

        how = {"budget_hours": args.budget_hours, "prices": args.prices, "crew_output": args.crew_output}
        return rehearse.print_rehearsal(identified, plan, args.rehearse, **how)
    if args.plan:
        return summary.print_plan(identified, plan)
    return summary.print_outcome(identified, run.carry_out(identified, plan, forks))


def main(argv: list[str] | None = None) -> int:
    """Parse, segment, and turn errors into a message and an exit status."""
    logs.configure()

    def job() -> int:
        args = command_line.parse(argv, SegmentArguments, description=__doc__ or "")
        notify.configure(args.notify)
        logs.configure(args.cfg.runtime.log_format)
        source = ", ".join(args.cfg.source)
        log.info("segmenting %s with checkpoint %s into %s", source, args.cfg.checkpoint, args.cfg.output)
        console.log_changed_settings(args.cfg)
        with early_forks(args.cfg, only_plans=args.plan) as forks:
            return segment_collection(args, forks)

    return command_line.exit_status(job)


if __name__ == "__main__":
    command_line.leave(main())
