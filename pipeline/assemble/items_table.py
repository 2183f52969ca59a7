"""STAC items as rows of stac-geoparquet 1.0.0 (https://github.com/stac-utils/stac-geoparquet, its specification).

In: items of `stac.make_item`. Out: tables of one schema, for every run with the same class map: `properties` lie at the
top level, times are timestamps, geometries WKB. A null stands for a field that an item does not have.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.classes import ClassMap
from pipeline.vector.geoparquet import BBOX, GEOMETRY, LONGITUDE_LATITUDE, geo_schema, load_shapely

VERSION = "1.0.0"
_TIME = pa.timestamp("us", "UTC")
_TEXTS = pa.list_(pa.string())
_TIMES = ("datetime", "start_datetime", "end_datetime")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def item_schema(classes: ClassMap) -> pa.Schema:
    """Schema of the items of a run with a class map.

    The column `bbox` holds the items' own boxes, whose west is larger than their east across the 180th meridian. It is
    therefore not declared as covering of GeoParquet, by which readers would skip such a row.
    """
    core = [("type", pa.string()), ("stac_version", pa.string()), ("stac_extensions", _TEXTS), ("id", pa.string())]
    links = pa.list_(_texts("rel", "href", "type"))
    columns = [*core, ("collection", pa.string()), ("links", links), ("assets", _assets())]
    fields = [pa.field(name, kind) for name, kind in [*columns, *_properties(classes)]]
    schema = geo_schema(fields, crs=LONGITUDE_LATITUDE, types=["Polygon", "MultiPolygon"])
    geo = json.loads(schema.metadata[b"geo"])
    geo["columns"][GEOMETRY].pop("covering")
    return schema.with_metadata({"geo": json.dumps(geo), "stac-geoparquet": json.dumps({"version": VERSION})})


def _properties(classes: ClassMap) -> list[tuple[str, pa.DataType]]:
    counts = ("atrous:nodata_pixels", "atrous:failed_windows", "atrous:hole_pixels")
    return [
        *((name, _TIME) for name in _TIMES),
        ("description", pa.string()),
        ("proj:code", pa.string()),
        ("proj:wkt2", pa.string()),
        ("proj:shape", pa.list_(pa.int64())),
        ("proj:transform", pa.list_(pa.float64())),
        ("atrous:class_pixels", pa.struct([(name, pa.int64()) for name in classes.names])),
        *((name, pa.int64()) for name in counts),
        *((name, pa.string()) for name in ("atrous:run", "atrous:model", "atrous:assembly")),
    ]


def _assets() -> pa.DataType:
    described = [("href", pa.string()), ("type", pa.string()), ("roles", _TEXTS)]
    one = pa.struct([("value", pa.int64()), *((name, pa.string()) for name in ("name", "title", "color_hint"))])
    band = [("name", pa.string()), ("data_type", pa.string()), ("nodata", pa.int64())]
    band += [("classification:classes", pa.list_(one)), ("raster:spatial_resolution", pa.float64())]
    return pa.struct(
        [
            ("mask", pa.struct([*described, ("title", pa.string()), ("bands", pa.list_(pa.struct(band)))])),
            ("style", pa.struct([*described, ("title", pa.string())])),
            ("source", pa.struct([*described, ("atrous:etag", pa.string())])),
        ]
    )


def _texts(*names: str) -> pa.DataType:
    return pa.struct([(name, pa.string()) for name in names])


def item_table(items: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows of some items; a field that the schema lacks is left out, see `fields_left_out`."""
    shapely = load_shapely()
    rows = [_row(item) for item in items]
    columns = {name: pa.array([row.get(name) for row in rows], schema.field(name).type) for name in schema.names}
    texts = [None if item["geometry"] is None else json.dumps(item["geometry"]) for item in items]
    shapes = shapely.from_geojson(np.array(texts, object))
    columns[GEOMETRY] = pa.array(shapely.to_wkb(shapes), pa.binary())
    return pa.table(columns, schema=schema)


def _row(item: Mapping[str, Any]) -> dict[str, Any]:
    properties = dict(item["properties"])
    for name in _TIMES:
        if properties.get(name) is not None:
            properties[name] = datetime.fromisoformat(properties[name])
    top = {name: value for name, value in item.items() if name not in ("properties", BBOX, GEOMETRY)}
    bbox = None if item.get(BBOX) is None else dict(zip(_SIDES, item[BBOX], strict=True))
    return properties | top | {BBOX: bbox}


def fields_left_out(item: Mapping[str, Any], schema: pa.Schema) -> list[str]:
    """Paths of the fields of an item that its row does not hold, such as `assets.thumbnail`."""
    top = {name: value for name, value in item.items() if name not in ("properties", BBOX, GEOMETRY)}
    return sorted(_unknown({**item["properties"], **top}, pa.struct(list(schema)), ""))


def _unknown(value: Any, kind: pa.DataType, path: str) -> Iterator[str]:
    if isinstance(value, list) and pa.types.is_list(kind):
        for one in value:
            yield from _unknown(one, kind.value_type, path)
    elif isinstance(value, Mapping) and pa.types.is_struct(kind):
        for name, own in value.items():
            here = f"{path}.{name}".lstrip(".")
            index = kind.get_field_index(name)
            if index < 0:
                yield here
            else:
                yield from _unknown(own, kind.field(index).type, here)
