"""Input normalisation of published weights: mean and standard deviation of each channel, and the channel order.

Values are for pixels scaled to 0 to 1, in the order red, green, blue: the convention of `mean` and `std` in a
checkpoint's card.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Normalisation of one family of weights: `(pixel - mean) / std`, for pixels of 0 to 1 in the order RGB."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False
    """The weights were trained on blue, green, red: an import reverses the planes of the first convolution."""
    origin: str = ""
    """Source of the values, for the summary of an import."""


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), origin="ImageNet's, as torchvision")
INCEPTION = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), origin="0.5, as timm's Xceptions")
EFFICIENTNET = Normalisation(
    (127 / 255,) * 3, (128 / 255,) * 3, origin="127 and 128 in 0 to 255, as tensorflow/tpu's EfficientNet-Lite"
)
TENSORFLOW_8_BIT = Normalisation(
    (128 / 255, 128 / 255, 128 / 255),
    (128 / 255, 128 / 255, 128 / 255),
    origin="(pixel - 128) / 128 of pixels from 0 to 255, as TensorFlow's networks of 8 bits",
)


def subtracted_bgr(blue: float, green: float, red: float) -> Normalisation:
    """Normalisation of Caffe's networks: a mean subtracted from blue, green, red in 0 to 255, and no division."""
    return Normalisation(
        (red / 255, green / 255, blue / 255),
        (1 / 255, 1 / 255, 1 / 255),
        bgr=True,
        origin=f"mean {blue:g}, {green:g}, {red:g} of blue, green, red in 0 to 255, folded into the card",
    )


CAFFE = subtracted_bgr(104.008, 116.669, 122.675)
"""`mean_value` of the DeepLab authors' prototxt files; deeplab-pytorch has the same values."""
