"""The lifecycle of a training run: lease, train here or on Ray, mark as finished; or rehearse it, or search a rate.

Importing this module imports torch and Ray, so `jobs.train` does it after its flags are parsed.
"""

import logging
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

import torch
from pydantic import JsonValue

from infra import preflight, session
from jobs import command_line, console
from pipeline.models.card import load_card
from pipeline.redact import redact
from pipeline.store import objects
from pipeline.store.lease import Lease
from pipeline.training import forecast, on_ray, ranks, run
from pipeline.training.config import TrainConfig
from pipeline.training.worker import find_lr, train_rank

log = logging.getLogger(__name__)

TRAINING_LEASE_S = 30.0
"""Lease of a training run, seconds: a driver without a heartbeat for this long loses the output."""

Work = Callable[[TrainConfig], None]
"""Function that trains by a config, in this process or on Ray."""


def train_on_cluster(cfg: TrainConfig, *, dry_run: bool) -> int:
    """Train in workers of Ray, or rehearse it; returns the exit status."""

    def work(cfg: TrainConfig) -> None:
        preflight.check_authentication()
        with session.connect(dashboard=cfg.runtime.dashboard) as nodes:
            expected = {"CPU": cfg.runtime.expect_cpus, "GPU": cfg.runtime.expect_gpus}
            session.wait_for_expected(expected, limit_s=cfg.runtime.start_limit_s)
            on_ray.train_on_ray(cfg, card_facts(), nodes)

    return rehearse(cfg, work) if dry_run else lead(cfg, work)


def train_bare(cfg: TrainConfig, *, dry_run: bool) -> int:
    """Train in this process, alone or as a rank of torchrun, or rehearse it; returns the exit status."""
    with ranks.process_group(ranks.rank_device(cfg.runtime.device)) as group:
        work = partial(train_rank, group=group, about=card_facts())
        if group.leads:
            return (rehearse if dry_run else lead)(cfg, work, broadcast=group.broadcast)
        if group.broadcast(0):  # 1 from rank 0: there is work
            work(forecast.trial_config(cfg) if dry_run else cfg)
        return 0


def lead(cfg: TrainConfig, work: Work, broadcast: Callable[[int], int] = int) -> int:
    """Train as rank 0, or as the driver of a cluster, under a lease on the output; returns the exit status.

    Args:
        cfg: config of the run.
        work: function that trains.
        broadcast: function that sends a number to the other ranks: 1 when there is work, 0 when the run is finished.
    """
    run.refuse_changed_settings(cfg)
    finished = objects.exists(cfg.output_url / "_SUCCESS")
    broadcast(not finished)
    if finished:
        log.info("nothing to do: this run is finished")
    else:
        run.class_map_of_config(cfg)  # a folder that is not there is said before Ray starts
        preflight.check_output(cfg.output_url / "_run")
        with Lease(cfg.output_url, lease_s=TRAINING_LEASE_S, command=command_line.command()):
            config_url = cfg.output_url / "_run/config.yaml"
            objects.put(config_url, command_line.to_yaml(cfg).encode())
            log.info("every setting: %s", config_url)
            work(cfg)
            objects.put(cfg.output_url / "_SUCCESS", b"")
    card = load_card(cfg.output)
    scored = sum(name.startswith("iou/") for name in card.training)
    summary = {"output": str(cfg.output_url), "step": card.training["step"], "miou": card.training["miou"]}
    summary |= {"classes": len(card.classes), "classes_scored": scored}
    log.info("%s: the best weights are of step %s, validation mIoU %s, %d classes, %d scored", *summary.values())
    if unlabelled := card.training.get("validation_unlabelled"):
        summary["validation_unlabelled"] = unlabelled
        log.warning("no validation label has a pixel of: %s", unlabelled)
    console.print_json(summary)
    return 0


def rehearse(cfg: TrainConfig, work: Work, broadcast: Callable[[int], int] = int) -> int:
    """Train a few steps of every phase, print a forecast of time and memory, delete their output; args as `lead`."""
    short = forecast.trial_config(cfg)
    broadcast(1)
    try:
        work(short)
        expected = forecast.forecast_run(cfg, short.output_url)
    finally:
        forecast.delete_trial(short.output_url)
    log.info("%s", expected)
    console.print_json(asdict(expected))
    return 0


def search_rate(cfg: TrainConfig) -> int:
    """Train at growing learning rates and print the loss at each, and the rate to begin with; leaves nothing."""
    untracked = cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"tracker": "none"})})
    with ranks.process_group(ranks.rank_device(cfg.runtime.device)) as group:
        search = find_lr(untracked, group)
        if group.leads:
            log.info("%s", search.table())
            console.print_json({"lr": search.suggested})
    return 0


def card_facts() -> dict[str, JsonValue]:
    """Command and versions, for the checkpoint card."""
    return {
        "command": repeatable_command(sys.argv[1:]),
        "atrous": command_line.code_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def repeatable_command(flags: Sequence[str]) -> str:
    """Command that repeats this run, without credentials and without the folders of this machine."""
    relative = [re.sub(r"(^|=)(/[^/]+)*/(?=[^/])", r"\1", flag) for flag in flags]
    return redact(shlex.join(["python", "-m", "jobs.train", *relative]))
