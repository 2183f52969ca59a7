"""The training loop: a plain function that runs alone, under torchrun, or in the workers of Ray Train.

In: a config, labelled examples, and this process's place in its group. Out: states in `checkpoints/`, and the best
weights with their card in the output itself. Everything random is derived from the seed, the step and the rank, so a
run that is killed at any step and started again ends as the undisturbed one: the newest state is all it needs.
"""

import logging
import math
import resource
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
from pipeline.models.checkpoint import Card, Checkpoint
from pipeline.score.metrics import Scores
from pipeline.training import learner, losses, schedule, start, state
from pipeline.training.config import TrainConfig
from pipeline.training.examples import Batch, batches
from pipeline.training.learner import Learner, take_step
from pipeline.training.progress import TrainingProgress
from pipeline.training.ranks import Group
from pipeline.training.run import TrainingRun
from pipeline.training.state import Point, Story
from pipeline.training.validate import Validation, validate

log = logging.getLogger(__name__)

# ---------------------------------------------------------------- the run


def train_phases(run: TrainingRun) -> Story:
    """Train from the newest state, or from the beginning, through every phase, and leave the best weights.

    Raises:
        ConfigError: the output holds a state of another beginning, the config does not fit the group, or the loss is
            no longer finite.
        JobError: a state is damaged, or an image cannot be validated.
    """
    check_phases(run)
    story, tensors = newest(run)
    with state.Writer() as writer:
        for number, cfg in enumerate(run.cfg.phases()):
            if number >= story.phase:
                made = begin(run, cfg, number, story, tensors)
                learn(run, made, story, writer, last=run.ends[number])
                tensors = state.prefixed("network", made.network.state_dict())
    return story


def check_phases(run: TrainingRun) -> None:
    """Build every phase once without weights: what is wrong in a later one must not show after days.

    Raises:
        ConfigError: as `train`.
    """
    for cfg in run.cfg.phases():
        check_split(cfg, run.group)
        with torch.device("meta"):
            network = learner.build_phase_network(cfg, run.classes)
        losses.branch_weights(cfg.loss, network)


def newest(run: TrainingRun) -> tuple[Story, dict[str, Tensor]]:
    """The newest state, the same on every process; before there is one, the weights to start from."""
    steps = state.steps(run.cfg.output)
    step = run.group.agreed(steps[-1] if steps else -1)
    if step < 0:
        return Story(phase=-1, began=run.began), {}
    story, tensors = state.load_state(run.cfg.output, step)
    if differs := [name for name in run.began if story.began.get(name) != run.began[name]]:
        hint = "take another --output, or give back what the run began with"
        raise ConfigError(f"{run.cfg.output} holds a run with other {', '.join(differs)}", hint=hint)
    log.info("going on after step %d of %d", step, run.ends[-1])
    return story, tensors


def begin(run: TrainingRun, cfg: TrainConfig, number: int, story: Story, tensors: dict[str, Tensor]) -> Learner:
    """What learns in phase `number`: restored in the middle of one, or with the weights of the phase before it."""
    torch.manual_seed(learner.seed_of(cfg.seed, number))  # of the first values of layers
    network = learner.build_phase_network(cfg, run.classes)
    if number == 0 and story.phase < 0:
        start.load_initial_weights(network, cfg.network, run.classes)
    elif number > story.phase:
        new = state.carry(network, state.part("network", tensors))
        log.info("phase %d begins; layers with first values of their own: %s", number, ", ".join(new) or "none")
    made = learner.make_learner(network, cfg, run.classes, run.training[cfg.sets.train].counts_nk, run.group)
    if number == story.phase:
        made.restore(tensors)
    else:
        story.phase, story.best_miou, story.best_step = number, -1.0, -1
    return made


# ---------------------------------------------------------------- a phase


def learn(run: TrainingRun, made: Learner, story: Story, writer: state.Writer, *, last: int) -> None:
    """Take the steps of a phase that are left, up to step `last` of the run; judge, keep and say how it goes."""
    cfg, group = made.cfg, run.group
    before = last - cfg.schedule.steps
    teller = Teller(run, made)
    told_every = cfg.runtime.log_every, cfg.runtime.checkpoint_every
    examples = examples_of(run, cfg, first=story.step, last=last)
    for batch, wait_s in timed_batches(examples):
        rate = schedule.factor(story.step - before, cfg.schedule)
        loss = take_step(made, batch, group, step=story.step, rate=rate)
        story.step += 1
        teller.count(loss, wait_s)
        # Always before a state is written, which would keep weights that are not finite for good.
        if story.step == last or 0 in (story.step % every for every in told_every):
            teller.tell(story)
        with teller.paused():
            writer.put(*kept(run, made, story, ends=story.step == last))


def examples_of(run: TrainingRun, cfg: TrainConfig, *, first: int, last: int) -> Iterator[Batch]:
    """This process's batches of the steps from `first` up to, not with, `last`."""
    collection, group = run.training[cfg.sets.train], run.group
    return batches(
        collection, cfg, run.classes, first_step=first, last_step=last, rank=group.rank, world_size=group.size
    )


