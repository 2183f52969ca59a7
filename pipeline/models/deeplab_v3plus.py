"""DeepLab v3+: Chen, Zhu, Papandreou, Schroff, Adam 2018, arXiv 1802.02611.

A dilated backbone and ASPP recognise classes at a coarse stride; the decoder refines their boundaries with features at
stride 4. Weights trained at output stride 16 also run at 8. Not in the paper: an optional second decoder step at stride
2, for objects of a few pixels in small images.
"""

from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.models.backbones.efficientnet_lite import EfficientNetLite
from pipeline.models.backbones.mobilenet_v2 import MobileNetV2
from pipeline.models.backbones.resnet import FirstBlock, ResNet, StrideIn
from pipeline.models.backbones.xception import Xception, XceptionLayout
from pipeline.models.layers import ASPP, Separable, conv3x3_bn_relu, conv_bn_relu, initialise
from pipeline.models.network import Network, Options, Tap, crop, crop_taps, make_taps

_Rate = Annotated[int, Field(ge=1, le=64)]
Backbone = Literal[
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "mobilenet_v2",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "xception41",
    "xception65",
    "xception71",
]

_RESNET_OPTIONS = frozenset({"multi_grid", "first_block", "stride_in", "ceil_pool", "fine_channels"})
XCEPTION_OPTIONS = frozenset({"xception_layout"})
_EFFICIENTNET = (_RESNET_OPTIONS | XCEPTION_OPTIONS) - {"fine_channels"}
WITHOUT_EFFECT = {
    "efficientnet_lite0": _EFFICIENTNET,
    "efficientnet_lite1": _EFFICIENTNET,
    "efficientnet_lite2": _EFFICIENTNET,
    "mobilenet_v2": _RESNET_OPTIONS | XCEPTION_OPTIONS,
    "resnet18": XCEPTION_OPTIONS | {"stride_in", "multi_grid"},  # no 1x1, and two blocks where a multi-grid has three
    "resnet34": XCEPTION_OPTIONS | {"stride_in"},
    "resnet50": XCEPTION_OPTIONS,
    "resnet101": XCEPTION_OPTIONS,
    "xception41": _RESNET_OPTIONS,
    "xception65": _RESNET_OPTIONS,
    "xception71": _RESNET_OPTIONS,
}
"""Options without effect, by backbone."""


class DeepLabV3PlusOptions(Options):
    """Options; the defaults are the paper's ResNet-101 model.

    Public checkpoints differ from it, and from each other, in options that no tensor shape reveals.
    """

    backbone: Backbone = Field("resnet101", description="Feature extractor.")
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on the backbone's channels.")
    multi_grid: tuple[_Rate, _Rate, _Rate] | None = Field((1, 2, 4), description="ResNet: rates within the last stage.")
    first_block: FirstBlock = Field("earlier", description="ResNet: rate of a dilated stage's first block.")
    stride_in: StrideIn = Field("3x3", description="ResNet: strided convolution of a bottleneck.")
    ceil_pool: bool = Field(False, description="ResNet: the stem's max pooling rounds sizes up.")
    xception_layout: XceptionLayout = Field(
        "tensorflow", description="Xception: source, which decides the places of ReLUs and low-level features."
    )
    rates: tuple[_Rate, ...] = Field(
        (6, 12, 18), min_length=1, description="ASPP's rates at output stride 16; twice that at 8."
    )
    aspp_channels: int = Field(256, ge=1, le=4096, description="Channels of each ASPP branch and of their projection.")
    aspp_conv: bool = Field(False, description="One more 3x3 convolution behind ASPP.")
    decoder_channels: int = Field(256, ge=1, le=4096, description="Channels of the decoder's 3x3 convolutions.")
    decoder_convs: Literal[1, 2] = Field(2, description="3x3 convolutions of the decoder.")
    low_level_channels: int = Field(48, ge=1, le=4096, description="Channels of the stride-4 features after reduction.")
    separable: Separable = Field(
        False,
        description="Depthwise separable 3x3 convolutions in ASPP and decoder; plain: no batch norm in between.",
    )
    fine_channels: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="ResNet, EfficientNet: channels of a second decoder step, with features at stride 2; unset: none.",
    )
    align_corners: bool = Field(
        False, description="Alignment of features and logits when resized, as in F.interpolate."
    )

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> "DeepLabV3PlusOptions":
        if idle := sorted(WITHOUT_EFFECT[self.backbone] & self.model_fields_set):
            raise ValueError(f"{', '.join(idle)} has no effect with {self.backbone}")
        return self

    def build_backbone(
        self, *, in_channels: int, output_stride: int
    ) -> ResNet | MobileNetV2 | EfficientNetLite | Xception:
        """The backbone these options name, with random weights."""
        width = self.width_multiplier
        if self.backbone == "mobilenet_v2":
            return MobileNetV2(in_channels=in_channels, output_stride=output_stride, width=width)
        if self.backbone.startswith("efficientnet"):
            number = int(self.backbone[-1])
            return EfficientNetLite(number, in_channels=in_channels, output_stride=output_stride, width=width)
        depth = int(self.backbone.removeprefix("resnet").removeprefix("xception"))
        if self.backbone.startswith("xception"):
            return Xception(
                depth, in_channels=in_channels, output_stride=output_stride, layout=self.xception_layout, width=width
            )
        return ResNet(
            depth,
            in_channels=in_channels,
            output_stride=output_stride,
            multi_grid=None if self.backbone == "resnet18" else self.multi_grid,
            first_block=self.first_block,
            stride_in=self.stride_in,
            ceil_pool=self.ceil_pool,
            width=width,
        )


