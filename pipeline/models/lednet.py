"""LEDNet: Wang, Zhou, Liu, Xiong, Gao, Wu, Latecki 2019, arXiv 1905.02423.

An encoder of factorised convolutions on half of the channels each, which a shuffle mixes, and a decoder with a channel
per class: scores of a 1x1 convolution, weighted at every cell by a pyramid of one channel, plus scores of the whole
image. Layers and channels are the authors': https://github.com/xiaoyufenfei/LEDNet, train/lednet.py.
"""

from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.layers import (
    BatchNorm2d,
    Downsampler,
    factorised_pair,
    initialise,
    scaled_channels,
    set_batch_norm,
)
from pipeline.models.network import Network, Options

CHANNELS = (32, 64, 128)
"""Channels at strides 2, 4 and 8. Table 1."""
DROPOUT = (0.03, 0.03, 0.3)
"""Dropout of whole channels in the units of each stride: the authors' code."""
DILATIONS = ((1, 1, 1), (1, 1), (1, 2, 5, 9, 2, 5, 9, 17))
"""Dilation of each unit at each stride. Table 1."""


class LEDNetOptions(Options):
    """Options; the defaults are the authors'."""

    factorised_pyramid: bool = Field(
        False,
        description="Pyramid of column and row convolutions for square ones, as in Efficient-Segmentation-Networks.",
    )
    encoder_scores: bool = Field(True, description="Scores of the encoder at stride 8, for training only.")
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")


class SplitShuffleUnit(nn.Module):
    """Split-shuffle non-bottleneck: columns come first in half of the channels, rows in the others. Sec. 3.1."""

    def __init__(self, channels: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        self.left = factorised_pair(channels // 2, dilation=dilation)
        self.right = factorised_pair(channels // 2, dilation=dilation, vertical_first=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w), channels of both halves by turns."""
        left, right = x.chunk(2, dim=1)
        both = torch.cat([self.dropout(self.left(left)), self.dropout(self.right(right))], dim=1)
        return F.channel_shuffle(F.relu(x + both), 2)


def biased_conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1) -> nn.Sequential:
    """Convolution with bias, batch norm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2)
    return nn.Sequential(conv, BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def factorised_conv_bn_relu(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    """Column and row convolution with bias and nothing between, batch norm, ReLU."""
    column = nn.Conv2d(in_channels, out_channels, (kernel, 1), stride=(stride, 1), padding=(kernel // 2, 0))
    row = nn.Conv2d(out_channels, out_channels, (1, kernel), stride=(1, stride), padding=(0, kernel // 2))
    return nn.Sequential(column, row, BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class AttentionPyramid(nn.Module):
    """Attention pyramid network: weights of cells from three scales of one channel. Sec. 3.2, fig. 3."""

    def __init__(self, in_channels: int, classes: int, *, factorised: bool) -> None:
        super().__init__()
        layer = factorised_conv_bn_relu if factorised else biased_conv_bn_relu
        self.image = biased_conv_bn_relu(in_channels, classes)
        self.scores = biased_conv_bn_relu(in_channels, classes)
        self.down1 = layer(in_channels, 1, 7, stride=2)
        self.down2 = layer(1, 1, 5, stride=2)
        self.down3 = nn.Sequential(layer(1, 1, 3, stride=2), layer(1, 1, 3))
        self.level1 = layer(1, 1, 7)
        self.level2 = layer(1, 1, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, classes, h, w)."""
        one = self.down1(x)
        two = self.down2(one)
        weights = self.level2(two) + _resize(self.down3(two), two)
        weights = _resize(self.level1(one) + _resize(weights, one), x)
        # Bilinear upsampling of a single cell is constant.
        logits: Tensor = weights * self.scores(x) + self.image(x.mean((2, 3), keepdim=True))
        return logits


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


def encoder(in_channels: int, width: float) -> nn.Sequential:
    """Encoder: for each stride a downsampler and its units. Channels are even numbers, for the halves of a unit."""
    modules: list[nn.Module] = []
    for full, dropout, dilations in zip(CHANNELS, DROPOUT, DILATIONS, strict=True):
        channels = 2 * scaled_channels(full // 2, width)
        modules.append(Downsampler(in_channels, channels))
        modules += [SplitShuffleUnit(channels, dilation=dilation, dropout=dropout) for dilation in dilations]
        in_channels = channels
    return nn.Sequential(*modules)


class LEDNet(Network):
    """LEDNet; logits at stride 8."""

    output_strides = (8,)
    stride = 8
    align_corners = True

    def __init__(self, num_classes: int, options: LEDNetOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always 8
        self.encoder = encoder(in_channels, options.width_multiplier)
        self.feature_channels = 2 * scaled_channels(CHANNELS[-1] // 2, options.width_multiplier)
        self.pyramid = AttentionPyramid(self.feature_channels, num_classes, factorised=options.factorised_pyramid)
        if options.encoder_scores:
            self.encoder_scores = nn.Conv2d(self.feature_channels, num_classes, 1)
            # The authors train the encoder on these scores first and then the whole without them; the weight is ours.
            self.loss_weights = {"logits": 1.0, "encoder": 0.4}
        set_batch_norm(self, eps=1e-3)
        initialise(self, *self.last_layers())

    def last_layers(self) -> list[nn.Conv2d]:
        """The 1x1 convolutions with a channel per class."""
        layers = [self.pyramid.scores[0], self.pyramid.image[0]]
        layers += [self.encoder_scores] if "encoder" in self.loss_weights else []
        return [cast(nn.Conv2d, layer) for layer in layers]

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the encoder's features and the logits, both at stride 8."""
        features = self.encoder(x)
        return features, self.pyramid(features)

    def supervised(self, x: Tensor) -> dict[str, Tensor]:
        """`logits`, and with `encoder_scores` also `encoder`, both at stride 8."""
        features, logits = self.embed(x)
        return {"logits": logits} | (
            {"encoder": self.encoder_scores(features)} if "encoder" in self.loss_weights else {}
        )
