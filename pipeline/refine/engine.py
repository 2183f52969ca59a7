"""Refinement engines: one window's logits and pixels in, its labels and the network's confidence out.

`REFINE_ENGINES` is the only list of engines: a run plans memory, halo and data flow from it, builds an engine with it
and names the engine in reports. A new engine is one entry there, and its name in `config.EngineName`. Engines that need
torch or an extra import it when they are built.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from time import monotonic
from typing import Protocol

import numpy as np

from pipeline import optional
from pipeline.config import EngineName, RefineConfig
from pipeline.errors import ConfigError, DeadlinePassed
from pipeline.records import LEFT_WHOLE, Bool, Float16, Float32, Footprint, Scored, UInt8, Window
from pipeline.refine import domain_transform, native
from pipeline.refine.presets import CrfParams, crf_params, domain_transform_params
from pipeline.refine.unary import cells_under, entropy, softmax, upsample_window
from pipeline.refine.window import halves, inside

log = logging.getLogger(__name__)

GUIDE_BANDS = 3
"""Bands that guide the refinement unless the config names others: the first ones."""
HALO_SIGMAS = 2
"""A window is refined with this many spatial sigmas around its core: pixels further off weigh less than exp(-2)."""
VERTICES_PER_PIXEL = 1.5
"""Vertices of the appearance kernel's lattice in a window of the largest size: photographs need at most 1.3 at the
narrowest published colour sigma, noise up to 6. Windows of a quarter of that size fit with any content."""
FEWEST_VERTICES = 2**20
"""Least limit of vertices, however small the windows: halos would make the halves of a small window much more work."""


@dataclass(frozen=True, slots=True)
class RefinedWindow:
    """Result for one window; labels are indices into the classes of its logits."""

    labels_hw: UInt8
    """(h, w) after refinement."""
    first_hw: UInt8
    """(h, w) before refinement: argmax of the logits."""
    confidence_hw: Float32
    """(h, w) largest probability of the logits, 0 to 1."""
    nats_hw: Float32
    """(h, w) entropy of the probabilities of the logits, nats."""
    done: int = 0
    """Iterations completed: those of the engine, or 0 with the network's labels."""


@dataclass(frozen=True, slots=True)
class WindowInput:
    """Input for one window of an image."""

    logits_khw: Float16
    """(K, h', w') of the whole image, at the network's stride."""
    scored: Scored
    """Record of the image: stride and alignment of the logits."""
    window: Window
    """Rows and columns to refine, in pixels of the image."""
    pixels_hwc: UInt8
    """(h, w, 1 to 3) of the window: the bands that guide the engine."""
    valid_hw: Bool | None = None
    """(h, w) of the window; None when every pixel is valid."""


class Engine(Protocol):
    """Refines one window; keeps its buffers from call to call."""

    iterations: int
    """Iterations of a call that meets its deadline."""

    def __call__(self, window_input: WindowInput, *, deadline: float) -> RefinedWindow:
        """Refine one window; leave the network's labels when `deadline` (`time.monotonic()`, seconds) passes first."""
        ...


def network_answer(logits_khw: Float16, scored: Scored, window: Window) -> tuple[RefinedWindow, Float32]:
    """Result without refinement: labels, confidence and entropy of a window, and its full-size scores (K, h, w)."""
    scores = upsample_window(logits_khw, scored, window)
    probs = softmax(scores)
    first = probs.argmax(axis=0).astype(np.uint8)
    return RefinedWindow(first, first, probs.max(axis=0), entropy(probs)), scores


def sole_class(window: Window) -> RefinedWindow:
    """Result of a window with one class: it has every pixel, with probability 1."""
    labels = np.zeros((window.height, window.width), np.uint8)
    return RefinedWindow(labels, labels, np.ones(labels.shape, np.float32), np.zeros(labels.shape, np.float32))


