"""What learns in one phase, and how it takes a step.

In: the settings of a phase and batches of images and labels. Out: weights after each step. Whoever shares a step adds
up to the loss and the gradient that one process alone would have. Never reads or writes anything.
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
from pipeline.models.network import BUILDERS_OWN, Network
from pipeline.records import Int64
from pipeline.training import batch_norm, ema, losses, optimiser, state, weak
from pipeline.training.config import TrainConfig
from pipeline.training.examples import Batch
from pipeline.training.losses import Loss
from pipeline.training.ranks import Group


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
        """What is judged and kept: the moving average where there is one, in half precision where that is asked for."""
        judged = self.average.module if self.average else self.network
        own: dict[str, Tensor] = judged.state_dict()
        return {name: halved(tensor) for name, tensor in own.items()} if self.cfg.half else own


def halved(tensor: Tensor) -> Tensor:
    """Fractions in float16; as they are where one is beyond its range, as a variance may be."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if bool(half.isfinite().all()) else tensor


# ---------------------------------------------------------------- making it


def build_phase_network(cfg: TrainConfig, classes: ClassMap) -> Network:
    """The network of a phase with first weights from torch's generator.

    Raises:
        ConfigError: options or an output stride that the network has not.
    """
    said = cfg.network
    if taken := BUILDERS_OWN & said.options.keys():
        raise ConfigError(f"--network.options may not hold {', '.join(sorted(taken))}: other settings say it")
    return zoo.build_network(
        said.name, len(classes), in_channels=len(said.channels), output_stride=said.output_stride, **said.options
    )


def make_learner(network: Network, cfg: TrainConfig, classes: ClassMap, counts_nk: Int64, group: Group) -> Learner:
    """Everything around a network of which its training in a phase is made.

    Args:
        network: with the weights it begins with; is moved and changed.
        cfg: of the phase.
        classes: what labels are.
        counts_nk: (N, K) labelled pixels of each class in each image, for weights of classes.
        group: who trains together.

    Raises:
        ConfigError: for settings that do not fit the network, the classes or the data.
    """
    network.to(group.device, memory_format=layout_of(cfg)).train()  # type: ignore[call-overload]
    if cfg.batch_norm == "sync" and group.size > 1:
        batch_norm.sync(network)
    if cfg.batch_norm == "frozen":
        batch_norm.freeze(network)
    weights = losses.class_weights(cfg.loss.class_weights, counts_nk, beta=cfg.loss.effective_beta)
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
        supervised=distributed(network, cfg, group),
        optimiser=optimiser.make_optimiser(network, cfg.optimise),
        average=ema.make_average(network, cfg.ema) if cfg.ema else None,
        loss=loss.to(group.device),
        branches=losses.branch_weights(cfg.loss, network),
        dtype=precision_of(cfg, group.device),
        background=weak.background_id(cfg.weak, classes),
    )


def distributed(network: Network, cfg: TrainConfig, group: Group) -> nn.Module:
    """The network as it is called in a step."""
    supervised: nn.Module = Supervised(network)
    if cfg.runtime.compile:
        supervised = cast(nn.Module, torch.compile(supervised))
    if group.size == 1:
        return supervised
    # A branch without a loss leaves layers without gradients.
    all_used = losses.branch_weights(cfg.loss, network).keys() == network.loss_weights.keys()
    return DistributedDataParallel(
        supervised,
        device_ids=[group.device.index] if group.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=not all_used,
    )


def layout_of(cfg: TrainConfig) -> torch.memory_format:
    """How images and weights lie in memory."""
    return torch.channels_last if cfg.runtime.channels_last else torch.contiguous_format


def precision_of(cfg: TrainConfig, device: torch.device) -> torch.dtype:
    """The dtype of convolutions: as asked, or bf16 on GPUs and float32 on CPUs."""
    said = cfg.runtime.precision
    if said == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return PRECISIONS[said]


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
    torch.manual_seed(seed_of(cfg.seed, step, group.rank))
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
        labels = complete_labels(learner, scores["logits"].detach(), batch)
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


def complete_labels(learner: Learner, logits_nkhw: Tensor, batch: Batch) -> Tensor:
    """The labels of a batch, with those that the network itself has to find in weakly labelled images."""
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


def seed_of(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
