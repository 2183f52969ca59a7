"""Plan a run: list the sources, cut them into shards, and read one shard.

A SegmentConfig goes in, a Plan comes out, in the driver; a Shard goes in and its items come out, in a worker. Planning
opens no object except the footers of at most 10,000 Parquet files, and the tars that `--limit` has to count.
"""

import heapq
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field, fields, replace
from itertools import groupby, islice
from typing import Literal

import pyarrow as pa

from pipeline import storage
from pipeline.config import ReadConfig, SegmentConfig
from pipeline.errors import JobError
from pipeline.records import Item
from pipeline.redact import redact
from pipeline.source import folder, parquet, webdataset
from pipeline.source.shard import Kind, Member, Shard, deliver, object_shard, slice_shard, suffix_of, with_copies

PHOTOS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
"""Suffixes of images in a folder; .bmp joins them when --decode.formats has it."""

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
"""Refused: they cannot be read from the middle, and a small one can hold any amount of data."""

MAX_WARNINGS = 10
MAX_SUFFIXES = 100
"""Suffixes counted one by one; the rest share `(other)`."""

_WHAT = {"folder": "images", "webdataset": "tars", "parquet": "Parquet files"}

SHARD_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("root", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        ("rows", pa.int64()),
        ("row_group", pa.int32()),
        pa.field("copy", pa.int32(), nullable=False),
        ("max_rows", pa.int64()),
        pa.field("packed", pa.large_binary(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run has to read."""

    shards: list[Shard]
    """In the order of the sources and of the paths in each."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Files that are no input, by suffix; `(hidden)` counts names that begin with a dot or an underscore."""
    warnings: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes to read at most; an object of several row groups counts once."""
        return sum(shard.size for shard in self.shards if not shard.row_group)

    @property
    def rows(self) -> int | None:
        """Items expected; None when only reading tells."""
        rows = [shard.rows for shard in self.shards]
        return None if None in rows else sum(one for one in rows if one is not None)

    def to_table(self) -> pa.Table:
        """One row per shard, of `SHARD_SCHEMA`, to store beside the run."""
        said = json.dumps({"ignored": self.ignored, "warnings": self.warnings})
        columns = [
            pa.array([getattr(shard, column.name) for shard in self.shards], column.type) for column in SHARD_SCHEMA
        ]
        return pa.table(columns, schema=SHARD_SCHEMA.with_metadata({"plan": said}))

    @classmethod
    def from_table(cls, table: pa.Table) -> "Plan":
        """Inverse of `to_table`."""
        columns = (table.column(one.name).to_pylist() for one in fields(Shard))
        said = json.loads(table.schema.metadata[b"plan"])
        return cls([Shard(*values) for values in zip(*columns, strict=True)], said["ignored"], said["warnings"])


def plan(cfg: SegmentConfig) -> Plan:
    """List every source and cut it into shards.

    Raises:
        JobError: a source mixes kinds of input, holds compressed tars, or brings a key another source has brought.
        StorageError: a source is not there, or cannot be listed.
    """
    surveys = [_Survey(url, cfg) for url in cfg.source]
    roots = _number_copies([survey.shards() for survey in surveys], cfg.read)
    shards = (shard for root in roots for shard in _in_row_groups(root, limited=cfg.limit is not None))
    if cfg.limit is not None:
        shards = _limited(shards, cfg.limit, cfg.read)
    ignored = sum((survey.ignored for survey in surveys), Counter())
    warnings = [warning for survey in surveys for warning in survey.warnings]
    return Plan(list(shards), dict(sorted(ignored.items())), warnings)
