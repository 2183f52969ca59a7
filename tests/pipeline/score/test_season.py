from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from pipeline.errors import ConfigError
from pipeline.score.season import (
    SEASON_COLUMNS,
    ZONE_COLUMNS,
    SeasonRule,
    season_alarms,
    season_table,
    seasons_from,
)
from tests.support.seasons import daily, stable, summers, zone_rows, zones_of

YEARS = range(2021, 2025)
NEW = date(2025, 6, 15)
HISTORY = {(day, zone): 0.4 for day in summers(YEARS) for zone in "abc"}


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["zone"].isna()]


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    """Verdicts over all zones, by class; that of the confidence under its name."""
    rows = pooled(table)
    return dict(zip(rows["class_name"].fillna("confidence"), rows["verdict"], strict=True))


# ---------------------------------------------------------------- the season


@given(
    st.dates(date(2000, 1, 1), date(2030, 12, 31)),
    st.lists(st.dates(date(1998, 1, 1), date(2032, 12, 31)), min_size=1, max_size=20),
    st.integers(0, 182),
)
def test_a_season_has_the_dates_near_an_anniversary_in_any_year(day: date, dates: list[date], window: int) -> None:
    found = seasons_from(
        np.array(dates, "datetime64[D]"), np.datetime64(day, "D"), window, before=np.datetime64(day, "D")
    )
    for one, year in zip(dates, found.tolist(), strict=True):
        anniversaries = {y: pd.Timestamp(day) + pd.DateOffset(years=y - day.year) for y in range(1996, 2035)}
        away = {y: abs((pd.Timestamp(one) - other).days) for y, other in anniversaries.items()}
        assert (year == -1) == (min(away.values()) > window or one >= day)
        assert year == -1 or away[year] == min(away.values())


def test_a_season_goes_over_the_end_of_the_year() -> None:
    dates = np.array(["2022-12-20", "2023-01-20", "2023-07-01", "2023-12-20", "2024-12-31"], "datetime64[D]")
    new = np.datetime64("2025-01-05")
    assert seasons_from(dates, new, 45, before=new).tolist() == [2023, 2023, -1, 2024, 2025]


@pytest.mark.parametrize("months", [(12, 1), (6, 7)], ids=["southern summer", "southern winter"])
def test_winter_and_summer_differ_and_neither_is_an_alarm(months: tuple[int, int]) -> None:
    days = daily(date(2020, 1, 5), 150, 14)
    rng = np.random.default_rng(3)
    crop = {
        day: 0.45 + 0.4 * np.cos(2 * np.pi * day.timetuple().tm_yday / 365.25) + rng.normal(0, 0.01) for day in days
    }
    new = max(day for day in days if day.month in months)
    past = {(day, "a"): share for day, share in crop.items() if day <= new}
    rule = SeasonRule(window_days=20)
    assert set(season_table(zones_of(past), rule)["verdict"]) == {"inside"}
    other = min(days, key=lambda day: abs((new - day).days - 182))
    swapped = season_table(zones_of(past | {(new, "a"): crop[other]}), rule)
    assert verdicts(swapped)["crop"] == "outside"


# ---------------------------------------------------------------- the interval


@pytest.mark.parametrize("shares", [[0.3, 0.36, 0.41], [0.2, 0.21, 0.2, 0.26, 0.3]])
def test_with_one_date_a_year_the_limits_are_students_prediction_interval(shares: list[float]) -> None:
    days = [date(2020 + index, 6, 10) for index in range(len(shares))]
    zones = zones_of({(day, "a"): share for day, share in zip(days, shares, strict=True)} | {(NEW, "a"): 0.5})
    crop = pooled(season_table(zones, SeasonRule(tolerance=0, level=0.9))).set_index("class_name").loc["crop"]
    low, high = stats.t.interval(
        1 - 0.1 / 3, len(shares) - 1, np.mean(shares), np.std(shares, ddof=1) * np.sqrt(1 + 1 / len(shares))
    )
    assert (crop["low"], crop["high"]) == pytest.approx((max(low, 0), min(high, 1)))
    wider = pooled(season_table(zones, SeasonRule(tolerance=0.1, level=0.9))).set_index("class_name").loc["crop"]
    assert (wider["low"], wider["high"]) == pytest.approx((max(low - 0.1, 0), min(high + 0.1, 1)))
    assert crop["expected"] == pytest.approx(np.mean(shares))


