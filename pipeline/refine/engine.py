"""The refinement engines behind one call: the logits of one window in, its labels and what is known of them out.

native            our own dense CRF in C++ (`native.py`), where it was built: the default
torch             the same in plain torch (`lattice_torch.py`), on a GPU if there is one
pydensecrf        the reference (`densecrf.py`)
domain_transform  edge-aware smoothing, another filter (`domain_transform.py`)
none              the network's own labels
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from pipeline import optional
from pipeline.config import RefineConfig
from pipeline.errors import ConfigError, DeadlinePassed
from pipeline.records import Bool, Float16, Float32, Scored, UInt8, Window
from pipeline.refine import domain_transform, native
from pipeline.refine.presets import CrfParams, domain_transform_params, resolve
from pipeline.refine.unary import entropy, softmax, upsample_window

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RefinedWindow:
    """One window, labels as indices into the classes of its logits."""

    labels_hw: UInt8
    first_hw: UInt8
    """What the network alone says."""
    confidence_hw: Float32
    """Largest probability the network gave, 0 to 1."""
    nats_hw: Float32
    """Entropy of the network's probabilities."""
    done: int = 0
    """Iterations."""


@dataclass(frozen=True, slots=True)
class WindowInput:
    """What there is to know about one window of an image."""

    logits_khw: Float16
    """Of the whole image, at the network's stride."""
    scored: Scored
    """The image whose logits these are."""
    window: Window
    pixels_hwc: UInt8
    """Of the window."""
    valid_hw: Bool | None = None
    """Of the window; None when every pixel is valid."""


class Engine(Protocol):
    """Refines one window; keeps its buffers from call to call."""

    asked: int
    """Iterations."""

    def __call__(self, seen: WindowInput, *, deadline: float) -> RefinedWindow:
        """Refine one window, or as much of it as can be done until `deadline`, in seconds of `time.monotonic`."""
        ...


def network_answer(logits_khw: Float16, scored: Scored, window: Window) -> tuple[RefinedWindow, Float32]:
    """What the network alone says of a window, and its full-size scores, (K, H, W)."""
    scores = upsample_window(logits_khw, scored, window)
    probs = softmax(scores)
    first = probs.argmax(axis=0).astype(np.uint8)
    return RefinedWindow(first, first, probs.max(axis=0), entropy(probs)), scores


class Marginals(Protocol):
    """Probabilities (K, H, W) of pixels, full-size scores and a valid mask; may raise DeadlinePassed."""

    def __call__(self, pixels_hwc: UInt8, logits_khw: Float32, valid_hw: Bool | None, *, deadline: float) -> Float32:
        """All of one window."""
        ...


class MarginalsEngine:
    """An engine that works on full-size scores and gives probabilities, or nothing when it runs out of time."""

    def __init__(self, marginals: Marginals, *, asked: int) -> None:
        self.marginals, self.asked = marginals, asked

    def __call__(self, seen: WindowInput, *, deadline: float) -> RefinedWindow:
        """As `Engine`."""
        alone, scores = network_answer(seen.logits_khw, seen.scored, seen.window)
        try:
            after = self.marginals(seen.pixels_hwc, scores, seen.valid_hw, deadline=deadline)
        except DeadlinePassed:
            return alone
        labels = after.argmax(axis=0).astype(np.uint8)
        return RefinedWindow(labels, alone.first_hw, alone.confidence_hw, alone.nats_hw, self.asked)


class NativeEngine:
    """Our own engine: upsamples inside, and keeps the best it has when it runs out of time."""

    def __init__(self, params: CrfParams, spatial: native.Spatial, *, freeze: float) -> None:
        self.params, self.asked, self.freeze = params, params.iterations, freeze
        self._engine = native.NativeCrf(spatial=spatial)

    def __call__(self, seen: WindowInput, *, deadline: float) -> RefinedWindow:
        """As `Engine`."""
        scored, window = seen.scored, seen.window
        grid = native.LogitsGrid(scored.stride, align_corners=scored.align_corners, y=window.y, x=window.x)
        found = self._engine.refine(
            seen.pixels_hwc,
            seen.logits_khw,
            seen.valid_hw,
            self.params,
            grid=grid,
            deadline=deadline,
            freeze=self.freeze,
            probs=False,
            labels=True,
            first=True,
        )
        maps = found.labels_hw, found.first_hw, found.confidence_hw, found.nats_hw
        return RefinedWindow(*maps, found.iterations)  # type: ignore[arg-type]  # all of them were asked for


def _by_torch(params: CrfParams) -> Marginals:
    from pipeline.refine.lattice_torch import DenseCRF  # noqa: PLC0415  # refiners without it save torch's memory

    return partial(DenseCRF().refine_one, params=params)


def _by_pydensecrf(params: CrfParams) -> Marginals:
    with optional.package("pydensecrf2", extra="reference", needed_by="--refine.engine pydensecrf"):
        from pipeline.refine import densecrf  # noqa: PLC0415  # its package needs a compiler
    return partial(densecrf.pydensecrf_marginals, params=params)


def make_engine(cfg: RefineConfig) -> Engine | None:
    """The engine a config asks for; None for none.

    Raises:
        ConfigError: when it is not installed here.
    """
    if cfg.engine == "none":
        return None
    if cfg.engine == "domain_transform":
        smooth = domain_transform_params(cfg)
        return MarginalsEngine(
            partial(domain_transform.domain_transform_marginals, params=smooth), asked=smooth.iterations
        )
    params = resolve(cfg)
    if cfg.engine == "native":
        if not native.available():
            raise ConfigError(
                f"--refine.engine native: {native.UNAVAILABLE_BECAUSE}", hint="pip install with a C++ compiler"
            )
        return NativeEngine(params, cfg.spatial, freeze=cfg.freeze)
    by = _by_torch if cfg.engine == "torch" else _by_pydensecrf
    return MarginalsEngine(by(params), asked=params.iterations)


def resolve_engine(cfg: RefineConfig) -> RefineConfig:
    """The config with an engine that is there: torch in place of `native` where that was not built, with a warning."""
    if cfg.engine != "native" or native.available():
        return cfg
    log.warning(
        "the native CRF is not available (%s): torch's takes its place, several times slower on a CPU; install the "
        "package where there is a C++ compiler",
        native.UNAVAILABLE_BECAUSE,
    )
    return cfg.model_copy(update={"engine": "torch"})
