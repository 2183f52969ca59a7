"""DeepLab v2: Chen, Papandreou, Kokkinos, Murphy, Yuille 2016, arXiv 1606.00915.

Atrous spatial pyramid pooling: parallel classifiers with several rates on the same features, whose scores are added.
The features are those of v1's VGG-16 or of a dilated ResNet. The whole network may run on three scales.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.backbones.resnet import FirstBlock, ResNet, StrideIn
from pipeline.models.backbones.vgg import VGG16
from pipeline.models.deeplab_v1 import Classifier, add_scores, atrous_vgg16, pool5a, pools_and_taps, vgg_taps
from pipeline.models.layers import initialise, scaled_channels
from pipeline.models.network import Network, Options, crop, crop_taps, make_taps

Head = Literal["large_fov", "aspp_s", "aspp_l"]

RATES: dict[Head, tuple[int, ...]] = {"large_fov": (12,), "aspp_s": (2, 4, 8, 12), "aspp_l": (6, 12, 18, 24)}
"""Rates of the classifiers on features at stride 8. Sec. 4.1.2."""

FC_CHANNELS = 1024
"""Channels of fc6 and fc7 of each classifier on VGG-16. Sec. 4.1.2."""

SCALES = {"scale_0.75": (3, 4), "scale_0.5": (1, 2)}
"""Smaller scales of the image as fractions, by name of their scores. Sec. 4.1.2."""

_RESNET_OPTIONS = {"first_block", "stride_in", "ceil_pool"}


class DeepLabV2Options(Options):
    """Options; the defaults are the paper's ResNet-101 with ASPP, as ported by kazuto1011/deeplab-pytorch."""

    backbone: Literal["vgg16", "resnet50", "resnet101"] = Field("resnet101", description="Feature extractor.")
    head: Head = Field("aspp_l", description="Rates of the classifiers: 12; 2, 4, 8, 12; or 6, 12, 18, 24.")
    msc: bool = Field(False, description="Multi-scale: maximum of the scores at scales 1, 0.75 and 0.5.")
    first_block: FirstBlock = Field("own", description="ResNet: rate of a dilated stage's first block; own is Caffe's.")
    stride_in: StrideIn = Field("1x1", description="ResNet: strided convolution of a block; 1x1 is Caffe's.")
    ceil_pool: bool = Field(True, description="ResNet: the stem's max pooling rounds sizes up, as in Caffe.")
    align_corners: bool = Field(
        False,
        description="Alignment of images and scores when resized. False: deeplab-pytorch (libs/models/msc.py, main.py) "
        "with its published weights and figures. True: Interp of the authors' Caffe.",
    )
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> "DeepLabV2Options":
        foreign = sorted(_RESNET_OPTIONS & self.model_fields_set)
        if self.backbone == "vgg16" and foreign:
            raise ValueError(f"{', '.join(foreign)} has no effect with vgg16")
        return self

    def build_backbone(self, *, in_channels: int, output_stride: int) -> VGG16 | ResNet:
        """The backbone these options name, with random weights.

        Raises:
            ConfigError: for VGG-16 at another output stride than 8.
        """
        if self.backbone == "vgg16":
            if output_stride != 8:
                raise ConfigError(f"deeplab_v2: vgg16 has output stride 8, not {output_stride}", hint="take a ResNet")
            return atrous_vgg16(in_channels=in_channels, width=self.width_multiplier)
        return ResNet(
            {"resnet50": 50, "resnet101": 101}[self.backbone],
            in_channels=in_channels,
            output_stride=output_stride,
            first_block=self.first_block,
            stride_in=self.stride_in,
            ceil_pool=self.ceil_pool,
            width=self.width_multiplier,
        )


class VGGHead(nn.Module):
    """Classifiers of three layers, one per rate, scores added: fig. 7 of the paper. With one rate: v1's LargeFOV."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, *, rates: tuple[int, ...]) -> None:
        super().__init__()
        # The authors' prototxt of ASPP (DeepLabv2_VGG16) has no pool5a.
        self.pool5a = pool5a(average=len(rates) == 1)
        self.branches = nn.ModuleList(Classifier(in_channels, channels, num_classes, rate=rate) for rate in rates)
        self.feature_channels = len(rates) * channels

    def last_layers(self) -> list[nn.Conv2d]:
        """The layers that give the scores."""
        return [cast(Classifier, branch).fc8 for branch in self.branches]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, h, w) -> fc7's features of all branches, concatenated, and scores; same height and width."""
        x = self.pool5a(x)
        outputs = [branch(x) for branch in self.branches]
        return torch.cat([features for features, _ in outputs], dim=1), add_scores([scores for _, scores in outputs])


