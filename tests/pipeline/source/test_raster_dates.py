"""Dates of rasters: by their path, by a STAC item beside them, by their tag; and what names none is said."""

import calendar
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import RasterConfig
from pipeline.errors import AccessDenied
from pipeline.geotiff.raster import Raster
from pipeline.source.plan import Plan, plan_source
from pipeline.source.raster import NetworkBands, RasterShard, unpack
from pipeline.source.raster_dates import RasterDates, taken_of_groups, taken_of_item, time_of_tag, time_of_text
from pipeline.store import objects
from tests.support.examples import examples
from tests.support.rasters import config, values, write_raster

RGB = NetworkBands(("red", "green", "blue"))
NAIP = r"_(?P<date>[0-9]{8})\.tif$"
YEAR = r"(?P<year>[0-9]{4})\.tif$"


def write(folder: Path, *names: str, tag: str | None = None) -> None:
    for name in names:
        path = write_raster(folder / name, values(20, 20, 3))
        if tag is not None:
            with rasterio.open(path, "r+") as dataset:
                dataset.update_tags(TIFFTAG_DATETIME=tag)


def write_item(path: Path, **properties) -> None:
    path.write_text(json.dumps({"type": "Feature", "stac_version": "1.0.0", "properties": properties}))


def planned(folder: Path, pattern: str | None = None) -> tuple[dict[str, tuple[str | None, str | None]], Plan]:
    """Date and end of interval of each raster, and the plan."""
    plan = plan_source(config(folder, date_pattern=pattern), RGB)
    found = {}
    for shard in plan.shards:
        here = unpack(shard)
        assert isinstance(here, RasterShard)
        found[shard.path] = (here.raster.datetime, here.raster.end_datetime)
    return found, plan


# The pattern ----------------------------------------------------------------------------------------------------------


def test_a_day_in_the_name_is_the_interval_of_that_day(tmp_path) -> None:
    write(tmp_path, "n/m_4209055_ne_15_1_20120731.tif")
    dates, plan = planned(tmp_path, NAIP)
    assert dates == {"n/m_4209055_ne_15_1_20120731.tif": ("2012-07-31T00:00:00Z", "2012-07-31T23:59:59Z")}
    assert plan.warnings == []


def test_a_year_alone_is_the_interval_of_that_year(tmp_path) -> None:
    write(tmp_path, "1985.tif")
    assert planned(tmp_path, YEAR)[0] == {"1985.tif": ("1985-01-01T00:00:00Z", "1985-12-31T23:59:59Z")}


@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)), st.integers(1, 6))
@examples(200)
def test_an_interval_lasts_as_long_as_what_is_not_known(time, parts) -> None:
    names = ["year", "month", "day", "hour", "minute", "second"][:parts]
    groups = {name: f"{getattr(time, name):04d}" if name == "year" else str(getattr(time, name)) for name in names}
    taken = taken_of_groups(groups)
    start = datetime.fromisoformat(taken.datetime)
    assert [getattr(start, name) for name in names] == [getattr(time, name) for name in names]
    if parts == 6:
        assert taken.end_datetime is None
        return
    end = datetime.fromisoformat(taken.end_datetime)
    seconds = {
        1: (365 + calendar.isleap(time.year)) * 86400,
        2: calendar.monthrange(time.year, time.month)[1] * 86400,
        3: 86400,
        4: 3600,
        5: 60,
    }[parts]
    assert end - start == timedelta(seconds=seconds - 1)


