"""Dense CRF in C++ (`densecrf_native/`): mean field over permutohedral lattices.

In: 8-bit pixels of 1 to 8 bands, logits at the network's stride or full size, valid mask. Out: the marginals Q, the
labels, or both. The model is pydensecrf's (Krähenbühl and Koltun 2011: Potts, symmetric normalisation, self term
included); the code is several times faster and releases the GIL. The extension is optional: see `available()`.
"""

from dataclasses import dataclass
from math import ceil, isfinite, sqrt
from time import monotonic
from typing import Any, Literal

import numpy as np

from pipeline import extension
from pipeline.records import Bool, Float16, Float32, UInt8
from pipeline.refine.presets import CrfParams

NATIVE_INTERFACE = 3
"""Interface version of the extension that this module calls."""


_densecrf, UNAVAILABLE_BECAUSE = extension.import_extension("pipeline.refine._densecrf", NATIVE_INTERFACE)
"""The extension module, and the reason why it cannot be used, None when it can."""

Spatial = Literal["auto", "lattice", "separable"]
"""Evaluation of the smoothness kernel: on a lattice as in pydensecrf, as a separable Gaussian cut off at three sigmas,
or the cheaper of the two (`auto`: separable below `SEPARABLE_BELOW_PX`)."""

SEPARABLE_BELOW_PX = 2.0
"""Spatial sigma, pixels, below which the separable Gaussian beats the lattice."""

MAX_BANDS, MAX_CLASSES, MAX_PIXELS = 8, 255, 2**26
LANES = 8
"""Classes are padded to whole vectors of eight floats."""


ANY_NUMBER = 2**62
"""No limit on vertices."""


class TooManyVertices(Exception):
    """The lattice of an image needs more vertices than allowed."""


def available() -> bool:
    """True when the extension was built; `UNAVAILABLE_BECAUSE` has the reason when not."""
    return UNAVAILABLE_BECAUSE is None


@dataclass(frozen=True, slots=True)
class LogitsGrid:
    """Position of logits at the network's stride relative to the pixels, as in `unary.upsample_window`."""

    stride: int
    """Pixels per cell."""
    align_corners: bool = False
    """Cell (i, j) is the pixel (i*stride, j*stride), not the square of `stride` pixels from there on."""
    y: int = 0
    """First row of the pixels within the whole image of the logits."""
    x: int = 0
    """First column."""


@dataclass(frozen=True, slots=True)
class Refined:
    """Result of the mean field."""

    probs_khw: Float32 | None
    """(K, H, W) marginals, sum 1 over K; None unless `probs`."""
    labels_hw: UInt8 | None
    """(H, W) index of the largest marginal, the first of equals; None unless `labels`."""
    first_hw: UInt8 | None
    """(H, W) argmax of the logits; this and the next two are None unless `first`."""
    confidence_hw: Float32 | None
    """(H, W) largest probability of the logits, 0 to 1."""
    nats_hw: Float32 | None
    """(H, W) entropy of the probabilities of the logits, nats."""
    iterations: int
    """Iterations completed: fewer than `params.iterations` when the deadline passed; 0 leaves the logits' softmax."""
    spatial_vertices: int
    """Vertices of the smoothness kernel's lattice; 0 without a lattice."""
    bilateral_vertices: int
    """Vertices of the appearance kernel's lattice."""


