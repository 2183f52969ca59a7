"""The training loop: a plain function that runs alone, under torchrun, or in the workers of Ray Train.

In: a config, labelled examples, and this process's place in its group. Out: states in `checkpoints/`, and the best
weights with their card in the output itself. Everything random is derived from the seed, the step and the rank, so a
run that is killed at any step and started again ends as the undisturbed one: the newest state is all it needs.
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from pipeline import checkpoint
from pipeline.checkpoint import Card, Checkpoint
from pipeline.classes import ClassMap
from pipeline.errors import ConfigError, JobError
from pipeline.metrics import Scores
from pipeline.models import zoo
from pipeline.models.network import Network
from pipeline.training import batch_norm, ema, initial, losses, optimiser, schedule, state, weak
from pipeline.training.config import TrainConfig
from pipeline.training.examples import Batch, batches
from pipeline.training.group import Group
from pipeline.training.losses import Loss
from pipeline.training.progress import Progress
from pipeline.training.run import Run
from pipeline.training.state import Point, Story
from pipeline.training.validate import validate

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
THREADS = 4
"""For decoding and masks of a validation, on each process."""
PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}


class Supervised(nn.Module):
    """Pixels in, every score with a loss on it out: `Network.supervised` as a `forward`, which DDP and compile want."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) float -> scores by the names of the network's `loss_weights`."""
        return self.network.supervised(pixels)


@dataclass(frozen=True, slots=True)
class Learner:
    """What learns in one phase."""

    cfg: TrainConfig
    network: Network
    supervised: nn.Module
    """The network behind `Supervised`, compiled and distributed as asked."""
    optimiser: torch.optim.Optimizer
    average: AveragedModel | None
    loss: Loss
    branches: dict[str, float]
    """Weight of the loss on each of the network's scores."""
    dtype: torch.dtype
    """Of convolutions."""
    background: int
    """Class that every image has."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a later process needs to go on; the tensors themselves, not copies."""
        found = state.prefixed("network", self.network.state_dict())
        found |= state.prefixed("optimiser", state.of_optimiser(self.optimiser))
        return found | (state.prefixed("average", self.average.state_dict()) if self.average else {})

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        self.network.load_state_dict(state.part("network", tensors))
        state.into_optimiser(self.optimiser, state.part("optimiser", tensors))
        if self.average:
            self.average.load_state_dict(state.part("average", tensors))

    def weights(self) -> dict[str, Tensor]:
        """What is judged and kept: the moving average where there is one."""
        judged = self.average.module if self.average else self.network
        return judged.state_dict()


# ---------------------------------------------------------------- the run


def train(run: Run) -> Story:
    """Train from the newest state, or from the beginning, through every phase, and leave the best weights.

    Raises:
        ConfigError: the output holds a state of another beginning, or the config does not fit the group.
        JobError: the loss is not finite; a state is damaged.
    """
    story, tensors = newest(run)
    with state.Writer() as writer:
        for number, cfg in enumerate(run.cfg.phases()):
            if number >= story.phase:
                learner = begin(run, cfg, number, story, tensors)
                learn(run, learner, story, writer, last=run.ends[number])
                tensors = state.prefixed("network", learner.network.state_dict())
    return story


def newest(run: Run) -> tuple[Story, dict[str, Tensor]]:
    """The newest state, the same on every process; before there is one, the weights to start from."""
    steps = state.steps(run.cfg.output)
    step = run.group.agreed(steps[-1] if steps else -1)
    if step < 0:
        return Story(phase=-1, began=run.began), {}
    story, tensors = state.load(run.cfg.output, step)
    if differs := [name for name in run.began if story.began.get(name) != run.began[name]]:
        hint = "take another --output, or give back what the run began with"
        raise ConfigError(f"{run.cfg.output} holds a run with other {', '.join(differs)}", hint=hint)
    log.info("going on after step %d of %d", step, run.ends[-1])
    return story, tensors


def begin(run: Run, cfg: TrainConfig, number: int, story: Story, tensors: dict[str, Tensor]) -> Learner:
    """What learns in phase `number`: restored in the middle of one, or with the weights of the phase before it."""
    torch.manual_seed(_seed(cfg.seed, number))  # of the first values of layers
    network = build(cfg, run.classes)
    if number == 0 and story.phase < 0:
        initial.load(network, cfg.network, run.classes)
    elif number > story.phase:
        new = state.carry(network, state.part("network", tensors))
        log.info("phase %d begins; layers with first values of their own: %s", number, ", ".join(new) or "none")
    learner = make(run, cfg, network)
    if number == story.phase:
        learner.restore(tensors)
    else:
        story.phase, story.best_miou = number, -1.0
    return learner


