"""Catalogue of a run over rasters: a STAC collection of its items, and the items as one table.

In: the plan of a run and its items. Out: `collection.json` (STAC 1.1.0, https://github.com/radiantearth/stac-spec) and
`items.parquet`, a row per item (see `items_table`). Items are read in threads and written as they come: memory grows by
a name, a link and a box per item.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from pipeline.assemble.items_table import fields_left_out, item_schema, item_table
from pipeline.assemble.plan import plan_assemblies, read_shards
from pipeline.assemble.stac import CLASSIFICATION, COG, COLLECTION, EARLIEST, PROJECTION, class_band, collection_id
from pipeline.classes import ClassMap
from pipeline.prefetch import ahead
from pipeline.records import Failure
from pipeline.run import folder
from pipeline.source.raster import unpack
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector.geoparquet import file_chunks

ITEMS = "items.parquet"
"""Items of a run as one table, in its folder."""
TABLES = {
    "zones": ("zones.parquet", "Classes of each zone and date"),
    "zones_map": ("zones_map.parquet", "Dominant class of each zone and date, with its outline"),
    "polygons": ("polygons", "Polygons of the masks, a file for each raster"),
}
"""Other outputs of a run that its collection names where they exist: file or folder, and title."""
WITHOUT_COG = "atrous:without_cog"
"""Field of a collection: rasters of the run without a mask."""
_PARQUET = "application/vnd.apache.parquet"
_LICENSE = re.compile(r"[\w\-.+]+")
"""Licences that STAC can name: identifiers of SPDX."""
_WORLD = [-180.0, -90.0, 180.0, 90.0]
_ROWS = 1000
"""Items of a row group, and of those in memory."""
_THREADS = 16
_AHEAD = 64
"""Items read or being read before they are asked for."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Totals:
    """What a collection says of all its items."""

    boxes: list[Sequence[float]] = field(default_factory=list)
    """West, south, east and north of each item that has a place on Earth; west > east across the 180th meridian."""
    first: str | None = None
    """Earliest time, RFC 3339; None where no item has one."""
    last: str | None = None
    undated: int = 0
    """Items whose picture has no known time."""
    codes: set[str] = field(default_factory=set)
    """Coordinate systems, such as `EPSG:32614`."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Fields of items that the table does not hold, by the id of the item."""

    def add(self, item: Mapping[str, Any]) -> None:
        """Count one item."""
        properties = item["properties"]
        if item.get("bbox") is not None:
            self.boxes.append(item["bbox"])
        if properties.get("proj:code"):
            self.codes.add(properties["proj:code"])
        start = properties.get("start_datetime") or properties["datetime"]
        end = properties.get("end_datetime") or properties["datetime"]
        if properties["datetime"] is None and start == EARLIEST:
            self.undated += 1
            return
        self.first = start if self.first is None else min(self.first, start)
        self.last = end if self.last is None else max(self.last, end)


def write_collection(run_url: Url, classes: ClassMap, *, facts: dict[str, str]) -> None:
    """Write `items.parquet` and `collection.json` of a run; the same items give the same bytes.

    Args:
        run_url: folder of the run, whose rasters are assembled.
        classes: class map of the run.
        facts: properties of all items: fingerprints of the run and its network.

    Raises:
        ConfigError: the run is none of rasters, or shapely is missing.
        StorageError: the plan or an item is missing or damaged.
    """
    shards = read_shards(run_url)
    unreadable = sum(isinstance(unpack(shard), Failure) for shard in shards)
    names = [assembly.name for assembly in plan_assemblies(shards, [])]
    there = set(objects.list_below(run_url / "items"))
    finished = [name for name in names if f"{name}.json" in there]
    totals, schema = Totals(), item_schema(classes)
    objects.put_stream(run_url / ITEMS, file_chunks(_tables(run_url, finished, schema, totals), schema))
    _warn_of_left_out(totals)
    counts = {
        "atrous:rasters": len(names) + unreadable,
        WITHOUT_COG: len(names) - len(finished) + unreadable,
        "atrous:without_place": len(finished) - len(totals.boxes),
        "atrous:without_date": totals.undated,
    }
    collection = _collection(run_url, classes, facts, totals, counts) | {"links": _links(finished)}
    objects.put(run_url / COLLECTION, json.dumps(collection, indent=1, allow_nan=False).encode())


def _tables(run_url: Url, names: Sequence[str], schema: pa.Schema, totals: Totals) -> Iterator[pa.Table]:
    """Rows of the items, some at a time; `totals` counts them."""

    def read(name: str) -> dict[str, Any]:
        url = run_url / f"items/{name}.json"
        with objects.naming_damage(url, hint="delete it: `atrous assemble` writes it again"):
            item: dict[str, Any] = json.loads(objects.read_bytes(url))
            _ = item["properties"]["datetime"], item["geometry"], item["id"]
            return item

    with ThreadPoolExecutor(_THREADS) as pool:
        items = ahead(pool, read, names, _AHEAD)
        while rows := list(islice(items, _ROWS)):
            for item in rows:
                totals.add(item)
                if left_out := fields_left_out(item, schema):
                    totals.left_out[item["id"]] = left_out
            yield item_table(rows, schema)


