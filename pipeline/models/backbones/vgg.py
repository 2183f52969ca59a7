"""VGG-16, the convolutions of configuration D. Simonyan and Zisserman 2014 (arXiv 1409.1556), table 1.

Each network of the family pools and dilates in a way of its own, so this gives stages without pooling. Convolutions
keep height and width.
"""

from torch import Tensor, nn

from pipeline.models.layers import BatchNorm2d, scaled_channels

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the 3x3 convolutions of each of the five stages."""


def vgg_stage(
    in_channels: int, channels: tuple[int, ...], *, dilation: int = 1, batch_norm: bool = False
) -> nn.Sequential:
    """3x3 convolutions with bias, each with batch norm if asked for, and ReLU: one stage without its pooling."""
    layers: list[nn.Module] = []
    for out_channels in channels:
        layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation))
        layers += [BatchNorm2d(out_channels)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
        in_channels = out_channels
    return nn.Sequential(*layers)


class VGG16(nn.Module):
    """The five stages of VGG-16, to be called one by one by a network that pools between them."""

    def __init__(
        self,
        *,
        in_channels: int,
        width: float = 1.0,
        dilations: tuple[int, int, int, int, int] = (1, 1, 1, 1, 1),
        batch_norm: bool = False,
    ) -> None:
        """Build stages of random weights.

        Args:
            in_channels: bands of the input.
            width: factor on every number of channels.
            dilations: rate of the convolutions of each stage.
            batch_norm: put batch norm behind every convolution.
        """
        super().__init__()
        self.channels = tuple(scaled_channels(channels[-1], width) for channels in STAGES)
        """Channels that each stage gives."""
        entering = (in_channels, *self.channels)
        self.stages = nn.ModuleList(
            vgg_stage(
                entering[index],
                tuple(scaled_channels(one, width) for one in channels),
                dilation=dilations[index],
                batch_norm=batch_norm,
            )
            for index, channels in enumerate(STAGES)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> what each stage gives when 2x2 max pooling of stride 2, rounded up, stands between them."""
        found = []
        for index, one in enumerate(self.stages):
            x = one(x if index == 0 else nn.functional.max_pool2d(x, 2, ceil_mode=True))
            found.append(x)
        return found
