"""Xception-41, -65 and -71 of DeepLab: modified aligned Xception with dilation in place of its last strides.

Chen 2018 (arXiv 1802.02611), sec. 3.2 and fig. 4; numbers of units from tensorflow/models,
research/deeplab/core/xception.py. Separable convolutions stride, there is no max pooling. Ports of Xception-65 have the
same tensors but different functions, so a checkpoint's options name its `XceptionLayout`.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.layers import conv_bn, scaled_channels, set_batch_norm

XceptionLayout = Literal["tensorflow", "timm", "jfzhang"]
"""Source of an Xception, among those with the same tensors.

tensorflow: the authors' code, named above. Low-level features are taken in front of the ReLU.
timm: rwightman's port, timm/models/xception_aligned.py. Low-level features are taken behind that ReLU.
jfzhang: github.com/jfzhang95/pytorch-deeplab-xception. A different network: its in-place ReLUs also change the
shortcuts, the last unit has them in front, and the low-level features are the input of the second unit, with half the
channels.
"""

Triple = tuple[int, int, int]
Shortcut = Literal["conv", "sum", "none"]
"""Shortcut of a unit: a projection of its input, the input itself, or none."""

BATCH_NORM_EPS = {"tensorflow": 1e-3, "timm": 1e-3, "jfzhang": 1e-5}

SHORT_ENTRY = ((128, 2), (256, 2), (728, 2))
ENTRIES = {41: SHORT_ENTRY, 65: SHORT_ENTRY, 71: ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))}
"""Channels and stride of each unit of the entry flow, by depth."""

MIDDLE_UNITS = {41: 8, 65: 16, 71: 16}
MIDDLE, EXIT, LAST = (728, 728, 728), (728, 1024, 1024), (1536, 1536, 2048)

LOW_STRIDE = 4
"""Stride of the low-level features: they are taken in the unit that strides further."""


def flow(depth: int) -> list[tuple[Triple, int, Shortcut]]:
    """Channels of the three convolutions, stride and shortcut of every unit, in their order."""
    entry: list[tuple[Triple, int, Shortcut]] = [
        ((wide, wide, wide), stride, "conv") for wide, stride in ENTRIES[depth]
    ]
    middle: list[tuple[Triple, int, Shortcut]] = [(MIDDLE, 1, "sum")] * MIDDLE_UNITS[depth]
    return [*entry, *middle, (EXIT, 2, "conv"), (LAST, 1, "none")]


class SeparableConv(nn.Module):
    """3x3 depthwise and 1x1 pointwise convolution, each with batch norm.

    `relu_inside` puts a ReLU behind each batch norm; otherwise there is one in front of the whole.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, dilation: int, relu_inside: bool) -> None:
        super().__init__()
        self.relu_inside = relu_inside
        self.depthwise, self.depthwise_bn = conv_bn(
            in_channels, in_channels, 3, stride=stride, dilation=dilation, groups=in_channels
        )
        self.pointwise, self.pointwise_bn = conv_bn(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, ceil(h / stride), ceil(w / stride))."""
        inside = self.relu_inside
        x = self.depthwise_bn(self.depthwise(x if inside else F.relu(x)))
        x = self.pointwise_bn(self.pointwise(F.relu(x) if inside else x))
        return F.relu(x) if inside else x


class Unit(nn.Module):
    """Three separable convolutions, the last one strided, around a shortcut."""

    def __init__(
        self,
        in_channels: int,
        channels: Triple,
        *,
        shortcut: Shortcut,
        stride: int = 1,
        dilation: int = 1,
        relu_inside: bool = False,
        relu_first: bool = False,
    ) -> None:
        """Build convolutions of random weights.

        Args:
            in_channels: of the input.
            channels: output of each convolution.
            shortcut: added to their output.
            stride: of the last convolution and the shortcut.
            dilation: rate of all three.
            relu_inside: as `SeparableConv`.
            relu_first: apply a ReLU to the input of the shortcut too.
        """
        super().__init__()
        self.sums, self.relu_first = shortcut == "sum", relu_first
        entering = (in_channels, *channels[:2])
        self.convs = nn.ModuleList(
            SeparableConv(before, after, stride=own, dilation=dilation, relu_inside=relu_inside)
            for before, after, own in zip(entering, channels, (1, 1, stride), strict=True)
        )
        self.shortcut = nn.Sequential(*conv_bn(in_channels, channels[2], stride=stride)) if shortcut == "conv" else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input of the last convolution, and output of the unit.

        (N, in_channels, h, w) -> (N, channels[1], h, w), (N, channels[2], ceil(h / stride), ceil(w / stride)).
        """
        first, second, last = self.convs
        inner: Tensor = second(first(x))
        filtered: Tensor = last(inner)
        if self.shortcut is None and not self.sums:
            return inner, filtered
        x = F.relu(x) if self.relu_first else x
        return inner, filtered + (x if self.shortcut is None else self.shortcut(x))


class Xception(nn.Module):
    """Backbone with features at stride 4 and at the output stride.

    Weights trained at output stride 16 give the same features at 8 on a denser grid: `high` at 16 is every second row
    and column of `high` at 8. (The source of `jfzhang` omits the rate of one convolution at 8.)
    """

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int,
        output_stride: int,
        layout: XceptionLayout = "tensorflow",
        width: float = 1.0,
    ) -> None:
        """Build units of random weights.

        Args:
            depth: 41, 65 or 71.
            in_channels: bands of the input.
            output_stride: 8, 16 or 32, the stride of the last features.
            layout: source of the weights, among networks with the same tensors.
            width: factor on every number of channels.
        """
        super().__init__()
        self.layout = layout
        first, channels = scaled_channels(32, width), scaled_channels(64, width)
        self.stem = nn.Sequential(
            *conv_bn(in_channels, first, 3, stride=2),
            nn.ReLU(inplace=True),
            *conv_bn(first, channels, 3),
            nn.ReLU(inplace=True),
        )
        units: list[Unit] = []
        reached, rate = 2, 1
        for wide, stride, shortcut in flow(depth):
            if reached == LOW_STRIDE and stride > 1:
                self.low_unit = len(units)
                self.low_channels = channels if layout == "jfzhang" else scaled_channels(wide[1], width)
            # A unit without its stride keeps its rate; only the units behind it have a grid twice as dense.
            unit_stride = stride if reached * stride <= output_stride else 1
            scaled = (scaled_channels(wide[0], width), scaled_channels(wide[1], width), scaled_channels(wide[2], width))
            unit = Unit(
                channels,
                scaled,
                shortcut=shortcut,
                stride=unit_stride,
                dilation=rate,
                relu_inside=shortcut == "none" and layout != "jfzhang",
                relu_first=layout == "jfzhang",
            )
            units.append(unit)
            channels, reached, rate = scaled[2], reached * unit_stride, rate * stride // unit_stride
        self.units = nn.ModuleList(units)
        self.high_channels = channels
        set_batch_norm(self, eps=BATCH_NORM_EPS[layout])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> low (N, 256, H / 4, W / 4) and high (N, 2048, H / OS, W / OS), sizes rounded up."""
        x = low = self.stem(x)
        for number, unit in enumerate(self.units):
            inner, output = unit(x)
            if number == self.low_unit:
                low = self._low(x, inner)
            x = output
        return low, F.relu(x)  # changes nothing but for `jfzhang`

    def _low(self, x: Tensor, inner: Tensor) -> Tensor:
        """Low-level features, from the input of the unit that leaves stride 4 and the input of its last convolution."""
        if self.layout == "jfzhang":
            return F.relu(x)
        return F.relu(inner) if self.layout == "timm" else inner
