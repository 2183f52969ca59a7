"""Choice of where the stages of a run work, on Ray or in processes of this machine; imports nothing large."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

from infra import machine
from pipeline.config import SegmentConfig
from pipeline.errors import ConfigError
from pipeline.run import forks

FlowKind = Literal["ray", "processes", "none"]
"""Where stages work; `none` where nothing is left to do."""

PROCESSES_IMAGES = 5000
"""Most images of a run in processes when nothing else is said: for more, the start of Ray is next to nothing."""


def choose_flow(cfg: SegmentConfig, *, images: float) -> FlowKind:
    """Where the stages of a run of so many images work.

    Raises:
        ConfigError: `runtime.flow` is `processes` for rasters, which are read and joined on Ray.
    """
    runtime, is_raster = cfg.runtime, cfg.read.kind == "raster"
    if runtime.flow == "processes" and is_raster:
        raise ConfigError("--runtime.flow processes: rasters are read and joined on Ray", hint="leave the option out")
    if runtime.flow != "auto":
        return runtime.flow
    wants_ray = runtime.dashboard or runtime.crew or runtime.expect_cpus or runtime.expect_gpus
    has_more = "RAY_ADDRESS" in os.environ or machine.has_gpu()
    return "ray" if is_raster or wants_ray or has_more or images > PROCESSES_IMAGES else "processes"


@contextmanager
def early_forks(cfg: SegmentConfig, *, only_plans: bool) -> Generator[forks.Forks | None]:
    """Server of workers for a run that may work in processes: it imports what they need while the driver plans.

    None for another run, and for one that `only_plans`.
    """
    if not only_plans and cfg.read.kind != "raster" and choose_flow(cfg, images=0) == "processes":
        with forks.opened() as server:
            yield server
    else:
        yield None
