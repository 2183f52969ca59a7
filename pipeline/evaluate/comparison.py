"""Comparison of networks: parameters, MACs, speed and memory on this machine, and mIoU on labelled images.

In: networks of the zoo with random weights, which take the time and memory of trained ones, and checkpoints. Out: one
row for each. Every measurement uses the loop of the main job, `Segmenter` with its defaults, in one process each: peak
memory is then the network's, and out of memory fails that network only. Published figures are in `models.catalogue`.
"""

import gc
import logging
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.classes import ClassMap
from pipeline.config import InferConfig, TileConfig
from pipeline.errors import ConfigError, JobError
from pipeline.infer.segmenter import Segmenter
from pipeline.models import catalogue, checkpoint, zoo
from pipeline.models.card import Card, load_card
from pipeline.models.catalogue import Variant
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.normalisation import IMAGENET
from pipeline.process_memory import peak_bytes
from pipeline.records import Image
from pipeline.store.url import Url
from pipeline.training.collection import open_collection
from pipeline.training.config import TrainConfig
from pipeline.training.ranks import Group
from pipeline.training.validate import validate

log = logging.getLogger(__name__)

T = TypeVar("T")

_MIB = 2**20
CLEAR_PEAK = Path("/proc/self/clear_refs")
"""Writing 5 to it resets the peak resident size of this process on Linux: proc(5)."""


@dataclass(frozen=True, slots=True)
class ComparedNetwork:
    """Network and weights to compare."""

    variant: Variant
    """Its entry of the catalogue; for a checkpoint that is no published variant, one made from its card."""
    card: Card
    checkpoint: str | None = None
    """Folder of the checkpoint, or a shipped name; None for random weights."""

    def load(self) -> Checkpoint:
        """The network with its weights."""
        return checkpoint.load_checkpoint(self.checkpoint) if self.checkpoint else with_random_weights(self.card)


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """Settings of the measurement of speed and memory."""

    height_px: int
    """Height of the images, pixels."""
    width_px: int
    images: int
    """Images per round, segmented as one stream."""
    rounds: int
    """Rounds; each measures every network once."""
    device: str
    """cpu or cuda."""
    threads: int
    """CPU threads of a network."""


@dataclass(frozen=True, slots=True)
class RoundTiming:
    """Time and peak memory of one network in one round."""

    stream_s: float
    """Wall time per image of a stream, whose images share batches, seconds."""
    alone_s: float
    """Latency: wall time of a single image from pixels to logits, seconds."""
    cpu_s: float
    """Processor time per image of the stream, all threads, seconds; with a GPU, that of the host."""
    peak_mib: float
    """Peak memory, MiB: of tensors on the GPU, or of the whole process including Python and torch."""


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """Costs and scores of one network. Speeds are medians over the rounds, None where nothing was measured."""

    name: str
    network: str
    year: int
    paper: str
    output_stride: int
    parameters: int
    gmacs: float
    """Multiply-accumulates of one image, 1e9."""
    images_per_s: float | None
    """Throughput of a stream."""
    ms: float | None
    """Latency of a single image, milliseconds: median, and below it minimum and maximum."""
    ms_least: float | None
    ms_most: float | None
    cpu_ms: float | None
    """Processor time per image of the stream, milliseconds."""
    times_fastest: float | None
    """Time relative to the fastest network in the same round: processor time on a CPU, wall time on a GPU."""
    peak_mib: float | None
    """See `RoundTiming`."""
    miou: float | None
    """Mean IoU measured here, percent; None without a checkpoint or without labelled images."""
    images_scored: int
    published_miou: float | None
    published_on: str
    note: str
    """Reason for missing figures; empty where none are missing."""


def with_random_weights(card: Card) -> Checkpoint:
    """Checkpoint of the card's network with random weights of a fixed seed."""
    torch.manual_seed(0)
    network = zoo.build_network(
        card.architecture,
        len(card.classes),
        in_channels=card.in_channels,
        output_stride=card.output_stride,
        **card.options,
    )
    return Checkpoint(card, network.state_dict(), "0" * 64)


def untrained_network(variant: Variant, classes: ClassMap) -> ComparedNetwork:
    """Catalogue variant with random weights for these classes, at its published output stride."""
    with torch.device("meta"):
        output_stride = variant.build(len(classes)).output_strides[0]
    card = Card(
        architecture=variant.network,
        options=variant.options,
        output_stride=output_stride,
        classes=classes,
        mean=IMAGENET.mean,
        std=IMAGENET.std,
        source="random",
        license="Apache-2.0",
    )
    return ComparedNetwork(variant, card)


