"""U-Net: Ronneberger, Fischer, Brox 2015, arXiv 1505.04597, and its decoder on a ResNet as segmentation_models.pytorch.

A contracting path recognises classes; an expanding path adds the contracting path's features at every scale to locate
them. Logits have the size of the input, which may be any.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.backbones.efficientnet_lite import EfficientNetLite
from pipeline.models.backbones.resnet import ResNet
from pipeline.models.layers import BatchNorm2d, conv_bn_relu, initialise, scaled_channels
from pipeline.models.network import Network, Options, crop

Padding = Literal["valid", "same"]

_LEVELS = (64, 128, 256, 512, 1024)
"""Channels at strides 1 to 16: fig. 1."""

MARGIN: dict[Padding, int] = {"valid": 92, "same": 0}
"""Pixels that the 3x3 convolutions cut off at each border: in fig. 1 388 of 572 are left."""

REMAINDER: dict[Padding, int] = {"valid": 12, "same": 0}
"""Required remainder of a side modulo 16, so that every pooling has an even input: 572 in fig. 1."""


class UNetOptions(Options):
    """Options; the defaults are the paper's."""

    padding: Padding = Field(
        "valid", description="Padding. valid: none, the image is mirrored at its borders; same: zeros."
    )
    batch_norm: bool = Field(False, description="Batch norm behind every 3x3 convolution.")
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")


def mirror_indices(length: int, before: int, after: int, *, device: torch.device) -> Tensor:
    """Indices along an axis mirrored at both ends, repeatedly if necessary, without repeating the border pixel.

    `F.pad(mode="reflect")` does the same only for paddings below the length.
    """
    period = max(1, 2 * (length - 1))
    index = torch.arange(-before, length + after, device=device) % period
    return torch.minimum(index, period - index)


def mirror(x: Tensor, padding: Padding) -> Tensor:
    """Image mirrored at its borders by the margin that the network cuts off: the overlap-tile strategy, fig. 2.

    Args:
        x: (N, C, H, W).
        padding: of the convolutions.

    Returns:
        (N, C, H', W') with the image `MARGIN` pixels from the top and the left; the other two margins are at least as
        wide, up to the next size that can be halved four times.
    """
    margin = MARGIN[padding]
    for axis in (2, 3):
        length = x.size(axis)
        after = margin + (REMAINDER[padding] - length - 2 * margin) % 16
        x = x.index_select(axis, mirror_indices(length, margin, after, device=x.device))
    return x


def centre_of(x: Tensor, size: torch.Size) -> Tensor:
    """Centre crop of a map to the last two of `size`."""
    top, left = (x.size(2) - size[2]) // 2, (x.size(3) - size[3]) // 2
    return x[:, :, top : top + size[2], left : left + size[3]]


def level(in_channels: int, channels: int, options: UNetOptions, *, dropout: bool = False) -> nn.Sequential:
    """One level: two 3x3 convolutions with ReLU, optionally batch norm and dropout."""
    layers: list[nn.Module] = []
    for entering in (in_channels, channels):
        layers.append(nn.Conv2d(entering, channels, 3, padding=options.padding, bias=not options.batch_norm))
        layers += [BatchNorm2d(channels)] if options.batch_norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, *([nn.Dropout()] if dropout else []))


