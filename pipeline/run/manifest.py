"""Manifest of a run: the closing of a finished run, its totals, and the rows that reports read again.

The parts are the only record of progress. Closing a run removes temporary files of writers that were killed, reads the
footers of the parts, removes rows that a driver which had lost the run wrote twice, checks that every planned key has
its row, and only then writes `_manifest.json` and `_SUCCESS`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from pipeline.classes import ClassMap
from pipeline.errors import JobError
from pipeline.records import ROW_SCHEMA, Row, rows_from_table
from pipeline.run import folder, parts
from pipeline.run.duplicates import remove_duplicates, rewrite_without, suspect_shards
from pipeline.run.footers import Footers, gather_footers, read_footers
from pipeline.run.pending import pending_shards
from pipeline.source.plan import Plan
from pipeline.store import objects
from pipeline.store.url import Url

FAILED_ROW = ["key", "status", "error_code", "error_detail"]


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


def close_run(
    run_url: Url, plan: Plan, classes: ClassMap, *, fingerprint: str, on_duplicate: str
) -> tuple[Manifest, Footers]:
    """Check a run and write its manifest; the caller then calls `mark_finished`.

    Returns:
        the manifest, and the footers of the parts that it lists.

    Raises:
        JobError: rows are missing, or a key occurs twice in the source and `on_duplicate` is `fail`.
    """
    objects.remove_unfinished(run_url)
    footers = gather_footers(run_url)
    removed = remove_duplicates(run_url, footers.names_holding(suspect_shards(run_url, plan, footers)))
    if removed:
        footers = gather_footers(run_url)
    if pending := pending_shards(run_url, plan, footers):
        hint = "run the same command again to continue"
        raise JobError(
            f"{len(pending)} of {len(plan.shards)} shards are not complete, first {pending[0].shard.uri}", hint=hint
        )
    manifest = manifest_of(footers, classes, fingerprint=fingerprint, shards=len(plan.shards))
    manifest.duplicates_removed = removed
    if on_duplicate == "fail":
        _refuse_duplicate_keys(run_url, footers)
    objects.put(run_url / folder.MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
    return manifest, footers


def manifest_of(footers: Footers, classes: ClassMap, *, fingerprint: str, shards: int) -> Manifest:
    """Manifest of a run, from the totals of its parts."""
    totals = footers.totals
    return Manifest(
        run=fingerprint[:12],
        shards=shards,
        rows=totals.rows,
        ok=totals.ok,
        failed=totals.failed,
        error_codes=totals.error_codes,
        classes=list(classes.names),
        class_pixels=totals.class_pixels or [0] * len(classes),
        refined=totals.refined,
        refine_notes=totals.refine_notes,
        empty=totals.empty,
        nodata_pixels=totals.nodata_pixels,
        positions=totals.positions,
        confidence=totals.mean("confidence"),
        entropy=totals.mean("entropy"),
        changed_share=totals.mean("changed_share"),
        seconds=totals.seconds,
        parts=sorted(footers.names),
    )


def mark_finished(run_url: Url) -> None:
    """Put `_SUCCESS`, the last object of a run: all other objects must exist before."""
    folder.delete_older_names(run_url)
    objects.put(run_url / folder.SUCCESS, b"")


def _refuse_duplicate_keys(run_url: Url, footers: Footers) -> None:
    count = footers.totals.error_codes.get("duplicate_key", 0)
    if not count:
        return
    first = next(detail for _, code, detail in example_failures(run_url, footers, each=1) if code == "duplicate_key")
    hint = "make the keys unique, or keep both with --read.on-duplicate suffix"
    raise JobError(f"{count} key(s) occur twice in the source, first: {first}", hint=hint)


# ---------------------------------------------------------------- reading rows again


def _failures(run_url: Url, footers: Footers) -> Iterator[tuple[str, str, str]]:
    """(key, error code, detail) of failed rows, part after part."""
    for table in parts.read_tables(run_url, footers.names_with("failed"), FAILED_ROW):
        failed = table.filter(pc.equal(table["status"], "failed"))
        yield from zip(*(failed[name].to_pylist() for name in ("key", "error_code", "error_detail")), strict=True)


def read_failures(run_url: Url, footers: Footers) -> list[tuple[str, str, str]]:
    """(key, error code, detail) of every failed row, sorted by key."""
    return sorted(_failures(run_url, footers))


def example_failures(run_url: Url, footers: Footers, *, each: int) -> list[tuple[str, str, str]]:
    """(key, error code, detail) of `each` failed rows of every error code, sorted by key; few parts are read."""
    wanted = {code: min(each, count) for code, count in footers.totals.error_codes.items()}
    taken, examples = Counter[str](), []
    for key, code, detail in _failures(run_url, footers):
        if taken[code] < wanted.get(code, 0):
            taken[code] += 1
            examples.append((key, code, detail))
        if taken == wanted:
            break
    return sorted(examples)


def read_previews(run_url: Url, footers: Footers, *, limit: int) -> list[Row]:
    """Up to `limit` rows with previews, sorted by key."""
    previews: list[Row] = []
    names = footers.names_with("previews")
    for rows in parts.map_ahead(lambda name: _part_previews(run_url, name), names):
        previews += rows
        if len(previews) >= limit:
            break
    return sorted(previews[:limit], key=lambda row: row.key)


def _part_previews(run_url: Url, name: str) -> list[Row]:
    """Rows with previews of a part, whose other masks are not all in memory at once."""
    batches = parts.read_batches(run_url, name, ROW_SCHEMA.names, rows=parts.PAGE_ROWS)
    return [
        row
        for batch in batches
        for row in rows_from_table(pa.Table.from_batches([batch.filter(batch["preview_image"].is_valid())]))
    ]


def forget_failed_rows(run_url: Url) -> int:
    """Remove the failed rows from all parts; returns their number."""
    removed = 0
    for name in read_footers(run_url).names_with("failed"):
        table = parts.read_columns(run_url, name, ["key", "status"])
        keys = set(table.filter(pc.equal(table["status"], "failed"))["key"].to_pylist())
        removed += len(keys)
        rewrite_without(run_url, name, keys)
    return removed
