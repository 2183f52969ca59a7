"""Train a network on labelled images and leave a checkpoint that `segment_dataset` takes.

    ray job submit --working-dir . -- python jobs/train.py --config jobs/configs/train/camvid.yaml \
        --data s3://bucket/camvid --output s3://bucket/runs/camvid-v3plus

Without Ray, in this process or under torchrun: `--bare`. Two minutes on a laptop, with data made on the spot:

    python -c "from pipeline.datasets.farmland import *; write_folder('f/val', 9, size_px=96, seed=1, with_labels=1)"
    python -c "from pipeline.datasets.farmland import *; write_folder('f/all', 40, size_px=96, seed=9, with_labels=1)"
    python -m jobs.train --bare --data f --sets.train all --output trained --config jobs/configs/train/farmland.yaml \
        --classes farmland --augment.crop-px 96 96 --schedule.steps 60 --validation.every 30

The same command again goes on where the last one stopped, and does nothing when the run is finished.
"""

import json
import logging
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated

import torch
import tyro
from pydantic import JsonValue

from infra import log as logs
from infra import preflight, session
from jobs import command_line
from pipeline.models import checkpoint
from pipeline.redact import redact
from pipeline.store import objects
from pipeline.store.lease import Lease
from pipeline.training import forecast, on_ray, ranks, run
from pipeline.training.config import TrainConfig
from pipeline.training.worker import find_lr, take_part

log = logging.getLogger(__name__)

_LEASE_S = 30.0
"""A driver silent for this long has lost the output."""


@dataclass(frozen=True)
class Arguments:
    """What `train` was asked to do."""

    cfg: Annotated[TrainConfig, tyro.conf.arg(name="")]
    config: str | None = None
    """YAML file with the same names as the flags; flags win."""
    bare: bool = False
    """Train in this process, or under torchrun, without Ray."""
    dry_run: bool = False
    """Only a few steps of everything, then a forecast of time and memory; leaves nothing."""
    find_lr: bool = False
    """Only say what the loss does at growing learning rates, in this process; leaves nothing."""


def train(args: Arguments) -> int:
    """Do the job; returns the exit status."""
    if args.find_lr:
        return search(args.cfg)
    what = rehearse if args.dry_run else lead
    if not args.bare:
        return what(args.cfg, on_cluster)
    with ranks.process_group(ranks.device_of(args.cfg.runtime.device)) as ours:
        work = partial(take_part, group=ours, about=about())
        if ours.leads:
            return what(args.cfg, work, agree=ours.agreed)
        if ours.agreed(0):
            work(forecast.rehearsal(args.cfg) if args.dry_run else args.cfg)
        return 0


def lead(cfg: TrainConfig, work: Callable[[TrainConfig], None], agree: Callable[[int], int] = int) -> int:
    """Do the job as the one process that speaks for all.

    Args:
        cfg: what is asked.
        work: trains.
        agree: tells the other processes, if there are, whether there is work.
    """
    run.refuse_changed_settings(cfg)
    finished = objects.exists(objects.join(cfg.output, "_SUCCESS"))
    agree(not finished)
    if finished:
        log.info("nothing to do: this run is finished")
        return finish(cfg)
    preflight.check_output(objects.join(cfg.output, "_run"))
    with Lease(cfg.output, lease_s=_LEASE_S, command=redact(shlex.join(sys.argv))):
        objects.put(objects.join(cfg.output, "_run/config.yaml"), command_line.to_yaml(cfg).encode())
        work(cfg)
        objects.put(objects.join(cfg.output, "_SUCCESS"), b"")
    return finish(cfg)


def rehearse(cfg: TrainConfig, work: Callable[[TrainConfig], None], agree: Callable[[int], int] = int) -> int:
    """Try a few steps of everything, say what the run will need, and leave nothing; arguments as `lead`."""
    short = forecast.rehearsal(cfg)
    agree(1)
    try:
        work(short)
        told = forecast.forecast_run(cfg, short.output)
    finally:
        forecast.clear(short.output)
    log.info("%s", told)
    print(json.dumps(asdict(told)))
    return 0


def search(cfg: TrainConfig) -> int:
    """Say which learning rate to begin with."""
    quiet = cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"tracker": "none"})})
    with ranks.process_group(ranks.device_of(cfg.runtime.device)) as ours:
        found = find_lr(quiet, ours)
        if ours.leads:
            log.info("%s", found.table())
            print(json.dumps({"lr": found.suggested}))
    return 0


def on_cluster(cfg: TrainConfig) -> None:
    """Train in workers of Ray."""
    preflight.check_authentication()
    with session.connect() as nodes:
        on_ray.train_on_ray(cfg, about(), nodes)


def about() -> dict[str, JsonValue]:
    """What explains the weights beside their data and figures."""
    return {
        "command": command(sys.argv[1:]),
        "atrous": command_line.code_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def command(flags: Sequence[str]) -> str:
    """How to start such a run again, without what only this machine knows: credentials, and folders above a file."""
    plain = [re.sub(r"(^|=)(/[^/]+)*/(?=[^/])", r"\1", flag) for flag in flags]
    return redact(shlex.join(["python", "-m", "jobs.train", *plain]))


def finish(cfg: TrainConfig) -> int:
    """Say what came out, for people on stderr and as one line of JSON on stdout."""
    card = checkpoint.load_card(cfg.output)
    said = {"output": redact(cfg.output), "step": card.training["step"], "miou": card.training["miou"]}
    log.info("%s: the best weights are of step %s, validation mIoU %s", *said.values())
    print(json.dumps(said))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Parse, train, and turn errors into a message and an exit status."""
    logs.configure()

    def job() -> int:
        args = command_line.parse(sys.argv[1:] if argv is None else argv, Arguments, description=__doc__ or "")
        logs.configure(args.cfg.runtime.log_format)
        log.info("resolved config:\n%s", command_line.to_yaml(args.cfg))
        return train(args)

    return command_line.exit_status(job)


if __name__ == "__main__":
    command_line.leave(main())
