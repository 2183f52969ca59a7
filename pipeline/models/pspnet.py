"""PSPNet: Zhao, Shi, Qi, Wang, Jia 2017, arXiv 1612.01105, and the lighter one of segmentation_models.pytorch.

A dilated ResNet with pyramid pooling: its features are joined with means over the whole image and over 2x2, 3x3 and
6x6 regions.
"""

from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.backbones.resnet import FirstBlock, ResNet, Stem, StrideIn
from pipeline.models.fcn import fcn_head
from pipeline.models.layers import conv_bn_relu, initialise, scaled_channels
from pipeline.models.network import Network, Options

Bin = Annotated[int, Field(ge=1, le=64)]

BINS = (1, 2, 3, 6)
"""Regions per axis. Sec. 3.2."""


class PyramidPooling(nn.Module):
    """Means over bins x bins regions of the map, each reduced by a 1x1 convolution and resized to it. Sec. 3.2."""

    def __init__(self, in_channels: int, bins: tuple[int, ...], *, align_corners: bool) -> None:
        super().__init__()
        self.bins, self.align_corners = bins, align_corners
        self.level_channels = max(1, in_channels // len(bins))
        self.levels = nn.ModuleList(conv_bn_relu(in_channels, self.level_channels) for _ in bins)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, h, w) -> one (N, in_channels / len(bins), h, w) per number of bins."""
        means = [level(F.adaptive_avg_pool2d(x, bins)) for level, bins in zip(self.levels, self.bins, strict=True)]
        return [F.interpolate(mean, x.shape[2:], mode="bilinear", align_corners=self.align_corners) for mean in means]


class PSPNetOptions(Options):
    """Options; the defaults are the authors' ResNet-101 for torch: https://github.com/hszhao/semseg.

    Their Caffe networks have `stride_in` "1x1".
    """

    backbone: Literal["resnet50", "resnet101"] = Field("resnet101", description="Feature extractor.")
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")
    bins: tuple[Bin, ...] = Field(BINS, min_length=1, description="Regions per axis of each level of the pooling.")
    stem: Stem = Field(
        "deep", description="Convolutions in front of the first pooling: one 7x7 (plain), or three 3x3 (deep)."
    )
    stride_in: StrideIn = Field("3x3", description="Strided convolution of a stage's first block.")
    first_block: FirstBlock = Field("own", description="Rate of a dilated stage's first block.")
    aux: bool = Field(True, description="An auxiliary head on the third stage, for training only. Sec. 3.3.")
    align_corners: bool = Field(True, description="Alignment of means and logits when resized, as in F.interpolate.")


class PSPNet(Network):
    """PSPNet; logits at the output stride."""

    output_strides = (8, 16)

    def __init__(self, num_classes: int, options: PSPNetOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        self.stride, self.align_corners = output_stride, options.align_corners
        self.backbone = ResNet(
            {"resnet50": 50, "resnet101": 101}[options.backbone],
            in_channels=in_channels,
            output_stride=output_stride,
            first_block=options.first_block,
            stride_in=options.stride_in,
            stem=options.stem,
            width=options.width_multiplier,
        )
        *_, third, last = self.backbone.stage_channels
        self.pooling = PyramidPooling(last, options.bins, align_corners=options.align_corners)
        pooled = len(options.bins) * self.pooling.level_channels
        self.feature_channels = scaled_channels(512, options.width_multiplier)
        self.head = nn.Sequential(conv_bn_relu(last + pooled, self.feature_channels, 3), nn.Dropout(0.1))
        self.logits = nn.Conv2d(self.feature_channels, num_classes, 1)
        self.aux = None
        if options.aux:
            self.aux = nn.Sequential(*fcn_head(third), nn.Conv2d(max(1, third // 4), num_classes, 1))
            self.loss_weights = {"logits": 1.0, "aux": 0.4}  # sec. 5.2
        initialise(self, *self.last_layers())

    def last_layers(self) -> list[nn.Conv2d]:
        """The layer of the logits, and that of the auxiliary head if there is one."""
        return [self.logits] if self.aux is None else [self.logits, cast(nn.Conv2d, self.aux[-1])]

    def _features(self, x: Tensor) -> Tensor:
        """Input of the last layer, from the backbone's features."""
        features: Tensor = self.head(torch.cat([x, *self.pooling(x)], dim=1))
        return features

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the head's features and the logits, both at the output stride."""
        features = self._features(self.backbone(x)[1])
        return features, self.logits(features)

    def supervised(self, x: Tensor) -> dict[str, Tensor]:
        """`logits`, and with an auxiliary head `aux` on the same grid."""
        *_, third, last = self.backbone.stages(x)
        scores = {"logits": self.logits(self._features(last))}
        return scores if self.aux is None else scores | {"aux": self.aux(third)}


class PSPNetSMPOptions(Options):
    """Options; the defaults are those of segmentation_models.pytorch."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = Field(
        "resnet34", description="Feature extractor."
    )
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")


class PSPNetSMP(Network):
    """PSPNet of segmentation_models.pytorch, decoders/pspnet: the first two stages only, at stride 8, with light heads.

    The encoder there also has the third and fourth stages and never runs them; here they do not exist.
    """

    output_strides = (8,)
    stride = 8
    align_corners = True

    def __init__(self, num_classes: int, options: PSPNetSMPOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        depth = int(options.backbone.removeprefix("resnet"))
        self.backbone = ResNet(
            depth, in_channels=in_channels, output_stride=output_stride, width=options.width_multiplier
        )
        self.backbone.layer3 = self.backbone.layer4 = nn.Sequential()
        channels = self.backbone.stage_channels[1]
        self.pooling = PyramidPooling(channels, BINS, align_corners=self.align_corners)
        pooled = self.pooling.level_channels
        # There the mean of a whole image has no batch norm.
        self.pooling.levels[0] = nn.Sequential(nn.Conv2d(channels, pooled, 1), nn.ReLU(inplace=True))
        self.feature_channels = scaled_channels(512, options.width_multiplier)
        self.head = nn.Sequential(conv_bn_relu(channels + len(BINS) * pooled, self.feature_channels), nn.Dropout2d(0.2))
        self.logits = nn.Conv2d(self.feature_channels, num_classes, 3, padding=1)
        initialise(self, *self.last_layers())

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the head's features and the logits, both at stride 8."""
        x = self.backbone(x)[1]
        features = self.head(torch.cat([*self.pooling(x), x], dim=1))
        return features, self.logits(features)
