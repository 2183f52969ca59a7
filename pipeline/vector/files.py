"""Files of polygons in a store: which they are, their version, and their features.

In: the URL of a file. Out: `Features`. A shapefile is several objects: those beside a .shp are read with it.
"""

from contextlib import suppress

from pipeline.errors import InputError
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector.features import Features, read_features
from pipeline.vector.shapefile import ALSO_READ, NEEDED

SUFFIXES = (".gpkg", ".geojson", ".json", ".parquet", ".geoparquet", ".shp", ".zip")
"""Suffixes of files of polygons."""


def version(url: Url) -> str:
    """Version of a file as the store names it, of all its objects for a .shp. Raises FileNotFoundError."""
    return _joined(_objects(url))


def load_features(url: Url, *, field: str | None, expected: str | None = None) -> Features:
    """Read a file of polygons.

    Args:
        url: the file.
        field: attribute to read; None numbers the features.
        expected: its `version`; None allows any.

    Raises:
        ConfigError: as `read_features`.
        FileNotFoundError: it does not exist.
        InputError: `source_changed` when it has another version.
    """
    found = _objects(url)
    if expected is not None and _joined(found) != expected:
        detail = f"version {_joined(found)}, planned {expected}"
        raise InputError("source_changed", detail, hint="run again to make a new plan")
    data = {suffix: objects.read_bytes(place, etag=etag) for suffix, (place, etag) in found.items()}
    return read_features(data.pop(""), name=str(url), field=field, beside=data)


def _objects(url: Url) -> dict[str, tuple[Url, str]]:
    """URL and etag of a file, under "", and of those beside a .shp, under their suffixes in lower case."""
    found = {"": (url, objects.info(url).etag)}
    if url.raw.lower().endswith(".shp"):
        for suffix in (*NEEDED, *ALSO_READ):
            for spelled in (suffix.upper(), suffix):
                with suppress(FileNotFoundError):
                    place = Url(url.raw[:-4] + spelled)
                    found[suffix] = place, objects.info(place).etag
    return found


def _joined(found: dict[str, tuple[Url, str]]) -> str:
    return "+".join(etag for _, etag in found.values())
