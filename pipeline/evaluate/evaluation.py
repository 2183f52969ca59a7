"""Evaluation: confusion counts and failures of a finished run over labelled images.

In: the committed parts of a run whose rows carry judgements. Out: an `Evaluation`. Its counts are whole numbers of
pixels, so sums are exact, whatever the number of workers and retries. Never reads an image, a label or weights.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import yaml

from pipeline.classes import ClassMap
from pipeline.config import EvaluateConfig
from pipeline.errors import ConfigError
from pipeline.records import Float64, Int64, Judgement, judgements_from
from pipeline.redact import redact
from pipeline.run import manifest, parts
from pipeline.run.footers import read_footers
from pipeline.score.answers import answer_names
from pipeline.score.calibration import LEVELS
from pipeline.score.coverage import Coverage
from pipeline.score.metrics import Interval, Scores
from pipeline.store import objects
from pipeline.store.url import Url

IMAGE_COLUMNS = [
    *("key", "shard", "source_etag", "height", "width", "orientation", "class_pixels"),
    *("confidence", "entropy", "brightness", "changed_share", "refine_note", "inference"),
]
"""Columns of a row that an evaluation keeps for every scored image."""


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """Pixel counts of one answer over all scored images. An answer is one kind of masks: the network's, or refined."""

    name: str
    """`network`, the refinement engine, or `masks`."""
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
        """Scores of the counts summed over all images."""
        return Scores(self.counts_nkk.sum(axis=0))


@dataclass(frozen=True, slots=True)
class Slice:
    """Scores of the images that share one value of a column or of a pattern group."""

    value: str
    images: int
    mean_iou: Interval
    iou: list[float]
    """IoU of each class; NaN for a class in no label and no mask."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Counts, images and failures of one setting on one labelled source."""

    name: str
    """Name of the setting; `default` when there is only one."""
    run_url: Url
    """Run whose parts hold the counts of each image."""
    fingerprint: str
    """Fingerprint of the run, 12 hex digits: model, data, settings and code."""
    data_fp: str
    """Digest of keys, etags and labelled pixels of the scored images, 12 hex digits; equal digests can be paired."""
    checkpoint: str
    """Checkpoint as given, without secrets; empty when existing masks were scored."""
    model_fp: str
    """Digest of the checkpoint or of the masks, 12 hex digits."""
    training: dict[str, object]
    """Training facts of the checkpoint card; drift is measured from its `reference`, where it has one."""
    facts: dict[str, str]
    """Facts about the run for the report, name to text."""
    classes: ClassMap
    widths_px: tuple[float, ...]
    """(B,) half widths of the trimaps, px, increasing."""
    images: pd.DataFrame
    """`IMAGE_COLUMNS` of the N scored images, sorted by `key`."""
    answers: dict[str, AnswerCounts]
    """Counts by answer; the last answer is the one stored as the run's masks."""
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """(key, code, detail) of every image without a score, sorted."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Busy time per stage, summed over all workers."""
    slices: dict[str, list[Slice]] = field(default_factory=dict)
    """Slices by column, or by named group of a regular expression over the key."""

    @property
    def answer(self) -> AnswerCounts:
        """Counts of the answer stored as the run's masks."""
        return list(self.answers.values())[-1]

    @property
    def keys(self) -> list[str]:
        """Keys of the scored images, in the order of every (N, ...) array."""
        return list(self.images["key"])

    @property
    def coverage(self) -> Coverage:
        """Classes and ignored pixels of the labels of the scored images."""
        pixels = int((self.images["height"] * self.images["width"]).sum())
        return Coverage(self.classes.names, self.answer.counts_nkk.sum(axis=(0, 2)), pixels)

    @property
    def turned(self) -> int:
        """Scored images that EXIF turns or mirrors."""
        return int((self.images["orientation"] > 1).sum())

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
    def not_refined(self) -> dict[str, int]:
        """Scored images that are not refined, or in part, although an engine is configured, by reason."""
        notes = self.images["refine_note"].dropna() if "refine_note" in self.images else ()
        return dict(Counter(note.partition(":")[0] for note in notes))

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
    run_url: Url,
    *,
    name: str = "default",
    training: dict[str, object] | None = None,
    facts: dict[str, str] | None = None,
) -> Evaluation:
    """Sum the counts of a finished run. `scoring.score_slices` computes its slices.

    Args:
        run_url: run of `jobs.evaluate`.
        name: name of the setting.
        training: see `Evaluation`; empty where the checkpoint is not at hand.
        facts: see `Evaluation`.

    Raises:
        ConfigError: the run is not finished, has no rows, or is no run of an evaluation.
    """
    finished = manifest.read_manifest(run_url)
    if finished is None:
        raise ConfigError(f"{run_url} is not a finished run", hint="submit the same evaluation again")
    cfg, digest = _read_run_config(run_url)
    part_names = parts.list_parts(run_url)
    if not part_names:
        raise ConfigError(f"{run_url} has no rows: its source holds no image")
    classes = parts.read_classes(run_url, part_names[0])
    images, sums = _collect(run_url, part_names)
    answers = {
        answer: _answer_counts(answer, sums[answer], classes, cfg)
        for answer in answer_names(cfg.masks, cfg.refine.engine)
    }
    return Evaluation(
        name=name,
        run_url=run_url,
        fingerprint=run_url.raw.rpartition("run=")[2],
        data_fp=_data_fp(images, next(iter(answers.values()))),
        checkpoint=redact(cfg.checkpoint),
        model_fp=digest[:12],
        training=training or {},
        facts=facts or {},
        classes=classes,
        widths_px=cfg.judge.trimap_px,
        images=images,
        answers=answers,
        failures=manifest.read_failures(run_url, read_footers(run_url)),
        seconds=finished.seconds,
    )


