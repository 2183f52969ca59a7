"""MobileNetV2 with dilation in place of its last strides. Sandler 2018 (arXiv 1801.04381), table 2.

It ends with the 320 channels in front of the classification head, as in DeepLab (sec. 6.3 there). Tensors have
torchvision's names, so its published ImageNet weights fit by name.
"""

from torch import Tensor, nn

from pipeline.models.layers import conv_bn

_SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, repeats and stride of each row of the paper's table."""

LOW_LEVEL = 3
"""Index in `features` of the last block at stride 4."""


def scaled_to_multiple(channels: int, width: float, multiple: int = 8) -> int:
    """Channels times width, to the nearest multiple, at least one of it and never more than 10 % too few.

    As in tensorflow/models, research/slim/nets/mobilenet/conv_blocks.py, `_make_divisible`.
    """
    wanted = channels * width
    rounded = max(multiple, int(wanted + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * wanted else rounded


def conv_bn_relu6(
    in_channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU6."""
    layers = conv_bn(in_channels, out_channels, kernel, stride=stride, dilation=dilation, groups=groups)
    return nn.Sequential(*layers, nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expansion by a 1x1, depthwise filter, linear projection by a 1x1; a shortcut where the shapes agree."""

    def __init__(
        self, in_channels: int, out_channels: int, *, expansion: int, stride: int, dilation: int, kernel: int = 3
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *([conv_bn_relu6(in_channels, wide)] if expansion > 1 else []),
            conv_bn_relu6(wide, wide, kernel, stride=stride, dilation=dilation, groups=wide),
            *conv_bn(wide, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, ceil(h / stride), ceil(w / stride))."""
        filtered: Tensor = self.conv(x)
        return x + filtered if self.shortcut else filtered


class MobileNetV2(nn.Module):
    """Backbone with features at stride 4 and at the output stride.

    Weights trained at output stride 16 give the same features at 8 on a denser grid: `high` at 16 is every second row
    and column of `high` at 8.
    """

    def __init__(self, *, in_channels: int, output_stride: int, width: float, multiple: int = 8) -> None:
        """Build blocks of random weights.

        Args:
            in_channels: bands of the input.
            output_stride: 8 or 16, the stride of the last features.
            width: factor on every number of channels.
            multiple: every number of channels is a multiple of it.
        """
        super().__init__()
        channels = scaled_to_multiple(32, width, multiple)
        blocks: list[nn.Module] = [conv_bn_relu6(in_channels, channels, 3, stride=2)]
        reached, rate = 2, 1
        for expansion, out_channels, repeats, first_stride in _SETTINGS:
            for stride in (first_stride, *[1] * (repeats - 1)):
                # A block without its stride keeps its rate; only the blocks behind it have a grid twice as dense.
                block_stride = stride if reached * stride <= output_stride else 1
                following = scaled_to_multiple(out_channels, width, multiple)
                blocks.append(
                    InvertedResidual(channels, following, expansion=expansion, stride=block_stride, dilation=rate)
                )
                channels, reached, rate = following, reached * block_stride, rate * stride // block_stride
        self.features = nn.Sequential(*blocks)
        self.low_channels, self.high_channels = scaled_to_multiple(24, width, multiple), channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> low (N, 24 * width, H / 4, W / 4), high (N, 320 * width, H / OS, W / OS), rounded up."""
        low = self.features[: LOW_LEVEL + 1](x)
        return low, self.features[LOW_LEVEL + 1 :](low)
