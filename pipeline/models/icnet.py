"""ICNet: Zhao, Qi, Shen, Shi, Jia 2018, arXiv 1704.08545.

Three resolutions: the image at half size through the first layers of a ResNet, at quarter size through the rest, and at
full size through three convolutions; each is fused with the coarser ones. Layers and channels are the authors':
https://github.com/hszhao/ICNet, evaluation/prototxt/icnet_cityscapes_bnnomerge.prototxt. As there, the quarter is
resized from features of the half (behind conv3_1), not from the image, so the shared layers run once.
"""

from typing import cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.backbones.resnet import ResNet
from pipeline.models.layers import conv_bn, conv_bn_relu, initialise, scaled_channels
from pipeline.models.network import Network, Options, grid_cells
from pipeline.models.pspnet import BINS


class ICNetOptions(Options):
    """Options; the defaults are the authors' compressed network, with half the channels of ResNet-50."""

    width_multiplier: float = Field(
        1.0, gt=0, le=4, description="Factor on all numbers of channels; 2 is uncompressed."
    )
    label_guidance: bool = Field(True, description="Scores of the coarser resolutions, for training only. Sec. 3.4.")
    align_corners: bool = Field(
        True, description="Alignment of images, features and logits when resized, as in F.interpolate."
    )


class CascadeFusion(nn.Module):
    """Cascade feature fusion: dilated convolution of the coarse features, resized to the fine ones. Sec. 3.3."""

    def __init__(self, coarse_channels: int, fine_channels: int, out_channels: int) -> None:
        super().__init__()
        self.coarse = nn.Sequential(*conv_bn(coarse_channels, out_channels, 3, dilation=2))
        self.fine = nn.Sequential(*conv_bn(fine_channels, out_channels))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(N, coarse_channels, h, w) and (N, fine_channels, h, w) -> (N, out_channels, h, w)."""
        return F.relu(self.coarse(coarse) + self.fine(fine))


def strided(in_channels: int, channels: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolutions of stride 2, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for out_channels in channels:
        layers += [*conv_bn(in_channels, out_channels, 3, stride=2), nn.ReLU(inplace=True)]
        in_channels = out_channels
    return nn.Sequential(*layers)


class ICNet(Network):
    """ICNet; logits at stride 4."""

    output_strides = (32,)
    stride = 4

    def __init__(self, num_classes: int, options: ICNetOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always 32
        self.align_corners = options.align_corners
        width = options.width_multiplier
        # Its last two stages are dilated instead of strided; the image is smaller instead.
        self.backbone = ResNet(
            50,
            in_channels=in_channels,
            output_stride=8,
            first_block="own",
            stride_in="1x1",
            stem="deep",
            width=width / 2,
        )
        low, fine, fused, first = (scaled_channels(channels, width) for channels in (256, 64, 128, 32))
        middle = self.backbone.stage_channels[1]
        self.reduce = conv_bn_relu(self.backbone.high_channels, low)
        self.full = strided(in_channels, (first, first, fine))
        self.fuse_half = CascadeFusion(low, middle, fused)
        self.fuse_full = CascadeFusion(fused, fine, fused)
        self.feature_channels = fused
        self.logits = nn.Conv2d(fused, num_classes, 1)
        guides = {"sub4": nn.Conv2d(low, num_classes, 1), "sub24": nn.Conv2d(fused, num_classes, 1)}
        self.guides = nn.ModuleDict(guides if options.label_guidance else {})
        if options.label_guidance:
            # As trained in https://github.com/hellochick/ICNet-tensorflow, utils/config.py.
            self.loss_weights = {"logits": 1.0, "sub4": 0.16, "sub24": 0.4}
        initialise(self, *self.last_layers())

    def last_layers(self) -> list[nn.Conv2d]:
        """The layer of the logits, and those of label guidance."""
        return [self.logits, *(cast(nn.Conv2d, guide) for guide in self.guides.values())]

    def _resize(self, x: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=self.align_corners)

    def _halve(self, x: Tensor) -> Tensor:
        return self._resize(x, grid_cells(x.size(2), 2), grid_cells(x.size(3), 2))

    def _half_and_quarter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the half-size image, at stride 16, and of the quarter size, at stride 32."""
        net = self.backbone
        half = net.layer2[0](net.layer1(net.maxpool(net.stem(self._halve(x)))))
        return half, net.layer4(net.layer3(net.layer2[1:](self._halve(half))))

    def _pooled(self, x: Tensor) -> Tensor:
        """A map plus the means of its regions: PSPNet's pooling, added and without convolutions."""
        means = [F.adaptive_avg_pool2d(x, bins) for bins in BINS]
        return x + sum(self._resize(mean, x.size(2), x.size(3)) for mean in means)

    def _views(self, x: Tensor) -> dict[str, Tensor]:
        """Features for each classifier, at strides 16, 8 and 4, by the names of `loss_weights`."""
        half, quarter = self._half_and_quarter(x)
        full = self.full(x)
        sub4 = self._resize(self.reduce(self._pooled(quarter)), half.size(2), half.size(3))
        sub24 = self._resize(self.fuse_half(sub4, half), full.size(2), full.size(3))
        fused = self.fuse_full(sub24, full)
        finest = self._resize(fused, grid_cells(x.size(2), self.stride), grid_cells(x.size(3), self.stride))
        return {"sub4": sub4, "sub24": sub24, "logits": finest}

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the fused features and the logits, both at stride 4."""
        features = self._views(x)["logits"]
        return features, self.logits(features)

    def supervised(self, x: Tensor) -> dict[str, Tensor]:
        """`logits`, and with label guidance `sub4` at stride 16 and `sub24` at stride 8."""
        views = self._views(x)
        guides = {name: guide(views[name]) for name, guide in self.guides.items()}
        return {"logits": self.logits(views["logits"])} | guides