def test_with_dates_of_one_year_they_are_students_interval_over_the_dates() -> None:
    days, shares = daily(date(2025, 5, 10), 5, 7), [0.3, 0.32, 0.29, 0.35, 0.3]
    zones = zones_of({(day, "a"): share for day, share in zip(days, shares, strict=True)} | {(NEW, "a"): 0.5})
    found = pooled(season_table(zones, SeasonRule(tolerance=0, min_years=1))).set_index("class_name").loc["crop"]
    interval = stats.t.interval(1 - 0.05 / 3, 4, np.mean(shares), np.std(shares, ddof=1) * np.sqrt(1 + 1 / 5))
    assert (found["low"], found["high"]) == pytest.approx(interval)


@pytest.mark.parametrize("year_sd", [0.0, 0.02], ids=["years alike", "years that differ"])
def test_a_stable_process_is_outside_no_more_often_than_stated(year_sd: float) -> None:
    rng = np.random.default_rng(7)
    days = [*summers(range(2022, 2025)), NEW]
    rule = SeasonRule(tolerance=0, level=0.9)
    alarms = sum(
        "outside" in verdicts(season_table(stable(rng, days, zones=["a"], year_sd=year_sd), rule)).values()
        for _ in range(100)
    )
    assert alarms <= stats.binom.isf(0.01, 100, 0.1)


def test_an_interval_that_takes_dates_of_a_year_as_independent_would_alarm_too_often() -> None:
    """What the component of the years is for: the same process against Student's interval over all dates."""
    rng = np.random.default_rng(7)
    past = 0.4 + rng.normal(0, 0.02, (2000, 3, 1)) + rng.normal(0, 0.02, (2000, 3, 6))
    new = 0.4 + rng.normal(0, 0.02, 2000) + rng.normal(0, 0.02, 2000)
    flat = past.reshape(2000, 18)
    limit = stats.t.isf(0.005, 17) * flat.std(axis=1, ddof=1) * np.sqrt(1 + 1 / 18)
    assert (np.abs(new - flat.mean(axis=1)) > limit).mean() > 0.03  # 0.01 was meant


def test_a_shift_of_15_points_is_found() -> None:
    rng = np.random.default_rng(1)
    days = [*summers(YEARS), NEW]
    found = [
        verdicts(season_table(stable(rng, days, year_sd=0.01, date_sd=0.015, shift=0.15)))["crop"] for _ in range(30)
    ]
    assert found.count("outside") >= 27


def test_a_fall_of_the_confidence_is_found_and_no_share_is() -> None:
    sure = zones_of(HISTORY, confidence=0.9)
    unsure = zones_of({(NEW, zone): 0.4 for zone in "abc"}, confidence=0.7)
    table = season_table(pd.concat([sure, unsure]))
    assert verdicts(table) == {"soil": "inside", "crop": "inside", "confidence": "outside"}
    (alarm,) = [one for one in season_alarms(pd.concat([sure, unsure])) if one.zone is None]
    assert (alarm.date, alarm.quantity, alarm.class_name, alarm.value) == (NEW, "confidence", None, pytest.approx(0.7))
    assert alarm.says == (
        "confidence 70.0% on 2025-06-15, 85.0% to 95.0% by 24 dates of the season in 4 year(s); "
        "over 3 of 3 zones and 30,000 pixels"
    )


def test_a_class_that_the_season_never_had_is_an_alarm_beyond_the_tolerance() -> None:
    past = pd.DataFrame([row for day in summers(YEARS) for row in zone_rows([0.4, 0], day=day)])
    for weed, verdict in ((0.04, "inside"), (0.06, "outside")):
        table = season_table(pd.concat([past, pd.DataFrame(zone_rows([0.4, weed], day=NEW))]))
        assert verdicts(table)["weed"] == verdict


def test_equal_shares_are_inside_without_a_tolerance_too() -> None:
    third = {(day, zone): 1 / 3 for day in [*summers(YEARS), NEW] for zone in "abc"}
    assert set(season_table(zones_of(third), SeasonRule(tolerance=0))["verdict"]) == {"inside"}


# ---------------------------------------------------------------- fields that come and go