class NativeCrf:
    """A dense CRF that keeps its buffers, and the smoothness lattice of the last image size, from call to call.

    Threads may share one object: each running call has a workspace of its own, and results do not depend on the number
    of threads. Raises RuntimeError when the extension is not available.
    """

    def __init__(self, *, spatial: Spatial = "auto", isa: str = "") -> None:
        """`isa` is `baseline`, `avx2` or `avx512`; empty takes the widest that this processor has."""
        if not available():
            raise RuntimeError(f"no native CRF: {UNAVAILABLE_BECAUSE}")
        if spatial not in ("auto", "lattice", "separable"):
            raise ValueError(f"spatial must be auto, lattice or separable, got {spatial!r}")
        self.spatial = spatial
        self.isa = isa
        self._idle = [_densecrf.Engine(isa)]

    def refine(
        self,
        pixels_hwc: UInt8,
        logits_khw: Float32 | Float16,
        valid_hw: Bool | None,
        params: CrfParams,
        *,
        grid: LogitsGrid | None = None,
        band_sigmas: tuple[float, ...] | None = None,
        freeze: float = 1.0,
        deadline: float = np.inf,
        most_vertices: int = ANY_NUMBER,
        probs: bool = True,
        labels: bool = False,
        first: bool = False,
    ) -> Refined:
        """Marginals and labels after `params.iterations` steps of the mean field.

        Pixels that are not valid take no part: they send and receive no message, do not count in the normalisation,
        and keep the softmax of their logits.

        Args:
            pixels_hwc: (H, W, bands) uint8, at most 2^26 pixels. All arrays may be read-only or strided.
            logits_khw: (K, H, W), or with `grid` (K, h, w) at the network's stride; K from 2 to 255, finite.
            valid_hw: (H, W), or None when all pixels are valid.
            params: kernel weights and sigmas; a weight of 0 leaves a kernel out.
            grid: position of logits at a stride, which are upsampled on the fly and never stored at full size.
            band_sigmas: one sigma per band; None takes `params.bi_rgb` for each.
            freeze: pixels with a largest probability of the logits above this keep their label and only send messages;
                1 freezes none.
            deadline: `time.monotonic()` after which no further iteration starts; the result so far is returned.
            most_vertices: of the appearance kernel's lattice; it bounds memory, see `bytes_needed`.
            probs: return the marginals.
            labels: return the labels.
            first: return labels, confidence and entropy of the logits before the mean field.

        Raises:
            TypeError: an argument is no array, or an array of another dtype.
            ValueError: a shape, size or number is out of range, or a logit is not finite.
            TooManyVertices: the image needs more than `most_vertices`; nothing beyond them was allocated.
        """
        _check_arrays(pixels_hwc, logits_khw, valid_hw, grid)
        sigmas = (params.bi_rgb,) * pixels_hwc.shape[2] if band_sigmas is None else tuple(band_sigmas)
        _check_numbers(params, sigmas, pixels_hwc.shape[2], grid)
        if not 0 <= freeze <= 1:
            raise ValueError(f"freeze is {freeze}, allowed is 0 to 1")
        place = grid or LogitsGrid(stride=1)
        workspace = self._workspace()
        try:
            result = workspace.refine(
                image=np.ascontiguousarray(pixels_hwc),
                logits=np.ascontiguousarray(logits_khw, np.float32),
                valid=None if valid_hw is None else np.ascontiguousarray(valid_hw),
                band_sigmas=np.array(sigmas, np.float32),
                bi_w=params.bi_w,
                bi_xy=params.bi_xy,
                pos_w=params.pos_w,
                pos_xy=params.pos_xy,
                iterations=params.iterations,
                separable=_is_separable(self.spatial, params),
                full_size=grid is None,
                stride=place.stride,
                align_corners=place.align_corners,
                origin_y=place.y,
                origin_x=place.x,
                freeze=freeze,
                seconds_left=min(deadline - monotonic(), 1e9),
                most_vertices=most_vertices,
                want_probs=probs,
                want_labels=labels,
                want_first=first,
            )
        finally:
            self._idle.append(workspace)
        if result is None:
            raise TooManyVertices(f"the lattice needs more than {most_vertices} vertices")
        return Refined(*result)

    @property
    def bytes_held(self) -> int:
        """Memory of the idle workspaces, bytes."""
        return sum(workspace.bytes_held for workspace in self._idle)

    def _workspace(self) -> Any:
        """A workspace that no other thread uses; list.pop and list.append are atomic."""
        try:
            return self._idle.pop()
        except IndexError:
            return _densecrf.Engine(self.isa)


