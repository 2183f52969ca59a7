"""Networks side by side: what each costs, how fast it runs here, and how good it is on labelled images.

In: networks of the zoo with random weights, which cost what trained ones cost, and checkpoints. Out: one row for each.
All go through the loop of the main job, `Segmenter` with its defaults, each time in a process of its own, so that the
peak of its memory is the network's and a network that takes too much takes nobody along. Nothing is quoted here: what
was published stands in `models.catalogue`.
"""

import gc
import logging
import multiprocessing
import resource
import sys
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
from pipeline.models.catalogue import Variant
from pipeline.models.checkpoint import Card, Checkpoint
from pipeline.models.normalisation import IMAGENET
from pipeline.records import Image
from pipeline.training.collection import open_collection
from pipeline.training.config import TrainConfig
from pipeline.training.ranks import Group
from pipeline.training.validate import validate

log = logging.getLogger(__name__)

T = TypeVar("T")

_MIB = 2**20
CLEAR_PEAK = Path("/proc/self/clear_refs")
"""Written 5, Linux forgets how large the process has been: proc(5)."""


@dataclass(frozen=True, slots=True)
class ComparedNetwork:
    """One network to be compared."""

    variant: Variant
    """What it is and what was published for it; of a checkpoint that is no published variant, made from its card."""
    card: Card
    checkpoint: str | None = None
    """Folder of its weights, or a shipped name; None for random weights."""

    def load(self) -> Checkpoint:
        """The network with its weights."""
        return checkpoint.load_checkpoint(self.checkpoint) if self.checkpoint else with_random_weights(self.card)


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """How speed and memory are measured."""

    size_px: int
    """Side of the square images, pixels."""
    images: int
    """Images in a stream."""
    rounds: int
    """How often each network has its turn."""
    device: str
    """cpu or cuda."""
    threads: int
    """That a network on the CPU computes with."""


@dataclass(frozen=True, slots=True)
class RoundTiming:
    """What one network took in one round."""

    stream_s: float
    """Wall time of one image in a stream of them, which share batches."""
    alone_s: float
    """Wall time of one image on its own, from pixels to logits."""
    cpu_s: float
    """Processor time of one image in the stream, of all threads; on a GPU, of the host."""
    peak_mib: float
    """Most memory while it ran: of the GPU, or of the whole process, with Python, torch and their libraries."""


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One line of the comparison. Figures of speed are medians over the rounds, None where there is none."""

    name: str
    network: str
    year: int
    paper: str
    output_stride: int
    parameters: int
    gmacs: float
    """Multiply-accumulates of one image, thousands of millions."""
    images_per_s: float | None
    """In a stream."""
    ms: float | None
    """Of one image on its own."""
    ms_least: float | None
    ms_most: float | None
    cpu_ms: float | None
    """Processor time of one image in the stream."""
    times_fastest: float | None
    """Time over that of the fastest network in the same round: processor time on a CPU, the clock's on a GPU."""
    peak_mib: float | None
    """See `Turn`."""
    miou: float | None
    """Mean IoU measured here, percent; None: untrained, or nothing to score it on."""
    images_scored: int
    published_miou: float | None
    published_on: str
    note: str
    """Why figures are missing."""


def with_random_weights(card: Card) -> Checkpoint:
    """A checkpoint of the card's network as it is before training; always the same one."""
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
    """A variant of the catalogue, untrained, for these classes, at its published output stride."""
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
    """A checkpoint as the variant of that name, or under a name of its own.

    Raises:
        ConfigError: there is no checkpoint at `ref`, or its network is not the variant's.
    """
    card = checkpoint.load_card(ref)
    same = [one for one in catalogue.VARIANTS if one.network == card.architecture]
    known = [one for one in catalogue.VARIANTS if one.name == name]
    if known and known[0] not in same:
        said = f"checkpoint {name}={ref} is a {card.architecture}, the variant {name} a {known[0].network}"
        raise ConfigError(said, hint="give it another name")
    first = min(same, key=lambda one: one.year)
    own = Variant(name, card.architecture, first.year, first.paper, None, "", card.options)
    return ComparedNetwork(known[0] if known else own, card, ref)


