"""History of evaluations: a folder of small Parquet objects, one each; `pd.read_parquet` reads it as one table.

In: evaluations and verdicts of their gates. Out: entries, oldest first, and the baseline of a new evaluation. An object
is never changed and never written twice: its name is a digest of run, data, setting, gates and season. Counts of single
images stay in the run's parts, to which an entry points.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
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
from pipeline.score.season import SEASON_QUANTITIES, SeasonQuantity
from pipeline.store import objects
from pipeline.store.url import Url

_POOLED_METRICS = ("boundary_iou", "calibration_error")
"""Metrics of all images pooled, beside `METRICS`; the bootstrap gives them no interval."""

LAST_GOOD = "last-good"
_MAX_BYTES = 64 * 2**20
_THREADS = 16
PREFIX_DIGITS = 6
"""Least number of digits that name a fingerprint."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One answer of one evaluation: a row of the history."""

    time: datetime
    """Time of the evaluation, UTC."""
    command: str
    """Command line of the evaluation, without secrets."""
    setting: str
    answer: str
    """`network`, the refinement engine, or `masks`."""
    judged: bool
    """True for the answer stored as the run's masks, which the gate checks."""
    source: str
    """URLs of the images, without secrets."""
    data_fp: str
    run_url: str
    """Run whose parts hold the counts of each image."""
    run_fp: str
    gates_fp: str
    """Digest of the gates; empty without gates."""
    checkpoint: str
    model_fp: str
    class_map: str
    classes: list[str]
    images: int
    """Scored images."""
    failed: int
    """Images without a score."""
    seconds: float
    """Busy time of all workers."""
    verdict: Literal["passed", "failed", "none"]
    """Verdict of the gate; `none` without gates, and for answers that the gate does not check."""
    baseline: str
    """Run of the baseline; empty for none."""
    reasons: list[str]
    """Texts of the failed checks."""
    support: list[int]
    """(K,) labelled pixels of each class."""
    iou: list[Interval]
    """(K,) IoU of each class; NaN for a class in no label and no mask."""
    metrics: dict[str, Interval]
    """`METRICS` and `_POOLED_METRICS` by name, 0 to 1; the interval of the latter is NaN."""
    drift: dict[Quantity, float]
    """Population stability index of each quantity; NaN where it is unknown."""
    season: dict[SeasonQuantity, float]
    """Largest distance of a value of all zones from the mean of its season, 1 at the limit; NaN where it is unknown."""
    season_date: date | None
    """Newest date of the zones; None when none were compared."""

    @property
    def classes_scored(self) -> int:
        """Number of classes in the mean IoU: those with an IoU."""
        return sum(not np.isnan(interval.value) for interval in self.iou)


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
        *((f"{name}{end}", pa.float64()) for name in (*METRICS, *_POOLED_METRICS) for end in ("", "_low", "_high")),
        *((f"drift_{name}", pa.float64()) for name in QUANTITIES),
        *((f"season_{name}", pa.float64()) for name in SEASON_QUANTITIES),
        ("season_date", pa.date32()),
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
    season: pd.DataFrame | None = None,
) -> list[HistoryEntry]:
    """Entries of an evaluation for the history, one per answer.

    Args:
        evaluation: counts to record.
        time: now, with a time zone.
        command: command line of the evaluation.
        source: URLs of the images, as one text.
        gates: gates that checked it; None without gates.
        verdict: of these gates, on the answer stored as masks.
        drift: drift of the evaluated images.
        season: `season.season_table` of the zones that the gates name; None when they name none.
    """
    indices: dict[Quantity, float] = dict.fromkeys(QUANTITIES, np.nan) | {
        moved.quantity: moved.value for moved in drift
    }

    def entry(answer: AnswerCounts) -> HistoryEntry:
        own_verdict = verdict if answer is evaluation.answer else None
        counts_nkk = by_group(answer.counts_nkk, evaluation.keys, gates.group if gates else None)
        estimates = estimate(counts_nkk)
        return HistoryEntry(
            time=time,
            command=redact(command),
            setting=evaluation.name,
            answer=answer.name,
            judged=answer is evaluation.answer,
            source=redact(source),
            data_fp=evaluation.data_fp,
            run_url=evaluation.run_url.place,
            run_fp=evaluation.fingerprint,
            gates_fp=gates.fingerprint() if gates else "",
            checkpoint=evaluation.checkpoint,
            model_fp=evaluation.model_fp,
            class_map=evaluation.classes.name,
            classes=list(evaluation.classes.names),
            images=len(evaluation.images),
            failed=len(evaluation.failures),
            seconds=float(sum(evaluation.seconds.values())),
            verdict="none" if own_verdict is None else "passed" if own_verdict.passed else "failed",
            baseline=own_verdict.comparison.run_url.place if own_verdict and own_verdict.comparison else "",
            reasons=own_verdict.reasons if own_verdict else [],
            support=answer.scores.support.tolist(),
            iou=estimates.iou,
            metrics=dict(estimates.metrics) | _pooled_metrics(answer),
            drift=indices,
            season={name: _farthest(season, name) for name in SEASON_QUANTITIES},
            season_date=None if season is None else max(season["date"].dropna(), default=None),
        )

    return [entry(answer) for answer in evaluation.answers.values()]


