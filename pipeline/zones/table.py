"""Tables of zones: `zones.parquet`, one row per zone, date and class, and `zones_map.parquet`, shapes to be drawn.

In: sums of squares. Out: two tables. Sums of all rasters of one date are added; what rasters cover twice, and what they
do not cover, is said beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.classes import ClassMap
from pipeline.records import Float64
from pipeline.vector.area import shape_hectares
from pipeline.vector.features import Features
from pipeline.vector.geoparquet import geo_schema, geo_table
from pipeline.zones.counts import PIXELS
from pipeline.zones.work import MEAN

MADE_KEY = b"atrous.zones"
"""Metadata of both files: what they were made from."""
_GROUP = ["zone", "date"]
ZONE_COLUMNS = (
    pa.field("zone", pa.string(), nullable=False),
    pa.field("date", pa.date32()),
    pa.field("rasters", pa.int32(), nullable=False),
    pa.field("class_id", pa.uint8()),
    pa.field("class", pa.string()),
    pa.field("pixels", pa.int64(), nullable=False),
    pa.field("hectares", pa.float64()),
    pa.field("share", pa.float64()),
    pa.field("confidence", pa.float64()),
    pa.field("changed_share", pa.float64()),
    pa.field("confidence_pixels", pa.int64()),
    pa.field("valid_pixels", pa.int64(), nullable=False),
    pa.field("nodata_pixels", pa.int64(), nullable=False),
    pa.field("failed_pixels", pa.int64(), nullable=False),
    pa.field("outside_pixels", pa.int64()),
    pa.field("overlap_pixels", pa.int64()),
    pa.field("zone_hectares", pa.float64()),
)
"""Columns of `zones.parquet`, before those of the bands; docs/rasters.md says what each is."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Zone that reaches beyond a raster."""

    zone: int
    raster: str
    pixels: int | None
    """Pixels of the whole zone on the raster's grid; None where parts of it have no place there."""


def zone_table(
    sums: pd.DataFrame, reaches: Sequence[Reach], features: Features, ids: Sequence[str], classes: ClassMap
) -> pa.Table:
    """Rows of `zones.parquet`: sorted by zone as in the file, date and class.

    Args:
        sums: sums of all squares: `zone`, `raster`, `datetime`, `class_id` (K for pixels without data), `pixels`, and
            where they are known `hectares`, `confidence`, `confidence_pixels`, `changed`, `failed`, `band_pixels`,
            `mean_<band>`, `ndvi` and `ndvi_pixels`.
        reaches: zones that reach beyond a raster.
        features: the zones.
        ids: name of each zone.
        classes: class map; K classes.
    """
    sums = sums.assign(date=pd.to_datetime(sums["datetime"].str[:10]).dt.date)
    added = [name for name in sums.columns if name not in ("zone", "raster", "datetime", "date", "class_id")]
    by_class = sums.groupby([*_GROUP, "class_id"], dropna=False, as_index=False)[added].sum(min_count=1)
    totals = _totals(sums, reaches, len(classes))
    rows = by_class[by_class["class_id"] < len(classes)]
    missing = pd.DataFrame({"zone": np.arange(len(ids))})
    groups = totals[_GROUP].merge(missing, how="outer", on="zone")  # zones that no raster touches
    rows = groups.merge(rows, how="left", on=_GROUP).merge(totals, how="left", on=_GROUP)
    rows = rows.sort_values(["zone", "date", "class_id"], na_position="first", kind="stable", ignore_index=True)
    hectares = shape_hectares(features.shapes, features.crs)
    names = np.array([*classes.names, None], object)
    index = rows["class_id"].fillna(len(classes)).astype(int).to_numpy()
    pixels = rows[PIXELS].fillna(0).to_numpy()
    known = _column(rows, "confidence_pixels")
    columns: dict[str, Any] = {
        "zone": np.array(ids, object)[rows["zone"]],
        "date": [None if pd.isna(date) else date for date in rows["date"]],
        "rasters": rows["rasters"].fillna(0).astype(int),
        "class_id": _nullable(np.where(index < len(classes), index, np.nan)),
        "class": names[index],
        "pixels": pixels.astype(np.int64),
        "hectares": _nullable(_column(rows, "hectares")),
        "share": _ratio(np.where(index < len(classes), pixels, np.nan), rows["valid_pixels"].to_numpy(float)),
        "confidence": _ratio(_column(rows, "confidence") / 255, known),
        "changed_share": _ratio(_column(rows, "changed"), known),
        "confidence_pixels": _nullable(known),
        **{name: rows[name].fillna(0).astype(np.int64) for name in ("valid_pixels", "nodata_pixels", "failed_pixels")},
        "outside_pixels": _nullable(rows["outside_pixels"].to_numpy(float)),
        "overlap_pixels": _nullable(rows["overlap_pixels"].to_numpy(float)),
        "zone_hectares": _nullable(hectares[rows["zone"]]),
        **_bands(rows),
    }
    fields = [*ZONE_COLUMNS, *(pa.field(name, pa.float64()) for name in columns if name not in _names(ZONE_COLUMNS))]
    return pa.table(
        {one.name: pa.array(columns[one.name], one.type, from_pandas=True) for one in fields}, pa.schema(fields)
    )


