"""ENet: Paszke, Chaurasia, Kim, Culurciello 2016, arXiv 1606.02147.

A small network of bottlenecks: features at an eighth of the size after the third block, and a decoder that puts values
back where the maxima of pooling were. Published weights come from programs that read the paper differently; a
`Convention` says how. Sizes that do not divide by 8 are rounded up at each pooling, as everywhere in this package.

authors: https://github.com/e-lab/ENet-training, train/models/encoder.lua and decoder.lua. davidtvs and davidtvs_prelu:
https://github.com/davidtvs/PyTorch-ENet, models/enet.py now and at commit 921e40c. iarunava:
https://github.com/iArunava/ENet-Real-Time-Semantic-Segmentation, models/.
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.layers import BatchNorm2d, initialise, scaled_channels, set_batch_norm
from pipeline.models.network import Network, Options, crop

POOLED = 3
"""Channels of the image that the initial block pools beside its convolution."""
Slopes = Literal["relu", "single", "channel"]
"""Slopes of an activation below zero: ReLU has none, PReLU one for all channels or one per channel."""
Middle = int | Literal["asymmetric"]
"""Middle convolution of a bottleneck: a 3x3 of this dilation, or a pair of 5x1 and 1x5."""
DILATED: tuple[Middle, ...] = (1, 2, "asymmetric", 4, 1, 8, "asymmetric", 16)
"""Middle convolutions of stages 2 (behind its first block) and 3. Table 1."""


@dataclass(frozen=True, slots=True)
class Convention:
    """Reading of the paper by one program: what the shapes of its tensors leave open, and what they do not."""

    inner: Slopes
    """Activations inside the bottlenecks, where they are not ReLU."""
    outer: Slopes
    """Activations behind their sums."""
    initial: Slopes
    """Activation of the initial block."""
    decoder_relu: bool
    """The decoder has ReLU."""
    tied: bool = False
    """One activation serves all places of a bottleneck, but for asymmetric ones."""
    expand_activation: bool = False
    """Activation between the last batch norm and the sum of a bottleneck that does not upsample."""
    up_expand_activation: bool = False
    """Likewise of one that upsamples."""
    asymmetric_norm: bool = False
    """Batch norm and activation between the two convolutions of an asymmetric pair."""
    vertical_first: bool = False
    """The pair is 5x1, 1x5; otherwise 1x5, 5x1."""
    middle_bias: bool = False
    """Biases of 3x3 convolutions inside bottlenecks."""
    pair_bias: bool = False
    """Bias of the second convolution of a pair."""
    initial_bias: bool = False
    """Bias of the first convolution."""
    initial_norm_all: bool = True
    """Batch norm of the initial block covers the pooled image too."""
    initial_pool: int = 3
    """Kernel of the initial block's pooling, stride 2."""
    down_pool: int = 2
    """Kernel of the other poolings."""
    reduce_strides: bool = True
    """A downsampling bottleneck strides in its first convolution, 2x2; otherwise in its middle one."""
    quarter_of_output: bool = False
    """Bottlenecks that change the number of channels have a quarter of the new number inside, not of the old one."""
    up_kernel: int = 3
    """Kernel of transposed convolutions inside bottlenecks."""
    up_bias: bool = False
    """Biases of transposed convolutions inside bottlenecks."""
    up_transposed: bool = False
    """The 1x1 convolutions of upsampling branches are transposed ones: their weights are (in, out)."""
    up_main_norm: bool = True
    """The main branch of upsampling has batch norm and no bias; otherwise a bias alone."""
    last_kernel: int = 3
    """Kernel of the transposed convolution that gives the scores."""
    last_bias: bool = False
    """Its bias."""
    decoder_dropout: float = 0.1
    """Probability of a channel to be zeroed in the decoder's bottlenecks."""
    eps: float = 1e-5
    """Epsilon of batch norm."""


