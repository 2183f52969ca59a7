"""Write a run of many parts on a disk, or close it: a script for this version and, from elsewhere, for older ones.

PYTHONPATH=CHECKOUT python benchmarks/scale/closing.py write FOLDER PARTS
PYTHONPATH=CHECKOUT python benchmarks/scale/closing.py close FOLDER PARTS
"""

import json
import sys
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np

from pipeline import classes
from pipeline.image import encode
from pipeline.records import Row, rows_to_table
from pipeline.run import manifest, parts
from pipeline.source.plan import Plan
from pipeline.source.shard import Shard, object_shard
from pipeline.store.backend import FileInfo
from pipeline.store.url import Url

CLASSES = classes.load_class_map("farmland")
PART_ROWS, SHARD_PARTS = 256, 4


def shards(count: int) -> list[Shard]:
    """One tar for every `SHARD_PARTS` parts."""
    files = (FileInfo(f"{number:06}.tar", 1, f"e{number}") for number in range(-(-count // SHARD_PARTS)))
    return [object_shard("webdataset", "tars", file) for file in files]


def part_rows(number: int, shard: Shard, *, last: bool) -> list[Row]:
    """Rows of one part, with small masks."""
    mask = np.full((16, 16), number % len(CLASSES), np.uint8)
    pixels = np.bincount(mask.ravel(), minlength=len(CLASSES)).tolist()
    first = number % SHARD_PARTS * PART_ROWS
    fields = {"status": "ok", "shard": shard.id, "source_etag": "e", "model_fp": "m", "config_fp": "c"}
    fields |= {"height": 16, "width": 16, "mask": encode.mask_png(mask, CLASSES), "class_pixels": pixels}
    rows = [Row(key=f"{shard.uri}#{first + row:06}", confidence=0.5, **fields) for row in range(PART_ROWS)]
    return [*rows[:-1], replace(rows[-1], shard_rows=first + PART_ROWS if last else None)]


def write(run_url: Url, count: int) -> None:
    """Commit all parts as the flow does: with an index where this version has one."""
    add = None
    with suppress(ImportError):
        from pipeline.run.footers import IndexWriter  # noqa: PLC0415  # not in older versions

        add = IndexWriter(run_url).add
    planned = shards(count)
    for number in range(count):
        last = (number + 1) % SHARD_PARTS == 0 or number == count - 1
        table = rows_to_table(part_rows(number, planned[number // SHARD_PARTS], last=last))
        if add:
            add(parts.write_part(run_url, table, CLASSES, owner=1))
        else:
            parts.write_part(run_url, table, CLASSES)


def close(run_url: Url, count: int) -> float:
    """Seconds that closing takes."""
    started = time.perf_counter()
    manifest.close_run(run_url, Plan(shards(count)), CLASSES, fingerprint="0" * 64, on_duplicate="fail")
    return time.perf_counter() - started


if __name__ == "__main__":
    step, folder, number_of_parts = sys.argv[1:]
    if step == "write":
        write(Url(folder), int(number_of_parts))
    else:
        print(json.dumps({"seconds": close(Url(folder), int(number_of_parts))}))
