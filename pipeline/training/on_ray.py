"""The loop in workers of Ray Train v2: the only part of training that knows Ray.

In: a config and the resources of a cluster's nodes. Out: the run's output, finished. Workers that die are started
again, as often as the config allows, and go on from the newest state in the output; Ray's own checkpoints are not used,
so a run can go on with Ray or without. Nor are its reports: each is a barrier that waits for Ray's controller, which
looks every two seconds.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from pydantic import JsonValue
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import RuntimeConfig
from pipeline.errors import ConfigError, JobError, LabelError
from pipeline.run.workers import Resources, cluster_nodes
from pipeline.training import ranks
from pipeline.training.config import TrainConfig
from pipeline.training.worker import take_part

log = logging.getLogger(__name__)

LISTEN_S = 0.5
"""Between two looks at what the workers say."""


def train_on_ray(cfg: TrainConfig, about: Mapping[str, JsonValue], nodes: Sequence[Mapping[str, float]]) -> None:
    """Train on the cluster that is connected, and say here what the first worker says there.

    Args:
        cfg: what is asked.
        about: what the card is to say.
        nodes: resources of each node of the cluster, by Ray's names.

    Raises:
        ConfigError: the workers do not fit into the cluster, or what they all meet and no repetition changes.
        JobError: workers failed more often than `runtime.max_failures`.
    """
    use_gpu = check_fits(cfg, nodes)
    # Relative paths mean what they mean to the driver of a local cluster.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    with heard() as board, tempfile.TemporaryDirectory(prefix="atrous-ray-") as folder:
        trainer = TorchTrainer(
            worker,  # type: ignore[arg-type]  # v2 hands on what it returns
            train_loop_config={"cfg": cfg.model_dump(mode="json"), "about": dict(about), "board": board},
            scaling_config=scaling(cfg, use_gpu=use_gpu),
            # Ray keeps nothing of value here: states are in the output.
            run_config=RunConfig(
                storage_path=folder, failure_config=FailureConfig(max_failures=cfg.runtime.max_failures)
            ),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        )
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            hint = "the same command goes on from the newest state; --runtime.max-failures is the budget"
            raise JobError(f"workers failed too often: {error}", hint=hint) from error
    if said := result.return_value:  # type: ignore[attr-defined]  # the stubs are of Train v1
        raise ConfigError(said)


def check_fits(cfg: TrainConfig, nodes: Sequence[Mapping[str, float]]) -> bool:
    """Refuse what Ray would wait for without an end; returns whether workers get a GPU each.

    Raises:
        ConfigError: with the numbers.
    """
    asked = cfg.runtime
    there = cluster_nodes(nodes, RuntimeConfig(expect_cpus=asked.expect_cpus, expect_gpus=asked.expect_gpus))
    use_gpu = asked.device == "cuda" or (asked.device == "auto" and any(node.gpus for node in there))
    one = Resources(asked.cpus_per_worker, float(use_gpu), 0)
    least = asked.min_workers or asked.workers
    fit = sum(node.times(one) for node in there)
    if fit < least:
        has = sum(there, start=Resources(0, 0, 0))
        hint = "lower --runtime.workers or --runtime.cpus-per-worker, or say with --runtime.expect-cpus and"
        hint += " --runtime.expect-gpus what the cluster will scale up to"
        needs = f"{least} worker(s) of {one.cpus:g} CPU, {one.gpus:g} GPU"
        raise ConfigError(f"the cluster has {has.cpus:g} CPU, {has.gpus:g} GPU, too few for {needs}", hint=hint)
    return use_gpu


def scaling(cfg: TrainConfig, *, use_gpu: bool) -> ScalingConfig:
    """How many workers, and what each of them reserves."""
    most, least = cfg.runtime.workers, cfg.runtime.min_workers
    return ScalingConfig(
        num_workers=most if least is None else (least, most),  # type: ignore[arg-type]  # v2 is elastic
        use_gpu=use_gpu,
        resources_per_worker={"CPU": cfg.runtime.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
    )


def worker(said: dict[str, Any]) -> str:
    """What every worker does. Returns the message of an error that all workers meet, since trying again is in vain."""
    cfg = TrainConfig.model_validate(said["cfg"])
    torch.set_num_threads(max(1, int(cfg.runtime.cpus_per_worker)))
    with ranks.process_group(ray.train.torch.get_device()) as ours:
        if ours.leads:
            logging.getLogger("pipeline").addHandler(_Sender(said["board"]))
            log.info("training in %d worker(s) on %s", ours.size, ours.device.type)
        try:
            take_part(cfg, ours, about=said["about"])
        except (ConfigError, LabelError) as error:
            return str(error)
    return ""


# ---------------------------------------------------------------- log lines, from the first worker to the driver


class _Board:
    """An actor that holds what the first worker said until the driver asks."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def put(self, level: int, message: str) -> None:
        self.lines.append((level, message))

    def take(self) -> list[tuple[int, str]]:
        taken, self.lines = self.lines, []
        return taken


class _Sender(logging.Handler):
    """Sends every record to the board."""

    def __init__(self, board: Any) -> None:
        super().__init__(logging.INFO)
        self.board = board

    def emit(self, record: logging.LogRecord) -> None:
        self.board.put.remote(record.levelno, record.getMessage())


@contextmanager
def heard() -> Generator[Any]:
    """A board whose lines are logged by this process for as long as the block lasts, and once more at its end."""
    # On any other node it would die with that node, and an elastic run that goes on without it would have no voice.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(_Board)
    board = actor.options(scheduling_strategy=here).remote()
    done = threading.Event()

    def repeat() -> None:
        for level, message in ray.get(board.take.remote()):
            log.log(level, "%s", message)

    def listen() -> None:
        while not done.wait(LISTEN_S):
            repeat()

    listener = threading.Thread(target=listen, name="listener", daemon=True)
    listener.start()
    try:
        yield board
    finally:
        done.set()
        listener.join()
        repeat()
