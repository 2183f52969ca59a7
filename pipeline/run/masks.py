"""Existing masks by image key: the parts of a run, or a folder of PNGs.

In: the URL of either, and a key. Out: an encoded mask, or the failure of its row.
"""

import hashlib
import re
from functools import lru_cache
from itertools import chain
from pathlib import PurePosixPath
from typing import Protocol

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError, InputError, NothingThere
from pipeline.run import folder, parts
from pipeline.store import objects
from pipeline.store.url import Url

CACHED_PARTS = 4
"""Parts that a worker caches: parts and shards are sorted by key, so consecutive keys are mostly in one part."""

ARCHIVE_KEY = re.compile(r"(.*\.(?:tar|parquet))#(.*)", re.IGNORECASE | re.DOTALL)
"""Key of a tar sample or Parquet row: archive, `#`, member. File names may contain a # too."""


class Masks(Protocol):
    """Source of existing masks."""

    def __call__(self, key: str) -> bytes:
        """Encoded mask of an image; raises InputError where there is none."""


class PartMasks:
    """Masks in the parts of a run."""

    def __init__(self, run_url: Url) -> None:
        names = parts.list_parts(run_url)
        self.part_of = {key: name for name in names for key in _read_keys(run_url, name)}
        self._rows = lru_cache(CACHED_PARTS)(lambda name: _read_masks(run_url, name))

    def __call__(self, key: str) -> bytes:
        """Mask of a row; raises InputError with the row's own code if the row failed."""
        name = self.part_of.get(key)
        if name is None:
            raise InputError("mask_missing", "the run has no row of this key")
        mask, code, detail = self._rows(name)[key]
        if mask is None:
            raise InputError(code or "mask_missing", detail or "the row has no mask")
        return mask


class FolderMasks:
    """Folder of PNGs named like their images."""

    def __init__(self, url: Url) -> None:
        self.url = url

    def __call__(self, key: str) -> bytes:
        """PNG at the key's `folder_path`."""
        name = f"{folder_path(key)}.png"
        try:
            return objects.read_bytes(self.url / name)
        except FileNotFoundError as error:
            raise InputError("mask_missing", f"no {name} among the masks") from error


def folder_path(key: str) -> str:
    """Path of a key in a folder of masks, without `.png`: `a/b` of `a/b.jpg`, `a.tar/x` of sample `a.tar#x`."""
    inside = ARCHIVE_KEY.fullmatch(key)
    path = PurePosixPath(key)
    return f"{inside[1]}/{inside[2]}" if inside else str(path.with_suffix("") if path.name else path)


def open_masks(url: Url) -> Masks:
    """Open the masks of a run, or of a folder of PNGs."""
    return PartMasks(url) if parts.list_parts(url) else FolderMasks(url)


def digest_masks(url: Url) -> str:
    """SHA-256 of names and etags of all parts or PNGs, 64 hex digits.

    Raises:
        ConfigError: there are no masks at `url`.
    """
    try:
        files = sorted(
            (file.path, file.etag)
            for file in objects.list_files(url)
            if file.path.endswith((".parquet", ".png")) and not file.path.startswith(folder.DERIVED)
        )
    except NothingThere as error:
        raise ConfigError(
            f"{url.located} does not exist", hint="give --masks the URL of a run or of a folder"
        ) from error
    if not files:
        raise ConfigError(f"{url} holds neither parts nor PNGs", hint="give --masks a run= folder")
    return hashlib.sha256("\n".join(chain.from_iterable(files)).encode()).hexdigest()


def class_map_of_run(url: Url) -> ClassMap | None:
    """Class map of a run's parts; None for a folder of PNGs."""
    names = parts.list_parts(url)
    return parts.read_classes(url, names[0]) if names else None


def _read_keys(run_url: Url, name: str) -> list[str]:
    keys: list[str] = parts.read_columns(run_url, name, ["key"])["key"].to_pylist()
    return keys


def _read_masks(run_url: Url, name: str) -> dict[str, tuple[bytes | None, str | None, str | None]]:
    table = parts.read_columns(run_url, name, ["key", "mask", "error_code", "error_detail"])
    columns = (table[column].to_pylist() for column in ("mask", "error_code", "error_detail"))
    return dict(zip(table["key"].to_pylist(), zip(*columns, strict=True), strict=True))
