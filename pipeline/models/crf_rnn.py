"""CRF-RNN: a dense CRF as the last layer of any network of the zoo. Zheng et al. 2015, arXiv 1502.03240.

The mean field of `pipeline.refine.lattice_torch` is unrolled, so gradients reach the network below, and kernel weights
and class compatibilities are learned. Initial values are those of a preset. Two differences to the authors' code:
kernels are normalised symmetrically, as everywhere in this package, not by the sum of each row; and a kernel has one
weight per class, not a matrix that starts as the diagonal of those weights.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.network import AroundOptions, Network, ScoreLayer
from pipeline.models.normalisation import IMAGENET
from pipeline.refine.lattice_torch import Lattice, bilateral_lattice, spatial_lattice, upsample_logits
from pipeline.refine.presets import PRESETS, CrfParams

_Deviation = Annotated[float, Field(gt=0)]


class CRFRNNOptions(AroundOptions):
    """Options; the defaults are the paper's."""

    network: str = Field("fcn", description="Inner network: a name of the zoo.")
    preset: str = Field(
        "crf-rnn", description="Preset of the kernels and their initial weights, as in --refine.preset."
    )
    train_iterations: int = Field(5, ge=1, le=100, description="Mean field iterations in training.")
    iterations: int = Field(10, ge=1, le=100, description="Mean field iterations in use.")
    std: tuple[_Deviation, ...] = Field(
        IMAGENET.std,
        description="Standard deviation of each input channel: `std` of the checkpoint's card.",
    )

    @model_validator(mode="after")
    def _inner_network_is_another(self) -> "CRFRNNOptions":
        if self.network == "crf_rnn":
            raise ValueError("network is crf_rnn itself, take another network")
        return self

    @model_validator(mode="after")
    def _preset_is_known(self) -> "CRFRNNOptions":
        if self.preset not in PRESETS:
            raise ValueError(f"no preset {self.preset!r}, known: {', '.join(sorted(PRESETS))}")
        return self


class CRFRNN(nn.Module):
    """CRF layer: full-size scores in, scores of the same size after the mean field out."""

    def __init__(self, num_classes: int, params: CrfParams, *, train_iterations: int = 5) -> None:
        super().__init__()
        self.sigmas = [params.pos_xy, params.bi_xy, params.bi_rgb]
        self.train_iterations, self.iterations = train_iterations, params.iterations
        # Sec. 4.1: each kernel has a weight for each class. Sec. 4.2: compatibilities start as the Potts model.
        self.kernel_weights = nn.Parameter(torch.tensor([[params.pos_w], [params.bi_w]]).float().repeat(1, num_classes))
        self.compatibility = nn.Parameter(1 - torch.eye(num_classes))

    def forward(self, scores: Tensor, colours: Tensor) -> Tensor:
        """Scores after the last iteration, whose softmax is Q.

        Args:
            scores: (N, H, W, K) float32 or float64, before softmax.
            colours: (N, H, W, B), 8-bit levels up to a constant; they get no gradient.
        """
        iterations = self.train_iterations if self.training else self.iterations
        kernel_weights, compatibility = self.kernel_weights.to(scores), self.compatibility.to(scores)
        refined: Tensor = mean_field(scores, colours.to(scores), kernel_weights, compatibility, self.sigmas, iterations)
        return refined


@torch.library.custom_op("atrous::mean_field", mutates_args=())
def mean_field(  # noqa: PLR0917  # operators take their arguments by position
    scores: Tensor,
    colours: Tensor,
    kernel_weights: Tensor,
    compatibility: Tensor,
    sigmas: Sequence[float],
    iterations: int,
) -> Tensor:
    """Unrolled mean field as one operator of torch, since the sizes of its lattices depend on the image.

    The backward pass computes the iterations again; keeping them would take several maps per class and iteration.

    Args:
        scores: (N, H, W, K).
        colours: (N, H, W, B), 8-bit levels up to a constant.
        kernel_weights: (2, K), of the smoothness and the appearance kernel.
        compatibility: (K, K), penalty of the row's class next to the column's class.
        sigmas: of the smoothness kernel, pixels; of the appearance kernel, pixels and 8-bit levels.
        iterations: at least 1.
    """
    unary = scores.flatten(0, 2)
    refined = unary
    with torch.autocast(scores.device.type, enabled=False):
        kernels = _kernels(colours, sigmas)
        for _ in range(iterations):
            refined = unary - _weigh(_filter(refined.softmax(1), kernels), kernel_weights) @ compatibility.t()
    return refined.view(scores.shape)


