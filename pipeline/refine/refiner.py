"""The refiner of one CPU worker: logits at the network's stride and the pixels in, a mask and its statistics out.

Images are worked on in windows with a halo, so memory is bounded by the window (about 1 kB per pixel with 21 classes),
not by the image. A refiner that fails or runs out of time leaves the network's own mask, and says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

import numpy as np

from pipeline.classes import ClassMap
from pipeline.config import RefineConfig
from pipeline.records import Bool, Float16, Float32, Image, Scored, UInt8, Window
from pipeline.refine import densecrf
from pipeline.refine.presets import resolve
from pipeline.refine.unary import softmax, upsample
from pipeline.stats import PixelStats

HALO_SIGMAS = 2
"""A window sees this many spatial sigmas beyond its core: what lies further off weighs below exp(-2)."""


@dataclass(frozen=True, slots=True)
class Refinement:
    """The mask of one image and what is known about it."""

    mask_hw: UInt8
    """(H, W) class ids; `ignore_id` where the image is not valid."""
    confidence_hw: UInt8
    """(H, W) largest probability the network gave, 0 to 255."""
    stats: PixelStats
    refined: bool
    note: str | None
    """Why `refined` is False although a refiner was asked for."""
    active_classes: int
    """Classes the logits came with: all, or those that can win."""


def windows(height: int, width: int, core_px: int) -> Iterator[Window]:
    """Cores that cover an image exactly, row by row; an image up to a quarter larger than a core is left whole."""
    if max(height, width) <= core_px * 1.25:
        yield Window(0, 0, height, width)
        return
    for y in range(0, height, core_px):
        for x in range(0, width, core_px):
            yield Window(y, x, min(core_px, height - y), min(core_px, width - x))


def with_halo(core: Window, height: int, width: int, halo_px: int) -> Window:
    """The core and its surroundings, as far as the image reaches."""
    y, x = max(core.y - halo_px, 0), max(core.x - halo_px, 0)
    bottom = min(core.y + core.height + halo_px, height)
    right = min(core.x + core.width + halo_px, width)
    return Window(y, x, bottom - y, right - x)


class Refiner:
    """Turns logits into a mask, with the engine of the config."""

    def __init__(self, cfg: RefineConfig, classes: ClassMap) -> None:
        self.cfg, self.classes = cfg, classes
        self.params = resolve(cfg)

    def __call__(self, scored: Scored, image: Image | None) -> Refinement:
        """Refine one image. `image` may be None when the engine is `none` and every pixel is valid.

        The deadline counts from here. Raises ValueError when `scored` holds no logits.
        """
        if scored.logits_khw is None:
            raise ValueError(f"{scored.item.key} has no logits")
        if self.cfg.engine == "none" or image is None:
            return self._paint(scored, scored.logits_khw, image, refine=False, note=None)
        try:
            return self._paint(scored, scored.logits_khw, image, refine=True, note=None)
        except densecrf.DeadlinePassed as late:
            note = f"refine_timeout: {self.cfg.deadline_s:g} s passed {late} (--refine.deadline-s)"
            return self._paint(scored, scored.logits_khw, image, refine=False, note=note)

    def _paint(
        self, scored: Scored, logits_khw: Float16, image: Image | None, *, refine: bool, note: str | None
    ) -> Refinement:
        """Go over the windows of one image and put the cores together."""
        height, width = scored.height, scored.width
        ids = np.array(scored.class_ids or range(len(self.classes)), np.uint8)
        deadline = monotonic() + self.cfg.deadline_s
        mask, confidence = np.empty((2, height, width), np.uint8)
        stats = PixelStats(np.zeros(len(self.classes), np.int64))
        for core in windows(height, width, self.cfg.window_px):
            outer = with_halo(core, height, width, int(HALO_SIGMAS * self.params.bi_xy) if refine else 0)
            scores = upsample(logits_khw, scored, outer)
            inner, here = _inside(outer, core), _inside(Window(0, 0, height, width), core)
            before = softmax(scores)[:, *inner]
            after = self._marginals(scores, image, outer, deadline)[:, *inner] if refine and image else before
            label = ids[after.argmax(axis=0)]
            valid = None if image is None or image.valid_hw is None else image.valid_hw[here]
            # Mean field marginals are all but 0 or 1: how sure the network was says more about where to look.
            stats.add(label, before, label != ids[before.argmax(axis=0)], valid)
            mask[here] = label if valid is None else np.where(valid, label, self.classes.ignore_id)
            confidence[here] = (before.max(axis=0) * 255 + 0.5).astype(np.uint8)
        return Refinement(mask, confidence, stats, refine, note, len(ids))

    def _marginals(self, scores_khw: Float32, image: Image, window: Window, deadline: float) -> Float32:
        """Marginals of one window; a class that is alone wins without a CRF."""
        if len(scores_khw) == 1:
            return np.ones_like(scores_khw)
        here = _inside(Window(0, 0, image.height, image.width), window)
        valid: Bool | None = None if image.valid_hw is None else image.valid_hw[here]
        return densecrf.refine(image.pixels_hwc[here], scores_khw, valid, self.params, deadline=deadline)


def _inside(outer: Window, inner: Window) -> tuple[slice, slice]:
    """Rows and columns of `inner` within an array that covers `outer`."""
    y, x = inner.y - outer.y, inner.x - outer.x
    return slice(y, y + inner.height), slice(x, x + inner.width)
