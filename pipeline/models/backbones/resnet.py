"""ResNet-50 and ResNet-101, dilated in place of their last strides. He 2015 (arXiv 1512.03385), table 1.

Bottlenecks stride in their 3x3 convolution and tensors have torchvision's names, so ImageNet weights published for it
fit by name. Unlike torchvision, every 3x3 of the last stage is dilated: its rates are those of the multi-grid.
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from pipeline.models.layers import conv_bn

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Bottlenecks per stage, by depth."""


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the last one widens four times."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = 4 * channels
        self.conv1, self.bn1 = conv_bn(in_channels, channels)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3, stride=stride, dilation=dilation)
        self.conv3, self.bn3 = conv_bn(channels, out_channels)
        self.relu = nn.ReLU(inplace=True)
        same = in_channels == out_channels and stride == 1
        self.downsample = None if same else nn.Sequential(*conv_bn(in_channels, out_channels, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, 4 * channels, ceil(h / stride), ceil(w / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return cast(Tensor, self.relu(self.bn3(self.conv3(x)) + shortcut))


def _stage(in_channels: int, channels: int, dilations: Sequence[int], *, stride: int) -> nn.Sequential:
    """One bottleneck per dilation; the first one strides."""
    first = Bottleneck(in_channels, channels, stride=stride, dilation=dilations[0])
    rest = (Bottleneck(4 * channels, channels, stride=1, dilation=dilation) for dilation in dilations[1:])
    return nn.Sequential(first, *rest)


class ResNet(nn.Module):
    """Features at stride 4 and at the output stride.

    Weights trained at output stride 16 compute the same features at 8, only denser: `high` at 16 is every second row
    and column of `high` at 8.
    """

    low_channels = 256
    high_channels = 2048

    def __init__(self, depth: int, *, in_channels: int, output_stride: int, multi_grid: tuple[int, int, int]) -> None:
        """Build stages of random weights.

        Args:
            depth: 50 or 101.
            in_channels: bands of the input.
            output_stride: 8 or 16, the stride of the last features.
            multi_grid: rates of the three blocks of the last stage, times the rate of the stage itself:
                2 at output stride 16, 4 at 8 (Chen 2017, arXiv 1706.05587, sec. 3.2.1).
        """
        super().__init__()
        blocks = BLOCKS[depth]
        self.conv1, self.bn1 = conv_bn(in_channels, 64, 7, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, [1] * blocks[0], stride=1)
        self.layer2 = _stage(256, 128, [1] * blocks[1], stride=2)
        # Without its stride, the first 3x3 still sees what it saw; only the blocks behind it see a grid twice as dense.
        stride, rate = (2, 1) if output_stride == 16 else (1, 2)
        self.layer3 = _stage(512, 256, [1] + [rate] * (blocks[2] - 1), stride=stride)
        self.layer4 = _stage(1024, 512, [32 // output_stride * grid for grid in multi_grid], stride=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> low (N, 256, H / 4, W / 4) and high (N, 2048, H / OS, W / OS), sizes rounded up."""
        low = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return low, self.layer4(self.layer3(self.layer2(low)))
