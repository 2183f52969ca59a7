"""Training loop: a plain function that runs in one process, under torchrun, or in the workers of Ray Train.

In: a config, labelled examples, and this rank's place in its group. Out: states in `checkpoints/`, and the best weights
with their card in the output itself. All randomness is derived from the seed, the step and the rank, so a run that is
killed at any step and resumed from its newest state ends with the same weights as an undisturbed run.
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.models import checkpoint
from pipeline.models.card import Card
from pipeline.models.checkpoint import Checkpoint
from pipeline.process_memory import peak_bytes
from pipeline.score.coverage import mean_over
from pipeline.score.metrics import Scores
from pipeline.training import losses, schedule, start, state
from pipeline.training.config import TrainConfig
from pipeline.training.examples import Batch, batches
from pipeline.training.learner import Learner, build_phase_network, derive_seed, make_learner, take_step
from pipeline.training.progress import TrainingProgress
from pipeline.training.ranks import Group
from pipeline.training.run import TrainingRun
from pipeline.training.state import Point, RunState
from pipeline.training.validate import Validation, validate

log = logging.getLogger(__name__)

# ---------------------------------------------------------------- the run


def train_phases(run: TrainingRun) -> RunState:
    """Train through every phase, from the newest state if there is one, and save the best weights.

    Raises:
        ConfigError: the output has a state of other settings, data or weights, the config does not fit the group, or
            the loss is not finite.
        JobError: a state is damaged, or an image cannot be validated.
    """
    check_phases(run)
    run_state, tensors = newest_state(run)
    with state.BackgroundWriter() as writer:
        for number, cfg in enumerate(run.cfg.phases()):
            if number >= run_state.phase:
                learner = begin_phase(run, cfg, number, run_state, tensors)
                train_phase(run, learner, run_state, writer, last=run.ends[number])
                tensors = state.add_prefix("network", learner.network.state_dict())
    return run_state


def check_phases(run: TrainingRun) -> None:
    """Build the network of every phase without weights, so that an error in a later phase shows now, not after days.

    Raises:
        ConfigError: a batch, network or loss setting of a phase is wrong.
    """
    for cfg in run.cfg.phases():
        check_batch_split(cfg, run.group)
        with torch.device("meta"):
            network = build_phase_network(cfg, run.classes)
        losses.branch_weights(cfg.loss, network)


def newest_state(run: TrainingRun) -> tuple[RunState, dict[str, Tensor]]:
    """Load the newest state, the same on every rank; a new `RunState` and no tensors if there is none."""
    steps = state.saved_steps(run.cfg.output_url)
    step = run.group.broadcast(steps[-1] if steps else -1)
    if step < 0:
        return RunState(phase=-1, began=run.began), {}
    run_state, tensors = state.load_state(run.cfg.output_url, step)
    if differs := [name for name in run.began if run_state.began.get(name) != run.began[name]]:
        hint = "set another --output, or restore what the run began with"
        raise ConfigError(f"{run.cfg.output_url} holds a run with other {', '.join(differs)}", hint=hint)
    log.info("resuming after step %d of %d", step, run.ends[-1])
    return run_state, tensors


def begin_phase(
    run: TrainingRun, cfg: TrainConfig, number: int, run_state: RunState, tensors: dict[str, Tensor]
) -> Learner:
    """Make the learner of phase `number`: restored within a phase, else with the weights of the phase before it."""
    torch.manual_seed(derive_seed(cfg.seed, number))  # seeds the initial values of layers
    network = build_phase_network(cfg, run.classes)
    if number == 0 and run_state.phase < 0:
        start.load_initial_weights(network, cfg.network, run.classes)
    elif number > run_state.phase:
        new = state.copy_fitting(network, state.take_prefix("network", tensors))
        log.info("phase %d begins; tensors with new initial values: %s", number, ", ".join(new) or "none")
    counts_nk = run.training[cfg.sets.train].counts_nk
    learner = make_learner(network, cfg, run.classes, counts_nk, run.group, teacher=run.teacher)
    if number == run_state.phase:
        learner.restore(tensors)
    else:
        run_state.phase, run_state.best_miou, run_state.best_step = number, -1.0, -1
    return learner


# ---------------------------------------------------------------- a phase


def train_phase(
    run: TrainingRun, learner: Learner, run_state: RunState, writer: state.BackgroundWriter, *, last: int
) -> None:
    """Take the remaining steps of a phase, up to step `last` of the run; validate, save and log on the way."""
    cfg, group = learner.cfg, run.group
    before = last - cfg.schedule.steps
    progress = ProgressLog(run, learner)
    log_steps = cfg.runtime.log_every, cfg.runtime.checkpoint_every
    examples = rank_batches(run, cfg, first=run_state.step, last=last)
    for batch, wait_s in timed_batches(examples):
        rate = schedule.lr_factor(run_state.step - before, cfg.schedule)
        loss = take_step(learner, batch, group, step=run_state.step, rate=rate)
        run_state.step += 1
        progress.count(loss, wait_s)
        # Before a state is written: it would keep weights that are not finite for good.
        if run_state.step == last or 0 in (run_state.step % every for every in log_steps):
            progress.write(run_state)
        with progress.paused():
            writer.put(*pending_writes(run, learner, run_state, ends=run_state.step == last))


def rank_batches(run: TrainingRun, cfg: TrainConfig, *, first: int, last: int) -> Iterator[Batch]:
    """This rank's batches of the steps from `first` up to `last`, exclusive."""
    collection, group = run.training[cfg.sets.train], run.group
    return batches(
        collection, cfg, run.classes, first_step=first, last_step=last, rank=group.rank, world_size=group.size
    )


