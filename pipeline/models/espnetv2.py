"""ESPNetv2: Mehta, Rastegari, Shapiro, Hajishirzi 2018, arXiv 1811.11431, with the decoder of the authors' EdgeNets.

ESPNet's pyramid with depthwise convolutions and grouped 1x1 around it (EESP), and the image itself joined to the
features wherever these are halved. The decoder pools features at five scales of their own size. Layers and channels are
those of https://github.com/sacmehta/EdgeNets, model/segmentation/espnetv2.py; its downsamplers also hold slopes that
nothing uses, which are left out here.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.layers import bn_prelu, conv_bn, conv_bn_prelu, initialise, scaled_channels
from pipeline.models.network import Network, Options

BRANCHES = 4
"""Branches of a pyramid, and groups of the 1x1 convolutions around it. Table 1."""
WIDE, NARROW = (1, 2, 3, 4), (1, 1, 2, 3)
"""Dilations of a pyramid; the modules at stride 16 see at most 7 cells. nn_layers/eesp.py and espnetv2_config.py."""
MODULES = (3, 7)
"""Modules at strides 8 and 16 after each downsampler. Table 1."""
IMAGE_CHANNELS = 3
"""Channels of the image where it joins the features, for any number of bands."""
SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
"""Sizes at which the decoder filters features, over their own. nn_layers/efficient_pyramid_pool.py."""
LEAST_CELLS = 5
"""Cells of such a size, at least, per axis."""


class ESPNetv2Options(Options):
    """Options; the defaults are the published network for VOC."""

    scale: float = Field(2.0, ge=0.5, le=4, description="Width s of the encoder: 0.5, 1, 1.25, 1.5 or 2 in table 1.")
    decoder_channels: int = Field(16, ge=1, le=256, description="Base of the decoder's channels; 32 for COCO.")
    pyramid_channels: int | None = Field(
        None, ge=1, le=256, description="Channels at each scale; unset: half the classes, at most decoder_channels."
    )
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")

    def encoder_channels(self) -> tuple[int, ...]:
        """Channels at strides 2, 4, 8 and 16: each more than the last, in multiples of 16, as grouped branches need."""
        full = (16 if self.scale < 1 else 32, 64 * self.scale, 128 * self.scale, 256 * self.scale)
        unit = BRANCHES**2
        return tuple(
            unit * max(least, round(wide * self.width_multiplier / unit)) for least, wide in enumerate(full, 1)
        )


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, corner to corner, as everywhere in the authors' decoder."""
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=True)


class EESP(nn.Module):
    """Extremely efficient spatial pyramid, without what follows the last batch norm. Sec. 3.2 and fig. 1c.

    A grouped 1x1 reduces the channels, a depthwise convolution per dilation filters them, sums of neighbouring branches
    are concatenated (hierarchical feature fusion), and a grouped 1x1 mixes each branch.
    """

    def __init__(self, in_channels: int, out_channels: int, dilations: tuple[int, ...], *, stride: int = 1) -> None:
        super().__init__()
        inner = out_channels // BRANCHES
        self.reduce = conv_bn_prelu(in_channels, inner, groups=BRANCHES)
        self.branches = nn.ModuleList(
            nn.Conv2d(inner, inner, 3, stride, padding=rate, dilation=rate, groups=inner, bias=False)
            for rate in dilations
        )
        self.norm = bn_prelu(out_channels)
        self.expand = nn.Sequential(*conv_bn(out_channels, out_channels, groups=BRANCHES))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w), halved and rounded up with stride 2."""
        reduced = self.reduce(x)
        fused = [self.branches[0](reduced)]
        for branch in self.branches[1:]:
            fused.append(fused[-1] + branch(reduced))
        out: Tensor = self.expand(self.norm(torch.cat(fused, dim=1)))
        return out


class Residual(nn.Module):
    """EESP whose input is added to its output, then PReLU."""

    def __init__(self, channels: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.pyramid = EESP(channels, channels, dilations)
        self.slope = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) -> the same."""
        out: Tensor = self.slope(x + self.pyramid(x))
        return out


class ReinforcedDownsampler(nn.Module):
    """Half the size: the mean of neighbours beside a strided EESP, and the shrunk image added. Sec. 3.2 and fig. 2."""

    def __init__(self, in_channels: int, out_channels: int, *, bands: int) -> None:
        super().__init__()
        self.pyramid = EESP(in_channels, out_channels - in_channels, WIDE, stride=2)
        self.image = nn.Sequential(*conv_bn_prelu(bands, IMAGE_CHANNELS, 3), *conv_bn(IMAGE_CHANNELS, out_channels))
        self.slope = nn.PReLU(out_channels)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """(N, in_channels, h, w) and an image of half that size -> (N, out_channels, h / 2, w / 2), rounded up."""
        joined = torch.cat([F.avg_pool2d(x, 3, stride=2, padding=1), self.pyramid(x)], dim=1)
        out: Tensor = self.slope(joined + self.image(image))
        return out


