"""Dilation: Yu, Koltun 2015, arXiv 1511.07122, Multi-Scale Context Aggregation by Dilated Convolutions.

A front end, VGG-16 without its last two poolings, scores every 8th pixel; a context module of 3x3 convolutions with
growing dilation then looks at these scores from ever wider around. Layers and borders are those of the authors' code
and prototxt files, https://github.com/fyu/dilation: network.py and models/dilation*_deploy.prototxt.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.backbones.vgg import VGG16
from pipeline.models.layers import initialise, scaled_channels
from pipeline.models.network import Network, Options, ScoreLayer, crop
from pipeline.models.unet import mirror_indices

_Context = Literal["none", "small", "large"]

STRIDE = 8
"""Input pixels per score of the front end, per axis."""

MARGIN = 186
"""Pixels that the front end cuts off at each border; the image is mirrored there. predict.py, `label_margin`."""

POOLED_STAGES = 3
"""Stages of VGG-16 with a pooling behind them; pool4 and pool5 are removed. Sec. 4."""

NOISE = 0.01
"""Deviation of the large module's initial weights, as a share of those of the identity. Sec. 3 asks for far below 1."""


class DilationOptions(Options):
    """Options; the defaults are the network for VOC with the small context module."""

    context: _Context = Field(
        "small",
        description="Context module. none: the front end alone; small: as many channels as classes throughout; large: "
        "2 to 32 times as many, with valid convolutions, as released for VOC.",
    )
    levels: int = Field(
        8, ge=5, le=10, description="Layers of the context module: 7 KITTI, 8 VOC and CamVid, 10 Cityscapes."
    )
    deconvolution: bool = Field(
        False,
        description="Fixed bilinear deconvolution of the scores to the input's size, as for Cityscapes; without it "
        "each score belongs to one pixel, the first of every 8x8.",
    )
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels of the front end.")


def context_dilations(levels: int) -> tuple[int, ...]:
    """Dilations of the context module's 3x3 convolutions but the last: 1, 1, 2, 4, 8, 16 for eight levels. Table 1."""
    return (1, 1, *(2**level for level in range(1, levels - 3)))


class Context(nn.Module):
    """Context module: scores to scores, of one size. Sec. 3.

    The small module pads every convolution with zeros by its dilation, the large one only its first, by as much as all
    of them cut off.
    """

    def __init__(self, num_classes: int, *, large: bool, levels: int) -> None:
        super().__init__()
        dilations = context_dilations(levels)
        # Table 1 ends at 32 times the classes, for eight levels.
        wide = [num_classes * (2 * dilation if large else 1) for dilation in dilations]
        margins = [sum(dilations) + 1, *[0] * len(dilations)] if large else [*dilations, 1]
        layers: list[nn.Module] = []
        for entering, leaving, dilation, margin in zip([num_classes, *wide], wide, dilations, margins, strict=False):
            layers += [nn.Conv2d(entering, leaving, 3, padding=margin, dilation=dilation), nn.ReLU(inplace=True)]
        self.dilated = nn.Sequential(*layers)
        self.last = nn.Sequential(nn.Conv2d(wide[-1], wide[-1], 3, padding=margins[-1]), nn.ReLU(inplace=True))
        self.feature_channels = wide[-1]
        self.scores = nn.Conv2d(wide[-1], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, K, h, w) scores of the front end -> (N, feature_channels, h, w) features for the layer `scores`."""
        features: Tensor = self.last(self.dilated(x))
        return features

    def begin(self) -> None:
        """Initial weights: the identity, so that ReLU of the front end's scores leaves the module. Sec. 3, eq. 4 and 5.

        Where channels are a multiple of the classes, each class has a group of them, and a sum over the group takes the
        place of one channel; the noise makes the channels of a group differ.
        """
        num_classes = self.scores.out_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                begin_as_identity(module, num_classes)


def begin_as_identity(convolution: nn.Conv2d, num_classes: int) -> None:
    """Fill a convolution between groups of channels, one per class: sec. 3, eq. 4, and eq. 5 for more channels."""
    leaving, entering = convolution.out_channels, convolution.in_channels
    share = num_classes / leaving
    of_class = [torch.arange(channels) * num_classes // channels for channels in (leaving, entering)]
    centre = convolution.kernel_size[0] // 2
    with torch.no_grad():
        if max(leaving, entering) > num_classes:
            nn.init.normal_(convolution.weight, std=NOISE * share)
        else:
            nn.init.zeros_(convolution.weight)
        convolution.weight[:, :, centre, centre] += share * (of_class[0][:, None] == of_class[1])
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def mirrored(x: Tensor) -> Tensor:
    """Image mirrored at its borders, as far as the front end cuts off, without repeating the border pixel.

    Returns:
        (N, C, 8 n + 372, 8 m + 372) for (N, C, H, W), with the image `MARGIN` pixels from the top and the left; n and m
        are H / 8 and W / 8, rounded up.
    """
    for axis in (2, 3):
        length = x.size(axis)
        after = MARGIN + -length % STRIDE
        x = x.index_select(axis, mirror_indices(length, MARGIN, after, device=x.device))
    return x


def bilinear_kernel(factor: int) -> Tensor:
    """Kernel of a transposed convolution that interpolates by an even factor: (2 factor, 2 factor), Caffe's filler."""
    tent = 1 - ((torch.arange(2 * factor) + 0.5) / factor - 1).abs()
    return torch.outer(tent, tent)


