"""Validation: the confusion matrix of weights on labelled images, by the path that evaluates a finished checkpoint.

In: a checkpoint in memory, and labelled examples. Out: int64 confusion counts of whole images, and the reference
statistics for later drift; both are the same for any number of ranks. No dense CRF.
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

from pipeline.config import InferConfig, RefineConfig, TileConfig
from pipeline.errors import InputError, JobError
from pipeline.image import channels as bands
from pipeline.image import labels
from pipeline.image.encode import brightness
from pipeline.infer.segmenter import Prediction, Segmenter
from pipeline.models.card import Card
from pipeline.models.checkpoint import Checkpoint
from pipeline.prefetch import ahead
from pipeline.records import Float32, Float64, Image, Int64, Item, Sample, Scored, UInt8
from pipeline.refine.refiner import Refiner
from pipeline.score import drift, metrics
from pipeline.score.metrics import Scores
from pipeline.training.collection import Collection, Example
from pipeline.training.config import TrainConfig
from pipeline.training.ranks import Group

A = TypeVar("A", Int64, Float64)

_THREADS = 4
"""Threads for decoding and masks, on each rank."""
MEANS = ("confidence", "entropy", "brightness")
"""Columns of the drift reference beside the pixels of each class."""


@dataclass(frozen=True, slots=True)
class Validation:
    """Result of a validation."""

    scores: Scores
    """Scores over all images and ranks."""
    samples: list[Sample]
    """The first few images of rank 0; empty on other ranks."""
    reference: dict[str, JsonValue]
    """Statistics of the images under these weights: `drift.Reference` as plain JSON."""


@dataclass(frozen=True, slots=True)
class _Predicted:
    """One example with its mask."""

    sample: Sample
    row_d: Float64
    """Row of the drift reference: class pixels, then confidence, entropy and brightness, in a committed row's units."""


@dataclass(frozen=True, slots=True)
class _Labelled:
    """One decoded example."""

    key: str
    image: Image
    truth_hw: UInt8


def validate(model: Checkpoint, collection: Collection, cfg: TrainConfig, group: Group) -> Validation:
    """Segment whole images and compare them with their labels.

    Rank r of W takes every W-th image from the r-th on, so every image counts once.

    Args:
        model: checkpoint to validate.
        collection: examples; those without a labelled pixel, such as weakly labelled ones, are skipped.
        cfg: number of images, scales, flip and precision.
        group: ranks that share the work; every rank gets the same scores.

    Raises:
        JobError: an image cannot be decoded or does not fit the device; the message has its key.
    """
    segmenter = _segmenter(model, cfg, group)
    classes = model.card.classes
    chosen = _labelled_indices(collection, cfg.validation.limit)
    counts = np.zeros((len(classes), len(classes) + 1), np.int64)
    rows_nd = np.zeros((len(chosen), len(classes) + len(MEANS)))
    samples: list[Sample] = []
    places = range(group.rank, len(chosen), group.size)
    examples = (collection[chosen[place]] for place in places)
    with ThreadPoolExecutor(_THREADS) as pool:
        shown = cfg.validation.samples if group.leads else 0
        predictions = _predictions(segmenter, examples, model.card, pool, with_edges=shown)
        for place, predicted in zip(places, predictions, strict=True):
            sample, rows_nd[place] = predicted.sample, predicted.row_d
            counts += metrics.confusion(sample.truth_hw, sample.mask_hw, len(classes), ignore_id=classes.ignore_id)
            if len(samples) < shown:
                samples.append(sample)
    return Validation(Scores(_summed(counts, group)), samples, _reference(_summed(rows_nd, group)))


def predict_samples(model: Checkpoint, collection: Collection, cfg: TrainConfig, group: Group) -> list[Sample]:
    """Predict the first fully labelled images as in `validate`, on this rank alone."""
    shown = cfg.validation.samples
    examples = (collection[index] for index in _labelled_indices(collection, shown))
    with ThreadPoolExecutor(_THREADS) as pool:
        predictions = _predictions(_segmenter(model, cfg, group), examples, model.card, pool, with_edges=shown)
        return [predicted.sample for predicted in predictions]