def _warn_of_left_out(totals: Totals) -> None:
    if totals.left_out:
        first, fields = next(iter(totals.left_out.items()))
        text = "%s lacks fields of %d item(s), first %r: %s; they are in the JSON of the items"
        log.warning(text, ITEMS, len(totals.left_out), first, ", ".join(fields))


def _collection(
    run_url: Url, classes: ClassMap, facts: dict[str, str], totals: Totals, counts: dict[str, int]
) -> dict[str, Any]:
    """The collection without its links."""
    summaries: dict[str, Any] = {"classification:classes": class_band(classes)["classification:classes"]}
    extensions = [CLASSIFICATION]
    if totals.codes:
        summaries["proj:code"] = sorted(totals.codes)
        extensions.append(PROJECTION)
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": extensions,
        "id": collection_id(facts),
        "title": f"Masks of {collection_id(facts)}",
        "description": _description(classes, counts),
        "license": _license(run_url),
        "extent": {
            "spatial": {"bbox": [union_box(totals.boxes)]},
            "temporal": {"interval": [[totals.first, totals.last]]},
        },
        "summaries": summaries,
        "item_assets": {
            "mask": {"type": COG, "roles": ["data"], "title": "Classes", "bands": [class_band(classes)]},
            "style": {"type": "application/xml", "roles": ["metadata", "style"], "title": "Style for QGIS"},
            "source": {"type": "image/tiff; application=geotiff", "roles": ["source"], "title": "Raster"},
        },
        "assets": _assets(run_url),
        **facts,
        **counts,
    }


def _description(classes: ClassMap, counts: Mapping[str, int]) -> str:
    """What the collection holds, and what it lacks."""
    rasters, without = counts["atrous:rasters"], counts[WITHOUT_COG]
    said = [f"Masks of {rasters - without} of {rasters} raster(s), with the classes {', '.join(classes.names)}."]
    if without:
        said.append(f"{without} raster(s) have no mask: they cannot be read, or windows of them failed or are missing.")
    if place := counts["atrous:without_place"]:
        said.append(f"{place} item(s) have no geometry, since their raster has no known place on Earth.")
    if date := counts["atrous:without_date"]:
        said.append(f"{date} item(s) have no known date, and the temporal extent leaves them out.")
    return " ".join(said)


def _license(run_url: Url) -> str:
    """Licence of the network's weights as the run has stored it; `other` where none is, or STAC cannot name it."""
    try:
        stored = json.loads(objects.read_bytes(run_url / folder.ENVIRONMENT))
    except (FileNotFoundError, ValueError):
        return "other"
    name = str(stored.get("license", "")) if isinstance(stored, dict) else ""
    return name if _LICENSE.fullmatch(name) else "other"


def _assets(run_url: Url) -> dict[str, dict[str, Any]]:
    """Tables of the run, those that exist."""
    assets = {"items": {"href": f"./{ITEMS}", "type": _PARQUET, "roles": ["collection-mirror"], "title": "Items"}}
    for key, (name, title) in TABLES.items():
        if objects.list_below(run_url / name):
            assets[key] = {"href": f"./{name}", "type": _PARQUET, "roles": ["data"], "title": title}
    return assets


def _links(names: Iterable[str]) -> list[dict[str, str]]:
    links = [
        {"rel": "root", "href": f"./{COLLECTION}", "type": "application/json"},
        {"rel": "items", "href": f"./{ITEMS}", "type": _PARQUET},
    ]
    return links + [{"rel": "item", "href": f"./items/{name}.json", "type": "application/geo+json"} for name in names]


def union_box(boxes: Iterable[Sequence[float]]) -> list[float]:
    """Smallest box of west, south, east, north around all; the whole Earth without any.

    Boxes lie on a circle of longitudes: what is left out is the widest gap between them, so the union may cross the
    180th meridian, and its west is then larger than its east (RFC 7946, sec. 5.2).
    """
    boxes = list(boxes)
    if not boxes:
        return _WORLD
    spans = sorted(((west + 180) % 360, (east - west) % 360 or 360.0 * (east > west)) for west, _, east, _ in boxes)
    reach = max(start + width for start, width in spans) - 360
    widest, west, east = 0.0, 0.0, 360.0
    for start, width in spans:
        if start - reach > widest:
            widest, west, east = start - reach, start, reach if reach > 0 else reach + 360
        reach = max(reach, start + width)
    south, north = min(box[1] for box in boxes), max(box[3] for box in boxes)
    return [round(side, 9) for side in (west - 180, south, east - 180, north)]
