"""Tables of change: `changes.parquet`, one row per zone, class before and class after, and `changes_map.parquet`.

In: sums of squares by zone and pair of classes. Out: two tables. A pixel is compared where both masks have a class.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.records import Float64
from pipeline.vector.area import shape_hectares
from pipeline.vector.features import Features
from pipeline.vector.geoparquet import geo_schema, geo_table
from pipeline.zones.counts import PIXELS

MADE_KEY = b"atrous.changes"
"""Metadata of both files: what they were made from."""
COLUMNS = (
    pa.field("zone", pa.string()),
    pa.field("from_id", pa.uint8()),
    pa.field("from", pa.string()),
    pa.field("to_id", pa.uint8()),
    pa.field("to", pa.string()),
    pa.field("pixels", pa.int64(), nullable=False),
    pa.field("hectares", pa.float64()),
    pa.field("share", pa.float64()),
    pa.field("compared_pixels", pa.int64(), nullable=False),
    pa.field("other_pixels", pa.int64(), nullable=False),
)
"""Zone, null for all that was compared; classes before and after; pixels of the pair, their true area and their share
of the zone's compared pixels; the zone's pixels with a class in both masks, and those of the earlier mask without."""
_MAP_COLUMNS = (
    pa.field("zone", pa.string(), nullable=False),
    pa.field("changed_share", pa.float64()),
    pa.field("changed_hectares", pa.float64()),
    pa.field("from", pa.string()),
    pa.field("to", pa.string()),
    pa.field("compared_pixels", pa.int64(), nullable=False),
    pa.field("zone_hectares", pa.float64()),
)


def change_table(sums: pd.DataFrame, ids: Sequence[str], names: Sequence[str]) -> pa.Table:
    """Rows of `changes.parquet`: first all that was compared, then the zones in the order of their file.

    Args:
        sums: sums of squares: `zone` (the number behind the last zone for all that was compared), `class_id`
            (before * K + after; K * K without), `pixels`, and `hectares` where it is known.
        ids: name of each zone.
        names: names of the K classes.
    """
    count = len(names)
    known = [name for name in (PIXELS, "hectares") if name in sums.columns]
    pairs = sums.groupby(["zone", "class_id"], as_index=False)[known].sum()
    compared = pairs[pairs["class_id"] < count**2]
    totals = pd.DataFrame({"zone": [len(ids), *range(len(ids))]})
    for name, rows in (("compared_pixels", compared), ("other_pixels", pairs[pairs["class_id"] == count**2])):
        totals[name] = totals["zone"].map(rows.groupby("zone")[PIXELS].sum()).fillna(0).astype(np.int64)
    rows = totals.merge(compared, how="left", on="zone")
    none = rows["class_id"].isna().to_numpy()
    before, after = np.divmod(rows["class_id"].fillna(0).astype(int).to_numpy(), count)
    pixels = rows[PIXELS].fillna(0).to_numpy()
    every = rows["compared_pixels"].to_numpy(float)
    named, labels = np.array([*ids, None], object), np.array(names, object)
    hectares = rows["hectares"].to_numpy(float) if "hectares" in rows else np.full(len(rows), np.nan)
    columns: dict[str, Any] = {
        "zone": named[rows["zone"]],
        "from_id": pa.array(before, pa.uint8(), mask=none),
        "from": pa.array(labels[before], pa.string(), mask=none),
        "to_id": pa.array(after, pa.uint8(), mask=none),
        "to": pa.array(labels[after], pa.string(), mask=none),
        "pixels": pixels.astype(np.int64),
        "hectares": pa.array(hectares, mask=np.isnan(hectares)),
        "share": pa.array(pixels / np.maximum(every, 1), mask=none),
        "compared_pixels": rows["compared_pixels"],
        "other_pixels": rows["other_pixels"],
    }
    return pa.table({one.name: pa.array(columns[one.name], one.type) for one in COLUMNS}, pa.schema(COLUMNS))


def changes_map(table: pa.Table, features: Features, ids: Sequence[str]) -> pa.Table:
    """Rows of `changes_map.parquet`: each zone with the share that changed and the largest change, by pixels."""
    rows = table.to_pandas()
    rows = rows[rows["zone"].notna()]
    changed = rows[rows["from_id"] != rows["to_id"]].dropna(subset=["from_id"])
    by_zone = changed.groupby("zone")[["pixels", "hectares"]].sum(min_count=1)
    largest = changed.sort_values("pixels", kind="stable").groupby("zone").tail(1).set_index("zone")
    compared = rows.groupby("zone")["compared_pixels"].first()
    frame = pd.DataFrame({"zone": list(ids)}).set_index("zone")
    frame["compared_pixels"] = compared
    some = frame["compared_pixels"] > 0
    frame["changed_share"] = (by_zone["pixels"].reindex(frame.index).fillna(0) / frame["compared_pixels"]).where(some)
    frame["changed_hectares"] = by_zone["hectares"].reindex(frame.index).fillna(0).where(some)
    frame["from"], frame["to"] = largest["from"], largest["to"]
    hectares = shape_hectares(features.shapes, features.crs)
    frame["zone_hectares"] = hectares
    schema = geo_schema(_MAP_COLUMNS, crs=features.crs.to_wkt(), types=["Polygon", "MultiPolygon"])
    frame = frame.reset_index()
    columns = {one.name: pa.array(frame[one.name], one.type, from_pandas=True) for one in _MAP_COLUMNS}
    return geo_table(schema, columns, features.shapes)


def matrix(table: pa.Table, names: Sequence[str], column: str) -> Float64:
    """(K, K) sums of a column over all that was compared: rows are the class before, columns that after."""
    rows = table.to_pandas()
    rows = rows[rows["zone"].isna() & rows["from_id"].notna()]
    out = np.zeros((len(names), len(names)))
    out[rows["from_id"].astype(int), rows["to_id"].astype(int)] = rows[column].fillna(0)
    return out
