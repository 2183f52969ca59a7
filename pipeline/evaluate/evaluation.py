"""Evaluations: what a finished run over labelled images is worth.

In: the committed parts of a run whose rows carry judgements. Out: an `Evaluation`, whose counts are whole numbers of
pixels that add up exactly, whatever workers there were and however often they died. Never reads an image, a label or a
checkpoint's weights.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import yaml
from pydantic import ValidationError

from pipeline.classes import ClassMap
from pipeline.config import EvaluateConfig
from pipeline.errors import ConfigError
from pipeline.records import Float64, Int64, Judgement, judgements_from
from pipeline.redact import redact
from pipeline.run import manifest
from pipeline.run import parts as sink
from pipeline.score.answers import answer_names
from pipeline.score.calibration import LEVELS
from pipeline.score.metrics import Interval, Scores
from pipeline.store import objects

IMAGE_COLUMNS = [
    *("key", "shard", "source_etag", "height", "width", "orientation", "class_pixels"),
    *("confidence", "entropy", "brightness", "changed_share", "refine_note", "inference"),
]
"""Kept of the row of every scored image."""


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """What was counted of one answer to every scored image: of the network, or of what refined it."""

    name: str
    """`network`, the engine that refined it, or `masks`."""
    counts_nkk: Int64
    """(N, K, K + 1) of each image; see `metrics.confusion`."""
    bands_bkk: Int64
    """(B, K, K + 1) sums over the images, within each trimap width."""
    boundary: Int64
    """(K, 3) sums; see `boundary.overlap`."""
    reliability: Int64
    """(256, 2) sums; see `calibration.reliability`. All zero where no confidence was stored."""

    @property
    def scores(self) -> Scores:
        """Of the sum over all images."""
        return Scores(self.counts_nkk.sum(axis=0))


@dataclass(frozen=True, slots=True)
class Slice:
    """The images that share a value, scored alone."""

    value: str
    images: int
    mean_iou: Interval
    iou: list[float]
    """Of each class; NaN for one that does not occur."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One setting on one labelled source."""

    name: str
    """Of the setting; `default` when there is only one."""
    run_url: str
    """Whose parts hold what each image counted."""
    fingerprint: str
    """Of the run, 12 hex digits: model, data, settings and code."""
    data_fp: str
    """Digest of keys, etags and labelled pixels of the scored images, 12 hex digits: two that agree can be paired."""
    checkpoint: str
    """As it was given, without secrets; empty when masks were scored that somebody else had made."""
    model_fp: str
    """Its digest, 12 hex digits."""
    training: dict[str, object]
    """What its card says about its training; with `reference` also what drift is measured against."""
    facts: dict[str, str]
    """What explains the run, for people."""
    classes: ClassMap
    widths_px: tuple[float, ...]
    """(B,) of the trimaps, narrow to wide."""
    images: pd.DataFrame
    """The N scored images, sorted by `key`; the small columns of their rows, such as `source_etag`, `height`, `width`,
    `confidence`, `entropy`, `brightness`, `class_pixels`, `changed_share`."""
    answers: dict[str, AnswerCounts]
    """By name; the last one is the one that is in the masks."""
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """(key, code, detail) of every image that has no score, sorted."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Work per stage, summed over all workers: what it cost."""
    slices: dict[str, list[Slice]] = field(default_factory=dict)
    """By what they are cut by: a column, or a named group of a regular expression over the key."""

    @property
    def answer(self) -> AnswerCounts:
        """The one that is in the masks."""
        return list(self.answers.values())[-1]

    @property
    def keys(self) -> list[str]:
        """Of the scored images, in the order of every (N, ...) array."""
        return list(self.images["key"])

    @property
    def failed_share(self) -> float:
        """Images without a score over all images, 0 to 1."""
        rows = len(self.images) + len(self.failures)
        return len(self.failures) / rows if rows else 0.0

    @property
    def codes(self) -> dict[str, int]:
        """Failures by code, most frequent first."""
        codes = pd.Series([code for _, code, _ in self.failures], dtype=object)
        return {str(code): int(count) for code, count in codes.value_counts().items()}

    @property
    def image_iou(self) -> Float64:
        """(N,) mean IoU of each image alone, over the classes in its label or its mask."""
        return Scores(self.answer.counts_nkk).mean_iou

    def worst(self, count: int) -> list[str]:
        """Keys of the images with the lowest IoU, the lowest first."""
        return self._ordered()[:count]

    def best(self, count: int) -> list[str]:
        """Keys of the images with the highest IoU, the highest first."""
        return self._ordered()[::-1][:count]

    def _ordered(self) -> list[str]:
        order = np.argsort(self.image_iou, kind="stable")
        return [self.keys[index] for index in order]


