"""Index of a run: one line per row in DuckDB, without masks, filled part by part while it is already asked.

In: the URL of a run, wherever its parts lie. Out: SQL tables `rows`, with the columns of `view.columns`, and `parts`,
and a view `shown` of the rows and what is joined to them. Parts are immutable, so a part is read once: an index in a
file is there at once when the run is opened again, and a run that goes on adds its new parts. Rows of parts that a
repair removed are deleted.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.classes import ClassMap
from pipeline.errors import StorageError
from pipeline.records import ROW_SCHEMA
from pipeline.run import manifest, parts
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.view.columns import READ, Column, columns_of, index_table

log = logging.getLogger(__name__)

VERSION = 2
"""Of the tables; an index file of another version is not read."""
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "enable_external_access": False,
    "lock_configuration": True,
}
"""Of DuckDB: no statement, and no view in a file of an index, can read or write another file."""
_TABLES_OF_ROWS = (
    "SELECT table_name FROM duckdb_columns() SEMI JOIN duckdb_tables() USING (table_oid) WHERE column_name = 'id'"
)
"""Names of the tables with a line per row, also of those that an earlier process made and this one does not show."""
_PARTS = "SELECT number, name, version FROM parts"
_Part = tuple[str, str]
"""Name of a part, and its version."""
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
        self._next = 0
        """Number of the next part. None is used again while this process runs: the page knows rows by their numbers."""
        self._sources = sources
        self._beside: dict[str, tuple[Column, ...]] = {}
        self._database = self._open(_file(run_url, classes, cache))

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

    def has_given(self, row_id: int) -> bool:
        """True for the number of a row that is, or was, in the index."""
        return row_id >> 20 < self._next

    def counts(self) -> tuple[int, int]:
        """Rows and parts that are in the index."""
        ((rows, count),) = self.fetch("SELECT coalesce(sum(rows), 0), count(*) FROM parts")
        return int(rows), int(count)

    def fill(self, *, is_over: Callable[[], bool] = lambda: False) -> int:
        """Add the parts that are not in the index yet, and delete the rows of parts that are gone or were written anew.

        Args:
            is_over: asked between batches of parts; once true, the others are left for the next time.

        Returns:
            the number of parts added and removed, or to be added.

        Raises:
            StorageError: a part is damaged, and the parts before it are in the index; or all parts are gone, and the
                index stays as it was.
        """
        with self._filling:
            listed = _listed_parts(self.run_url)
            held = {(name, version): number for number, name, version in self.fetch(_PARTS)}
            if held and not listed:
                raise StorageError(f"{self.run_url} has no rows any more", hint="it was deleted, moved or emptied")
            self.known_parts = len(listed)
            gone = held.keys() - set(listed)
            self._forget([held[part] for part in gone])
            added = [part for part in listed if part not in held]
            self._next = max(self._next, *(number + 1 for number in held.values()), 0)
            for some in _growing(added):
                if is_over():
                    break
                self._add(some, self._next)
                self._next += len(some)
            return len(gone) + len(added)

    def show_beside(self, table: str, columns: Sequence[Column]) -> None:
        """Show the columns of a table of this index, which has an `id`, beside those of the rows.

        No two tables may have a column of the same name. When rows leave the index, they leave the table too.
        """
        self._beside[table] = tuple(columns)
        joins = " ".join(f"LEFT JOIN {name} USING (id)" for name in self._beside)
        with self.cursor() as cursor:
            cursor.execute(f"CREATE OR REPLACE VIEW shown AS SELECT * FROM rows {joins}").fetchall()
        self.columns = (*(one for shown in self._beside.values() for one in shown), *columns_of(self.classes))

    def _open(self, path: Path | None) -> duckdb.DuckDBPyConnection:
        """Database with its tables: that of a file; in memory where another process has it open; anew where damaged."""
        if path is None:
            return self._with_tables(duckdb.connect(":memory:", config=_SETTINGS))
        try:
            return self._with_tables(duckdb.connect(path, config=_SETTINGS))
        except (duckdb.Error, ValueError) as error:
            if "Could not set lock" in str(error):
                log.warning("%s is open in another process, so the index is kept in memory", path)
                return self._open(None)
            log.warning("%s is damaged, so the index is made anew: %s", path, error)
        try:
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.wal").unlink(missing_ok=True)
            return self._with_tables(duckdb.connect(path, config=_SETTINGS))
        except (duckdb.Error, OSError) as error:
            log.warning("%s cannot be written, so the index is kept in memory: %s", path, error)
            return self._open(None)

    def _with_tables(self, database: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        """A database after its tables were created; closed, with a ValueError, where it has others of these names."""
        table = index_table(_empty(), part=0, classes=self.classes, sources={})
        try:
            with database.cursor() as cursor:
                cursor.register("example", table)
                cursor.execute("CREATE TABLE IF NOT EXISTS rows AS SELECT 0::BIGINT AS id, * FROM example").fetchall()
                cursor.execute(
                    "CREATE TABLE IF NOT EXISTS parts (number INTEGER, name VARCHAR, version VARCHAR, rows INTEGER)"
                )
                cursor.execute("CREATE OR REPLACE VIEW shown AS SELECT * FROM rows").fetchall()
                kinds = "SELECT table_name FROM duckdb_tables() WHERE table_name IN ('rows', 'parts')"
                names = [column[0] for column in cursor.execute("SELECT * FROM rows LIMIT 0").description or []]
                cursor.execute(f"{_PARTS} LIMIT 0").fetchall()
                if len(cursor.execute(kinds).fetchall()) < 2 or names != ["id", *table.column_names]:
                    raise ValueError("it has other tables")
        except Exception:
            database.close()
            raise
        return database

    def _add(self, added: list[_Part], number: int) -> None:
        """Insert the rows of some parts, and then the parts: both or neither."""
        tables, counts, names = [], [], [name for name, _ in added]
        for offset, read in enumerate(parts.read_tables(self.run_url, names, list(READ))):
            with objects.naming_damage(parts.parts_url(self.run_url) / names[offset], hint=parts.REMEDY):
                tables.append(index_table(read, part=number + offset, classes=self.classes, sources=self._sources))
            counts.append((number + offset, *added[offset], len(read)))
        with self.cursor() as cursor:
            cursor.register("added", pa.concat_tables(tables))
            cursor.begin()
            cursor.execute("INSERT INTO rows SELECT part::BIGINT << 20 | row, * FROM added").fetchall()
            cursor.executemany("INSERT INTO parts VALUES (?, ?, ?, ?)", counts)
            cursor.commit()

    def _forget(self, numbers: list[int]) -> None:
        for number in numbers:
            with self.cursor() as cursor:
                cursor.begin()
                for (table,) in cursor.execute(_TABLES_OF_ROWS).fetchall():
                    cursor.execute(f'DELETE FROM "{table}" WHERE id >> 20 = ?', [number]).fetchall()
                cursor.execute("DELETE FROM parts WHERE number = ?", [number]).fetchall()
                cursor.commit()


def _listed_parts(run_url: Url) -> list[_Part]:
    """Parts of a run with their versions: those of its manifest when it is finished, which hold no key twice.

    A run that was deleted and done again has parts of the old names. A part of the manifest that is gone has no
    version, and reading it says so.
    """
    versions = parts.part_versions(run_url)
    finished = manifest.read_manifest(run_url)
    names = finished.parts if finished and finished.parts else sorted(versions)
    return [(name, versions.get(name, "")) for name in names]


def _growing(names: list[_Part]) -> Iterator[list[_Part]]:
    """Batches of parts, a small one first."""
    start, size = 0, FIRST_BATCH_PARTS
    while start < len(names):
        yield names[start : start + size]
        start, size = start + size, BATCH_PARTS


def _empty() -> pa.Table:
    return pa.schema([ROW_SCHEMA.field(name) for name in READ]).empty_table()


def _file(run_url: Url, classes: ClassMap, cache: Path | None) -> Path | None:
    """File of a run's index, by its place and its classes, in a folder that this user alone can read."""
    if cache is None:
        return None
    folder = cache / "index"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{VERSION}\n{run_url.place}\n{classes.model_dump_json()}".encode()).hexdigest()
    return folder / f"{digest[:20]}.duckdb"
