"""The refiner of one CPU worker: logits at the network's stride and the pixels in, a mask and its statistics out.

Images are worked on in windows with a halo, so memory is bounded by the window, not by the image. An engine that runs
out of time leaves the best it has, or the network's own mask, and says so.
"""

from collections.abc import Iterator
from time import monotonic

import numpy as np

from pipeline.classes import ClassMap
from pipeline.config import RefineConfig
from pipeline.records import LEFT_WHOLE, Float16, Image, PixelStats, Refinement, Scored, Window
from pipeline.refine.engine import RefinedWindow, WindowInput, make_engine, network_answer
from pipeline.refine.presets import widest_sigma_px

HALO_SIGMAS = 2
"""A window sees this many spatial sigmas beyond its core: what lies further off weighs below exp(-2)."""


def windows(height: int, width: int, core_px: int) -> Iterator[Window]:
    """Cores that cover an image exactly, row by row; an image up to a quarter larger than a core is left whole."""
    if max(height, width) <= core_px * LEFT_WHOLE:
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
        self.engine = make_engine(cfg)
        self.halo_px = int(HALO_SIGMAS * widest_sigma_px(cfg))

    def __call__(self, scored: Scored, image: Image | None) -> Refinement:
        """Refine one image. `image` may be None when the engine is `none` and every pixel is valid.

        The deadline counts from here. Raises ValueError when `scored` holds no logits.
        """
        if scored.logits_khw is None:
            raise ValueError(f"{scored.item.key} has no logits")
        height, width = scored.height, scored.width
        ids = np.array(scored.class_ids or range(len(self.classes)), np.uint8)
        deadline = monotonic() + self.cfg.deadline_s
        mask, network, confidence = np.empty((3, height, width), np.uint8)
        stats = PixelStats(np.zeros(len(self.classes), np.int64))
        done = asked = 0
        for core in windows(height, width, self.cfg.window_px):
            outer = with_halo(core, height, width, self.halo_px)
            answer, of = self._answer(scored.logits_khw, scored, outer, image, deadline)
            done, asked = done + answer.done, asked + of
            inner, here = _inside(outer, core), _inside(Window(0, 0, height, width), core)
            label, first = ids[answer.labels_hw[inner]], ids[answer.first_hw[inner]]
            valid = None if image is None or image.valid_hw is None else image.valid_hw[here]
            # Mean field marginals are all but 0 or 1: how sure the network was says more about where to look.
            stats.add(label, answer.confidence_hw[inner], answer.nats_hw[inner], label != first, valid)
            for whole, ids_hw in ((mask, label), (network, first)):
                whole[here] = ids_hw if valid is None else np.where(valid, ids_hw, self.classes.ignore_id)
            confidence[here] = (answer.confidence_hw[inner] * 255 + 0.5).astype(np.uint8)
        refined, note = self._refined(done, asked, image), self._note(done, asked)
        return Refinement(mask, network, confidence, stats, refined, note, len(ids))

    def _answer(
        self, logits_khw: Float16, scored: Scored, window: Window, image: Image | None, deadline: float
    ) -> tuple[RefinedWindow, int]:
        """The answer for a window, and the iterations it should have; a class that is alone wins without any."""
        if self.engine is None or image is None or len(logits_khw) == 1:
            return network_answer(logits_khw, scored, window)[0], 0
        here = _inside(Window(0, 0, image.height, image.width), window)
        valid = None if image.valid_hw is None else image.valid_hw[here]
        seen = WindowInput(logits_khw, scored, window, image.pixels_hwc[here], valid)
        answer = self.engine(seen, deadline=deadline)
        return answer, self.engine.asked

    def _refined(self, done: int, asked: int, image: Image | None) -> bool:
        """Whether an engine had its say; one class that is alone needs none."""
        return self.engine is not None and image is not None and (done > 0 or asked == 0)

    def _note(self, done: int, asked: int) -> str | None:
        if done == asked:
            return None
        limit = f"{self.cfg.deadline_s:g} s passed after {done} of {asked} iterations"
        return f"refine_timeout: {limit} (--refine.deadline-s)"


def _inside(outer: Window, inner: Window) -> tuple[slice, slice]:
    """Rows and columns of `inner` within an array that covers `outer`."""
    y, x = inner.y - outer.y, inner.x - outer.x
    return slice(y, y + inner.height), slice(x, x + inner.width)