class ResNetHead(nn.Module):
    """One 3x3 convolution per rate from features to scores, added: res5c to fc1 in the authors' prototxt."""

    def __init__(self, in_channels: int, num_classes: int, *, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in rates
        )
        self.feature_channels = in_channels

    def last_layers(self) -> list[nn.Conv2d]:
        """The layers that give the scores."""
        return [cast(nn.Conv2d, branch) for branch in self.branches]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, h, w) -> the input features, and scores; same height and width."""
        return x, add_scores([branch(x) for branch in self.branches])


class DeepLabV2(Network):
    """DeepLab v2; logits at the output stride, 8 in the paper.

    At 16 the classifiers' rates are halved, so that their filters cover the same pixels: with the default conventions
    of the ResNet the logits at 16 are every second row and column of those at 8.

    With `msc` every scale of the image runs through the network, and the scores are resized to the grid of the full
    image before their maximum is taken; `embed` gives the features of the full image.
    """

    output_strides: tuple[int, ...] = (8, 16)

    def __init__(self, num_classes: int, options: DeepLabV2Options, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        self.stride = output_stride
        self.align_corners = options.align_corners
        self.msc = options.msc
        if options.msc:
            self.loss_weights = dict.fromkeys(("logits", "scale_1", *SCALES), 1.0)
        rates = tuple(rate * 8 // output_stride for rate in RATES[options.head])
        self.backbone = options.build_backbone(in_channels=in_channels, output_stride=output_stride)
        self.head: VGGHead | ResNetHead
        if isinstance(self.backbone, VGG16):
            channels = scaled_channels(FC_CHANNELS, options.width_multiplier)
            self.output_strides = (8,)
            self.taps = vgg_taps(self.backbone)
            self.head = VGGHead(self.backbone.channels[-1], channels, num_classes, rates=rates)
        else:
            self.taps = make_taps(self.backbone.stem_channels, *self.backbone.stage_channels[:2])
            self.head = ResNetHead(self.backbone.high_channels, num_classes, rates=rates)
        self.feature_channels = self.head.feature_channels
        initialise(self, *self.last_layers())

    def last_layers(self) -> list[nn.Conv2d]:
        """The layers that give the scores, one per rate."""
        return self.head.last_layers()

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> features and logits at the output stride.

        Features are fc7's of every branch on VGG-16, and the last stage's of a ResNet.
        """
        features, scores = self._of_all_scales(x, *self._of_one_scale(x))
        return crop(features, x, self.stride), crop(scores["logits"], x, self.stride)

    def embed_and_tap(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """`embed`, and of the full image conv2_2, conv3_3 and conv4_1, or a ResNet's stem and first two stages."""
        if isinstance(self.backbone, VGG16):
            pooled, tapped = pools_and_taps(self.backbone, x)
            high = pooled[-1]
        else:
            stem = self.backbone.stem(x)
            first, second, _, high = self.backbone.behind(stem)
            tapped = [stem, first, second]
        features, scores = self._of_all_scales(x, *self.head(high))
        cropped = crop(features, x, self.stride), crop(scores["logits"], x, self.stride)
        return *cropped, crop_taps(tapped, x, self.taps)

    def supervised(self, x: Tensor) -> dict[str, Tensor]:
        """The logits, and with `msc` the scores of each scale: the paper's loss adds up all four, sec. 4.1.2."""
        _, scores = self._of_all_scales(x, *self._of_one_scale(x))
        own_grid = {"logits", "scale_1"}
        return {name: crop(cells, x, self.stride) if name in own_grid else cells for name, cells in scores.items()}

    def _of_all_scales(self, x: Tensor, features: Tensor, finest: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features of the full image and all scores, before cells that rounding up added are cropped."""
        if not self.msc:
            return features, {"logits": finest}
        scores = {"scale_1": finest}
        for name, (part, whole) in SCALES.items():
            size = [shrunk_side(side, part, whole, align_corners=self.align_corners) for side in x.shape[2:]]
            scores[name] = self._of_one_scale(self._resize(x, size))[1]
        resized = [self._resize(cells, finest.shape[2:]) for cells in scores.values()]
        return features, {"logits": torch.stack(resized).amax(0), **scores}

    def _of_one_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        high = pools_and_taps(self.backbone, x)[0][-1] if isinstance(self.backbone, VGG16) else self.backbone(x)[1]
        return cast(tuple[Tensor, Tensor], self.head(high))

    def _resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, list(size), mode="bilinear", align_corners=self.align_corners)


def shrunk_side(side: int, part: int, whole: int, *, align_corners: bool) -> int:
    """Pixels of a side at the scale part / whole, rounded down; aligned corners scale the distance of the end pixels.

    deeplab-pytorch, libs/models/msc.py; Interp with shrink and zoom factor in the authors' Caffe.
    """
    return (side - 1) // whole * part + 1 if align_corners else max(1, side * part // whole)