@pytest.mark.parametrize("text", ["20240229", "2024-02-29"])
def test_a_date_is_written_with_or_without_hyphens(text) -> None:
    assert taken_of_groups({"date": text}).datetime == "2024-02-29T00:00:00Z"


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ({"date": "20241301"}, "month must be in 1..12"),
        ({"date": "2024-0229"}, "not YYYYMMDD or YYYY-MM-DD"),
        ({"date": "20230229"}, "day"),
        ({"date": None}, "date is None"),
        ({"year": "24"}, "not a number of 4 digits"),
        ({"year": "0000"}, "year 0 is out of range"),
        ({"year": "2024", "month": "Jan"}, "month is 'Jan'"),
        ({"year": "2024", "month": "١"}, "month is"),  # a digit, but no ASCII
        ({"year": None}, "no year"),
    ],
)
def test_what_is_no_date_is_refused_with_the_reason(groups, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        taken_of_groups(groups)


def test_an_optional_group_that_took_no_part_leaves_a_longer_interval() -> None:
    assert taken_of_groups({"year": "2024", "month": None, "day": "3"}).end_datetime == "2024-12-31T23:59:59Z"


def test_rasters_without_a_date_in_their_path_are_counted_and_the_first_is_named(tmp_path) -> None:
    write(tmp_path, "a_20201301.tif", "b.tif", "c_20200131.tif", tag="2019:01:02 03:04:05")
    dates, plan = planned(tmp_path, NAIP)
    assert dates["a_20201301.tif"] == dates["b.tif"] == ("2019-01-02T03:04:05Z", None)
    assert dates["c_20200131.tif"][0] == "2020-01-31T00:00:00Z"
    (warning,) = plan.warnings
    assert "no date for 2 raster(s), first 'a_20201301.tif': month must be in 1..12" in warning
    assert "does not match" in planned(tmp_path / "b.tif", NAIP)[1].warnings[0]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?P<year>", "is not a regular expression"),
        ("[0-9]+", "names the groups none"),
        ("(?P<month>[0-9]+)", "names the groups month"),
        ("(?P<year>[0-9]+)(?P<day>[0-9]+)", "names the groups day, year"),
        ("(?P<date>[0-9]+)(?P<year>[0-9]+)", "names the groups date, year"),
        ("(?P<year>[0-9]+)(?P<place>[a-z]+)", "place"),
    ],
)
def test_a_pattern_without_the_groups_of_a_date_is_refused_when_the_config_is_read(pattern, reason) -> None:
    with pytest.raises(ValidationError, match=reason):
        RasterConfig(date_pattern=pattern)


def test_a_date_changes_no_id_of_a_shard(tmp_path) -> None:
    write(tmp_path, "1985.tif")
    (without,), (with_date,) = planned(tmp_path)[1].shards, planned(tmp_path, YEAR)[1].shards
    assert without.id == with_date.id
    assert without.packed != with_date.packed


# STAC items -----------------------------------------------------------------------------------------------------------


def test_the_path_comes_before_the_item_and_the_item_before_the_tag(tmp_path) -> None:
    write(tmp_path, "1985.tif", "x.tif", "y.TIF", "z.tif", tag="2019:01:02 03:04:05")
    for name in ("1985", "x", "y"):
        write_item(tmp_path / f"{name}.json", datetime="2001-02-03T04:05:06Z")
    dates, plan = planned(tmp_path, YEAR)
    assert {path: time for path, (time, _) in dates.items()} == {
        "1985.tif": "1985-01-01T00:00:00Z",
        "x.tif": "2001-02-03T04:05:06Z",
        "y.TIF": "2001-02-03T04:05:06Z",
        "z.tif": "2019-01-02T03:04:05Z",
    }
    assert plan.ignored == {".json": 3}


def test_an_item_without_a_time_gives_its_interval(tmp_path) -> None:
    write(tmp_path, "a.tif")
    interval = {"start_datetime": "2001-02-03T00:00:00Z", "end_datetime": "2001-03-03T00:00:00+02:00"}
    write_item(tmp_path / "a.json", datetime=None, **interval)
    assert planned(tmp_path)[0] == {"a.tif": ("2001-02-03T00:00:00Z", "2001-03-02T22:00:00Z")}


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", "7", '{"type": "FeatureCollection", "features": []}', '{"type": "Feature", "properties": null}'),
        *('{"type": "Feature", "properties": {"crop": "maize"}}', "[" * 100_000, "\xff"),
    ],
    ids=["broken", "list", "number", "collection", "no properties", "no date", "deep", "no UTF-8"],
)
def test_json_that_is_no_stac_item_is_ignored_quietly(content, tmp_path) -> None:
    write(tmp_path, "a.tif")
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    dates, plan = planned(tmp_path)
    assert (dates, plan.warnings) == ({"a.tif": (None, None)}, [])


