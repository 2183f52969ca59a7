"""Seasons: class shares and confidence of the newest dates against the history of their season.

In: rows of `zones.parquet` of one or many runs. Out: a table with a verdict for each share and for the confidence, over
all zones together and for each zone; and its alarms. Nothing is read here.

The season of a date: earlier dates within some days of its anniversaries. A value is outside when it differs from the
season's mean by more than a tolerance plus half a prediction interval for one new value (Hahn and Meeker 1991,
"Statistical intervals", Wiley, ch. 4). Dates of one year resemble each other, so the interval has two components, years
and dates within a year: see `_predict`. Shares are compared without a logit, on whose scale a class that hardly ever
occurs varies so much that it could rise far unnoticed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from pipeline.errors import ConfigError
from pipeline.records import Bool, Float64, Int64

SeasonQuantity = Literal["class_shares", "confidence"]
SEASON_QUANTITIES: tuple[SeasonQuantity, ...] = get_args(SeasonQuantity)
SeasonVerdict = Literal["inside", "outside", "unknown"]

ZONE_COLUMNS = ("zone", "date", "class", "pixels", "confidence", "valid_pixels")
"""Columns of `zones.parquet` that the season is measured from."""
SEASON_COLUMNS = (
    *("date", "zone", "quantity", "class_name", "value", "expected", "low", "high", "distance"),
    *("dates", "years", "left_out", "zones", "pixels", "verdict", "says"),
)
"""Columns of `season_table`."""
MIN_SHARED = 0.5
"""Least share of pixels that two dates must share to be compared, see `_shared`."""
MAX_FREEDOM_PER_YEAR = 3
"""Most degrees of freedom per year beyond the first.

Satterthwaite's degrees are too many where a few years happen to be alike. Simulated with 2 years of 18 dates, which
differ between years as much as within one: 1.03 % false alarms for 0.17 % without this limit, below 0.01 % with it.
Where years differ three times as much as dates or more, false alarms are up to 3 times as many as stated after 3 years,
6 times after 2 years.
"""
_DIGITS = 12
"""Decimals that count: sums of equal shares differ in later ones."""


class SeasonRule(BaseModel):
    """What the season of a date is, and how far a value may lie from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_days: int = Field(
        45, ge=0, le=182, description="Most days between a date and the nearest anniversary of the new date."
    )
    min_dates: int = Field(3, ge=2, description="Least number of dates in the season; with fewer there is no verdict.")
    min_years: int = Field(
        2, ge=1, description="Least number of years they are from; 1 takes no account of differences between years."
    )
    tolerance: float = Field(
        0.05, ge=0, le=1, description="Difference from the season's mean that is never an alarm, 0 to 1."
    )
    level: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Probability of no false alarm over all zones together; of the alarms of single zones, at most "
        "1 - level are chance on average.",
    )
    newest_days: int = Field(
        1, ge=1, le=366, description="Days, up to the newest date, whose dates are checked against all before them."
    )


@dataclass(frozen=True, slots=True)
class SeasonAlarm:
    """A value that is not inside the history of its season."""

    date: date | None
    """None when no row has a date."""
    zone: str | None
    """None for all zones together."""
    quantity: SeasonQuantity
    class_name: str | None
    """Class of a share; None for the confidence, and when no share can be told."""
    verdict: Literal["outside", "unknown"]
    """`unknown`: the history does not suffice for a verdict."""
    value: float
    """Share or mean confidence, 0 to 1; NaN when there is none."""
    low: float
    """Lowest value inside the season, 0 to 1; NaN when unknown."""
    high: float
    says: str
    """Value, limits and what they rest on, or the reason for no verdict, in words."""


def season_alarms(zones: pd.DataFrame, rule: SeasonRule | None = None) -> list[SeasonAlarm]:
    """Rows of `season_table` that are not `inside`: outside, and those without a verdict. Arguments as there."""
    table = season_table(zones, rule)
    fields = [name for name in SeasonAlarm.__slots__ if name in table]
    found = table.loc[table["verdict"] != "inside", fields]
    return [SeasonAlarm(**dict(zip(fields, row, strict=True))) for row in found.itertuples(index=False, name=None)]


