import json
import re
from collections import Counter as Totals
from typing import Any

import pytest

from infra import metrics
from infra.metrics import COUNTERS, GAUGES, RunMetrics
from pipeline.run.progress import Snapshot
from tests import ROOT

DASHBOARD = json.loads((ROOT / "infra/monitoring/grafana.json").read_text())


class Recorder:
    """Counters and gauges that keep their values by name and tags, in place of those of Ray."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.tag_keys, self.values = name, tag_keys, Totals[tuple[str, ...]]()
        assert description

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0
        self.values[self._label(tags)] += value

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values[self._label(tags)] = value

    def _label(self, tags: dict[str, str]) -> tuple[str, ...]:
        assert set(tags) == set(self.tag_keys)
        return tuple(tags[key] for key in self.tag_keys)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Values of all metrics of run `0123` after `record` was called, by name."""
    monkeypatch.setattr(metrics, "Counter", Recorder)
    monkeypatch.setattr(metrics, "Gauge", Recorder)
    run = RunMetrics("0123")
    for done, seconds, failed in ((2, 1.5, {}), (2, 1.5, {"empty": 1}), (7, 4.0, {"empty": 1, "corrupt": 3})):
        run.record(
            Snapshot(time="", done=done, stage_images={"infer": done}, stage_seconds={"infer": seconds}, failed=failed)
        )
    return {name: dict(metric.values) for name, metric in {**run._counters, **run._gauges}.items()}


def test_counters_end_at_the_totals_however_many_snapshots_there_were(recorded: dict[str, Any]) -> None:
    assert recorded["atrous_images"] == {("0123", "infer"): 7}
    assert recorded["atrous_busy_seconds"] == {("0123", "infer"): 4.0}
    assert recorded["atrous_rows_failed"] == {("0123", "empty"): 1, ("0123", "corrupt"): 3}


def test_gauges_have_the_last_value_and_one_that_is_unknown_has_none(recorded: dict[str, Any]) -> None:
    assert recorded["atrous_rows_done"] == {("0123",): 7}
    assert recorded["atrous_rows_planned"] == recorded["atrous_eta_seconds"] == {}


def test_the_dashboard_asks_for_every_metric_and_for_no_other() -> None:
    exported = {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert set(re.findall(r"ray_\w+", " ".join(queries))) == exported
    assert all('{run=~"$run"}' in query for query in queries)


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    cells = Totals(
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert set(cells.values()) == {1}
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
