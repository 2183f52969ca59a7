"""What every network of the family is: a module that scores each class on a grid of cells.

Which pixels a cell stands for is the network's to say, by `stride` and `align_corners`: cell (i, j) is the square of
`stride` pixels from (i * stride, j * stride) on, or with `align_corners` the single pixel there. Whoever upsamples the
logits (`refine.unary`, a loss) needs nothing else.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn


class Options(BaseModel):
    """What may vary in a network, as plain data of a checkpoint's card."""

    model_config = ConfigDict(frozen=True, extra="forbid")


BUILDERS_OWN = {"name", "num_classes", "in_channels", "output_stride"}
"""Arguments of `zoo.build` that are no options: whoever keeps options keeps these beside them."""


class AroundOptions(Options):
    """What may vary in a network around another network of the zoo."""

    network: str = Field(description="Inner network: a name of the zoo.")
    options: dict[str, Any] = Field({}, description="Options of the inner network.")
    width_multiplier: float = Field(
        1.0,
        gt=0,
        le=4,
        description="Factor on all numbers of channels; one of the inner options' own comes first there.",
    )

    @model_validator(mode="after")
    def _inner_options_are_its_own(self) -> "AroundOptions":
        if taken := BUILDERS_OWN & self.options.keys():
            raise ValueError(f"options of the inner network may not hold {', '.join(sorted(taken))}")
        return self

    def inner_options(self) -> dict[str, Any]:
        """Options to build the inner network with."""
        return {"width_multiplier": self.width_multiplier} | self.options


class Network(nn.Module):
    """A segmentation network, made as `Class(num_classes, options, in_channels=..., output_stride=...)` by `zoo.build`.

    One around another is given that one as `inner` in place of the output stride.

    Attributes:
        output_strides: strides its deepest features can have; the first is the one it was published with.
        stride: input pixels per logit, per axis.
        align_corners: how logits are to be resized to the input, in the sense of `F.interpolate`.
        feature_channels: channels of the features that `embed` gives.
        loss_weights: weight of the loss on each of the scores that `supervised` gives.
    """

    output_strides: tuple[int, ...]
    stride: int
    align_corners: bool
    feature_channels: int
    loss_weights: Mapping[str, float] = MappingProxyType({"logits": 1.0})

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of a batch.

        Args:
            x: (N, C, H, W) float, normalised; H and W at least 1.

        Returns:
            (N, feature_channels, h', w') what the last layer looks at, and (N, K, ceil(H / stride), ceil(W / stride))
            logits, before softmax.
        """
        raise NotImplementedError

    def last_layers(self) -> list[nn.Conv2d]:
        """The layers that give scores: begun anew for other classes, and in many recipes learned at a higher rate."""
        return [cast(nn.Conv2d, self.logits)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, ceil(H / stride), ceil(W / stride)) logits, before softmax."""
        return self.embed(x)[1]

    def supervised(self, x: Tensor) -> dict[str, Tensor]:
        """Everything that training puts a loss on, by the names of `loss_weights`.

        `logits` is what `forward` gives; the others are (N, K, h, w) scores on grids of their own, each to be compared
        with labels resized to that grid, or upsampled to the labels' size.
        """
        return {"logits": self(x)}


def grid_cells(length: int, stride: int) -> int:
    """Cells along an axis of `length` pixels."""
    return -(-length // stride)


def crop(cells: Tensor, x: Tensor, stride: int) -> Tensor:
    """The cells that an input has; networks that pool with rounding up make one more than that for some sizes."""
    return cells[:, :, : grid_cells(x.size(2), stride), : grid_cells(x.size(3), stride)]
