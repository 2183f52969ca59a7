"""ESPNet: Mehta, Rastegari, Caspi, Shapiro, Hajishirzi 2018, arXiv 1803.06815.

A convolution factorised in two: a 1x1 reduces the channels, then a pyramid of five dilated 3x3 convolutions sees areas
of 3 to 33 cells. The image itself, averaged to half and quarter size, joins the features at these sizes ("input
reinforcement"), and a decoder as wide as there are classes brings the scores back to the size of the image. Layers and
channels are the authors': https://github.com/sacmehta/ESPNet, train/Model.py.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.layers import BatchNorm2d, bn_prelu, conv_bn_prelu, initialise, scaled_channels, set_batch_norm
from pipeline.models.network import Network, Options, ScoreLayer, crop

DILATIONS = (1, 2, 4, 8, 16)
"""Dilations of the pyramid, K = 5 branches. Sec. 3.1."""
CHANNELS = (16, 64, 128)
"""Channels of the encoder's levels, at strides 2, 4 and 8. Fig. 4."""


class ESPNetOptions(Options):
    """Options; the defaults are the published ESPNet with p = 2 and q = 8."""

    p: int = Field(2, ge=0, le=64, description="ESP modules at stride 4; alpha 2 in fig. 4.")
    q: int = Field(8, ge=0, le=64, description="ESP modules at stride 8; alpha 3 in fig. 4.")
    decoder: bool = Field(True, description="Decoder; without it the network is ESPNet-C, with logits at stride 8.")
    decoder_channels: int | None = Field(
        None, ge=5, le=1024, description="Channels of the decoder; unset: the number of classes, at least 5."
    )
    fuse_image: bool = Field(
        False, description="Join the image to the decoder's features at stride 2 too, as the authors' train/Model.py."
    )
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on the encoder's numbers of channels.")


def pyramid_channels(channels: int) -> int:
    """Channels, at least one for each branch of the pyramid: a decoder for fewer than five classes has five."""
    return max(len(DILATIONS), channels)


class ESPModule(nn.Module):
    """Efficient spatial pyramid: reduce, split, transform, merge. Sec. 3.1 and fig. 1.

    Branches are added one to the next before they are concatenated (hierarchical feature fusion, sec. 3.1), which
    removes the grid that a large dilation leaves. The branch of dilation 1 has the channels that do not divide by five.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, residual: bool = True) -> None:
        super().__init__()
        inner = out_channels // len(DILATIONS)
        kernel = 1 if stride == 1 else 3
        self.residual = residual and stride == 1
        self.reduce = nn.Conv2d(in_channels, inner, kernel, stride=stride, padding=kernel // 2, bias=False)
        channels = [out_channels - inner * (len(DILATIONS) - 1), *[inner] * (len(DILATIONS) - 1)]
        self.branches = nn.ModuleList(
            nn.Conv2d(inner, wide, 3, padding=dilation, dilation=dilation, bias=False)
            for wide, dilation in zip(channels, DILATIONS, strict=True)
        )
        self.norm = bn_prelu(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w), halved and rounded up with stride 2."""
        reduced = self.reduce(x)
        nearest, *wider = (branch(reduced) for branch in self.branches)
        merged = torch.cat([nearest, *accumulate(wider)], dim=1)
        merged = x + merged if self.residual else merged
        out: Tensor = self.norm(merged)
        return out


