"""Masks that somebody has made before, by the keys of their images: the parts of a run, or a folder of PNGs.

In: the URL of either, and a key. Out: an encoded mask, or the failure that stands in its place.
"""

import hashlib
import re
from functools import lru_cache
from itertools import chain
from pathlib import PurePosixPath
from typing import Protocol

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError, InputError, NothingThere
from pipeline.redact import redact
from pipeline.run import parts
from pipeline.store import objects

CACHED_PARTS = 4
"""Parts whose masks a worker keeps: keys are sorted in a part and in a shard, so neighbours stand together."""

ARCHIVE_KEY = re.compile(r"(.*\.(?:tar|parquet))#(.*)", re.IGNORECASE | re.DOTALL)
"""Key of a sample or a row; the name of a file may hold a # too."""


class Masks(Protocol):
    """Where masks are found."""

    def __call__(self, key: str) -> bytes:
        """The encoded mask of an image; raises InputError where there is none."""


class PartMasks:
    """The masks in the parts of a run."""

    def __init__(self, run_url: str) -> None:
        names = parts.list_parts(run_url)
        self.part_of = {key: name for name in names for key in _keys(run_url, name)}
        self._rows = lru_cache(CACHED_PARTS)(lambda name: _rows(run_url, name))

    def __call__(self, key: str) -> bytes:
        """The mask of a row; a row that failed there fails here for the same reason."""
        name = self.part_of.get(key)
        if name is None:
            raise InputError("mask_missing", "the run has no row of this key")
        mask, code, detail = self._rows(name)[key]
        if mask is None:
            raise InputError(code or "mask_missing", detail or "the row has no mask")
        return mask


class FolderMasks:
    """PNGs that have the names of their images."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, key: str) -> bytes:
        """The PNG at the key without its suffix; a sample `a.tar#x` has `a.tar/x.png`."""
        inside = ARCHIVE_KEY.fullmatch(key)
        name = f"{inside[1]}/{inside[2]}.png" if inside else f"{PurePosixPath(key).with_suffix('')}.png"
        try:
            return objects.read_bytes(objects.join(self.url, name))
        except FileNotFoundError as error:
            raise InputError("mask_missing", f"no {name} among the masks") from error


def open_masks(url: str) -> Masks:
    """The masks of a run, or of a folder."""
    return PartMasks(url) if parts.list_parts(url) else FolderMasks(url)


def digest_masks(url: str) -> str:
    """Of the names and versions of everything that holds masks: 64 hex digits.

    Raises:
        ConfigError: when there is nothing.
    """
    try:
        files = sorted(
            (file.path, file.etag) for file in objects.list_files(url) if file.path.endswith((".parquet", ".png"))
        )
    except NothingThere as error:
        raise ConfigError(f"{redact(url)} is not there", hint="give --masks the URL of a run or of a folder") from error
    if not files:
        raise ConfigError(f"{redact(url)} holds neither parts nor PNGs", hint="give --masks a run= folder")
    return hashlib.sha256("\n".join(chain.from_iterable(files)).encode()).hexdigest()


def class_map_of_run(url: str) -> ClassMap | None:
    """The class map that the parts of a run were made with; None for a folder of PNGs."""
    names = parts.list_parts(url)
    return parts.read_classes(url, names[0]) if names else None


def _keys(run_url: str, name: str) -> list[str]:
    keys: list[str] = parts.read_columns(run_url, name, ["key"])["key"].to_pylist()
    return keys


def _rows(run_url: str, name: str) -> dict[str, tuple[bytes | None, str | None, str | None]]:
    table = parts.read_columns(run_url, name, ["key", "mask", "error_code", "error_detail"])
    columns = (table[column].to_pylist() for column in ("mask", "error_code", "error_detail"))
    return dict(zip(table["key"].to_pylist(), zip(*columns, strict=True), strict=True))