class Marginals(Protocol):
    """Filter from pixels, full-size scores and a valid mask to probabilities (K, H, W); may raise DeadlinePassed."""

    def __call__(self, pixels_hwc: UInt8, logits_khw: Float32, valid_hw: Bool | None, *, deadline: float) -> Float32:
        """Probabilities of one window."""
        ...


class MarginalsEngine:
    """Engine around a `Marginals` filter; without enough time it returns the network's labels."""

    def __init__(self, marginals: Marginals, *, iterations: int) -> None:
        self.marginals, self.iterations = marginals, iterations

    def __call__(self, window_input: WindowInput, *, deadline: float) -> RefinedWindow:
        """As `Engine`."""
        before, scores = network_answer(window_input.logits_khw, window_input.scored, window_input.window)
        if monotonic() > deadline:  # filters look at the clock only after they have built their lattices
            return before
        try:
            probs = self.marginals(window_input.pixels_hwc, scores, window_input.valid_hw, deadline=deadline)
        except DeadlinePassed:
            return before
        labels = probs.argmax(axis=0).astype(np.uint8)
        return RefinedWindow(labels, before.first_hw, before.confidence_hw, before.nats_hw, self.iterations)


class NativeEngine:
    """Engine around the C++ CRF, which upsamples inside; without enough time it returns the network's labels.

    A window with more vertices than `most_vertices`, as noise has, is refined in halves, each with a halo: memory has a
    bound, whatever the pixels are.
    """

    def __init__(
        self,
        params: CrfParams,
        spatial: native.Spatial,
        *,
        freeze: float,
        most_vertices: int,
        halo_px: int,
        band_sigmas: tuple[float, ...] | None = None,
    ) -> None:
        self.params, self.iterations, self.freeze, self.band_sigmas = params, params.iterations, freeze, band_sigmas
        self.most_vertices, self.halo_px = most_vertices, halo_px
        self._crf = native.NativeCrf(spatial=spatial)

    def __call__(self, window_input: WindowInput, *, deadline: float) -> RefinedWindow:
        """As `Engine`."""
        try:
            return self._refine(window_input, deadline)
        except native.TooManyVertices:
            return self._refine_halves(window_input, deadline)

    def _refine(self, window_input: WindowInput, deadline: float) -> RefinedWindow:
        scored, window = window_input.scored, window_input.window
        # Without kernels nothing is built: a deadline that has passed costs one pass over the pixels.
        params = replace(self.params, bi_w=0, pos_w=0) if monotonic() > deadline else self.params
        logits_khw, y, x = cells_under(window_input.logits_khw, scored, window)  # the CRF copies what it is given
        refined = self._crf.refine(
            window_input.pixels_hwc,
            logits_khw,
            window_input.valid_hw,
            params,
            grid=native.LogitsGrid(scored.stride, align_corners=scored.align_corners, y=y, x=x),
            band_sigmas=self.band_sigmas,
            deadline=deadline,
            freeze=self.freeze,
            most_vertices=self.most_vertices,
            probs=False,
            labels=True,
            first=True,
        )
        complete = params is self.params and refined.iterations == self.iterations
        labels = refined.labels_hw if complete else refined.first_hw
        maps = labels, refined.first_hw, refined.confidence_hw, refined.nats_hw
        return RefinedWindow(*maps, self.iterations * complete)  # type: ignore[arg-type]  # none is None: all requested

    def _refine_halves(self, window_input: WindowInput, deadline: float) -> RefinedWindow:
        window, valid = window_input.window, window_input.valid_hw
        height, width = window.height, window.width
        labels, first = np.empty((2, height, width), np.uint8)
        confidence, nats = np.empty((2, height, width), np.float32)
        done = self.iterations
        for core, outer in halves(height, width, self.halo_px):
            here = inside(Window(0, 0, height, width), outer)
            part = replace(
                window_input,
                window=replace(outer, y=window.y + outer.y, x=window.x + outer.x),
                pixels_hwc=window_input.pixels_hwc[here],
                valid_hw=None if valid is None else valid[here],
            )
            result = self(part, deadline=deadline)
            source, target = inside(outer, core), inside(Window(0, 0, height, width), core)
            labels[target], first[target] = result.labels_hw[source], result.first_hw[source]
            confidence[target], nats[target] = result.confidence_hw[source], result.nats_hw[source]
            done = min(done, result.done)
        return RefinedWindow(labels if done == self.iterations else first, first, confidence, nats, done)


