"""torch.compile: the time it takes, and the gain for a stream of images."""

from functools import partial
from time import perf_counter

from benchmarks.gpu.clock import medians, wait
from benchmarks.gpu.networks import (
    BATCHES_PER_TURN,
    NetworkCase,
    bare_network,
    default_batch,
    random_images,
    segmenter_of,
    side_px,
    whole_stream,
)
from benchmarks.gpu.plan import Figures, GpuSetting, Measurement

CASES = (
    NetworkCase("deeplab_v3plus_resnet101", 16),
    NetworkCase("deeplab_v3plus_mobilenet_v2", 16),
    NetworkCase("deeplab_v3_resnet50", 16),
)
TINY_CASES = (NetworkCase("farmland"),)
NEEDS_S = 100
"""On two CPU cores ResNet-101 took 52 s to compile; no GPU was measured."""


def measurements(setting: GpuSetting) -> list[Measurement]:
    """One row per network."""
    chosen = TINY_CASES if setting.tiny else CASES
    return [Measurement(case.title, partial(gain, setting, case), NEEDS_S * (not setting.tiny)) for case in chosen]


def gain(setting: GpuSetting, case: NetworkCase) -> Figures:
    """Seconds to compile, and the times of the uncompiled network over the compiled one's: above 1 it pays.

    Raises:
        RuntimeError: the compiler failed, so that the segmenter runs uncompiled.
    """
    batch = default_batch(setting)
    plain = segmenter_of(setting, case, "bf16", batch)
    started = perf_counter()
    compiled = segmenter_of(setting, case, "bf16", batch, compiled=True)
    if not compiled.inference.endswith(" compiled"):
        raise RuntimeError(f"torch.compile failed: {compiled.inference}")
    images = random_images(side_px(setting), batch * BATCHES_PER_TURN, plain.num_channels)
    list(compiled(images))  # the first batch of this size
    wait(setting.device)
    compile_s = perf_counter() - started
    sides = {
        "plain": whole_stream(plain, images),
        "compiled": whole_stream(compiled, images),
        "bare_plain": bare_network(plain, images),
        "bare_compiled": bare_network(compiled, images),
    }
    seconds = medians(sides, setting.repeats, device=setting.device)
    saved_s = (seconds["plain"] - seconds["compiled"]) / len(images)
    return {
        "compile_s": compile_s,
        "inference": compiled.inference,
        "plain_over_compiled": seconds["plain"] / seconds["compiled"],
        "bare_plain_over_compiled": seconds["bare_plain"] / seconds["bare_compiled"],
        "images_to_pay_for_it": compile_s / saved_s if saved_s > 0 else None,
    }
