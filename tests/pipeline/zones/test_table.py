"""Tables of zones: what is added, and what is said to be unknown."""

import pandas as pd
import pytest
import rasterio
import shapely

from pipeline.classes import load_class_map
from pipeline.vector.features import Features
from pipeline.zones.table import Reach, map_schema, map_table, zone_table

CLASSES = load_class_map("farmland")
K = len(CLASSES)
FEATURES = Features(
    "f",
    shapely.box([500000, 500100], 5200000, [500050, 500150], 5200050),
    ["a", "b"],
    rasterio.crs.CRS.from_epsg(32614),
)


def sums(*rows: tuple[int, str, str | None, int, int]) -> pd.DataFrame:
    """Rows of zone, raster, datetime, class id and pixels."""
    return pd.DataFrame(rows, columns=["zone", "raster", "datetime", "class_id", "pixels"])


def table(rows: pd.DataFrame, *reaches: Reach) -> pd.DataFrame:
    return zone_table(rows, reaches, FEATURES, ["a", "b"], CLASSES).to_pandas()


def test_rasters_of_a_day_are_added_and_days_are_rows_of_their_own() -> None:
    day, next_day = "2020-05-01T10:00:00Z", "2020-05-02T10:00:00Z"
    found = table(sums((0, "x", day, 1, 30), (0, "y", "2020-05-01T11:00:00Z", 1, 20), (0, "x2", next_day, 1, 7)))
    own = found[found["zone"] == "a"]
    assert own["pixels"].tolist() == [50, 7]
    assert own["rasters"].tolist() == [2, 1]
    assert [str(date) for date in own["date"]] == ["2020-05-01", "2020-05-02"]


def test_a_zone_that_no_raster_touches_has_one_row_without_a_class() -> None:
    found = table(sums((0, "x", None, 1, 30)))
    (row,) = found[found["zone"] == "b"].to_dict("records")
    assert (row["rasters"], row["pixels"], row["valid_pixels"]) == (0, 0, 0)
    assert pd.isna(row["class"])
    assert pd.isna(row["share"])
    assert row["zone_hectares"] == pytest.approx(0.25, rel=2e-3)


@pytest.mark.parametrize(
    ("wholes", "outside", "overlap"),
    [
        ((100, 100), 50, 0),
        ((40, 40), 0, 10),
        ((100, 90), None, None),
        ((None, 100), None, None),
        ((None, None), None, None),
    ],
)
def test_pixels_outside_and_counted_twice_are_known_on_one_grid_alone(
    wholes: tuple[int | None, int | None], outside: int | None, overlap: int | None
) -> None:
    rows = sums((0, "x", None, 1, 30), (0, "y", None, 2, 15), (0, "y", None, K, 5))
    found = table(rows, Reach(0, "x", wholes[0]), Reach(0, "y", wholes[1]))
    row = found[found["zone"] == "a"].iloc[0]
    assert (row["valid_pixels"], row["nodata_pixels"]) == (45, 5)
    for name, expected in (("outside_pixels", outside), ("overlap_pixels", overlap)):
        assert pd.isna(row[name]) if expected is None else row[name] == expected


def test_means_rest_on_the_pixels_that_have_a_value() -> None:
    rows = sums((0, "x", None, 1, 30), (0, "y", None, 1, 10))
    rows["confidence"], rows["confidence_pixels"] = [255.0 * 9, None], [10.0, None]
    rows["mean_red"], rows["band_pixels"] = [None, 500.0], [None, 10.0]
    row = table(rows).iloc[0]
    assert row["confidence"] == pytest.approx(0.9)
    assert row["confidence_pixels"] == 10
    assert row["mean_red"] == 50


def test_the_map_has_the_class_of_most_pixels_of_each_zone_and_date() -> None:
    rows = sums((0, "x", None, 1, 30), (0, "x", None, 2, 31), (1, "x", None, K, 4))
    schema = map_schema(FEATURES, "x")
    zones = zone_table(rows, (), FEATURES, ["a", "b"], CLASSES)
    found = map_table(zones, FEATURES, ["a", "b"], schema).to_pandas()
    assert found["zone"].tolist() == ["a", "b"]
    assert found["class"].iloc[0] == CLASSES.names[2]
    assert pd.isna(found["class"].iloc[1])
    assert found["pixels"].tolist() == [31, 0]
