"""Learning rate schedule of a phase: poly, step, cosine or constant decay, with warm-up.

In: a step. Out: a factor from 0 to 1, a pure function of the step, so a resumed run needs no state.
"""

import math

from pipeline.training.config import ScheduleConfig


def lr_factor(step: int, cfg: ScheduleConfig) -> float:
    """Factor on the learning rate in a step of a phase.

    The product of a linear warm-up to 1 over the first `warmup` steps (Goyal 2017, arXiv 1706.02677, sec. 2.2) and a
    decay from 1 to `floor`, which begins at step 0.

    Args:
        step: from 0 to `cfg.steps` - 1; later steps have the factor at the end of the decay.
        cfg: schedule of the phase.
    """
    warmup = min(1.0, (step + 1) / (cfg.warmup + 1))
    return warmup * (cfg.floor + (1 - cfg.floor) * _decay(step, cfg))


def _decay(step: int, cfg: ScheduleConfig) -> float:
    """Decay factor: 1 at step 0; poly and cosine reach 0 at the end."""
    done = min(1.0, step / cfg.steps)
    match cfg.kind:
        case "poly":  # Chen 2016, arXiv 1606.00915, sec. 4.1.2
            return math.pow(1 - done, cfg.power)
        case "cosine":  # Loshchilov and Hutter 2016, arXiv 1608.03983, eq. 5, without restarts
            return (1 + math.cos(math.pi * done)) / 2
        case "step":  # Chen 2014, arXiv 1412.7062, sec. 5: a tenth every 2000
            return math.pow(cfg.factor, step // cfg.every)
        case "constant":
            return 1.0