CONVENTIONS = {
    "authors": Convention(
        inner="channel",
        outer="channel",
        initial="channel",
        decoder_relu=True,
        middle_bias=True,
        pair_bias=True,
        initial_bias=True,
        initial_pool=2,
        quarter_of_output=True,
        up_bias=True,
        last_kernel=2,
        last_bias=True,
        decoder_dropout=0.0,
        eps=1e-3,
    ),
    "davidtvs": Convention(
        inner="single",
        outer="single",
        initial="single",
        decoder_relu=True,
        expand_activation=True,
        asymmetric_norm=True,
        vertical_first=True,
        up_kernel=2,
    ),
    "davidtvs_prelu": Convention(
        inner="single",
        outer="channel",
        initial="channel",
        decoder_relu=False,
        expand_activation=True,
        up_expand_activation=True,
        asymmetric_norm=True,
        vertical_first=True,
        down_pool=3,
    ),
    "iarunava": Convention(
        inner="single",
        outer="single",
        initial="channel",
        decoder_relu=True,
        tied=True,
        middle_bias=True,
        initial_bias=True,
        initial_norm_all=False,
        initial_pool=2,
        reduce_strides=False,
        up_transposed=True,
        up_main_norm=False,
    ),
}
"""Conventions by name."""


class ENetOptions(Options):
    """Options; the defaults are the authors' network."""

    convention: Literal["authors", "davidtvs", "davidtvs_prelu", "iarunava"] = Field(
        "authors", description="Program whose reading of the paper is followed: biases, activations, kernels, widths."
    )
    encoder_relu: bool | None = Field(
        None, description="ReLU in place of PReLU in the encoder; unset: the convention's, PReLU in all four."
    )
    decoder_relu: bool | None = Field(
        None, description="ReLU in place of PReLU in the decoder; unset: the convention's, PReLU in davidtvs_prelu."
    )
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")


def activation(slopes: Slopes, channels: int) -> nn.Module:
    """ReLU, or PReLU with a slope for all channels or for each."""
    return nn.ReLU() if slopes == "relu" else nn.PReLU(channels if slopes == "channel" else 1)


def pool(x: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Maxima and their indices, (N, C, H, W) -> (N, C, ceil(H / 2), ceil(W / 2)); kernel 2, or 3 with padding."""
    maxima, indices = F.max_pool2d(x, kernel, 2, kernel // 3, ceil_mode=kernel == 2, return_indices=True)
    return maxima, indices


def transposed(channels: int, out_channels: int, kernel: int, *, bias: bool) -> nn.ConvTranspose2d:
    """Transposed convolution that doubles both sides; kernel 2 or 3."""
    return nn.ConvTranspose2d(
        channels, out_channels, kernel, stride=2, padding=kernel // 3, output_padding=kernel // 3, bias=bias
    )


class EvenConv2d(nn.Conv2d):
    """2x2 convolution of stride 2 that rounds odd sides up, with zeros behind the last row and column."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, ceil(H / 2), ceil(W / 2))."""
        return super().forward(F.pad(x, (0, x.size(3) % 2, 0, x.size(2) % 2)))


class InitialBlock(nn.Module):
    """Convolution of stride 2 beside pooling of the image. Fig. 2a.

    Three channels are pooled whatever the number of bands: channel i is the mean of bands i, i + 3, ..., and of fewer
    than three bands the last are repeated, so equal bands give what three of them give.
    """

    def __init__(self, in_channels: int, channels: int, slopes: Slopes, how: Convention) -> None:
        super().__init__()
        filters = channels - POOLED
        self.kernel = how.initial_pool
        self.conv = nn.Conv2d(in_channels, filters, 3, stride=2, padding=1, bias=how.initial_bias)
        self.norm = BatchNorm2d(channels if how.initial_norm_all else filters)
        self.act = activation(slopes, channels)
        self.norm_all = how.initial_norm_all

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, channels, ceil(H / 2), ceil(W / 2))."""
        bands = x.size(1)
        image = x
        if bands != POOLED:
            firsts = [min(index, bands - 1) for index in range(POOLED)]
            image = torch.cat([x[:, first::POOLED].mean(1, keepdim=True) for first in firsts], 1)
        pooled, _ = pool(image, self.kernel)
        if self.norm_all:
            joined = self.norm(torch.cat([self.conv(x), pooled], 1))
        else:
            joined = torch.cat([self.norm(self.conv(x)), pooled], 1)
        return cast(Tensor, self.act(joined))


@dataclass(frozen=True, slots=True)
class Style:
    """What bottlenecks of one half of the network have in common."""

    how: Convention
    inner: Slopes
    outer: Slopes
    dropout: float
    """Probability of a channel of a branch to be zeroed."""


def make_style(how: Convention, dropout: float, *, relu: bool) -> Style:
    """Style with ReLU, or with the convention's activations."""
    return Style(how, "relu" if relu else how.inner, "relu" if relu else how.outer, dropout)


