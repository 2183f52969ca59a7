"""Evaluations: what a finished run over labelled images is worth.

In: the committed parts of a run whose rows carry judgements. Out: an `Evaluation`, whose counts are whole numbers of
pixels that add up exactly, whatever workers there were and however often they died. Never reads an image, a label or a
checkpoint's weights.
"""

from dataclasses import dataclass, field

import pandas as pd

from pipeline.classes import ClassMap
from pipeline.metrics import Int64, Interval, Scores


@dataclass(frozen=True, slots=True)
class Answer:
    """What was counted of one answer to every scored image: of the network, or of what refined it."""

    name: str
    """`network`, or the engine that refined it."""
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
    answers: dict[str, Answer]
    """By name; the last one is the one that is in the masks."""
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """(key, code, detail) of every image that has no score, sorted."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Work per stage, summed over all workers: what it cost."""
    slices: dict[str, list[Slice]] = field(default_factory=dict)
    """By what they are cut by: a column, or a named group of a regular expression over the key."""

    @property
    def answer(self) -> Answer:
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
