"""How good weights are on labelled images: the same counts, by the same path, as evaluation of a finished checkpoint.

In: a checkpoint, in memory, and labelled examples. Out: int64 confusion counts of whole images and what later drift is
measured against, exactly as one process would count, however many share the work. No dense CRF.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

import numpy as np
import pandas as pd
import torch
from pydantic import JsonValue

from pipeline.classes import ClassMap
from pipeline.config import InferConfig, RefineConfig, TileConfig
from pipeline.errors import InputError, JobError
from pipeline.image import channels as bands
from pipeline.image import labels
from pipeline.image.encode import brightness
from pipeline.infer.segmenter import Prediction, Segmenter
from pipeline.models.checkpoint import Card, Checkpoint
from pipeline.prefetch import ahead
from pipeline.records import Float64, Image, Int64, Item, Sample, Scored, UInt8
from pipeline.refine.refiner import Refiner
from pipeline.score import drift, metrics
from pipeline.score.metrics import Scores
from pipeline.training.collection import Collection, Example
from pipeline.training.config import TrainConfig
from pipeline.training.ranks import Group

A = TypeVar("A", Int64, Float64)

_THREADS = 4
"""For decoding and masks, on each process."""
MEANS = ("confidence", "entropy", "brightness")
"""Columns of the reference beside the pixels of each class."""


@dataclass(frozen=True, slots=True)
class Validation:
    """What a validation found."""

    scores: Scores
    """Of all images and processes."""
    samples: list[Sample]
    """The first few images of process 0; empty on others."""
    reference: dict[str, JsonValue]
    """What the images look like to these weights: `drift.Reference` as plain JSON."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """One example with its mask."""

    sample: Sample
    row_d: Float64
    """Of the reference: pixels of each class, then confidence, entropy and brightness, in a committed row's units."""


@dataclass(frozen=True, slots=True)
class _Open:
    """One decoded example."""

    key: str
    image: Image
    truth_hw: UInt8


def validate(model: Checkpoint, collection: Collection, cfg: TrainConfig, group: Group) -> Validation:
    """Segment whole images and compare them with their labels.

    Process r of W takes every W-th image from the r-th on, so none is left out and none counts twice.

    Args:
        model: what is judged.
        collection: with full labels; examples without a labelled pixel are passed over, as those of boxes alone.
        cfg: says how many images, and how they are looked at.
        group: who shares the work; every process gets the same scores.

    Raises:
        JobError: an image that cannot be read or does not fit the device, by its key.
    """
    segmenter = _segmenter(model, cfg, group)
    classes = model.card.classes
    chosen = _labelled(collection, cfg.validation.limit)
    counts = np.zeros((len(classes), len(classes) + 1), np.int64)
    rows_nd = np.zeros((len(chosen), len(classes) + len(MEANS)))
    samples: list[Sample] = []
    mine = range(group.rank, len(chosen), group.size)
    examples = (collection[chosen[place]] for place in mine)
    with ThreadPoolExecutor(_THREADS) as pool:
        for place, answer in zip(mine, _answers(segmenter, examples, model.card, pool), strict=True):
            sample, rows_nd[place] = answer.sample, answer.row_d
            counts += metrics.confusion(sample.truth_hw, sample.mask_hw, len(classes), ignore_id=classes.ignore_id)
            if group.leads and len(samples) < cfg.validation.samples:
                samples.append(sample)
    return Validation(Scores(_summed(counts, group)), samples, _reference(_summed(rows_nd, group)))


def predict_samples(model: Checkpoint, collection: Collection, cfg: TrainConfig, group: Group) -> list[Sample]:
    """Predictions of the first images with full labels, as `validate`, by this process alone."""
    examples = (collection[index] for index in _labelled(collection, cfg.validation.samples))
    with ThreadPoolExecutor(_THREADS) as pool:
        answers = _answers(_segmenter(model, cfg, group), examples, model.card, pool)
        return [answer.sample for answer in answers]


def _segmenter(model: Checkpoint, cfg: TrainConfig, group: Group) -> Segmenter:
    said = {"scales": cfg.validation.scales, "flip": cfg.validation.flip, "precision": cfg.runtime.precision}
    return Segmenter(model, InferConfig.model_validate(said), TileConfig(), device=str(group.device))


def _labelled(collection: Collection, limit: int | None) -> list[int]:
    """Numbers of the first `limit` examples with full labels that are not ignored from edge to edge."""
    found: list[int] = np.flatnonzero(collection.counts_nk.any(axis=1))[:limit].tolist()
    return found


def _summed(values: A, group: Group) -> A:
    total: A = group.sum(torch.from_numpy(values).to(group.device)).cpu().numpy()
    return total


def _reference(rows_nd: Float64) -> dict[str, JsonValue]:
    """Of (N, K + 3) rows of answers."""
    classes = rows_nd.shape[1] - len(MEANS)
    images = pd.DataFrame(rows_nd[:, classes:], columns=list(MEANS))
    images["class_pixels"] = list(rows_nd[:, :classes])
    return cast("dict[str, JsonValue]", drift.reference_of(images))


def _answers(
    segmenter: Segmenter, examples: Iterator[Example], card: Card, pool: ThreadPoolExecutor
) -> Iterator[_Answer]:
    """Every example with its mask, in order. Decoding and masks are made in threads, beside the network."""
    seen: deque[_Open] = deque()
    refiner = Refiner(RefineConfig(engine="none"), card.classes)
    read = partial(_open, classes=card.classes, channels=card.channels)
    depth = 2 * segmenter.batch + 1

    def images() -> Iterator[Image]:
        for one in ahead(pool, read, examples, depth):
            seen.append(one)
            yield one.image

    def masks() -> Iterator[Callable[[], _Answer]]:
        for prediction in segmenter(images()):
            yield partial(_answer, seen.popleft(), prediction, segmenter, refiner, card.channels)

    return ahead(pool, lambda make: make(), masks(), depth)


def _open(example: Example, classes: ClassMap, channels: tuple[str, ...]) -> _Open:
    try:
        image = bands.decode_channels(example.image, channels)
    except InputError as error:
        raise JobError(f"validation image {example.key}: {error}", hint="take it out of the part") from error
    truth = labels.decode_label(example.label, classes, name=example.key, height=image.height, width=image.width)
    return _Open(example.key, image, truth)


def _answer(
    one: _Open, prediction: Prediction, segmenter: Segmenter, refiner: Refiner, channels: tuple[str, ...]
) -> _Answer:
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
    refined = refiner(scored, one.image)
    stats = refined.stats
    picture = Image(bands.visible_rgb(one.image.pixels_hwc, channels), one.image.valid_hw)
    means = stats.mean(stats.confidence_sum), stats.mean(stats.entropy_sum), brightness(picture) or 0.0
    sample = Sample(one.key, picture.pixels_hwc, one.truth_hw, refined.mask_hw)
    return _Answer(sample, np.array([*stats.class_pixels, *means], np.float64))
