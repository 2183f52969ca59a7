"""DeepLab-DT: Chen, Barron, Papandreou, Murphy, Yuille 2015, arXiv 1511.03328.

A domain transform filters the scores of an inner network, guided by an edge map that the network predicts itself from
its intermediate features. Gradients reach both through the filter, so the edges are those that help to segment, and no
labels of edges are needed. A dense CRF behind it has little left to do: `--refine.engine none`.

The filter, and which pixels an edge lies between, are those of the authors' Caffe layer, in
https://github.com/hszhao/PSPNet under src/caffe/layers/domain_transform_forward_only_layer.cpp. The rest of the paper
was not at hand: that the edges come from conv2_2, conv3_3 and conv4_1, by one 1x1 convolution to one map and a ReLU,
the initial weights of deviation 1e-5, and the values of `DomainTransformParams` are as remembered, and unverified.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.network import AroundOptions, Network, ScoreLayer
from pipeline.refine.domain_transform_torch import domain_transform
from pipeline.refine.lattice_torch import upsample_logits
from pipeline.refine.presets import DomainTransformParams

_PAPER = DomainTransformParams()


class DeepLabDTOptions(AroundOptions):
    """Options; the defaults are the paper's around DeepLab-LargeFOV."""

    network: str = Field("deeplab_v1", description="Inner network: deeplab_v1, deeplab_v2 or deeplab_v3plus.")
    sigma_s: float = Field(_PAPER.sigma_s, gt=0, description="Spatial standard deviation of the filter, pixels.")
    sigma_r: float = Field(
        _PAPER.sigma_r, gt=0, description="Range standard deviation: larger smooths across stronger edges."
    )
    iterations: int = Field(_PAPER.iterations, ge=1, le=10, description="Passes over the rows and the columns.")

    @model_validator(mode="after")
    def _inner_network_is_another(self) -> "DeepLabDTOptions":
        if self.network == "deeplab_dt":
            raise ValueError("network is deeplab_dt itself, take another network")
        return self


class DeepLabDT(Network):
    """An inner network with an edge map and a domain transform; its logits have the size of the input.

    The loss is on the filtered scores alone; auxiliary scores of the inner network are not used.
    """

    output_strides: tuple[int, ...] = (8, 16, 32)  # replaced by the inner network's

    def __init__(self, num_classes: int, options: DeepLabDTOptions, *, inner: Network, in_channels: int) -> None:
        super().__init__()
        del num_classes, in_channels  # the inner network has them
        if not inner.taps:
            hint = "take deeplab_v1, deeplab_v2 or deeplab_v3plus as its option network"
            raise ConfigError(f"deeplab_dt: {options.network} has no intermediate features for edges", hint=hint)
        self.inner = inner
        self.output_strides = inner.output_strides
        self.stride, self.align_corners = 1, inner.align_corners
        self.feature_channels = inner.feature_channels
        self.sigma_s, self.sigma_r, self.iterations = options.sigma_s, options.sigma_r, options.iterations
        self.edge = nn.Conv2d(sum(tap.channels for tap in inner.taps), 1, 1)
        initialise_edge(self.edge)

    def last_layers(self) -> Sequence[ScoreLayer]:
        """The inner network's last layers, and the layer of the edge map."""
        return [*self.inner.last_layers(), self.edge]

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the inner network's features, on its own grid, and (N, K, H, W) filtered scores."""
        return self.embed_and_edges(x)[:2]

    def embed_and_edges(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Result of `embed`, and the edge map, (N, H, W) at least 0, which filtered the scores."""
        features, scores, tapped = self.inner.embed_and_tap(x)
        dtype = torch.promote_types(scores.dtype, torch.float32)
        stride, align_corners = self.inner.stride, self.inner.align_corners
        full = upsample_logits(scores.to(dtype), *x.shape[2:], stride=stride, align_corners=align_corners)
        edges = self._edges(x, tapped).to(dtype)
        filtered: Tensor = domain_transform(
            full.permute(0, 3, 1, 2), edges, self.sigma_s, self.sigma_r, self.iterations
        )
        return features, filtered, edges

    def edge_map(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, H, W): edge between a pixel and its left, and its upper neighbour; at least 0."""
        return self._edges(x, self.inner.embed_and_tap(x)[2])

    def _edges(self, x: Tensor, tapped: list[Tensor]) -> Tensor:
        """1x1 convolution of the upsampled and concatenated features, then ReLU.

        Both are linear, so the convolution comes before the upsampling: one map to upsample per tap, not hundreds.
        """
        weights = torch.split(self.edge.weight, [tap.channels for tap in self.inner.taps], dim=1)
        edges = torch.zeros((), dtype=torch.float32, device=x.device)
        for cells, weight, tap in zip(tapped, weights, self.inner.taps, strict=True):
            part = F.conv2d(cells, weight)
            part = part.to(torch.promote_types(part.dtype, torch.float32))
            align_corners = self.inner.align_corners
            edges = edges + upsample_logits(part, *x.shape[2:], stride=tap.stride, align_corners=align_corners)[..., 0]
        return F.relu(edges + cast(Tensor, self.edge.bias))


def initialise_edge(edge: nn.Conv2d) -> None:
    """Hardly any edges at first: weights of deviation 1e-5, so that the filter starts as a blur, and learns to stop.

    The bias starts just above 0, which is ours: features are positive, so weights whose sum is negative would
    leave the ReLU without a gradient everywhere.
    """
    if not edge.weight.is_meta:
        nn.init.normal_(edge.weight, std=1e-5)
        nn.init.constant_(cast(Tensor, edge.bias), 1e-3)
