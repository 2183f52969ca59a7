"""Rows of `zones.parquet` of invented fields."""

import io
from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import objects
from pipeline.store.url import Url

CLASS_NAMES = ("soil", "crop", "weed")
PIXELS = 10_000
SUMMER = tuple((month, day) for month in (5, 6, 7) for day in (8, 22))
"""Months and days of six dates."""


def zone_rows(
    shares: Sequence[float],
    *,
    day: date | None,
    zone: str = "north",
    pixels: int = PIXELS,
    confidence: float | None = 0.9,
) -> list[dict[str, object]]:
    """Rows of one zone on one date; the first class has what the shares of the others leave."""
    counts = [round(share * pixels) for share in shares]
    counts = [pixels - sum(counts), *counts]
    common = {"zone": zone, "date": day, "rasters": 1, "valid_pixels": pixels}
    rows = [
        common | {"class_id": index, "class": CLASS_NAMES[index], "pixels": count, "confidence": confidence}
        for index, count in enumerate(counts)
        if count
    ]
    return rows or [common | {"class_id": None, "class": None, "pixels": 0, "confidence": None}]


def zones_of(crop_of: Mapping[tuple[date, str], float], **facts: object) -> pd.DataFrame:
    """Rows from the share of crop by date and zone."""
    rows = [row for (day, zone), crop in crop_of.items() for row in zone_rows([crop], day=day, zone=zone, **facts)]
    return pd.DataFrame(rows)


def write_zones(url: Url, rows: pd.DataFrame) -> None:
    """A `zones.parquet` with the types of the pipeline, and a column that seasons do not need."""
    plain = rows.astype({"class_id": "UInt8"}).assign(ndvi=0.5)
    types = {"zone": pa.string(), "date": pa.date32(), "rasters": pa.int32()}
    arrays = {name: pa.array(plain[name], types.get(name), from_pandas=True) for name in plain}
    out = io.BytesIO()
    pq.write_table(pa.table(arrays), out)
    objects.put(url, out.getvalue())


def summers(years: Sequence[int], dates: Sequence[tuple[int, int]] = SUMMER) -> list[date]:
    return [date(year, month, day) for year in years for month, day in dates]


def stable(
    rng: np.random.Generator,
    days: Sequence[date],
    *,
    zones: Sequence[str] = ("north", "south"),
    year_sd: float = 0.02,
    date_sd: float = 0.02,
    shift: float = 0.0,
) -> pd.DataFrame:
    """A stable process: shares of crop and weed vary between years and dates; `shift` moves crop on the last date."""
    rows = []
    of_year = {year: rng.normal(0, year_sd, 3) for year in sorted({day.year for day in days})}
    for day in days:
        crop, weed, confidence = (0.4, 0.2, 0.85) + of_year[day.year] + rng.normal(0, date_sd, 3)
        crop += shift if day == max(days) else 0
        rows += [row for zone in zones for row in zone_rows([crop, weed], day=day, zone=zone, confidence=confidence)]
    return pd.DataFrame(rows)


def daily(first: date, count: int, step: int = 1) -> list[date]:
    return [first + timedelta(days=step * index) for index in range(count)]
