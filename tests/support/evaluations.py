"""Synthetic evaluations: networks of a given quality on the same images."""

from dataclasses import replace

import numpy as np
import pandas as pd

from pipeline.classes import ClassInfo, ClassMap
from pipeline.evaluate.evaluation import AnswerCounts, Evaluation
from pipeline.store.url import Url

NAMES = ("soil", "crop", "weed", "stone")
CLASSES = ClassMap(name="field", classes=tuple(ClassInfo(name=name, colour=(i, i, i)) for i, name in enumerate(NAMES)))
K = len(CLASSES)
PIXELS = 10_000


def supports(images: int, *, seed: int = 0) -> np.ndarray:
    """(N, K) labelled pixels of the images, the same for every network; classes differ in size."""
    shares = np.random.default_rng([seed, 1]).dirichlet([4, 2, 0.5, 0.3], images)
    return (shares * PIXELS).astype(np.int64)


def counts(images: int, *, recall: float, network: int, spread: float = 0.05, seed: int = 0) -> np.ndarray:
    """(N, K, K + 1): recall near `recall` per class; networks share image difficulty, each with noise."""
    hard = np.random.default_rng([seed, 2]).normal(0, 0.08, (images, K))
    luck = np.random.default_rng([seed, 3, network]).normal(0, spread, (images, K))
    found = (supports(images, seed=seed) * np.clip(recall + hard + luck, 0, 1)).astype(np.int64)
    missed = supports(images, seed=seed) - found
    table = np.zeros((images, K, K + 1), np.int64)
    table[:, range(K), range(K)] = found
    for row in range(K):
        table[:, row, (row + 1) % K] += missed[:, row]
    return table


def evaluation(
    images: int = 60,
    *,
    recall: float = 0.8,
    network: int = 0,
    spread: float = 0.05,
    seed: int = 0,
    failed: int = 0,
    brightness: float = 120.0,
    **changes: object,
) -> Evaluation:
    counts_nkk = counts(images, recall=recall, network=network, spread=spread, seed=seed)
    luma = np.random.default_rng([seed, 4]).normal(brightness, 15, images).clip(0, 255)
    rows = pd.DataFrame(
        {
            "key": [f"drive_{index // 10:02d}/{index:04d}.jpg" for index in range(images)],
            "source_etag": [f"etag-{index}" for index in range(images)],
            "height": 1,
            "width": counts_nkk.sum(axis=(1, 2)),  # every pixel is labelled
            "orientation": 1,
            "class_pixels": list(counts_nkk[:, :, :K].sum(axis=1)),
            "confidence": np.random.default_rng([seed, 5]).uniform(0.7, 0.99, images),
            "entropy": np.random.default_rng([seed, 6]).uniform(0.05, 0.4, images),
            "brightness": luma,
        }
    )
    reliability = np.zeros((256, 2), np.int64)
    reliability[200] = [8, 10]
    boundary = np.tile(np.array([100, 90, 60]), (K, 1))
    names = {"network": counts(images, recall=recall - 0.03, network=network, seed=seed), "native": counts_nkk}
    facts: dict[str, object] = {
        "name": "default",
        "run_url": Url(f"s3://runs/{network}/run=0123456789ab"),
        "fingerprint": f"{network:012x}",
        "data_fp": f"data{seed:08d}",
        "checkpoint": f"s3://models/net-{network}",
        "model_fp": f"{0xABCDEF000000 + network:012x}",
        "training": {},
        "facts": {},
        "classes": CLASSES,
        "widths_px": (),
        "images": rows,
        "answers": {
            name: AnswerCounts(name, table, np.zeros((0, K, K + 1), np.int64), boundary, reliability)
            for name, table in names.items()
        },
        "failures": [(f"bad_{index}.jpg", "label_missing", "no label") for index in range(failed)],
        "seconds": {"infer": 12.0, "refine": 30.0},
    }
    return Evaluation(**(facts | changes))  # type: ignore[arg-type]


def without_class(whole: Evaluation, name: str) -> Evaluation:
    """The evaluation with every pixel of one class, labelled or answered, made an ignored one."""
    index = NAMES.index(name)
    answers = {}
    for answer in whole.answers.values():
        table = answer.counts_nkk.copy()
        table[:, index], table[:, :, index] = 0, 0
        answers[answer.name] = replace(answer, counts_nkk=table)
    return replace(whole, answers=answers)