def convolved(*convolutions: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    """Convolutions, then batch norm."""
    return nn.Sequential(*convolutions, BatchNorm2d(convolutions[-1].out_channels))


def middle_steps(channels: int, middle: Middle, how: Convention, *, stride: int = 1) -> list[nn.Sequential]:
    """The middle of a branch: a 3x3 convolution, or a pair of 5x1 and 1x5."""
    if middle != "asymmetric":
        conv = nn.Conv2d(channels, channels, 3, stride, padding=middle, dilation=middle, bias=how.middle_bias)
        return [convolved(conv)]
    shapes = ((5, 1), (1, 5)) if how.vertical_first else ((1, 5), (5, 1))
    first, second = (
        nn.Conv2d(channels, channels, shape, padding=(shape[0] // 2, shape[1] // 2), bias=bias)
        for shape, bias in zip(shapes, (False, how.pair_bias), strict=True)
    )
    return [convolved(first), convolved(second)] if how.asymmetric_norm else [convolved(first, second)]


class ENetBottleneck(nn.Module):
    """Branch of convolutions, added to the input. Fig. 2b.

    `branch` holds the convolutions with their batch norms, `inner` the activations behind them, `outer` the one behind
    the sum, which also serves inside where activations are tied.
    """

    def __init__(self, branch: list[nn.Sequential], style: Style, *, activated: int, tied: bool = False) -> None:
        """Put a branch together; the first `activated` of its steps have an activation."""
        super().__init__()
        widths = [next(norm.num_features for norm in step if isinstance(norm, BatchNorm2d)) for step in branch]
        self.branch = nn.ModuleList(branch)
        self.activated = activated
        self.inner = nn.ModuleList(activation(style.inner, width) for width in ([] if tied else widths[:activated]))
        self.outer = activation(style.outer, widths[-1])
        self.dropout = nn.Dropout2d(style.dropout)

    def side(self, x: Tensor) -> Tensor:
        """The branch of convolutions."""
        for index, step in enumerate(self.branch):
            x = step(x)
            if index < self.activated:
                x = (self.inner[index] if len(self.inner) else self.outer)(x)
        return cast(Tensor, self.dropout(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same."""
        return cast(Tensor, self.outer(x + self.side(x)))


def regular(channels: int, middle: Middle, style: Style) -> ENetBottleneck:
    """Bottleneck that keeps size and channels."""
    how, inside = style.how, quarter(channels)
    branch = [
        convolved(nn.Conv2d(channels, inside, 1, bias=False)),
        *middle_steps(inside, middle, how),
        convolved(nn.Conv2d(inside, channels, 1, bias=False)),
    ]
    activated = len(branch) - (not how.expand_activation)
    return ENetBottleneck(branch, style, activated=activated, tied=how.tied and middle != "asymmetric")


def quarter(channels: int) -> int:
    """Channels inside a bottleneck: a quarter, at least 1."""
    return max(1, channels // 4)


class DownBottleneck(ENetBottleneck):
    """Bottleneck that halves both sides; its main branch pools and appends channels of zeros. Sec. 3."""

    def __init__(self, in_channels: int, channels: int, style: Style) -> None:
        how = style.how
        inside = quarter(channels if how.quarter_of_output else in_channels)
        if how.reduce_strides:
            reduce: nn.Conv2d = EvenConv2d(in_channels, inside, 2, 2, bias=False)
        else:
            reduce = nn.Conv2d(in_channels, inside, 1, bias=False)
        middle = middle_steps(inside, 1, how, stride=1 if how.reduce_strides else 2)
        branch = [convolved(reduce), *middle, convolved(nn.Conv2d(inside, channels, 1, bias=False))]
        super().__init__(branch, style, activated=2 + how.expand_activation, tied=how.tied)
        self.kernel, self.appended = how.down_pool, channels - in_channels

    def pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, H, W) -> (N, channels, ceil(H / 2), ceil(W / 2)), and the indices of the maxima."""
        maxima, indices = pool(x, self.kernel)
        main = F.pad(maxima, (0, 0, 0, 0, 0, self.appended))
        return self.outer(main + self.side(x)), indices


class UpBottleneck(ENetBottleneck):
    """Bottleneck that doubles both sides; its main branch puts values where the maxima were. Sec. 3."""

    def __init__(self, in_channels: int, channels: int, style: Style) -> None:
        how = style.how
        inside = quarter(channels if how.quarter_of_output else in_channels)
        pointwise = nn.ConvTranspose2d if how.up_transposed else nn.Conv2d
        branch = [
            convolved(pointwise(in_channels, inside, 1, bias=False)),
            convolved(transposed(inside, inside, how.up_kernel, bias=how.up_bias)),
            convolved(pointwise(inside, channels, 1, bias=False)),
        ]
        super().__init__(branch, style, activated=2 + how.up_expand_activation, tied=how.tied)
        main = nn.Conv2d(in_channels, channels, 1, bias=not how.up_main_norm)
        self.main = convolved(main) if how.up_main_norm else nn.Sequential(main)

    def unpooled(self, x: Tensor, indices: Tensor, size: torch.Size) -> Tensor:
        """(N, in_channels, h, w) -> (N, channels, H, W) of `size`, the input of the pooling that gave the indices."""
        height, width = size[2:]
        main = F.max_unpool2d(self.main(x), indices, [2, 2], output_size=[height, width])
        return cast(Tensor, self.outer(main + self.side(x)[:, :, :height, :width]))


class ENet(Network):
    """ENet; logits have the size of the input, which may be any."""

    output_strides = (8,)
    stride = 1
    align_corners = False

    def __init__(self, num_classes: int, options: ENetOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always 8
        how, width = CONVENTIONS[options.convention], options.width_multiplier
        first = max(scaled_channels(16, width), POOLED + 1)
        narrow = max(scaled_channels(64, width), first)
        wide = max(scaled_channels(128, width), narrow)
        relu = bool(options.encoder_relu)
        early, late = (make_style(how, dropout, relu=relu) for dropout in (0.01, 0.1))
        decoder_relu = how.decoder_relu if options.decoder_relu is None else options.decoder_relu
        decoder = make_style(how, how.decoder_dropout, relu=decoder_relu)
        self.initial = InitialBlock(in_channels, first, "relu" if relu else how.initial, how)
        self.down1 = DownBottleneck(first, narrow, early)
        self.stage1 = nn.Sequential(*(regular(narrow, 1, early) for _ in range(4)))
        self.down2 = DownBottleneck(narrow, wide, late)
        self.stage2 = nn.Sequential(*(regular(wide, middle, late) for middle in DILATED))
        self.stage3 = nn.Sequential(*(regular(wide, middle, late) for middle in DILATED))
        self.up4 = UpBottleneck(wide, narrow, decoder)
        self.stage4 = nn.Sequential(*(regular(narrow, 1, decoder) for _ in range(2)))
        self.up5 = UpBottleneck(narrow, first, decoder)
        self.stage5 = nn.Sequential(regular(first, 1, decoder))
        self.feature_channels = first
        self.logits = transposed(first, num_classes, how.last_kernel, bias=how.last_bias)
        initialise(self, *self.last_layers())
        set_batch_norm(self, eps=how.eps)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> features (N, 16, ceil(H / 2), ceil(W / 2)) and logits (N, K, H, W)."""
        halved = self.initial(x)
        shallow, indices1 = self.down1.pooled(halved)
        shallow = self.stage1(shallow)
        deep, indices2 = self.down2.pooled(shallow)
        deep = self.stage3(self.stage2(deep))
        middle = self.stage4(self.up4.unpooled(deep, indices2, shallow.shape))
        features = self.stage5(self.up5.unpooled(middle, indices1, halved.shape))
        return features, crop(self.logits(features), x, self.stride)
