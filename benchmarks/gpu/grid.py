"""Networks at the precisions and batches that `networks` leaves out; last, since it takes what time is left."""

from functools import partial

from benchmarks.gpu.networks import Precision, cases, default_batch, speed
from benchmarks.gpu.plan import GpuSetting, Measurement

PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "fp32")
BATCHES, TINY_BATCHES = (16, 1, 64), (2, 1)
TINY_CASES = 1


def measurements(setting: GpuSetting) -> list[Measurement]:
    """Every network with every precision and batch but those of `networks`, kind after kind."""
    batches = TINY_BATCHES if setting.tiny else BATCHES
    kinds = [(precision, batch) for batch in batches for precision in PRECISIONS]
    kinds.remove(("bf16", default_batch(setting)))
    return [
        Measurement(
            f"{case.title} {precision} batch {batch}",
            partial(speed, setting, case, precision, batch),
        )
        for precision, batch in kinds
        for case in (cases(setting)[:TINY_CASES] if setting.tiny else cases(setting))
    ]
