"""EfficientNet-Lite 0 to 2 with dilation in place of the last strides. Tan and Le 2019, arXiv 1905.11946, table 1.

The lite networks drop squeeze-and-excitation, take ReLU6 for swish, and scale neither the stem nor the number of blocks
of the first and the last stage: tensorflow/tpu, models/official/efficientnet/lite. It ends with the 320 channels in
front of the classification head.
"""

import math
from typing import cast

from torch import Tensor, nn

from pipeline.models.backbones.mobilenet_v2 import InvertedResidual, conv_bn_relu6, scaled_to_multiple
from pipeline.models.layers import set_batch_norm

_STAGES = (
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
    *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
)
"""Expansion, channels, blocks, stride and kernel of each stage of the paper's table 1."""
_SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
"""Factors on channels and blocks by number: efficientnet_lite_builder.py, `efficientnet_lite_params`."""
_EPS = 1e-3
"""Epsilon of batch norm: efficientnet_lite_builder.py, `batch_norm_epsilon`."""
_RETURNED = (1, 2, 4, 6)
"""Stages, counted from 0, whose features are returned: the last ones at strides 4, 8 and 16, and the last of all."""


def stage_depths(number: int) -> list[int]:
    """Blocks of each stage; the first and the last stage keep theirs."""
    deeper = _SCALES[number][1]
    blocks = [count for _, _, count, _, _ in _STAGES]
    return [blocks[0], *(math.ceil(deeper * count) for count in blocks[1:-1]), blocks[-1]]


class EfficientNetLite(nn.Module):
    """Backbone with features at strides 2, 4, 8, 16 and at the output stride.

    Weights trained at output stride 16 give the same features at 8 on a denser grid: `high` at 16 is every second row
    and column of `high` at 8.
    """

    def __init__(self, number: int, *, in_channels: int, output_stride: int, width: float = 1.0) -> None:
        """Build blocks of random weights.

        Args:
            number: 0, 1 or 2.
            in_channels: bands of the input.
            output_stride: 8, 16 or 32, the stride of the last features.
            width: factor on every number of channels, beside the network's own.
        """
        super().__init__()
        channels, wider = scaled_to_multiple(32, width), width * _SCALES[number][0]
        self.features = nn.Sequential(conv_bn_relu6(in_channels, channels, 3, stride=2))
        reached, rate, ends = 2, 1, []
        for (expansion, out_channels, _, first_stride, kernel), depth in zip(
            _STAGES, stage_depths(number), strict=True
        ):
            for stride in (first_stride, *[1] * (depth - 1)):
                # A block without its stride keeps its rate; only the blocks behind it have a grid twice as dense.
                block_stride = stride if reached * stride <= output_stride else 1
                following = scaled_to_multiple(out_channels, wider)
                self.features.append(
                    InvertedResidual(
                        channels, following, kernel=kernel, expansion=expansion, stride=block_stride, dilation=rate
                    )
                )
                channels, reached, rate = following, reached * block_stride, rate * stride // block_stride
            ends.append((len(self.features), channels))
        self.stem_channels = ends[0][1]
        self.stage_channels = tuple(ends[at][1] for at in _RETURNED)
        self._ends = [end for end, _ in ends]
        self.low_channels, self.high_channels = self.stage_channels[0], channels
        set_batch_norm(self, eps=_EPS)

    def stem(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 16 * width, H / 2, W / 2): the first convolution and stage 1."""
        return cast(Tensor, self.features[: self._ends[0]](x))

    def behind(self, stem: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outputs of stages 2, 3, 5 and 7, with `stage_channels` channels, from the output of `stem`."""
        outputs, x, begin = [], stem, self._ends[0]
        for stage in _RETURNED:
            x = self.features[begin : self._ends[stage]](x)
            begin = self._ends[stage]
            outputs.append(x)
        second, third, fifth, last = outputs
        return second, third, fifth, last

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> low (N, 24 * width, H / 4, W / 4), high (N, 320 * width, H / OS, W / OS), rounded up."""
        low, _, _, high = self.behind(self.stem(x))
        return low, high
