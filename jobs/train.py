"""Train a network on labelled images and leave a checkpoint that `segment_dataset` takes.

    ray job submit --working-dir . -- python jobs/train.py --config jobs/configs/train/camvid.yaml \
        --data s3://bucket/camvid --output s3://bucket/runs/camvid-v3plus

Without Ray, in this process or under torchrun: `--bare`. Two minutes on a laptop, on generated data:

    python -c "from pipeline.datasets.farmland import *; write_folder('f/val', 9, size_px=96, seed=1, with_labels=1)"
    python -c "from pipeline.datasets.farmland import *; write_folder('f/all', 40, size_px=96, seed=9, with_labels=1)"
    python -m jobs.train --bare --data f --sets.train all --output trained --config jobs/configs/train/farmland.yaml \
        --classes farmland --augment.crop-px 96 96 --schedule.steps 60 --validation.every 30

The same command again continues the run, and does nothing when it is finished.
"""

import logging
from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from infra import log as logs
from infra import notify
from jobs import command_line, console
from pipeline.training.config import TrainConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainArguments:
    """Flags of `train`."""

    job: ClassVar[str] = "train"
    shown: ClassVar[tuple[str, ...]] = (
        *("classes", "overfit", "sets.train", "sets.validation", "network.name", "network.initial"),
        *("augment.crop_px", "optimise.lr", "optimise.batch", "schedule.steps", "runtime.workers", "runtime.tracker"),
    )

    cfg: Annotated[TrainConfig, tyro.conf.arg(name="")]
    config: str | None = None
    """Shipped recipe by name, or your YAML file by path (with a slash or .yaml); flags win over it."""
    bare: bool = False
    """Train in this process, or under torchrun, without Ray."""
    dry_run: bool = False
    """Train a few steps of every phase, print a forecast of time and memory, and leave nothing."""
    find_lr: bool = False
    """Print the loss at growing learning rates, in this process, and leave nothing."""
    notify: str | None = None
    """URL that gets the closing JSON line by POST, or the error that ended the job; unset: ATROUS_NOTIFY."""


def train(args: TrainArguments) -> int:
    """Train, rehearse, or search a learning rate; returns the exit status."""
    from infra import preflight
    from jobs import training_run
    from pipeline.store.url import Url
    from pipeline.training.set_bands import with_set_bands
    from pipeline.training.start import with_initial_settings

    preflight.check_reachable([Url(args.cfg.data), args.cfg.output_url])
    logs.configure(args.cfg.runtime.log_format)  # again: importing Ray has set up its own loggers
    cfg = with_initial_settings(with_set_bands(args.cfg))
    if args.find_lr:
        return training_run.search_rate(cfg)
    if args.bare:
        return training_run.train_bare(cfg, dry_run=args.dry_run)
    return training_run.train_on_cluster(cfg, dry_run=args.dry_run)


def main(argv: list[str] | None = None) -> int:
    """Parse, train, and turn errors into a message and an exit status."""
    logs.configure()

    def job() -> int:
        args = command_line.parse(argv, TrainArguments, description=__doc__ or "")
        notify.configure(args.notify)
        logs.configure(args.cfg.runtime.log_format)
        log.info("training %s on %s into %s", args.cfg.network.name, args.cfg.data, args.cfg.output)
        console.log_changed_settings(args.cfg)
        return train(args)

    return command_line.exit_status(job)


if __name__ == "__main__":
    command_line.leave(main())
