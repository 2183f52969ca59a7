"""Progress of a run: a log line every few seconds, or a line that updates in place in a terminal."""

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from pipeline.run.ledger import RunProgress

log = logging.getLogger(__name__)

BAR_CELLS = 24


class Reporter:
    """Reports progress from its own thread while the `with` block lasts."""

    def __init__(
        self,
        progress: Callable[[], RunProgress],
        *,
        planned: int | None,
        already: int,
        slots: dict[str, float],
        every_s: float,
        counted: str = "refine",
    ) -> None:
        """Set the totals to report against.

        Args:
            progress: returns the current counters.
            planned: rows of the run; None when the number is unknown before reading.
            already: rows committed before.
            slots: workers per stage.
            every_s: seconds between two reports.
            counted: stage whose images give the rate.
        """
        self.progress, self.planned, self.already, self.slots = progress, planned, already, slots
        self.every_s, self.counted = every_s, counted
        self.started = time.monotonic()
        self.latest = RunProgress()
        self._before = (self.started, RunProgress())
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
        if sys.stderr.isatty():
            sys.stderr.write("\n")

    def _loop(self) -> None:
        while not self._stop.wait(self.every_s):
            self.latest = self.progress()
            line = self.line(time.monotonic())
            if sys.stderr.isatty():
                sys.stderr.write(f"\r\x1b[2K{line}")
                sys.stderr.flush()
            else:
                log.info("%s", line)

    def line(self, now: float) -> str:
        """Progress line: `committed 64/101 (refined 80), 9.3 images/s, ETA 4 s, 1 failed, bottleneck refine 97%`."""
        done = self.latest.done.get(self.counted, 0)
        rate = done / max(now - self.started, 1e-9)
        committed = self.already + self.latest.committed
        planned = "?" if self.planned is None else self.planned
        parts = [
            f"committed {committed}/{planned} ({self.counted}d {self.already + done})",
            f"{rate:.1f} images/s",
        ]
        if self.planned is not None:
            parts.insert(0, bar(committed / max(self.planned, 1)))
            left = self.planned - self.already - done
            parts.append(f"ETA {left / rate:.0f} s" if rate else "ETA ?")
        parts.append(f"{sum(self.latest.failed.values())} failed")
        if self.latest.deaths:
            parts.append(f"{self.latest.deaths} suspect(s) of killing a worker")
        return ", ".join([*parts, self._bottleneck(now)])

    def _bottleneck(self, now: float) -> str:
        """Stage whose workers were busiest since the last line."""
        then, before = self._before
        self._before = (now, self.latest)
        busy = {
            stage: (self.latest.seconds.get(stage, 0) - before.seconds.get(stage, 0)) / (slots * max(now - then, 1e-9))
            for stage, slots in self.slots.items()
        }
        stage = max(busy, key=busy.__getitem__)
        return f"bottleneck {stage} {min(busy[stage], 1):.0%}" if busy[stage] > 0 else "starting"


def bar(share: float) -> str:
    """Progress bar of 24 cells, e.g. `[######------------------]`."""
    full = round(BAR_CELLS * min(share, 1.0))
    return f"[{'#' * full}{'-' * (BAR_CELLS - full)}]"
