"""Rehearsal of a run: a few images of the source through the real stages, and what they say about the whole plan.

    spread(shards, 64) -> shards cut down to 64 images      CpuClock(ledger) -> CPU seconds of each stage
    Rates, Crew -> PlanForecast: images per second, which stage limits them, hours, core-hours, GPU-hours

The model. An image holds a worker of each stage for `held_s` seconds, and uses `cpu_s` seconds of a core. A stage of
`w` workers passes at most `w / held_s` images per second, and a cluster of `c` cores at most `c / sum(cpu_s)`, since
stages share the cores. The run is as fast as the smallest of these: without GPUs usually the cores, with GPUs a stage.
All else that the rehearsal took (start of Ray, loading of networks, first and last batches) is paid once per run.

Arithmetic and a clock only: `jobs/rehearse.py` runs the images. Nothing here imports Ray.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from time import process_time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.config import RuntimeConfig, SegmentConfig, explain
from pipeline.errors import ConfigError, InputError
from pipeline.run.ledger import FlowLedger, LedgerClient, RunProgress
from pipeline.run.parts import Part
from pipeline.run.pending import PendingShard
from pipeline.run.workers import CPU_SHARE, GPU_FEEDER_CPUS, READ_CPUS, WRITE_CPUS, Resources, Workers
from pipeline.source.left_out import LeftOut
from pipeline.source.shard import Shard
from pipeline.store import objects
from pipeline.store.url import Url

STAGES = ("read", "infer", "refine", "write")
OPENED_SHARDS = 8
"""Most tars, row groups and squares of rasters that a rehearsal opens: each costs a request that a run pays once for
hundreds of images. Slices of folders have no such cost."""
SETTINGS_OF_A_RATE = ("decode", "raster", "tile", "infer", "refine")
"""Groups of settings that change what an image costs."""
_CPU = " cpu"
"""End of the names under which a ledger adds up CPU seconds."""


class CpuClock:
    """Client of a ledger that also adds up the CPU seconds of each stage, as seconds of the stage `<name> cpu`.

    It counts the CPU time of the worker's whole process since it last finished a batch, so what Ray spends there on
    moving blocks counts too. It starts when the client reaches its worker, and for networks and refiners with their
    first batch, so loading does not count.
    """

    def __init__(self, ledger: FlowLedger | LedgerClient) -> None:
        self.ledger: Any = ledger
        self._entered = False
        self._since_s = process_time()

    def __reduce__(self) -> tuple[Any, ...]:
        return CpuClock, (self.ledger,)  # the clock of a worker starts where it is unpickled

    def for_workers(self) -> "CpuClock":
        """Clock of the workers of a flow."""
        return CpuClock(self.ledger.for_workers())

    def enter(self, stage: str, keys: list[str], worker: str) -> list[list[str]]:
        """See `Ledger.enter`."""
        if not self._entered:
            self._entered, self._since_s = True, process_time()
        deaths: list[list[str]] = self.ledger.enter(stage, keys, worker)
        return deaths

    def enter_alone(self, stage: str, key: str, worker: str) -> None:
        """See `Ledger.enter_alone`."""
        self.ledger.enter_alone(stage, key, worker)

    def leave(self, stage: str, keys: list[str], seconds: float) -> None:
        """See `Ledger.leave`."""
        self.ledger.leave(stage, keys, seconds)
        self._count(stage)

    def count_bytes_out(self, stage: str, num_bytes: int) -> None:
        """See `Ledger.count_bytes_out`."""
        self.ledger.count_bytes_out(stage, num_bytes)

    def count_left_out(self, shard: str, left_out: LeftOut) -> None:
        """See `Ledger.count_left_out`."""
        self.ledger.count_left_out(shard, left_out)

    def flush(self) -> None:
        """Pass on what was counted."""
        self.ledger.flush()

    def commit(self, rows: int, failed: dict[str, int], seconds: float) -> None:
        """See `Ledger.commit`."""
        self.ledger.commit(rows, failed, seconds)
        self._count("write")

    def add_to_index(self, part: Part) -> None:
        """See `Ledger.add_to_index`."""
        self.ledger.add_to_index(part)

    def wait_for_workers(self) -> None:
        """Wait until the workers have told their last counts."""
        self.ledger.wait_for_workers()

    def progress(self) -> RunProgress:
        """See `Ledger.progress`."""
        counters: RunProgress = self.ledger.progress()
        return counters

    def _count(self, stage: str) -> None:
        now_s = process_time()
        self.ledger.leave(stage + _CPU, [], now_s - self._since_s)
        self._since_s = now_s


# ---------------------------------------------------------------- the images


def spread(shards: Sequence[Shard], images: int) -> list[PendingShard]:
    """Cut shards down to some images in total, evenly spaced over the source.

    Of slices of folders the images themselves are evenly spaced; of tars, row groups and rasters they are the first
    ones of `OPENED_SHARDS` evenly spaced shards, by their sizes where those are known.

    Args:
        shards: shards of a plan, not empty.
        images: number of images, at least 1; all of them when there are fewer.
    """
    if shards[0].kind != "folder":
        count = min(len(shards), OPENED_SHARDS, images)
        shards = [shards[index * len(shards) // count] for index in range(count)]
    if any(shard.rows is None for shard in shards):  # a tar tells only while it is read
        shares = [images // len(shards) + (index < images % len(shards)) for index in range(len(shards))]
        pairs: list[tuple[Shard, Sequence[int]]] = [
            (shard, range(share)) for shard, share in zip(shards, shares, strict=True)
        ]
    else:
        pairs = _positions([(shard, shard.rows or 0) for shard in shards], images)
    return [_cut(shard, positions) for shard, positions in pairs if positions]


def _positions(shards: Sequence[tuple[Shard, int]], images: int) -> list[tuple[Shard, Sequence[int]]]:
    """Evenly spaced positions among all rows, by shard."""
    ends = list(accumulate(rows for _, rows in shards))
    images = min(images, ends[-1])
    chosen: list[list[int]] = [[] for _ in shards]
    for number in range(images):
        row = number * ends[-1] // images
        index = bisect_right(ends, row)
        chosen[index].append(row - (ends[index] - shards[index][1]))
    return [(shard, positions) for (shard, _), positions in zip(shards, chosen, strict=True)]


def _cut(shard: Shard, positions: Sequence[int]) -> PendingShard:
    """A shard with the images at some positions only; of others than slices, as many from its start."""
    members, kept = shard.members()[: shard.max_rows], set(positions)
    if members:
        return PendingShard(shard, frozenset(file.key for index, file in enumerate(members) if index not in kept))
    return PendingShard(replace(shard, rows=len(positions), max_rows=len(positions)), frozenset())


# ---------------------------------------------------------------- rates, crew, forecast


@dataclass(frozen=True, slots=True)
class Rate:
    """What one image costs a stage."""

    held_s: float
    """Seconds for which it holds a worker, with the cores shared as they were in the rehearsal."""
    cpu_s: float
    """CPU seconds."""

    @property
    def images_per_s(self) -> float:
        """Images per second of one worker."""
        return 1 / self.held_s if self.held_s else math.inf


@dataclass(frozen=True, slots=True)
class Rates:
    """What one image costs each stage, and what a run costs once."""

    stages: Mapping[str, Rate]
    """By the names in `STAGES`."""
    driver_cores: float
    """Cores that the driver keeps busy while images are worked on."""
    fixed_s: float = 0.0
    """Seconds once per run: start of Ray and of the workers, first and last batches."""

    @property
    def cpu_s(self) -> float:
        """CPU seconds of one image in all stages."""
        return sum(rate.cpu_s for rate in self.stages.values())


def rates_of(progress: RunProgress, images: int, *, driver_cores: float) -> Rates:
    """Rates from the counters of a `CpuClock`.

    Args:
        progress: counters at the end of the rehearsal.
        images: images that were segmented, at least 1.
        driver_cores: see `Rates`.
    """
    seconds = progress.seconds
    held = {stage: (seconds.get(stage, 0.0), seconds.get(stage + _CPU, 0.0)) for stage in STAGES}
    return Rates(
        {stage: Rate(busy_s / images, cpu_s / images) for stage, (busy_s, cpu_s) in held.items()}, driver_cores
    )


class Crew(BaseModel):
    """Workers of each stage, and the resources of the cluster that holds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    infer: int = Field(ge=1, description="Networks.")
    refine: int = Field(ge=1, description="Refiners.")
    read: int = Field(ge=1, description="Tasks that read at a time.")
    write: int = Field(ge=1, description="Tasks that write at a time.")
    cores: float = Field(gt=0, description="CPU cores of the cluster.")
    gpus: float = Field(ge=0, description="GPUs of the cluster.")

    def workers(self, stage: str) -> int:
        """Number of workers of a stage of `STAGES`."""
        return int(getattr(self, stage))


