"""DeepLab v3: Chen, Papandreou, Schroff, Adam 2017, arXiv 1706.05587.

A backbone with dilation in place of its last strides, and one of two context modules: ASPP with image-level features,
or a cascade of copies of the last block with growing rates. Weights trained at output stride 16 also run at 8.
"""

from collections import OrderedDict
from typing import Annotated, Literal, cast

from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.models.backbones.efficientnet_lite import EfficientNetLite
from pipeline.models.backbones.mobilenet_v2 import MobileNetV2
from pipeline.models.backbones.resnet import Bottleneck, FirstBlock, ResNet, resnet_stage, stage_rates
from pipeline.models.fcn import fcn_head
from pipeline.models.layers import ASPP, conv_bn_relu, initialise, scaled_channels
from pipeline.models.network import Network, Options

_Rate = Annotated[int, Field(ge=1, le=64)]

Backbone = Literal[
    "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "mobilenet_v2", "resnet50", "resnet101"
]

_RESNET_OPTIONS = ("multi_grid", "first_block", "aux")
NO_EFFECT = {
    "aspp": ("blocks",),
    "cascade": ("rates", "aspp_channels", "head_conv"),
    "efficientnet_lite0": (*_RESNET_OPTIONS, "channels_multiple"),
    "efficientnet_lite1": (*_RESNET_OPTIONS, "channels_multiple"),
    "efficientnet_lite2": (*_RESNET_OPTIONS, "channels_multiple"),
    "mobilenet_v2": _RESNET_OPTIONS,
    "resnet50": ("channels_multiple",),
    "resnet101": ("channels_multiple",),
}
"""Options without effect, by mode or backbone."""


class DeepLabV3Options(Options):
    """Options; the defaults are the paper's ResNet-101 with ASPP.

    torchvision's networks have no multi-grid, `head_conv`, `aux` if trained with it, and output stride 8.
    segmentation_models.pytorch's have `head_conv`, no multi-grid, `first_block` "own", and `rates` of (12, 24, 36) at
    both output strides. TensorFlow's networks on MobileNetV2 have no `rates` (Sandler 2018, arXiv 1801.04381,
    sec. 6.3), 256 `aspp_channels` at every width, and `align_corners`: tensorflow/models, research/deeplab/model.py.
    """

    backbone: Backbone = Field("resnet101", description="Feature extractor.")
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")
    channels_multiple: Literal[1, 8] = Field(
        8, description="MobileNetV2: numbers of channels are multiples of this; TensorFlow's narrow DeepLabs have 1."
    )
    mode: Literal["aspp", "cascade"] = Field(
        "aspp", description="Context by parallel (aspp) or successive (cascade) convolutions."
    )
    blocks: int = Field(7, ge=4, le=7, description="Cascade: number of the last block; block 4 is the backbone's last.")
    multi_grid: tuple[_Rate, _Rate, _Rate] | None = Field(
        (1, 2, 4),
        description="ResNet: rates within block 4 and its copies. (1, 2, 1) is the paper's best for the cascade.",
    )
    first_block: FirstBlock = Field("earlier", description="ResNet: rate of a dilated stage's first block.")
    rates: tuple[_Rate, ...] = Field(
        (6, 12, 18),
        description="ASPP: rates at output stride 16, doubled at 8. Without any, a 1x1 and image pooling remain.",
    )
    aspp_channels: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Channels of each ASPP branch and of their projection; none: 256 times `width_multiplier`.",
    )
    head_conv: bool = Field(False, description="A 3x3 convolution behind the ASPP; the paper has none.")
    aux: bool = Field(False, description="ResNet: an auxiliary head on the third stage, for training only.")
    align_corners: bool = Field(False, description="Alignment of the logits when resized, as in F.interpolate.")

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> "DeepLabV3Options":
        if self.mode == "cascade" and not self.backbone.startswith("resnet"):
            raise ValueError(f"a cascade copies a block of ResNet; {self.backbone} has none")
        for choice in (self.mode, self.backbone):
            for name in NO_EFFECT.get(choice, ()):
                if name in self.model_fields_set:
                    raise ValueError(f"{name} has no effect with {choice}")
        return self

    def build_backbone(self, *, in_channels: int, output_stride: int) -> ResNet | MobileNetV2 | EfficientNetLite:
        """The backbone these options name, with random weights."""
        if self.backbone.startswith("efficientnet"):
            return EfficientNetLite(
                int(self.backbone[-1]),
                in_channels=in_channels,
                output_stride=output_stride,
                width=self.width_multiplier,
            )
        if self.backbone == "mobilenet_v2":
            return MobileNetV2(
                in_channels=in_channels,
                output_stride=output_stride,
                width=self.width_multiplier,
                multiple=self.channels_multiple,
            )
        return ResNet(
            {"resnet50": 50, "resnet101": 101}[self.backbone],
            in_channels=in_channels,
            output_stride=output_stride,
            multi_grid=self.multi_grid,
            first_block=self.first_block,
            width=self.width_multiplier,
        )


