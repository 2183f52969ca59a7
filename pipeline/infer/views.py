"""Multi-scale and flip inference: views of one image, and the fusion of their scores.

In: pixels, and the scores of each view at the network's stride. Out: scores on the image's own grid. Resizing is
bilinear without antialiasing, like `F.interpolate` and TensorFlow's `resize_bilinear`, as in the published multi-scale
figures. All work is in bands of rows, so memory is bounded by the result.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import InferConfig
from pipeline.records import Float16, Float32, UInt8
from pipeline.refine.unary import softmax

BAND_ROWS = 64
"""Rows resized at a time."""

Positions = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class View:
    """One view of an image: its scale and whether it is mirrored."""

    scale: float = 1.0
    """Size of the view over the size of the image."""
    flip: bool = False
    """Mirrored left to right."""


def views(cfg: InferConfig) -> tuple[View, ...]:
    """Views of a config, those that are not mirrored first."""
    return tuple(View(scale, flip) for flip in ((False, True) if cfg.flip else (False,)) for scale in cfg.scales)


def scaled_length(length_px: int, scale: float, *, align_corners: bool) -> int:
    """Pixels along an axis after scaling, rounded half up, at least 1.

    With aligned corners the distance between the first and the last pixel is scaled, as in tensorflow/models,
    research/deeplab/core/utils.py, `scale_dimension`: 513 becomes 257 and 769.
    """
    beyond_px = int(align_corners)
    return max(1, int((length_px - beyond_px) * scale + 0.5) + beyond_px)


def apply_view(pixels_hwc: UInt8, view: View, *, align_corners: bool) -> UInt8:
    """Pixels of a view: (h, w, C) uint8, resized, rounded and mirrored."""
    height, width = (scaled_length(length, view.scale, align_corners=align_corners) for length in pixels_hwc.shape[:2])
    resized_hwc = pixels_hwc
    if (height, width) != pixels_hwc.shape[:2]:
        ys, xs = (
            _rescaled(np.arange(scaled, dtype=np.float64), scaled, full, align_corners=align_corners).clip(0, full - 1)
            for scaled, full in zip((height, width), pixels_hwc.shape[:2], strict=True)
        )
        resized_hwc = np.empty((height, width, pixels_hwc.shape[2]), np.uint8)
        for top, band in _bands(pixels_hwc.transpose(2, 0, 1), ys, xs):
            resized_hwc[top : top + band.shape[1]] = (band + 0.5).transpose(1, 2, 0)
    return resized_hwc[:, ::-1] if view.flip else resized_hwc


class ViewFusion:
    """Fusion of the scores of all views of one image, added in any order."""

    def __init__(self, cfg: InferConfig, *, height: int, width: int, stride: int, align_corners: bool) -> None:
        """Prepare for an image of `height` x `width` pixels."""
        self.missing = self.num_views = len(views(cfg))
        self.averages = self.num_views > 1 and cfg.fuse == "mean_probability"
        self.size_px, self.stride, self.align_corners = (height, width), stride, align_corners
        self._fused: Float16 | Float32 | None = None

    def add(self, view: View, scores_khw: Float16 | Float32) -> None:
        """Add the scores of one view, (K, h, w) on the view's grid."""
        self.missing -= 1
        if self.num_views == 1 and view == View():
            self._fused = scores_khw
            return
        height, width = self.size_px
        ys = self._cells(height, scores_khw.shape[1], View(view.scale))
        xs = self._cells(width, scores_khw.shape[2], view)
        if self._fused is None:
            self._fused = self._empty(len(scores_khw), len(ys), len(xs))
        for top, band in _bands(scores_khw, ys, xs):
            fused = self._fused[:, top : top + band.shape[1]]
            if self.averages:
                fused += softmax(band)
            else:
                np.maximum(fused, band, out=fused)

    def finish(self) -> Float16 | Float32:
        """Fused scores of the image, (K, ceil(H/stride), ceil(W/stride)).

        Scores of a single plain view are unchanged. Several give maxima, or logarithms of mean probabilities, whose
        softmax is the mean again, so a refiner treats them like any logits.

        Raises:
            ValueError: views are missing.
        """
        if self.missing or self._fused is None:
            raise ValueError(f"{self.missing} of {self.num_views} views were never added")
        fused, self._fused = self._fused, None
        if self.averages:
            np.divide(fused, self.num_views, out=fused)
            np.maximum(fused, np.finfo(np.float32).tiny, out=fused)
            np.log(fused, out=fused)
        return fused

    def _empty(self, num_classes: int, height: int, width: int) -> Float32:
        start = 0 if self.averages else -np.inf
        return np.full((num_classes, height, width), start, np.float32)

    def _cells(self, length_px: int, cells: int, view: View) -> Positions:
        """Positions of the image's cells among the cells of a view, along one axis of `length_px` pixels."""
        own = np.arange(-(-length_px // self.stride), dtype=np.float64)
        pixels = own * self.stride if self.align_corners else (own + 0.5) * self.stride - 0.5
        view_px = scaled_length(length_px, view.scale, align_corners=self.align_corners)
        in_view = _rescaled(pixels, length_px, view_px, align_corners=self.align_corners)
        if view.flip:
            in_view = view_px - 1 - in_view
        positions = in_view / self.stride if self.align_corners else (in_view + 0.5) / self.stride - 0.5
        return positions.clip(0, cells - 1)


def _rescaled(positions: Positions, length: int, new_length: int, *, align_corners: bool) -> Positions:
    """Positions along an axis of `length` pixels, converted to the same axis with `new_length` pixels."""
    if align_corners:
        return positions * ((new_length - 1) / max(length - 1, 1))
    return (positions + 0.5) * (new_length / length) - 0.5


def _bands(values_khw: Float16 | Float32 | UInt8, ys: Positions, xs: Positions) -> Iterator[tuple[int, Float32]]:
    """Bilinear samples of (K, h, w) values at all pairs of positions: bands of rows, each with its first row."""
    left = np.floor(xs).astype(np.intp)
    right, along = np.minimum(left + 1, values_khw.shape[2] - 1), (xs - left).astype(np.float32)
    for top in range(0, len(ys), BAND_ROWS):
        rows = ys[top : top + BAND_ROWS]
        upper = np.floor(rows).astype(np.intp)
        lower, down = np.minimum(upper + 1, values_khw.shape[1] - 1), (rows - upper).astype(np.float32)
        first = upper[0]
        touched = values_khw[:, first : lower[-1] + 1].astype(np.float32)
        wide = touched[:, :, left]
        wide += (touched[:, :, right] - wide) * along
        tall = wide[:, upper - first]
        tall += (wide[:, lower - first] - tall) * down[:, None]
        yield top, tall