def compared_checkpoint(name: str, ref: str) -> ComparedNetwork:
    """Checkpoint to compare: as the catalogue variant `name`, or as a network of its own.

    Raises:
        ConfigError: there is no checkpoint at `ref`, or its network is not the variant's.
    """
    card = load_card(ref)
    same = [variant for variant in catalogue.VARIANTS if variant.network == card.architecture]
    named = [variant for variant in catalogue.VARIANTS if variant.name == name]
    if named and named[0] not in same:
        message = f"checkpoint {name}={ref} is a {card.architecture}, the variant {name} a {named[0].network}"
        raise ConfigError(message, hint="give it another name")
    first = min(same, key=lambda variant: variant.year)
    unpublished = Variant(name, card.architecture, first.year, first.paper, None, "", card.options)
    return ComparedNetwork(named[0] if named else unpublished, card, ref)


# ---------------------------------------------------------------- speed and memory


def in_own_process(call: Callable[[], T]) -> T:
    """Run `call` in a new process and return its result; raises BrokenProcessPool if the process dies.

    The process is forked from a server that has only imported torch, so it starts fast and with little memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(call).result()


@dataclass(slots=True)
class NetworkTimings:
    """Timings of one network over the rounds so far."""

    turns: list[RoundTiming] = field(default_factory=list)
    note: str = ""
    """Error that excludes the network from all further rounds; empty while there is none."""


def run_round(networks: Sequence[ComparedNetwork], settings: SpeedSettings, timings: Sequence[NetworkTimings]) -> None:
    """Time every network once and append to its timings; a network that fails is excluded from then on."""
    for number, (compared, timing) in enumerate(zip(networks, timings, strict=True), 1):
        if timing.note:
            continue
        try:
            timing.turns.append(in_own_process(partial(time_network, compared, settings)))
        except BrokenProcessPool:
            timing.note = "its process was killed, probably out of memory"
        except JobError as error:
            timing.note = str(error)
        if timing.note:
            timing.turns.clear()
        result = timing.note or f"{timing.turns[-1].alone_s * 1e3:.0f} ms"
        log.info("round %d, %d/%d %s: %s", len(timing.turns), number, len(networks), compared.variant.name, result)


def time_network(compared: ComparedNetwork, settings: SpeedSettings) -> RoundTiming:
    """Measure time and peak memory of a network in this process; the first pass over the stream warms up.

    Raises:
        JobError: the network fails on an image, for instance out of GPU memory.
    """
    torch.set_num_threads(settings.threads)
    segmenter = Segmenter(compared.load(), InferConfig(), TileConfig(), device=settings.device)
    stream = list(noise_images(settings, len(compared.card.mean)))
    reset_peak(settings.device)
    time_segmenter(segmenter, stream)
    busy = process_time()
    stream_s = time_segmenter(segmenter, stream)
    cpu_s = process_time() - busy
    alone_s = time_segmenter(segmenter, stream[:1])
    return RoundTiming(stream_s / len(stream), alone_s, cpu_s / len(stream), peak_mib(settings.device))


def noise_images(settings: SpeedSettings, channels: int) -> Iterator[Image]:
    """Images of random pixels, (height_px, width_px, channels) uint8; speed does not depend on content."""
    rng = np.random.default_rng(0)
    for _ in range(settings.images):
        yield Image(rng.integers(0, 256, (settings.height_px, settings.width_px, channels), np.uint8), None)


def time_segmenter(segmenter: Segmenter, images: Sequence[Image]) -> float:
    """Wall time from pixels to logits in host memory, seconds.

    Raises:
        JobError: an image failed; the text is its error.
    """
    started = perf_counter()
    for prediction in segmenter(images):
        if prediction.error:
            raise JobError(str(prediction.error))
    return perf_counter() - started


def reset_peak(device: str) -> None:
    """Reset the peak of memory, so that building the network does not count; without effect where unsupported."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        CLEAR_PEAK.write_text("5")


