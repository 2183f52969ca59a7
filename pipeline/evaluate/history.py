"""The history of evaluations: a folder of small Parquet objects, one for each; `pd.read_parquet` reads it as one table.

In: evaluations and what their gates said. Out: entries, oldest first, and the one that a new evaluation is to be
compared with. An object is never changed and never written twice: its name is a digest of what was evaluated and how it
was judged. Counts of single images stay in the run's parts, which an entry points to.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, NothingThere, StorageError
from pipeline.evaluate.evaluation import AnswerCounts, Evaluation
from pipeline.evaluate.gate import Baseline, Gates, GateVerdict
from pipeline.redact import redact
from pipeline.score.boundary import boundary_iou
from pipeline.score.calibration import expected_calibration_error
from pipeline.score.drift import QUANTITIES, Drift, Quantity
from pipeline.score.intervals import METRICS, Estimates, by_group, estimate
from pipeline.score.metrics import Interval
from pipeline.store import objects

_PLAIN = ("boundary_iou", "calibration_error")
"""What is only known of all images together, beside `METRICS`."""

LAST_GOOD = "last-good"
_MAX_BYTES = 64 * 2**20
_THREADS = 16
PREFIX_DIGITS = 6
"""Digits of a fingerprint that are enough to name it."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One answer of one evaluation: a row of the history."""

    time: datetime
    """When it was judged, UTC."""
    command: str
    """That made it, without secrets."""
    setting: str
    answer: str
    """`network`, or the engine that refined it."""
    judged: bool
    """Whether this answer is the one in the masks, which the gate judged."""
    source: str
    """Where the images came from, without secrets."""
    data_fp: str
    run_url: str
    """Whose parts hold the counts of each image."""
    run_fp: str
    gates_fp: str
    """Of the gates that judged it; empty without gates."""
    checkpoint: str
    model_fp: str
    class_map: str
    classes: list[str]
    images: int
    """Scored."""
    failed: int
    """Images without a score."""
    seconds: float
    """Work of all workers."""
    verdict: Literal["passed", "failed", "none"]
    """What the gate said; `none` without gates, and for an answer that was not judged."""
    baseline: str
    """The run that it was compared with; empty for none."""
    reasons: list[str]
    """Why it failed."""
    support: list[int]
    """(K,) labelled pixels of each class."""
    iou: list[Interval]
    """(K,) of each class; NaN for one that does not occur."""
    metrics: dict[str, Interval]
    """`METRICS` and `PLAIN` by name, 0 to 1; the interval of the latter is NaN."""
    drift: dict[Quantity, float]
    """Population stability index of each quantity; NaN for one that is not known."""


_INTERVALS = pa.list_(pa.float64())
HISTORY_SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", "UTC")),
        *((name, pa.string()) for name in ("command", "setting", "answer")),
        ("judged", pa.bool_()),
        *((name, pa.string()) for name in ("source", "data_fp", "run_url", "run_fp", "gates_fp")),
        *((name, pa.string()) for name in ("checkpoint", "model_fp", "class_map")),
        ("classes", pa.list_(pa.string())),
        *((name, pa.int64()) for name in ("images", "failed")),
        ("seconds", pa.float64()),
        *((name, pa.string()) for name in ("verdict", "baseline")),
        ("reasons", pa.list_(pa.string())),
        ("support", pa.list_(pa.int64())),
        *((f"iou{end}", _INTERVALS) for end in ("", "_low", "_high")),
        *((f"{name}{end}", pa.float64()) for name in (*METRICS, *_PLAIN) for end in ("", "_low", "_high")),
        *((f"drift_{name}", pa.float64()) for name in QUANTITIES),
    ]
)


# ---------------------------------------------------------------- entries


