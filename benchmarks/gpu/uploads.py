"""Uploads: the gain of copying pixels to the GPU while the batch before is computed, and the share of a copy it hides.

Three loops run the same batches through the segmenter's own forward pass: pixels already on the device, pixels copied
on the stream that computes, and pixels copied on a stream of their own, as the segmenter does. The second minus the
first is the time of the copies; the second minus the third is how much of it is hidden. A CPU copies nothing.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.clock import Side, medians
from benchmarks.gpu.networks import (
    BATCHES_PER_TURN,
    CASES,
    TINY_CASES,
    NetworkCase,
    default_batch,
    model_of,
    random_images,
    segmenter_of,
    side_px,
    tile_batches,
    whole_stream,
)
from benchmarks.gpu.plan import Figures, GpuSetting, Measurement
from pipeline.infer.segmenter import Segmenter

NAMES = ("deeplab_v3plus_mobilenet_v2", "deeplab_v3plus_resnet101", "camvid")
"""Networks at output stride 16: for the fastest, copies count most."""


class InStep(Segmenter):
    """A segmenter that copies and computes in turn, to measure the gain of overlapping them."""

    def _forward(self, pixels_nhwc: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scored = super()._forward(pixels_nhwc, dtype)
        torch.cuda.synchronize()
        return scored

    def _to_device(self, pixels_nhwc: Tensor) -> Tensor:
        pixels = super()._to_device(pixels_nhwc)
        torch.cuda.synchronize()
        return pixels


def measurements(setting: GpuSetting) -> list[Measurement]:
    """One row per network."""
    wanted = [case for case in CASES if case.name in NAMES and case.output_stride != 8]
    chosen = TINY_CASES[:1] if setting.tiny else wanted
    return [Measurement(case.title, partial(overlap, setting, case)) for case in chosen]


def overlap(setting: GpuSetting, case: NetworkCase) -> Figures:
    """Images/s with and without overlap, and the share of the copies' time that is hidden."""
    batch = default_batch(setting)
    segmenter = segmenter_of(setting, case, "bf16", batch)
    images = random_images(side_px(setting), batch * BATCHES_PER_TURN, segmenter.num_channels)
    batches = tile_batches(segmenter, images)
    if setting.device == "cuda":
        batches = [pixels.pin_memory() for pixels in batches]
    sides = {
        "segmenter": whole_stream(segmenter, images),
        "resident": loop(segmenter, [pixels.to(segmenter.device) for pixels in batches], own_stream=False),
        "one_stream": loop(segmenter, batches, own_stream=False),
        "own_stream": loop(segmenter, batches, own_stream=True),
    }
    if setting.device == "cuda":
        in_step = InStep(model_of(case), segmenter.infer, segmenter.tile, device=setting.device)
        sides["in_step"] = whole_stream(in_step, images)
    seconds = medians(sides, setting.repeats, device=setting.device)
    rates = {f"{name}_images_per_s": len(images) / taken for name, taken in seconds.items()}
    return {**rates, **copies(seconds)} if setting.device == "cuda" else rates


def copies(seconds: Mapping[str, float]) -> Figures:
    """Time of the copies over that of computing, and the share of it that is hidden; None where copies take none."""
    taken = seconds["one_stream"] - seconds["resident"]
    return {
        "copies_over_computing": taken / seconds["resident"],
        "share_of_copies_hidden": (seconds["one_stream"] - seconds["own_stream"]) / taken if taken > 0 else None,
    }


def loop(segmenter: Segmenter, batches: list[Tensor], *, own_stream: bool) -> Side:
    """The segmenter's forward pass over batches of pixels, without waiting in between."""

    @torch.inference_mode()
    def run() -> None:
        for pixels in batches:
            # The forward pass uploads what it is given; pixels on the device stay where they are.
            segmenter._forward(
                pixels if own_stream else pixels.to(segmenter.device, non_blocking=True), segmenter.dtype
            )

    return run
