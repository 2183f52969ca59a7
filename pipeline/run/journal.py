"""Ledger of one worker of the flow: its keys in flight are in a file on its node, and its counts are reported in bulk.

A worker that enters a batch writes its keys to its journal; when it leaves them it clears the journal. What was written
stays in the page cache when the process is killed, so a write takes microseconds and needs no fsync. Ray starts a dead
worker again under the same id and gives it the same batches: the new process reads the journal, reports its keys as
deaths to the run's ledger, and from then on knows its suspects. No other worker gets them, so none has to ask.

A lost node takes its journals along. Then the keys count that the worker last reported.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Protocol

from pipeline.run.ledger import Held, Place, StageCounts
from pipeline.source.left_out import LeftOut

REPORT_S = 0.5
"""Least seconds between two reports of a worker: a thousand workers send the run's ledger 2,000 messages a second."""


class RunLedger(Protocol):
    """Methods of the run's ledger that `WorkerLedger` calls."""

    def find_worker(self, worker_id: str) -> Place | None:
        """See `Ledger.find_worker`."""

    def start_worker(self, place: Place, held: Held | None) -> dict[tuple[str, str], list[str]]:
        """See `Ledger.start_worker`."""

    def report(self, counts: StageCounts, worker_id: str | None, held: Held) -> None:
        """See `Ledger.report`."""

    def count_left_out(self, shard: str, left_out: LeftOut) -> None:
        """See `Ledger.count_left_out`."""

    def end_worker(self, worker_id: str, counts: StageCounts) -> None:
        """See `Ledger.end_worker`."""


class Journal:
    """File with the keys that one process has in hand."""

    def __init__(self, path: str) -> None:
        """Open an empty journal that only this user can read."""
        self.path = Path(path)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, held: Held) -> None:
        """Replace what the journal says. A process killed in here has not begun to work on these keys."""
        self._put(json.dumps([held.stage, held.keys, held.worker]).encode())

    def clear(self) -> None:
        """Say that nothing is in hand."""
        self._put(b"")

    def _put(self, line: bytes) -> None:
        line += b"\n"
        if os.pwrite(self._file, line, 0) != len(line):
            raise OSError(f"the disk of {self.path} is full")

    def delete(self) -> None:
        """Close the file and remove it."""
        os.close(self._file)
        self.path.unlink(missing_ok=True)


def take_journal(path: str) -> Held:
    """Read the keys that a dead process had in hand, and delete its journal, so that its death is reported once.

    There are none where the process had nothing in hand, or left no journal.
    """
    try:
        with Path(path).open("rb") as file:
            line = file.readline()
        Path(path).unlink()
        stage, keys, worker = json.loads(line)
    except (FileNotFoundError, ValueError):  # ValueError: cleared, or killed while it was written
        return Held()
    return Held(stage, tuple(keys), worker)


class WorkerLedger:
    """Client of a run's ledger for the workers of the flow: pickled into each of them before its first call.

    Only the first `enter` of a process waits for the run's ledger, and the end of a worker.
    """

    def __init__(
        self, run: RunLedger, find_place: Callable[[], Place], take_from: Callable[[Place], Held | None]
    ) -> None:
        """Describe the worker to be.

        Args:
            run: client of the run's ledger.
            find_place: finds the place of the process that calls it.
            take_from: takes the journal of a process on another node; None when that node is lost.
        """
        self._run, self._find_place, self._take_from = run, find_place, take_from
        self._place: Place | None = None
        self._journal: Journal | None = None
        self._suspects: dict[tuple[str, str], list[str]] = {}
        self._held = Held()
        self._counts = StageCounts()
        self._reported_s = -REPORT_S

    def enter(self, stage: str, keys: list[str], worker: str) -> list[list[str]]:
        """See `Ledger.enter`."""
        journal = self._journal or self._start()
        deaths = [list(self._suspects.get((stage, key), ())) for key in keys]
        fresh = tuple(key for key, dead in zip(keys, deaths, strict=True) if not dead)
        self._hold(journal, Held(stage, fresh, worker))
        return deaths

    def enter_alone(self, stage: str, key: str, worker: str) -> None:
        """See `Ledger.enter_alone`."""
        self._hold(self._journal or self._start(), Held(stage, (key,), worker))

    def _start(self) -> Journal:
        """Report what the process before this one had in hand when it died, if any, and open a new journal."""
        place, held = self._find_place(), None
        if before := self._run.find_worker(place.worker_id):
            held = take_journal(before.journal) if before.node == place.node else self._take_from(before)
        self._suspects = self._run.start_worker(place, held)
        self._place, self._journal = place, Journal(place.journal)
        return self._journal

    def _hold(self, journal: Journal, held: Held) -> None:
        journal.write(held)
        self._held = held
        self._report_if_due()

    def leave(self, stage: str, keys: list[str], seconds: float) -> None:
        """See `Ledger.leave`."""
        if self._journal:
            self._journal.clear()
        self._held = Held()
        self._counts.seconds[stage] += seconds
        self._counts.done[stage] += len(keys)
        self._report_if_due()

    def count_bytes_out(self, stage: str, num_bytes: int) -> None:
        """See `Ledger.count_bytes_out`."""
        self._counts.bytes_out[stage] += num_bytes

    def count_left_out(self, shard: str, left_out: LeftOut) -> None:
        """See `Ledger.count_left_out`."""
        self._run.count_left_out(shard, left_out)

    def _report_if_due(self) -> None:
        if monotonic() - self._reported_s >= REPORT_S:
            self.flush()

    def flush(self) -> None:
        """Report counts, and keys in flight in case this node is lost."""
        self._run.report(self._counts, self._place.worker_id if self._place else None, self._held)
        self._counts, self._reported_s = StageCounts(), monotonic()

    def __del__(self) -> None:
        # Ray Data deletes a stage, and this ledger with it, when its actor ends in order.
        if self._journal and self._place:
            self._journal.delete()
            self._run.end_worker(self._place.worker_id, self._counts)