def history_entries(
    evaluation: Evaluation,
    *,
    time: datetime,
    command: str,
    source: str,
    gates: Gates | None = None,
    verdict: GateVerdict | None = None,
    drift: Sequence[Drift] = (),
) -> list[HistoryEntry]:
    """What the history keeps of an evaluation: an entry for each of its answers.

    Args:
        evaluation: what was measured.
        time: now, with a time zone.
        command: that made it.
        source: URLs of the images, as one text.
        gates: that judged it; None when nothing was asked of it.
        verdict: of these gates, on the answer in the masks.
        drift: of the evaluated images.
    """
    indices: dict[Quantity, float] = dict.fromkeys(QUANTITIES, np.nan) | {one.quantity: one.value for one in drift}

    def entry(answer: AnswerCounts) -> HistoryEntry:
        said = verdict if answer is evaluation.answer else None
        counts_nkk = by_group(answer.counts_nkk, evaluation.keys, gates.group if gates else None)
        found = estimate(counts_nkk)
        return HistoryEntry(
            time=time,
            command=redact(command),
            setting=evaluation.name,
            answer=answer.name,
            judged=answer is evaluation.answer,
            source=redact(source),
            data_fp=evaluation.data_fp,
            run_url=evaluation.run_url,
            run_fp=evaluation.fingerprint,
            gates_fp=gates.fingerprint() if gates else "",
            checkpoint=evaluation.checkpoint,
            model_fp=evaluation.model_fp,
            class_map=evaluation.classes.name,
            classes=list(evaluation.classes.names),
            images=len(evaluation.images),
            failed=len(evaluation.failures),
            seconds=float(sum(evaluation.seconds.values())),
            verdict="none" if said is None else "passed" if said.passed else "failed",
            baseline=said.comparison.run_url if said and said.comparison else "",
            reasons=said.reasons if said else [],
            support=answer.scores.support.tolist(),
            iou=found.iou,
            metrics=dict(found.metrics) | _plain(answer),
            drift=indices,
        )

    return [entry(answer) for answer in evaluation.answers.values()]


def _plain(answer: AnswerCounts) -> dict[str, Interval]:
    ious = boundary_iou(answer.boundary)
    found = (
        float(np.nanmean(ious)) if not np.isnan(ious).all() else np.nan,
        expected_calibration_error(answer.reliability),
    )
    return {name: Interval(value, np.nan, np.nan) for name, value in zip(_PLAIN, found, strict=True)}


# ---------------------------------------------------------------- the folder


def append_history(url: str, entries: Sequence[HistoryEntry]) -> bool:
    """Add the entries of one evaluation as one object of one row group; False when it is there already.

    The same evaluation under the same gates is the same object, whenever it is submitted.
    """
    out = io.BytesIO()
    pq.write_table(history_to_table(entries), out, compression="zstd", write_page_checksum=True)
    return objects.put_if_absent(objects.join(url, history_object_name(entries)), out.getvalue())


def history_object_name(entries: Sequence[HistoryEntry]) -> str:
    """`evaluation-<20 hex digits>.parquet`: a digest of what was evaluated and of the gates, but of no time."""
    one = entries[0]
    said = json.dumps([one.run_url, one.run_fp, one.data_fp, one.setting, one.gates_fp])
    return f"evaluation-{hashlib.sha256(said.encode()).hexdigest()[:20]}.parquet"


def read_history(url: str) -> list[HistoryEntry]:
    """All entries, oldest first; empty where there is no history yet.

    Raises:
        StorageError: an object is damaged, or the store refuses.
    """
    try:
        names = [found.path for found in objects.list_files(url)]
    except NothingThere:
        return []
    urls = [objects.join(url, name) for name in names if re.fullmatch(r"evaluation-[0-9a-f]{20}\.parquet", name)]
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = [entry for some in pool.map(_read_object, urls) for entry in some]
    return sorted(entries, key=lambda one: (one.time, one.run_url, one.judged))


