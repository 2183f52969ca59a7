"""Interface of every network of the zoo: a module that scores each class on a grid of cells.

`stride` and `align_corners` of the network define the pixels of a cell: cell (i, j) is the square of `stride` pixels
from (i * stride, j * stride) on, or with `align_corners` the single pixel there. Upsampling (`refine.unary`, a loss)
needs no more.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from pipeline.models.card import BUILDERS_OWN

ScoreLayer = nn.Conv2d | nn.ConvTranspose2d
"""Layer that gives scores."""


class Options(BaseModel):
    """Options of a network, stored as plain data in a checkpoint's card."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AroundOptions(Options):
    """Options of a network around another network of the zoo."""

    network: str = Field(description="Inner network: a name of the zoo.")
    options: dict[str, Any] = Field({}, description="Options of the inner network.")
    width_multiplier: float = Field(
        1.0,
        gt=0,
        le=4,
        description="Factor on all numbers of channels; a factor in the inner options overrides it there.",
    )

    @model_validator(mode="after")
    def _inner_options_are_its_own(self) -> "AroundOptions":
        if reserved := BUILDERS_OWN & self.options.keys():
            raise ValueError(f"options of the inner network must not contain {', '.join(sorted(reserved))}")
        return self

    def inner_options(self) -> dict[str, Any]:
        """Options of the inner network, with this network's width unless they have one."""
        return {"width_multiplier": self.width_multiplier} | self.options


class Tap(NamedTuple):
    """Intermediate features of a network, on a grid of their own with the alignment of the network's logits."""

    channels: int
    stride: int
    """Input pixels per cell, per axis."""


class Network(nn.Module):
    """Segmentation network, built as `Class(num_classes, options, in_channels=..., output_stride=...)`.

    A network around another one takes it as `inner` in place of the output stride.

    Attributes:
        output_strides: possible strides of the deepest features; the first is the published one.
        stride: input pixels per logit, per axis.
        align_corners: alignment of the logits when resized to the input, as in `F.interpolate`.
        feature_channels: channels of the features from `embed`.
        loss_weights: weight of the loss on each of the scores from `supervised`.
        taps: intermediate features from `embed_and_tap`, finest first; empty for networks that do not give any.
    """

    output_strides: tuple[int, ...]
    stride: int
    align_corners: bool
    feature_channels: int
    loss_weights: Mapping[str, float] = MappingProxyType({"logits": 1.0})
    taps: tuple[Tap, ...] = ()

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of a batch.

        Args:
            x: (N, C, H, W) float, normalised; H and W at least 1.

        Returns:
            (N, feature_channels, h', w') input of the last layer, and (N, K, ceil(H / stride), ceil(W / stride))
            logits, before softmax.
        """
        raise NotImplementedError

    def embed_and_tap(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Result of `embed`, and the intermediate features of `taps`.

        Returns:
            Features, logits, and (N, channels, ceil(H / stride), ceil(W / stride)) for each of `taps`.
        """
        raise NotImplementedError

    def edge_map(self, x: Tensor) -> Tensor | None:
        """(N, C, H, W) -> (N, H, W) strength of the edge through each pixel, at least 0; None: it predicts no edges."""
        del x
        return None

    def last_layers(self) -> Sequence[ScoreLayer]:
        """Layers that give the scores: new for other classes, and in many recipes with a higher learning rate."""
        return [cast(ScoreLayer, self.logits)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, ceil(H / stride), ceil(W / stride)) logits, before softmax."""
        return self.embed(x)[1]

    def supervised(self, x: Tensor) -> dict[str, Tensor]:
        """Scores for the training loss, by the names of `loss_weights`.

        `logits` is the result of `forward`; the others are (N, K, h, w) scores on grids of their own, to be compared
        with labels resized to that grid, or upsampled to the labels' size.
        """
        return {"logits": self(x)}


def grid_cells(length: int, stride: int) -> int:
    """Cells along an axis of `length` pixels."""
    return -(-length // stride)


def crop(cells: Tensor, x: Tensor, stride: int) -> Tensor:
    """Crop to the cells of an input; networks whose pooling rounds up have one more for some sizes."""
    return cells[:, :, : grid_cells(x.size(2), stride), : grid_cells(x.size(3), stride)]


def make_taps(*channels: int) -> tuple[Tap, ...]:
    """Taps of these channels at strides 2, 4, 8 and so on."""
    return tuple(Tap(width, 2**halvings) for halvings, width in enumerate(channels, 1))


def crop_taps(tapped: list[Tensor], x: Tensor, taps: tuple[Tap, ...]) -> list[Tensor]:
    """Crop intermediate features to the cells of an input."""
    return [crop(cells, x, tap.stride) for cells, tap in zip(tapped, taps, strict=True)]