def timed_batches(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Yield every batch and the seconds of waiting for it."""
    while True:
        start_s = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - start_s


def check_batch_split(cfg: TrainConfig, group: Group) -> None:
    """Check that every pass of every worker has an image.

    Raises:
        ConfigError: the batch is smaller than workers times passes.
    """
    passes = group.size * cfg.optimise.accumulate
    if cfg.optimise.batch < passes:
        need = f"{group.size} worker(s) with {cfg.optimise.accumulate} pass(es) each need at least {passes}"
        raise ConfigError(f"--optimise.batch {cfg.optimise.batch} is too small: {need}")


class ProgressLog:
    """Progress of a run, written to the log and the tracker at intervals."""

    def __init__(self, run: TrainingRun, learner: Learner) -> None:
        self.run, self.learner = run, learner
        self.progress = TrainingProgress(time.monotonic())
        self.loss = torch.zeros((), device=run.group.device)
        self.steps = 0

    def count(self, loss: Tensor, wait_s: float) -> None:
        """Count a step: this rank's share of its loss, on the device, and the seconds of waiting for its data."""
        self.loss += loss
        self.steps += 1
        self.progress.step(images=self.learner.cfg.optimise.batch, wait_s=wait_s)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Exclude the time within this context from the speed."""
        start_s = time.monotonic()
        yield
        self.progress.pause(time.monotonic() - start_s)

    def write(self, run_state: RunState) -> None:
        """Write loss, rates and memory since the last call.

        Raises:
            ConfigError: the loss is not finite.
        """
        run, cfg = self.run, self.learner.cfg
        loss = float(run.group.sum(self.loss)) / self.steps
        if not math.isfinite(loss):
            hint = "lower --optimise.lr, set --optimise.clip-norm, or set --runtime.precision fp32"
            raise ConfigError(f"the loss is {loss} before step {run_state.step}", hint=hint)
        line = self.progress.line(
            time.monotonic(),
            epoch=run_state.step * cfg.optimise.batch / len(run.training[cfg.sets.train]),
            step=run_state.step,
            steps=run.ends[-1],
            loss=loss,
            lr=self.learner.optimiser.param_groups[0]["lr"],
        )
        self.loss.zero_()
        self.steps = 0
        values = line.scalars() | {"memory/peak_gib": peak_gib(run.group.device)}
        run_state.history.append(Point(run_state.step, values))
        if run.group.leads:
            run.tracker.scalars(run_state.step, values)
            log.info("%s", line.human() if run.cfg.runtime.log_format == "human" else line.json())


def peak_gib(device: torch.device) -> float:
    """Peak memory of this process, GiB: of its GPU where it has one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_bytes() / 2**30


# ---------------------------------------------------------------- validation and saving


def pending_writes(
    run: TrainingRun, learner: Learner, run_state: RunState, *, ends: bool
) -> list[Callable[[], object]]:
    """Writes due after a step: the best weights, the state of the run, both or none.

    The weights come first: a run that is killed between the two validates and writes them again.
    """
    writes: list[Callable[[TrainingRun, Learner, RunState], Callable[[], object]]] = []
    if (ends or run_state.step % run.cfg.validation.every == 0) and (best := validate_learner(run, learner, run_state)):
        writes.append(partial(weights_write, reference=best.reference))
    if ends or run_state.step % run.cfg.runtime.checkpoint_every == 0:
        writes.append(state_write)
    return [write(run, learner, run_state) for write in writes] if run.group.leads else []


def validate_learner(run: TrainingRun, learner: Learner, run_state: RunState) -> Validation | None:
    """Validate the weights; returns the result if they are the best of this phase, else None."""
    if learner.cfg.batch_norm == "train":
        run.group.broadcast_tensors(list(learner.network.buffers()))
    model = Checkpoint(trained_card(run, learner, run_state), state.snapshot(learner.weights()), sha256="")
    start_s = time.monotonic()
    result = validate(model, run.validation, run.cfg, run.group)
    miou = float(result.scores.mean_iou)
    seconds = time.monotonic() - start_s
    point = Point(run_state.step, score_curves(result.scores, run.classes) | {"validation/seconds": seconds})
    run_state.history.append(point)
    if run.group.leads:
        over = mean_over(result.scores, run.classes.names)
        log.info("step %d: validation mIoU %.4f%s, in %.1f s", run_state.step, miou, over, seconds)
        run.tracker.scalars(run_state.step, point.values)
        run.tracker.images(run_state.step, result.samples)
    if miou <= run_state.best_miou:
        return None
    run_state.best_miou, run_state.best_step = miou, run_state.step
    return result


def score_curves(scores: Scores, classes: ClassMap) -> dict[str, float]:
    """Scores of a validation by curve name; a class that does not occur has no curve."""
    curves = {"validation/miou": scores.mean_iou, "validation/pixel_accuracy": scores.pixel_accuracy}
    curves |= {f"validation/iou/{name}": value for name, value in zip(classes.names, scores.iou, strict=True)}
    return {name: float(value) for name, value in curves.items() if not np.isnan(value)}


def weights_write(
    run: TrainingRun, learner: Learner, run_state: RunState, *, reference: dict[str, JsonValue]
) -> Callable[[], object]:
    """Return a function that writes a snapshot of the validated weights as the checkpoint of the run."""
    card = trained_card(run, learner, run_state, reference=reference)
    weights = state.snapshot(learner.weights())
    return partial(checkpoint.save_checkpoint, run.cfg.output_url, weights, card)


def state_write(run: TrainingRun, learner: Learner, run_state: RunState) -> Callable[[], object]:
    """Return a function that writes a snapshot of the state of the run."""
    tensors, json, step = state.snapshot(learner.tensors()), run_state.to_json(), run_state.step

    def write() -> None:
        state.save_state(run.cfg.output_url, json, tensors, step=step)
        state.delete_old_states(run.cfg.output_url)

    return write


def validation_scores(run_state: RunState) -> dict[str, JsonValue]:
    """Scores of the validation after this step, by name; empty if there was none."""
    values = run_state.history[-1].values if run_state.history else {}
    return {
        name.removeprefix("validation/"): round(value, 6)
        for name, value in values.items()
        if name.startswith("validation/") and name != "validation/seconds"
    }


def trained_card(run: TrainingRun, learner: Learner, run_state: RunState, **facts: JsonValue) -> Card:
    """Checkpoint card of the weights; `facts` are added to its training record."""
    network = learner.cfg.network
    return Card(
        architecture=network.name,
        options=network.options,
        in_channels=len(network.channels),
        output_stride=network.output_stride or learner.network.output_strides[0],
        classes=run.classes,
        mean=network.mean,
        std=network.std,
        channels=network.channels,
        scale=network.scale,
        training={**run.about, "step": run_state.step, **validation_scores(run_state), **facts},
        source=f"trained by atrous on {PurePosixPath(run.cfg.data).name}",
        license=run.cfg.license,
    )