def deconvolved(scores: Tensor) -> Tensor:
    """(N, K, h, w) scores -> (N, K, 8 h, 8 w), bilinear; outside the map are zeros, as in the authors' network."""
    channels = scores.size(1)
    kernel = bilinear_kernel(STRIDE).to(scores).expand(channels, 1, -1, -1)
    return F.conv_transpose2d(scores, kernel, stride=STRIDE, padding=STRIDE // 2, groups=channels)


class Dilation(Network):
    """Dilation7, 8 or 10, or the front end alone.

    Logits are at stride 8, each for the pixel at 8 times its index, or with `deconvolution` at the input's size. The
    input may have any size: it is extended to the next multiple of 8 by its mirrored border.
    """

    output_strides = (8,)

    def __init__(self, num_classes: int, options: DilationOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always 8
        self.deconvolution = options.deconvolution
        self.stride, self.align_corners = (1, False) if options.deconvolution else (STRIDE, True)
        width = options.width_multiplier
        self.backbone = VGG16(in_channels=in_channels, width=width, dilations=(1, 1, 1, 1, 2), padded=False)
        channels = scaled_channels(4096, width)
        self.classifier = nn.Sequential(
            nn.Conv2d(self.backbone.channels[-1], channels, 7, dilation=4),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Conv2d(channels, channels, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(),
        )
        self.front = nn.Conv2d(channels, num_classes, 1)
        large = options.context == "large"
        self.context = None if options.context == "none" else Context(num_classes, large=large, levels=options.levels)
        self.feature_channels = self.context.feature_channels if self.context else channels
        self._begin()

    def _begin(self) -> None:
        initialise(self, *self.last_layers())
        if not self.front.weight.is_meta:
            nn.init.normal_(self.front.weight, std=0.001)  # network.py, the filler of `final`
        if self.context:
            self.context.begin()

    def last_layers(self) -> list[ScoreLayer]:
        """The layer of the front end's scores, and the context module's, whose channels follow the classes too."""
        context = self.context.modules() if self.context else ()
        return [self.front, *(module for module in context if isinstance(module, nn.Conv2d))]

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> features (N, feature_channels, h, w) at stride 8, and the logits."""
        features = self._front_features(mirrored(x))
        scores = self.front(features)
        if self.context:
            features = self.context(scores)
            scores = self.context.scores(features)
        return features, crop(deconvolved(scores), x, 1) if self.deconvolution else scores

    def _front_features(self, x: Tensor) -> Tensor:
        """(N, C, 8 n + 372, 8 m + 372) -> fc7's features (N, 4096, n, m)."""
        for index, stage in enumerate(self.backbone.stages):
            x = stage(x)
            x = F.max_pool2d(x, 2) if index < POOLED_STAGES else x
        features: Tensor = self.classifier(x)
        return features
