"""A made-up store: a source of a million tars, and a run over it, whose objects exist only while they are read.

Names, footers and index objects are computed from their numbers, so a run of a billion rows takes no disk. Every
request is answered after a delay, as by an object store.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa

from pipeline import classes
from pipeline.records import Row, rows_to_table
from pipeline.run import footers, parts
from pipeline.run.footers import FOOTER_SCHEMA, Footers
from pipeline.run.totals import RowTotals
from pipeline.source.shard import object_shard
from pipeline.store.backend import Backend, FileInfo
from pipeline.store.url import Url

SOURCE, RUN = Url("memory://tars"), Url("memory://out/run=000000000000")
SHARD_ROWS, PART_ROWS = 1000, 256
"""Images per tar, and rows per part: a run of version 0.3 or before, whose parts did not grow with it."""
PAGE = 1000
"""Names per request of a listing, as S3 has them."""
CLASSES = classes.load_class_map("farmland")
TAR_BYTES = 200_000_000
_SPREAD = 0x9E3779B97F4A7C15
"""Odd factor that spreads part numbers over 64 bits, so that listings come in another order than the work."""
_UNSPREAD = pow(_SPREAD, -1, 2**64)


@dataclass(frozen=True)
class Committed:
    """How much of the run is there."""

    rows: int
    """Rows of the whole run."""
    done: float
    """Share of them that is committed, 0 to 1."""
    in_flight: int
    """Shards of which a part is missing, besides those that were not begun: what dead workers held."""
    unindexed: int
    """Parts at the end of the run that no index object has."""

    @property
    def shards(self) -> int:
        """Number of tars."""
        return -(-self.rows // SHARD_ROWS)

    @cached_property
    def part_numbers(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Numbers of the parts that exist."""
        count = int(-(-self.rows // PART_ROWS) * self.done)
        lost = np.linspace(1, count - 2, self.in_flight).astype(np.int64) if self.in_flight else []
        return np.setdiff1d(np.arange(count), lost)


class MadeUpStore(Backend):
    """Requests of a store that holds the tars and the run, and keeps what is written to it."""

    def __init__(self, committed: Committed, latency_s: float) -> None:
        self.committed, self.latency_s = committed, latency_s
        self.written: dict[str, bytes] = {}
        self.requests = 0
        self.shard_ids = pa.array(
            object_shard("webdataset", SOURCE.raw, self._tar(number)).id for number in range(committed.shards)
        )

    def _wait(self) -> None:
        self.requests += 1
        time.sleep(self.latency_s)

    # ------------------------------------------------------------ listings

    def is_folder(self, path: str) -> bool:
        """No folder exists without objects."""
        return False

    def walk(self, url: Url, path: str) -> Iterator[FileInfo]:
        """List the tars, the parts, or what was written below `path`; a request per `PAGE` names."""
        listings = {
            "/tars": self._tars,
            "/out/run=000000000000/parts": self._parts,
            f"/out/run=000000000000/{footers.FOLDER}": self._indexes,
        }
        made_up = listings[path]() if path in listings else iter(())
        for count, file in enumerate(made_up):
            if count % PAGE == 0:
                self._wait()
            yield file
        for name, data in sorted(self.written.items()):
            if name.startswith(f"{path}/"):
                yield FileInfo(name.removeprefix(f"{path}/"), len(data), "w")

    def _tar(self, number: int) -> FileInfo:
        return FileInfo(f"{number:09}.tar", TAR_BYTES, f"etag-{number}")

    def _tars(self) -> Iterator[FileInfo]:
        return map(self._tar, range(self.committed.shards))

    def _parts(self) -> Iterator[FileInfo]:
        spread = np.sort(self.committed.part_numbers.astype(np.uint64) * np.uint64(_SPREAD))
        return (FileInfo(f"part-{number:016x}0000.parquet", 1, "p") for number in spread.tolist())

    def _indexes(self) -> Iterator[FileInfo]:
        count = max(len(self.committed.part_numbers) - self.committed.unindexed, 0) // footers.INDEX_PARTS
        return (FileInfo(f"index-{number:020x}.arrow", 1, "i") for number in range(count))

    # ------------------------------------------------------------ objects

    def info(self, path: str) -> FileInfo:
        """Describe an object that was written, or a part."""
        if path in self.written:
            return FileInfo(path, len(self.written[path]), "w")
        if "/parts/" not in path:
            raise FileNotFoundError(path)
        self._wait()
        return FileInfo(path.rpartition("/")[2], len(self._part(_part_number(path))), "p")

    def read(
        self, path: str, *, span: tuple[int, int] | None = None, max_bytes: int | None = None, etag: str | None = None
    ) -> bytes:
        """Read an object that was written, a part, or an index object."""
        if path in self.written:
            return self.written[path]
        self._wait()
        if "/parts/" in path:
            data = self._part(_part_number(path))
            return data[slice(*span)] if span else data
        if footers.FOLDER in path:
            return self._index(int(path.rpartition("index-")[2].removesuffix(".arrow"), 16))
        raise FileNotFoundError(path)

    def put(self, path: str, data: bytes) -> None:
        """Keep an object."""
        self._wait()
        self.written[path] = data

    def delete(self, path: str) -> None:
        """Forget an object that was written."""
        self.written.pop(path, None)

    # ------------------------------------------------------------ contents

    def _owner(self, numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pa.Array:
        """Driver of each part: a second one wrote the parts from the middle of the run on."""
        return pa.array(np.where(numbers < self.committed.rows // PART_ROWS // 2, 1, 2), pa.int32())

    @lru_cache(maxsize=64)  # noqa: B019  # a store lives as long as its process
    def _part(self, number: int) -> bytes:
        """A part of rows without masks, as Parquet."""
        first, last = number * PART_ROWS, min((number + 1) * PART_ROWS, self.committed.rows)
        rows = [
            Row(
                key=f"{row // SHARD_ROWS:09}.tar#{row % SHARD_ROWS:04}",
                status="ok",
                shard=self.shard_ids[row // SHARD_ROWS].as_py(),
                source_etag=f"etag-{row // SHARD_ROWS}",
                model_fp="m",
                config_fp="c",
                class_pixels=[1] * len(CLASSES),
                shard_rows=row % SHARD_ROWS + 1 if row + 1 in (self.committed.rows, first_of_next(row)) else None,
            )
            for row in range(first, last)
        ]
        table = rows_to_table(rows)
        owner = self._owner(np.array([number]))[0].as_py()
        return parts.encode_part(table, CLASSES, parts.describe_part(table, owner))

    def _index(self, number: int) -> bytes:
        """Index object of `INDEX_PARTS` parts."""
        numbers = self.committed.part_numbers[number * footers.INDEX_PARTS : (number + 1) * footers.INDEX_PARTS]
        first = numbers * PART_ROWS
        last = np.minimum(first + PART_ROWS, self.committed.rows)
        shard_first, shard_last = first // SHARD_ROWS, (last - 1) // SHARD_ROWS
        counts = shard_last - shard_first + 1  # one or two shards per part
        parents = np.repeat(np.arange(len(numbers)), counts)
        shards = np.repeat(shard_first, counts) + (np.arange(len(parents)) - np.searchsorted(parents, parents))
        ends = np.minimum((shards + 1) * SHARD_ROWS, self.committed.rows)
        rows = np.minimum(last[parents], ends) - np.maximum(first[parents], shards * SHARD_ROWS)
        total = pa.array(ends - shards * SHARD_ROWS, pa.int64(), mask=last[parents] < ends)
        entries = pa.StructArray.from_arrays(
            [self.shard_ids.take(pa.array(shards)), pa.array(rows), total], ["id", "rows", "shard_rows"]
        )
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        none = pa.array(np.zeros(len(numbers), np.int64))
        spread = (numbers.astype(np.uint64) * np.uint64(_SPREAD)).tolist()
        names = pa.array([f"part-{one:016x}0000.parquet" for one in spread])
        columns = [names, self._owner(numbers), pa.array(last - first), none, none, none]
        table = pa.table([*columns, pa.ListArray.from_arrays(offsets, entries)], schema=FOOTER_SCHEMA)
        seen = int((last - first).sum())
        return footers.encode_index(Footers(table, RowTotals(rows=seen, ok=seen, class_pixels=[seen] * len(CLASSES))))


def first_of_next(row: int) -> int:
    """First row of the shard after that of a row."""
    return (row // SHARD_ROWS + 1) * SHARD_ROWS


def _part_number(path: str) -> int:
    return int(path.rpartition("part-")[2][:16], 16) * _UNSPREAD % 2**64
