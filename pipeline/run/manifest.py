"""Manifest of a run: committed rows, shards still pending, and the closing of a finished run.

The parts are the only record of progress. A resume reads their footers. Closing a run reads their small columns once,
removes rows that a driver which had lost the run wrote twice, checks that every planned key has its row, and only then
writes `_manifest.json` and `_SUCCESS`.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from pipeline.classes import ClassMap
from pipeline.errors import JobError
from pipeline.prefetch import ahead
from pipeline.records import ROW_SCHEMA, Row, rows_from_table
from pipeline.run import folder, parts
from pipeline.run.parts import Part
from pipeline.source.plan import Plan
from pipeline.source.shard import Shard
from pipeline.store import objects
from pipeline.store.url import Url

T = TypeVar("T")
Result = TypeVar("Result")

_THREADS = 16
"""Concurrent reads of parts: small reads wait on latency, not bandwidth."""

SUMMED_COLUMNS = ["seconds_read", "seconds_decode", "seconds_infer", "seconds_refine", "seconds_encode"]
AVERAGED_COLUMNS = ["confidence", "entropy", "changed_share"]
SCANNED_COLUMNS = [
    *["status", "error_code", "class_pixels", "nodata_pixels", "refined", "refine_note", "longitude"],
    *SUMMED_COLUMNS,
    *AVERAGED_COLUMNS,
]


REFINED_IN_PART = "refined_in_part"
"""Reason that stands for rows with `refined` and a `refine_note`; no version writes such rows any more."""


@dataclass(frozen=True, slots=True)
class PendingShard:
    """Shard with rows that are not committed yet, and its keys that are."""

    shard: Shard
    skip: frozenset[str]


@dataclass(slots=True)
class Manifest:
    """Totals of a finished run: the content of `_manifest.json`."""

    run: str
    """Fingerprint, 12 hex digits."""
    shards: int
    rows: int = 0
    ok: int = 0
    failed: int = 0
    error_codes: dict[str, int] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    class_pixels: list[int] = field(default_factory=list)
    refined: int = 0
    """Rows whose whole mask a refiner produced."""
    refine_notes: dict[str, int] = field(default_factory=dict)
    """Rows `ok` that are not refined although a refiner was configured, by reason, or that are `refined_in_part`."""
    empty: int = 0
    """Windows of rasters without data: rows `ok` without a mask."""
    nodata_pixels: int = 0
    """Pixels without data of the rows that are ok."""
    positions: int = 0
    """Rows `ok` with a position by the GPS of their image: the points of `_points.parquet`."""
    confidence: float | None = None
    """Mean over the rows that have a mask; None when there are none."""
    entropy: float | None = None
    changed_share: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Busy time per stage, summed over all workers and all drivers of the run."""
    duplicates_removed: int = 0
    parts: list[str] = field(default_factory=list)

    @property
    def failed_fraction(self) -> float:
        """Failed rows over all rows; 0 for an empty run."""
        return self.failed / self.rows if self.rows else 0.0


def read_manifest(run_url: Url) -> Manifest | None:
    """Manifest of a finished run; None when the run is not finished.

    Raises:
        StorageError: the manifest is missing or damaged.
    """
    success = run_url / folder.SUCCESS
    if not objects.exists(success):
        return None
    url = folder.find_object(run_url, folder.MANIFEST)
    hint = f"delete {success} and submit the run's command again: it is written anew from the parts"
    with objects.naming_damage(url, hint=hint):
        return TypeAdapter(Manifest).validate_json(objects.read_bytes(url))


def reopen_run(run_url: Url) -> None:
    """Delete `_SUCCESS`, then the manifest and the points, because the run has work again."""
    objects.delete(run_url / folder.SUCCESS)
    for name in (folder.MANIFEST, folder.OLDER_NAMES[folder.MANIFEST], folder.POINTS):
        objects.delete(run_url / name)


