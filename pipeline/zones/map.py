"""Map of a run over rasters: footprints, masks in class colours, and zones by their dominant class.

In: the folder of a run whose masks are joined. Out: a map for its report. What does not fit into a page that can be
mailed is left out, and the map says so.
"""

import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.assemble.collection import WITHOUT_COG
from pipeline.assemble.stac import COLLECTION
from pipeline.classes import ClassMap
from pipeline.errors import AtrousError
from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.overview import read_overview
from pipeline.page.map import MapImage, MapLayer, MapShape, PageMap, render_map
from pipeline.page.mask_overlay import mask_overlay
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector.area import to_degrees
from pipeline.vector.geoparquet import GEOMETRY, load_shapely
from pipeline.zones.output import ZONES, ZONES_MAP

IMAGE_PX = 1024
"""Longer side of the picture of a mask at most, pixels."""
IMAGE_BYTES, SHAPE_BYTES = 2_000_000, 1_500_000
"""Most bytes of all pictures, and of all zones, so that the page can be mailed."""
MOST_RASTERS = 2000
"""Footprints that are read."""
_DIGITS = 6
"""Digits of degrees: 0.1 m."""
_THREADS = 16
LINE = "#333333"
FAILED_LINE = "#c0392b"
NO_CLASS = "#9a9a9a"


def run_map(run_url: Url, classes: ClassMap) -> PageMap | None:
    """Map of a run; None for a run without joined masks."""
    notes: list[str] = []
    items = _items(run_url, notes)
    if objects.exists(run_url / COLLECTION):
        without = json.loads(objects.read_bytes(run_url / COLLECTION)).get(WITHOUT_COG, 0)
        notes += [f"{without:,} raster(s) have no mask, because windows of them failed."] if without else []
    layers = [
        *_masks(items, dict(_images(run_url, items, classes, notes))),
        MapLayer("outlines of rasters", shapes=tuple(_footprints(items, notes)), outline=True),
        MapLayer("zones by dominant class", shapes=tuple(_zones(run_url, classes, notes))),
    ]
    return render_map(layers, label="Masks and zones of this run", notes=notes)


def _items(run_url: Url, notes: list[str]) -> list[dict[str, Any]]:
    """STAC items of the run, the largest rasters first."""
    paths = objects.list_below(run_url / "items")
    if len(paths) > MOST_RASTERS:
        notes.append(f"{MOST_RASTERS:,} of {len(paths):,} rasters are on the map.")
    with ThreadPoolExecutor(_THREADS) as pool:
        read = pool.map(lambda path: json.loads(objects.read_bytes(run_url / "items" / path)), paths[:MOST_RASTERS])
        return sorted(read, key=lambda item: -int(np.prod(item["properties"]["proj:shape"])))


def _footprints(items: Sequence[dict[str, Any]], notes: list[str]) -> Iterator[MapShape]:
    placed = [item for item in items if item["geometry"] is not None]
    if len(placed) < len(items):
        notes.append(f"{len(items) - len(placed)} of {len(items)} rasters have no coordinates and are not on the map.")
    for item in placed:
        failed = item["properties"]["atrous:failed_windows"]
        yield MapShape(item["geometry"], "none", FAILED_LINE if failed else LINE, item["id"])
    if failed := sum(item["properties"]["atrous:failed_windows"] > 0 for item in placed):
        notes.append(f"Windows of {failed} of {len(items)} rasters failed or are missing: their outlines are red.")


def _masks(items: Sequence[dict[str, Any]], images: dict[str, MapImage]) -> list[MapLayer]:
    """A layer of masks for each date; the latest is shown, since those of one place hide each other."""
    days = {item["id"]: (item["properties"]["datetime"] or "")[:10] for item in items}
    dates = sorted({days[name] for name in images})
    return [
        MapLayer(
            f"masks {date}".strip(),
            images=tuple(image for name, image in images.items() if days[name] == date),
            shown=date == dates[-1],
        )
        for date in dates
    ]


def _images(
    run_url: Url, items: Sequence[dict[str, Any]], classes: ClassMap, notes: list[str]
) -> Iterator[tuple[str, MapImage]]:
    """Pictures of masks by the id of their item, within `IMAGE_BYTES`."""
    placed = [item for item in items if item["geometry"] is not None]
    left, shown = IMAGE_BYTES, 0
    for item in placed:
        image = _image(run_url, item, classes) if left > 0 else None
        if image is not None and len(image.uri) <= left:
            left -= len(image.uri)
            shown += 1
            yield item["id"], image
    if shown < len(placed):
        notes.append(
            f"The masks of {shown} of {len(placed)} rasters are drawn: others do not fit, or cross a meridian."
        )


