"""FCN: Long, Shelhamer, Darrell 2015, arXiv 1411.4038 (extended: 1605.06211), and torchvision's on a dilated ResNet.

The paper's network runs the classifier of VGG-16 as convolutions and upsamples its scores by learnt interpolation,
adding scores of finer features. The dilated network keeps the features fine and needs one small head.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.backbones.resnet import FirstBlock, ResNet
from pipeline.models.backbones.vgg import VGG16
from pipeline.models.layers import conv_bn_relu, initialise, scaled_channels
from pipeline.models.network import Network, Options

_Variant = Literal["32s", "16s", "8s"]

UPSAMPLING: dict[_Variant, tuple[tuple[int, int], ...]] = {
    "32s": ((32, 19),),
    "16s": ((2, 5), (16, 27)),
    "8s": ((2, 5), (2, 9), (8, 31)),
}
"""Factor of each upsampling, and the first row and column kept of its output: the voc-fcn*/net.py of
https://github.com/shelhamer/fcn.berkeleyvision.org. All but the last crop the skipped scores, the last its own output.
"""

PADDING = 100
"""Zeros around the image, so that even an image of one pixel fills the classifier's 7x7 window. Same source."""


class FCNOptions(Options):
    """Options; the defaults are the paper's FCN-8s."""

    variant: _Variant = Field(
        "8s", description="Stride of the finest scores: 32s without skips, 16s with pool4, 8s with pool4 and pool3."
    )
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")


