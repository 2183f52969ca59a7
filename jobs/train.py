"""Train a network on labelled images and leave a checkpoint that `segment_dataset` takes.

    ray job submit --working-dir . -- python jobs/train.py --config jobs/configs/train/camvid.yaml \
        --data s3://bucket/camvid --output s3://bucket/runs/camvid-v3plus

Without Ray, in this process or under torchrun: `--bare`. Two minutes on a laptop, with data made on the spot:

    python -m jobs.train --bare --data f --output f/run --classes farmland --network.name unet

The same command again goes on where the last one stopped, and does nothing when the run is finished.
"""

import json
import logging
import platform
import shlex
import sys
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro
from pydantic import JsonValue

from infra import log as logs
from infra import preflight
from jobs import command_line
from pipeline import storage
from pipeline.owner import Lease
from pipeline.redact import redact
from pipeline.training import group, loop, run
from pipeline.training.config import TrainConfig
from pipeline.training.group import Group

log = logging.getLogger(__name__)

LEASE_S = 30.0
"""A driver silent for this long has lost the output."""


@dataclass(frozen=True)
class Arguments:
    """What `train` was asked to do."""

    cfg: Annotated[TrainConfig, tyro.conf.arg(name="")]
    config: str | None = None
    """YAML file with the same names as the flags; flags win."""
    bare: bool = False
    """Train in this process, or under torchrun, without Ray."""


def train(args: Arguments) -> int:
    """Do the job; returns the exit status."""
    with group.join(group.device_of(args.cfg.runtime.device)) as ours:
        if not ours.leads:
            work(args.cfg, ours)
            return 0
        return lead(args.cfg, ours)


def lead(cfg: TrainConfig, ours: Group) -> int:
    """Do the job as the one process that speaks for all."""
    run.refuse_changed(cfg)
    if storage.exists(storage.join(cfg.output, "_SUCCESS")):
        log.info("nothing to do: this run is finished")
        return finish(cfg)
    preflight.check_output(storage.join(cfg.output, "_run"))
    with Lease(cfg.output, lease_s=LEASE_S, command=redact(shlex.join(sys.argv))):
        storage.put(storage.join(cfg.output, "_run/config.yaml"), command_line.to_yaml(cfg).encode())
        work(cfg, ours)
        storage.put(storage.join(cfg.output, "_SUCCESS"), b"")
    return finish(cfg)


def work(cfg: TrainConfig, ours: Group) -> None:
    """Train, as one process of a group."""
    loop.train(run.open_run(cfg, ours, about=about(), report=lambda _: None))


def about() -> dict[str, JsonValue]:
    """What explains the weights beside their data and figures."""
    return {
        "command": redact(shlex.join(sys.argv)),
        "atrous": command_line.code_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def finish(cfg: TrainConfig) -> int:
    """Say what came out, for people on stderr and as one line of JSON on stdout."""
    print(json.dumps({"run": redact(cfg.output)}))
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
    sys.exit(main())
