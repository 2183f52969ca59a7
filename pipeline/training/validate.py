"""How good weights are on labelled images: the same counts, by the same path, as evaluation of a finished checkpoint.

In: a checkpoint, in memory, and labelled examples. Out: int64 confusion counts of whole images, exactly what one
process would count, however many share the work. No dense CRF.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from pipeline import labels, metrics
from pipeline.checkpoint import Checkpoint
from pipeline.classes import ClassMap
from pipeline.config import DecodeConfig, InferConfig, RefineConfig, TileConfig
from pipeline.decode import decode
from pipeline.errors import InputError, JobError
from pipeline.infer import Prediction, Segmenter
from pipeline.metrics import Int64, Scores
from pipeline.records import Image, Item, Scored, UInt8
from pipeline.refine.refiner import Refiner
from pipeline.training.collection import Collection, Example
from pipeline.training.config import TrainConfig
from pipeline.training.group import Group
from pipeline.training.tracker import Sample

T = TypeVar("T")

THREADS = 4
"""For decoding and masks, on each process."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a validation found."""

    scores: Scores
    """Of all images and processes."""
    samples: list[Sample]
    """The first few images of process 0; empty on others."""


@dataclass(frozen=True, slots=True)
class _Open:
    """One decoded example."""

    key: str
    image: Image
    truth_hw: UInt8


def validate(model: Checkpoint, collection: Collection, cfg: TrainConfig, group: Group) -> Verdict:
    """Segment whole images and compare them with their labels.

    Process r of W takes every W-th image from the r-th on, so none is left out and none counts twice.

    Args:
        model: what is judged.
        collection: with full labels; examples of classes or boxes alone are passed over.
        cfg: says how many images, and how they are looked at.
        group: who shares the work; every process gets the same scores.

    Raises:
        JobError: an image that cannot be read or does not fit the device, by its key.
    """
    segmenter = _segmenter(model, cfg, group)
    classes = model.card.classes
    counts = np.zeros((len(classes), len(classes) + 1), np.int64)
    samples: list[Sample] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for sample in _answers(segmenter, _mine(collection, cfg.validation.limit, group), classes, pool):
            counts += metrics.confusion(sample.truth_hw, sample.mask_hw, len(classes), ignore_id=classes.ignore_id)
            if group.leads and len(samples) < cfg.validation.samples:
                samples.append(sample)
    return Verdict(Scores(_summed(counts, group)), samples)


def look(model: Checkpoint, collection: Collection, cfg: TrainConfig, group: Group) -> list[Sample]:
    """Predictions of the first images with full labels, as `validate`, by this process alone."""
    mine = _mine(collection, cfg.validation.samples, Group())
    with ThreadPoolExecutor(THREADS) as pool:
        return list(_answers(_segmenter(model, cfg, group), mine, model.card.classes, pool))


def _segmenter(model: Checkpoint, cfg: TrainConfig, group: Group) -> Segmenter:
    said = {"scales": cfg.validation.scales, "flip": cfg.validation.flip, "precision": cfg.runtime.precision}
    return Segmenter(model, InferConfig.model_validate(said), TileConfig(), device=str(group.device))


def _mine(collection: Collection, limit: int | None, group: Group) -> Iterator[Example]:
    """This process's share of the first `limit` examples with full labels."""
    strong = np.flatnonzero(~collection.weak_n)[:limit]
    return (collection[int(index)] for index in strong[group.rank :: group.size])


def _summed(counts: Int64, group: Group) -> Int64:
    total: Int64 = group.sum(torch.from_numpy(counts).to(group.device)).cpu().numpy()
    return total


def _answers(
    segmenter: Segmenter, examples: Iterator[Example], classes: ClassMap, pool: ThreadPoolExecutor
) -> Iterator[Sample]:
    """Every example with its mask, in order. Decoding and masks are made in threads, beside the network."""
    seen: deque[_Open] = deque()
    refiner = Refiner(RefineConfig(engine="none"), classes)
    ahead = 2 * segmenter.batch

    def images() -> Iterator[Image]:
        for one in _in_threads(pool, (partial(_open, example, classes) for example in examples), ahead):
            seen.append(one)
            yield one.image

    def masks() -> Iterator[Callable[[], Sample]]:
        for prediction in segmenter(images()):
            yield partial(_sample, seen.popleft(), prediction, segmenter, refiner)

    return _in_threads(pool, masks(), ahead)


def _in_threads(pool: ThreadPoolExecutor, calls: Iterator[Callable[[], T]], depth: int) -> Iterator[T]:
    """What the calls return, in order, with at most `depth` of them under way: bounds the pixels in memory."""
    waiting: deque[Future[T]] = deque()
    for call in calls:
        waiting.append(pool.submit(call))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _open(example: Example, classes: ClassMap) -> _Open:
    try:
        image = decode(example.image, DecodeConfig())
    except InputError as error:
        raise JobError(f"validation image {example.key}: {error}", hint="take it out of the part") from error
    truth = labels.read(example.label, classes, name=example.key, height=image.height, width=image.width)
    return _Open(example.key, image, truth)


def _sample(one: _Open, prediction: Prediction, segmenter: Segmenter, refiner: Refiner) -> Sample:
    if prediction.error:
        raise JobError(f"validation image {one.key}: {prediction.error}")
    scored = Scored(
        Item(one.key, shard="", etag=""),
        height=one.image.height,
        width=one.image.width,
        logits_khw=prediction.logits_khw,
        stride=segmenter.stride,
        align_corners=segmenter.align_corners,
    )
    mask = refiner(scored, one.image).mask_hw
    return Sample(one.key, one.image.pixels_hwc, one.truth_hw, mask)