def season_table(zones: pd.DataFrame, rule: SeasonRule | None = None) -> pd.DataFrame:
    """Verdict for each share and for the confidence on the newest dates, over all zones and for each zone.

    False alarms: if nothing has changed, a value over all zones is outside with a probability of at most 1 - level for
    all dates, classes and the confidence together (Bonferroni). Of the alarms of single zones, a share of at most
    1 - level is chance on average (Benjamini and Hochberg 1995, "Controlling the false discovery rate", J. Royal
    Statistical Society B 57(1)). Both hold for values with a normal distribution; see
    `MAX_FREEDOM_PER_YEAR`.

    Args:
        zones: rows of `zones.parquet`, of any number of runs: `ZONE_COLUMNS`. Rows without a date are left out.
        rule: None takes the defaults.

    Returns:
        a row for each value, those over all zones first, with `SEASON_COLUMNS`: `zone` is None for all zones together,
        `class_name` for the confidence; `expected` is the mean of the season, `distance` that of the value from it, 1
        at the limit; NaN when unknown. `dates` and `years` are those compared, `left_out` the dates that share too few
        pixels, `zones` and `pixels` (mean over the dates) what the comparison rests on.

    Raises:
        ConfigError: a column is missing, or a zone is there twice on one date.
    """
    rule = rule or SeasonRule()
    cover = _cover(zones)
    frames = [_no_values(None)]
    if len(cover.days):
        first_new = cover.days.max() - (rule.newest_days - 1)
        frames = [
            frame for day in cover.days[cover.days >= first_new] for frame in _compare(cover, day, first_new, rule)
        ]
    table = pd.concat(frames)
    pooled = table["zone"].isna()
    table = pd.concat(
        [_judge(table[pooled], rule, cut=_bonferroni), _judge(table[~pooled], rule, cut=_false_discovery)]
    )
    undated = f"; {cover.undated} row(s) of zones without a date are left out" if cover.undated else ""
    said = [_says(row, rule, cover.zones) + (undated if row.zone is None else "") for row in table.itertuples()]
    return table.assign(says=said).reset_index(drop=True)[list(SEASON_COLUMNS)]


# ---------------------------------------------------------------- what the zones cover


@dataclass(frozen=True, slots=True)
class _Cover:
    """Zones on their dates, as far as they have pixels: M rows."""

    days: Any
    """(D,) datetime64[D], sorted: all dates, also those without a pixel."""
    day_m: Any
    zone_m: Any
    """(M,) names."""
    valid_m: Int64
    value_mq: Float64
    """(M, Q) share of each class, then the mean confidence; NaN where that was not counted."""
    classes: list[str]
    zones: int
    """Zones with a date."""
    undated: int
    """Rows without a date."""


def _cover(zones: pd.DataFrame) -> _Cover:
    if missing := [name for name in ZONE_COLUMNS if name not in zones]:
        raise ConfigError(f"the rows of zones have no column {missing[0]!r}", hint=f"needed: {', '.join(ZONE_COLUMNS)}")
    dated = zones.loc[zones["date"].notna(), list(ZONE_COLUMNS)]
    dated = dated.assign(date=pd.to_datetime(dated["date"]).to_numpy().astype("datetime64[D]").astype("datetime64[s]"))
    each = dated.groupby(["date", "zone"], sort=True).agg(
        valid=("valid_pixels", "first"), versions=("valid_pixels", "nunique"), pixels=("pixels", "sum")
    )
    twice = (each["versions"] > 1) | (each["pixels"] > each["valid"])
    repeated = dated.loc[dated.duplicated(["date", "zone", "class"]), ["date", "zone"]]
    twice |= each.index.isin(pd.MultiIndex.from_frame(repeated))
    if twice.any():
        day, zone = each.index[twice][0]
        hint = "give the rows of one run for each date"
        raise ConfigError(f"zone {zone!r} is there twice on {day:%Y-%m-%d}: two runs of one date?", hint=hint)
    classed = dated[dated["class"].notna()]
    shares = classed.pivot(index=["date", "zone"], columns="class", values="pixels").reindex(each.index).fillna(0)
    seen = each["valid"].to_numpy() > 0
    valid_m = each["valid"].to_numpy(np.int64)[seen]
    share_mk = shares.to_numpy(np.float64)[seen] / valid_m[:, None]
    confidence_m = _confidence(classed).reindex(each.index).to_numpy(np.float64)[seen]
    day_all = each.index.get_level_values("date").to_numpy().astype("datetime64[D]")
    return _Cover(
        days=np.unique(day_all),
        day_m=day_all[seen],
        zone_m=each.index.get_level_values("zone").to_numpy()[seen],
        valid_m=valid_m,
        value_mq=np.column_stack([share_mk, confidence_m]),
        classes=[str(name) for name in shares.columns],
        zones=dated["zone"].nunique(),
        undated=len(zones) - len(dated),
    )