def build(cfg: TrainConfig, classes: ClassMap) -> Network:
    """The network of a phase with first weights from torch's generator."""
    said = cfg.network
    return zoo.build(
        said.name, len(classes), in_channels=len(said.channels), output_stride=said.output_stride, **said.options
    )


def make(run: Run, cfg: TrainConfig, network: Network) -> Learner:
    """Everything around a network of which its training in a phase is made."""
    group = run.group
    network.to(group.device, memory_format=layout_of(cfg)).train()  # type: ignore[call-overload]
    if cfg.batch_norm == "sync" and group.size > 1:
        batch_norm.sync(network)
    if cfg.batch_norm == "frozen":
        batch_norm.freeze(network)
    counts = run.training[cfg.sets.train].counts_nk
    weights = losses.class_weights(cfg.loss.class_weights, counts, beta=cfg.loss.effective_beta)
    loss = losses.make(
        cfg.loss,
        class_weights=weights,
        ignore_id=run.classes.ignore_id,
        stride=network.stride,
        align_corners=network.align_corners,
    )
    return Learner(
        cfg=cfg,
        network=network,
        supervised=distributed(network, cfg, group),
        optimiser=optimiser.make(network, cfg.optimise),
        average=ema.make(network, cfg.ema) if cfg.ema else None,
        loss=loss.to(group.device),
        branches=losses.branch_weights(cfg.loss, network),
        dtype=precision_of(cfg, group.device),
        background=background_of(cfg, run.classes),
    )


def distributed(network: Network, cfg: TrainConfig, group: Group) -> nn.Module:
    """The network as it is called in a step."""
    supervised: nn.Module = Supervised(network)
    if cfg.runtime.compile:
        supervised = cast(nn.Module, torch.compile(supervised))
    if group.size == 1:
        return supervised
    # Statistics per worker drift apart; those of process 0 are the run's.
    return DistributedDataParallel(
        supervised,
        device_ids=[group.device.index] if group.device.type == "cuda" else None,
        broadcast_buffers=cfg.batch_norm == "train",
        gradient_as_bucket_view=True,
    )


def layout_of(cfg: TrainConfig) -> torch.memory_format:
    """How images and weights lie in memory."""
    return torch.channels_last if cfg.runtime.channels_last else torch.contiguous_format


def precision_of(cfg: TrainConfig, device: torch.device) -> torch.dtype:
    """The dtype of convolutions: as asked, or bf16 on GPUs and float32 on CPUs."""
    said = cfg.runtime.precision
    return DTYPES["bf16" if device.type == "cuda" else "fp32"] if said == "auto" else DTYPES[said]


def background_of(cfg: TrainConfig, classes: ClassMap) -> int:
    """The class that every weakly labelled image has.

    Raises:
        ConfigError: there is none of its name.
    """
    name = cfg.weak.background or classes.names[0]
    if name not in classes.names:
        raise ConfigError(f"--weak.background: {classes.name} has no class {name!r}", hint=", ".join(classes.names))
    return classes.names.index(name)


# ---------------------------------------------------------------- a phase


