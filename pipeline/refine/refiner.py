"""Refiner of one CPU worker: logits at the network's stride and the image in, mask and statistics out.

A large image is refined window by window, each with a halo, so memory is bounded by the window. An image is refined as
a whole or not at all: when the deadline passes before the last iteration of the last window, the mask is the network's
everywhere, and a note says why.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

import numpy as np

from pipeline.classes import ClassMap
from pipeline.config import RefineConfig
from pipeline.records import Float16, Image, PixelStats, Refinement, Scored, UInt8, Window
from pipeline.refine.engine import RefinedWindow, WindowInput, make_engine, network_answer, reach_px, sole_class
from pipeline.refine.window import inside, windows, with_halo


def seconds_allowed(cfg: RefineConfig, height: int, width: int) -> float:
    """Time limit of an image, seconds: `cfg.deadline_s` for each megapixel, and for an image of less than one."""
    return cfg.deadline_s * max(1.0, height * width / 1e6)


class Refiner:
    """Turns logits into a mask, with the engine of the config."""

    def __init__(self, cfg: RefineConfig, classes: ClassMap) -> None:
        self.cfg, self.classes = cfg, classes
        self.engine = make_engine(cfg)
        self.halo_px = int(reach_px(cfg))

    def __call__(
        self,
        scored: Scored,
        image: Image | None,
        *,
        core: Window | None = None,
        progress: Callable[[], None] | None = None,
    ) -> Refinement:
        """Refine one image, every window of it or none; the deadline counts from here.

        Args:
            scored: the image's record, with logits (K, h, w) of the classes `scored.class_ids`.
            image: its pixels (H, W, 1 to 3), the bands that guide the engine; None only with the engine `none`, and
                then every pixel is valid.
            core: part of the image to answer, in its pixels; the rest is halo. None for all of it.
            progress: called before each window.

        Raises:
            ValueError: `scored` has no logits, or an engine has no image.
        """
        if scored.logits_khw is None:
            raise ValueError(f"{scored.item.key} has no logits")
        if self.engine is not None and image is None:
            raise ValueError(f"{scored.item.key} has no pixels, refine.engine {self.cfg.engine} needs them")
        ids = np.array(scored.class_ids or range(len(self.classes)), np.uint8)
        whole = core or Window(0, 0, scored.height, scored.width)
        canvas = _Canvas(whole, image, self.classes)
        deadline = monotonic() + seconds_allowed(self.cfg, whole.height, whole.width)
        cores = [
            replace(window, y=whole.y + window.y, x=whole.x + window.x)
            for window in windows(whole.height, whole.width, self.cfg.window_px)
        ]
        refined_windows = 0
        for window in cores:
            if progress:
                progress()
            outer = with_halo(window, scored.height, scored.width, self.halo_px)
            result, complete = self._refine_window(scored.logits_khw, scored, outer, image, deadline)
            canvas.paste(window, outer, result, ids)
            refined_windows += complete
            if not complete:
                deadline = -math.inf  # what is left needs only the network's labels
        refined = refined_windows == len(cores)
        note = None if refined else self._note(whole, refined_windows, len(cores))
        return canvas.refinement(refined=refined, by_engine=self.engine is not None, note=note, classes=len(ids))

    def _refine_window(
        self, logits_khw: Float16, scored: Scored, window: Window, image: Image | None, deadline: float
    ) -> tuple[RefinedWindow, bool]:
        """Refined window, and whether all its iterations were done; the network's labels where one class is left."""
        if len(logits_khw) == 1:
            return sole_class(window), True
        if self.engine is None or image is None:
            return network_answer(logits_khw, scored, window)[0], True
        in_image = inside(Window(0, 0, image.height, image.width), window)
        valid = None if image.valid_hw is None else image.valid_hw[in_image]
        window_input = WindowInput(logits_khw, scored, window, image.pixels_hwc[in_image], valid)
        result = self.engine(window_input, deadline=deadline)
        return result, result.done == self.engine.iterations

    def _note(self, core: Window, refined_windows: int, windows_of_image: int) -> str:
        """Reason why the mask is the network's although an engine is configured."""
        allowed_s = seconds_allowed(self.cfg, core.height, core.width)
        limit = f"{allowed_s:.4g} s for {core.height * core.width / 1e6:.3g} Mpx passed"
        done = f"after {refined_windows} of {windows_of_image} windows, so none is refined"
        return f"refine_timeout: {limit} {done} (--refine.deadline-s {self.cfg.deadline_s:g})"


class _Canvas:
    """Maps and sums of the part of an image to answer, filled window by window."""

    def __init__(self, size: Window, image: Image | None, classes: ClassMap) -> None:
        self.size = size
        valid_hw = None if image is None else image.valid_hw
        whole = None if image is None else Window(0, 0, image.height, image.width)
        self.valid_hw = None if valid_hw is None or whole is None else valid_hw[inside(whole, size)]
        self.ignore_id = classes.ignore_id
        self.mask, self.network, self.confidence = np.empty((3, size.height, size.width), np.uint8)
        self.stats = PixelStats(np.zeros(len(classes), np.int64))

    def paste(self, core: Window, outer: Window, result: RefinedWindow, ids: UInt8) -> None:
        """Copy the core out of the result for `outer`; `ids` are the class ids of its labels."""
        inner, in_image = inside(outer, core), inside(self.size, core)
        label, first = ids[result.labels_hw[inner]], ids[result.first_hw[inner]]
        valid = None if self.valid_hw is None else self.valid_hw[in_image]
        # Mean field marginals are almost 0 or 1: the network's confidence tells more about where to look.
        self.stats.add(label, result.confidence_hw[inner], result.nats_hw[inner], label != first, valid)
        for whole, ids_hw in ((self.mask, label), (self.network, first)):
            whole[in_image] = ids_hw if valid is None else np.where(valid, ids_hw, self.ignore_id)
        self.confidence[in_image] = (result.confidence_hw[inner] * 255 + 0.5).astype(np.uint8)

    def refinement(self, *, refined: bool, by_engine: bool, note: str | None, classes: int) -> Refinement:
        """The image's record; unless every window is refined, its mask is the network's everywhere."""
        if not refined:
            self.mask[:] = self.network
            self.stats.count_unchanged(self.network, self.valid_hw)
        maps = self.mask, self.network, self.confidence
        return Refinement(*maps, self.stats, refined and by_engine, note, classes)
