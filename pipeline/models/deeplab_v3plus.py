"""DeepLab v3+: Chen, Zhu, Papandreou, Schroff, Adam 2018, arXiv 1802.02611.

A dilated backbone and ASPP find what is there at a coarse stride; the decoder adds where it ends, from features at
stride 4. Evaluating at output stride 8 takes the weights trained at 16 as they are.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.models.backbones.mobilenet_v2 import MobileNetV2
from pipeline.models.backbones.resnet import ResNet
from pipeline.models.layers import ASPP, conv_bn_relu, initialise, separable_conv_bn_relu
from pipeline.models.network import Network, Options

Rate = Annotated[int, Field(ge=1, le=64)]


class DeepLabV3PlusOptions(Options):
    """What may vary; the defaults are the paper's ResNet-101 model."""

    backbone: Literal["mobilenet_v2", "resnet50", "resnet101"] = Field("resnet101", description="Feature extractor.")
    width_multiplier: float = Field(1.0, gt=0, le=4, description="MobileNetV2: factor on its channels.")
    multi_grid: tuple[Rate, Rate, Rate] = Field((1, 2, 4), description="ResNet: rates within the last stage.")
    aspp_channels: int = Field(256, ge=1, le=4096, description="Channels of each ASPP branch and of their projection.")
    decoder_channels: int = Field(256, ge=1, le=4096, description="Channels of the decoder's two 3x3 convolutions.")
    low_level_channels: int = Field(48, ge=1, le=4096, description="Channels the stride-4 features are reduced to.")
    separable: bool = Field(False, description="Depthwise separable 3x3 convolutions in ASPP and decoder.")

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> "DeepLabV3PlusOptions":
        foreign = "multi_grid" if self.backbone == "mobilenet_v2" else "width_multiplier"
        if foreign in self.model_fields_set:
            raise ValueError(f"{foreign} has no effect with {self.backbone}")
        return self

    def build_backbone(self, *, in_channels: int, output_stride: int) -> ResNet | MobileNetV2:
        """The backbone these options name, with random weights."""
        if self.backbone == "mobilenet_v2":
            return MobileNetV2(in_channels=in_channels, output_stride=output_stride, width=self.width_multiplier)
        depth = {"resnet50": 50, "resnet101": 101}[self.backbone]
        return ResNet(depth, in_channels=in_channels, output_stride=output_stride, multi_grid=self.multi_grid)


class DeepLabV3Plus(Network):
    """The network; its logits leave at a quarter of the input's size."""

    output_strides = (16, 8)
    stride = 4
    align_corners = False

    def __init__(
        self, num_classes: int, options: DeepLabV3PlusOptions, *, in_channels: int, output_stride: int
    ) -> None:
        super().__init__()
        self.backbone = options.build_backbone(in_channels=in_channels, output_stride=output_stride)
        scale = 16 // output_stride
        self.aspp = ASPP(
            self.backbone.high_channels,
            options.aspp_channels,
            rates=(6 * scale, 12 * scale, 18 * scale),
            separable=options.separable,
        )
        self.reduce = conv_bn_relu(self.backbone.low_channels, options.low_level_channels)
        conv = separable_conv_bn_relu if options.separable else conv_bn_relu
        self.decoder = nn.Sequential(
            conv(options.low_level_channels + options.aspp_channels, options.decoder_channels, 3),
            conv(options.decoder_channels, options.decoder_channels, 3),
        )
        self.logits = nn.Conv2d(options.decoder_channels, num_classes, 1)
        self.feature_channels = options.decoder_channels
        initialise(self, self.logits)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the decoder's features and the logits, both at stride 4."""
        low, high = self.backbone(x)
        coarse = F.interpolate(self.aspp(high), low.shape[2:], mode="bilinear", align_corners=self.align_corners)
        features = self.decoder(torch.cat([self.reduce(low), coarse], dim=1))
        return features, self.logits(features)