def test_json_too_large_for_an_item_is_not_read(tmp_path, monkeypatch) -> None:
    write(tmp_path, "a.tif")
    write_item(tmp_path / "a.json", datetime="2001-02-03T04:05:06Z", padding="x" * 2**20)
    monkeypatch.setattr(objects, "read_bytes", lambda *args, **kwargs: pytest.fail("was read"))
    assert planned(tmp_path)[0] == {"a.tif": (None, None)}


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"datetime": "yesterday"}, "'yesterday' is no time"),
        ({"datetime": 7}, "7 is no time"),
        ({"datetime": None, "start_datetime": "2001-02-03T00:00:00Z"}, "None is no time"),
        (
            {"start_datetime": "2001-02-03T00:00:00Z", "end_datetime": "2001-02-02T00:00:00Z"},
            "end_datetime 2001-02-02T00:00:00Z is before",
        ),
    ],
)
def test_an_item_whose_date_is_none_is_a_warning(properties, reason, tmp_path) -> None:
    write(tmp_path, "a.tif", "b.tif", tag="2019:01:02 03:04:05")
    for name in ("a", "b"):
        write_item(tmp_path / f"{name}.json", **properties)
    dates, plan = planned(tmp_path)
    assert dates["a.tif"] == ("2019-01-02T03:04:05Z", None)
    (warning,) = plan.warnings
    assert warning.startswith("2 STAC item(s) beside rasters give no date, first 'a.json'")
    assert reason in warning


def test_a_store_that_refuses_an_item_stops_the_planning(monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise AccessDenied("403")

    monkeypatch.setattr(objects, "read_bytes", refuse)
    dates = RasterDates("s3://bucket", None, {"a": objects.FileInfo("a.json", 10, "e")})
    raster = Raster("a.tif", "e", 1, 1, 1, "uint8", 3, (1, 2, 3), ("red", "green", "blue"), None, None)
    with pytest.raises(AccessDenied):
        dates.dated(raster)


def test_a_feature_of_geojson_without_times_is_no_item() -> None:
    assert taken_of_item(b'{"type": "Feature", "properties": {"name": "x"}}') is None


# Times and tags -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-05-06T07:08:09Z", "2024-05-06T07:08:09Z"),
        ("2024-05-06T07:08:09.987Z", "2024-05-06T07:08:09Z"),
        ("2024-05-06T07:08:09+02:30", "2024-05-06T04:38:09Z"),
        ("2024-05-06", "2024-05-06T00:00:00Z"),
    ],
)
def test_times_are_in_utc_and_whole_seconds(text, time) -> None:
    assert time_of_text(text) == time


@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)))
@examples(100)
def test_a_tag_is_read_as_utc(time) -> None:
    whole = time.replace(microsecond=0, tzinfo=UTC)
    text = f"{time.year:04d}:{time.month:02d}:{time.day:02d} {time.hour:02d}:{time.minute:02d}:{time.second:02d}"
    found, notes = time_of_tag(text + "\0")
    assert datetime.fromisoformat(found) == whole
    assert notes == []


@pytest.mark.parametrize("text", ["0000:00:00 00:00:00", "2020:13:01 00:00:00", "2020:01:01 24:00:00", "last summer"])
def test_a_tag_that_is_no_time_is_ignored_with_a_warning(text, tmp_path) -> None:
    assert time_of_tag(text)[0] is None
    write(tmp_path, "a.tif", tag=text)
    dates, plan = planned(tmp_path)
    assert dates == {"a.tif": (None, None)}
    assert any("tag DateTime" in warning for warning in plan.warnings)


@pytest.mark.parametrize("text", [None, "", "   ", "\0"])
def test_a_blank_tag_is_no_time_and_no_warning(text) -> None:
    assert time_of_tag(text) == (None, [])
