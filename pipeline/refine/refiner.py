"""Refiner of one CPU worker: logits at the network's stride and the image in, mask and statistics out.

A large image is refined window by window, each with a halo, so memory is bounded by the window. When the deadline
passes, the labels so far stay (the network's own, if there are none), and a note says so.
"""

from collections.abc import Iterator
from time import monotonic

import numpy as np

from pipeline.classes import ClassMap
from pipeline.config import RefineConfig
from pipeline.records import LEFT_WHOLE, Float16, Image, PixelStats, Refinement, Scored, Window
from pipeline.refine.engine import RefinedWindow, WindowInput, make_engine, network_answer, reach_px


def windows(height: int, width: int, core_px: int) -> Iterator[Window]:
    """Cores that cover an image exactly, row by row; an image up to a quarter larger than a core is left whole."""
    if max(height, width) <= core_px * LEFT_WHOLE:
        yield Window(0, 0, height, width)
        return
    for y in range(0, height, core_px):
        for x in range(0, width, core_px):
            yield Window(y, x, min(core_px, height - y), min(core_px, width - x))


def with_halo(core: Window, height: int, width: int, halo_px: int) -> Window:
    """The core widened by `halo_px` on each side, cut off at the borders of the image."""
    y, x = max(core.y - halo_px, 0), max(core.x - halo_px, 0)
    bottom = min(core.y + core.height + halo_px, height)
    right = min(core.x + core.width + halo_px, width)
    return Window(y, x, bottom - y, right - x)


class Refiner:
    """Turns logits into a mask, with the engine of the config."""

    def __init__(self, cfg: RefineConfig, classes: ClassMap) -> None:
        self.cfg, self.classes = cfg, classes
        self.engine = make_engine(cfg)
        self.halo_px = int(reach_px(cfg))

    def __call__(self, scored: Scored, image: Image | None) -> Refinement:
        """Refine one image; the deadline counts from here.

        Args:
            scored: the image's record, with logits (K, h, w) of the classes `scored.class_ids`.
            image: its pixels; None only with the engine `none`, and then every pixel is valid.

        Raises:
            ValueError: `scored` has no logits, or an engine has no image.
        """
        if scored.logits_khw is None:
            raise ValueError(f"{scored.item.key} has no logits")
        if self.engine is not None and image is None:
            raise ValueError(f"{scored.item.key} has no pixels, refine.engine {self.cfg.engine} needs them")
        height, width = scored.height, scored.width
        ids = np.array(scored.class_ids or range(len(self.classes)), np.uint8)
        deadline = monotonic() + self.cfg.deadline_s
        mask, network, confidence = np.empty((3, height, width), np.uint8)
        stats = PixelStats(np.zeros(len(self.classes), np.int64))
        done = planned = 0
        for core in windows(height, width, self.cfg.window_px):
            outer = with_halo(core, height, width, self.halo_px)
            result, iterations = self._refine_window(scored.logits_khw, scored, outer, image, deadline)
            done, planned = done + result.done, planned + iterations
            inner, in_image = _inside(outer, core), _inside(Window(0, 0, height, width), core)
            label, first = ids[result.labels_hw[inner]], ids[result.first_hw[inner]]
            valid = None if image is None or image.valid_hw is None else image.valid_hw[in_image]
            # Mean field marginals are almost 0 or 1: the network's confidence tells more about where to look.
            stats.add(label, result.confidence_hw[inner], result.nats_hw[inner], label != first, valid)
            for whole, ids_hw in ((mask, label), (network, first)):
                whole[in_image] = ids_hw if valid is None else np.where(valid, ids_hw, self.classes.ignore_id)
            confidence[in_image] = (result.confidence_hw[inner] * 255 + 0.5).astype(np.uint8)
        refined = self.engine is not None and (done > 0 or planned == 0)
        return Refinement(mask, network, confidence, stats, refined, self._note(done, planned), len(ids))

    def _refine_window(
        self, logits_khw: Float16, scored: Scored, window: Window, image: Image | None, deadline: float
    ) -> tuple[RefinedWindow, int]:
        """Refined window and its planned iterations; 0, and the network's labels, where one class is left."""
        if self.engine is None or image is None or len(logits_khw) == 1:
            return network_answer(logits_khw, scored, window)[0], 0
        in_image = _inside(Window(0, 0, image.height, image.width), window)
        valid = None if image.valid_hw is None else image.valid_hw[in_image]
        window_input = WindowInput(logits_khw, scored, window, image.pixels_hwc[in_image], valid)
        return self.engine(window_input, deadline=deadline), self.engine.iterations

    def _note(self, done: int, planned: int) -> str | None:
        if done == planned:
            return None
        limit = f"{self.cfg.deadline_s:g} s passed after {done} of {planned} iterations"
        return f"refine_timeout: {limit} (--refine.deadline-s)"


def _inside(outer: Window, inner: Window) -> tuple[slice, slice]:
    """Rows and columns of `inner` within an array that covers `outer`."""
    y, x = inner.y - outer.y, inner.x - outer.x
    return slice(y, y + inner.height), slice(x, x + inner.width)
