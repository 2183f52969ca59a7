"""The learning rate over a phase, as a share of its highest.

In: a step. Out: a factor from 0 to 1, a pure function of the step, so a resumed run needs no state.
"""

import math

from pipeline.training.config import ScheduleConfig


def factor(step: int, cfg: ScheduleConfig) -> float:
    """Factor on the learning rate in a step of a phase.

    The product of a linear rise over the first `warmup` steps (Goyal 2017, arXiv 1706.02677, sec. 2.2), which ends at
    1, and of a fall from 1 to `floor`, which begins at step 0.

    Args:
        step: from 0 to `cfg.steps` - 1; later ones stay at the end of the fall.
        cfg: the schedule.
    """
    rise = min(1.0, (step + 1) / (cfg.warmup + 1))
    return rise * (cfg.floor + (1 - cfg.floor) * _fall(step, cfg))


def _fall(step: int, cfg: ScheduleConfig) -> float:
    """1 at step 0; poly and cosine are 0 at the end."""
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
