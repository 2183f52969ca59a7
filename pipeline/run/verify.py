"""Verification of a run: reads every part again and checks checksums, names, order, masks and sums."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.errors import StorageError
from pipeline.image import encode
from pipeline.records import ROW_SCHEMA, Row, rows_from_table
from pipeline.run import folder, manifest, parts
from pipeline.store import objects
from pipeline.store.url import Url


def run_problems(run_url: Url) -> Iterator[str]:
    """Problems of a run, one line each; none when the run is intact.

    Per part: page checksums, its name against its keys, their order, each mask against its counts and size. Over all
    parts: no key twice, and the totals of the manifest when the run is finished.
    """
    seen: dict[str, str] = {}
    names = parts.list_parts(run_url)
    for name in names:
        try:
            table = parts.read_columns(run_url, name, ROW_SCHEMA.names)
        except StorageError as error:
            yield f"{name}: cannot be read: {error.message}"
            continue
        yield from (f"{name}: {problem}" for problem in _part_problems(name, table))
        for key in table["key"].to_pylist():
            if key in seen:
                yield f"{name}: key {key!r} is also in {seen[key]}"
            seen[key] = name
    yield from _manifest_problems(run_url, rows=len(seen), part_names=names)
    for file in objects.list_files(run_url):
        if file.path.rpartition("/")[2].startswith(".tmp-"):
            yield f"{file.path}: left behind by a writer that died (--clean removes it)"


def _part_problems(name: str, table: pa.Table) -> Iterator[str]:
    keys = table["key"].to_pylist()
    if parts.part_name(keys) != name:
        yield "its name is not the digest of its keys"
    if keys != sorted(keys):
        yield "its rows are not sorted by key"
    for row in rows_from_table(table):
        yield from (f"{row.key!r}: {problem}" for problem in _row_problems(row))


def _row_problems(row: Row) -> Iterator[str]:
    if row.status == "failed":
        if not row.error_code or row.mask is not None:
            yield "failed without a code, or with a mask"
        return
    if row.class_pixels is None or (row.mask is None and not _is_empty(row)):
        yield "ok without a mask or counts"
        return
    if row.mask is None:
        return
    try:
        mask = encode.read_mask_png(row.mask)
    except OSError as error:
        yield f"mask is not a PNG: {error}"
        return
    if mask.shape != (row.height, row.width):
        yield f"mask has shape {mask.shape}, the row has {(row.height, row.width)}"
    if np.bincount(mask.ravel(), minlength=256)[: len(row.class_pixels)].tolist() != row.class_pixels:
        yield "class_pixels do not agree with the mask"
    if row.nodata_pixels is not None and sum(row.class_pixels) + row.nodata_pixels != mask.size:
        yield f"class_pixels and nodata_pixels do not add up to {mask.size} pixels"


def _is_empty(row: Row) -> bool:
    """True for a window of a raster without a pixel with data: it has no mask, and that is no fault."""
    pixels = (row.height or 0) * (row.width or 0)
    return row.nodata_pixels == pixels > 0 and not any(row.class_pixels or ())


def _manifest_problems(run_url: Url, *, rows: int, part_names: list[str]) -> Iterator[str]:
    try:
        committed_manifest = manifest.read_manifest(run_url)
    except StorageError as error:
        yield str(error)
        return
    if committed_manifest is None:
        return
    if committed_manifest.rows != rows:
        yield f"{folder.MANIFEST} counts {committed_manifest.rows} rows, the parts hold {rows}"
    if committed_manifest.parts != part_names:
        yield f"{folder.MANIFEST} lists {len(committed_manifest.parts)} parts, {len(part_names)} exist"
