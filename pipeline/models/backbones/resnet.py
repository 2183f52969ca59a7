"""ResNet-18 to ResNet-101 with dilation in place of their last strides. He 2015 (arXiv 1512.03385), table 1.

Tensors have torchvision's names, so its published ImageNet weights fit by name. Public checkpoints of the same shapes
differ in the places where a stage's stride and rate start; the options choose a checkpoint's convention.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from pipeline.models.layers import conv_bn, scaled_channels

StrideIn = Literal["3x3", "1x1"]
"""Strided convolution of a bottleneck: torchvision's 3x3, or the 1x1 in front of it as in the paper."""
FirstBlock = Literal["earlier", "own"]
"""Rate of the first block of a dilated stage: the rate of the stage before (torchvision), or its own (Caffe)."""
Stem = Literal["plain", "deep"]
"""One 7x7 convolution, or three 3x3 with twice the channels: https://github.com/hszhao/semseg, model/resnet.py."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion: ClassVar[int] = 1

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, dilation: int, stride_in: StrideIn = "3x3"
    ) -> None:
        super().__init__()
        del stride_in  # there is no 1x1
        self.conv1, self.bn1 = conv_bn(in_channels, channels, 3, stride=stride, dilation=dilation)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3, dilation=dilation)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, channels, ceil(h / stride), ceil(w / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.relu(self.bn2(self.conv2(x)) + shortcut))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the last has four times the channels."""

    expansion: ClassVar[int] = 4

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, dilation: int, stride_in: StrideIn = "3x3"
    ) -> None:
        super().__init__()
        first, second = (1, stride) if stride_in == "3x3" else (stride, 1)
        self.conv1, self.bn1 = conv_bn(in_channels, channels, stride=first)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3, stride=second, dilation=dilation)
        self.conv3, self.bn3 = conv_bn(channels, 4 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, 4 * channels, ceil(h / stride), ceil(w / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return cast(Tensor, self.relu(self.bn3(self.conv3(x)) + shortcut))


_DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
"""Block class and blocks per stage, by depth."""


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """1x1 projection where the shapes differ, else None."""
    same = in_channels == out_channels and stride == 1
    return None if same else nn.Sequential(*conv_bn(in_channels, out_channels, stride=stride))


def resnet_stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    channels: int,
    rates: Sequence[int],
    *,
    stride: int,
    stride_in: StrideIn = "3x3",
) -> nn.Sequential:
    """One block per rate, the first one strided; output channels are `channels * block.expansion`."""
    wide = block.expansion * channels
    first = block(in_channels, channels, stride=stride, dilation=rates[0], stride_in=stride_in)
    return nn.Sequential(first, *(block(wide, channels, stride=1, dilation=rate) for rate in rates[1:]))


def stage_rates(
    blocks: int, rate: int, *, earlier: int, first_block: FirstBlock, grid: Sequence[int] | None = None
) -> list[int]:
    """Rates of the blocks of a stage with a rate, behind a stage with the rate `earlier`.

    With a multi-grid every block has its own multiple of the stage's rate: Chen 2017 (arXiv 1706.05587), sec. 3.2.1.
    """
    if grid is not None:
        return [rate * multiple for multiple in grid]
    return [earlier if first_block == "earlier" else rate, *[rate] * (blocks - 1)]


class ResNet(nn.Module):
    """Backbone with features at stride 4 and at the output stride.

    Weights trained at output stride 16 give the same features at 8 on a denser grid: `high` at 16 is every second row
    and column of `high` at 8. It takes a first block whose rate fits its stride: `first_block="earlier"` with a strided
    3x3, "own" with a strided 1x1. Otherwise, and for depths 18 and 34, whose first blocks have a second 3x3, the first
    block of layer3 differs.
    """

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int,
        output_stride: int,
        multi_grid: tuple[int, int, int] | None = None,
        first_block: FirstBlock = "earlier",
        stride_in: StrideIn = "3x3",
        stem: Stem = "plain",
        ceil_pool: bool = False,
        width: float = 1.0,
    ) -> None:
        """Build stages of random weights.

        Args:
            depth: 18, 34, 50 or 101.
            in_channels: bands of the input.
            output_stride: 8, 16 or 32, the stride of the last features.
            multi_grid: rates of the three blocks of the last stage, times the rate of the stage itself:
                2 at output stride 16, 4 at 8. None gives all of them the stage's rate.
            first_block: rate of the first block of a dilated stage without a multi-grid.
            stride_in: strided convolution of a bottleneck.
            stem: convolutions in front of the max pooling.
            ceil_pool: round sizes up in the max pooling of the stem, as in Caffe.
            width: factor on every number of channels.
        """
        super().__init__()
        block, blocks = _DEPTHS[depth]
        widths = [scaled_channels(channels, width) for channels in (64, 128, 256, 512)]
        outputs = [block.expansion * channels for channels in widths]
        self.low_channels, self.high_channels = outputs[0], outputs[3]
        self.stage_channels = tuple(outputs)
        self.deep = stem == "deep"
        self.conv1, self.bn1 = conv_bn(in_channels, widths[0], 3 if self.deep else 7, stride=2)
        entering = widths[0]
        if self.deep:
            entering = 2 * widths[0]
            self.conv2, self.bn2 = conv_bn(widths[0], widths[0], 3)
            self.conv3, self.bn3 = conv_bn(widths[0], entering, 3)
        self.stem_channels = entering
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=ceil_pool)
        rate3, rate4 = max(1, 16 // output_stride), max(1, 32 // output_stride)
        rates3 = stage_rates(blocks[2], rate3, earlier=1, first_block=first_block)
        rates4 = stage_rates(blocks[3], rate4, earlier=rate3, first_block=first_block, grid=multi_grid)
        self.layer1 = resnet_stage(block, entering, widths[0], [1] * blocks[0], stride=1)
        self.layer2 = resnet_stage(block, outputs[0], widths[1], [1] * blocks[1], stride=2, stride_in=stride_in)
        self.layer3 = resnet_stage(block, outputs[1], widths[2], rates3, stride=2 // rate3, stride_in=stride_in)
        self.layer4 = resnet_stage(block, outputs[2], widths[3], rates4, stride=max(1, 2 // rate4), stride_in=stride_in)

    def stem(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 64, H / 2, W / 2), in front of the max pooling; 128 channels from a deep stem."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.deep:
            x = self.relu(self.bn2(self.conv2(x)))
            x = self.relu(self.bn3(self.conv3(x)))
        return x

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, C, H, W) -> outputs of the four stages, with `stage_channels` channels."""
        return self.behind(self.stem(x))

    def behind(self, stem: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outputs of the four stages, as `stages`, from the output of `stem`."""
        first = self.layer1(self.maxpool(stem))
        second = self.layer2(first)
        third = self.layer3(second)
        return first, second, third, self.layer4(third)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> low (N, 256, H / 4, W / 4) and high (N, 2048, H / OS, W / OS), sizes rounded up."""
        low, _, _, high = self.stages(x)
        return low, high