def learn(run: Run, learner: Learner, story: Story, writer: state.Writer, *, last: int) -> None:
    """Take the steps of a phase that are left, up to step `last` of the run; judge, keep and say how it goes."""
    cfg, group = learner.cfg, run.group
    check_split(cfg, group)
    before = last - cfg.schedule.steps
    teller = Teller(run, learner)
    examples = batches(
        run.training[cfg.sets.train],
        cfg,
        run.classes,
        first_step=story.step,
        last_step=last,
        rank=group.rank,
        world_size=group.size,
    )
    for batch, wait_s in timed(examples):
        rate = schedule.factor(story.step - before, cfg.schedule)
        loss = take_step(learner, batch, group, step=story.step, rate=rate)
        story.step += 1
        teller.count(loss, wait_s)
        if story.step % cfg.runtime.log_every == 0 or story.step == last:
            teller.tell(story)
        with teller.paused():
            writer.put(*kept(run, learner, story, ends=story.step == last))


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
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
    """Says every so often how far a run is: to the log, the tracker and Ray."""

    def __init__(self, run: Run, learner: Learner) -> None:
        self.run, self.learner = run, learner
        self.progress = Progress(time.monotonic())
        self.loss = torch.zeros((), device=run.group.device)
        self.steps = 0

    def count(self, loss: Tensor, wait_s: float) -> None:
        """Count a step: this process's share of its loss, still on the device, and the wait for its data."""
        self.loss += loss
        self.steps += 1
        self.progress.step(images=self.learner.cfg.optimise.batch, wait_s=wait_s)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Leave out the time of what is no step."""
        began = time.monotonic()
        yield
        self.progress.pause(time.monotonic() - began)

    def tell(self, story: Story) -> None:
        """Say what happened since the last time.

        Raises:
            JobError: the loss is not finite.
        """
        run, cfg = self.run, self.learner.cfg
        loss = float(run.group.sum(self.loss)) / self.steps
        if not math.isfinite(loss):
            hint = "lower --optimise.lr, set --optimise.clip-norm, or take --runtime.precision fp32"
            raise JobError(f"the loss is {loss} before step {story.step}", hint=hint)
        line = self.progress.line(
            time.monotonic(),
            epoch=story.step * cfg.optimise.batch / len(run.training[cfg.sets.train]),
            step=story.step,
            steps=run.ends[-1],
            loss=loss,
            lr=self.learner.optimiser.param_groups[0]["lr"],
        )
        self.loss.zero_()
        self.steps = 0
        story.history.append(Point(story.step, line.scalars()))
        if run.group.leads:
            run.tracker.scalars(story.step, line.scalars())
            log.info("%s", line.human() if run.cfg.runtime.log_format == "human" else line.json())
        run.report(line)


# ---------------------------------------------------------------- a step


def take_step(learner: Learner, batch: Batch, group: Group, *, step: int, rate: float) -> Tensor:
    """One update of the weights.

    Args:
        learner: is changed.
        batch: this process's images of the step.
        group: who shares the step.
        step: steps done before it; seeds dropout.
        rate: factor on all learning rates.

    Returns:
        This process's share of the loss, on its device; the shares of all processes add up to it.
    """
    cfg = learner.cfg
    torch.manual_seed(_seed(cfg.seed, step, group.rank))
    optimiser.set_lr(learner.optimiser, cfg.optimise.lr * rate)
    passes = [on(group.device, one) for one in split(batch, cfg.optimise.accumulate)]
    units = group.sum(torch.stack([learner.loss.units(one.labels_nhw) for one in passes]).sum(0))
    learner.optimiser.zero_grad(set_to_none=True)
    total = torch.zeros((), device=group.device)
    for number, one in enumerate(passes, 1):
        with nullcontext() if number == len(passes) else unsynchronised(learner.supervised):
            loss = loss_of(learner, one, units)
            # DDP takes the mean over processes, where shares are to be added up.
            (loss * group.size).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    if cfg.optimise.clip_norm is not None:
        nn.utils.clip_grad_norm_(learner.network.parameters(), cfg.optimise.clip_norm)
    learner.optimiser.step()
    if learner.average:
        learner.average.update_parameters(learner.network)
    return total


def split(batch: Batch, passes: int) -> list[Batch]:
    """The images of a batch in that many parts, whose sizes differ by one at most."""
    parts = zip(
        *(
            torch.tensor_split(field, passes)
            for field in (batch.images_nchw, batch.labels_nhw, batch.present_nk, batch.supervision_n)
        ),
        strict=True,
    )
    return [Batch(*fields) for fields in parts]


def on(device: torch.device, batch: Batch) -> Batch:
    """The batch on a device; what kind of labels an image has stays here, where it is looked at."""
    images, labels, present = (
        field.to(device, non_blocking=True) for field in (batch.images_nchw, batch.labels_nhw, batch.present_nk)
    )
    return Batch(images, labels, present, batch.supervision_n)


def loss_of(learner: Learner, batch: Batch, units: Tensor) -> Tensor:
    """This pass's share of the loss of a step, over all branches."""
    pixels = normalised(batch.images_nchw, learner.cfg)
    with torch.autocast(pixels.device.type, learner.dtype, enabled=learner.dtype is not torch.float32):
        scores = learner.supervised(pixels)
    labels = batch.labels_nhw
    if bool((batch.supervision_n > 0).any()):
        labels = completed(learner, scores["logits"].detach(), batch)
    shares = [weight * learner.loss(scores[name], labels, units) for name, weight in learner.branches.items()]
    return torch.stack(shares).sum()


def unsynchronised(supervised: nn.Module) -> Any:
    """Within it gradients stay on their worker: for all passes of a step but the last."""
    return supervised.no_sync() if isinstance(supervised, DistributedDataParallel) else nullcontext()