def _read_object(url: str) -> list[HistoryEntry]:
    data = objects.read_bytes(url, max_bytes=_MAX_BYTES)
    try:
        return history_from_table(pq.read_table(io.BytesIO(data), page_checksum_verification=True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # any column may be missing or null
        hint = "delete it, and the evaluation can be appended again"
        raise StorageError(f"{redact(url)} is no entry of a history: {error}", hint=hint) from error


def history_to_table(entries: Iterable[HistoryEntry]) -> pa.Table:
    """Pack entries into a table of `SCHEMA`: an interval is three columns, `x`, `x_low` and `x_high`."""
    return pa.Table.from_pylist([_to_row(one) for one in entries], schema=HISTORY_SCHEMA)


def _to_row(one: HistoryEntry) -> dict[str, Any]:
    plain = {name: getattr(one, name) for name in HISTORY_SCHEMA.names if hasattr(one, name)}
    for end, field in (("", "value"), ("_low", "low"), ("_high", "high")):
        plain[f"iou{end}"] = [getattr(interval, field) for interval in one.iou]
        plain |= {f"{name}{end}": getattr(interval, field) for name, interval in one.metrics.items()}
    return plain | {f"drift_{name}": value for name, value in one.drift.items()}


def history_from_table(table: pa.Table) -> list[HistoryEntry]:
    """Inverse of `to_table`."""
    return [_from_row(row) for row in table.to_pylist()]


def _from_row(row: dict[str, Any]) -> HistoryEntry:
    def interval(name: str) -> Interval:
        return Interval(row.pop(name), row.pop(f"{name}_low"), row.pop(f"{name}_high"))

    metrics = {name: interval(name) for name in (*METRICS, *_PLAIN)}
    iou = [Interval(*values) for values in zip(row.pop("iou"), row.pop("iou_low"), row.pop("iou_high"), strict=True)]
    drift: dict[Quantity, float] = {name: row.pop(f"drift_{name}") for name in QUANTITIES}
    row["time"] = row["time"].astimezone(UTC)
    return HistoryEntry(
        **{name: row[name] for name in HistoryEntry.__slots__ if name in row}, metrics=metrics, iou=iou, drift=drift
    )


# ---------------------------------------------------------------- baselines


def find_baseline(wanted: str, entries: Sequence[HistoryEntry], now: Evaluation, *, source: str) -> Baseline | None:
    """The evaluation that `--baseline` names.

    Only entries of the same classes and source are looked at, and never this very evaluation. In this order:

    1. `last-good`: the newest of the same setting that passed its gate; None when there is none yet.
    2. The checkpoint, as it was given or by its last name, or at least six digits of the fingerprint of a model or run:
       the newest such entry, of the same setting if there is one.
    3. The URL of a run, whether the history knows it or not.

    Raises:
        ConfigError: for a name that nothing has, listing those that there are.
    """
    known = [one for one in entries if _comparable(one, now, redact(source))]
    if wanted == LAST_GOOD:
        good = [one for one in known if one.verdict == "passed" and one.setting == now.name]
        return _as_baseline(good[-1]) if good else None
    if named := [one for one in known if _is_named(one, wanted)]:
        best = max(named, key=lambda one: (one.setting == now.name, one.time))
        return _as_baseline(best)
    if "/run=" in wanted:
        return Baseline(wanted.rstrip("/"))
    names = ", ".join(sorted({one.checkpoint for one in known})) or "nothing yet"
    raise ConfigError(
        f"no baseline {wanted!r} in the history", hint=f"it has {names}; or give {LAST_GOOD} or a run's URL"
    )


def _as_baseline(one: HistoryEntry) -> Baseline:
    metrics = {name: one.metrics[name] for name in METRICS}
    return Baseline(one.run_url, one.checkpoint, Estimates(metrics, one.iou))


def _comparable(one: HistoryEntry, now: Evaluation, source: str) -> bool:
    itself = (one.run_url, one.data_fp) == (now.run_url, now.data_fp)
    return one.judged and not itself and one.source == source and one.classes == list(now.classes.names)


def _is_named(one: HistoryEntry, wanted: str) -> bool:
    exactly = {one.checkpoint, one.checkpoint.rstrip("/").rpartition("/")[2], one.run_url}
    prefix = len(wanted) >= PREFIX_DIGITS and (one.model_fp.startswith(wanted) or one.run_fp.startswith(wanted))
    return wanted.rstrip("/") in exactly or wanted in exactly or prefix
