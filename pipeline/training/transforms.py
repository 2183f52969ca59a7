"""Augmentation: random crop, scale, flip, rotation, elastic deformation, colour, blur, noise, haze, JPEG compression.

In: pixels (H, W, C) uint8 with any number of bands, and the label (H, W) uint8 of the same size. Out: both at exactly
the crop size. Every draw comes from the given generator, so the same generator gives the same example. Labels are
resampled by nearest neighbour: every value of the result was in the label before, or is the ignore id.

Colour changes apply to the crop, not to the whole image, and before deformation and rotation. Padding is added after
them, so a padded pixel has the mean colour.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as PilImage
from PIL import ImageFilter
from torch.nn import functional

from pipeline.records import UInt8
from pipeline.training.config import AugmentConfig

Size = tuple[int, int]

_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""YIQ, luma and two axes of chroma, from RGB: FCC NTSC, 1953."""

AIRLIGHT = (180.0, 255.0)
"""Range of the grey level of haze."""


def augment(
    pixels_hwc: UInt8,
    label_hw: UInt8,
    cfg: AugmentConfig,
    rng: np.random.Generator,
    *,
    ignore_id: int,
    fill: Sequence[int],
    rare: Sequence[int] = (),
) -> tuple[UInt8, UInt8]:
    """Augment an example: (h, w, C) pixels and (h, w) label with (h, w) = `cfg.crop_px`.

    Args:
        pixels_hwc: (H, W, C) uint8 of the whole image.
        label_hw: (H, W) uint8 class ids and `ignore_id`.
        cfg: ranges of the random changes.
        rng: source of every draw.
        ignore_id: label of padded pixels.
        fill: colour of padded pixels, one value per band, 0 to 255.
        rare: ids of rare classes, for `cfg.rare_share`.
    """
    margin = math.ceil(3 * cfg.elastic_px)  # three standard deviations: displacements seldom exceed it
    turns = int(rng.integers(4)) if cfg.symmetries else 0
    mirrored = bool(rng.integers(2)) if cfg.flip or cfg.symmetries else False
    height, width = cfg.crop_px[:: -1 if turns % 2 else 1]
    crop = _random_crop(label_hw, (height + 2 * margin, width + 2 * margin), cfg, rng, rare)
    pixels, label = crop.pixels_of(pixels_hwc), crop.label_of(label_hw)
    pixels, label = crop.pad(_recolour(pixels, cfg, rng), fill), crop.pad(label, [ignore_id])
    if margin:
        pixels, label = _warp(pixels, label, cfg.elastic_px, rng, fill=fill, ignore_id=ignore_id)
        pixels, label = (array[margin:-margin, margin:-margin] for array in (pixels, label))
    return _turn(pixels, turns, mirrored), _turn(label, turns, mirrored)


