"""Training in float64, to compare sums that are taken in another order.

In float32 their rounding errors grow with every step to more than a small mistake would be: over 50 steps the losses
of one and of two workers are apart by 5e-4 on a processor with AVX-512, by 1.4e-3 on one with AVX2. In float64 they are
by 1e-15.

    python -m tests.support.double_precision FLAG ...

runs `jobs.train` with the flags, here and in Ray's workers. First weights are those of float32, doubled; validation
stays in float32, as what is segmented with.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from jobs import command_line, train
from pipeline.training import loop, on_ray, validate


def use() -> None:
    """From here on this process trains in float64."""
    torch.set_default_dtype(torch.float64)
    build = in_single_precision(loop.build_phase_network)
    loop.build_phase_network = lambda *args: build(*args).double()
    loop.validate = in_single_precision(loop.validate)
    validate.predict_samples = in_single_precision(validate.predict_samples)


def in_single_precision(call: Callable) -> Callable:
    @functools.wraps(call)
    def calling(*args: Any, **kwargs: Any) -> Any:
        torch.set_default_dtype(torch.float32)
        try:
            return call(*args, **kwargs)
        finally:
            torch.set_default_dtype(torch.float64)

    return calling


def worker(said: dict[str, Any]) -> str:
    """What Ray's workers do, in float64; in their processes `on_ray` is as it was."""
    use()
    return on_ray.train_worker(said)


def main(argv: list[str]) -> int:
    """See the top of this file."""
    from tests.support import double_precision  # as workers import it: not as `__main__`

    use()
    on_ray.train_worker = double_precision.worker
    return train.main(argv)


if __name__ == "__main__":
    command_line.leave(main(sys.argv[1:]))
