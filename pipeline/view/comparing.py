"""Comparing in the background: the thread that compares the rows of a request pixel by pixel.

In: agreements, and a query. Out: their tables fill up, and how fast. A new request takes the place of the one before;
rows that were compared stay.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Condition, Thread

from pipeline.view.agreement import Agreement
from pipeline.view.query import Query

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How far the thread is."""

    is_working: bool = False
    rows: int = 0
    """Rows of the present request, or of the last one."""
    rows_per_s: float = 0.0
    problem: str | None = None
    """Why the last request ended early, or one of its comparisons."""


class Comparing:
    """Thread that compares. It starts with the first request."""

    AUTOMATIC_ROWS = 5_000
    """Rows up to which a run is compared without a request: masks of more are gigabytes, and the user decides."""

    def __init__(self, agreements: Sequence[Agreement]) -> None:
        self.agreements = agreements
        self.pace = Pace()
        self._changed, self._query, self._request, self._closed = Condition(), Query(), 0, False
        self._thread = Thread(target=self._work, name="comparing", daemon=True)

    @property
    def is_asked(self) -> bool:
        """True once there was a request."""
        return self._request > 0

    def request(self, query: Query) -> None:
        """Compare the rows of a query, in place of those of the request before."""
        with self._changed:
            self._query, self._request = query, self._request + 1
            self.pace = Pace(is_working=True)
            self._changed.notify()
            if not self._thread.is_alive() and not self._closed:
                self._thread.start()

    def close(self) -> None:
        """Stop after the row in hand."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        done = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._request > done)  # noqa: B023
                if self._closed:
                    return
                query, done = self._query, self._request
            self._compare(query, done)

    def _compare(self, query: Query, request: int) -> None:
        """Compare the rows with one counterpart after the other; what ends the one does not end the other."""
        began, pace = time.monotonic(), Pace(is_working=True)
        for agreement in self.agreements:
            try:
                for added in agreement.compare(query, is_over=lambda: self._closed or self._request > request):
                    rows = pace.rows + added
                    pace = replace(pace, rows=rows, rows_per_s=rows / max(time.monotonic() - began, 1e-3))
                    self._tell(pace, request)
            except Exception as error:  # the page says it, whatever it is: nobody waits for this thread
                log.exception("comparing pixel by pixel ended")
                pace = replace(pace, problem="; ".join(filter(None, (pace.problem, str(error)))))
        self._tell(replace(pace, is_working=False), request)

    def _tell(self, pace: Pace, request: int) -> None:
        """Show the pace, unless a later request has come."""
        with self._changed:
            if request == self._request:
                self.pace = pace
