"""Dates of rasters: when the picture was taken, by its path, a STAC item beside it, or its tag DateTime.

In: paths and the listing of a source. Out: `Raster`s with `datetime` and `end_datetime`, and warnings. The first of
`--raster.date-pattern`, the STAC item and the tag that names a date counts. A date changes no mask, so it belongs to
neither the fingerprint of a run nor the ids of its shards.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.config import DATE_PARTS
from pipeline.errors import AccessDenied, InputError, StorageError
from pipeline.geotiff.raster import Raster
from pipeline.store import objects
from pipeline.store.backend import FileInfo
from pipeline.store.url import Url

ITEM_SUFFIX = ".json"
MAX_ITEM_BYTES = 2**20
"""Largest file that is read as a STAC item; an item of a raster has a few kilobytes."""
_TAG = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)", re.ASCII)
"""TIFF 6.0, section 8, DateTime: no time zone."""
_DATE = re.compile(r"(\d{4})(-?)(\d\d)\2(\d\d)", re.ASCII)
_SHOWN = 80
"""Characters shown of a text that is no date."""


@dataclass(frozen=True, slots=True)
class Taken:
    """When a picture was taken; RFC 3339 in whole seconds, UTC."""

    datetime: str
    """Its time, or the first second of its interval."""
    end_datetime: str | None = None
    """Last second of its interval; None where `datetime` is its time."""


class RasterDates:
    """Dates of the rasters of one source; remembers the rasters for which the path or the item named none."""

    def __init__(self, root: str, pattern: str | None, items: Mapping[str, FileInfo]) -> None:
        """Dates of a source.

        Args:
            root: the source as written in the config.
            pattern: `raster.date_pattern`.
            items: listed files that may be STAC items, by their path without suffix.
        """
        self.root, self.items = Url(root), items
        self._pattern = None if pattern is None else re.compile(pattern)
        self._without: dict[str, str] = {}
        self._bad_items: dict[str, str] = {}

    def dated(self, raster: Raster) -> Raster:
        """The raster with its date: by its path, else by its item, else as it is, by its tag. May run in threads.

        Raises:
            AccessDenied: 403 for the item.
        """
        taken = self._by_path(raster.path) or self._by_item(raster.path)
        if taken is None:
            return raster
        return replace(raster, datetime=taken.datetime, end_datetime=taken.end_datetime)

    def warnings(self) -> list[str]:
        """Rasters for which the pattern or an item gave no date: their number, and the first one with the reason."""
        said = []
        if self._without:
            first = min(self._without)
            said.append(
                f"--raster.date-pattern gives no date for {len(self._without)} raster(s), first {first!r}: "
                f"{self._without[first]}; the STAC item beside them or their tag DateTime is taken, if there is one"
            )
        if self._bad_items:
            first = min(self._bad_items)
            said.append(
                f"{len(self._bad_items)} STAC item(s) beside rasters give no date, first {first!r}: "
                f"{self._bad_items[first]}; the tag DateTime is taken, if there is one"
            )
        return said

    def _by_path(self, path: str) -> Taken | None:
        if self._pattern is None:
            return None
        match = self._pattern.search(path)
        if match is None:
            self._without[path] = "it does not match"
            return None
        try:
            return taken_of_groups(match.groupdict())
        except ValueError as error:
            self._without[path] = str(error)
            return None

    def _by_item(self, path: str) -> Taken | None:
        file = self.items.get(path.rpartition(".")[0])
        if file is None or file.size > MAX_ITEM_BYTES:
            return None
        try:
            data = objects.read_bytes(self.root / file.path, max_bytes=MAX_ITEM_BYTES, etag=file.etag)
            return taken_of_item(data)
        except AccessDenied:
            raise
        except (InputError, StorageError, FileNotFoundError, ValueError) as error:
            self._bad_items[file.path] = str(error)
            return None


def taken_of_groups(groups: Mapping[str, str | None]) -> Taken:
    """Date of the groups of `raster.date_pattern`; a year, a month or a day alone is an interval.

    Raises:
        ValueError: a group holds no such number, or there is no such day; says which.
    """
    if "date" in groups:
        match = _DATE.fullmatch(groups["date"] or "")
        if match is None:
            raise ValueError(f"date is {_shown(groups['date'])}, not YYYYMMDD or YYYY-MM-DD")
        parts = [int(match[1]), int(match[3]), int(match[4])]
    else:
        parts = []
        for name in DATE_PARTS:
            text = groups.get(name)
            if text is None:  # an optional group that took no part, and all finer ones
                break
            if not re.fullmatch(r"[0-9]{4}" if name == "year" else r"[0-9]{1,2}", text):
                raise ValueError(
                    f"{name} is {_shown(text)}, not a number of {4 if name == 'year' else '1 or 2'} digits"
                )
            parts.append(int(text))
        if not parts:
            raise ValueError("it has no year")
    start = datetime(*[*parts, 1, 1][: max(len(parts), 3)], tzinfo=UTC)  # type: ignore[arg-type,misc]
    return Taken(_text(start), _text(end) if (end := _last_second(start, len(parts))) != start else None)


def taken_of_item(data: bytes) -> Taken | None:
    """Date of a STAC item: `datetime`, else `start_datetime` to `end_datetime`; None for JSON that is no STAC item.

    Raises:
        ValueError: an item whose dates are none.
    """
    try:
        item = json.loads(data)
    except (ValueError, RecursionError):
        return None
    properties = item.get("properties") if isinstance(item, dict) and item.get("type") == "Feature" else None
    if not isinstance(properties, dict) or not {"datetime", "start_datetime"} & properties.keys():
        return None
    if properties.get("datetime") is not None:
        return Taken(time_of_text(properties["datetime"]))
    start, end = (time_of_text(properties.get(name)) for name in ("start_datetime", "end_datetime"))
    if end < start:
        raise ValueError(f"end_datetime {end} is before start_datetime {start}")
    return Taken(start, end)


def time_of_text(text: Any) -> str:
    """RFC 3339 in UTC and whole seconds of a time in RFC 3339; without a time zone it is taken as UTC.

    Raises:
        ValueError: it is no time.
    """
    try:
        time = datetime.fromisoformat(text)
        return _text(time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC))
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{_shown(text)} is no time") from error


def time_of_tag(text: str | None) -> tuple[str | None, list[str]]:
    """RFC 3339 of the tag DateTime, which has no time zone: taken as UTC; and a note where it holds no time."""
    stripped = (text or "").strip(" \0")
    if not stripped:
        return None, []
    try:
        if match := _TAG.fullmatch(stripped):
            return _text(datetime(*map(int, match.groups()), tzinfo=UTC)), []  # type: ignore[arg-type,misc]
    except ValueError:
        pass
    return None, [f"its tag DateTime is {_shown(stripped)}, which is no time and is ignored"]


def _last_second(start: datetime, parts: int) -> datetime:
    """Last second of the year, month, day, hour or minute that begins at `start`: as many parts as are known."""
    if parts == 1:
        return start.replace(month=12, day=31, hour=23, minute=59, second=59)
    if parts == 2:
        days = 31 if start.month == 12 else (start.replace(month=start.month + 1) - start).days
        return start.replace(day=days, hour=23, minute=59, second=59)
    lengths = {3: timedelta(days=1), 4: timedelta(hours=1), 5: timedelta(minutes=1), 6: timedelta(seconds=1)}
    return start + (lengths[parts] - timedelta(seconds=1))


def _text(time: datetime) -> str:
    return time.replace(tzinfo=None, microsecond=0).isoformat() + "Z"


def _shown(text: Any) -> str:
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