def crew_of(workers: Workers, cluster: Resources) -> Crew:
    """Crew of a cluster: networks and refiners as planned, reading and writing in the share of CPUs they leave."""
    left = cluster.cpus - workers.infer * workers.infer_cpus - workers.refine * workers.refine_cpus
    slots = max(int(left / READ_CPUS + 1e-6), 2)
    read = min(2 * workers.infer, slots - 1)
    gpus = workers.infer * workers.infer_gpus
    return Crew(
        infer=workers.infer, refine=workers.refine, read=read, write=slots - read, cores=cluster.cpus, gpus=gpus
    )


@dataclass(frozen=True, slots=True)
class PlanForecast:
    """Time of a whole plan with one crew."""

    crew: Crew
    images: int
    images_per_s: float
    limit: str
    """What limits the rate: a stage, or `cores`."""
    fixed_s: float
    working_s: float
    """Seconds of work on all images at this rate."""

    @property
    def hours(self) -> float:
        """Hours of the run, start included."""
        return (self.fixed_s + self.working_s) / 3600

    @property
    def core_hours(self) -> float:
        """Hours of the run times the cores of the cluster, busy or not."""
        return self.hours * self.crew.cores

    @property
    def gpu_hours(self) -> float:
        """Hours of the run times its GPUs."""
        return self.hours * self.crew.gpus