class Upsampling(nn.ConvTranspose2d):
    """Upsampling of scores by a whole factor: a transposed convolution, initially bilinear interpolation.

    Sec. 3.3 of the paper. Cell i of the input lies in the middle of cells i * factor to i * factor + 2 * factor - 1.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__(channels, channels, 2 * factor, stride=factor, bias=False)

    def begin(self) -> None:
        """Fill the weight with the bilinear kernel from every channel to itself, and zeros between channels."""
        distance = (torch.arange(self.kernel_size[0]) + 0.5) / self.stride[0] - 1
        tent = 1 - distance.abs()
        channel = torch.arange(self.in_channels)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[channel, channel] = torch.outer(tent, tent)


def bilinear_and_zero(network: nn.Module, *scores: nn.Conv2d) -> None:
    """Initial weights of the paper: bilinear upsampling, zero scores (sec. 4.2 and 4.3)."""
    for score in scores:
        nn.init.zeros_(score.weight)
    for module in network.modules():
        if isinstance(module, Upsampling) and not module.weight.is_meta:
            module.begin()


def window(cells: Tensor, size: torch.Size, *, first: int) -> Tensor:
    """Crop: rows and columns from `first` on, as many as the last two of `size`."""
    return cells[:, :, first : first + size[-2], first : first + size[-1]]


class FCN(Network):
    """The paper's network on VGG-16; logits have the size of the input, which may be any."""

    output_strides = (32,)
    stride = 1
    align_corners = False

    def __init__(self, num_classes: int, options: FCNOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always 32
        self.backbone = VGG16(in_channels=in_channels, width=options.width_multiplier)
        self.feature_channels = scaled_channels(4096, options.width_multiplier)
        self.classifier = nn.Sequential(
            nn.Conv2d(self.backbone.channels[-1], self.feature_channels, 7),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Conv2d(self.feature_channels, self.feature_channels, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(),
        )
        self.logits = nn.Conv2d(self.feature_channels, num_classes, 1)
        self.offsets = [first for _, first in UPSAMPLING[options.variant]]
        self.upsamplings = nn.ModuleList(Upsampling(num_classes, factor) for factor, _ in UPSAMPLING[options.variant])
        # pool4, then pool3
        skipped = self.backbone.channels[3:1:-1][: len(self.offsets) - 1]
        self.skips = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for channels in skipped)
        initialise(self, *self.last_layers())
        bilinear_and_zero(self, *self.last_layers())

    def last_layers(self) -> list[nn.Conv2d]:
        """The layers that score the deepest and the skipped features."""
        return [self.logits, *(cast(nn.Conv2d, skip) for skip in self.skips)]

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the classifier's features (N, 4096, h, w) at stride 32 and the logits (N, K, H, W).

        Feature (i, j) is centred on pixel (32 * i + 12.5, 32 * j + 12.5), since the padding shifts the grid.
        """
        pools = self._pools(x)
        features = self.classifier(pools.pop())
        scores = self.logits(features)
        for upsampling, skip, first in zip(self.upsamplings, self.skips, self.offsets, strict=False):
            scores = upsampling(scores)
            scores = scores + window(skip(pools.pop()), scores.shape, first=first)
        return features, window(self.upsamplings[-1](scores), x.shape, first=self.offsets[-1])

    def _pools(self, x: Tensor) -> list[Tensor]:
        """Pooled output of each stage; sizes round up, as in Caffe."""
        x = F.pad(x, (PADDING - 1,) * 4)  # the first convolution pads by 1 itself
        pools = []
        for stage in self.backbone.stages:
            x = F.max_pool2d(stage(x), 2, ceil_mode=True)
            pools.append(x)
        return pools


class FCNDilatedOptions(Options):
    """Options; the defaults are torchvision's `fcn_resnet50`."""

    backbone: Literal["resnet50", "resnet101"] = Field("resnet50", description="Feature extractor.")
    aux: bool = Field(True, description="An auxiliary head on the third stage, for training only.")
    first_block: FirstBlock = Field("earlier", description="Rate of the first block of a dilated stage.")
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")


def fcn_head(in_channels: int) -> nn.Sequential:
    """FCN head in front of the scores: a 3x3 convolution to a quarter of the channels, and dropout."""
    return nn.Sequential(conv_bn_relu(in_channels, max(1, in_channels // 4), 3), nn.Dropout(0.1))


class FCNDilated(Network):
    """torchvision's FCN: https://github.com/pytorch/vision, models/segmentation/fcn.py. Logits at the output stride."""

    output_strides = (8, 16)
    align_corners = False

    def __init__(self, num_classes: int, options: FCNDilatedOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        self.backbone = ResNet(
            {"resnet50": 50, "resnet101": 101}[options.backbone],
            in_channels=in_channels,
            output_stride=output_stride,
            first_block=options.first_block,
            width=options.width_multiplier,
        )
        self.stride = output_stride
        *_, between, last = self.backbone.stage_channels
        self.feature_channels = max(1, last // 4)
        self.head = fcn_head(last)
        self.logits = nn.Conv2d(self.feature_channels, num_classes, 1)
        self.aux = None
        if options.aux:
            self.aux = nn.Sequential(*fcn_head(between), nn.Conv2d(max(1, between // 4), num_classes, 1))
            # torchvision's references/segmentation/train.py
            self.loss_weights = {"logits": 1.0, "aux": 0.5}
        initialise(self, *self.last_layers())

    def last_layers(self) -> list[nn.Conv2d]:
        """The layer of the logits, and that of the auxiliary head if there is one."""
        return [self.logits] if self.aux is None else [self.logits, cast(nn.Conv2d, self.aux[-1])]

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the head's features and the logits, both at the output stride."""
        features = self.head(self._stages(x)[1])
        return features, self.logits(features)

    def supervised(self, x: Tensor) -> dict[str, Tensor]:
        """`logits`, and with an auxiliary head `aux` on the same grid."""
        between, last = self._stages(x)
        scores = {"logits": self.logits(self.head(last))}
        return scores if self.aux is None else scores | {"aux": self.aux(between)}

    def _stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of the last two stages."""
        between = self.backbone.maxpool(self.backbone.stem(x))
        for stage in (self.backbone.layer1, self.backbone.layer2, self.backbone.layer3):
            between = stage(between)
        return between, self.backbone.layer4(between)