def _confidence(classed: pd.DataFrame) -> "pd.Series[float]":
    """Mean over the pixels of a zone on a date; NaN where a class has none, since the mean would be of the others."""
    counted = classed[classed["pixels"] > 0]
    sums = pd.DataFrame(
        {
            "date": counted["date"],
            "zone": counted["zone"],
            "pixels": counted["pixels"].astype(np.float64),
            "sum": (counted["pixels"] * counted["confidence"]).astype(np.float64),
            "missing": counted["confidence"].isna(),
        }
    )
    totals = sums.groupby(["date", "zone"]).sum()
    return (totals["sum"] / totals["pixels"]).where(totals["missing"] == 0)


# ---------------------------------------------------------------- one date and its season


def seasons_from(dates: Any, day: Any, window_days: int, *, before: Any) -> Int64:
    """Year of the anniversary of a day that is next to each date, (N,); -1 for a date that is not of the day's season.

    Args:
        dates: (N,) datetime64[D], at least one.
        day: datetime64[D]. The 29th of February has its anniversaries on the 28th in other years.
        window_days: most days between a date and the anniversary, 0 to 182.
        before: datetime64[D]; later dates, and this one, are of no season.
    """
    first, last = dates.min().item().year, dates.max().item().year
    years = np.arange(first - 1, last + 2)
    anniversaries = np.array([_in_year(day.item(), year) for year in years.tolist()], "datetime64[D]")
    away_na = np.abs((dates[:, None] - anniversaries).astype(np.int64))
    of_season = (away_na.min(axis=1) <= window_days) & (dates < before)
    found: Int64 = np.where(of_season, years[away_na.argmin(axis=1)], -1)
    return found


def _in_year(day: date, year: int) -> date:
    leap_day = (day.month, day.day) == (2, 29)
    return date(year, 2, 28) if leap_day else day.replace(year=year)


