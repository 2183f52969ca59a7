"""History of zones: rows of `zones.parquet` of several runs as one table.

In: URLs of files, runs, or output folders of runs. Out: the columns that `score.season` needs. Reads only.
"""

import logging
from collections.abc import Iterator, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.run import inspection
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

ZONES = "zones.parquet"
_SCHEMA = pa.schema(
    [
        ("zone", pa.string()),
        ("date", pa.date32()),
        ("class_id", pa.uint8()),
        ("class", pa.string()),
        ("pixels", pa.int64()),
        ("confidence", pa.float64()),
        ("valid_pixels", pa.int64()),
    ]
)


def zones_history(urls: Sequence[Url]) -> pd.DataFrame:
    """Rows of all zones on all dates of some runs, for `season.season_table`.

    A zone may be there on a date in one run only: two runs of one date are of two networks or settings, and which of
    them belongs to the history is for the user to say.

    Args:
        urls: of Parquet files, of runs, or of folders with runs; a run without zones in such a folder is left out with
            a warning.

    Returns:
        the columns zone, date (`datetime.date`; None without one), class_id, class, pixels, confidence, valid_pixels.

    Raises:
        ConfigError: no run has zones; runs name their classes differently, or hold one zone on the same date.
        StorageError: a file is missing, damaged or lacks a column, or the store fails.
    """
    files = list(dict.fromkeys(file for url in urls for file in _files(url)))
    if not files:
        hint = "give the output of a segment job with zones, one of its runs, or a zones.parquet"
        raise ConfigError(f"no zones in {', '.join(map(str, urls)) or 'no place'}", hint=hint)
    tables = {file: _read(file) for file in files}
    _check_classes(tables)
    _check_dates(tables)
    return pd.concat(tables.values(), ignore_index=True)


def _files(url: Url) -> Iterator[Url]:
    """The file itself, that of a run, or those of the runs in a folder."""
    if url.name.endswith(".parquet"):
        yield url
        return
    runs = inspection.run_urls(url)
    without = [run for run in runs if not objects.exists(run / ZONES)]
    if without == [url]:
        raise ConfigError(f"{url} has no {ZONES}", hint="segment it with zones, or name another run")
    if without:
        log.warning("%d run(s) in %s have no %s and are left out: %s", len(without), url, ZONES, _some(without))
    yield from (run / ZONES for run in runs if run not in without)


def _some(runs: Sequence[Url]) -> str:
    names = [run.name for run in runs]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read(url: Url) -> pd.DataFrame:
    with objects.naming_damage(url, hint="make it again from its run, or leave it out"), objects.open_read(url) as file:
        stored = pq.ParquetFile(file, page_checksum_verification=True)
        if missing := [name for name in _SCHEMA.names if name not in stored.schema_arrow.names]:
            raise KeyError(missing[0])
        rows: pd.DataFrame = stored.read(_SCHEMA.names).select(_SCHEMA.names).cast(_SCHEMA).to_pandas()
    return rows


def _check_classes(tables: dict[Url, pd.DataFrame]) -> None:
    """Refuse runs that give an id two names, or a name two ids."""
    seen: dict[object, tuple[object, Url]] = {}
    for url, rows in tables.items():
        pairs = rows.loc[rows["class"].notna(), ["class_id", "class"]].drop_duplicates()
        for number, name in pairs.itertuples(index=False, name=None):
            for key, value in ((f"class {int(number)}", name), (f"class {name!r}", int(number))):
                other, where = seen.setdefault(key, (value, url))
                if other != value:
                    message = f"{key} is {other!r} in {where}, and {value!r} in {url}"
                    raise ConfigError(message, hint="give runs of one class map")


def _check_dates(tables: dict[Url, pd.DataFrame]) -> None:
    """Refuse a zone that two runs have on the same date."""
    pairs = [rows[["zone", "date"]].dropna().drop_duplicates().assign(at=at) for at, rows in enumerate(tables.values())]
    both = pd.concat(pairs, ignore_index=True)
    if len(twice := both[both.duplicated(["zone", "date"])]):
        zone, day, second = twice.iloc[0][["zone", "date", "at"]]
        first = both.loc[(both["zone"] == zone) & (both["date"] == day), "at"].iloc[0]
        files = list(tables)
        message = f"zone {zone!r} on {day} is in {files[first]} and in {files[second]}"
        raise ConfigError(message, hint="name the runs or files to compare, one for each date")