def _farthest(season: pd.DataFrame | None, name: SeasonQuantity) -> float:
    if season is None:
        return np.nan
    return float(season.loc[season["zone"].isna() & (season["quantity"] == name), "distance"].max())


def _pooled_metrics(answer: AnswerCounts) -> dict[str, Interval]:
    ious = boundary_iou(answer.boundary)
    values = (
        float(np.nanmean(ious)) if not np.isnan(ious).all() else np.nan,
        expected_calibration_error(answer.reliability),
    )
    return {name: Interval(value, np.nan, np.nan) for name, value in zip(_POOLED_METRICS, values, strict=True)}


# ---------------------------------------------------------------- the folder


def append_history(url: Url, entries: Sequence[HistoryEntry]) -> bool:
    """Write the entries of one evaluation as one object; False when the object exists already.

    The same evaluation under the same gates has the same object name, whenever it is submitted.
    """
    out = io.BytesIO()
    pq.write_table(history_to_table(entries), out, compression="zstd", write_page_checksum=True)
    return objects.put_if_absent(url / history_object_name(entries), out.getvalue())


def history_object_name(entries: Sequence[HistoryEntry]) -> str:
    """`evaluation-<20 hex digits>.parquet`: a digest of run, data, setting, gates and season, independent of time."""
    entry = entries[0]
    identity: list[object] = [entry.run_url, entry.run_fp, entry.data_fp, entry.setting, entry.gates_fp]
    if entry.season_date:
        identity += [entry.season_date.isoformat(), *entry.season.values()]
    return f"evaluation-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]}.parquet"


def read_history(url: Url) -> list[HistoryEntry]:
    """All entries, oldest first; empty when nothing has been recorded.

    Raises:
        StorageError: an object is damaged, or the store fails.
    """
    try:
        names = [file.path for file in objects.list_files(url)]
    except NothingThere:
        return []
    urls = [url / name for name in names if re.fullmatch(r"evaluation-[0-9a-f]{20}\.parquet", name)]
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = [entry for entries_of_object in pool.map(_read_object, urls) for entry in entries_of_object]
    return sorted(entries, key=lambda entry: (entry.time, entry.run_url, entry.judged))