def bytes_needed(
    height: int,
    width: int,
    classes: int,
    params: CrfParams,
    *,
    bands: int = 3,
    spatial: Spatial = "auto",
    vertices_per_pixel: float | None = None,
    cells: int | None = None,
    freeze: float = 1.0,
) -> int:
    """Upper bound on the memory of one `refine` beyond its inputs, bytes: outputs and kept buffers.

    Copies of inputs come on top: of arrays that are not C-contiguous, and of full-size logits in float16.
    Rows of halves, which the separable kernel has on most processors, take less; the bound is that of rows of floats.

    Args:
        height: of the image.
        width: of the image.
        classes: number of logits per pixel.
        params: kernel weights and sigmas.
        bands: of the image.
        spatial: as for `NativeCrf`.
        vertices_per_pixel: of the appearance kernel's lattice. None takes the most that noise reaches; photographs
            stay below 0.15 with a colour sigma of 13 and below 1.3 with 3.
        cells: of the logits; None for full-size logits.
        freeze: as for `refine`.
    """
    pixels = height * width
    row = -(-classes // LANES) * LANES * 4
    total = (pixels if cells is None else cells) * row + pixels * (4 * classes + 1)
    total += 0 if cells is None else 4 * classes * cells
    if params.pos_w and _is_separable(spatial, params):
        radius = min(ceil(3 * params.pos_xy), max(height, width))
        rows_kept = height if freeze < 1 else 1
        total += (
            (height + radius) * width * row + rows_kept * (width + 2 * radius) * row + 8 * pixels + 24 * (radius + 1)
        )
    elif params.pos_w:
        most = _most_vertices(height, width, params.pos_xy, ())
        total += _lattice_bytes(pixels, most, 3, row) + (most + 1) * row * (freeze < 1)
    if params.bi_w:
        sigmas = (params.bi_rgb,) * bands
        most = _most_vertices(height, width, params.bi_xy, sigmas)
        if vertices_per_pixel is not None:
            most = min(most, ceil(vertices_per_pixel * pixels))
        total += _lattice_bytes(pixels, most, 3 + bands, row) + (most + 1) * row * (freeze < 1)
    total += (4 * pixels + 8 * (height + 1)) * (freeze < 1)
    scratch = 4 * row * 64 + (width + height + 2**9) * (row + 16 * (3 + bands))
    return total + scratch + 2**20  # the allocator's rounding


def _most_vertices(height: int, width: int, sigma_xy: float, sigmas: tuple[float, ...]) -> int:
    """Most vertices of a lattice: d + 1 per pixel, or all vertices within reach of the box of features.

    A simplex has a diameter of at most 1.5 sigma up to five dimensions and sqrt(3 (d + 1) / 8) beyond, and the
    lattice (2/3)^(d/2) sqrt(d + 1) vertices per unit of volume (Adams et al. 2010, sec. 3; conf. A*_d).
    """
    corners = 3 + len(sigmas)
    reach = 4 * sqrt(3 * corners / 8)
    volume = (height / sigma_xy + reach) * (width / sigma_xy + reach)
    for sigma in sigmas:
        volume *= 255 / sigma + reach
    density = sqrt((2 / 3) ** (corners - 1) * corners)
    return min(corners * height * width, ceil(density * volume))


def _lattice_bytes(pixels: int, vertices: int, corners: int, row: int) -> int:
    """Bytes of a lattice: records, rows of values, chains, and the scratch of building it (hash table, keys)."""
    slots = max(4 * (vertices + 64 * corners), pixels, 2**13)
    slot, key = (32, 16) if corners > 6 else (16, 8)
    return 8 * corners * pixels + (vertices + 1) * (2 * row + 4 * corners + 9) + slots * (slot + key)


def _is_separable(spatial: Spatial, params: CrfParams) -> bool:
    """True when the smoothness kernel is a separable Gaussian, without a lattice."""
    return spatial == "separable" or (spatial == "auto" and params.pos_xy < SEPARABLE_BELOW_PX)


def _check_arrays(pixels: UInt8, logits: Float32 | Float16, valid: Bool | None, grid: LogitsGrid | None) -> None:
    """Raise TypeError or ValueError that names the argument, its value and the allowed values."""
    _check_array("pixels_hwc", pixels, (np.uint8,), 3)
    _check_array("logits_khw", logits, (np.float32, np.float16), 3)
    height, width, bands = pixels.shape
    if not 1 <= height * width <= MAX_PIXELS:
        raise ValueError(f"pixels_hwc has {height}x{width} pixels, allowed are 1 to {MAX_PIXELS}")
    if not 1 <= bands <= MAX_BANDS:
        raise ValueError(f"pixels_hwc has {bands} bands, allowed are 1 to {MAX_BANDS}")
    if not 2 <= len(logits) <= MAX_CLASSES:
        raise ValueError(f"logits_khw has {len(logits)} classes, allowed are 2 to {MAX_CLASSES}")
    if grid is None and logits.shape[1:] != (height, width):
        raise ValueError(f"logits_khw covers {logits.shape[1:]}, the image {(height, width)}: small logits need a grid")
    if 0 in logits.shape:
        raise ValueError("logits_khw has no cells")
    if valid is not None:
        _check_array("valid_hw", valid, (np.bool_,), 2)
        if valid.shape != (height, width):
            raise ValueError(f"valid_hw covers {valid.shape}, the image {(height, width)}")


def _check_array(name: str, array: object, dtypes: tuple[type, ...], ndim: int) -> None:
    """Raise TypeError or ValueError unless it is an array of one of these dtypes with that many axes."""
    allowed = " or ".join(dtype.__name__ for dtype in dtypes)
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is a {type(array).__name__}, not a numpy array of {allowed}")
    if array.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {array.dtype}, allowed is {allowed}")
    if array.ndim != ndim:
        raise ValueError(f"{name} has {array.ndim} axes, not {ndim}")


def _check_numbers(params: CrfParams, sigmas: tuple[float, ...], bands: int, grid: LogitsGrid | None) -> None:
    """Raise ValueError that names the number, its value and the allowed range."""
    for name in ("bi_w", "pos_w"):
        if not (isfinite(getattr(params, name)) and 0 <= getattr(params, name) <= 1e6):
            raise ValueError(f"{name} is {getattr(params, name)}, allowed is 0 to 1e6")
    named = {"bi_xy": params.bi_xy, "pos_xy": params.pos_xy} | {f"sigma of band {i}": s for i, s in enumerate(sigmas)}
    for name, sigma in named.items():
        if not (isfinite(sigma) and 1e-3 <= sigma <= 1e6):
            raise ValueError(f"{name} is {sigma}, allowed is 1e-3 to 1e6")
    if len(sigmas) != bands:
        raise ValueError(f"{len(sigmas)} band_sigmas for {bands} bands")
    if not 1 <= params.iterations <= 1000:
        raise ValueError(f"iterations is {params.iterations}, allowed is 1 to 1000")
    if grid is not None and not (1 <= grid.stride <= 1024 and 0 <= grid.y < 2**24 and 0 <= grid.x < 2**24):
        raise ValueError(f"{grid} is out of range: stride 1 to 1024, y and x from 0")
