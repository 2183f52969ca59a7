"""VGG-16, the convolutions of configuration D. Simonyan and Zisserman 2014 (arXiv 1409.1556), table 1.

Networks of the zoo pool and dilate in different ways, so the stages have no pooling. Convolutions keep height and
width unless they are asked not to pad.
"""

from torch import Tensor, nn

from pipeline.models.layers import BatchNorm2d, scaled_channels

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the 3x3 convolutions of each of the five stages."""


def vgg_stage(
    in_channels: int, channels: tuple[int, ...], *, dilation: int = 1, batch_norm: bool = False, padded: bool = True
) -> nn.Sequential:
    """One stage without its pooling: 3x3 convolutions with bias, each with optional batch norm and ReLU."""
    layers: list[nn.Module] = []
    padding = dilation if padded else 0
    for out_channels in channels:
        layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=padding, dilation=dilation))
        layers += [BatchNorm2d(out_channels)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
        in_channels = out_channels
    return nn.Sequential(*layers)


class VGG16(nn.Module):
    """The five stages of VGG-16; a network calls them one by one and pools between them."""

    def __init__(
        self,
        *,
        in_channels: int,
        width: float = 1.0,
        dilations: tuple[int, int, int, int, int] = (1, 1, 1, 1, 1),
        batch_norm: bool = False,
        padded: bool = True,
    ) -> None:
        """Build stages of random weights.

        Args:
            in_channels: bands of the input.
            width: factor on every number of channels.
            dilations: rate of the convolutions of each stage.
            batch_norm: put batch norm behind every convolution.
            padded: pad convolutions with zeros by their rate; otherwise each cuts off as much at every border.
        """
        super().__init__()
        self.channels = tuple(scaled_channels(channels[-1], width) for channels in STAGES)
        """Output channels of each stage."""
        entering = (in_channels, *self.channels)
        self.stages = nn.ModuleList(
            vgg_stage(
                entering[index],
                tuple(scaled_channels(wide, width) for wide in channels),
                dilation=dilations[index],
                batch_norm=batch_norm,
                padded=padded,
            )
            for index, channels in enumerate(STAGES)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> output of each stage, with 2x2 max pooling of stride 2, rounded up, between stages."""
        outputs = []
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else nn.functional.max_pool2d(x, 2, ceil_mode=True))
            outputs.append(x)
        return outputs
