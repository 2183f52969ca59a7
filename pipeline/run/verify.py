"""Verification of a run: reads every part again and checks checksums, names, order, masks, footers and sums.

    groups of parts -> check_parts -> problems, and hashes of keys in buckets -> repeated_hashes -> keys with two rows

A bucket holds a range of hashes, so that keys are compared over all parts in bounded memory. `Shuffle` is how the work
is done: in this process, or by `flow.shuffle` on the workers of a cluster.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipeline.errors import StorageError
from pipeline.image import encode
from pipeline.records import ROW_SCHEMA, Row, rows_from_table
from pipeline.run import folder, footers, manifest, parts
from pipeline.run.duplicates import UInt64, hash_keys, repeated_hashes
from pipeline.run.parts import Part
from pipeline.run.totals import count_rows
from pipeline.store import objects
from pipeline.store.url import Url

GROUP_PARTS = 1024
"""Most parts per unit of work."""
BUCKETS = 64
"""Ranges of hashes: 8 bytes per row, so a billion rows are 125 MB each."""

Lines = list[str]
Split = Callable[[Sequence[str]], tuple[Lines, list[UInt64]]]
Join = Callable[..., UInt64]


class Shuffle(Protocol):
    """How groups of parts are checked, and the hashes of their keys compared."""

    def __call__(self, groups: Sequence[Sequence[str]], split: Split, join: Join) -> tuple[list[Lines], list[UInt64]]:
        """Call `split` on each group of names, then `join` on the arrays that all groups gave for each bucket.

        Returns:
            the lines of each group, and what `join` gave for each bucket.
        """


def shuffle_here(groups: Sequence[Sequence[str]], split: Split, join: Join) -> tuple[list[Lines], list[UInt64]]:
    """`Shuffle` in this process."""
    lines, buckets = zip(*map(split, groups), strict=True) if groups else ([], [])
    return list(lines), [join(*arrays) for arrays in zip(*buckets, strict=True)]


def run_problems(run_url: Url, shuffle: Shuffle = shuffle_here) -> Iterator[str]:
    """Problems of a run, one line each; none when the run is intact.

    Per part: page checksums, its name against its keys, their order, its footer against its rows, each mask against its
    counts and size. Over all parts: no key twice, and the totals of the manifest when the run is finished.
    """
    names = parts.list_parts(run_url)
    step = min(GROUP_PARTS, max(-(-len(names) // BUCKETS), 1))
    groups = [names[at : at + step] for at in range(0, len(names), step)]
    problems, repeated = shuffle(groups, partial(check_parts, run_url=run_url), repeated_hashes)
    for lines in problems:
        yield from lines
    twice = np.concatenate([np.empty(0, np.uint64), *repeated])
    if len(twice):
        yield from _name_repeated(run_url, names, twice)
    yield from _manifest_problems(run_url, names)
    for file in objects.list_files(run_url):
        if file.path.rpartition("/")[2].startswith(".tmp-"):
            yield f"{file.path}: left behind by a writer that died (--clean removes it)"


def check_parts(names: Sequence[str], run_url: Url) -> tuple[Lines, list[UInt64]]:
    """Problems of some parts, one line each, and the hashes of their keys in `BUCKETS` arrays."""
    lines: Lines = []
    hashes = [np.empty(0, np.uint64)]
    for name in names:
        try:
            table = parts.read_columns(run_url, name, ROW_SCHEMA.names)
            footer = parts.read_part_footer(run_url, name)
        except StorageError as error:
            lines.append(f"{name}: cannot be read: {error.message}")
            continue
        lines += [f"{name}: {problem}" for problem in _part_problems(name, table, footer)]
        hashes.append(hash_keys(table["key"]))
    together = np.concatenate(hashes)
    bucket = together >> np.uint64(64 - int(np.log2(BUCKETS)))
    return lines, [together[bucket == number] for number in range(BUCKETS)]


def _name_repeated(run_url: Url, names: Sequence[str], hashes: UInt64) -> Iterator[str]:
    """Keys with these hashes that are in several parts, or twice in one."""
    seen: dict[str, str] = {}
    for name in names:
        try:
            keys = parts.read_columns(run_url, name, ["key"])["key"]
        except StorageError:  # named before
            continue
        for key in keys.filter(pa.array(np.isin(hash_keys(keys), hashes))).to_pylist():
            if key in seen:
                yield f"{name}: key {key!r} is also in {seen[key]}"
            seen[key] = name


def _part_problems(name: str, table: pa.Table, footer: Part) -> Iterator[str]:
    keys = table["key"].to_pylist()
    if (footer.shards, footer.totals.counts) != (parts.count_shards(table), count_rows(table).counts):
        yield "its footer does not count its rows"
    if parts.part_name(keys, footer.left_of) != name:
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


def _manifest_problems(run_url: Url, part_names: Sequence[str]) -> Iterator[str]:
    try:
        committed_manifest = manifest.read_manifest(run_url)
        if committed_manifest is None:
            return
        rows = footers.read_footers(run_url).totals.rows
    except StorageError as error:
        yield str(error)
        return
    if committed_manifest.rows != rows:
        yield f"{folder.MANIFEST} counts {committed_manifest.rows} rows, the parts hold {rows}"
    if committed_manifest.parts != part_names:
        yield f"{folder.MANIFEST} lists {len(committed_manifest.parts)} parts, {len(part_names)} exist"