def test_a_date_that_covers_half_of_the_fields_is_compared_over_those() -> None:
    share = {"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.0}
    past = {(day, zone): crop for day in summers(YEARS) for zone, crop in share.items()}
    table = season_table(zones_of(past | {(NEW, "a"): 0.9, (NEW, "b"): 0.8}))
    assert verdicts(table)["crop"] == "inside"
    crop = pooled(table).set_index("class_name").loc["crop"]
    assert (crop["value"], crop["expected"]) == pytest.approx((0.85, 0.85))  # 0.45 over all fields
    assert (crop["zones"], crop["pixels"]) == (2, 20_000)
    assert "over 2 of 4 zones and 20,000 pixels" in crop["says"]
    assert verdicts(season_table(zones_of(past | {(NEW, "a"): 0.6, (NEW, "b"): 0.5})))["crop"] == "outside"


def test_fields_half_under_clouds_change_no_share_by_their_weight() -> None:
    past = zones_of({(day, zone): crop for day in summers(YEARS) for zone, crop in (("a", 0.9), ("b", 0.1))})
    half = [*zone_rows([0.9], day=NEW, zone="a", pixels=6_000), *zone_rows([0.1], day=NEW, zone="b", pixels=10_000)]
    crop = pooled(season_table(pd.concat([past, pd.DataFrame(half)]))).set_index("class_name").loc["crop"]
    assert crop["value"] == pytest.approx(0.4)  # 0.5 without clouds
    assert crop["expected"] == pytest.approx(crop["value"])
    assert crop["pixels"] == 16_000


def test_dates_that_share_too_little_are_left_out_and_counted() -> None:
    past = zones_of(HISTORY)
    cloudy = pd.DataFrame(zone_rows([0.9], day=date(2024, 6, 15), zone="a", pixels=5_000))
    crop = pooled(season_table(pd.concat([past, cloudy, zones_of({(NEW, zone): 0.4 for zone in "abc"})]))).iloc[0]
    assert (crop["dates"], crop["left_out"], crop["verdict"]) == (24, 1, "inside")
    assert "24 dates of the season in 4 year(s), and 1 that share less than 50% of the pixels" in crop["says"]


def test_a_new_field_has_no_verdict_and_a_field_that_is_gone_no_row() -> None:
    table = season_table(zones_of(HISTORY | {(NEW, zone): 0.4 for zone in ("b", "c", "new")}))
    rows = table[table["zone"].notna()].groupby("zone")["verdict"].agg(set).to_dict()
    assert rows == {"b": {"inside"}, "c": {"inside"}, "new": {"unknown"}}
    assert "over 2 of 4 zones" in pooled(table).iloc[0]["says"]
    says = table.loc[table["zone"] == "new", "says"].iloc[0]
    assert says.startswith("unknown: 0 date(s) of the season, 3 needed, and 24 that share less")


def test_of_many_fields_the_one_that_changed_is_listed() -> None:
    rng = np.random.default_rng(5)
    fields = [f"field {index}" for index in range(30)]
    days = [*summers(YEARS), NEW]
    crop = {(day, field): 0.4 + rng.normal(0, 0.01) for day in days for field in fields}
    table = season_table(zones_of(crop | {(NEW, "field 7"): 0.8}))
    outside = table[table["verdict"] == "outside"]
    assert set(outside["zone"]) == {"field 7"}
    assert "crop 80.0% in field 7 on 2025-06-15" in outside["says"].str.cat()
    assert verdicts(table)["crop"] == "inside"


def test_of_many_stable_fields_hardly_any_is_listed() -> None:
    rng = np.random.default_rng(9)
    days = [*summers(range(2022, 2025), [(6, 1), (6, 25)]), NEW]
    listed = 0
    for _ in range(10):
        crop = {(day, f"field {index}"): 0.4 + rng.normal(0, 0.03) for day in days for index in range(100)}
        table = season_table(zones_of(crop), SeasonRule(tolerance=0))
        listed += bool((table["zone"].notna() & (table["verdict"] == "outside")).any())
    assert listed <= stats.binom.isf(0.01, 10, 0.05)


# ---------------------------------------------------------------- no verdict


@pytest.mark.parametrize(
    ("days", "says"),
    [
        ([], "unknown: 0 date(s) of the season, 3 needed; crop on 2025-06-15"),
        ([date(2023, 6, 1), date(2024, 6, 1)], "unknown: 2 date(s) of the season, 3 needed; crop on 2025-06-15"),
        (summers([2024])[:3], "unknown: 3 dates of the season in 1 year(s), 2 needed; crop on 2025-06-15"),
        (summers([2023, 2024], [(1, 1), (11, 1)]), "unknown: 0 date(s) of the season, 3 needed; crop on 2025-06-15"),
    ],
)
def test_too_short_a_history_has_no_verdict_and_says_what_is_missing(days: list[date], says: str) -> None:
    zones = zones_of({(day, "a"): 0.1 for day in days} | {(NEW, "a"): 0.9})
    table = season_table(zones)
    assert set(table["verdict"]) == {"unknown"}
    crop = pooled(table).set_index("class_name").loc["crop"]
    assert crop["says"] == says
    assert np.isnan([crop["low"], crop["high"], crop["distance"]]).all()
    assert {alarm.verdict for alarm in season_alarms(zones)} == {"unknown"}


def test_a_newest_date_without_a_pixel_has_no_verdict() -> None:
    clouded = pd.DataFrame(zone_rows([], day=NEW, zone="a", pixels=0))
    alarms = season_alarms(pd.concat([zones_of(HISTORY), clouded]))
    assert [alarm.says for alarm in alarms] == ["unknown: no classified pixel on 2025-06-15"] * 2


def test_no_dates_are_no_verdict_and_rows_without_one_are_counted() -> None:
    assert [one.says for one in season_alarms(zones_of({}).reindex(columns=[*ZONE_COLUMNS]))] == [
        "unknown: no zone has a date"
    ] * 2
    dated, undated = zones_of(HISTORY | {(NEW, "a"): 0.4}), pd.DataFrame(zone_rows([0.4], day=None))
    assert (
        "; 2 row(s) of zones without a date are left out" in season_table(pd.concat([dated, undated])).iloc[0]["says"]
    )
    assert "without a date" in season_alarms(undated)[0].says


def test_a_class_without_confidence_leaves_the_confidence_unknown_and_no_share() -> None:
    zones = zones_of(HISTORY | {(NEW, zone): 0.4 for zone in "abc"})
    zones.loc[(zones["date"] == NEW) & (zones["class"] == "crop"), "confidence"] = None
    table = season_table(zones)
    assert verdicts(table) == {"soil": "inside", "crop": "inside", "confidence": "unknown"}
    assert pooled(table).iloc[-1]["says"] == "unknown: no confidence was counted on 2025-06-15"


# ---------------------------------------------------------------- the rows


def test_several_new_dates_are_compared_with_what_was_before_all_of_them() -> None:
    new = [NEW - timedelta(days=5), NEW]
    zones = zones_of(HISTORY | {(day, "a"): 0.9 for day in new})
    assert set(season_table(zones)["date"]) == {NEW}
    table = pooled(season_table(zones, SeasonRule(newest_days=6)))
    assert set(table["date"]) == set(new)
    assert table.loc[table["class_name"] == "crop", ["dates", "verdict"]].to_numpy().tolist() == [[24, "outside"]] * 2


def test_the_order_of_rows_and_the_type_of_dates_change_nothing() -> None:
    zones = stable(np.random.default_rng(0), [*summers(YEARS), NEW])
    table = season_table(zones)
    assert list(table.columns) == list(SEASON_COLUMNS)
    shuffled = zones.sample(frac=1, random_state=0).assign(date=lambda rows: pd.to_datetime(rows["date"]))
    pd.testing.assert_frame_equal(season_table(shuffled), table)


def test_a_zone_that_is_there_twice_on_a_date_is_refused() -> None:
    zones = zones_of(HISTORY)
    again = pd.DataFrame(zone_rows([0.5], day=date(2024, 6, 8), zone="b", pixels=9_000))
    for twice in (again, again.assign(valid_pixels=10_000), zones.iloc[:1]):
        with pytest.raises(ConfigError, match=r"zone '[ab]' is there twice on 202[14]-0[56]-08"):
            season_table(pd.concat([zones, twice]))


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ConfigError, match="no column 'valid_pixels'"):
        season_alarms(zones_of(HISTORY).drop(columns="valid_pixels"))


@pytest.mark.parametrize("wrong", [{"window_days": 183}, {"min_dates": 1}, {"tolerance": 5}, {"level": 1}, {"days": 3}])
def test_a_rule_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SeasonRule.model_validate(wrong)
