"""Agreement: logits and labels of each precision on the device against the CPU's in float32.

Shipped networks on generated farmland, whose labels are theirs, and one large network with random weights. Logits are
the segmenter's float16, with the largest of each cell at 0.
"""

from collections.abc import Iterable
from functools import lru_cache, partial

import numpy as np

from benchmarks.gpu.networks import NetworkCase, Precision, segmenter_of, side_px
from benchmarks.gpu.plan import Figures, GpuSetting, Measurement
from pipeline.datasets import farmland
from pipeline.records import Float16, Image

CASES = (
    NetworkCase("farmland"),
    NetworkCase("camvid"),
    NetworkCase("cwfid"),
    NetworkCase("deeplab_v3plus_resnet101", 16),
)
TINY_CASES = (NetworkCase("farmland"),)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
IMAGES, BATCH = 4, 2
ON_CPU = GpuSetting("cpu")


def measurements(setting: GpuSetting) -> list[Measurement]:
    """One row per network and precision."""
    return [
        Measurement(f"{case.title} {precision}", partial(differences, setting, case, precision))
        for case in (TINY_CASES if setting.tiny else CASES)
        for precision in PRECISIONS
    ]


def differences(setting: GpuSetting, case: NetworkCase, precision: Precision) -> Figures:
    """Share of equal labels, and differences of logits, of one network in one precision."""
    ours = logits_of(setting, case, precision, scenes(side_px(setting)))
    exact = exact_logits(case, side_px(setting))
    gaps = np.abs(ours.astype(np.float32) - exact.astype(np.float32))
    return {
        "labels_agreeing": float((ours.argmax(1) == exact.argmax(1)).mean()),
        "largest_logit_difference": float(gaps.max()),
        "mean_logit_difference": float(gaps.mean()),
        "logit_deviation": float(exact.astype(np.float32).std()),
    }


@lru_cache(maxsize=1)
def scenes(side: int) -> tuple[Image, ...]:
    """Square images of farmland."""
    return tuple(
        Image(farmland.generate_scene(seed, height=side, width=side).image_hwc, None) for seed in range(IMAGES)
    )


@lru_cache(maxsize=1)
def exact_logits(case: NetworkCase, side: int) -> Float16:
    """Logits by the CPU in float32, once for all precisions."""
    return logits_of(ON_CPU, case, "fp32", scenes(side))


def logits_of(setting: GpuSetting, case: NetworkCase, precision: Precision, images: Iterable[Image]) -> Float16:
    """(N, K, h, w) logits of images of one size."""
    logits = []
    for prediction in segmenter_of(setting, case, precision, BATCH)(images):
        if prediction.logits_khw is None:
            raise RuntimeError(f"{case.title} in {precision} on {setting.device} gave no logits: {prediction.error}")
        logits.append(prediction.logits_khw)
    return np.stack(logits)