# ---------------------------------------------------------------- from the parts of a run


def read_evaluation(
    run_url: str,
    *,
    name: str = "default",
    training: dict[str, object] | None = None,
    facts: dict[str, str] | None = None,
) -> Evaluation:
    """Add up what a finished run has committed; `cut` gives it slices.

    Args:
        run_url: of a run of `jobs.evaluate`.
        name: of the setting.
        training: see `Evaluation`; empty where the checkpoint is not at hand.
        facts: see `Evaluation`.

    Raises:
        ConfigError: the run is not finished, or has judged nothing.
    """
    finished = manifest.read_manifest(run_url)
    if finished is None:
        raise ConfigError(f"{redact(run_url)} is not a finished run", hint="submit the same evaluation again")
    cfg, digest = _described(run_url)
    parts = sink.list_parts(run_url)
    if not parts:
        raise ConfigError(f"{redact(run_url)} has no rows: its source holds no image")
    classes = sink.read_classes(run_url, parts[0])
    images, sums = _collect(run_url, parts)
    answers = {one: _answer(one, sums[one], classes, cfg) for one in answer_names(cfg.masks, cfg.refine.engine)}
    return Evaluation(
        name=name,
        run_url=run_url,
        fingerprint=run_url.rstrip("/").rpartition("run=")[2],
        data_fp=_data_fp(images, next(iter(answers.values()))),
        checkpoint=redact(cfg.checkpoint),
        model_fp=digest[:12],
        training=training or {},
        facts=facts or {},
        classes=classes,
        widths_px=cfg.judge.trimap_px,
        images=images,
        answers=answers,
        failures=manifest.read_failures(run_url),
        seconds=finished.seconds,
    )


@dataclass(slots=True)
class _Sums:
    """What was collected of one answer."""

    counts: list[Int64] = field(default_factory=list)
    total: Judgement | None = None

    def take(self, one: Judgement) -> None:
        """One more image."""
        self.counts.append(one.counts)
        self.total = one if self.total is None else self.total + one


def _described(run_url: str) -> tuple[EvaluateConfig, str]:
    """Config of a run, and the digest of what answered."""
    folder = objects.join(run_url, "_run")
    try:
        said = yaml.safe_load(objects.read_bytes(objects.join(folder, "config.yaml")))
        environment = json.loads(objects.read_bytes(objects.join(folder, "environment.json")))
        said["judge"]  # a segmentation has none, and all else of its config would fit
        return EvaluateConfig.model_validate(said), environment["model_sha256"]
    except (FileNotFoundError, KeyError, ValidationError) as error:
        raise ConfigError(f"{redact(run_url)} is no run of an evaluation", hint="submit jobs/evaluate.py") from error


def _collect(run_url: str, parts: Sequence[str]) -> tuple[pd.DataFrame, defaultdict[str, _Sums]]:
    """The small columns of all scored images, by key, and the counts of every answer in the same order."""
    frames: list[pd.DataFrame] = []
    judged: list[tuple[str, list[Judgement]]] = []
    for table in manifest.read_parts(run_url, parts, ["status", *IMAGE_COLUMNS, "judgements"]):
        ok = table.filter(pc.equal(table["status"], "ok"))
        frames.append(ok.drop_columns(["status", "judgements"]).to_pandas())
        judged += zip(ok["key"].to_pylist(), (one or [] for one in judgements_from(ok["judgements"])), strict=True)
    sums: defaultdict[str, _Sums] = defaultdict(_Sums)
    for _, judgements in sorted(judged, key=itemgetter(0)):
        for one in judgements:
            sums[one.name].take(one)
    images = pd.concat(frames).sort_values("key", ignore_index=True)
    return images, sums


def _answer(name: str, sums: _Sums, classes: ClassMap, cfg: EvaluateConfig) -> AnswerCounts:
    k = len(classes)
    if sums.total is None:
        bands = np.zeros((len(cfg.judge.trimap_px), k, k + 1), np.int64)
        return AnswerCounts(
            name,
            np.zeros((0, k, k + 1), np.int64),
            bands,
            np.zeros((k, 3), np.int64),
            np.zeros((LEVELS, 2), np.int64),
        )
    total = sums.total
    return AnswerCounts(name, np.stack(sums.counts), total.bands, total.boundary, total.reliability)


def _data_fp(images: pd.DataFrame, answer: AnswerCounts) -> str:
    said = [*zip(images["key"], images["source_etag"], strict=True)]
    digest = hashlib.sha256(json.dumps(said).encode())
    digest.update(answer.counts_nkk.sum(axis=-1).tobytes())
    return digest.hexdigest()[:12]
