"""Number of workers per stage, and the CPUs, GPUs and memory that each reserves.

It is computed from the resources of the nodes before a run starts, so that a cluster that is too small gives an error
instead of waiting forever.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import RuntimeConfig, SegmentConfig
from pipeline.errors import ConfigError
from pipeline.infer.tile import CPU_BATCH
from pipeline.records import LEFT_WHOLE, Footprint
from pipeline.refine.engine import REFINE_ENGINES, window_side_px
from pipeline.source.raster import halo_px

GIB = 2**30
READ_CPUS = 0.2
WRITE_CPUS = 0.2
RASTER_READER_GIB = 0.7
"""Memory of a task that reads windows of rasters: a row of windows, and blocks being decoded."""
CPU_SHARE = 0.4
"""Share of a core that a network or refiner reserves without GPUs: below 1, so that there are more workers than cores.
The slowest stage then gets the cores, and tasks that read and write still fit."""
GPU_FEEDER_CPUS = 0.5
"""Share of a core reserved beside a GPU for decoding and launching: every stage fits on 2 cores and one GPU."""
GIB_PER_EXPECTED_CPU = 3.0
"""Memory per core that Ray leaves after its object store, of 4 GiB per core as in ray_cluster.yaml."""
PROCESS_GIB = {"cpu": 0.4, "cuda": 2.5}
"""Memory of a process that has imported torch, by device; `cuda` includes the CUDA context."""
BYTES_PER_INPUT_PIXEL = {"full": 1500, "reduced": 700}
"""Peak bytes of feature maps per input pixel, float32: measured 1.2 to 1.5 kB for logits at full resolution (U-Net,
SegNet), 0.4 to 0.7 kB for logits at a stride (DeepLab v3+ on ResNet-101 and MobileNetV2, output stride 8 and 16). bf16
needs two thirds of it."""
REFINER_GIB = 0.4
"""Memory of a process that has not imported torch."""
DECODED_AT_ONCE = 2
"""Images of the largest size in a network's process at a time: one to cut into tiles, and one to decode. Several such
images in a row may need more."""


@dataclass(frozen=True, slots=True)
class Resources:
    """CPUs, GPUs and memory of a node, a worker, or a cluster in total."""

    cpus: float
    gpus: float
    memory_gib: float

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus, self.memory_gib + other.memory_gib)

    def __sub__(self, other: "Resources") -> "Resources":
        return Resources(self.cpus - other.cpus, self.gpus - other.gpus, self.memory_gib - other.memory_gib)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU, {self.gpus:g} GPU, {self.memory_gib:.1f} GiB"

    def times(self, other: "Resources") -> int:
        """Number of workers that fit if each reserves `other`."""
        pairs = ((self.cpus, other.cpus), (self.gpus, other.gpus), (self.memory_gib, other.memory_gib))
        return min((int(has / needs + 1e-6) for has, needs in pairs if needs), default=0)


def cluster_nodes(nodes: Iterable[Mapping[str, float]], runtime: RuntimeConfig) -> tuple[Resources, ...]:
    """Resources of each node as Ray reports them; with `runtime.expect_*`, one entry for the scaled-up cluster."""
    available = tuple(
        Resources(node.get("CPU", 0), node.get("GPU", 0), node.get("memory", 0) / GIB) for node in nodes if node
    )
    if runtime.expect_cpus is None and runtime.expect_gpus is None:
        return available
    now = sum(available, start=Resources(0, 0, 0))
    cpus = now.cpus if runtime.expect_cpus is None else runtime.expect_cpus
    memory_gib = max(now.memory_gib, (runtime.expect_cpus or 0) * GIB_PER_EXPECTED_CPU)
    return (Resources(cpus, now.gpus if runtime.expect_gpus is None else runtime.expect_gpus, memory_gib),)


@dataclass(frozen=True, slots=True)
class Workers:
    """Largest number of workers per stage, and the resources that each reserves."""

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
            f"{self.infer} network(s) of {kind} and {self.infer_gib:.1f} GiB, up to {self.refine} refiner(s) of "
            f"{self.refine_cpus:g} CPU and {self.refine_gib:.1f} GiB"
        )


def largest_px(cfg: SegmentConfig) -> float:
    """Pixels of the largest image that a worker decodes; of rasters, of a window with its halo."""
    if cfg.read.kind == "raster":
        return float((cfg.raster.core_px + 2 * halo_px(cfg)) ** 2)
    return cfg.decode.max_mpx * 1e6


def refiner_gib(cfg: SegmentConfig, model: Footprint) -> float:
    """Memory of one refiner: process, decoded image, and its engine's memory for one window with halo, GiB."""
    refine = cfg.refine
    engine = REFINE_ENGINES[refine.engine]
    image_bytes = largest_px(cfg) * (2 * model.bands + 3)  # decoder's copy, pixels, mask, network's mask, confidence
    process_gib = PROCESS_GIB["cpu"] if engine.imports_torch else REFINER_GIB
    return process_gib + (image_bytes + engine.window_bytes(refine, window_side_px(refine), model)) / GIB