class Fine(nn.Module):
    """Second decoder step, from stride 4 to 2: features reduced, upsampled and joined with the stem's."""

    def __init__(self, coarse_channels: int, stem_channels: int, channels: int, options: DeepLabV3PlusOptions) -> None:
        super().__init__()
        self.align_corners = options.align_corners
        self.reduce = conv_bn_relu(coarse_channels, channels)
        self.convs = nn.Sequential(
            *(
                conv3x3_bn_relu(entering, channels, separable=options.separable)
                for entering in (channels + stem_channels, channels)
            )
        )

    def forward(self, coarse: Tensor, stem: Tensor) -> Tensor:
        """(N, coarse_channels, h, w) and (N, stem_channels, 2h, 2w) -> (N, channels, 2h, 2w)."""
        coarse = F.interpolate(self.reduce(coarse), stem.shape[2:], mode="bilinear", align_corners=self.align_corners)
        return cast(Tensor, self.convs(torch.cat([stem, coarse], dim=1)))


class DeepLabV3Plus(Network):
    """DeepLab v3+; logits at stride 4, or at stride 2 with a second decoder step."""

    output_strides = (16, 8)

    def __init__(
        self, num_classes: int, options: DeepLabV3PlusOptions, *, in_channels: int, output_stride: int
    ) -> None:
        super().__init__()
        self.align_corners = options.align_corners
        wide = options.decoder_channels
        self.backbone = options.build_backbone(in_channels=in_channels, output_stride=output_stride)
        denser, aspp_channels, separable = 16 // output_stride, options.aspp_channels, options.separable
        self.aspp = ASPP(
            self.backbone.high_channels,
            aspp_channels,
            rates=tuple(rate * denser for rate in options.rates),
            separable=separable,
        )
        self.aspp_conv = (
            conv3x3_bn_relu(aspp_channels, aspp_channels, separable=separable) if options.aspp_conv else nn.Identity()
        )
        self.reduce = conv_bn_relu(self.backbone.low_channels, options.low_level_channels)
        entering = [options.low_level_channels + aspp_channels, wide][: options.decoder_convs]
        self.decoder = nn.Sequential(*(conv3x3_bn_relu(channels, wide, separable=separable) for channels in entering))
        self.fine = (
            Fine(wide, self.backbone.stem_channels, options.fine_channels, options)
            if options.fine_channels and isinstance(self.backbone, ResNet | EfficientNetLite)
            else None
        )
        self.stride = 2 if self.fine else 4
        self.feature_channels = options.fine_channels or wide
        if isinstance(self.backbone, ResNet | EfficientNetLite):
            self.taps = make_taps(self.backbone.stem_channels, *self.backbone.stage_channels[:2])
        else:
            self.taps = (Tap(self.backbone.low_channels, 4),)
        self.logits = nn.Conv2d(self.feature_channels, num_classes, 1)
        initialise(self, *self.last_layers())

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the decoder's features and the logits, both at `stride`."""
        if self.fine is not None:
            return self.embed_and_tap(x)[:2]
        features = crop(self.decode(*self.backbone(x)), x, self.stride)
        return features, self.logits(features)

    def embed_and_tap(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """`embed`, and the stem and the first two stages of a ResNet or EfficientNet, of others the low features.

        These stay in memory until the end, so `embed` takes another way where it does not need them.
        """
        if isinstance(self.backbone, ResNet | EfficientNetLite):
            stem = self.backbone.stem(x)
            low, second, _, high = self.backbone.behind(stem)
            tapped = [stem, low, second]
        else:
            low, high = self.backbone(x)
            tapped = [low]
        features = self.decode(low, high)
        if self.fine is not None:
            features = self.fine(features, tapped[0])
        features = crop(features, x, self.stride)
        return features, self.logits(features), crop_taps(tapped, x, self.taps)

    def decode(self, low: Tensor, high: Tensor) -> Tensor:
        """The backbone's features -> the paper's decoder's, (N, decoder_channels, h, w) at stride 4."""
        coarse = self.aspp_conv(self.aspp(high))
        coarse = F.interpolate(coarse, low.shape[2:], mode="bilinear", align_corners=self.align_corners)
        return cast(Tensor, self.decoder(torch.cat([self.reduce(low), coarse], dim=1)))