# The table -----------------------------------------------------------------------------------------------------------

EngineMemory = Callable[[RefineConfig, int, Footprint], int]
"""Bytes of a square window, from its side in pixels, halo included, and the network whose logits it has."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One refinement engine: everything the rest of the project needs to know to plan, build and name it."""

    build: Callable[[RefineConfig], Engine] | None
    """Factory; raises ConfigError where the engine is not installed. None leaves the network's labels as they are."""
    sigma_px: Callable[[RefineConfig], float]
    """Spatial sigma of the widest kernel, pixels: `reach_px` follows from it."""
    window_bytes: EngineMemory
    """Memory of one window, on top of the process and the decoded image."""
    needs_pixels: bool = True
    """False lets the stages before drop the encoded image."""
    has_preset: bool = True
    """The engine is a dense CRF and takes its parameters from `--refine.preset`."""
    imports_torch: bool = False


def _per_pixel(fixed: int, per_class: int) -> EngineMemory:
    """Memory of an engine that needs this many bytes per pixel, and more for each class."""
    return lambda _cfg, side_px, model: side_px**2 * (fixed + per_class * model.num_classes)


def window_side_px(cfg: RefineConfig) -> int:
    """Side of the largest window that is refined at once, halo included, pixels."""
    return int(max(cfg.window_px * LEFT_WHOLE, cfg.window_px + 2 * reach_px(cfg)))


def most_vertices(cfg: RefineConfig) -> int:
    """Limit of vertices of the native engine: those that photographs need in the largest window."""
    return max(ceil(VERTICES_PER_PIXEL * window_side_px(cfg) ** 2), FEWEST_VERTICES)