def timed_batches(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Every batch, and the seconds it was waited for."""
    while True:
        asked = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - asked


def check_split(cfg: TrainConfig, group: Group) -> None:
    """Refuse a batch that leaves a pass of a worker without an image.

    Raises:
        ConfigError: with the numbers.
    """
    passes = group.size * cfg.optimise.accumulate
    if cfg.optimise.batch < passes:
        said = f"{group.size} worker(s) with {cfg.optimise.accumulate} pass(es) each"
        raise ConfigError(f"--optimise.batch {cfg.optimise.batch} is too small for {said}")


class Teller:
    """Says every so often how far a run is: to the log and the tracker."""

    def __init__(self, run: TrainingRun, made: Learner) -> None:
        self.run, self.made = run, made
        self.progress = TrainingProgress(time.monotonic())
        self.loss = torch.zeros((), device=run.group.device)
        self.steps = 0

    def count(self, loss: Tensor, wait_s: float) -> None:
        """Count a step: this process's share of its loss, still on the device, and the wait for its data."""
        self.loss += loss
        self.steps += 1
        self.progress.step(images=self.made.cfg.optimise.batch, wait_s=wait_s)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Leave out the time of what is no step."""
        began = time.monotonic()
        yield
        self.progress.pause(time.monotonic() - began)

    def tell(self, story: Story) -> None:
        """Say what happened since the last time.

        Raises:
            ConfigError: the loss is not finite.
        """
        run, cfg = self.run, self.made.cfg
        loss = float(run.group.sum(self.loss)) / self.steps
        if not math.isfinite(loss):
            hint = "lower --optimise.lr, set --optimise.clip-norm, or take --runtime.precision fp32"
            raise ConfigError(f"the loss is {loss} before step {story.step}", hint=hint)
        line = self.progress.line(
            time.monotonic(),
            epoch=story.step * cfg.optimise.batch / len(run.training[cfg.sets.train]),
            step=story.step,
            steps=run.ends[-1],
            loss=loss,
            lr=self.made.optimiser.param_groups[0]["lr"],
        )
        self.loss.zero_()
        self.steps = 0
        values = line.scalars() | {"memory/peak_gib": peak_gib(run.group.device)}
        story.history.append(Point(story.step, values))
        if run.group.leads:
            run.tracker.scalars(story.step, values)
            log.info("%s", line.human() if run.cfg.runtime.log_format == "human" else line.json())


def peak_gib(device: torch.device) -> float:
    """Most memory this process ever had at once: of its GPU, or its own, GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # in KiB: getrusage(2)


# ---------------------------------------------------------------- judging and keeping


def kept(run: TrainingRun, made: Learner, story: Story, *, ends: bool) -> list[Callable[[], object]]:
    """What is to be written after a step: the best weights, the state of the run, or nothing.

    The weights are written first: a run killed in between judges them once more, and writes them again.
    """
    writes: list[Callable[[TrainingRun, Learner, Story], Callable[[], object]]] = []
    if (ends or story.step % run.cfg.validation.every == 0) and (found := validate_learner(run, made, story)):
        writes.append(partial(best_weights, reference=found.reference))
    if ends or story.step % run.cfg.runtime.checkpoint_every == 0:
        writes.append(whole_state)
    return [write(run, made, story) for write in writes] if run.group.leads else []


def validate_learner(run: TrainingRun, made: Learner, story: Story) -> Validation | None:
    """Validate; returns what was found when no earlier weights of this phase were as good."""
    if made.cfg.batch_norm == "train":
        run.group.share(list(made.network.buffers()))
    model = Checkpoint(card_of(run, made, story), state.snapshot(made.weights()), sha256="")
    started = time.monotonic()
    found = validate(model, run.validation, run.cfg, run.group)
    miou = float(found.scores.mean_iou)
    seconds = time.monotonic() - started
    point = Point(story.step, figures(found.scores, run.classes) | {"validation/seconds": seconds})
    story.history.append(point)
    if run.group.leads:
        log.info("step %d: validation mIoU %.4f, in %.1f s", story.step, miou, seconds)
        run.tracker.scalars(story.step, point.values)
        run.tracker.images(story.step, found.samples)
    if miou <= story.best_miou:
        return None
    story.best_miou, story.best_step = miou, story.step
    return found


def figures(scores: Scores, classes: ClassMap) -> dict[str, float]:
    """The scores of a validation, by the names of their curves; a class that does not occur has none."""
    found = {"validation/miou": scores.mean_iou, "validation/pixel_accuracy": scores.pixel_accuracy}
    found |= {f"validation/iou/{name}": value for name, value in zip(classes.names, scores.iou, strict=True)}
    return {name: float(value) for name, value in found.items() if not np.isnan(value)}


def best_weights(
    run: TrainingRun, made: Learner, story: Story, *, reference: dict[str, JsonValue]
) -> Callable[[], object]:
    """What writes the weights that were just judged, as they are now, as the checkpoint of the run."""
    card = card_of(run, made, story, reference=reference)
    weights = state.snapshot(made.weights())
    return partial(checkpoint.save_checkpoint, run.cfg.output, weights, card)


def whole_state(run: TrainingRun, made: Learner, story: Story) -> Callable[[], object]:
    """What writes the state of the run, as it is now."""
    tensors, told, step = state.snapshot(made.tensors()), story.to_json(), story.step

    def write() -> None:
        state.save_state(run.cfg.output, told, tensors, step=step)
        state.prune(run.cfg.output)

    return write


def measured(story: Story) -> dict[str, JsonValue]:
    """The scores of the validation after this step, if there was one."""
    values = story.history[-1].values if story.history else {}
    return {
        name.removeprefix("validation/"): round(value, 6)
        for name, value in values.items()
        if name.startswith("validation/") and name != "validation/seconds"
    }


def card_of(run: TrainingRun, made: Learner, story: Story, **found: JsonValue) -> Card:
    """What a later job needs to know of the weights, and where they come from; `found` is kept beside their figures."""
    said = made.cfg.network
    return Card(
        architecture=said.name,
        options=said.options,
        in_channels=len(said.channels),
        output_stride=said.output_stride or made.network.output_strides[0],
        classes=run.classes,
        mean=said.mean,
        std=said.std,
        channels=said.channels,
        training={**run.about, "step": story.step, **measured(story), **found},
        source=f"trained by atrous on {PurePosixPath(run.cfg.data).name}",
        license=run.cfg.license,
    )
