"""How good weights are on labelled images: the same counts, by the same path, as evaluation of a finished checkpoint.

In: a checkpoint, in memory, and labelled examples. Out: int64 confusion counts of whole images, exactly what one
process would count, however many share the work. No dense CRF.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline import labels, metrics
from pipeline.checkpoint import Checkpoint
from pipeline.classes import ClassMap
from pipeline.config import DecodeConfig, InferConfig, TileConfig
from pipeline.decode import decode
from pipeline.errors import LabelError
from pipeline.infer import Segmenter
from pipeline.metrics import Int64, Scores
from pipeline.records import Image, UInt8
from pipeline.refine.unary import argmax_mask
from pipeline.training.collection import Collection, Example
from pipeline.training.config import ValidateConfig
from pipeline.training.group import Group


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged image, to look at."""

    key: str
    pixels_hwc: UInt8
    label_hw: UInt8
    mask_hw: UInt8


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a validation found."""

    scores: Scores
    """Of all images and processes."""
    samples: list[Sample]
    """The first few images; on process 0 only."""


def validate(
    model: Checkpoint, collection: Collection, cfg: ValidateConfig, group: Group, *, precision: str, threads: int
) -> Verdict:
    """Segment whole images and compare them with their labels.

    Process r of W takes every W-th image from the r-th on, so none is left out and none counts twice.

    Args:
        model: what is judged.
        collection: full labels; those of classes or boxes alone are passed over.
        cfg: how many images, and how they are looked at.
        group: who shares the work; every process gets the same scores.
        precision: of the convolutions, as in `InferConfig`.
        threads: for decoding and for masks, on each process.

    Raises:
        JobError: an image that cannot be read or does not fit the device, by its key.
    """
    infer = InferConfig.model_validate({"scales": cfg.scales, "flip": cfg.flip, "precision": precision})
    segmenter = Segmenter(model, infer, TileConfig(), device=str(group.device))
    classes = model.card.classes
    counts = np.zeros((len(classes), len(classes) + 1), np.int64)
    samples: list[Sample] = []
    with ThreadPoolExecutor(threads) as pool:
        mine = judged(collection, cfg.limit)[group.rank :: group.size]
        for sample in _answers(segmenter, [collection[int(index)] for index in mine], classes, pool):
            counts += metrics.confusion(sample.truth_hw, sample.mask_hw, len(classes), ignore_id=classes.ignore_id)
            if group.leads and len(samples) < cfg.samples:
                samples.append(sample)
    total = group.sum(torch.from_numpy(counts).to(group.device)).cpu().numpy()
    return Verdict(Scores(total), samples)
