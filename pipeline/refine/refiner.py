"""The refiner of one CPU worker: logits at the network's stride and the pixels in, a mask and its statistics out.

Images are worked on in windows with a halo, so memory is bounded by the window (about 1 kB per pixel with 21 classes),
not by the image. A refiner that fails or runs out of time leaves the network's own mask, and says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

import numpy as np
import numpy.typing as npt

from pipeline.config import RefineConfig
from pipeline.records import Bool, Float16, Float32, Image, Scored, UInt8, Window
from pipeline.refine import densecrf
from pipeline.refine.presets import resolve
from pipeline.refine.unary import active_classes, softmax, upsample
from pipeline.stats import PixelStats

HALO_SIGMAS = 2
"""A window sees this many spatial sigmas beyond its core: what lies further off weighs below exp(-2)."""


@dataclass(frozen=True, slots=True)
class Refinement:
    """The mask of one image and what is known about it."""

    mask_hw: UInt8
    """(H, W) class ids; `ignore_id` where the image is not valid."""
    confidence_hw: UInt8
    """(H, W) largest probability, 0 to 255."""
    stats: PixelStats
    refined: bool
    note: str | None
    """Why `refined` is False although a refiner was asked for."""
    active_classes: int
    """Classes left after pruning."""


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

    def __init__(self, cfg: RefineConfig, *, ignore_id: int) -> None:
        self.cfg, self.ignore_id = cfg, ignore_id
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
        height, width, num_classes = scored.height, scored.width, len(logits_khw)
        active = active_classes(logits_khw, prune=self.cfg.prune if refine else 0.0)
        halo_px = int(HALO_SIGMAS * self.params.bi_xy) if refine else 0
        deadline = monotonic() + self.cfg.deadline_s
        mask = np.empty((height, width), np.uint8)
        confidence = np.empty((height, width), np.uint8)
        stats = PixelStats(np.zeros(num_classes, np.int64))
        for core in windows(height, width, self.cfg.window_px):
            outer = with_halo(core, height, width, halo_px)
            scores = upsample(logits_khw, scored, outer)
            before = softmax(scores)
            after = self._marginals(scores, active, image, outer, deadline) if refine and image else before
            inner = _inside(outer, core)
            here = _inside(Window(0, 0, height, width), core)
            label = after[:, *inner].argmax(axis=0).astype(np.uint8)
            valid = None if image is None or image.valid_hw is None else image.valid_hw[here]
            changed = label != before[:, *inner].argmax(axis=0)
            stats.add(label, after[:, *inner], changed, valid)
            mask[here] = label if valid is None else np.where(valid, label, self.ignore_id)
            confidence[here] = (after[:, *inner].max(axis=0) * 255 + 0.5).astype(np.uint8)
        return Refinement(mask, confidence, stats, refine, note, len(active))

    def _marginals(
        self, scores_khw: Float32, active: npt.NDArray[np.intp], image: Image, window: Window, deadline: float
    ) -> Float32:
        """Marginals over all classes of one window; classes that were pruned get 0."""
        rows_columns = _inside(Window(0, 0, image.height, image.width), window)
        valid: Bool | None = None if image.valid_hw is None else image.valid_hw[rows_columns]
        marginals = np.zeros_like(scores_khw)
        if len(active) == 1:
            marginals[active[0]] = 1
            return marginals
        pixels = image.pixels_hwc[rows_columns]
        marginals[active] = densecrf.refine(pixels, scores_khw[active], valid, self.params, deadline=deadline)
        return marginals


def _inside(outer: Window, inner: Window) -> tuple[slice, slice]:
    """Rows and columns of `inner` within an array that covers `outer`."""
    y, x = inner.y - outer.y, inner.x - outer.x
    return slice(y, y + inner.height), slice(x, x + inner.width)
