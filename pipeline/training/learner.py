"""Network, optimiser and loss of one phase, and a training step.

In: the settings of a phase and batches of images and labels. Out: the weights after each step. The losses and gradients
of all ranks add up to those of a single process with the whole batch. Nothing is read or written here.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.infer.segmenter import PRECISIONS
from pipeline.models import zoo
from pipeline.models.card import BUILDERS_OWN
from pipeline.models.network import Network
from pipeline.records import Int64
from pipeline.training import batch_norm, ema, losses, optimiser, state, weak
from pipeline.training.config import TrainConfig
from pipeline.training.distill import Teacher
from pipeline.training.examples import Batch
from pipeline.training.losses import Loss
from pipeline.training.ranks import Group


class Supervised(nn.Module):
    """`Network.supervised` as a `forward`, which DDP and torch.compile need: pixels in, every supervised score out."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) float -> scores by the names of the network's `loss_weights`."""
        return self.network.supervised(pixels)


@dataclass(frozen=True, slots=True)
class Learner:
    """Network, optimiser and loss of one phase."""

    cfg: TrainConfig
    network: Network
    supervised: nn.Module
    """The network wrapped in `Supervised`, and in torch.compile and DDP where the config asks for them."""
    optimiser: torch.optim.Optimizer
    average: AveragedModel | None
    loss: Loss
    branches: dict[str, float]
    """Weight of the loss on each of the network's scores."""
    dtype: torch.dtype
    """Number format of convolutions."""
    background: int
    """Id of the background class, for weak labels."""
    teacher: Teacher | None = None
    """Trained network of the same classes, for distillation; it does not learn, and is not part of the state."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that a resumed run needs: the tensors themselves, not copies."""
        tensors = state.add_prefix("network", self.network.state_dict())
        tensors |= state.add_prefix("optimiser", state.optimiser_buffers(self.optimiser))
        return tensors | (state.add_prefix("average", self.average.state_dict()) if self.average else {})

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Load tensors by the names of `tensors`."""
        self.network.load_state_dict(state.take_prefix("network", tensors))
        state.load_optimiser_buffers(self.optimiser, state.take_prefix("optimiser", tensors))
        if self.average:
            self.average.load_state_dict(state.take_prefix("average", tensors))

    def weights(self) -> dict[str, Tensor]:
        """Weights to validate and save: the moving average where there is one, in float16 with `cfg.half`."""
        network = self.average.module if self.average else self.network
        weights: dict[str, Tensor] = network.state_dict()
        return {name: half_precision(tensor) for name, tensor in weights.items()} if self.cfg.half else weights


def half_precision(tensor: Tensor) -> Tensor:
    """Convert floating-point tensors to float16, unless a value is beyond its range, as a variance may be."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if bool(half.isfinite().all()) else tensor


# ---------------------------------------------------------------- construction


def build_phase_network(cfg: TrainConfig, classes: ClassMap) -> Network:
    """Build the network of a phase with initial weights from torch's generator.

    Raises:
        ConfigError: the network does not support an option or the output stride.
    """
    settings = cfg.network
    if reserved := BUILDERS_OWN & settings.options.keys():
        names = ", ".join(sorted(reserved))
        raise ConfigError(f"--network.options must not contain {names}: other settings determine it")
    return zoo.build_network(
        settings.name,
        len(classes),
        in_channels=len(settings.channels),
        output_stride=settings.output_stride,
        **settings.options,
    )


def make_learner(
    network: Network,
    cfg: TrainConfig,
    classes: ClassMap,
    counts_nk: Int64,
    group: Group,
    *,
    teacher: Teacher | None = None,
) -> Learner:
    """Make optimiser, loss and wrappers for a network in one phase.

    Args:
        network: with its initial weights; moved to the device and changed in place.
        cfg: settings of the phase.
        classes: class map of the labels.
        counts_nk: (N, K) labelled pixels of each class in each image, for class weights.
        group: ranks that train together.
        teacher: from `distill.load_teacher`.

    Raises:
        ConfigError: settings do not fit the network, the classes or the data.
    """
    network.to(group.device, memory_format=memory_format(cfg)).train()  # type: ignore[call-overload]
    if cfg.batch_norm == "sync" and group.size > 1:
        batch_norm.sync(network)
    if cfg.batch_norm == "frozen":
        batch_norm.freeze(network)
    weights = losses.class_weights(
        cfg.loss.class_weights, counts_nk, beta=cfg.loss.effective_beta, offset=cfg.loss.log_offset
    )
    loss = losses.make_loss(
        cfg.loss,
        class_weights=weights,
        ignore_id=classes.ignore_id,
        stride=network.stride,
        align_corners=network.align_corners,
    )
    return Learner(
        cfg=cfg,
        network=network,
        supervised=wrap_network(network, cfg, group),
        optimiser=optimiser.make_optimiser(network, cfg.optimise),
        average=ema.make_average(network, cfg.ema) if cfg.ema else None,
        loss=loss.to(group.device),
        branches=losses.branch_weights(cfg.loss, network),
        dtype=convolution_dtype(cfg, group.device),
        background=weak.background_id(cfg.weak, classes),
        teacher=teacher,
    )


def wrap_network(network: Network, cfg: TrainConfig, group: Group) -> nn.Module:
    """Wrap a network for a step: `Supervised`, then torch.compile and DDP where needed."""
    supervised: nn.Module = Supervised(network)
    if cfg.runtime.compile:
        supervised = cast(nn.Module, torch.compile(supervised))
    if group.size == 1:
        return supervised
    # A branch without a loss leaves layers without gradients, which DDP must search for.
    all_used = losses.branch_weights(cfg.loss, network).keys() == network.loss_weights.keys()
    return DistributedDataParallel(
        supervised,
        device_ids=[group.device.index] if group.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=not all_used,
    )