def limits(rates: Rates, crew: Crew) -> dict[str, float]:
    """Images per second that each stage, and the cores that all of them share, let pass."""
    passed = {stage: crew.workers(stage) * rate.images_per_s for stage, rate in rates.stages.items()}
    cores = max(crew.cores - rates.driver_cores, 0.0)
    return passed | {"cores": cores / rates.cpu_s if rates.cpu_s else math.inf}


def forecast(rates: Rates, crew: Crew, images: int) -> PlanForecast:
    """Time of `images` with a crew; see the model at the top."""
    passed = limits(rates, crew)
    limit = min(passed, key=passed.__getitem__)
    per_s = passed[limit]
    return PlanForecast(crew, images, per_s, limit, rates.fixed_s, images / per_s)


def with_fixed(rates: Rates, crew: Crew, images: int, wall_s: float) -> Rates:
    """Rates with what a rehearsal of `images` in `wall_s` seconds took beyond its images."""
    return replace(rates, fixed_s=max(wall_s - forecast(rates, crew, images).working_s, 0.0))


def crew_for(rates: Rates, images: int, hours: float, *, gpus: bool) -> Crew:
    """Smallest crew that works through `images` in `hours`, start included.

    With GPUs each refiner gets a core. Without, there are as many refiners as cores, as `plan_workers` has it.

    Raises:
        ConfigError: the start alone takes longer.
    """
    left_s = hours * 3600 - rates.fixed_s
    if left_s <= 0:
        message = f"--budget-hours {hours:g} is {hours * 3600:.0f} s, and starting alone took {rates.fixed_s:.0f} s"
        raise ConfigError(message, hint="give more hours")
    per_s = images / left_s
    needed = {stage: max(_ceil(per_s * rate.held_s), 1) for stage, rate in rates.stages.items()}
    cpus = _ceil(per_s * rates.cpu_s + rates.driver_cores)
    others = needed["read"] * READ_CPUS + needed["write"] * WRITE_CPUS
    if gpus:
        cores = max(cpus, _ceil(needed["infer"] * GPU_FEEDER_CPUS + needed["refine"] + others))
        return Crew(**needed, cores=cores, gpus=needed["infer"])
    cores = max(cpus, _ceil((needed["infer"] + needed["refine"]) * CPU_SHARE + others))
    refine = max(needed["refine"], min(cores, int((cores - others) / CPU_SHARE + 1e-6) - needed["infer"]))
    return Crew(**(needed | {"refine": refine}), cores=cores, gpus=0)