class UNet(Network):
    """The paper's network."""

    output_strides = (16,)
    stride = 1
    align_corners = False

    def __init__(self, num_classes: int, options: UNetOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always 16
        self.padding: Padding = options.padding
        wide = [scaled_channels(channels, options.width_multiplier) for channels in _LEVELS]
        # Dropout "at the end of the contracting path" (sec. 3.1): the last two levels in phseg_v5.prototxt.
        self.contracting = nn.ModuleList(
            level(entering, channels, options, dropout=depth > 2)
            for depth, (entering, channels) in enumerate(zip([in_channels, *wide], wide, strict=False))
        )
        steps = list(zip(wide[:0:-1], wide[-2::-1], strict=True))
        self.upsamplings = nn.ModuleList(nn.ConvTranspose2d(deep, channels, 2, stride=2) for deep, channels in steps)
        self.expanding = nn.ModuleList(level(2 * channels, channels, options) for _, channels in steps)
        self.feature_channels = wide[0]
        self.logits = nn.Conv2d(wide[0], num_classes, 1)
        initialise_by_inputs(self)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the expanding path's features (N, 64, H, W) and the logits (N, K, H, W)."""
        features = crop(self._expand(self._contract(mirror(x, self.padding))), x, 1)
        return features, self.logits(features)

    def _contract(self, x: Tensor) -> list[Tensor]:
        """Features of every level, the deepest last."""
        features: list[Tensor] = []
        for convolutions in self.contracting:
            x = convolutions(F.max_pool2d(x, 2) if features else x)
            features.append(x)
        return features

    def _expand(self, features: list[Tensor]) -> Tensor:
        """Features at the input's size, less twice the margin, from those of every level."""
        x = features.pop()
        for upsampling, convolutions in zip(self.upsamplings, self.expanding, strict=True):
            x = upsampling(x)
            x = convolutions(torch.cat([x, centre_of(features.pop(), x.shape)], dim=1))
        return x


def initialise_by_inputs(network: nn.Module) -> None:
    """Initial weights of sec. 3: normal with deviation sqrt(2 / N) for N inputs per output value; biases 0."""
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or module.weight.is_meta:
            continue
        # The windows of an up-convolution do not overlap: one tap per input channel.
        inputs = module.in_channels if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()
        nn.init.normal_(module.weight, std=(2 / inputs) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


DECODER = (256, 128, 64, 32, 16)
"""Channels at strides 16, 8, 4, 2 and 1: segmentation_models.pytorch, decoders/unet/model.py, `decoder_channels`."""


class UNetResNetOptions(Options):
    """Options of the U-Net on a ResNet or an EfficientNet-Lite."""

    backbone: Literal[
        "efficientnet_lite0",
        "efficientnet_lite1",
        "efficientnet_lite2",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
    ] = Field("resnet50", description="Encoder.")
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")


class UNetResNet(Network):
    """`Unet` of https://github.com/qubvel-org/segmentation_models.pytorch, for inputs of any size.

    That network takes multiples of 32 only; other sizes are padded with zeros at the right and the bottom.
    """

    output_strides = (32,)
    stride = 1
    align_corners = False

    def __init__(self, num_classes: int, options: UNetResNetOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        width = options.width_multiplier
        self.encoder: ResNet | EfficientNetLite
        if options.backbone.startswith("efficientnet"):
            number = int(options.backbone[-1])
            self.encoder = EfficientNetLite(number, in_channels=in_channels, output_stride=output_stride, width=width)
        else:
            depth = int(options.backbone.removeprefix("resnet"))
            self.encoder = ResNet(depth, in_channels=in_channels, output_stride=output_stride, width=width)
        wide = [scaled_channels(channels, width) for channels in DECODER]
        *between, deepest = self.encoder.stage_channels
        skipped = [*reversed(between), self.encoder.stem_channels, 0]
        self.decoder = nn.ModuleList(
            nn.Sequential(conv_bn_relu(below + skip, channels, 3), conv_bn_relu(channels, channels, 3))
            for below, skip, channels in zip([deepest, *wide], skipped, wide, strict=False)
        )
        self.feature_channels = wide[-1]
        self.logits = nn.Conv2d(wide[-1], num_classes, 3, padding=1)
        initialise(self, *self.last_layers())

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the decoder's features (N, 16, H, W) and the logits (N, K, H, W)."""
        stem = self.encoder.stem(F.pad(x, (0, -x.size(3) % 32, 0, -x.size(2) % 32)))
        *skipped, features = (stem, *self.encoder.behind(stem))
        for convolutions in self.decoder:
            features = F.interpolate(features, scale_factor=2, mode="nearest")
            features = convolutions(torch.cat([features, skipped.pop()], dim=1) if skipped else features)
        return crop(features, x, 1), crop(self.logits(features), x, 1)