# ---------------------------------------------------------------- speed and memory


def in_own_process(call: Callable[[], T]) -> T:
    """What a call returns that is made in a new process; BrokenProcessPool when that dies.

    It is forked from a process that has imported torch and done nothing else, so it starts at once and small.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(call).result()


@dataclass(slots=True)
class NetworkTimings:
    """What a network took so far."""

    turns: list[RoundTiming] = field(default_factory=list)
    note: str = ""
    """Why there are none, and will be none."""


def run_round(subjects: Sequence[ComparedNetwork], how: SpeedSettings, timings: Sequence[NetworkTimings]) -> None:
    """Give every network its turn, and add it to its timings; one that fails has no further turns."""
    for number, (subject, mine) in enumerate(zip(subjects, timings, strict=True), 1):
        if mine.note:
            continue
        try:
            mine.turns.append(in_own_process(partial(time_network, subject, how)))
        except BrokenProcessPool:
            mine.note = "its process was killed: out of memory?"
        except JobError as error:
            mine.note = str(error)
        if mine.note:
            mine.turns.clear()
        said = mine.note or f"{mine.turns[-1].alone_s * 1e3:.0f} ms"
        log.info("round %d, %d/%d %s: %s", len(mine.turns), number, len(subjects), subject.variant.name, said)


def time_network(subject: ComparedNetwork, how: SpeedSettings) -> RoundTiming:
    """Time a network and its memory, in the process that calls; the first pass over the stream warms up.

    Raises:
        JobError: the network fails on the images, for instance when the GPU has too little memory.
    """
    torch.set_num_threads(how.threads)
    segmenter = Segmenter(subject.load(), InferConfig(), TileConfig(), device=how.device)
    stream = list(noise_images(how, len(subject.card.mean)))
    reset_peak(how.device)
    time_segmenter(segmenter, stream)
    worked = process_time()
    stream_s = time_segmenter(segmenter, stream)
    cpu_s = process_time() - worked
    alone_s = time_segmenter(segmenter, stream[:1])
    return RoundTiming(stream_s / len(stream), alone_s, cpu_s / len(stream), peak_mib(how.device))


def noise_images(how: SpeedSettings, channels: int) -> Iterator[Image]:
    """Images of random pixels: no network is faster on some than on others."""
    rng = np.random.default_rng(0)
    for _ in range(how.images):
        yield Image(rng.integers(0, 256, (how.size_px, how.size_px, channels), np.uint8), None)


def time_segmenter(segmenter: Segmenter, images: Sequence[Image]) -> float:
    """Seconds from pixels to logits in host memory.

    Raises:
        JobError: for an image that fails, saying why.
    """
    started = perf_counter()
    for prediction in segmenter(images):
        if prediction.error:
            raise JobError(str(prediction.error))
    return perf_counter() - started


def reset_peak(device: str) -> None:
    """Leave out what building the network took, where the system lets us."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        CLEAR_PEAK.write_text("5")