def _ceil(value: float) -> int:
    return math.ceil(value - 1e-9)


# ---------------------------------------------------------------- the file of a crew


class CrewFile(BaseModel):
    """What `--crew-output` writes and `--runtime.crew` reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crew: Crew = Field(description="Workers per stage, and the cluster they need.")
    checkpoint: str = Field(description="SHA-256 of the checkpoint that was rehearsed.")
    source: tuple[str, ...] = Field(description="Sources that were rehearsed.")
    settings: dict[str, dict[str, Any]] = Field(description="Settings that change what an image costs, by group.")
    rehearsal: dict[str, Any] = Field(description="Figures for people; a run does not read them.")

    def check(self, cfg: SegmentConfig, checkpoint: str) -> None:
        """Refuse the crew of another checkpoint or of other settings: its rates are not those of this run.

        Raises:
            ConfigError: names what differs, with both values.
        """
        differing = (
            [] if self.checkpoint == checkpoint else [f"checkpoint {self.checkpoint[:12]}, here {checkpoint[:12]}"]
        )
        for group, here in settings_of_a_rate(cfg).items():
            there = self.settings.get(group, {})
            names = sorted({*here, *there})
            differing += [
                f"{group}.{name} {there.get(name)}, here {here.get(name)}"
                for name in names
                if here.get(name) != there.get(name)
            ]
        if differing:
            hint = "rehearse again with the settings of this run: --plan --rehearse 64 --crew-output FILE"
            raise ConfigError(f"{cfg.runtime.crew} was rehearsed with {'; '.join(differing[:3])}", hint=hint)


def settings_of_a_rate(cfg: SegmentConfig) -> dict[str, dict[str, Any]]:
    """Settings that change what an image costs, as plain data by group; of rasters only where they are read."""
    groups = [name for name in SETTINGS_OF_A_RATE if name != "raster" or cfg.read.kind == "raster"]
    return cfg.model_dump(mode="json", include=set(groups))


def read_crew(url: Url) -> CrewFile:
    """Read the file of a crew.

    Raises:
        ConfigError: it is missing, or no such file; names it.
    """
    try:
        return CrewFile.model_validate_json(objects.read_bytes(url, max_bytes=1 << 20))
    except FileNotFoundError as error:
        hint = "--plan --rehearse 64 --crew-output FILE writes one"
        raise ConfigError(f"--runtime.crew {url}: there is no such file", hint=hint) from error
    except ValidationError as error:
        raise explain(error, origin=f"--runtime.crew {url}", model=CrewFile) from error
    except InputError as error:
        raise ConfigError(f"--runtime.crew {url}: {error.detail}") from error


def write_crew(url: Url, crew: CrewFile) -> None:
    """Write the file of a crew."""
    objects.put(url, json.dumps(crew.model_dump(mode="json"), indent=1).encode())


def runtime_of(runtime: RuntimeConfig, url: Url, cluster: Resources) -> RuntimeConfig:
    """Runtime settings with the numbers of networks and refiners of a crew's file.

    Raises:
        ConfigError: the crew was made for a larger cluster; names both.
    """
    crew = read_crew(url).crew
    if cluster.cpus < crew.cores or cluster.gpus < crew.gpus:
        message = f"{url} is for {crew.cores:g} CPU and {crew.gpus:g} GPU, the cluster has {cluster}"
        hint = "add nodes, say with --runtime.expect-cpus and --runtime.expect-gpus what it will scale up to, "
        hint += "or rehearse on this cluster"
        raise ConfigError(message, hint=hint)
    return runtime.model_copy(update={"infer_workers": crew.infer, "refine_workers": crew.refine})
