"""Attention to scale around any network of the zoo: Chen, Yang, Wang, Xu, Yuille 2015, arXiv 1511.03339.

The inner network runs on several scales of an image. A small head on its features gives each scale a weight in each
cell, and the scores of all scales are averaged with these weights. The features are those of the inner network's
`embed`, in the paper fc7 of VGG-16.
"""

from collections.abc import Sequence
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.models.layers import initialise, scaled_channels
from pipeline.models.network import AroundOptions, Network, ScoreLayer, grid_cells

_Scale = Annotated[float, Field(gt=0, le=1)]


class AttentionToScaleOptions(AroundOptions):
    """Options; the defaults are the paper's three scales around DeepLab-LargeFOV."""

    network: str = Field("deeplab_v1", description="Inner network: a name of the zoo.")
    scales: tuple[_Scale, ...] = Field(
        (1.0, 0.75, 0.5), min_length=1, max_length=8, description="Scales of the image; 1 must be among them."
    )
    attention_channels: int = Field(512, ge=1, le=4096, description="Channels between the two layers of the head.")
    extra_supervision: bool = Field(True, description="Also put a loss on the scores of every scale.")

    @model_validator(mode="after")
    def _inner_network_is_another(self) -> "AttentionToScaleOptions":
        if self.network == "attention_to_scale":
            raise ValueError("network is attention_to_scale itself, take another network")
        return self

    @model_validator(mode="after")
    def _scales_are_distinct_and_hold_1(self) -> "AttentionToScaleOptions":
        if 1.0 not in self.scales or len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales must be distinct and contain 1, whose grid the logits have, got {self.scales}")
        return self


class AttentionToScale(Network):
    """Attention to scale; strides and alignment of its logits are the inner network's.

    The head has two layers, 3x3 and 1x1, as in sec. 3.2 of the paper; the loss on every scale is that of sec. 3.3.
    Auxiliary scores of the inner network are not used.
    """

    output_strides: tuple[int, ...] = (8, 16, 32)  # replaced by the inner network's

    def __init__(self, num_classes: int, options: AttentionToScaleOptions, *, inner: Network, in_channels: int) -> None:
        super().__init__()
        del num_classes, in_channels  # the inner network has them
        self.inner = inner
        self.output_strides = inner.output_strides
        self.scales = options.scales
        self.stride, self.align_corners = inner.stride, inner.align_corners
        self.feature_channels = inner.feature_channels
        if options.extra_supervision:
            self.loss_weights = dict.fromkeys(("logits", *map(scale_name, self.scales)), 1.0)
        channels = scaled_channels(options.attention_channels, options.width_multiplier)
        weigh = nn.Conv2d(channels, len(self.scales), 1)
        self.attend = nn.Sequential(
            nn.Conv2d(len(self.scales) * inner.feature_channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            weigh,
        )
        initialise(self.attend, weigh)

    def last_layers(self) -> Sequence[ScoreLayer]:
        """The inner network's last layers, and the layer of the scale weights."""
        return [*self.inner.last_layers(), cast(nn.Conv2d, self.attend[-1])]

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> features and logits of the scales, averaged by attention, on the inner network's grid."""
        return self._merge(x, self._at_scales(x))

    def supervised(self, x: Tensor) -> dict[str, Tensor]:
        """The logits, and with extra supervision the scores of each scale on its own grid."""
        by_scale = self._at_scales(x)
        scores = {"logits": self._merge(x, by_scale)[1]}
        names = [name for name in map(scale_name, self.scales) if name in self.loss_weights]
        return scores | {name: own for name, (_, own) in zip(names, by_scale, strict=False)}

    def _at_scales(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Features and scores of each scale, on the grid of that scale."""
        sizes = [
            [scaled_side(side, scale, align_corners=self.align_corners) for side in x.shape[2:]]
            for scale in self.scales
        ]
        return [self.inner.embed(self._resize(x, size)) for size in sizes]

    def _merge(self, x: Tensor, by_scale: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Features and scores averaged over the scales, on the grid of the full image."""
        features = self._on_one_grid(x, [features for features, _ in by_scale])
        scores = self._on_one_grid(x, [scores for _, scores in by_scale])
        weights = self._weigh(features).unsqueeze(2)
        return (weights * features).sum(1), (weights * scores).sum(1)

    def _on_one_grid(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """Maps (N, C, h, w) of each scale -> (N, S, C, h, w), all on the grid of the full image."""
        size = [grid_cells(side, self.stride) for side in x.shape[2:]]
        return torch.stack([self._resize(scale_map, size) for scale_map in maps], dim=1)

    def _weigh(self, features: Tensor) -> Tensor:
        """Weights of the scales: (N, S, C, h, w) features -> (N, S, h, w), sum 1 over S."""
        return cast(Tensor, self.attend(features.flatten(1, 2))).softmax(1)

    def _resize(self, x: Tensor, size: list[int]) -> Tensor:
        if list(x.shape[2:]) == size:
            return x
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)


def scale_name(scale: float) -> str:
    """Name of the scores of a scale, as `scale_0.75`."""
    return f"scale_{scale:g}"


def scaled_side(side: int, scale: float, *, align_corners: bool) -> int:
    """Pixels of a side at a scale, rounded down; with aligned corners the distance between the end pixels is scaled."""
    return int((side - 1) * scale) + 1 if align_corners else max(1, int(side * scale))