def _names(columns: Sequence[pa.Field]) -> set[str]:
    return {one.name for one in columns}


def _totals(sums: pd.DataFrame, reaches: Sequence[Reach], num_classes: int) -> pd.DataFrame:
    """Pixels of each zone and date: with a class, without data, failed, outside of all rasters, and in several."""
    sums = sums.assign(failed=_column(sums, "failed", 0.0), classed=sums["class_id"] < num_classes)
    per_raster = (
        sums.assign(valid=sums[PIXELS].where(sums["classed"], 0))
        .groupby([*_GROUP, "raster"], dropna=False, as_index=False)[[PIXELS, "valid", "failed"]]
        .sum()
    )
    beyond = pd.DataFrame(
        {
            "zone": pd.Series([one.zone for one in reaches], dtype=int),
            "raster": pd.Series([one.raster for one in reaches], dtype=object),
            "whole": pd.Series([np.inf if one.pixels is None else one.pixels for one in reaches], dtype=float),
        }
    )
    per_raster = per_raster.merge(beyond, how="left", on=["zone", "raster"])
    per_raster["whole"] = per_raster["whole"].fillna(per_raster[PIXELS])
    out = per_raster.groupby(_GROUP, dropna=False, as_index=False).agg(
        rasters=("raster", "nunique"),
        covered=(PIXELS, "sum"),
        valid_pixels=("valid", "sum"),
        failed_pixels=("failed", "sum"),
        whole=("whole", "max"),
        least=("whole", "min"),
    )
    out["nodata_pixels"] = out["covered"] - out["valid_pixels"] - out["failed_pixels"]
    one_grid = (out["whole"] == out["least"]) & np.isfinite(out["whole"])
    out["outside_pixels"] = (out["whole"] - out["covered"]).clip(lower=0).where(one_grid)
    out["overlap_pixels"] = (out["covered"] - out["whole"]).clip(lower=0).where(one_grid)
    return out.drop(columns=["covered", "whole", "least"])


def _bands(rows: pd.DataFrame) -> dict[str, Any]:
    """Columns of the means of bands."""
    pixels = _column(rows, "band_pixels")
    means = {name: _ratio(rows[name].to_numpy(float), pixels) for name in rows.columns if name.startswith(MEAN)}
    if "ndvi" in rows.columns:
        means["ndvi"] = _ratio(rows["ndvi"].to_numpy(float), _column(rows, "ndvi_pixels"))
    return means


def _column(rows: pd.DataFrame, name: str, instead: float = np.nan) -> Float64:
    """A column as numbers; `instead` where there is none."""
    if name not in rows.columns:
        return np.full(len(rows), instead)
    values = rows[name].to_numpy(float)
    return values if np.isnan(instead) else np.nan_to_num(values, nan=instead)


def _ratio(sums: Float64, counts: Float64) -> pa.Array:
    """Means; null where nothing was counted."""
    return _nullable(np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0))


def _nullable(values: Float64) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def map_schema(features: Features, made_from: str) -> pa.Schema:
    """Schema of `zones_map.parquet`, in the coordinate system of the zones' file."""
    names = ("zone", "date", "class_id", "class", "pixels", "share", "valid_pixels", "zone_hectares")
    by_name = {one.name: one for one in ZONE_COLUMNS}
    schema = geo_schema([by_name[name] for name in names], crs=features.crs.to_wkt(), types=["Polygon", "MultiPolygon"])
    return schema.with_metadata(schema.metadata | {MADE_KEY: made_from.encode()})


def map_table(zones: pa.Table, features: Features, ids: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Rows of `zones_map.parquet`: each zone and date with its dominant class, that of the most pixels."""
    order = zones.append_column("row", pa.array(np.arange(len(zones)))).to_pandas()
    best = order.sort_values(["pixels", "row"], ascending=[False, True], kind="stable")
    best = best.groupby(["zone", "date"], dropna=False, sort=False).head(1).sort_values("row")
    rows = zones.take(pa.array(best["row"].to_numpy()))
    number = {name: index for index, name in enumerate(ids)}
    shapes = features.shapes[[number[name] for name in rows["zone"].to_pylist()]]
    columns = {name: rows[name] for name in schema.names if name in rows.column_names}
    return geo_table(schema, columns, shapes)