def _native_bytes(cfg: RefineConfig, side_px: int, model: Footprint) -> int:
    return native.bytes_needed(
        side_px,
        side_px,
        model.num_classes,
        crf_params(cfg),
        spatial=cfg.spatial,
        freeze=cfg.freeze,
        vertices_per_pixel=most_vertices(cfg) / side_px**2,
        cells=(side_px // model.stride + 3) ** 2,
    )


def _build_native(cfg: RefineConfig) -> Engine:
    if not native.available():
        reason = f"--refine.engine native: {native.UNAVAILABLE_BECAUSE}"
        raise ConfigError(reason, hint="pip install with a C++ compiler")
    limits = {"most_vertices": most_vertices(cfg), "halo_px": int(reach_px(cfg))}
    sigmas = cfg.guide_sigmas or None
    return NativeEngine(crf_params(cfg), cfg.spatial, freeze=cfg.freeze, band_sigmas=sigmas, **limits)


def _build_torch(cfg: RefineConfig) -> Engine:
    from pipeline.refine.lattice_torch import DenseCRF  # noqa: PLC0415  # refiners without it save torch's memory

    params = crf_params(cfg)
    marginals = partial(DenseCRF().refine_one, params=params, band_sigmas=cfg.guide_sigmas or None)
    return MarginalsEngine(marginals, iterations=params.iterations)


def _build_pydensecrf(cfg: RefineConfig) -> Engine:
    with optional.package("pydensecrf2", extra="reference", needed_by="--refine.engine pydensecrf"):
        from pipeline.refine import densecrf  # noqa: PLC0415  # its package needs a compiler
    params = crf_params(cfg)
    return MarginalsEngine(partial(densecrf.pydensecrf_marginals, params=params), iterations=params.iterations)


def _build_domain_transform(cfg: RefineConfig) -> Engine:
    params = domain_transform_params(cfg)
    marginals = partial(domain_transform.domain_transform_marginals, params=params)
    return MarginalsEngine(marginals, iterations=params.iterations)


def _appearance_sigma_px(cfg: RefineConfig) -> float:
    """Spatial sigma of the appearance kernel, in every preset the wider of the two."""
    return crf_params(cfg).bi_xy


# Bytes per pixel, above the largest measured on images of noise, 224 to 600 pixels wide, with 2 and with 21 classes:
# torch 2819 and 3802, up to 3550 with 2 classes and lattices cached for other sizes; pydensecrf 698 and 2251, up to
# 2459 after windows of other sizes; domain_transform 70 and 448, none 47 and 423.
REFINE_ENGINES: dict[EngineName, EngineSpec] = {
    "native": EngineSpec(_build_native, _appearance_sigma_px, _native_bytes),
    "torch": EngineSpec(_build_torch, _appearance_sigma_px, _per_pixel(3800, 80), imports_torch=True),
    "pydensecrf": EngineSpec(_build_pydensecrf, _appearance_sigma_px, _per_pixel(1000, 85)),
    "domain_transform": EngineSpec(
        _build_domain_transform, lambda cfg: cfg.sigma_s, _per_pixel(40, 24), has_preset=False
    ),
    "none": EngineSpec(None, lambda _: 0, _per_pixel(16, 20), needs_pixels=False, has_preset=False),
}
"""Every value of `--refine.engine`: the dense CRF in C++ (`native.py`), in torch (`lattice_torch.py`) and by pydensecrf
(`densecrf.py`), the domain transform (`domain_transform.py`), and no refinement."""


def guide_bands(cfg: RefineConfig, channels: tuple[str, ...]) -> list[int]:
    """Indices of the bands that guide the refinement: those of `cfg.guide`, or the first three.

    Raises:
        ConfigError: `cfg.guide` names a band that is not in `channels`, or `cfg.guide_sigmas` has another length.
    """
    names = cfg.guide or channels[:GUIDE_BANDS]
    if missing := [name for name in names if name not in channels]:
        raise ConfigError(f"--refine.guide names {', '.join(missing)}; the bands are {', '.join(channels)}")
    if cfg.guide_sigmas and len(cfg.guide_sigmas) != len(names):
        raise ConfigError(f"--refine.guide-sigmas has {len(cfg.guide_sigmas)} values for {', '.join(names)}: one each")
    return [channels.index(name) for name in names]


def make_engine(cfg: RefineConfig) -> Engine | None:
    """Build the engine of a config; None for `none`.

    Raises:
        ConfigError: the engine is not installed.
    """
    build = REFINE_ENGINES[cfg.engine].build
    return build(cfg) if build else None


def reach_px(cfg: RefineConfig) -> float:
    """Halo of a window: the engine's reach beyond a pixel, pixels; 0 for `none`."""
    return HALO_SIGMAS * REFINE_ENGINES[cfg.engine].sigma_px(cfg)


def describe_engine(cfg: RefineConfig) -> str:
    """Engine and preset in a few words, for a report."""
    return f"{cfg.engine}, preset {cfg.preset}" if REFINE_ENGINES[cfg.engine].has_preset else cfg.engine


def substitution(cfg: RefineConfig) -> str | None:
    """Engine that takes the place of the configured one and why, as text; None when the configured one is there."""
    if cfg.engine != "native" or native.available():
        return None
    return f"torch in place of native, several times slower on a CPU ({native.UNAVAILABLE_BECAUSE})"


def resolve_engine(cfg: RefineConfig) -> RefineConfig:
    """Replace `native` by `torch` where the extension was not built, with a warning; leave every other config."""
    if not (text := substitution(cfg)):
        return cfg
    log.warning("refine engine: %s; install the package where there is a C++ compiler", text)
    return cfg.model_copy(update={"engine": "torch"})