def cascade(channels: int, options: DeepLabV3Options, *, output_stride: int) -> "OrderedDict[str, nn.Module]":
    """Blocks 5 to 7 by name: copies of block 4, each with twice the rate of the block before. Sec. 3.2.

    They have stride 1 and keep the number of channels, so unlike block 4 they need no projection in their shortcuts.
    """
    blocks = OrderedDict[str, nn.Module]()
    rate = 32 // output_stride  # of block 4
    for number in range(5, options.blocks + 1):
        earlier, rate = rate, 2 * rate
        rates = stage_rates(3, rate, earlier=earlier, first_block=options.first_block, grid=options.multi_grid)
        blocks[f"block{number}"] = resnet_stage(Bottleneck, channels, channels // Bottleneck.expansion, rates, stride=1)
    return blocks


def pyramid(
    in_channels: int, out_channels: int, options: DeepLabV3Options, *, output_stride: int
) -> "OrderedDict[str, nn.Module]":
    """ASPP and the optional convolution behind it, by name. Sec. 3.3."""
    scale = 16 // output_stride
    rates = tuple(rate * scale for rate in options.rates)
    layers = OrderedDict[str, nn.Module](aspp=ASPP(in_channels, out_channels, rates=rates, separable=False))
    if options.head_conv:
        layers["conv"] = conv_bn_relu(out_channels, out_channels, 3)
    return layers


class DeepLabV3(Network):
    """DeepLab v3; logits at the output stride."""

    output_strides = (16, 8)

    def __init__(self, num_classes: int, options: DeepLabV3Options, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        self.stride, self.align_corners = output_stride, options.align_corners
        self.backbone = options.build_backbone(in_channels=in_channels, output_stride=output_stride)
        channels = self.backbone.high_channels
        if options.mode == "cascade":
            self.feature_channels = channels
            self.context = nn.Sequential(cascade(channels, options, output_stride=output_stride))
        else:
            self.feature_channels = options.aspp_channels or scaled_channels(256, options.width_multiplier)
            self.context = nn.Sequential(pyramid(channels, self.feature_channels, options, output_stride=output_stride))
        self.logits = nn.Conv2d(self.feature_channels, num_classes, 1)
        self.aux = None
        if options.aux and isinstance(self.backbone, ResNet):
            third = self.backbone.stage_channels[2]
            self.aux = nn.Sequential(*fcn_head(third), nn.Conv2d(max(1, third // 4), num_classes, 1))
            # torchvision's references/segmentation/train.py
            self.loss_weights = {"logits": 1.0, "aux": 0.5}
        initialise(self, *self.last_layers())

    def last_layers(self) -> list[nn.Conv2d]:
        """The layer of the logits, and that of the auxiliary head if there is one."""
        return [self.logits] if self.aux is None else [self.logits, cast(nn.Conv2d, self.aux[-1])]

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> features of ASPP or of the cascade, and the logits, both at the output stride."""
        features = self.context(self.backbone(x)[1])
        return features, self.logits(features)

    def supervised(self, x: Tensor) -> dict[str, Tensor]:
        """`logits`, and with an auxiliary head `aux` on the same grid."""
        if self.aux is None or not isinstance(self.backbone, ResNet):
            return super().supervised(x)
        *_, third, last = self.backbone.stages(x)
        return {"logits": self.logits(self.context(last)), "aux": self.aux(third)}