class Encoder(nn.Module):
    """Encoder of ESPNet: features at strides 2, 4 and 8, each concatenated with what comes from the level's start."""

    def __init__(self, options: ESPNetOptions, *, in_channels: int) -> None:
        super().__init__()
        one, two, three = (pyramid_channels(scaled_channels(wide, options.width_multiplier)) for wide in CHANNELS)
        self.fuse_image = options.fuse_image
        joined = one + in_channels
        self.channels = (joined if options.fuse_image else one, 2 * two + in_channels, 2 * three)
        """Channels of the three features."""
        self.first = conv_bn_prelu(in_channels, one, 3, stride=2)
        self.join1 = bn_prelu(joined)
        self.down2 = ESPModule(joined, two, stride=2)
        self.level2 = nn.Sequential(*(ESPModule(two, two) for _ in range(options.p)))
        self.join2 = bn_prelu(self.channels[1])
        self.down3 = ESPModule(self.channels[1], three, stride=2)
        self.level3 = nn.Sequential(*(ESPModule(three, three) for _ in range(options.q)))
        self.join3 = bn_prelu(self.channels[2])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, H, W) -> features at strides 2, 4 and 8 with the numbers of `channels`."""
        half = F.avg_pool2d(x, 3, stride=2, padding=1)
        quarter = F.avg_pool2d(half, 3, stride=2, padding=1)
        one = self.first(x)
        joined = self.join1(torch.cat([one, half], dim=1))
        down = self.down2(joined)
        two = self.join2(torch.cat([self.level2(down), down, quarter], dim=1))
        down = self.down3(two)
        three = self.join3(torch.cat([down, self.level3(down)], dim=1))
        return joined if self.fuse_image else one, two, three


class Decoder(nn.Module):
    """Decoder of ESPNet: scores at stride 8 are brought to stride 2, joined by features at strides 4 and 2."""

    def __init__(self, low: int, middle: int, classes: int) -> None:
        super().__init__()
        self.norm3 = BatchNorm2d(classes)
        self.up3 = nn.ConvTranspose2d(classes, classes, 2, stride=2, bias=False)
        self.project2 = nn.Conv2d(middle, classes, 1, bias=False)
        self.join2 = bn_prelu(2 * classes)
        self.fuse2 = ESPModule(2 * classes, classes, residual=False)
        self.up2 = nn.ConvTranspose2d(classes, classes, 2, stride=2, bias=False)
        self.norm2 = bn_prelu(classes)
        self.fuse1 = conv_bn_prelu(classes + low, classes, 3)

    def forward(self, one: Tensor, two: Tensor, scores: Tensor) -> Tensor:
        """Features at strides 2 and 4 and scores at stride 8 -> features at stride 2, as many channels as scores."""
        up = crop(self.up3(self.norm3(scores)), two, 1)
        up = self.fuse2(self.join2(torch.cat([self.project2(two), up], dim=1)))
        up = crop(self.norm2(self.up2(up)), one, 1)
        features: Tensor = self.fuse1(torch.cat([up, one], dim=1))
        return features


class ESPNet(Network):
    """ESPNet; logits have the size of the input, or with `decoder` false stride 8."""

    output_strides = (8,)
    align_corners = False

    def __init__(self, num_classes: int, options: ESPNetOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always 8
        self.encoder = Encoder(options, in_channels=in_channels)
        deepest = self.encoder.channels[-1]
        self.stride = 1 if options.decoder else 8
        wide = options.decoder_channels or pyramid_channels(num_classes)
        self.feature_channels = wide if options.decoder else deepest
        self.score = nn.Conv2d(deepest, wide if options.decoder else num_classes, 1, bias=False)
        if options.decoder:
            self.decoder = Decoder(*self.encoder.channels[:2], wide)
            self.logits = nn.ConvTranspose2d(wide, num_classes, 2, stride=2, bias=False)
        set_batch_norm(self, eps=1e-3)
        initialise(self, *self.last_layers())

    def last_layers(self) -> list[ScoreLayer]:
        """The layer of the logits."""
        return [self.logits if self.stride == 1 else self.score]

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> features at stride 2 and logits (N, K, H, W); without decoder both at stride 8."""
        one, two, three = self.encoder(x)
        scores = self.score(three)
        if self.stride == 8:
            return three, scores
        features = self.decoder(one, two, scores)
        return features, crop(self.logits(features), x, 1)
