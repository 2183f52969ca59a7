"""DeepLab v1: Chen, Papandreou, Kokkinos, Murphy, Yuille 2014, arXiv 1412.7062.

VGG-16 without its last two subsamplings and with dilated filters behind them, so it scores every 8th pixel; its fully
connected layers are convolutions. Layers follow the authors' prototxt files, in
https://github.com/TheLegendAli/DeepLab-Context under config/DeepLab-LargeFOV, DeepLab-MSc and DeepLab-MSc-LargeFOV.
"""

from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.backbones.vgg import VGG16
from pipeline.models.layers import initialise, scaled_channels
from pipeline.models.network import Network, Options, Tap, crop, crop_taps, make_taps

_Variant = Literal["4x4", "7x7", "large_fov"]


class FieldOfView(NamedTuple):
    """First fully connected layer as a convolution on pool5."""

    kernel: int
    rate: int
    channels: int
    """Channels of fc6, and of fc7 behind it."""
    average: bool
    """3x3 averaging (pool5a) in front of it."""


FIELDS_OF_VIEW: dict[_Variant, FieldOfView] = {
    "4x4": FieldOfView(4, 4, 4096, average=False),
    "7x7": FieldOfView(7, 4, 4096, average=False),
    "large_fov": FieldOfView(3, 12, 1024, average=True),
}
"""Sec. 5 of the paper, field of view. The paper's 4x4 network has rate 8; this is the base network of
DeepLab-MSc/train.prototxt. The prototxt of 7x7 is unpublished; it has no pool5a here, which came with LargeFOV.
"""

POOL_STRIDES = (2, 2, 2, 1, 1)
BRANCH_STRIDES = (8, 4, 2, 1, 1)
"""Strides of the branches from the image and pools 1 to 4 to stride 8. DeepLab-MSc/train.prototxt."""
BRANCH_CHANNELS = 128

_TAPPED = {1: 4, 2: 6, 3: 2}
"""Modules of a stage, by its index, up to conv2_2, conv3_3 and conv4_1."""


class DeepLabV1Options(Options):
    """Options; the defaults are DeepLab-LargeFOV."""

    variant: _Variant = Field(
        "large_fov",
        description="Kernel of fc6: 4x4 at rate 4 (the base network), VGG's own 7x7 at rate 4, or 3x3 at rate 12 and a "
        "quarter of the channels.",
    )
    msc: bool = Field(False, description="Multi-scale features: add scores of the image and of pools 1 to 4. Sec. 4.3.")
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")


class Classifier(nn.Module):
    """VGG-16's three fully connected layers as convolutions, padded to keep height and width at stride 1."""

    def __init__(
        self, in_channels: int, channels: int, num_classes: int, *, kernel: int = 3, rate: int = 1, stride: int = 1
    ) -> None:
        super().__init__()
        padding = rate * (kernel - 1) // 2
        self.fc6 = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=padding, dilation=rate)
        self.fc7 = nn.Conv2d(channels, channels, 1)
        self.fc8 = nn.Conv2d(channels, num_classes, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, h, w) -> fc7's features (N, channels, h / stride, w / stride) and their scores."""
        x = self.dropout(F.relu(self.fc6(x), inplace=True))
        x = self.dropout(F.relu(self.fc7(x), inplace=True))
        return x, self.fc8(x)


def atrous_vgg16(*, in_channels: int, width: float) -> VGG16:
    """VGG-16 with a dilated last stage; `pools_and_taps` runs it."""
    return VGG16(in_channels=in_channels, width=width, dilations=(1, 1, 1, 1, 2))


def vgg_taps(backbone: VGG16) -> tuple[Tap, ...]:
    """Intermediate features from `pools_and_taps`: conv2_2, conv3_3 and conv4_1."""
    return make_taps(*(backbone.channels[index] for index in _TAPPED))


def pools_and_taps(backbone: VGG16, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """(N, C, H, W) -> outputs of the five 3x3 poolings, and of conv2_2, conv3_3 and conv4_1 at strides 2, 4, 8.

    Windows are centred on every second cell and sizes rounded up as in Caffe: a side of n cells becomes n // 2 + 1, so
    for even n the last cell is centred behind the border.
    """
    pooled, tapped = [], []
    for index, (stage, stride) in enumerate(zip(backbone.stages, POOL_STRIDES, strict=True)):
        layers, end = cast(nn.Sequential, stage), _TAPPED.get(index, 0)
        x = layers[:end](x)
        tapped += [x] if end else []
        x = F.max_pool2d(layers[end:](x), 3, stride=stride, padding=1, ceil_mode=True)
        pooled.append(x)
    return pooled, tapped


def pool5a(*, average: bool) -> nn.Module:
    """LargeFOV's 3x3 averaging behind pool5, or the identity. Like Caffe's it counts the zeros at the borders."""
    return nn.AvgPool2d(3, stride=1, padding=1) if average else nn.Identity()


def add_scores(scores: list[Tensor]) -> Tensor:
    """Sum of score maps of one shape."""
    return torch.stack(scores).sum(0)


class DeepLabV1(Network):
    """DeepLab v1; logits at stride 8, each centred on a single pixel.

    The multi-scale branches stride to the logits' grid, as in training. The published test network runs them at the
    resolution of their input, upsamples all six score maps to the image and adds them. With sides of 8k + 1 pixels,
    which it needs, both sums are equal at every 8th pixel; between those, this network interpolates the sum, and the
    published one has finer scores of the branches.
    """

    output_strides = (8,)
    stride = 8
    align_corners = True

    def __init__(self, num_classes: int, options: DeepLabV1Options, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always 8
        width = options.width_multiplier
        fov = FIELDS_OF_VIEW[options.variant]
        channels, branch_channels = scaled_channels(fov.channels, width), scaled_channels(BRANCH_CHANNELS, width)
        self.backbone = atrous_vgg16(in_channels=in_channels, width=width)
        self.pool5a = pool5a(average=fov.average)
        deep = self.backbone.channels[-1]
        self.classifier = Classifier(deep, channels, num_classes, kernel=fov.kernel, rate=fov.rate)
        tapped = (in_channels, *self.backbone.channels[:4]) if options.msc else ()
        self.branches = nn.ModuleList(
            Classifier(entering, branch_channels, num_classes, stride=stride)
            for entering, stride in zip(tapped, BRANCH_STRIDES, strict=False)
        )
        self.feature_channels = channels + len(self.branches) * branch_channels
        self.taps = vgg_taps(self.backbone)
        initialise(self, *self.last_layers())

    def last_layers(self) -> list[nn.Conv2d]:
        """fc8 of the classifier and of the branches."""
        return [cast(Classifier, classifier).fc8 for classifier in (self.classifier, *self.branches)]

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> fc7's features with those of the branches concatenated, and the logits, at stride 8."""
        return self.embed_and_tap(x)[:2]

    def embed_and_tap(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """`embed`, and conv2_2, conv3_3 and conv4_1 at strides 2, 4 and 8."""
        pooled, tapped = pools_and_taps(self.backbone, x)
        outputs = [self.classifier(self.pool5a(pooled[-1]))]
        outputs += [branch(entering) for branch, entering in zip(self.branches, [x, *pooled], strict=False)]
        cropped = [(crop(features, x, self.stride), crop(scores, x, self.stride)) for features, scores in outputs]
        features = torch.cat([features for features, _ in cropped], dim=1)
        return features, add_scores([scores for _, scores in cropped]), crop_taps(tapped, x, self.taps)
