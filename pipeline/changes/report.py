"""HTML page of a comparison of two runs: hectares from each class to each other, and the zones that changed most.

In: the rows of `changes.parquet`. Out: a string; nothing is read or written here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.changes.table import matrix
from pipeline.classes import ClassMap
from pipeline.page import frame
from pipeline.page.map import PageMap
from pipeline.records import Float64

MOST_ZONES = 100
"""Zones on the page: those of which the largest share has changed."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What became of one class: a row of the matrix."""

    name: str
    colour: tuple[int, int, int]
    cells: tuple[float, ...]
    """Hectares, or pixels without coordinates, of each class after."""
    before: float
    after: float

    @property
    def change(self) -> float:
        """After minus before."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class ChangedZone:
    """One zone: compared pixels, the share of them that changed, and its largest changes."""

    name: str
    compared: int
    share: float
    changes: tuple[tuple[str, str, float], ...]
    """Class before, class after, and share of the zone's compared pixels."""


def render_changes(
    table: pa.Table,
    classes: ClassMap,
    *,
    titles: tuple[str, str],
    left_out: int = 0,
    page_map: PageMap | None = None,
) -> str:
    """Lay out the page of a comparison.

    Args:
        table: rows of `changes.parquet`.
        classes: class map of both sides.
        titles: names of the earlier and the later run.
        left_out: earlier masks without a later one on their ground.
        page_map: map of the zones; None without.
    """
    hectares = matrix(table, classes.names, "hectares")
    unit, flows = ("ha", hectares) if hectares.any() else ("px", matrix(table, classes.names, "pixels"))
    zones, total = _zones(table)
    rows = table.to_pandas()
    every = rows[rows["zone"].isna()]
    compared = int(every["compared_pixels"].max()) if len(every) else 0
    return frame.load_template("changes/report").render(
        titles=titles,
        unit=unit,
        flows=[
            Flow(one.name, one.colour, tuple(flows[index]), float(flows[index].sum()), float(flows[:, index].sum()))
            for index, one in enumerate(classes.classes)
            if _occurs(flows, index)
        ],
        cells={one.name: index for index, one in enumerate(classes.classes)},
        targets=[(one.name, one.colour) for index, one in enumerate(classes.classes) if _occurs(flows, index)],
        compared=compared,
        other=int(every["other_pixels"].max()) if len(every) else 0,
        amount=float(flows.sum()),
        changed=float(flows.sum() - np.trace(flows)),
        zones=zones,
        all_zones=total,
        left_out=left_out,
        page_map=page_map,
    )


def _occurs(flows: Float64, index: int) -> bool:
    return bool(flows[index].any() or flows[:, index].any())


def _zones(table: pa.Table) -> tuple[list[ChangedZone], int]:
    """The zones of which most has changed, and the number of all that were compared."""
    rows = table.to_pandas()
    rows = rows[rows["zone"].notna() & (rows["compared_pixels"] > 0)]
    changed = rows[rows["from_id"] != rows["to_id"]]
    shares = changed.groupby("zone", sort=False)["share"].sum().sort_values(ascending=False, kind="stable")
    return [_zone(name, share, changed) for name, share in shares.head(MOST_ZONES).items()], rows["zone"].nunique()


def _zone(name: object, share: float, changed: pd.DataFrame) -> ChangedZone:
    own = changed[changed["zone"] == name].sort_values("share", ascending=False, kind="stable").head(3)
    largest: Sequence[tuple[str, str, float]] = list(zip(own["from"], own["to"], own["share"], strict=True))
    return ChangedZone(str(name), int(own["compared_pixels"].iloc[0]), float(share), tuple(largest))