class ESPNetv2Encoder(nn.Module):
    """Encoder of ESPNetv2. Table 1."""

    def __init__(self, channels: tuple[int, ...], *, bands: int) -> None:
        super().__init__()
        self.first = conv_bn_prelu(bands, channels[0], 3, stride=2)
        self.downs = nn.ModuleList(
            ReinforcedDownsampler(entering, leaving, bands=bands) for entering, leaving in pairwise(channels)
        )
        self.level3 = nn.Sequential(*(Residual(channels[2], WIDE) for _ in range(MODULES[0])))
        self.level4 = nn.Sequential(*(Residual(channels[3], NARROW) for _ in range(MODULES[1])))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> features at strides 2, 4, 8 and 16."""
        image = F.avg_pool2d(x, 3, stride=2, padding=1)
        features = [self.first(x)]
        for down, level in zip(self.downs, (nn.Identity(), self.level3, self.level4), strict=True):
            image = F.avg_pool2d(image, 3, stride=2, padding=1)
            features.append(level(down(features[-1], image)))
        return features


class PyramidPool(nn.Module):
    """Efficient pyramid pooling: features filtered at five scales of their size, channel by channel, and merged.

    EdgeNets, nn_layers/efficient_pyramid_pool.py.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.project = conv_bn_prelu(in_channels, channels)
        self.filters = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False) for _ in SCALES
        )
        self.norm = bn_prelu(len(SCALES) * channels)
        self.merge = conv_bn_prelu(len(SCALES) * channels, channels, 3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, channels, h, w)."""
        projected = self.project(x)
        pooled = [self._at(scale, one, projected) for scale, one in zip(SCALES, self.filters, strict=True)]
        joined = self.norm(torch.cat(pooled, dim=1))
        # A group of the merging convolution sees one channel at all scales.
        mixed = joined.unflatten(1, (len(SCALES), -1)).transpose(1, 2).flatten(1, 2)
        out: Tensor = self.merge(mixed)
        return out

    @staticmethod
    def _at(scale: float, one: nn.Module, x: Tensor) -> Tensor:
        """Filter features at one scale of their size, and bring them back."""
        if scale == 1:
            filtered: Tensor = one(x)
            return filtered
        height, width = x.shape[2:]
        rows, columns = (max(LEAST_CELLS, math.ceil(length * scale)) for length in (height, width))
        if scale < 1:
            return resize(one(F.adaptive_avg_pool2d(x, (rows, columns))), height, width)
        return F.adaptive_avg_pool2d(one(resize(x, rows, columns)), (height, width))


class Skip(nn.Module):
    """Encoder features for the decoder: a grouped 3x3, weighted per channel by the features' mean over the image.

    EdgeNets, nn_layers/efficient_pt.py.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.project = conv_bn_prelu(in_channels, out_channels, 3, groups=math.gcd(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        weights = torch.sigmoid(self.weigh(x.mean((2, 3), keepdim=True)))
        out: Tensor = weights * self.project(x)
        return out


class Step(nn.Module):
    """Step of the decoder: pool, double the size, add the encoder's features."""

    def __init__(self, in_channels: int, out_channels: int, skip_channels: int, pyramid: int) -> None:
        super().__init__()
        self.pool = PyramidPool(in_channels, pyramid)
        self.widen = nn.Sequential(nn.Conv2d(pyramid, out_channels, 1, bias=False), *bn_prelu(out_channels))
        self.skip = Skip(skip_channels, out_channels)
        self.norm = bn_prelu(out_channels)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) and features of twice that size -> (N, out_channels, 2 h, 2 w)."""
        wide = resize(self.widen(self.pool(x)), *features.shape[2:])
        out: Tensor = self.norm(self.skip(features) + wide)
        return out


class ESPNetv2(Network):
    """ESPNetv2; logits are resized to the input inside the network, corner to corner, as the authors do."""

    output_strides = (16,)
    stride = 1
    align_corners = False

    def __init__(self, num_classes: int, options: ESPNetv2Options, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always 16
        encoder = options.encoder_channels()
        base = scaled_channels(options.decoder_channels, options.width_multiplier)
        pyramid = options.pyramid_channels or max(1, min(num_classes // 2, base))
        decoder = (4 * base, 3 * base, 2 * base)
        self.feature_channels = pyramid
        self.encoder = ESPNetv2Encoder(encoder, bands=in_channels)
        self.decoder = nn.ModuleList(
            Step(entering, leaving, skip, pyramid)
            for entering, leaving, skip in zip((encoder[-1], *decoder), decoder, encoder[-2::-1], strict=False)
        )
        self.pool = PyramidPool(decoder[-1], pyramid)
        self.logits = nn.Conv2d(pyramid, num_classes, 1)
        initialise(self, self.logits)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> features at stride 2 and logits (N, K, H, W)."""
        *skips, deepest = self.encoder(x)
        for step, features in zip(self.decoder, reversed(skips), strict=True):
            deepest = step(deepest, features)
        features = self.pool(deepest)
        return features, resize(self.logits(features), *x.shape[2:])
