"""Progress of a run while it lasts: a log line every few seconds, or a line that updates in place in a terminal."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType

from pipeline.run.ledger import RunProgress
from pipeline.run.progress import CLOSING, STARTING, WORKING, Snapshot, utc_now

log = logging.getLogger(__name__)

Publish = Callable[[Snapshot], None]
"""Function that hands a snapshot on: to the run's folder, to the metrics of the cluster."""


class Reporter:
    """Reports progress from its own thread while the `with` block lasts."""

    def __init__(
        self,
        progress: Callable[[], RunProgress],
        *,
        planned: int | None,
        already: int,
        slots: Mapping[str, float],
        every_s: float,
        counted: str = "refine",
        failed_before: Mapping[str, int] | None = None,
        publish: Publish | None = None,
    ) -> None:
        """Set the totals to report against.

        Args:
            progress: returns the current counters.
            planned: rows of the run; None when the number is unknown before reading.
            already: rows committed before.
            slots: workers per stage.
            every_s: seconds between two reports.
            counted: stage whose images fill the bar and give the rate.
            failed_before: failure rows among `already`, by error code.
            publish: gets every snapshot beside the line; must not raise.
        """
        self.progress, self.planned, self.already, self.slots = progress, planned, already, slots
        self.every_s, self.counted, self.publish = every_s, counted, publish
        self.failed_before = dict(failed_before or {})
        self.started = time.monotonic()
        self.latest = RunProgress()
        self._before = (self.started, RunProgress())
        self._first: tuple[float, int] | None = None
        self._bottleneck: tuple[str | None, float] = (None, 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)

    def __enter__(self) -> "Reporter":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        if error is None:
            self.latest = self.progress()
            if self.publish:
                self.publish(replace(self.snapshot(time.monotonic()), phase=CLOSING))
        if sys.stderr.isatty():
            sys.stderr.write("\n")

    def _loop(self) -> None:
        while not self._stop.wait(self.every_s):
            self.latest = self.progress()
            snapshot = self.snapshot(time.monotonic())
            if sys.stderr.isatty():
                sys.stderr.write(f"\r\x1b[2K{snapshot.line()}")
                sys.stderr.flush()
            else:
                log.info("%s", snapshot.line())
            if self.publish:
                self.publish(snapshot)

    def snapshot(self, now: float) -> Snapshot:
        """Snapshot of the latest counters at `now`, seconds of `time.monotonic`."""
        latest, done = self.latest, self.latest.done.get(self.counted, 0)
        rate = self._rate(now, done)
        codes = self.failed_before.keys() | latest.failed.keys()
        bottleneck, busy = self._busiest(now)
        return Snapshot(
            time=utc_now(),
            phase=WORKING if bottleneck else STARTING,
            planned=self.planned,
            done=self.already + done,
            committed=self.already + latest.committed,
            failed={code: self.failed_before.get(code, 0) + latest.failed.get(code, 0) for code in codes},
            images_per_s=rate,
            eta_s=max(self.planned - self.already - done, 0) / rate if self.planned is not None and rate else None,
            bottleneck=bottleneck,
            bottleneck_busy=busy,
            worker_deaths=latest.deaths,
            stage_images=dict(latest.done),
            stage_seconds=dict(latest.seconds),
        )

    def _rate(self, now: float, done: int) -> float:
        """Images per second since the first ones were done; those count as done over the whole time until then."""
        if self._first and done > self._first[1]:
            return (done - self._first[1]) / max(now - self._first[0], 1e-9)
        if done and not self._first:
            self._first = (now, done)
        return done / max(now - self.started, 1e-9)

    def _busiest(self, now: float) -> tuple[str | None, float]:
        """Stage whose workers were busiest since an image was last finished, and their busy share, 0 to 1.

        Seconds of work are counted when it is done: an interval in which nothing was leaves the answer as it was.
        """
        then, before = self._before
        busy = {
            stage: (self.latest.seconds.get(stage, 0) - before.seconds.get(stage, 0)) / (slots * max(now - then, 1e-9))
            for stage, slots in self.slots.items()
        }
        stage = max(busy, key=busy.__getitem__)
        if busy[stage] > 0:
            self._before, self._bottleneck = (now, self.latest), (stage, min(busy[stage], 1.0))
        return self._bottleneck