def peak_mib(device: str) -> float:
    """Peak memory since `reset_peak`, MiB: of tensors on the GPU, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / _MIB
    return peak_bytes() / _MIB


# ---------------------------------------------------------------- quality


def score_checkpoint(compared: ComparedNetwork, data: str, device: str) -> tuple[float, int]:
    """Mean IoU of a checkpoint without a CRF, percent, and the number of images.

    Args:
        compared: network with a checkpoint.
        data: folder of images/ and labels/, or of tars or Parquet files with both.
        device: cpu or cuda.

    Raises:
        JobError: there is no image, or an image or label cannot be used; the text names it.
    """
    parent, _, part = data.rstrip("/").rpartition("/")
    card = compared.card
    with tempfile.TemporaryDirectory() as cache:
        collection = open_collection(
            Url(parent or "."), [part], classes=card.classes, cache=Path(cache), channels=card.channels
        )
        cfg = TrainConfig(data=parent, output="", license=card.license)
        verdict = validate(compared.load(), collection, cfg, Group(device=torch.device(device)))
        return float(verdict.scores.mean_iou) * 100, int((~collection.weak_n).sum())


# ---------------------------------------------------------------- rows


def compare_networks(
    networks: Sequence[ComparedNetwork], settings: SpeedSettings, data: str | None = None
) -> Iterator[list[ComparisonRow]]:
    """Measure size, speed and mIoU of every network; rows in their order.

    Each round times all networks in turn, so that other load on the machine disturbs all of them alike.

    Yields:
        All rows after each round, with the medians so far.

    Raises:
        ConfigError: `device` is cuda and there is no GPU.
        JobError: an image or label of `data` cannot be used.
    """
    if settings.device == "cuda" and not torch.cuda.device_count():
        raise ConfigError("no GPU on this machine", hint="use --device cpu")
    row_builders = [
        partial(
            comparison_row,
            network_facts(compared, settings),
            *score_in_own_process(compared, data, settings.device),
        )
        for compared in networks
    ]
    timings = [NetworkTimings() for _ in networks]
    for _ in range(settings.rounds):
        run_round(networks, settings, timings)
        ratios = ratios_to_fastest([timing.turns for timing in timings], settings.device)
        yield [row_of(timing, ratio) for row_of, timing, ratio in zip(row_builders, timings, ratios, strict=True)]


def network_facts(compared: ComparedNetwork, settings: SpeedSettings) -> dict[str, Any]:
    """Fields of a row that need no measurement: names, parameters, MACs and published figures."""
    variant, card = compared.variant, compared.card
    network = checkpoint.blank(card)
    macs = catalogue.count_macs(network, settings.height_px, settings.width_px, in_channels=card.in_channels)
    return {
        "name": variant.name,
        "network": variant.network,
        "year": variant.year,
        "paper": variant.paper,
        "output_stride": card.output_stride,
        "parameters": catalogue.count_parameters(network),
        "gmacs": macs / 1e9,
        "published_miou": variant.miou,
        "published_on": variant.measured_on,
    }


def score_in_own_process(compared: ComparedNetwork, data: str | None, device: str) -> tuple[float | None, int]:
    """`score_checkpoint` in a process of its own; (None, 0) without a checkpoint or without data."""
    if compared.checkpoint is None or data is None:
        return None, 0
    miou, images = in_own_process(partial(score_checkpoint, compared, data, device))
    log.info("%s: mean IoU %.2f on %d images", compared.variant.name, miou, images)
    return miou, images


def ratios_to_fastest(turns: Sequence[Sequence[RoundTiming]], device: str) -> list[float | None]:
    """Each network's time relative to the fastest by median: the median of this ratio over the rounds."""
    seconds = [[turn.cpu_s if device == "cpu" else turn.stream_s for turn in rounds] for rounds in turns]
    fastest = min(filter(None, seconds), key=median, default=[])
    return [
        median(seconds_here / other for seconds_here, other in zip(unpublished, fastest, strict=True))
        if unpublished
        else None
        for unpublished in seconds
    ]


def comparison_row(
    facts: dict[str, Any], miou: float | None, images: int, timings: NetworkTimings, ratio: float | None
) -> ComparisonRow:
    """Row of one network from `network_facts`, its score and its timings."""
    turns = timings.turns

    def median_of(seconds: Callable[[RoundTiming], float]) -> float | None:
        return median(map(seconds, turns)) if turns else None

    alone_ms = [turn.alone_s * 1e3 for turn in turns]
    return ComparisonRow(
        **facts,
        images_per_s=median_of(lambda turn: 1 / turn.stream_s),
        ms=median_of(lambda turn: turn.alone_s * 1e3),
        ms_least=min(alone_ms, default=None),
        ms_most=max(alone_ms, default=None),
        cpu_ms=median_of(lambda turn: turn.cpu_s * 1e3),
        times_fastest=ratio,
        peak_mib=median_of(lambda turn: turn.peak_mib),
        miou=miou,
        images_scored=images,
        note=timings.note,
    )
