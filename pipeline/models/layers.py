"""Building blocks of several networks: convolutions with batch norm, ASPP, initial weights.

Tensors are (N, C, H, W) float. 3x3 convolutions pad with zeros by their dilation, so stride 1 keeps H and W and
stride 2 gives the rounded-up half.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Separable = bool | Literal["plain"]
"""Depthwise separable 3x3 convolutions: no; yes, with batch norm and ReLU between the halves; or "plain", without."""


def scaled_channels(channels: int, width: float) -> int:
    """Channels times width, at least 1."""
    return max(1, round(channels * width))


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that also trains on a single value per channel, as from image pooling of a batch of one.

    A single value has no variance, so the running statistics are used and not updated.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if self.training and x.numel() == x.size(1):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def conv_bn(
    in_channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution without bias, then batch norm: two modules for an `nn.Sequential`."""
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    return [conv, BatchNorm2d(out_channels)]


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 1, *, dilation: int = 1) -> nn.Sequential:
    """Convolution of stride 1, batch norm, ReLU."""
    return nn.Sequential(*conv_bn(in_channels, out_channels, kernel, dilation=dilation), nn.ReLU(inplace=True))


def conv_bn_prelu(
    in_channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, batch norm, PReLU with a slope per channel."""
    conv = conv_bn(in_channels, out_channels, kernel, stride=stride, groups=groups)
    return nn.Sequential(*conv, nn.PReLU(out_channels))


def bn_prelu(channels: int) -> nn.Sequential:
    """Batch norm, then PReLU with a slope per channel for negative values."""
    return nn.Sequential(BatchNorm2d(channels), nn.PReLU(channels))


def separable_conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 3, *, dilation: int = 1) -> nn.Sequential:
    """Atrous separable convolution: depthwise, then pointwise, each with batch norm and ReLU.

    Chen 2018 (arXiv 1802.02611), sec. 3.1 and 3.2.
    """
    return nn.Sequential(
        *conv_bn(in_channels, in_channels, kernel, dilation=dilation, groups=in_channels),
        nn.ReLU(inplace=True),
        *conv_bn(in_channels, out_channels),
        nn.ReLU(inplace=True),
    )


def plain_separable_conv_bn_relu(in_channels: int, out_channels: int, *, dilation: int = 1) -> nn.Sequential:
    """Atrous separable convolution without batch norm between its halves: depthwise 3x3, pointwise, batch norm, ReLU.

    The `SeparableConv2d` of segmentation_models.pytorch, decoders/deeplabv3/decoder.py.
    """
    depthwise = nn.Conv2d(
        in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
    )
    return nn.Sequential(depthwise, *conv_bn(in_channels, out_channels), nn.ReLU(inplace=True))


def conv3x3_bn_relu(
    in_channels: int, out_channels: int, *, dilation: int = 1, separable: Separable = False
) -> nn.Sequential:
    """3x3 convolution of stride 1, batch norm, ReLU, in one of the three kinds of `Separable`."""
    if separable == "plain":
        return plain_separable_conv_bn_relu(in_channels, out_channels, dilation=dilation)
    make = separable_conv_bn_relu if separable else conv_bn_relu
    return make(in_channels, out_channels, 3, dilation=dilation)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image-level features. Chen 2017 (arXiv 1706.05587), sec. 3.3.

    A 1x1 convolution, one 3x3 per rate and the mean of the whole image in parallel, then projected by a 1x1.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rates: tuple[int, ...], separable: Separable) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                conv_bn_relu(in_channels, out_channels),
                *(conv3x3_bn_relu(in_channels, out_channels, dilation=rate, separable=separable) for rate in rates),
            ]
        )
        self.image = conv_bn_relu(in_channels, out_channels)
        self.project = conv_bn_relu((len(self.branches) + 1) * out_channels, out_channels)
        # The authors' code keeps 0.9 here: tensorflow/models, research/deeplab/model.py.
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        # Bilinear upsampling of a single cell is constant.
        image = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, x.size(2), x.size(3))
        features = torch.cat([*(branch(x) for branch in self.branches), image], dim=1)
        return cast(Tensor, self.dropout(self.project(features)))


class Downsampler(nn.Module):
    """Half the size: a 3x3 convolution of stride 2 beside a max pooling, then batch norm and ReLU.

    Romera 2018 (ERFNet, IEEE T-ITS 19-1), after ENet's first block (arXiv 1606.02147); LEDNet and ESNet have the same.
    An input with as many channels as the output or more, such as 16 bands, is not pooled.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pooled = in_channels if in_channels < out_channels else 0
        self.conv = nn.Conv2d(in_channels, out_channels - self.pooled, 3, stride=2, padding=1)
        self.bn = BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h / 2, w / 2), rounded up."""
        halves = [self.conv(x)]
        if self.pooled:
            halves.append(F.max_pool2d(x, 2, ceil_mode=True))
        return F.relu(self.bn(torch.cat(halves, dim=1)))


def factorised_conv(
    channels: int, kernel: int = 3, *, dilation: int = 1, vertical_first: bool = True
) -> list[nn.Module]:
    """Square convolution as a column and a row with ReLU between, both with bias: three modules."""
    column = nn.Conv2d(channels, channels, (kernel, 1), padding=(dilation * (kernel // 2), 0), dilation=(dilation, 1))
    row = nn.Conv2d(channels, channels, (1, kernel), padding=(0, dilation * (kernel // 2)), dilation=(1, dilation))
    first, second = (column, row) if vertical_first else (row, column)
    return [first, nn.ReLU(inplace=True), second]


def factorised_pair(channels: int, kernel: int = 3, *, dilation: int = 1, vertical_first: bool = True) -> nn.Sequential:
    """Non-bottleneck of ERFNet without its sum: two factorised convolutions, the second dilated, with batch norm."""
    return nn.Sequential(
        *factorised_conv(channels, kernel, vertical_first=vertical_first),
        BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        *factorised_conv(channels, kernel, dilation=dilation, vertical_first=vertical_first),
        BatchNorm2d(channels),
    )


def initialise(network: nn.Module, *logits: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Initial weights, from torch's global random generator.

    Convolutions: He 2015 (arXiv 1502.01852), normal, fan out, transposed ones fan in, whose axes are swapped; biases 0.
    Batch norm: weight 1, bias 0. Layers that give `logits` have no ReLU behind them: normal with deviation 0.01, so
    training starts from almost equal scores.
    """
    if logits[0].weight.is_meta:
        return  # no memory to fill, and torch would spend a second on importing its decompositions
    for module in network.modules():
        # Subclasses of transposed convolutions, as FCN's bilinear upsampling, have initial weights of their own.
        if isinstance(module, nn.Conv2d) or type(module) is nn.ConvTranspose2d:
            if module in logits:
                nn.init.normal_(module.weight, std=0.01)
            else:
                transposed = isinstance(module, nn.ConvTranspose2d)
                mode: Literal["fan_in", "fan_out"] = "fan_in" if transposed else "fan_out"
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_batch_norm(network: nn.Module, *, eps: float) -> None:
    """Set the epsilon of every batch norm of a network, which is part of a checkpoint's training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps


def widen(weight: Tensor, in_channels: int) -> Tensor:
    """Weight of a first convolution for another number of bands, from the weight for three.

    A single band gets the sum of the three filters. Otherwise band i gets the filter of channel i mod 3, scaled by
    3 / bands, so equal bands give the response of the three, exactly for multiples of three. The rule is that of
    segmentation_models.pytorch: encoders/_utils.py, `patch_first_conv`.

    Args:
        weight: (out, 3, k, k).
        in_channels: bands, 1 to 16.

    Returns:
        (out, in_channels, k, k); the same tensor when it has that many bands.
    """
    if weight.size(1) == in_channels:
        return weight
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    bands = torch.arange(in_channels) % weight.size(1)
    return weight[:, bands] * (weight.size(1) / in_channels)
