"""Metrics of a run for Prometheus, through Ray: counters and gauges in the driver, which Ray's agent exports.

Ray puts `ray_` before each name, and `_total` after those of counters. `infra/monitoring/grafana.json` is a dashboard
of them. A counter begins at 0 with each driver, as Prometheus expects; a driver shorter than Ray's export interval of
some seconds may leave no sample.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from pipeline.run.progress import Snapshot

COUNTERS = {
    "atrous_images": ("images that a stage has finished", "stage"),
    "atrous_busy_seconds": ("busy seconds of a stage, summed over its workers", "stage"),
    "atrous_rows_failed": ("committed failure rows by error code, those of earlier drivers included", "code"),
}
"""Name, description and tag of each counter; every metric has the tag `run` beside it."""
GAUGES = {
    "atrous_rows_planned": "rows of the run; absent while the number is unknown",
    "atrous_rows_done": "images that have passed the last stage before the commit, of all drivers",
    "atrous_rows_committed": "committed rows, of all drivers",
    "atrous_eta_seconds": "seconds left at the rate so far; absent without one",
    "atrous_worker_deaths": "deaths of workers under this driver, counted per key in flight",
}
"""Name and description of each gauge."""


class RunMetrics:
    """Metrics of one run; `record` turns each snapshot into their new values."""

    def __init__(self, run: str) -> None:
        """Register the metrics; `run` is the first 12 hex digits of the fingerprint."""
        self.run = run
        self._counters = {
            name: Counter(name, description=text, tag_keys=("run", tag)) for name, (text, tag) in COUNTERS.items()
        }
        self._gauges = {name: Gauge(name, description=text, tag_keys=("run",)) for name, text in GAUGES.items()}
        self._recorded: dict[tuple[str, str], float] = {}

    def record(self, snapshot: Snapshot) -> None:
        """Set every gauge, and add to every counter what came since the last snapshot."""
        self._count("atrous_images", snapshot.stage_images)
        self._count("atrous_busy_seconds", snapshot.stage_seconds)
        self._count("atrous_rows_failed", snapshot.failed)
        values = (snapshot.planned, snapshot.done, snapshot.committed, snapshot.eta_s, snapshot.worker_deaths)
        for gauge, value in zip(self._gauges.values(), values, strict=True):
            if value is not None:
                gauge.set(value, tags={"run": self.run})

    def _count(self, name: str, totals: Mapping[str, float]) -> None:
        tag = COUNTERS[name][1]
        for label, total in totals.items():
            if (more := total - self._recorded.get((name, label), 0)) > 0:
                self._counters[name].inc(more, tags={"run": self.run, tag: label})
                self._recorded[name, label] = total