def network_gib(cfg: SegmentConfig, model: Footprint, *, device: str) -> float:
    """Host memory of one network, GiB: process, weights, decoded images, logits of one image, feature maps on CPUs.

    Weights count three times, as while a checkpoint loads: the file, its tensors, and the network's own.
    """
    largest = max(*cfg.infer.scales, 1) ** 2
    pixels = largest_px(cfg)
    images = pixels * model.bands * (DECODED_AT_ONCE + (largest if cfg.infer.scales != (1.0,) else 0))
    float16 = min(pixels / model.stride**2 * model.num_classes * 2, cfg.infer.max_logits_mib * 2**20)
    views = len(cfg.infer.scales) * (1 + cfg.infer.flip)
    logits = float16 * (1 + 2 * largest + (2 if views > 1 else 0))  # and a canvas and the fused map in float32
    map_bytes = 0.0
    if device == "cpu":
        tile = (cfg.tile.tile_px * LEFT_WHOLE) ** 2
        input_pixels = cfg.tile.whole_mpx * 1e6 if cfg.tile.mode == "whole" else tile
        per_pixel = BYTES_PER_INPUT_PIXEL["reduced" if model.stride > 1 else "full"]
        map_bytes = (cfg.infer.batch or CPU_BATCH) * input_pixels * per_pixel
    return PROCESS_GIB[device] + (3 * model.weight_bytes + images + logits + map_bytes) / GIB


def _networks_on_cpus(cfg: SegmentConfig, nodes: Sequence[Resources], pair_gib: float) -> int:
    """Number of networks without GPUs: one per core, or per two cores with a CRF, which is at least as slow."""
    cores = sum(node.cpus for node in nodes) / (2 if cfg.refine.engine != "none" else 1)
    return max(1, min(math.ceil(cores), sum(int(node.memory_gib / pair_gib) for node in nodes)))


def _refiners_beside(
    networks: int, nodes: Sequence[Resources], network: Resources, refiner: Resources, others: Resources
) -> int | None:
    """Number of refiners that fit beside the networks and the tasks that read and write; None if those do not fit.

    Each worker is placed on the node with most free CPUs, as Ray spreads workers over nodes that are half full.
    """
    free = list(nodes)
    for needs in [network] * networks + [others]:
        fitting = [index for index, node in enumerate(free) if node.times(needs)]
        if not fitting:
            return None
        most = max(fitting, key=lambda index: (free[index].cpus, free[index].memory_gib))
        free[most] -= needs
    return sum(max(node.times(refiner), 0) for node in free)


def plan_workers(cfg: SegmentConfig, nodes: Sequence[Resources], model: Footprint) -> Workers:
    """Fit the stages into the nodes of a cluster.

    With GPUs: one network per GPU, and one refiner per remaining core. Without GPUs: networks and refiners share the
    cores, limited by memory.

    Raises:
        ConfigError: the cluster cannot hold one worker of each stage; the text compares needs and resources.
    """
    cluster = sum(nodes, start=Resources(0, 0, 0))
    gpus = 1.0 if cluster.gpus >= 1 else 0.0
    gib = network_gib(cfg, model, device="cuda" if gpus else "cpu")
    network = Resources(GPU_FEEDER_CPUS if gpus else CPU_SHARE, gpus, gib)
    refiner = Resources(1.0 if gpus else CPU_SHARE, 0, refiner_gib(cfg, model))
    others = Resources(READ_CPUS + WRITE_CPUS, 0, 0)
    pair_gib = network.memory_gib + refiner.memory_gib
    infer = cfg.runtime.infer_workers or int(cluster.gpus) or _networks_on_cpus(cfg, nodes, pair_gib)
    fits = _refiners_beside(infer, nodes, network, refiner, others)
    if not fits:
        needs = f"{infer} network(s) x {network} + 1 refiner x {refiner} + reading and writing {others.cpus:g} CPU"
        has = f"{cluster} in {len(nodes)} node(s), the largest of {max((node.cpus for node in nodes), default=0):g} CPU"
        has += f" and {max((node.memory_gib for node in nodes), default=0):.1f} GiB"
        raise ConfigError(
            f"the cluster is too small: it has {has}, and one worker of each stage needs {needs}",
            hint="add nodes, lower --runtime.infer-workers, --refine.window-px or --decode.max-mpx",
        )
    refine = min(fits, cfg.runtime.refine_workers or (fits if gpus else max(1, int(cluster.cpus))))
    return Workers(infer, network.cpus, gpus, network.memory_gib, refine, refiner.cpus, refiner.memory_gib)
