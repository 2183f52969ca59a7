import re
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from pipeline.classes import ClassInfo, ClassMap
from pipeline.evaluate import trend
from pipeline.evaluate.gate import apply_gates
from pipeline.evaluate.history import HistoryEntry, history_entries
from pipeline.evaluate.trend import group_series
from pipeline.score.drift import measure_drift, reference_of
from pipeline.score.metrics import Interval
from tests.pipeline.evaluate.test_history import BAD, GATES, NOON
from tests.support.evaluations import NAMES, evaluation, without_class

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>$x_1$"


def entries(
    day: int, *, images: int = 25, source: str = "s3://fields/val", gates=GATES, **changes: object
) -> list[HistoryEntry]:
    now = evaluation(images, network=day, **changes)
    drift = measure_drift(now.images, {"reference": reference_of(evaluation(30, seed=1).images)}, NAMES)
    time = NOON + timedelta(days=day)
    verdict = apply_gates(now, gates)
    return history_entries(now, time=time, command="", source=source, gates=gates, verdict=verdict, drift=drift)


DAYS = [*entries(0), *entries(1), *entries(2, gates=BAD)]


def test_the_page_shows_scores_plots_and_why_the_gate_failed() -> None:
    page = trend.render_trend(DAYS)
    value = DAYS[-1].metrics["mean_iou"].value
    assert "<h1>3 evaluations</h1>" in page
    assert f"<dd>{value * 100:.2f}<small>" in page
    assert page.count('<svg role="img"') == 5
    assert "crop floor: " in page
    assert "gate failed" in page


def test_nothing_on_the_page_lies_outside_it_or_shares_an_id() -> None:
    page = trend.render_trend([*DAYS, *entries(3, source="s3://fields/other")])
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert len(page) < 1_000_000


def test_hostile_names_are_only_text() -> None:
    bad = ClassMap(name=HOSTILE, classes=[ClassInfo(name=HOSTILE + name, colour=(0, 0, 0)) for name in NAMES])
    changes = {"classes": bad, "checkpoint": HOSTILE, "name": HOSTILE}
    page = trend.render_trend(entries(0, source=HOSTILE, gates=GATES.model_copy(update={"floors": {}}), **changes))
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


def test_only_what_can_be_compared_is_one_series() -> None:
    mixed = [*DAYS, *entries(3, source="s3://other"), *entries(4, name="stride 8")]
    found = group_series(mixed)
    assert [(one.source, one.setting, len(one.judged)) for one in found] == [
        ("s3://fields/val", "stride 8", 1),
        ("s3://other", "default", 1),
        ("s3://fields/val", "default", 3),
    ]
    assert [one.answer for one in found[0].others["network"]] == ["network"]


@pytest.mark.filterwarnings("error")
def test_one_evaluation_without_anything_known_makes_a_page_too() -> None:
    page = trend.render_trend(entries(0, images=0, failed=1))
    assert page.count('<svg role="img"') == 4
    assert "<dd>–<small>percent; – to –</small></dd>" in page


def test_of_many_classes_those_that_changed_most_are_drawn() -> None:
    def wide(one: HistoryEntry, moved: float) -> HistoryEntry:
        values = np.full(150, 0.5)
        values[[7, 149]] += moved
        return replace(one, classes=[f"class {i}" for i in range(150)], iou=[Interval(v, v, v) for v in values])

    page = trend.render_trend([wide(one, 0.01 * day) for day, one in enumerate(DAYS)])
    assert len(re.findall(r">class \d+<", page)) == trend.MAX_CLASS_ROWS
    assert ">class 7<" in page
    assert ">class 149<" in page
    assert "The 40 classes that changed most, of 150." in page


def test_a_mean_over_fewer_classes_says_over_how_many() -> None:
    now = without_class(evaluation(25), "stone")
    page = trend.render_trend(history_entries(now, time=NOON, command="", source=""))
    assert page.count("over 3 of 4 classes") == 2
    assert "of 4 classes</small>" not in trend.render_trend(DAYS)
