"""How many workers of each stage a cluster can hold, and what each one reserves.

Plain arithmetic on the cluster's totals: decided once, before anything is started, so that a cluster that is too small
is refused in words instead of waiting for ever.
"""

import math
from dataclasses import dataclass

from pipeline.config import RuntimeConfig, SegmentConfig
from pipeline.errors import ConfigError
from pipeline.refine.presets import resolve
from pipeline.refine.refiner import HALO_SIGMAS

GIB = 2**30
READ_CPUS = 0.2
WRITE_CPUS = 0.2
CPU_SHARE = 0.4
"""Of a core, reserved by a network and by a refiner where both live on CPUs: more of them than cores, so that whichever
stage is behind has the cores, and the reservations still leave room to read and write."""
GPU_FEEDER_CPUS = 0.5
"""Of a core, reserved beside a GPU for decoding and launching: 2 cores and one GPU still hold every stage."""
GIB_PER_EXPECTED_CPU = 3.0
"""Of a machine with 4 GiB per core, as in ray_cluster.yaml, what Ray leaves after its object store."""
INFER_GIB = 1.5
"""Process, torch, weights and the maps of a batch."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a cluster has in all."""

    cpus: float
    gpus: float
    memory_gib: float

    @classmethod
    def of(cls, totals: dict[str, float], runtime: RuntimeConfig) -> "Resources":
        """What Ray says a cluster has now, or what it is expected to scale up to."""
        cpus, gpus, memory_gib = totals.get("CPU", 0), totals.get("GPU", 0), totals.get("memory", 0) / GIB
        if runtime.expect_cpus is not None:
            cpus, memory_gib = runtime.expect_cpus, max(memory_gib, runtime.expect_cpus * GIB_PER_EXPECTED_CPU)
        return cls(cpus, gpus if runtime.expect_gpus is None else runtime.expect_gpus, memory_gib)


@dataclass(frozen=True, slots=True)
class Workers:
    """Stage by stage: how many workers at most, and what each one reserves."""

    infer: int
    infer_cpus: float
    infer_gpus: float
    infer_gib: float
    refine: int
    refine_cpus: float
    refine_gib: float

    def describe(self) -> str:
        """One line for the log."""
        kind = f"{self.infer_gpus:g} GPU" if self.infer_gpus else f"{self.infer_cpus:g} CPU"
        return (
            f"{self.infer} network actor(s) of {kind} and {self.infer_gib:.1f} GiB, up to {self.refine} refiner(s) of "
            f"{self.refine_cpus:g} CPU and {self.refine_gib:.1f} GiB"
        )


def refiner_gib(cfg: SegmentConfig, num_classes: int) -> float:
    """Memory of one refiner: process and decoded image, and its full-size maps over one window with halo.

    Measured with pydensecrf: 0.7 to 0.9 kB per pixel with 21 classes, about ten float32 maps per class.
    """
    halo_px = HALO_SIGMAS * resolve(cfg.refine).bi_xy
    window_px = max(cfg.refine.window_px * 1.25, cfg.refine.window_px + 2 * halo_px) ** 2
    maps = 10 if cfg.refine.engine == "densecrf" else 4
    image_bytes = cfg.decode.max_mpx * 1e6 * 9  # decoder's copy, pixels, mask, confidence
    return 0.4 + (image_bytes + window_px * num_classes * 4 * maps) / GIB


def _on_cpus(cfg: SegmentConfig, cluster: Resources, pair_gib: float) -> int:
    """Networks of a cluster without GPUs: one per core; one per two beside a CRF, which takes at least as long."""
    cores = cluster.cpus / 2 if cfg.refine.engine == "densecrf" else cluster.cpus
    return max(1, min(math.ceil(cores), int(cluster.memory_gib / pair_gib)))


def decide(cfg: SegmentConfig, cluster: Resources, *, num_classes: int) -> Workers:
    """Fit the stages into a cluster.

    With GPUs: one network per GPU, and a refiner on every core that is left. Without: networks and refiners share
    the cores, as far as the memory goes.

    Raises:
        ConfigError: with the sum, when the cluster cannot hold one worker of each stage.
    """
    refine_gib = refiner_gib(cfg, num_classes)
    infer_gpus = 1.0 if cluster.gpus >= 1 else 0.0
    infer_cpus, refine_cpus = (GPU_FEEDER_CPUS, 1.0) if infer_gpus else (CPU_SHARE, CPU_SHARE)
    infer = cfg.runtime.infer_workers or int(cluster.gpus) or _on_cpus(cfg, cluster, INFER_GIB + refine_gib)
    left_cpus = cluster.cpus - infer * infer_cpus - READ_CPUS - WRITE_CPUS
    left_gib = cluster.memory_gib - infer * INFER_GIB
    fits = min(int(left_cpus / refine_cpus + 1e-6), int(left_gib / refine_gib))
    if fits < 1 or infer * infer_gpus > cluster.gpus:
        needs = (
            f"{infer} network actor(s) x {infer_cpus:g} CPU, {infer_gpus:g} GPU, {INFER_GIB:g} GiB"
            f" + 1 refiner x {refine_cpus:g} CPU, {refine_gib:.1f} GiB"
            f" + reading {READ_CPUS:g} CPU + writing {WRITE_CPUS:g} CPU"
        )
        has = f"{cluster.cpus:g} CPU, {cluster.gpus:g} GPU, {cluster.memory_gib:.1f} GiB"
        hint = "add nodes, lower --runtime.infer-workers or --refine.window-px"
        raise ConfigError(
            f"the cluster is too small: it has {has}, and one worker of each stage needs {needs}", hint=hint
        )
    refine = min(fits, cfg.runtime.refine_workers or (fits if infer_gpus else max(1, int(cluster.cpus))))
    return Workers(infer, infer_cpus, infer_gpus, INFER_GIB, refine, refine_cpus, refine_gib)
