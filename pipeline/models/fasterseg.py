"""FasterSeg: Chen, Gong, Liu, Zhang, Li, Wang 2020, arXiv 1912.10917.

Two branches that architecture search has found, down to stride 32 and to stride 16. They share their first cells, and
are merged upwards into stride 8. Cells, widths and paths are those that the authors' files `arch_0` (teacher) and
`arch_1` (student) decode to, with the code of https://github.com/VITA-Group/FasterSeg, train/model_seg.py.

The authors' network has the weights of a channel attention too (`ffm.channel_attention`, 2 C^2 values), which are in
their files and in their number of parameters. Their forward pass ends in front of it, so it does not exist here.
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.layers import conv_bn, conv_bn_relu, initialise, scaled_channels
from pipeline.models.network import Network, Options, grid_cells


class FasterSegOptions(Options):
    """Options; the defaults are the student, the network of the paper's tables."""

    variant: Literal["student", "teacher"] = Field("student", description="Searched network: student, or its teacher.")
    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")
    aux: bool = Field(True, description="Auxiliary scores at strides 16 and 32, for training only.")
    align_corners: bool = Field(True, description="Alignment of features and logits when resized, as in F.interpolate.")


@dataclass(frozen=True, slots=True)
class Operator:
    """Operator of a cell. Sec. 3.1."""

    convolutions: int
    """3x3 convolutions, each with batch norm and ReLU: 1 or 2."""
    zoomed: bool
    """Zoomed convolution: computed at half the size."""


CONV2, ZOOM, ZOOM2 = Operator(2, zoomed=False), Operator(1, zoomed=True), Operator(2, zoomed=True)

Stage = tuple[tuple[Operator, int], ...]
"""Operators of consecutive cells of one stride, and their output channels."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Cells and channels of a searched network."""

    stem: tuple[int, int, int]
    """Output channels of the layers at strides 2, 4 and 8; the last also those of merged features at stride 8."""
    shared: Stage
    """First cells of both branches, at stride 8."""
    coarse: tuple[Stage, Stage, Stage]
    """Further cells of the branch down to stride 32, at strides 8, 16 and 32; the first at 16 and at 32 strides."""
    fine: tuple[Stage, Stage]
    """Further cells of the branch down to stride 16, at strides 8 and 16."""
    scored: tuple[int, int, int]
    """Channels of the features that give scores at strides 8, 16 and 32."""


ARCHITECTURES = {
    "student": Architecture(
        stem=(32, 64, 64),
        shared=((CONV2, 32), (CONV2, 32), (ZOOM2, 32)),
        coarse=(
            (),
            ((ZOOM, 128), (ZOOM2, 64), (ZOOM2, 64), (ZOOM2, 64)),
            ((ZOOM2, 128), (ZOOM2, 128), (ZOOM2, 256)),
        ),
        fine=(((ZOOM2, 32), (CONV2, 32)), ((CONV2, 64), (ZOOM2, 64), (ZOOM2, 192), (ZOOM2, 128))),
        scored=(128, 192, 256),
    ),
    "teacher": Architecture(
        stem=(48, 96, 96),
        shared=((ZOOM, 96), (ZOOM2, 96), (ZOOM2, 96), (ZOOM2, 96)),
        coarse=(
            ((ZOOM2, 96),),
            ((ZOOM2, 192), (ZOOM2, 192), (ZOOM, 192), *((ZOOM2, 192),) * 5),
            ((ZOOM2, 384), (CONV2, 384), (CONV2, 384)),
        ),
        fine=((), ((ZOOM2, 192), (CONV2, 192), (ZOOM2, 192), (ZOOM, 192), *((ZOOM2, 192),) * 8)),
        scored=(192, 192, 192),
    ),
}
"""The published networks."""

AUX_WEIGHT = 0.2
"""Weight of the loss on each auxiliary score: train/train.py, `lamb`."""


def resize(x: Tensor, height: int, width: int, *, align_corners: bool) -> Tensor:
    """Resize bilinearly: (N, C, h, w) -> (N, C, height, width)."""
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=align_corners)


class Cell(nn.Module):
    """One or two 3x3 convolutions with batch norm and ReLU, at the size of the input or zoomed."""

    def __init__(
        self, operator: Operator, in_channels: int, out_channels: int, *, stride: int, align_corners: bool
    ) -> None:
        super().__init__()
        self.zoomed, self.stride, self.align_corners = operator.zoomed, stride, align_corners
        layers = conv_bn(in_channels, out_channels, 3, stride=1 if operator.zoomed else stride)
        if operator.convolutions == 2:
            layers += [nn.ReLU(inplace=True), *conv_bn(out_channels, out_channels, 3)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, ceil(h / stride), ceil(w / stride))."""
        return F.relu(self._zoom(x) if self.zoomed else self.layers(x))

    def _zoom(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.stride == 2:
            half = resize(x, grid_cells(height, 2), grid_cells(width, 2), align_corners=self.align_corners)
            return cast(Tensor, self.layers(half))
        # Half of an odd side is rounded down, as by the authors.
        half = resize(x, max(1, height // 2), max(1, width // 2), align_corners=self.align_corners)
        return resize(self.layers(half), height, width, align_corners=self.align_corners)


class Merge(nn.Module):
    """Merge coarse features into finer ones: 1x1 convolution, resized, concatenated, 3x3 convolution."""

    def __init__(self, coarse_channels: int, fine_channels: int, out_channels: int, *, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.arm = conv_bn_relu(coarse_channels, out_channels)
        self.refine = conv_bn_relu(out_channels + fine_channels, out_channels, 3)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(N, coarse_channels, h', w') and (N, fine_channels, h, w) -> (N, out_channels, h, w)."""
        arm = resize(self.arm(coarse), fine.size(2), fine.size(3), align_corners=self.align_corners)
        return cast(Tensor, self.refine(torch.cat([arm, fine], dim=1)))


