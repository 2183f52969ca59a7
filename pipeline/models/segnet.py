"""SegNet: Badrinarayanan, Kendall, Cipolla 2015, arXiv 1511.00561.

VGG-16 and a mirrored decoder. Each max pooling stores the indices of its maxima, and the matching unpooling puts values
back there: edges survive at the cost of an index, without interpolation of scores.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.backbones.vgg import STAGES, VGG16, vgg_stage
from pipeline.models.layers import initialise, scaled_channels
from pipeline.models.network import Network, Options


class SegNetOptions(Options):
    """Options; the defaults are the paper's."""

    width_multiplier: float = Field(1.0, gt=0, le=4, description="Factor on all numbers of channels.")


def mirrored_stages(width: float) -> nn.ModuleList:
    """Decoder stages: the convolutions of each stage of VGG-16 in reverse, each with batch norm and ReLU. Sec. 3.

    The first stage lacks its last convolution, whose output would be the image; the layer of the scores replaces it.
    """
    stages: list[nn.Module] = []
    below: list[int] = []
    for channels in STAGES:
        *inner, last = (scaled_channels(wide, width) for wide in channels)
        stages.append(vgg_stage(last, tuple([*below, *inner][::-1]), batch_norm=True))
        below = [last]
    return nn.ModuleList(stages)


class SegNet(Network):
    """SegNet; logits have the size of the input, which may be any."""

    output_strides = (32,)
    stride = 1
    align_corners = False

    def __init__(self, num_classes: int, options: SegNetOptions, *, in_channels: int, output_stride: int) -> None:
        super().__init__()
        del output_stride  # always 32
        self.encoder = VGG16(in_channels=in_channels, width=options.width_multiplier, batch_norm=True)
        self.decoder = mirrored_stages(options.width_multiplier)
        self.feature_channels = self.encoder.channels[0]
        self.logits = nn.Conv2d(self.feature_channels, num_classes, 3, padding=1)
        initialise(self, *self.last_layers())

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the decoder's features (N, 64, H, W) and the logits (N, K, H, W)."""
        pooled = []
        for stage in self.encoder.stages:
            x = stage(x)
            size = x.shape
            x, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            pooled.append((size, indices))
        for stage in reversed(self.decoder):
            size, indices = pooled.pop()
            # An odd size pools to the same size as the next even one, since pooling rounds up.
            x = stage(F.max_unpool2d(x, indices, [2, 2], output_size=size[2:]))
        return x, self.logits(x)
