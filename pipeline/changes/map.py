"""Map of a comparison: zones by the share of their pixels that changed, and the change of each from class to class.

In: the tables of a comparison. Out: a map for its page.
"""

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.page.map import MapLayer, MapShape, PageMap, render_map
from pipeline.zones.map import LINE, NO_CLASS, SHAPE_BYTES, shapes_in_degrees

LIGHT, DARK = (247, 240, 226), (140, 32, 20)
"""Colours of zones of which nothing and all has changed; between them linear in the share's square root."""
_MOST_ROWS = 8


def comparison_map(table: pa.Table, zones: pa.Table) -> PageMap | None:
    """Map of the zones of a comparison; None where none has coordinates.

    Args:
        table: rows of `changes.parquet`.
        zones: rows of `changes_map.parquet`.
    """
    notes: list[str] = []
    rows = zones.select(["zone", "changed_share", "compared_pixels", "zone_hectares"]).to_pandas()
    order = rows.sort_values("zone_hectares", ascending=False, kind="stable").index.tolist()
    by_zone = dict(iter(table.to_pandas().dropna(subset=["from_id"]).groupby("zone", sort=False)))
    shapes = [
        _shape(rows.iloc[row], by_zone.get(rows.iloc[row]["zone"]), geometry)
        for row, geometry in shapes_in_degrees(zones, order, SHAPE_BYTES, notes)
    ]
    layers = [MapLayer("zones by changed share", shapes=tuple(shapes))]
    return render_map(layers, label="Zones by the share of their pixels that changed", notes=notes)


def _shape(zone: pd.Series, rows: pd.DataFrame | None, geometry: dict[str, object]) -> MapShape:
    share = zone["changed_share"]
    name = str(zone["zone"])
    if rows is None or pd.isna(share):
        return MapShape(geometry, NO_CLASS, LINE, name, "not compared")
    changed = rows[rows["from_id"] != rows["to_id"]].sort_values("pixels", ascending=False, kind="stable")
    lines = tuple(
        (row["from"], row["to"], f"{row['hectares']:.3f}" if pd.notna(row["hectares"]) else "–", f"{row['share']:.1%}")
        for row in changed.head(_MOST_ROWS).to_dict("records")
    )
    note = f"{share:.1%} of {int(zone['compared_pixels']):,} pixels changed"
    return MapShape(geometry, shade(share), LINE, name, note, ("from", "to", "ha", "share") if lines else (), lines)


def shade(share: float) -> str:
    """CSS colour of a share that changed, 0 to 1."""
    mixed = np.array(LIGHT) + (np.array(DARK) - LIGHT) * share**0.5
    return "#{:02x}{:02x}{:02x}".format(*np.rint(mixed).astype(int))