def centre_crop(
    pixels_hwc: UInt8, label_hw: UInt8, size: Size, *, ignore_id: int, fill: Sequence[int]
) -> tuple[UInt8, UInt8]:
    """Crop the centre of an example at its own scale, padded where it is smaller than `size` (height, width)."""
    (image_h, image_w), (height, width) = label_hw.shape, size
    crop = _Crop((image_h, image_w), ((image_h - height) // 2, (image_w - width) // 2), size)
    return crop.pad(crop.pixels_of(pixels_hwc), fill), crop.pad(crop.label_of(label_hw), [ignore_id])


# ---------------------------------------------------------------- crop and scale


@dataclass(frozen=True, slots=True)
class _Crop:
    """Crop window in a scaled image, possibly beyond its edges. Only the part inside the image is resized."""

    scaled: Size
    """Height and width of the whole image after scaling, pixels."""
    corner: Size
    """Top and left of the window in the scaled image, pixels; negative beyond its edges."""
    size: Size
    """Height and width of the window, pixels."""

    @property
    def inside(self) -> tuple[int, int, int, int]:
        """Top, left, bottom and right of the part that lies in the scaled image."""
        (top, left), (height, width) = self.corner, self.size
        return max(top, 0), max(left, 0), min(top + height, self.scaled[0]), min(left + width, self.scaled[1])

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part inside, in pixels of the unscaled image and Pillow's order: left, top, right, bottom."""
        top, left, bottom, right = self.inside
        down, across = height / self.scaled[0], width / self.scaled[1]
        return left * across, top * down, min(right * across, width), min(bottom * down, height)

    def pixels_of(self, pixels_hwc: UInt8) -> UInt8:
        """Resize the part inside, bilinear, with antialiasing where it shrinks."""
        return _per_image(pixels_hwc, lambda image: self._resized(image, PilImage.Resampling.BILINEAR))

    def label_of(self, label_hw: UInt8) -> UInt8:
        """Resize the part inside by nearest neighbour."""
        label: UInt8 = np.asarray(self._resized(PilImage.fromarray(label_hw), PilImage.Resampling.NEAREST))
        return label

    def _resized(self, image: PilImage.Image, resampling: PilImage.Resampling) -> PilImage.Image:
        top, left, bottom, right = self.inside
        return image.resize((right - left, bottom - top), resampling, box=self.box(image.height, image.width))

    def pad(self, part: UInt8, fill: Sequence[int]) -> UInt8:
        """Pad the part inside with `fill` to the whole window."""
        top, left, bottom, right = self.inside
        if part.shape[:2] == self.size:
            return part
        whole = np.empty((*self.size, *part.shape[2:]), np.uint8)
        whole[...] = np.asarray(fill, np.uint8)
        above, before = top - self.corner[0], left - self.corner[1]
        whole[above : above + bottom - top, before : before + right - left] = part
        return whole

    def share_of(self, wanted: UInt8, label_hw: UInt8) -> float:
        """Share of the pixels inside, at every fourth row and column, whose label has a 1 in the table `wanted`."""
        left, top, right, bottom = (int(edge) for edge in self.box(*label_hw.shape))
        return float(wanted[label_hw[top : bottom + 1 : 4, left : right + 1 : 4]].mean())


def _random_crop(
    label_hw: UInt8, size: Size, cfg: AugmentConfig, rng: np.random.Generator, rare: Sequence[int]
) -> _Crop:
    """Draw a window at a random place and scale, up to `rare_tries` times until it has `rare_share` of rare pixels.

    If no window has enough, the best one is returned.
    """
    scaled = _scaled(label_hw.shape, cfg, rng)
    best = _place(scaled, size, rng)
    if not rare or cfg.rare_share == 0:
        return best
    wanted = np.zeros(256, np.uint8)
    wanted[list(rare)] = 1
    share = best.share_of(wanted, label_hw)
    for _ in range(cfg.rare_tries - 1):
        if share >= cfg.rare_share:
            break
        other = _place(scaled, size, rng)
        best, share = max((best, share), (other, other.share_of(wanted, label_hw)), key=lambda pair: pair[1])
    return best


def _scaled(shape: tuple[int, ...], cfg: AugmentConfig, rng: np.random.Generator) -> Size:
    """Height and width of the whole image at a random scale and aspect ratio, which keeps the area."""
    scale = rng.uniform(*cfg.scale)
    stretch = math.exp(rng.uniform(-1, 1) * math.log(cfg.aspect) / 2)
    return max(1, round(shape[0] * scale / stretch)), max(1, round(shape[1] * scale * stretch))


def _place(scaled: Size, size: Size, rng: np.random.Generator) -> _Crop:
    """Random place of a window: inside a larger image, around a smaller one."""
    top, left = (
        int(rng.integers(min(0, have - want), max(0, have - want) + 1)) for have, want in zip(scaled, size, strict=True)
    )
    return _Crop(scaled, (top, left), size)


# ---------------------------------------------------------------- colour, blur, compression


def _recolour(pixels_hwc: UInt8, cfg: AugmentConfig, rng: np.random.Generator) -> UInt8:
    """Change gamma, brightness, contrast and haze, then chroma, blur, noise and compression.

    Every draw of a range is made, used or not, so that the other draws stay the same. Gamma above 1 darkens middle
    levels most, as at dusk, where brightness scales all levels. Haze is the model of atmospheric scattering with one
    depth for the whole image: I = J t + A (1 - t), t the transmission and A the airlight (He 2009, "Single Image Haze
    Removal Using Dark Channel Prior", eq. 1).
    """
    brightness, contrast, saturation = (
        rng.uniform(1 - far, 1 + far) for far in (cfg.brightness, cfg.contrast, cfg.saturation)
    )
    hue, airlight = rng.uniform(-cfg.hue, cfg.hue), rng.uniform(*AIRLIGHT)
    haze, sigma_px = (rng.integers(2) * rng.uniform(0, most) for most in (cfg.haze, cfg.blur_px))
    quality = max(int(rng.integers(cfg.jpeg, 101)), 100 * int(rng.integers(2)))
    exponent, deviation = cfg.gamma ** rng.uniform(-1, 1), 255 * rng.integers(2) * rng.uniform(0, cfg.noise)
    pixels_hwc = _to_the_power(pixels_hwc, exponent)
    flat = (1 - contrast) * brightness * float(pixels_hwc.mean())
    pixels = _levels(pixels_hwc, contrast * brightness * (1 - haze), flat * (1 - haze) + airlight * haze)
    if pixels.shape[2] == 3 and (saturation, hue) != (1, 0):
        pixels = _chroma(pixels, saturation, hue)
    if sigma_px > 0:
        pixels = _per_image(pixels, lambda image: image.filter(ImageFilter.GaussianBlur(float(sigma_px))))
    if deviation > 0:
        noisy = pixels + rng.normal(0, deviation, pixels.shape)
        pixels = np.rint(noisy).clip(0, 255).astype(np.uint8)
    return _per_image(pixels, lambda image: _recompressed(image, quality)) if quality < 100 else pixels


def _to_the_power(pixels_hwc: UInt8, exponent: float) -> UInt8:
    """Raise each value, as a share of 255, to a power."""
    if exponent == 1:
        return pixels_hwc
    table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    raised: UInt8 = table.take(pixels_hwc)
    return raised


def _levels(pixels_hwc: UInt8, gain: float, offset: float) -> UInt8:
    """Map each value to `gain` times it plus `offset`, rounded and clipped to 0 to 255."""
    if (gain, offset) == (1, 0):
        return pixels_hwc
    table = np.rint(np.arange(256) * gain + offset).clip(0, 255).astype(np.uint8)
    levels: UInt8 = table.take(pixels_hwc)
    return levels


def _chroma(pixels_hwc: UInt8, saturation: float, hue: float) -> UInt8:
    """Multiply chroma by `saturation` and rotate it by `hue` of the circle; luma and greys change by rounding only."""
    cosine, sine = saturation * math.cos(2 * math.pi * hue), saturation * math.sin(2 * math.pi * hue)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    mixing = np.column_stack([np.linalg.inv(_YIQ) @ turn @ _YIQ, np.zeros(3)])
    return _per_image(pixels_hwc, lambda image: image.convert("RGB", tuple(mixing.ravel().tolist())))


def _recompressed(image: PilImage.Image, quality: int) -> PilImage.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return PilImage.open(buffer, formats=["JPEG"])


def _per_image(pixels_hwc: UInt8, change: Callable[[PilImage.Image], PilImage.Image]) -> UInt8:
    """Apply a Pillow operation to RGB, or to each band alone: Pillow has no images of other bands."""
    if pixels_hwc.shape[2] == 3:
        return np.asarray(change(PilImage.fromarray(pixels_hwc)))
    bands = (PilImage.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels_hwc, 2, 0))
    return np.stack([np.asarray(change(band)) for band in bands], axis=2)


# ---------------------------------------------------------------- deformation and rotation


def _warp(
    pixels_hwc: UInt8,
    label_hw: UInt8,
    sigma_px: float,
    rng: np.random.Generator,
    *,
    fill: Sequence[int],
    ignore_id: int,
) -> tuple[UInt8, UInt8]:
    """Elastic deformation by a smooth random field. Ronneberger 2015 (U-Net, arXiv 1505.04597), sec. 3.1.

    Displacements are Gaussian with standard deviation `sigma_px` on a 3x3 grid, interpolated bicubic. Pixels are
    sampled bilinear, labels nearest; samples beyond the edge are `fill` and `ignore_id`.
    """
    height, width = label_hw.shape
    coarse = torch.from_numpy(rng.normal(0, sigma_px, (1, 2, 3, 3)).astype(np.float32))
    shifts = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0]
    rows, columns = torch.arange(height)[:, None] + shifts[0], torch.arange(width) + shifts[1]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=2)
    return _sampled(pixels_hwc, grid, "bilinear", fill), _sampled(label_hw[..., None], grid, "nearest", [ignore_id])[
        ..., 0
    ]


def _sampled(pixels_hwc: UInt8, grid_hw2: torch.Tensor, mode: str, fill: Sequence[int]) -> UInt8:
    """Sample at the points of a grid; `fill` is subtracted first, so that the zeros beyond the edge become `fill`."""
    outside = torch.tensor(fill, dtype=torch.float32)[:, None, None]
    bands = torch.from_numpy(np.moveaxis(pixels_hwc, 2, 0).astype(np.float32)) - outside
    values = functional.grid_sample(bands[None], grid_hw2[None], mode=mode, align_corners=False)[0] + outside
    sampled: UInt8 = values.round().to(torch.uint8).permute(1, 2, 0).numpy()
    return sampled


def _turn(array: UInt8, turns: int, mirrored: bool) -> UInt8:
    """Rotate by quarter turns, then flip: one of the eight symmetries of a square."""
    turned = np.rot90(array, turns)
    return turned[:, ::-1] if mirrored else turned