def _image(run_url: Url, item: dict[str, Any], classes: ClassMap) -> MapImage | None:
    """Picture of a mask; None across the 180th meridian, and where the mask cannot be read."""
    facts, name = item["properties"], item["id"]
    if item["geometry"]["type"] != "Polygon":
        return None
    crs = facts["proj:code"] or facts.get("proj:wkt2")
    try:
        overview = read_overview(run_url / f"masks/{name}.tif", longer_px=IMAGE_PX)
    except (FileNotFoundError, AtrousError):
        return None
    return mask_overlay(overview, tuple(facts["proj:transform"]), crs, classes, title=name)


def _zones(run_url: Url, classes: ClassMap, notes: list[str]) -> Iterator[MapShape]:
    """Zones of the run, the largest first, within `SHAPE_BYTES`; none where none were counted."""
    if not (objects.exists(run_url / ZONES) and objects.exists(run_url / ZONES_MAP)):
        return
    table = pq.read_table(io.BytesIO(objects.read_bytes(run_url / ZONES_MAP)))
    rows = table.drop([GEOMETRY, "bbox"]).to_pandas()
    latest = rows.reset_index().sort_values(["zone", "date"], na_position="first").groupby("zone").tail(1)
    latest = latest.sort_values("zone_hectares", ascending=False, kind="stable")
    detail = pq.read_table(io.BytesIO(objects.read_bytes(run_url / ZONES))).to_pandas()
    by_zone = dict(iter(detail.groupby("zone", sort=False)))
    colours = {one.name: "#{:02x}{:02x}{:02x}".format(*one.colour) for one in classes.classes}
    for row, geometry in shapes_in_degrees(table, latest["index"].tolist(), SHAPE_BYTES, notes):
        own = rows.iloc[row]
        known = isinstance(own["class"], str)
        fill = colours.get(own["class"], NO_CLASS) if known else NO_CLASS
        yield zone_shape(by_zone[own["zone"]], geometry, fill)


def shapes_in_degrees(
    table: pa.Table, order: Sequence[int], most_bytes: int, notes: list[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and GeoJSON geometry of rows of a GeoParquet table, in an order, until they take `most_bytes`."""
    shapely = load_shapely()
    facts = json.loads(table.schema.metadata[b"geo"])["columns"][GEOMETRY]
    crs = load_rasterio().crs.CRS.from_user_input(json.dumps(facts["crs"]))
    left, shown = most_bytes, 0
    for row in order:
        shape = shapely.from_wkb(table[GEOMETRY][row].as_py())
        points = to_degrees(shapely.get_coordinates(shape), crs)
        if points is None:
            continue
        placed = shapely.simplify(shapely.set_coordinates(shape, np.round(points, _DIGITS)), 10.0**-_DIGITS)
        text = shapely.to_geojson(placed)
        left -= len(text)
        if left < 0:
            break
        shown += 1
        yield row, json.loads(text)
    if shown < len(order):
        notes.append(f"{shown:,} of {len(order):,} zones are drawn, the largest ones; zones_map.parquet has all.")


def zone_shape(rows: pd.DataFrame, geometry: dict[str, Any], fill: str) -> MapShape:
    """A zone with its table: a line for each date and class."""
    dated = rows["date"].notna().any()
    first = rows.iloc[-1]
    facts = [f"{first['zone_hectares']:.2f} ha"] if pd.notna(first["zone_hectares"]) else []
    for name, text in (("nodata_pixels", "without data"), ("failed_pixels", "failed"), ("outside_pixels", "outside")):
        if first[name] > 0:
            facts.append(f"{int(first[name]):,} pixels {text}")
    lines = [_line(row, dated=bool(dated)) for row in rows[rows["class"].notna()].to_dict("records")]
    columns = ("date",) * bool(dated) + ("class", "ha", "share", "confidence")
    return MapShape(geometry, fill, LINE, str(first["zone"]), ", ".join(facts), columns, tuple(lines))


def _line(row: dict[Any, Any], *, dated: bool) -> tuple[str, ...]:
    def figure(name: str, form: str) -> str:
        return format(row[name], form) if pd.notna(row[name]) else "–"

    date = (str(row["date"]) if pd.notna(row["date"]) else "–",) if dated else ()
    return (*date, row["class"], figure("hectares", ".3f"), figure("share", ".1%"), figure("confidence", ".2f"))