def memory_format(cfg: TrainConfig) -> torch.memory_format:
    """Memory format of images and weights."""
    return torch.channels_last if cfg.runtime.channels_last else torch.contiguous_format


def convolution_dtype(cfg: TrainConfig, device: torch.device) -> torch.dtype:
    """Number format of convolutions: `runtime.precision`, where auto is bf16 on GPUs and float32 on CPUs."""
    precision = cfg.runtime.precision
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return PRECISIONS[precision]


# ---------------------------------------------------------------- a step


def take_step(learner: Learner, batch: Batch, group: Group, *, step: int, rate: float) -> Tensor:
    """Update the weights once.

    Args:
        learner: changed in place.
        batch: this rank's images of the step.
        group: ranks that share the step.
        step: number of steps before this one; seeds dropout.
        rate: factor on all learning rates.

    Returns:
        This rank's share of the loss, a scalar on its device; the shares of all ranks add up to the loss.
    """
    cfg = learner.cfg
    torch.manual_seed(derive_seed(cfg.seed, step, group.rank))
    optimiser.set_lr(learner.optimiser, cfg.optimise.lr * rate)
    passes = [to_device(group.device, part) for part in split_batch(batch, cfg.optimise.accumulate)]
    units = group.sum(torch.stack([pass_units(learner, part) for part in passes]).sum(0))
    learner.optimiser.zero_grad()
    total = torch.zeros((), device=group.device)
    for number, part in enumerate(passes, 1):
        with nullcontext() if number == len(passes) else without_sync(learner.supervised):
            loss = pass_loss(learner, part, units)
            # DDP takes the mean over ranks; shares need the sum.
            (loss * group.size).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    if cfg.optimise.clip_norm is not None:
        nn.utils.clip_grad_norm_(learner.network.parameters(), cfg.optimise.clip_norm)
    learner.optimiser.step()
    if learner.average:
        learner.average.update_parameters(learner.network)
    return total


def split_batch(batch: Batch, passes: int) -> list[Batch]:
    """Split a batch into `passes` parts whose sizes differ by at most one."""
    parts = zip(
        *(
            torch.tensor_split(field, passes)
            for field in (batch.images_nchw, batch.labels_nhw, batch.present_nk, batch.supervision_n)
        ),
        strict=True,
    )
    return [Batch(*fields) for fields in parts]


def to_device(device: torch.device, batch: Batch) -> Batch:
    """Copy a batch to a device; `supervision_n` stays on the CPU, where it is read."""
    images, labels, present = (
        field.to(device, non_blocking=True) for field in (batch.images_nchw, batch.labels_nhw, batch.present_nk)
    )
    return Batch(images, labels, present, batch.supervision_n)


def pass_units(learner: Learner, batch: Batch) -> Tensor:
    """Divisors of the loss that this pass counts: those of the terms, and last that of distillation."""
    return torch.cat([learner.loss.units(batch.labels_nhw), learner.loss.valid_pixels(batch.labels_nhw)])


def pass_loss(learner: Learner, batch: Batch, units: Tensor) -> Tensor:
    """This pass's share of the loss of a step, summed over all branches, and with a teacher that of distillation."""
    pixels = normalise(batch.images_nchw, learner.cfg)
    with torch.autocast(pixels.device.type, learner.dtype, enabled=learner.dtype is not torch.float32):
        scores = learner.supervised(pixels)
    labels = batch.labels_nhw
    if bool((batch.supervision_n > 0).any()):
        labels = complete_labels(learner, scores["logits"].detach(), batch)
    shares = [weight * learner.loss(scores[name], labels, units[:-1]) for name, weight in learner.branches.items()]
    if learner.teacher:
        shares.append(distillation_loss(learner, learner.teacher, scores["logits"], batch, units[-1:]))
    return torch.stack(shares).sum()


def distillation_loss(learner: Learner, teacher: Teacher, logits_nkhw: Tensor, batch: Batch, pixels: Tensor) -> Tensor:
    """This pass's share of the distillation loss, weighted. The teacher scores the same augmented images."""
    cfg = learner.cfg.distill
    scores = teacher.scores(batch.images_nchw, learner.dtype)
    divergence = learner.loss.divergence(logits_nkhw, scores, batch.labels_nhw, pixels, temperature=cfg.temperature)
    return cfg.weight * divergence


def without_sync(supervised: nn.Module) -> Any:
    """Keep gradients on their rank within this context: for all passes of a step except the last."""
    return supervised.no_sync() if isinstance(supervised, DistributedDataParallel) else nullcontext()


def normalise(images_nchw: Tensor, cfg: TrainConfig) -> Tensor:
    """Normalise (N, C, H, W) uint8 to the network's float32 input."""
    mean, std = (
        torch.tensor(band, device=images_nchw.device).view(1, -1, 1, 1) * 255
        for band in (cfg.network.mean, cfg.network.std)
    )
    return ((images_nchw.float() - mean) / std).contiguous(memory_format=memory_format(cfg))


def complete_labels(learner: Learner, logits_nkhw: Tensor, batch: Batch) -> Tensor:
    """Complete the labels of a batch: the E-step labels weakly labelled images by the network's own scores."""
    height, width = batch.labels_nhw.shape[1:]
    network = learner.network
    scores = losses.upsample_scores(
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


def derive_seed(*numbers: int) -> int:
    """Derive one seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
