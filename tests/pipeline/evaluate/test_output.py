import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from pipeline.config import ScoreConfig
from pipeline.evaluate import output, scoring
from pipeline.evaluate.setting import JudgedSetting
from pipeline.score.season import season_table
from pipeline.store.url import Url
from tests.support.evaluations import evaluation
from tests.support.seasons import summers, zones_of

FAILURES = [("a.jpg", "label_format", "the label a.png is RGB"), ("b.jpg", "label_format", "the label b.png is RGB")]


def test_images_without_a_score_are_logged_by_code_with_an_example_of_each(caplog: pytest.LogCaptureFixture) -> None:
    failures = [*FAILURES, ("c.jpg", "label_missing", "no label")]
    output.log_failures(replace(evaluation(7), failures=failures), limit=0.3)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "2 image(s) without a score, label_format: for example a.jpg: the label a.png is RGB" in caplog.text
    assert "1 image(s) without a score, label_missing: for example c.jpg: no label" in caplog.text


@pytest.mark.parametrize(("limit", "levels"), [(0.2, ["WARNING"]), (0.19, ["WARNING", "ERROR"])])
def test_a_share_above_the_limit_is_an_error_that_names_the_option(
    limit: float, levels: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    output.log_failures(replace(evaluation(8), failures=FAILURES), limit=limit)
    assert [record.levelname for record in caplog.records] == levels
    if len(levels) > 1:
        assert "20.0% of the images have no score, limit 19.0% (--runtime.max-failed-fraction)" in caplog.text


def test_seasons_are_in_the_line_and_in_the_file_as_plain_json(tmp_path: Path) -> None:
    past = {(day, "a"): 0.4 for day in summers([2023, 2024])}
    season = season_table(zones_of(past | {(date(2025, 6, 15), zone): 0.9 for zone in ("a", "new")}))
    one = evaluation(8)
    scores = {
        name: scoring.score_answer(answer, one.classes, (), ScoreConfig(samples=100))
        for name, answer in one.answers.items()
    }
    means = {name: scoring.summed_scores(answer, one.classes, ScoreConfig()) for name, answer in one.answers.items()}
    judged = JudgedSetting(one, scores, means, [], season, None, rows_now=0, wall_s=0)
    output.write_tables(Url(str(tmp_path)), [judged])
    (facts,) = json.loads((tmp_path / "evaluation.json").read_text()).values()
    said = [(row["zone"], row["class_name"], row["verdict"]) for row in facts["season"]]
    everywhere = [(None, "crop", "outside"), (None, "soil", "outside"), (None, None, "inside")]
    assert said == [*everywhere, ("a", "crop", "outside"), ("a", "soil", "outside")]
    assert facts["season"][0]["date"] == "2025-06-15"
    line = json.loads(json.dumps(output.headline(judged), allow_nan=False))
    assert line["season"] == {
        "date": "2025-06-15",
        "inside": 1,
        "outside": 2,
        "unknown": 0,
        "zones_outside": 1,
        "zones_unknown": 1,
    }
    assert output.headline(replace(judged, season=None))["season"] is None