def _read_object(url: Url) -> list[HistoryEntry]:
    data = objects.read_bytes(url, max_bytes=_MAX_BYTES)
    try:
        return history_from_table(pq.read_table(io.BytesIO(data), page_checksum_verification=True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # any column may be missing or null
        hint = "delete it, then submit its evaluation again to record it"
        raise StorageError(f"{url} is not an object of a history: {error}", hint=hint) from error


def history_to_table(entries: Iterable[HistoryEntry]) -> pa.Table:
    """Pack entries into a table of `SCHEMA`: an interval is three columns, `x`, `x_low` and `x_high`."""
    return pa.Table.from_pylist([_to_row(entry) for entry in entries], schema=HISTORY_SCHEMA)


def _to_row(entry: HistoryEntry) -> dict[str, Any]:
    columns = {name: getattr(entry, name) for name in HISTORY_SCHEMA.names if hasattr(entry, name)}
    for end, field in (("", "value"), ("_low", "low"), ("_high", "high")):
        columns[f"iou{end}"] = [getattr(interval, field) for interval in entry.iou]
        columns |= {f"{name}{end}": getattr(interval, field) for name, interval in entry.metrics.items()}
    columns |= {f"drift_{name}": value for name, value in entry.drift.items()}
    return columns | {f"season_{name}": value for name, value in entry.season.items()}


def history_from_table(table: pa.Table) -> list[HistoryEntry]:
    """Unpack entries from a table: inverse of `history_to_table`."""
    return [_from_row(row) for row in table.to_pylist()]


def _from_row(row: dict[str, Any]) -> HistoryEntry:
    def interval(name: str) -> Interval:
        return Interval(row.pop(name), row.pop(f"{name}_low"), row.pop(f"{name}_high"))

    metrics = {name: interval(name) for name in (*METRICS, *_POOLED_METRICS)}
    iou = [Interval(*values) for values in zip(row.pop("iou"), row.pop("iou_low"), row.pop("iou_high"), strict=True)]
    drift: dict[Quantity, float] = {name: row.pop(f"drift_{name}") for name in QUANTITIES}
    season: dict[SeasonQuantity, float] = {name: row.get(f"season_{name}", np.nan) for name in SEASON_QUANTITIES}
    row |= {"time": row["time"].astimezone(UTC), "season_date": row.get("season_date")}  # older objects have no season
    plain = {name: row[name] for name in HistoryEntry.__slots__ if name in row}
    return HistoryEntry(**plain, metrics=metrics, iou=iou, drift=drift, season=season)


# ---------------------------------------------------------------- baselines


def find_baseline(
    wanted: str, entries: Sequence[HistoryEntry], evaluation: Evaluation, *, source: str
) -> Baseline | None:
    """Baseline named by `--baseline`.

    Only entries of the same classes and source count, and never the evaluation itself. Resolution, in this order:

    1. `last-good`: the newest entry of the same setting that passed its gate; None when there is none yet.
    2. A checkpoint as given or by its last path component, or at least six digits of a model or run fingerprint: the
       newest such entry, of the same setting if there is one.
    3. The URL of a run, in the history or not.

    Raises:
        ConfigError: nothing has this name; the hint lists the checkpoints in the history.
    """
    known = [entry for entry in entries if _comparable(entry, evaluation, redact(source))]
    if wanted == LAST_GOOD:
        good = [entry for entry in known if entry.verdict == "passed" and entry.setting == evaluation.name]
        return _as_baseline(good[-1]) if good else None
    if named := [entry for entry in known if _is_named(entry, wanted)]:
        best = max(named, key=lambda entry: (entry.setting == evaluation.name, entry.time))
        return _as_baseline(best)
    if "/run=" in wanted:
        return Baseline(Url(wanted))
    names = ", ".join(sorted({entry.checkpoint for entry in known})) or "no entry of this source and class map"
    raise ConfigError(
        f"no baseline {wanted!r} in the history", hint=f"it has {names}; or give {LAST_GOOD} or a run's URL"
    )


def source_text(sources: Sequence[str]) -> str:
    """Places of the images as one text without secrets, however each was spelled."""
    return ", ".join(redact(Url(source).place) for source in sources)


def _as_baseline(entry: HistoryEntry) -> Baseline:
    metrics = {name: entry.metrics[name] for name in METRICS}
    return Baseline(Url(entry.run_url), entry.checkpoint, Estimates(metrics, entry.iou))


def _comparable(entry: HistoryEntry, evaluation: Evaluation, source: str) -> bool:
    itself = (Url(entry.run_url).place, entry.data_fp) == (evaluation.run_url.place, evaluation.data_fp)
    same_source = source_text(entry.source.split(", ")) == source_text(source.split(", "))
    return entry.judged and not itself and same_source and entry.classes == list(evaluation.classes.names)


def _is_named(entry: HistoryEntry, wanted: str) -> bool:
    checkpoint = entry.checkpoint.rstrip("/")
    exactly = {checkpoint, checkpoint.rpartition("/")[2], entry.run_url}
    prefix = len(wanted) >= PREFIX_DIGITS and (entry.model_fp.startswith(wanted) or entry.run_fp.startswith(wanted))
    return wanted.rstrip("/") in exactly or prefix
