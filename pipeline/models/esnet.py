"""ESNet: Wang, Zhou, Xiong, Wu, Jin 2019, arXiv 1906.09826.

An almost symmetric encoder and decoder of factorised convolutions. Units at the deepest stride have three branches of
different dilation; nothing is interpolated, transposed convolutions bring features back to the size of the image.
Layers and channels are the authors': https://github.com/xiaoyufenfei/ESNet, model/ESNet.py.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.layers import (
    BatchNorm2d,
    Downsampler,
    factorised_conv,
    factorised_pair,
    initialise,
    scaled_channels,
    set_batch_norm,
)
from pipeline.models.network import Network, Options, ScoreLayer, crop

CHANNELS = (16, 64, 128)
"""Channels at strides 2, 4 and 8. Table 1."""
DILATIONS = (2, 5, 9)
"""Dilations of the branches of a parallel unit. Sec. 3.2."""


class ESNetOptions(Options):
    """Options; the defaults are the authors'."""

    encoder_scores: bool = Field(True, description="Scores of the encoder at stride 8, for training only.")
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")


class FactorisedUnit(nn.Module):
    """Factorised convolution unit (FCU): two factorised convolutions of one size and a sum. Sec. 3.2, fig. 2."""

    def __init__(self, channels: int, kernel: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.convs = factorised_pair(channels, kernel)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        return F.relu(x + self.dropout(self.convs(x)))


class ParallelUnit(nn.Module):
    """Parallel factorised convolution unit (PFCU): three dilations after a shared convolution. Sec. 3.2, fig. 2.

    The branches share one batch norm, as in the authors' code: a step of training updates its statistics three times.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*factorised_conv(channels), BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.branches = nn.ModuleList(
            nn.Sequential(*factorised_conv(channels, dilation=dilation)) for dilation in DILATIONS
        )
        self.bn = BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(0.3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        shared = self.first(x)
        total = x
        for branch in self.branches:
            total = total + self.dropout(self.bn(branch(shared)))
        return F.relu(total)


def upsampler(in_channels: int, out_channels: int) -> nn.Sequential:
    """Twice the size: transposed 3x3 convolution with bias, batch norm, ReLU."""
    conv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(conv, BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class ESNet(Network):
    """ESNet; logits have the size of the input."""

    output_strides = (8,)
    stride = 1
    align_corners = False

    def __init__(self, num_classes: int, options: ESNetOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always 8
        one, two, three = (scaled_channels(channels, options.width_multiplier) for channels in CHANNELS)
        self.encoder = nn.Sequential(
            *(Downsampler(in_channels, one), *(FactorisedUnit(one, 3, dropout=0.03) for _ in range(3))),
            *(Downsampler(one, two), *(FactorisedUnit(two, 5, dropout=0.03) for _ in range(2))),
            *(Downsampler(two, three), *(ParallelUnit(three) for _ in range(3))),
        )
        self.up4 = upsampler(three, two)
        self.units4 = nn.Sequential(*(FactorisedUnit(two, 5) for _ in range(2)))
        self.up2 = upsampler(two, one)
        self.units2 = nn.Sequential(*(FactorisedUnit(one, 3) for _ in range(2)))
        self.feature_channels = one
        self.logits = nn.ConvTranspose2d(one, num_classes, 2, stride=2)
        if options.encoder_scores:
            self.encoder_scores = nn.Conv2d(three, num_classes, 1)
            # The authors train the encoder on these scores first and then the whole without them; the weight is ours.
            self.loss_weights = {"logits": 1.0, "encoder": 0.4}
        set_batch_norm(self, eps=1e-3)
        initialise(self, *self.last_layers())

    def last_layers(self) -> list[ScoreLayer]:
        """The layer of the logits, and that of the encoder's scores."""
        return [self.logits, self.encoder_scores] if "encoder" in self.loss_weights else [self.logits]

    def _decode(self, features: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features at stride 8 -> features at stride 2, and logits of the size of `x`."""
        up = self.units4(crop(self.up4(features), x, 4))
        up = self.units2(crop(self.up2(up), x, 2))
        return up, crop(self.logits(up), x, 1)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> features at stride 2 and logits (N, K, H, W)."""
        return self._decode(self.encoder(x), x)

    def supervised(self, x: Tensor) -> dict[str, Tensor]:
        """`logits`, and with `encoder_scores` also `encoder` at stride 8."""
        features = self.encoder(x)
        scores = {"logits": self._decode(features, x)[1]}
        return scores | ({"encoder": self.encoder_scores(features)} if "encoder" in self.loss_weights else {})