class FasterSeg(Network):
    """FasterSeg; logits at stride 8."""

    output_strides = (32,)
    stride = 8

    def __init__(self, num_classes: int, options: FasterSegOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always 32
        self.align_corners = options.align_corners
        self._width = options.width_multiplier
        layout = ARCHITECTURES[options.variant]
        first, second, third = (scaled_channels(channels, self._width) for channels in layout.stem)
        self.stem = nn.Sequential(
            nn.Sequential(*conv_bn(in_channels, first, 3, stride=2), nn.ReLU(inplace=True)),
            Cell(CONV2, first, second, stride=2, align_corners=self.align_corners),
            Cell(CONV2, second, third, stride=2, align_corners=self.align_corners),
        )
        self.shared, shared = self._stage(layout.shared, third, stride=1)
        self.coarse, coarse = self._branch(layout.coarse, shared)
        self.fine, fine = self._branch(layout.fine, shared)
        self.merge16 = Merge(coarse[2], coarse[1], fine[1], align_corners=self.align_corners)
        self.merge8 = Merge(fine[1], coarse[0], third, align_corners=self.align_corners)
        self.merge_fine = Merge(fine[1], fine[0], third, align_corners=self.align_corners)
        self.fuse = conv_bn_relu(2 * third, 2 * third)
        scored = [scaled_channels(channels, self._width) for channels in layout.scored]
        self.head = conv_bn_relu(2 * third, scored[0], 3)
        self.feature_channels = scored[0]
        self.logits = nn.Conv2d(scored[0], num_classes, 1)
        entering = {"heads16": (coarse[1] + fine[1], scored[1]), "heads32": (coarse[2], scored[2])}
        self.aux = nn.ModuleDict(
            {
                name: nn.Sequential(conv_bn_relu(before, inner, 3), nn.Conv2d(inner, num_classes, 1))
                for name, (before, inner) in entering.items()
                if options.aux
            }
        )
        self.loss_weights = {"logits": 1.0} | dict.fromkeys(self.aux, AUX_WEIGHT)
        initialise(self, *self.last_layers())

    def _stage(self, stage: Stage, channels: int, *, stride: int) -> tuple[nn.Sequential, int]:
        """Cells of one stride, of which the first strides, and their output channels."""
        cells = nn.Sequential()
        for operator, unscaled in stage:
            out_channels = scaled_channels(unscaled, self._width)
            cells.append(Cell(operator, channels, out_channels, stride=stride, align_corners=self.align_corners))
            channels, stride = out_channels, 1
        return cells, channels

    def _branch(self, stages: tuple[Stage, ...], channels: int) -> tuple[nn.ModuleList, list[int]]:
        """Cells of a branch, and the output channels of each stride."""
        modules, leaving = nn.ModuleList(), []
        for index, stage in enumerate(stages):
            cells, channels = self._stage(stage, channels, stride=1 if index == 0 else 2)
            modules.append(cells)
            leaving.append(channels)
        return modules, leaving

    def last_layers(self) -> list[nn.Conv2d]:
        """The layer of the logits, and those of the auxiliary scores."""
        return [self.logits, *(cast(nn.Conv2d, cast(nn.Sequential, head)[1]) for head in self.aux.values())]

    def _maps(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Last features of each stride: of the coarse branch at 8, 16 and 32, and of the fine one at 8 and 16."""
        start = self.shared(self.stem(x))
        return run_stages(self.coarse, start), run_stages(self.fine, start)

    def _fused(self, coarse: list[Tensor], fine: list[Tensor]) -> Tensor:
        """Features for the logits, from those of both branches."""
        merged = self.merge8(self.merge16(coarse[2], coarse[1]), coarse[0])
        both = torch.cat([merged, self.merge_fine(fine[1], fine[0])], dim=1)
        return cast(Tensor, self.head(self.fuse(both)))

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> features and logits, both at stride 8."""
        features = self._fused(*self._maps(x))
        return features, self.logits(features)

    def supervised(self, x: Tensor) -> dict[str, Tensor]:
        """`logits`, and with `aux` the scores `heads16` at stride 16 and `heads32` at stride 32."""
        coarse, fine = self._maps(x)
        entering = {"heads16": torch.cat([coarse[1], fine[1]], dim=1), "heads32": coarse[2]}
        scores = {name: head(entering[name]) for name, head in self.aux.items()}
        return {"logits": self.logits(self._fused(coarse, fine))} | scores


def run_stages(stages: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Output of each stage, the input of the next one."""
    outputs = []
    for stage in stages:
        x = stage(x)
        outputs.append(x)
    return outputs