@dataclass(slots=True)
class _Sums:
    """Counts of one answer while parts are read."""

    counts: list[Int64] = field(default_factory=list)
    total: Judgement | None = None

    def take(self, judgement: Judgement) -> None:
        """Add the counts of one image."""
        self.counts.append(judgement.counts)
        self.total = judgement if self.total is None else self.total + judgement


def _read_run_config(run_url: Url) -> tuple[EvaluateConfig, str]:
    """Config of a run, and the SHA-256 of its checkpoint or masks."""
    folder = run_url / "_run"
    config_url, environment_url = folder / "config.yaml", folder / "environment.json"
    hint = "submit the run's command again, which writes it anew; for a baseline, name another with --baseline"
    if not objects.exists(config_url):
        raise _no_evaluation(run_url, "it has no _run/config.yaml")
    with objects.naming_damage(config_url, hint=hint):
        config = dict(yaml.safe_load(objects.read_bytes(config_url)))
        if config and "judge" not in config:  # the config of a segmentation lacks only this key
            raise _no_evaluation(run_url, "its _run/config.yaml has no section judge")
        cfg = EvaluateConfig.model_validate(config)
    with objects.naming_damage(environment_url, hint=hint):
        return cfg, str(json.loads(objects.read_bytes(environment_url))["model_sha256"])


def _no_evaluation(run_url: Url, reason: str) -> ConfigError:
    return ConfigError(f"{run_url} is not a run of an evaluation: {reason}", hint="submit jobs/evaluate.py")


def _collect(run_url: Url, part_names: Sequence[str]) -> tuple[pd.DataFrame, defaultdict[str, _Sums]]:
    """`IMAGE_COLUMNS` of all scored images, sorted by key, and the counts of every answer in the same order."""
    frames: list[pd.DataFrame] = []
    by_key: list[tuple[str, list[Judgement]]] = []
    for table in parts.read_tables(run_url, part_names, ["status", *IMAGE_COLUMNS, "judgements"]):
        # windows of rasters without data or labels have no judgement
        ok = table.filter(pc.and_(pc.equal(table["status"], "ok"), pc.is_valid(table["judgements"])))
        frames.append(ok.drop_columns(["status", "judgements"]).to_pandas())
        by_key += zip(
            ok["key"].to_pylist(), (judgements or [] for judgements in judgements_from(ok["judgements"])), strict=True
        )
    sums: defaultdict[str, _Sums] = defaultdict(_Sums)
    for _, judgements in sorted(by_key, key=itemgetter(0)):
        for judgement in judgements:
            sums[judgement.name].take(judgement)
    images = pd.concat(frames).sort_values("key", ignore_index=True)
    return images, sums


def _answer_counts(name: str, sums: _Sums, classes: ClassMap, cfg: EvaluateConfig) -> AnswerCounts:
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
    versions = [*zip(images["key"], images["source_etag"], strict=True)]
    digest = hashlib.sha256(json.dumps(versions).encode())
    digest.update(answer.counts_nkk.sum(axis=-1).tobytes())
    return digest.hexdigest()[:12]