def _map_ahead(function: Callable[[T], Result], values: Iterable[T]) -> Iterator[Result]:
    """`map` in threads, in order, at most `_THREADS + 1` results ahead of the caller."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from ahead(pool, function, values, _THREADS + 1)


def read_footers(run_url: Url) -> list[Part]:
    """Footers of all committed parts."""
    return list(_map_ahead(lambda name: parts.read_part_footer(run_url, name), parts.list_parts(run_url)))


def pending_shards(run_url: Url, plan: Plan, part_footers: Sequence[Part]) -> list[PendingShard]:
    """Shards with rows left to commit, in plan order.

    A shard is done when all its rows are committed. A folder that grew is cut into new slices, whose keys may be in
    parts under the ids of former slices: those are found by key.

    Raises:
        JobError: a committed row is of an older version of an object that is still in the source.
    """
    rows: Counter[str] = Counter()
    totals: dict[str, int] = {shard.id: shard.rows for shard in plan.shards if shard.rows is not None}
    for part in part_footers:
        for shard_id, count in part.shards.items():
            rows[shard_id] += count.rows
            if count.shard_rows is not None:
                totals[shard_id] = count.shard_rows
    open_shards = [shard for shard in plan.shards if totals.get(shard.id) is None or rows[shard.id] < totals[shard.id]]
    planned = {shard.id for shard in plan.shards}
    orphans = {shard_id for shard_id in rows if shard_id not in planned}
    partial = {shard.id for shard in open_shards if rows[shard.id]}
    known = _committed_keys(run_url, part_footers, partial | orphans) if partial or orphans else {}
    by_key = {key: etag for shard_id in orphans for key, etag in known[shard_id].items()}
    pending = [PendingShard(shard, _keys_to_skip(shard, known.get(shard.id, {}), by_key)) for shard in open_shards]
    return [shard for shard in pending if shard.shard.rows is None or len(shard.skip) < shard.shard.rows]


def _keys_to_skip(shard: Shard, own: dict[str, str], orphaned: dict[str, str]) -> frozenset[str]:
    """Committed keys of a shard, under its own id or under that of a former slice."""
    moved = [member for member in shard.members()[: shard.max_rows] if member.key in orphaned] if orphaned else []
    for member in moved:
        if orphaned[member.key] != member.etag:
            hint = "write to another --output, or give the new content a new name"
            raise JobError(f"{member.key!r} changed since its row was committed", hint=hint)
    return frozenset(own) | {member.key for member in moved}


def _committed_keys(run_url: Url, part_footers: Sequence[Part], shard_ids: set[str]) -> dict[str, dict[str, str]]:
    """Keys and etags of the committed rows of some shards; opens only the parts that hold them."""
    names = [part.name for part in part_footers if not shard_ids.isdisjoint(part.shards)]
    etags: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for table in _map_ahead(lambda name: parts.read_columns(run_url, name, ["key", "shard", "source_etag"]), names):
        for key, shard_id, etag in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            if shard_id in shard_ids:
                etags[shard_id][key] = etag
    return etags


def remove_duplicates(run_url: Url) -> int:
    """Leave one row per key over all parts; returns the number of rows removed.

    Two parts share a key only when a driver that had lost the run finished a write late. A row `ok` is kept before a
    row `failed`, then the row in the part that is first by name. The smaller part is put before the larger one is
    deleted, so a crash in between loses nothing, and the next call continues.
    """
    names = parts.list_parts(run_url)
    tables = list(_map_ahead(lambda name: parts.read_columns(run_url, name, ["key", "status"]), names))
    hashes = np.concatenate([_hashes(table) for table in tables]) if tables else np.empty(0, np.uint64)
    values, counts = np.unique(hashes, return_counts=True)
    twice = values[counts > 1]
    if not len(twice):
        return 0
    keeper: dict[str, tuple[bool, str]] = {}
    for name, table in zip(names, tables, strict=True):
        for key, status in _keys_and_status(table, np.isin(_hashes(table), twice)):
            keeper[key] = min(keeper.get(key, (True, "~")), (status != "ok", name))
    removed = 0
    for name, table in zip(names, tables, strict=True):
        keys = {key for key, _ in _keys_and_status(table, np.isin(_hashes(table), twice)) if keeper[key][1] != name}
        removed += len(keys)
        if keys:
            rewrite_without(run_url, name, keys)
    return removed


def rewrite_without(run_url: Url, name: str, keys: set[str]) -> None:
    """Replace a part by one without `keys`; a part without any other key is deleted."""
    table = parts.read_columns(run_url, name, ROW_SCHEMA.names)
    kept = table.filter(pa.array([key not in keys for key in table["key"].to_pylist()]))
    if len(kept):
        classes = ClassMap.model_validate_json(table.schema.metadata[parts.CLASSES_KEY])
        parts.write_part(run_url, kept, classes)
    objects.delete(parts.parts_url(run_url) / name)


def _hashes(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """64-bit hashes of the keys: 8 bytes per image keep a check over a hundred million keys in memory."""
    return pd.util.hash_array(np.array(table["key"].to_pylist(), dtype=object), categorize=False)


def _keys_and_status(table: pa.Table, where: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[tuple[str, str]]:
    selected = table.filter(pa.array(where))
    return list(zip(selected["key"].to_pylist(), selected["status"].to_pylist(), strict=True))


def close_run(run_url: Url, plan: Plan, classes: ClassMap, *, fingerprint: str, on_duplicate: str) -> Manifest:
    """Check a run and write its manifest; the caller then calls `mark_finished`.

    Raises:
        JobError: rows are missing, or a key occurs twice in the source and `on_duplicate` is `fail`.
    """
    removed = remove_duplicates(run_url)
    pending = pending_shards(run_url, plan, read_footers(run_url))
    if pending:
        hint = "run the same command again to continue"
        raise JobError(
            f"{len(pending)} of {len(plan.shards)} shards are not complete, first {pending[0].shard.uri}", hint=hint
        )
    manifest = summarise_run(run_url, classes, fingerprint=fingerprint, shards=len(plan.shards))
    manifest.duplicates_removed = removed
    if on_duplicate == "fail":
        _refuse_duplicate_keys(run_url, manifest)
    objects.put(run_url / folder.MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
    return manifest


def mark_finished(run_url: Url) -> None:
    """Put `_SUCCESS`, the last object of a run: all other objects must exist before."""
    folder.delete_older_names(run_url)
    objects.put(run_url / folder.SUCCESS, b"")


def _refuse_duplicate_keys(run_url: Url, manifest: Manifest) -> None:
    if not manifest.error_codes.get("duplicate_key"):
        return
    twice = [detail for _, code, detail in read_failures(run_url) if code == "duplicate_key"]
    hint = "make the keys unique, or keep both with --read.on-duplicate suffix"
    raise JobError(f"{len(twice)} key(s) occur twice in the source, first: {twice[0]}", hint=hint)


def summarise_run(run_url: Url, classes: ClassMap, *, fingerprint: str, shards: int) -> Manifest:
    """Sum all committed rows in one pass over the small columns of every part."""
    total = Manifest(run=fingerprint[:12], shards=shards, classes=list(classes.names), parts=parts.list_parts(run_url))
    pixels = np.zeros(len(classes), np.int64)
    codes, notes, seconds, means = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for table in _map_ahead(lambda name: parts.read_columns(run_url, name, SCANNED_COLUMNS), total.parts):
        frame = table.to_pandas()
        ok = frame[frame["status"] == "ok"]
        total.rows += len(frame)
        total.ok += len(ok)
        total.refined += int((ok["refined"].eq(True) & ok["refine_note"].isna()).sum())
        codes.update(frame["error_code"].dropna())
        notes.update(_not_refined(ok))
        seconds.update(
            {name.removeprefix("seconds_"): float(frame[name].astype(float).sum()) for name in SUMMED_COLUMNS}
        )
        means.update({name: float(ok[name].astype(float).sum()) for name in AVERAGED_COLUMNS})
        if "nodata_pixels" in ok:
            total.nodata_pixels += int(ok["nodata_pixels"].sum())
            total.empty += sum(not any(counts) for counts in ok["class_pixels"][ok["nodata_pixels"] > 0])
        if "longitude" in ok:
            total.positions += int(ok["longitude"].notna().sum())
        if len(ok):
            pixels += np.stack(ok["class_pixels"].to_list()).sum(axis=0)
    total.failed = total.rows - total.ok
    total.error_codes, total.refine_notes, total.seconds = dict(codes), dict(notes), dict(seconds)
    total.class_pixels = pixels.tolist()
    if masks := total.ok - total.empty:
        total.confidence, total.entropy, total.changed_share = (means[name] / masks for name in AVERAGED_COLUMNS)
    return total


def _not_refined(rows: pd.DataFrame) -> Counter[str]:
    """Number of rows that are not refined, by the name in `refine_note`.

    Versions before the rule "the whole image or nothing" left some images refined in part: `REFINED_IN_PART`.
    """
    noted = rows[rows["refine_note"].notna()]
    in_part = noted["refined"].eq(True)
    reasons = Counter(note.partition(":")[0] for note in noted["refine_note"][~in_part])
    if in_part.any():
        reasons[REFINED_IN_PART] = int(in_part.sum())
    return reasons


def read_parts(run_url: Url, names: Iterable[str], columns: list[str]) -> Iterator[pa.Table]:
    """Tables of `columns` of the parts `names`, in order, read a few parts ahead."""
    return _map_ahead(lambda name: parts.read_columns(run_url, name, columns), names)


def read_failures(run_url: Url) -> list[tuple[str, str, str]]:
    """(key, error code, detail) of every failed row, sorted by key."""
    columns = ["key", "status", "error_code", "error_detail"]
    failed = []
    for table in _map_ahead(lambda name: parts.read_columns(run_url, name, columns), parts.list_parts(run_url)):
        frame = table.to_pandas()
        bad = frame[frame["status"] == "failed"]
        failed += list(zip(bad["key"], bad["error_code"], bad["error_detail"], strict=True))
    return sorted(failed)


def read_previews(run_url: Url, *, limit: int) -> list[Row]:
    """Up to `limit` rows with previews, sorted by key."""
    previews: list[Row] = []
    for rows in _map_ahead(lambda name: _read_part_previews(run_url, name), parts.list_parts(run_url)):
        previews += rows
        if len(previews) >= limit:
            break
    return sorted(previews[:limit], key=lambda row: row.key)


def _read_part_previews(run_url: Url, name: str) -> list[Row]:
    shown = parts.read_columns(run_url, name, ["preview_image"])["preview_image"].is_valid()
    if not pc.any(shown).as_py():
        return []
    return rows_from_table(parts.read_columns(run_url, name, ROW_SCHEMA.names).filter(shown))


def forget_failed_rows(run_url: Url) -> int:
    """Remove the failed rows from all parts; returns their number."""
    removed = 0
    for name in parts.list_parts(run_url):
        table = parts.read_columns(run_url, name, ["key", "status"])
        rows = zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True)
        failed = {key for key, status in rows if status == "failed"}
        removed += len(failed)
        if failed:
            rewrite_without(run_url, name, failed)
    return removed