def normalised(images_nchw: Tensor, cfg: TrainConfig) -> Tensor:
    """(N, C, H, W) uint8 to float32 as the network takes it."""
    mean, std = (
        torch.tensor(band, device=images_nchw.device).view(1, -1, 1, 1) * 255
        for band in (cfg.network.mean, cfg.network.std)
    )
    return ((images_nchw.float() - mean) / std).contiguous(memory_format=layout_of(cfg))


def completed(learner: Learner, logits_nkhw: Tensor, batch: Batch) -> Tensor:
    """The labels of a batch, with those that the network itself has to find in weakly labelled images."""
    height, width = batch.labels_nhw.shape[1:]
    network = learner.network
    scores = losses.upsample(
        logits_nkhw.float(), height, width, stride=network.stride, align_corners=network.align_corners
    )
    return weak.e_step(
        scores,
        batch.labels_nhw,
        batch.present_nk,
        batch.supervision_n,
        learner.cfg.weak,
        background=learner.background,
        ignore_id=learner.loss.ignore_id,
    )


def _seed(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


# ---------------------------------------------------------------- judging and keeping


def kept(run: Run, learner: Learner, story: Story, *, ends: bool) -> list[Callable[[], object]]:
    """What is to be written after a step: the best weights, the state of the run, or nothing.

    The weights are written first: a run killed in between judges them once more, and writes them again.
    """
    writes = []
    if (ends or story.step % run.cfg.validation.every == 0) and judge(run, learner, story):
        writes.append(best_weights)
    if ends or story.step % run.cfg.runtime.checkpoint_every == 0:
        writes.append(whole_state)
    return [write(run, learner, story) for write in writes] if run.group.leads else []


def judge(run: Run, learner: Learner, story: Story) -> bool:
    """Validate; True when no earlier weights of this phase were as good."""
    if learner.cfg.batch_norm == "train":
        run.group.share(list(learner.network.buffers()))
    model = Checkpoint(card_of(run, learner, story), state.snapshot(learner.weights()), sha256="")
    started = time.monotonic()
    found = validate(
        model, run.validation, run.cfg.validation, run.group, precision=PRECISIONS[learner.dtype], threads=THREADS
    )
    miou = float(found.scores.mean_iou)
    point = Point(story.step, figures(found.scores, run.classes))
    story.history.append(point)
    if run.group.leads:
        log.info("step %d: validation mIoU %.4f, in %.1f s", story.step, miou, time.monotonic() - started)
        run.tracker.scalars(story.step, point.values)
        run.tracker.images(story.step, found.samples)
    better = miou > story.best_miou
    story.best_miou = max(miou, story.best_miou)
    return better


def figures(scores: Scores, classes: ClassMap) -> dict[str, float]:
    """The scores of a validation, by the names of their curves; a class that does not occur has none."""
    found = {"validation/miou": scores.mean_iou, "validation/pixel_accuracy": scores.pixel_accuracy}
    found |= {f"validation/iou/{name}": value for name, value in zip(classes.names, scores.iou, strict=True)}
    return {name: float(value) for name, value in found.items() if not np.isnan(value)}


def best_weights(run: Run, learner: Learner, story: Story) -> Callable[[], object]:
    """What writes the weights that were just judged, as they are now, as the checkpoint of the run."""
    card = card_of(run, learner, story)
    weights = state.snapshot(learner.weights())
    return partial(checkpoint.save, run.cfg.output, weights, card)


def whole_state(run: Run, learner: Learner, story: Story) -> Callable[[], object]:
    """What writes the state of the run, as it is now."""
    tensors, told, step = state.snapshot(learner.tensors()), story.to_json(), story.step

    def write() -> None:
        state.save(run.cfg.output, told, tensors, step=step)
        state.prune(run.cfg.output)

    return write


def card_of(run: Run, learner: Learner, story: Story) -> Card:
    """What a later job needs to know of the weights, and where they come from."""
    said = learner.cfg.network
    return Card(
        architecture=said.name,
        options=said.options,
        in_channels=len(said.channels),
        output_stride=said.output_stride or learner.network.output_strides[0],
        classes=run.classes,
        mean=said.mean,
        std=said.std,
        channels=said.channels,
        training=run.about | {"step": story.step, **(story.history[-1].values if story.history else {})},
        source=f"trained by atrous on {run.cfg.data}",
        license=run.cfg.license,
    )
