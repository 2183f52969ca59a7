"""Survey of a run before its export: its parts, classes and failures, from the footers of all parts.

Reads the parts alone, so that a run is exported wherever it lies, finished or not.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError, JobError
from pipeline.run import folder, parts
from pipeline.run.footers import read_footers
from pipeline.store import objects
from pipeline.store.url import Url


@dataclass(frozen=True, slots=True)
class Survey:
    """What a run holds."""

    url: Url
    classes: ClassMap
    parts: dict[str, str]
    """Version of each committed part, by name, in the order of the names."""
    masks: dict[str, int]
    """Rows with a mask in each part, by name."""
    rows: int
    failed: dict[str, int]
    """Rows without a mask, by error code."""
    finished: bool
    """False when rows may be missing."""

    def masked_keys(self) -> Iterator[list[str]]:
        """Keys of the rows with a mask, part by part."""
        for table in parts.read_tables(self.url, self.parts, ["key", "status"]):
            yield table.filter(pc.equal(table["status"], "ok"))["key"].to_pylist()

    def keys(self) -> Iterator[list[str]]:
        """Keys of all rows, part by part: a failed row may have a mask after a retry."""
        for table in parts.read_tables(self.url, self.parts, ["key"]):
            yield table["key"].to_pylist()

    def file_of_part(self, name: str, suffix: str) -> str:
        """Name of the file made of a part; another version of the part gives another name."""
        return f"{name.removesuffix('.parquet')}-{hashlib.sha256(self.parts[name].encode()).hexdigest()[:8]}{suffix}"


def survey_run(run_url: Url) -> Survey:
    """Read which rows a run holds.

    Raises:
        ConfigError: the run has no rows, or is one over rasters.
    """
    if folder.is_of_rasters(run_url):
        hint = "its masks are COGs in masks/; `atrous assemble` joins those that are missing"
        raise ConfigError(f"{run_url} is a run over rasters, whose rows are windows", hint=hint)
    finished = objects.exists(run_url / folder.SUCCESS)  # before the parts are listed
    footers = read_footers(run_url)
    if not len(footers):
        raise ConfigError(f"{run_url} has no rows yet", hint="give one run= folder in the --output of a segment job")
    columns = (footers.table[name].to_pylist() for name in ("name", "rows", "failed"))
    masks = {name: rows - failed for name, rows, failed in zip(*columns, strict=True)}
    versions = {file.path: file.etag for file in objects.list_files(parts.parts_url(run_url)) if file.path in masks}
    classes, totals = parts.read_classes(run_url, min(masks)), footers.totals
    return Survey(run_url, classes, versions, masks, totals.rows, totals.error_codes, finished)


def masked_rows(run: Survey, name: str, columns: list[str]) -> pa.Table:
    """`key`, `mask` and `columns` of the rows of a part that have a mask.

    Raises:
        JobError: a row `ok` has no mask.
        StorageError: the part is damaged, or a job has replaced it meanwhile.
    """
    table = parts.read_columns(run.url, name, ["key", "status", "mask", *columns])
    ok = table.filter(pc.equal(table["status"], "ok"))
    if ok["mask"].null_count:
        key = ok.filter(ok["mask"].is_null())["key"][0].as_py()
        raise JobError(f"{name}: the row {key!r} is ok without a mask", hint=f"atrous inspect {run.url} --verify")
    return ok


def masks_of(run: Survey) -> Iterator[tuple[str, bytes]]:
    """Key and palette PNG of every row with a mask, in the order of the parts; holds one part in memory."""
    for name in run.parts:
        table = masked_rows(run, name, [])
        for key, mask in zip(table["key"], table["mask"], strict=True):
            yield key.as_py(), mask.as_py()