def peak_mib(device: str) -> float:
    """Most memory since `forget_peak`: of tensors on the GPU, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / _MIB
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB


# ---------------------------------------------------------------- quality


def score_checkpoint(subject: ComparedNetwork, data: str, device: str) -> tuple[float, int]:
    """Mean IoU of a checkpoint, percent, without a CRF, and on how many images.

    Args:
        subject: one with a checkpoint.
        data: folder of images/ and labels/, or of tars or Parquet files with both.
        device: cpu or cuda.

    Raises:
        JobError: an image or a label is bad, by its name, or there is none.
    """
    parent, _, part = data.rstrip("/").rpartition("/")
    card = subject.card
    with tempfile.TemporaryDirectory() as cache:
        collection = open_collection(
            parent or ".", [part], classes=card.classes, cache=Path(cache), channels=card.channels
        )
        cfg = TrainConfig(data=parent, output="", license=card.license)
        verdict = validate(subject.load(), collection, cfg, Group(device=torch.device(device)))
        return float(verdict.scores.mean_iou) * 100, int((~collection.weak_n).sum())


# ---------------------------------------------------------------- rows


def compare_networks(
    subjects: Sequence[ComparedNetwork], how: SpeedSettings, data: str | None = None
) -> Iterator[list[ComparisonRow]]:
    """Count, score and time; rows in the order of the subjects.

    The networks take turns, so that whatever else the machine does disturbs all of them.

    Yields:
        All rows after each round, with the medians so far.

    Raises:
        ConfigError: there is no such device.
        JobError: the data to score on are bad.
    """
    if how.device == "cuda" and not torch.cuda.device_count():
        raise ConfigError("there is no GPU here", hint="take --device cpu")
    fixed = [
        partial(comparison_row, network_facts(subject, how.size_px), *score_in_own_process(subject, data, how.device))
        for subject in subjects
    ]
    timings = [NetworkTimings() for _ in subjects]
    for _ in range(how.rounds):
        run_round(subjects, how, timings)
        ratios = ratios_to_fastest([mine.turns for mine in timings], how.device)
        yield [of(mine, ratio) for of, mine, ratio in zip(fixed, timings, ratios, strict=True)]


def network_facts(subject: ComparedNetwork, size_px: int) -> dict[str, Any]:
    """The part of a row that needs no measurement."""
    variant, card = subject.variant, subject.card
    network = checkpoint.blank(card)
    return {
        "name": variant.name,
        "network": variant.network,
        "year": variant.year,
        "paper": variant.paper,
        "output_stride": card.output_stride,
        "parameters": catalogue.count_parameters(network),
        "gmacs": catalogue.count_macs(network, size_px, in_channels=card.in_channels) / 1e9,
        "published_miou": variant.miou,
        "published_on": variant.measured_on,
    }


def score_in_own_process(subject: ComparedNetwork, data: str | None, device: str) -> tuple[float | None, int]:
    """`score` in a process of its own; None for a network without weights, or without data."""
    if subject.checkpoint is None or data is None:
        return None, 0
    miou, images = in_own_process(partial(score_checkpoint, subject, data, device))
    log.info("%s: mean IoU %.2f on %d images", subject.variant.name, miou, images)
    return miou, images


def ratios_to_fastest(turns: Sequence[Sequence[RoundTiming]], device: str) -> list[float | None]:
    """Median over the rounds of each network's time over that of the one whose median is least."""
    seconds = [[turn.cpu_s if device == "cpu" else turn.stream_s for turn in mine] for mine in turns]
    fastest = min(filter(None, seconds), key=median, default=[])
    return [median(one / other for one, other in zip(mine, fastest, strict=True)) if mine else None for mine in seconds]


def comparison_row(
    facts: dict[str, Any], miou: float | None, images: int, timings: NetworkTimings, ratio: float | None
) -> ComparisonRow:
    """One line, from what was counted, scored and timed."""
    turns = timings.turns

    def middle(seconds: Callable[[RoundTiming], float]) -> float | None:
        return median(map(seconds, turns)) if turns else None

    alone_ms = [turn.alone_s * 1e3 for turn in turns]
    return ComparisonRow(
        **facts,
        images_per_s=middle(lambda turn: 1 / turn.stream_s),
        ms=middle(lambda turn: turn.alone_s * 1e3),
        ms_least=min(alone_ms, default=None),
        ms_most=max(alone_ms, default=None),
        cpu_ms=middle(lambda turn: turn.cpu_s * 1e3),
        times_fastest=ratio,
        peak_mib=middle(lambda turn: turn.peak_mib),
        miou=miou,
        images_scored=images,
        note=timings.note,
    )