@mean_field.register_fake
def _(scores: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


@torch.library.custom_op("atrous::mean_field_backward", mutates_args=())
def mean_field_backward(  # noqa: PLR0917
    grad: Tensor,
    scores: Tensor,
    colours: Tensor,
    kernel_weights: Tensor,
    compatibility: Tensor,
    sigmas: Sequence[float],
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `mean_field` with respect to scores, kernel weights and compatibility.

    A filter is linear in Q, so its backward is the transposed filter: the same steps in reverse.
    """
    unary, above = scores.flatten(0, 2), grad.flatten(0, 2)
    to_unary, to_weights, to_compatibility = map(torch.zeros_like, (unary, kernel_weights, compatibility))
    with torch.autocast(scores.device.type, enabled=False):
        kernels = _kernels(colours, sigmas)
        states = _states(unary, kernels, kernel_weights, compatibility, iterations)
        for marginals, filtered in reversed(states):
            to_unary += above
            to_compatibility -= above.t() @ _weigh(filtered, kernel_weights)
            message = -(above @ compatibility)
            to_weights += (filtered * message).sum(1)
            pairs = zip(kernels, kernel_weights, strict=True)
            to_marginals = sum(kernel.transposed() @ (message * weight) for kernel, weight in pairs)
            above = marginals * (to_marginals - (to_marginals * marginals).sum(1, keepdim=True))
    return (to_unary + above).view(scores.shape), to_weights, to_compatibility


@mean_field_backward.register_fake
def _(
    grad: Tensor, scores: Tensor, colours: Tensor, kernel_weights: Tensor, compatibility: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    to_scores = torch.empty_like(scores, memory_format=torch.contiguous_format)
    return to_scores, torch.empty_like(kernel_weights), torch.empty_like(compatibility)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.sigmas, ctx.iterations = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    scores, weights, compatibility = mean_field_backward(grad, *ctx.saved_tensors, ctx.sigmas, ctx.iterations)
    return scores, None, weights, compatibility, None, None


mean_field.register_autograd(_backward, setup_context=_remember)


def _kernels(colours: Tensor, sigmas: Sequence[float]) -> list[Lattice]:
    place, appearance_place, appearance_colour = sigmas
    spatial = spatial_lattice(colours, None, place)
    return [spatial, bilateral_lattice(colours, None, appearance_place, appearance_colour)]


def _filter(marginals: Tensor, kernels: list[Lattice]) -> Tensor:
    """(P, K) -> (2, P, K)."""
    return torch.stack([kernel @ marginals for kernel in kernels])


def _weigh(filtered: Tensor, kernel_weights: Tensor) -> Tensor:
    """(2, P, K) and (2, K) -> (P, K)."""
    return (filtered * kernel_weights[:, None]).sum(0)


def _states(
    unary: Tensor, kernels: list[Lattice], kernel_weights: Tensor, compatibility: Tensor, iterations: int
) -> list[tuple[Tensor, Tensor]]:
    """Q at the start of each iteration, and Q filtered by the kernels."""
    refined, states = unary, []
    for _ in range(iterations):
        marginals = refined.softmax(1)
        states.append((marginals, _filter(marginals, kernels)))
        refined = unary - _weigh(states[-1][1], kernel_weights) @ compatibility.t()
    return states


class CRFRNNNetwork(Network):
    """A network of the zoo with a CRF layer behind it; its logits have the size of the input, as in the paper.

    The layer compares 8-bit colours, but the network's input is normalised: the options repeat the card's deviations to
    undo that; the means cancel in differences. Gradients flow through the scores, not through the colours.
    """

    output_strides: tuple[int, ...] = (8, 16, 32)  # replaced by the inner network's

    def __init__(self, num_classes: int, options: CRFRNNOptions, *, inner: Network, in_channels: int) -> None:
        super().__init__()
        if len(options.std) != in_channels:
            hint = "option `std` must be that of the checkpoint's card"
            raise ConfigError(f"crf_rnn: std of {len(options.std)} channels for {in_channels} channels", hint=hint)
        self.inner = inner
        self.output_strides = inner.output_strides
        self.stride, self.align_corners = 1, False
        self.feature_channels = inner.feature_channels
        params = replace(PRESETS[options.preset], iterations=options.iterations)
        self.crf = CRFRNN(num_classes, params, train_iterations=options.train_iterations)
        self.std = options.std

    def last_layers(self) -> Sequence[ScoreLayer]:
        """The inner network's last layers."""
        return self.inner.last_layers()

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the inner network's features, on its own grid, and (N, K, H, W) scores after the CRF."""
        features, scores = self.inner.embed(x)
        dtype = torch.promote_types(scores.dtype, torch.float32)
        stride, align_corners = self.inner.stride, self.inner.align_corners
        full = upsample_logits(scores.to(dtype), *x.shape[2:], stride=stride, align_corners=align_corners)
        colours = x.permute(0, 2, 3, 1).to(dtype) * torch.tensor(self.std, dtype=dtype, device=x.device) * 255
        return features, self.crf(full, colours).permute(0, 3, 1, 2)
