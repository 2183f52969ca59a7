"""Photos with GPS from end to end, without Ray: rows with positions, and their points on a map."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import pandas as pd
import pytest

from pipeline.run import folder
from tests.support import gps
from tests.support.drivers import QUICK, SMALL_PARTS, Outcome, flags_for, forked, rows_of
from tests.support.forked import ForkServer

Run = Callable[..., Outcome]
FIXES = {f"flight/{index}.jpg": (7.0 + index / 1000, 51.0, 100.0 + index) for index in range(6)}


@pytest.fixture(scope="module")
def segment(forks: ForkServer) -> Run:
    """Runs the job to its end, small and quick, in a process of its own and without Ray."""

    def run(*flags: str, **how: Any) -> Outcome:
        return forked(forks, *flags, *QUICK, *SMALL_PARTS, **how)

    return run


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    """Six photos of a flight, one of a camera without a fix and one damaged file."""
    source = tmp_path / "in"
    (source / "flight").mkdir(parents=True)
    for name, fix in FIXES.items():
        (source / name).write_bytes(gps.photo(gps.fields(*fix), size_px=96, orientation=6))
    (source / "indoors.jpg").write_bytes(gps.photo(gps.fields(0, 0), size_px=96))
    (source / "damaged.jpg").write_bytes(gps.photo(gps.fields(7, 51))[:400])
    return source


def test_a_survey_is_a_layer_of_points_that_grows_with_it(survey: Path, segment: Run, tmp_path: Path) -> None:
    flags = [*flags_for(survey, tmp_path / "out"), "--runtime.max-failed-fraction", "1"]
    outcome = segment(*flags)
    assert outcome.status == 0, outcome.log
    assert {name: outcome.summary[name] for name in ("ok", "points", "without_position")} == {
        **{"ok": 7, "points": 6},
        "without_position": 1,
    }
    assert f"6 image(s) with a position, 1 without: {outcome.run / folder.POINTS}" in outcome.log
    rows = rows_of(outcome).set_index("key")
    assert rows.loc["flight/3.jpg", ["longitude", "latitude", "altitude", "orientation"]].tolist() == [
        7.003,
        51,
        103,
        6,
    ]
    assert rows.loc[["indoors.jpg", "damaged.jpg"], "longitude"].isna().all()
    assert len(pd.read_parquet(outcome.run)) == 8
    layer = geopandas.read_parquet(outcome.run / folder.POINTS).set_index("key")
    assert {key: (at.x, at.y) for key, at in layer.geometry.items()} == {key: fix[:2] for key, fix in FIXES.items()}
    assert layer["altitude"].to_dict() == {key: fix[2] for key, fix in FIXES.items()}
    assert b'attr="class"' in (outcome.run / folder.POINTS_STYLE).read_bytes()
    shares = layer.filter(like="share_")
    counted = pd.DataFrame(rows.loc[shares.index, "class_pixels"].tolist(), index=shares.index)
    assert shares.to_numpy() == pytest.approx((counted / 96**2).to_numpy(), abs=1e-6)

    before = (outcome.run / folder.POINTS).read_bytes()
    again = segment(*flags)
    assert (again.summary["rows_now"], again.summary["points"]) == (0, 6)
    (outcome.run / folder.SUCCESS).unlink()
    (outcome.run / folder.POINTS).unlink()
    segment(*flags)
    assert (outcome.run / folder.POINTS).read_bytes() == before

    (survey / "flight/later.jpg").write_bytes(gps.photo(gps.fields(7.5, 51.5), size_px=96))
    grown = segment(*flags)
    assert (grown.run, grown.summary["points"]) == (outcome.run, 7)
    assert set(geopandas.read_parquet(grown.run / folder.POINTS)["key"]) == {*FIXES, "flight/later.jpg"}


def test_of_photos_without_positions_nothing_is_said(survey: Path, segment: Run, tmp_path: Path) -> None:
    outcome = segment(*flags_for(survey / "indoors.jpg", tmp_path / "out"))
    assert outcome.status == 0, outcome.log
    assert not {"points", "without_position"} & set(outcome.summary)
    assert not (outcome.run / folder.POINTS).exists()