def _compare(cover: _Cover, day: Any, first_new: Any, rule: SeasonRule) -> list[pd.DataFrame]:
    """Values of a date beside what its season predicts: a row for each over all zones, then for each zone."""
    now = cover.day_m == day
    if not now.any():
        return [_no_values(day)]
    zones, valid_z, value_zq = cover.zone_m[now], cover.valid_m[now], cover.value_mq[now]
    pair = _pair(cover, zones, valid_z, value_zq, seasons_from(cover.day_m, day, rule.window_days, before=first_new))
    known_zq = np.where(np.isnan(value_zq), 0, valid_z[:, None])
    total_q = known_zq.sum(axis=0)
    value_q = np.where(total_q > 0, (known_zq * np.nan_to_num(value_zq)).sum(axis=0) / np.maximum(total_q, 1), np.nan)
    names = [*cover.classes, None]
    of_zones = np.repeat(zones, len(names)).tolist()
    return [
        _rows(day, [None] * len(names), names, value_q, seasonal=len(pair.year_h), predicted=_pooled(pair)),
        _rows(
            day, of_zones, names * len(zones), value_zq.ravel(), seasonal=len(pair.year_h), predicted=_of_zones(pair)
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Pair:
    """The H dates of a season beside the new date, for each of its Z zones and Q values."""

    year_h: Int64
    weight_hzq: Float64
    """Fewer valid pixels of both dates; 0 where either has no value."""
    change_hzq: Float64
    """Value of the season minus the new one; 0 where either has none."""
    most_hz: Int64
    """More valid pixels of both dates."""


def _pair(cover: _Cover, zones: Any, valid_z: Int64, value_zq: Float64, year_m: Int64) -> _Pair:
    past, first, date_of = np.unique(cover.day_m[year_m >= 0], return_index=True, return_inverse=True)
    zone_of = pd.Index(zones).get_indexer(cover.zone_m[year_m >= 0])
    at = date_of[zone_of >= 0], zone_of[zone_of >= 0]
    valid_hz = np.zeros((len(past), len(zones)), np.int64)
    value_hzq = np.full((len(past), *value_zq.shape), np.nan)
    valid_hz[at] = cover.valid_m[year_m >= 0][zone_of >= 0]
    value_hzq[at] = cover.value_mq[year_m >= 0][zone_of >= 0]
    both_hzq = ~np.isnan(value_hzq - value_zq)
    return _Pair(
        year_h=year_m[year_m >= 0][first],
        weight_hzq=np.where(both_hzq, np.minimum(valid_hz, valid_z)[:, :, None], 0).astype(np.float64),
        change_hzq=np.where(both_hzq, value_hzq - value_zq, 0),
        most_hz=np.maximum(valid_hz, valid_z),
    )


def _pooled(pair: _Pair) -> dict[str, Any]:
    """All zones together, (Q,): each date is compared over the zones it shares with the new one, with equal weights.

    A zone weighs by the fewer valid pixels of both dates (direct standardisation), so that zones without data on one of
    them, or half under clouds, change no share.
    """
    shared_hq = pair.weight_hzq.sum(axis=1)
    used_hq = _shared(shared_hq, pair.most_hz.sum(axis=1)[:, None])
    change_hq = (pair.weight_hzq * pair.change_hzq).sum(axis=1) / np.maximum(shared_hq, 1)
    zones = ((pair.weight_hzq > 0) & used_hq[:, None]).any(axis=0).sum(axis=0)
    pixels = _mean_pixels(shared_hq, used_hq)
    return _predict(change_hq, used_hq, pair.year_h) | {"zones": zones, "pixels": pixels}


def _of_zones(pair: _Pair) -> dict[str, Any]:
    """Each zone on its own, (Z * Q,)."""
    dates, zones, values = pair.weight_hzq.shape
    flat = (dates, zones * values)
    used_hn = _shared(pair.weight_hzq, pair.most_hz[:, :, None]).reshape(flat)
    pixels = _mean_pixels(pair.weight_hzq.reshape(flat), used_hn)
    compared = {"zones": (pixels > 0).astype(np.int64), "pixels": pixels}
    return _predict(pair.change_hzq.reshape(flat), used_hn, pair.year_h) | compared


def _shared(shared: Float64, most: Int64) -> Bool:
    """True where two dates share enough: the weighted Jaccard index of their pixels by zone is `MIN_SHARED` or more."""
    enough: Bool = (shared > 0) & (shared >= MIN_SHARED * most)
    return enough


def _mean_pixels(shared_hn: Float64, used_hn: Bool) -> Int64:
    mean: Float64 = (shared_hn * used_hn).sum(axis=0) / np.maximum(used_hn.sum(axis=0), 1)
    return np.rint(mean).astype(np.int64)


def _predict(change_hn: Float64, used_hn: Bool, year_h: Int64) -> dict[str, Any]:
    """Mean of the season and standard error of one new value of another year, (N,), with its degrees of freedom.

    Model: value = mean + year + date, years and dates independent. With n_g dates in year g of G, m the harmonic mean
    of all n_g, B the variance of the means of the years and W that within years, the variance of a new value minus the
    mean of these means is estimated without bias by (1 + 1/G) B + (1 - 1/m) W. B is close to a chi-square (Thomas and
    Hultquist 1978, "Interval estimation for the unbalanced case of the one-way random effects model", Annals of
    Statistics 6(3)), and the sum has the degrees of freedom of Satterthwaite 1946, "An approximate distribution of
    estimates of variance components", Biometrics Bulletin 2(6). With one date in each year this is Student's interval
    with G - 1 degrees; with one year, Student's interval over its dates.

    Args:
        change_hn: (H, N) values of the season minus the new value.
        used_hn: (H, N), False for values that do not count.
        year_h: (H,).
    """
    _, year_of_h = np.unique(year_h, return_inverse=True)
    of_year_gh = np.eye(year_of_h.max(initial=-1) + 1)[year_of_h].T
    n_gn = of_year_gh @ used_hn
    mean_gn = of_year_gh @ (used_hn * change_hn) / np.maximum(n_gn, 1)
    dates, years = n_gn.sum(axis=0), (n_gn > 0).sum(axis=0)
    more_years, more_dates = np.maximum(years - 1, 1), np.maximum(dates - years, 1)
    centre = mean_gn.sum(axis=0) / np.maximum(years, 1)
    between = ((n_gn > 0) * (mean_gn - centre) ** 2).sum(axis=0) / more_years
    within = (used_hn * (change_hn - mean_gn[year_of_h]) ** 2).sum(axis=0) / more_dates
    inverse = ((n_gn > 0) / np.maximum(n_gn, 1)).sum(axis=0) / np.maximum(years, 1)
    of_years = np.where(years > 1, (1 + 1 / np.maximum(years, 1)) * between, 0)
    of_dates = np.where(years > 1, 1 - inverse, 1 + 1 / np.maximum(dates, 1)) * within
    doubt = of_years**2 / more_years + of_dates**2 / more_dates
    freedom = np.divide((of_years + of_dates) ** 2, doubt, out=np.ones_like(doubt), where=doubt > 0)
    freedom = np.where(years > 1, np.minimum(freedom, MAX_FREEDOM_PER_YEAR * (years - 1)), freedom)
    counts = {"dates": dates.astype(np.int64), "years": years}
    moments = {"change": centre.round(_DIGITS), "spread": np.sqrt(of_years + of_dates).round(_DIGITS)}
    return counts | moments | {"freedom": freedom}


def _rows(
    day: Any, zones: list[Any], names: list[Any], value_n: Float64, *, seasonal: int, predicted: dict[str, Any]
) -> pd.DataFrame:
    named = {
        "date": [day.item()] * len(zones),
        "seen": [True] * len(zones),
        "zone": pd.Series(zones, dtype=object),
        "quantity": ["confidence" if name is None else "class_shares" for name in names],
        "class_name": pd.Series(names, dtype=object),
    }
    return pd.DataFrame(named | {"value": value_n} | predicted | {"left_out": seasonal - predicted["dates"]})


def _no_values(day: Any) -> pd.DataFrame:
    """Rows of a date on which no zone has a classified pixel, or of no date at all (None)."""
    counts = dict.fromkeys(("dates", "years", "zones", "pixels", "left_out"), 0)
    named = {"date": [None if day is None else day.item()] * 2, "seen": False, "quantity": list(SEASON_QUANTITIES)}
    nobody = {name: pd.Series([None, None], dtype=object) for name in ("zone", "class_name")}
    return pd.DataFrame(named | nobody | {"value": np.nan, "change": 0.0, "spread": 0.0, "freedom": 1.0} | counts)


# ---------------------------------------------------------------- verdicts


def _judge(table: pd.DataFrame, rule: SeasonRule, *, cut: Callable[[Float64, float], float]) -> pd.DataFrame:
    """Add limits, distance and verdict; `cut` is the p-value below which the known ones are outside."""
    known = ((table["dates"] >= rule.min_dates) & (table["years"] >= rule.min_years)).to_numpy()
    change, spread, freedom = (table[name].to_numpy(np.float64) for name in ("change", "spread", "freedom"))
    beyond = np.maximum(np.abs(change) - rule.tolerance, 0)
    ratio = np.divide(beyond, spread, out=np.where(beyond > 0, np.inf, 0.0), where=spread > 0)
    p_values = np.asarray(2 * stats.t.sf(ratio, freedom))
    chance = cut(p_values[known], 1 - rule.level)
    allowed = rule.tolerance + np.where(spread > 0, stats.t.isf(chance / 2, freedom) * spread, 0)
    distance = np.divide(np.abs(change), allowed, out=np.where(change != 0, np.inf, 0.0), where=allowed > 0)
    expected = np.where(known, table["value"].to_numpy(np.float64) + change, np.nan)
    return table.assign(
        expected=expected,
        low=np.maximum(expected - allowed, 0),
        high=np.minimum(expected + allowed, 1),
        distance=np.where(known, distance, np.nan),
        verdict=np.where(known, np.where(distance > 1, "outside", "inside"), "unknown"),
    )


def _bonferroni(p_values: Float64, error: float) -> float:
    return error / max(len(p_values), 1)


def _false_discovery(p_values: Float64, error: float) -> float:
    """Largest step of Benjamini and Hochberg's procedure that a p-value meets; the first step where none does."""
    steps = error * np.arange(1, len(p_values) + 1) / max(len(p_values), 1)
    met = steps[np.sort(p_values) <= steps]
    return float(met[-1]) if len(met) else _bonferroni(p_values, error)


def _says(row: Any, rule: SeasonRule, zones: int) -> str:
    """Value, limits and what they rest on, or why there is no verdict; `zones` are there in all."""
    if row.date is None:
        return "unknown: no zone has a date"
    what = row.class_name or ("confidence" if row.quantity == "confidence" else "classes")
    place = f"on {row.date}" if row.zone is None else f"in {row.zone} on {row.date}"
    if np.isnan(row.value):
        return f"unknown: {'no confidence was counted' if row.seen else 'no classified pixel'} {place}"
    few = f", and {row.left_out} that share less than {MIN_SHARED:.0%} of the pixels" if row.left_out else ""
    if row.dates < rule.min_dates:
        return f"unknown: {row.dates} date(s) of the season, {rule.min_dates} needed{few}; {what} {place}"
    by = f"{row.dates} dates of the season in {row.years} year(s)"
    if row.years < rule.min_years:
        return f"unknown: {by}, {rule.min_years} needed{few}; {what} {place}"
    limits = f"{row.value:.1%} {place}, {row.low:.1%} to {row.high:.1%} by {by}{few}"
    of = f"{row.zones} of {zones} zones and " if row.zone is None else ""
    return f"{what} {limits}; over {of}{row.pixels:,} pixels"
