import logging
from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from pipeline.config import EvaluateConfig
from pipeline.errors import ConfigError, StorageError
from pipeline.evaluate import output, setting
from pipeline.evaluate.zones_history import zones_history
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.seasons import summers, write_zones, zone_rows, zones_of

RUNS = ("run=000000000001", "run=000000000002")
EARLY, LATE = (zones_of({(day, "a"): 0.4 for day in summers([year])}) for year in (2023, 2024))


def runs(tmp_path: Path, *tables: pd.DataFrame) -> Url:
    """An output folder with a run for each table, below which other objects lie too."""
    output_url = Url(str(tmp_path / "out"))
    for name, rows in zip(RUNS, tables, strict=False):
        write_zones(output_url / name / "zones.parquet", rows)
        objects.put(output_url / name / "_SUCCESS", b"")
    return output_url


def test_an_output_its_runs_and_their_files_are_the_same_history(tmp_path: Path) -> None:
    output_url = runs(tmp_path, EARLY, LATE)
    whole = zones_history([output_url])
    assert len(whole) == len(EARLY) + len(LATE)
    assert set(whole["date"]) == set(EARLY["date"]) | set(LATE["date"])
    pd.testing.assert_frame_equal(zones_history([output_url / name for name in RUNS]), whole)
    pd.testing.assert_frame_equal(zones_history([output_url / name / "zones.parquet" for name in RUNS]), whole)
    pd.testing.assert_frame_equal(zones_history([output_url, output_url / RUNS[0]]), whole)  # named twice, read once


def test_rows_without_class_or_date_are_kept(tmp_path: Path) -> None:
    empty = pd.DataFrame(zone_rows([], day=None, zone="a", pixels=0))
    rows = zones_history([runs(tmp_path, pd.concat([EARLY, empty]), empty)])
    assert rows["date"].isna().sum() == 2
    assert rows["class"].isna().sum() == 2


def test_a_run_without_zones_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output_url = runs(tmp_path, EARLY)
    objects.put(output_url / "run=00000000000a/_SUCCESS", b"")
    with caplog.at_level(logging.WARNING):
        assert len(zones_history([output_url])) == len(EARLY)
    assert "1 run(s) in" in caplog.text
    assert "run=00000000000a" in caplog.text


def test_places_without_zones_are_named(tmp_path: Path) -> None:
    output_url = runs(tmp_path, EARLY)
    objects.delete(output_url / RUNS[0] / "zones.parquet")
    with pytest.raises(ConfigError, match=r"no zones in .*out"):
        zones_history([output_url])
    with pytest.raises(ConfigError, match=f"{RUNS[0]} has no zones.parquet"):
        zones_history([output_url / RUNS[0]])
    with pytest.raises(StorageError, match=r"gone\.parquet is missing"):
        zones_history([output_url / "gone.parquet"])


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "column", "type"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    output_url = runs(tmp_path, EARLY, LATE)
    path = Path((output_url / RUNS[1] / "zones.parquet").raw)
    if damage == "column":
        write_zones(Url(str(path)), LATE.drop(columns="valid_pixels"))
    elif damage == "type":
        write_zones(Url(str(path)), LATE.assign(pixels="many"))
    else:
        path.write_bytes({"cut": path.read_bytes()[:-30], "empty": b"", "text": b"zones"}[damage])
    with pytest.raises(StorageError, match=f"{RUNS[1]}/zones.parquet is damaged") as refused:
        zones_history([output_url])
    assert damage != "column" or "no field 'valid_pixels'" in str(refused.value)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (LATE.replace({"class": {"crop": "maize"}}), "class 1 is 'crop' in .*, and 'maize' in "),
        (LATE.assign(class_id=LATE["class_id"] + 4), "class 'soil' is 0 in .*, and 4 in "),
    ],
    ids=["another name", "another id"],
)
def test_runs_of_other_class_maps_are_refused(tmp_path: Path, other: pd.DataFrame, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        zones_history([runs(tmp_path, EARLY, other)])


def test_two_runs_of_one_date_are_refused_with_both_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"zone 'a' on 2023-05-08 is in .*{RUNS[0]}.* and in .*{RUNS[1]}"):
        zones_history([runs(tmp_path, EARLY, pd.concat([LATE, EARLY.iloc[:1]]))])


def test_runs_of_other_zones_on_one_date_are_one_history(tmp_path: Path) -> None:
    rows = zones_history([runs(tmp_path, EARLY, EARLY.assign(zone="b"))])
    assert rows.groupby("zone").size().to_dict() == {"a": len(EARLY), "b": len(EARLY)}


# ---------------------------------------------------------------- what an evaluation does with them


def config(tmp_path: Path, gates: str) -> EvaluateConfig:
    (tmp_path / "gates.yaml").write_text(gates)
    return EvaluateConfig(source=("in",), output="out", checkpoint="farmland", gates=str(tmp_path / "gates.yaml"))


def test_an_evaluation_measures_the_zones_that_its_gates_name(tmp_path: Path) -> None:
    new = zones_of({(date(2025, 6, 15), "a"): 0.8})
    output_url = runs(tmp_path, EARLY, pd.concat([LATE, new]))
    season = setting.measure_season(config(tmp_path, f"season: {{zones: '{output_url.raw}', window_days: 20}}"))
    assert season is not None
    assert season["dates"].max() == 4  # within 20 days of the 15th of June in two years
    assert output.season_facts(season) == {
        "date": "2025-06-15",
        "inside": 1,
        "outside": 2,
        "unknown": 0,
        "zones_outside": 1,
        "zones_unknown": 0,
    }
    assert len(output.notable_seasons(season)) == 5
    assert setting.measure_season(config(tmp_path, "min_images: 2")) is None
