"""Training in workers of Ray Train v2: the only module of training that imports Ray.

In: a config and the resources of a cluster's nodes. Out: the run's finished output. Ray restarts workers that die, up
to `runtime.max_failures`, and they resume from the newest state in the output. Ray's checkpoints are not used, so a run
can be resumed with or without Ray. Ray's reports are not used either: each is a barrier until Ray's controller polls,
every two seconds.
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
from pipeline.training.worker import train_rank

log = logging.getLogger(__name__)

RELAY_S = 0.5
"""Interval at which the driver fetches log lines, seconds."""


def train_on_ray(cfg: TrainConfig, about: Mapping[str, JsonValue], nodes: Sequence[Mapping[str, float]]) -> None:
    """Train on the connected cluster; the driver logs the lines of rank 0.

    Args:
        cfg: settings of the run.
        about: facts for the checkpoint card.
        nodes: resources of each node of the cluster, by Ray's names.

    Raises:
        ConfigError: the workers do not fit into the cluster, or every worker raised a ConfigError or LabelError.
        JobError: workers failed more often than `runtime.max_failures`.
    """
    use_gpu = check_fits(cfg, nodes)
    # Relative paths resolve in the driver's folder on a local cluster.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    with relay_logs() as board, tempfile.TemporaryDirectory(prefix="atrous-ray-") as folder:
        trainer = TorchTrainer(
            train_worker,  # type: ignore[arg-type]  # v2 returns its return value
            train_loop_config={"cfg": cfg.model_dump(mode="json"), "about": dict(about), "board": board},
            scaling_config=scaling_config(cfg, use_gpu=use_gpu),
            # Nothing of value is in this folder: states are in the output.
            run_config=RunConfig(
                storage_path=folder, failure_config=FailureConfig(max_failures=cfg.runtime.max_failures)
            ),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        )
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            hint = "run the same command to resume from the newest state, or raise --runtime.max-failures"
            raise JobError(f"workers failed too often: {error}", hint=hint) from error
    if message := result.return_value:  # type: ignore[attr-defined]  # the stubs are of Train v1
        raise ConfigError(message)


def check_fits(cfg: TrainConfig, nodes: Sequence[Mapping[str, float]]) -> bool:
    """Check that the workers fit into the cluster, where Ray would wait forever; returns True if each gets a GPU.

    Raises:
        ConfigError: the cluster has too few CPUs or GPUs.
    """
    runtime = cfg.runtime
    available = cluster_nodes(nodes, RuntimeConfig(expect_cpus=runtime.expect_cpus, expect_gpus=runtime.expect_gpus))
    use_gpu = runtime.device == "cuda" or (runtime.device == "auto" and any(node.gpus for node in available))
    per_worker = Resources(runtime.cpus_per_worker, float(use_gpu), 0)
    least = runtime.min_workers or runtime.workers
    fit = sum(node.times(per_worker) for node in available)
    if fit < least:
        total = sum(available, start=Resources(0, 0, 0))
        hint = "lower --runtime.workers or --runtime.cpus-per-worker, or, if the cluster scales up, set"
        hint += " --runtime.expect-cpus and --runtime.expect-gpus"
        needs = f"{least} worker(s) of {per_worker.cpus:g} CPU, {per_worker.gpus:g} GPU"
        raise ConfigError(f"the cluster has {total.cpus:g} CPU, {total.gpus:g} GPU, too few for {needs}", hint=hint)
    return use_gpu


def scaling_config(cfg: TrainConfig, *, use_gpu: bool) -> ScalingConfig:
    """Number of workers and the resources of each."""
    most, least = cfg.runtime.workers, cfg.runtime.min_workers
    return ScalingConfig(
        num_workers=most if least is None else (least, most),  # type: ignore[arg-type]  # v2 is elastic
        use_gpu=use_gpu,
        resources_per_worker={"CPU": cfg.runtime.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
    )


def train_worker(job: dict[str, Any]) -> str:
    """Train in a Ray worker; returns '', or the message of a ConfigError or LabelError: a retry would repeat it."""
    cfg = TrainConfig.model_validate(job["cfg"])
    torch.set_num_threads(max(1, int(cfg.runtime.cpus_per_worker)))
    with ranks.process_group(ray.train.torch.get_device()) as ours:
        if ours.leads:
            logging.getLogger("pipeline").addHandler(_Sender(job["board"]))
            log.info("training in %d worker(s) on %s", ours.size, ours.device.type)
        try:
            train_rank(cfg, ours, about=job["about"])
        except (ConfigError, LabelError) as error:
            return str(error)
    return ""


# ---------------------------------------------------------------- log lines, from rank 0 to the driver


class _Board:
    """Actor that holds the log lines of rank 0 until the driver fetches them."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def put(self, level: int, message: str) -> None:
        self.lines.append((level, message))

    def take(self) -> list[tuple[int, str]]:
        lines, self.lines = self.lines, []
        return lines


class _Sender(logging.Handler):
    """Log handler that sends every record to the board."""

    def __init__(self, board: Any) -> None:
        super().__init__(logging.INFO)
        self.board = board

    def emit(self, record: logging.LogRecord) -> None:
        self.board.put.remote(record.levelno, record.getMessage())


@contextmanager
def relay_logs() -> Generator[Any]:
    """Yield a board whose lines this process logs, every `RELAY_S` within the context and once at its end."""
    # On another node the actor would die with that node, and an elastic run that survives would log nothing.
    on_this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(_Board)
    board = actor.options(scheduling_strategy=on_this_node).remote()
    done = threading.Event()

    def repeat() -> None:
        for level, message in ray.get(board.take.remote()):
            log.log(level, "%s", message)

    def listen() -> None:
        while not done.wait(RELAY_S):
            repeat()

    listener = threading.Thread(target=listen, name="listener", daemon=True)
    listener.start()
    try:
        yield board
    finally:
        done.set()
        listener.join()
        repeat()
