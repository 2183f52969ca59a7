"""Index of a run: one line per row in DuckDB, without masks, filled part by part while it is already asked.

In: the URL of a run, wherever its parts lie. Out: SQL tables `rows`, with the columns of `view.columns`, and `parts`,
and a view `shown` of the rows and what is joined to them. Parts are immutable, so a part is read once: an index in a
file is there at once when the run is opened again, and a run that goes on adds its new parts. Rows of parts that a
repair removed are deleted.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.classes import ClassMap
from pipeline.records import ROW_SCHEMA
from pipeline.run import manifest, parts
from pipeline.store.url import Url
from pipeline.view.columns import READ, Column, columns_of, index_table

log = logging.getLogger(__name__)

VERSION = 1
"""Of the tables; an index file of another version is not read."""
BATCH_PARTS = 64
"""Parts per insertion. The first one is small, so that the first page does not wait for a large one."""
FIRST_BATCH_PARTS = 4


class RunIndex:
    """Index of one run. Any thread may ask it; one at a time may fill it."""

    def __init__(
        self,
        run_url: Url,
        classes: ClassMap,
        *,
        cache: Path | None = None,
        sources: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Open the index of a run, empty or as an earlier process left it.

        Args:
            run_url: folder of the run.
            classes: class map of the run.
            cache: folder for the file of the index; None keeps it in memory.
            sources: URL of the source of each shard, for people.
        """
        self.run_url, self.classes = run_url, classes
        self.columns: tuple[Column, ...] = columns_of(classes)
        self.known_parts = 0
        """Parts that the run had when it was last listed."""
        self._filling = Lock()
        self._sources = sources
        self._database = _open_database(_file(run_url, classes, cache))
        self._create_tables()

    def close(self) -> None:
        """Close the file of the index."""
        self._database.close()

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Connection of this thread, for one query at a time."""
        with self._database.cursor() as cursor:
            yield cursor

    def fetch(self, sql: str, values: list[Any] | None = None) -> list[tuple[Any, ...]]:
        """Rows of one query; `values` replace its question marks."""
        with self.cursor() as cursor:
            found: list[tuple[Any, ...]] = cursor.execute(sql, values or []).fetchall()
            return found

    def counts(self) -> tuple[int, int]:
        """Rows and parts that are in the index."""
        ((rows, count),) = self.fetch("SELECT coalesce(sum(rows), 0), count(*) FROM parts")
        return int(rows), int(count)

    def fill(self) -> int:
        """Add the parts that are not in the index yet, and delete the rows of parts that are gone.

        Returns:
            the number of parts added and removed.

        Raises:
            StorageError: a part is damaged; the parts before it are in the index.
        """
        with self._filling:
            listed = _listed_parts(self.run_url)
            self.known_parts = len(listed)
            held = {name: number for number, name in self.fetch("SELECT number, name FROM parts")}
            gone = held.keys() - set(listed)
            self._forget([held[name] for name in gone])
            added = [name for name in listed if name not in held]
            number = max(held.values(), default=-1) + 1
            for names in _growing(added):
                self._add(names, number)
                number += len(names)
            return len(gone) + len(added)

    def show_beside(self, table: str, columns: Sequence[Column]) -> None:
        """Show the columns of a table of this index, which has an `id`, beside those of the rows."""
        with self.cursor() as cursor:
            joined = f"CREATE OR REPLACE VIEW shown AS SELECT * FROM rows LEFT JOIN {table} USING (id)"
            cursor.execute(joined).fetchall()
        self.columns = (*columns, *columns_of(self.classes))

    def _create_tables(self) -> None:
        table = index_table(_empty(), part=0, classes=self.classes, sources={})
        with self.cursor() as cursor:
            cursor.register("example", table)
            cursor.execute("CREATE TABLE IF NOT EXISTS rows AS SELECT 0::BIGINT AS id, * FROM example").fetchall()
            cursor.execute("CREATE TABLE IF NOT EXISTS parts (number INTEGER, name VARCHAR, rows INTEGER)").fetchall()
            cursor.execute("CREATE OR REPLACE VIEW shown AS SELECT * FROM rows").fetchall()

    def _add(self, names: list[str], number: int) -> None:
        """Insert the rows of some parts, and then the parts: both or neither."""
        tables, counts = [], []
        for offset, read in enumerate(parts.read_tables(self.run_url, names, list(READ))):
            tables.append(index_table(read, part=number + offset, classes=self.classes, sources=self._sources))
            counts.append((number + offset, names[offset], len(read)))
        with self.cursor() as cursor:
            cursor.register("added", pa.concat_tables(tables))
            cursor.begin()
            cursor.execute("INSERT INTO rows SELECT part::BIGINT << 20 | row, * FROM added").fetchall()
            cursor.executemany("INSERT INTO parts VALUES (?, ?, ?)", counts)
            cursor.commit()

    def _forget(self, numbers: list[int]) -> None:
        for number in numbers:
            with self.cursor() as cursor:
                cursor.begin()
                cursor.execute("DELETE FROM rows WHERE part = ?", [number]).fetchall()
                cursor.execute("DELETE FROM parts WHERE number = ?", [number]).fetchall()
                cursor.commit()


def _listed_parts(run_url: Url) -> list[str]:
    """Names of a run's parts: those of its manifest when it is finished, which hold no key twice."""
    finished = manifest.read_manifest(run_url)
    return finished.parts if finished and finished.parts else parts.list_parts(run_url)


def _growing(names: list[str]) -> Iterator[list[str]]:
    """Batches of parts, a small one first."""
    start, size = 0, FIRST_BATCH_PARTS
    while start < len(names):
        yield names[start : start + size]
        start, size = start + size, BATCH_PARTS


def _empty() -> pa.Table:
    return pa.schema([ROW_SCHEMA.field(name) for name in READ]).empty_table()


def _file(run_url: Url, classes: ClassMap, cache: Path | None) -> Path | None:
    """File of a run's index, by its place and its classes."""
    if cache is None:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{VERSION}\n{run_url.place}\n{classes.model_dump_json()}".encode()).hexdigest()
    return cache / f"index-{digest[:20]}.duckdb"


def _open_database(path: Path | None) -> duckdb.DuckDBPyConnection:
    """Open a file of an index; in memory where another process has it open, and anew where it is damaged."""
    settings: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    if path is None:
        return duckdb.connect(":memory:", config=settings)
    try:
        return duckdb.connect(path, config=settings)
    except duckdb.IOException as error:
        log.warning("%s is open in another process or cannot be read, so the index is kept in memory: %s", path, error)
        return duckdb.connect(":memory:", config=settings)