def _segmenter(model: Checkpoint, cfg: TrainConfig, group: Group) -> Segmenter:
    settings = {"scales": cfg.validation.scales, "flip": cfg.validation.flip, "precision": cfg.runtime.precision}
    return Segmenter(model, InferConfig.model_validate(settings), TileConfig(), device=str(group.device))


def _labelled_indices(collection: Collection, limit: int | None) -> list[int]:
    """Indices of the first `limit` fully labelled examples with at least one labelled pixel."""
    indices: list[int] = np.flatnonzero(collection.counts_nk.any(axis=1))[:limit].tolist()
    return indices


def _summed(values: A, group: Group) -> A:
    total: A = group.sum(torch.from_numpy(values).to(group.device)).cpu().numpy()
    return total


def _reference(rows_nd: Float64) -> dict[str, JsonValue]:
    """Drift reference of (N, K + 3) rows."""
    classes = rows_nd.shape[1] - len(MEANS)
    images = pd.DataFrame(rows_nd[:, classes:], columns=list(MEANS))
    images["class_pixels"] = list(rows_nd[:, :classes])
    return cast("dict[str, JsonValue]", drift.reference_of(images))


def _predictions(
    segmenter: Segmenter, examples: Iterator[Example], card: Card, pool: ThreadPoolExecutor, *, with_edges: int
) -> Iterator[_Predicted]:
    """Yield every example with its mask, in order. Threads decode and make masks while the network runs.

    The first `with_edges` of them also have the edge map of a network that predicts one.
    """
    pending: deque[_Labelled] = deque()
    refiner = Refiner(RefineConfig(engine="none"), card.classes)
    read = partial(_decode, card=card)
    depth = 2 * segmenter.batch + 1

    def images() -> Iterator[Image]:
        for example in ahead(pool, read, examples, depth):
            pending.append(example)
            yield example.image

    def masks() -> Iterator[Callable[[], _Predicted]]:
        for number, prediction in enumerate(segmenter(images())):
            example = pending.popleft()
            edges = segmenter.edge_map(example.image) if number < with_edges and not prediction.error else None
            yield partial(_predicted, example, prediction, segmenter, refiner, card.channels, edges)

    return ahead(pool, lambda make: make(), masks(), depth)


def _decode(example: Example, card: Card) -> _Labelled:
    try:
        image = bands.decode_channels(example.image, card.channels, scale=card.scale)
    except InputError as error:
        raise JobError(f"validation image {example.key}: {error}", hint="remove it from the validation part") from error
    truth = labels.decode_label(example.label, card.classes, name=example.key, height=image.height, width=image.width)
    return _Labelled(example.key, image, truth)


def _predicted(  # noqa: PLR0917  # the arguments of a partial
    example: _Labelled,
    prediction: Prediction,
    segmenter: Segmenter,
    refiner: Refiner,
    channels: tuple[str, ...],
    edges_hw: Float32 | None,
) -> _Predicted:
    if prediction.error:
        raise JobError(f"validation image {example.key}: {prediction.error}")
    scored = Scored(
        Item(example.key, shard="", etag=""),
        height=example.image.height,
        width=example.image.width,
        logits_khw=prediction.logits_khw,
        stride=segmenter.stride,
        align_corners=segmenter.align_corners,
    )
    refined = refiner(scored, example.image)
    stats = refined.stats
    picture = Image(bands.visible_rgb(example.image.pixels_hwc, channels), example.image.valid_hw)
    means = stats.mean(stats.confidence_sum), stats.mean(stats.entropy_sum), brightness(picture) or 0.0
    sample = Sample(example.key, picture.pixels_hwc, example.truth_hw, refined.mask_hw, edges_hw)
    return _Predicted(sample, np.array([*stats.class_pixels, *means], np.float64))
