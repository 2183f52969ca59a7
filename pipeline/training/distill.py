"""Teacher of a distillation (`--distill.teacher`): a trained network that scores the student's training images.

In: a checkpoint of the same classes, and augmented images of a batch. Out: its scores at full size. The teacher is in
eval mode and has no gradient. It takes its own bands, by name, with its own normalisation. Nothing is written here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.models import checkpoint
from pipeline.models.card import Card
from pipeline.models.network import Network
from pipeline.training import losses
from pipeline.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Teacher:
    """Trained network, its input, and the digest of its checkpoint."""

    network: Network
    """In eval mode, without gradients."""
    bands: tuple[int, ...]
    """Index of each of its bands among the bands of the run."""
    mean: Tensor
    """(1, C, 1, 1) float32 on the device, of pixels from 0 to 255."""
    std: Tensor
    """(1, C, 1, 1) float32 on the device, of pixels from 0 to 255."""
    memory_format: torch.memory_format
    sha256: str
    """Digest of the checkpoint, 64 hex digits."""

    @torch.no_grad()
    def scores(self, images_nchw: Tensor, dtype: torch.dtype) -> Tensor:
        """Score images at full size: (N, C, H, W) uint8 of the run's bands -> (N, K, H, W) float32, before softmax.

        Args:
            images_nchw: on the teacher's device.
            dtype: number format of convolutions.
        """
        network, (height, width) = self.network, images_nchw.shape[2:]
        pixels = (images_nchw[:, list(self.bands)].float() - self.mean) / self.std
        with torch.autocast(pixels.device.type, dtype, enabled=dtype is not torch.float32):
            logits = network(pixels.contiguous(memory_format=self.memory_format))
        return losses.upsample_scores(
            logits.float(), height, width, stride=network.stride, align_corners=network.align_corners
        )


def load_teacher(cfg: TrainConfig, classes: ClassMap, device: torch.device) -> Teacher | None:
    """Load the checkpoint `cfg.distill.teacher` to a device; None if there is none.

    Raises:
        ConfigError: there is no such checkpoint, or it has other classes, bands that the run lacks, or another scale.
    """
    if cfg.distill.teacher is None:
        return None
    model = checkpoint.load_checkpoint(cfg.distill.teacher)
    check_teacher(model.card, cfg, classes)
    memory_format = torch.channels_last if cfg.runtime.channels_last else torch.contiguous_format
    network = model.build().requires_grad_(False)
    network.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    mean, std = (
        255 * torch.tensor(band, device=device).view(1, -1, 1, 1) for band in (model.card.mean, model.card.std)
    )
    bands = tuple(cfg.network.channels.index(name) for name in model.card.channels)
    return Teacher(network, bands, mean, std, memory_format, model.sha256)


def check_teacher(card: Card, cfg: TrainConfig, classes: ClassMap) -> None:
    """Check that a checkpoint scores the classes of a run from the bands of the run.

    Raises:
        ConfigError: names or order of classes differ, a band is missing, or bands are scaled otherwise.
    """
    option = f"--distill.teacher {cfg.distill.teacher}"
    if card.classes.names != classes.names:
        theirs, ours = ", ".join(card.classes.names), ", ".join(classes.names)
        hint = "train the teacher on the class map of this run"
        raise ConfigError(f"{option} has the classes {theirs}; this run has {ours}", hint=hint)
    if missing := [name for name in card.channels if name not in cfg.network.channels]:
        ours = ", ".join(cfg.network.channels)
        raise ConfigError(f"{option} needs the bands {', '.join(missing)}; --network.channels has {ours}")
    if card.scale != cfg.network.scale:
        raise ConfigError(f"{option} has the scale {card.scale}; the data of this run {cfg.network.scale}")
