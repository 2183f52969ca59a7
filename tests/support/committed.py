"""Runs of made-up rows, committed as parts."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import classes
from pipeline.image import encode
from pipeline.records import Row, rows_from_table, rows_to_table
from pipeline.run import parts
from pipeline.source.shard import Shard, object_shard
from pipeline.store.backend import FileInfo
from pipeline.store.url import Url

FARM = classes.load_class_map("farmland")


def tar(name: str) -> Shard:
    return object_shard("webdataset", "root", FileInfo(f"{name}.tar", 1000, "e1"))


def mask_row(key: str, shard: Shard, *, shard_rows: int | None = None, etag: str = "e1") -> Row:
    mask = np.random.default_rng(len(key)).integers(0, 7, (6, 5)).astype(np.uint8)
    pixels = np.bincount(mask.ravel(), minlength=7).tolist()
    fields = {"key": key, "status": "ok", "shard": shard.id, "source_etag": etag, "model_fp": "m", "config_fp": "c"}
    return Row(
        **fields,
        height=6,
        width=5,
        mask=encode.mask_png(mask, FARM),
        refined=True,
        class_pixels=pixels,
        confidence=0.5,
        entropy=0.25,
        changed_share=0.1,
        shard_rows=shard_rows,
    )


def failed_row(key: str, shard: Shard, code: str = "truncated", *, shard_rows: int | None = None) -> Row:
    fields = {"key": key, "status": "failed", "shard": shard.id, "source_etag": "e1", "model_fp": "m", "config_fp": "c"}
    return Row(**fields, error_code=code, error_detail=f"{key} is bad", shard_rows=shard_rows)


def rows_of(shard: Shard, count: int, *, failed: int = 0) -> list[Row]:
    """All rows of a tar: the first `failed` rows are failures, the last has `shard_rows`."""
    last = {count - 1: count}
    return [
        (failed_row if index < failed else mask_row)(f"{shard.uri}#{index}", shard, shard_rows=last.get(index))
        for index in range(count)
    ]


def commit(run: Path | str, rows: list[Row], owner: int | None = None) -> str:
    return parts.write_part(Url(str(run)), rows_to_table(rows), FARM, owner=owner).name


def part(run: Path | str, name: str) -> pa.Table:
    return parts.read_columns(Url(str(run)), name, parts.ROW_SCHEMA.names)


def row_in(run: str, name: str, key: str) -> Row:
    return next(row for row in rows_from_table(part(run, name)) if row.key == key)


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Columns that are read of each part from now on, by its name."""
    read: defaultdict[str, set[str]] = defaultdict(set)
    original = parts.read_columns

    def watched(run_url: Url, name: str, columns: list[str]):
        table = original(run_url, name, columns)
        read[name] |= set(table.column_names)
        return table

    monkeypatch.setattr(parts, "read_columns", watched)
    return read
