"""FRRN: Pohlen, Hermans, Mathias, Leibe 2016, arXiv 1611.08323, Full-Resolution Residual Networks.

Two streams: a pooling stream recognises, as an encoder and decoder; a residual stream stays at the input's resolution
and locates. Full-resolution residual units exchange them. Layers, channels and interpolation are those of the authors'
code, https://github.com/TobyPDE/FRRN, dltools/architectures.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.layers import conv_bn, conv_bn_relu, initialise, scaled_channels, set_batch_norm
from pipeline.models.network import Network, Options

BASE_CHANNELS, RESIDUAL_CHANNELS = 48, 32
"""Channels of the first convolution and of the residual stream. train_frrn_b.py: `base_channels`, `fr_channels`."""

UNITS_AROUND = 3
"""Residual units in front of the two streams, and behind them."""

BATCH_NORM_EPS = 1e-4
"""Lasagne's."""


class Stage(NamedTuple):
    """Full-resolution residual units of one resolution."""

    units: int
    scale: int
    """Pixels of the residual stream per cell, per axis."""
    channels: int


class FRRNOptions(Options):
    """Options; the defaults are the paper's."""

    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")


class ResidualUnit(nn.Module):
    """Residual unit: two 3x3 convolutions beside the input, and no ReLU behind the sum. Fig. 2a."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv_bn_relu(in_channels, out_channels, 3), *conv_bn(out_channels, out_channels, 3)
        )
        same = in_channels == out_channels
        self.project = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        total: Tensor = self.residual(x) + self.project(x)
        return total


class FullResolutionUnit(nn.Module):
    """Full-resolution residual unit: the pooling stream looks at both streams and adds to the residual one. Fig. 2b."""

    def __init__(self, in_channels: int, out_channels: int, residual_channels: int, *, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.convolutions = nn.Sequential(
            conv_bn_relu(in_channels + residual_channels, out_channels, 3), conv_bn_relu(out_channels, out_channels, 3)
        )
        self.to_residual = nn.Conv2d(out_channels, residual_channels, 1)

    def forward(self, pooling: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams after the unit.

        Args:
            pooling: (N, in_channels, h, w), h and w the rounded-up H / scale and W / scale.
            residual: (N, residual_channels, H, W).
        """
        pooled = F.max_pool2d(residual, self.scale, ceil_mode=True)
        pooling = self.convolutions(torch.cat([pooling, pooled], dim=1))
        spread = F.interpolate(self.to_residual(pooling), scale_factor=float(self.scale), mode="nearest")
        return pooling, residual + spread[:, :, : residual.size(2), : residual.size(3)]


def doubled(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear upsampling by two: cell k lies at pixel 2 k, the last one is repeated behind itself.

    So Theano's `bilinear_upsampling` aligns an even factor, theano/tensor/nnet/abstract_conv.py.

    Args:
        x: (N, C, h, w).
        height: 2 h or 2 h - 1.
        width: 2 w or 2 w - 1.
    """
    size = 2 * x.size(2) + 1, 2 * x.size(3) + 1
    repeated = F.pad(x, (0, 1, 0, 1), mode="replicate")
    return F.interpolate(repeated, size, mode="bilinear", align_corners=True)[:, :, :height, :width]


class FRRN(Network):
    """Layers that FRRN A and B share; logits have the size of the input, which may be any."""

    encoder_stages: tuple[Stage, ...]
    """Stages, each behind a 2x2 max pooling of the pooling stream. Table 1."""
    decoder_stages: tuple[Stage, ...]
    """Stages, each behind an upsampling of the pooling stream by two."""
    stride = 1
    align_corners = False

    def __init__(self, num_classes: int, options: FRRNOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always that of the deepest stage
        width = options.width_multiplier
        base, residual = scaled_channels(BASE_CHANNELS, width), scaled_channels(RESIDUAL_CHANNELS, width)
        first = [ResidualUnit(base, base) for _ in range(UNITS_AROUND)]
        self.head = nn.Sequential(conv_bn_relu(in_channels, base, 5), *first)
        self.to_residual = nn.Sequential(*conv_bn(base, residual))
        entering = base
        stages: list[nn.ModuleList] = []
        for stage in (*self.encoder_stages, *self.decoder_stages):
            leaving = scaled_channels(stage.channels, width)
            wide = [entering, *[leaving] * stage.units]
            units = [FullResolutionUnit(one, leaving, residual, scale=stage.scale) for one in wide[:-1]]
            stages.append(nn.ModuleList(units))
            entering = leaving
        self.encoder = nn.ModuleList(stages[: len(self.encoder_stages)])
        self.decoder = nn.ModuleList(stages[len(self.encoder_stages) :])
        last = [ResidualUnit(base, base) for _ in range(UNITS_AROUND - 1)]
        self.tail = nn.Sequential(ResidualUnit(entering + residual, base), *last)
        self.feature_channels = base
        self.logits = nn.Conv2d(base, num_classes, 1)
        initialise(self, *self.last_layers())
        set_batch_norm(self, eps=BATCH_NORM_EPS)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> features of both streams (N, 48, H, W) and the logits (N, K, H, W)."""
        pooling = self.head(x)
        residual = self.to_residual(pooling)
        sizes = []
        for stage in self.encoder:
            sizes.append(pooling.shape[2:])
            pooling = F.max_pool2d(pooling, 2, ceil_mode=True)
            pooling, residual = self._exchange(stage, pooling, residual)
        for stage in self.decoder:
            pooling = doubled(pooling, *sizes.pop())
            pooling, residual = self._exchange(stage, pooling, residual)
        pooling = doubled(pooling, *sizes.pop())
        features = self.tail(torch.cat([pooling, residual], dim=1))
        return features, self.logits(features)

    @staticmethod
    def _exchange(stage: nn.Module, pooling: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        for unit in stage.children():
            pooling, residual = unit(pooling, residual)
        return pooling, residual


class FRRNA(FRRN):
    """FRRN A, trained on images at a quarter of Cityscapes' resolution. Table 1a."""

    output_strides = (16,)
    encoder_stages = (Stage(3, 2, 96), Stage(4, 4, 192), Stage(2, 8, 384), Stage(2, 16, 384))
    decoder_stages = (Stage(2, 8, 192), Stage(2, 4, 192), Stage(2, 2, 96))


class FRRNB(FRRN):
    """FRRN B, one stage deeper, trained on images at half of Cityscapes' resolution. Table 1b."""

    output_strides = (32,)
    encoder_stages = (*FRRNA.encoder_stages, Stage(2, 32, 384))
    decoder_stages = (Stage(2, 16, 192), *FRRNA.decoder_stages)
