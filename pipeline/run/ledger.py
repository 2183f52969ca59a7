"""Ledger of a run: keys in flight, worker deaths per key, and progress counters shared by all workers.

Runs as one Ray actor beside the driver, but does not import Ray. It finds keys that kill their worker, and gives the
driver its progress.

A worker enters keys before work and leaves them after. A key entered again without having been left was in flight in a
worker that died. Every key of that batch is then a suspect and is tried alone; a key whose worker dies a second time
becomes a failure. Workers enter with their name, `pid 123 on HOST`, so that a failure says whose log to read.

The workers of the flow enter and leave in a journal on their node, and report what they left and the deaths they find
(`journal.py`); other workers, and tests, call `enter` and `leave` here.
"""

import os
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol, TypeVar

from pipeline.run.footers import IndexWriter
from pipeline.run.parts import Part
from pipeline.source.left_out import LeftOut

MAX_WORKER_DEATHS = 2
"""Worker deaths after which a key is recorded as failed and not tried again."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Progress of a run so far."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Busy time per stage, summed over workers."""
    done: dict[str, int] = field(default_factory=dict)
    """Keys that each stage has finished."""
    committed: int = 0
    """Rows committed by this driver."""
    failed: dict[str, int] = field(default_factory=dict)
    """Committed failure rows by error code."""
    deaths: int = 0
    """Worker deaths, counted per key in flight."""
    dead_workers: tuple[str, ...] = ()
    """Names of the workers that died, in the order in which their deaths were noticed."""
    bytes_out: dict[str, int] = field(default_factory=dict)
    """Bytes that each stage put into the object store."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """Members of the tars read by this driver that are no images, or previews and labels of others."""
    working_s: float = 0.0
    """Wall time from the first key in a worker to the last commit: without the start of Ray and the networks."""


@dataclass(slots=True)
class StageCounts:
    """Work per stage: busy seconds, finished keys, and bytes put into the object store."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    done: Counter[str] = field(default_factory=Counter)
    bytes_out: Counter[str] = field(default_factory=Counter)

    def add(self, other: "StageCounts") -> None:
        """Add the work of another process."""
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds
        self.done.update(other.done)
        self.bytes_out.update(other.bytes_out)


@dataclass(frozen=True, slots=True)
class Held:
    """Keys that one worker has in hand at a stage; none by default."""

    stage: str = ""
    keys: tuple[str, ...] = ()
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a process of a worker whose processes follow each other and get the same batches, as Ray's actors."""

    worker_id: str
    """Id of the worker, the same for all its processes."""
    node: str
    """Id of the node."""
    journal: str
    """Path of the worker's journal on that node."""


class Ledger:
    """Keys in flight, deaths per key, and counters."""

    def __init__(self, index: IndexWriter | None = None) -> None:
        self._index = index
        self._in_flight: dict[tuple[str, str], str] = {}
        self._deaths: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self._counts = StageCounts()
        self._places: dict[str, Place] = {}
        self._reported: dict[str, Held] = {}
        self._suspects: defaultdict[str, dict[tuple[str, str], list[str]]] = defaultdict(dict)
        self._failed: Counter[str] = Counter()
        self._committed = 0
        self._left_out = LeftOut()
        self._left_out_of: set[str] = set()
        self._first_entry_s: float | None = None
        self._last_commit_s = 0.0

    def enter(self, stage: str, keys: list[str], worker: str) -> list[list[str]]:
        """Mark keys in flight in a worker; returns, for each key, the workers that died with it so far.

        Only keys without a death are now in flight. The others are suspects: enter them one by one (`enter_alone`).
        """
        self._note_entry()
        for key in keys:
            if dead := self._in_flight.pop((stage, key), None):
                self._deaths[stage, key].append(dead)
        deaths = [self._deaths.get((stage, key), []) for key in keys]
        self._in_flight.update({(stage, key): worker for key, dead in zip(keys, deaths, strict=True) if not dead})
        return [list(dead) for dead in deaths]

    def enter_alone(self, stage: str, key: str, worker: str) -> None:
        """Mark a suspect key in flight, alone in a worker."""
        self._in_flight[stage, key] = worker

    def leave(self, stage: str, keys: list[str], seconds: float) -> None:
        """Mark keys finished after `seconds` of work."""
        for key in keys:
            self._in_flight.pop((stage, key), None)
        self._counts.seconds[stage] += seconds
        self._counts.done[stage] += len(keys)

    def count_bytes_out(self, stage: str, num_bytes: int) -> None:
        """Count bytes that a stage put into the object store."""
        self._counts.bytes_out[stage] += num_bytes

    def flush(self) -> None:
        """Do nothing: this ledger keeps no count back, as a worker's does."""

    def find_worker(self, worker_id: str) -> Place | None:
        """Place of the last process of a worker; None when it never started, or has ended in order."""
        return self._places.get(worker_id)

    def start_worker(self, place: Place, held: Held | None) -> dict[tuple[str, str], list[str]]:
        """Note that a process of a worker starts; returns the worker's suspects, with the processes that died.

        A suspect is a pair of stage and key. A key dies a second time only when it is alone in hand: it never fails for
        its neighbours.

        Args:
            place: place of this process.
            held: what the process before it had in hand when it died; None when that is lost, and what it last reported
                counts.
        """
        self._note_entry()
        held = self._reported.get(place.worker_id, Held()) if held is None else held
        suspects = self._suspects[place.worker_id]
        for key in held.keys:
            suspects[held.stage, key] = dead = self._deaths[held.stage, key]
            if not dead or len(held.keys) == 1:
                dead.append(held.worker)
        self._places[place.worker_id] = place
        self._reported.pop(place.worker_id, None)
        return {suspect: list(dead) for suspect, dead in suspects.items()}

    def report(self, counts: StageCounts, worker_id: str | None, held: Held) -> None:
        """Add counts, and remember what a worker has in hand; a reader has no id and nothing in hand."""
        self._counts.add(counts)
        if worker_id is not None:
            self._reported[worker_id] = held

    def end_worker(self, worker_id: str, counts: StageCounts) -> None:
        """Add the last counts of a worker that ends in order."""
        self._counts.add(counts)
        self._places.pop(worker_id, None)
        self._reported.pop(worker_id, None)

    def count_workers(self) -> int:
        """Number of workers that have started and not ended."""
        return len(self._places)

    def count_left_out(self, shard: str, left_out: LeftOut) -> None:
        """Count what a shard, known by its id, leaves out; a shard that is read again counts once."""
        if shard not in self._left_out_of:
            self._left_out_of.add(shard)
            self._left_out.update(left_out)

    def commit(self, rows: int, failed: dict[str, int], seconds: float) -> None:
        """Count a committed part."""
        self._committed += rows
        self._failed.update(failed)
        self._counts.seconds["write"] += seconds
        self._counts.done["write"] += rows
        self._last_commit_s = monotonic()

    def add_to_index(self, part: Part) -> None:
        """Hand the footer of a committed part to the index of the run."""
        if self._index:
            self._index.add(part)

    def _note_entry(self) -> None:
        if self._first_entry_s is None:
            self._first_entry_s = monotonic()

    def progress(self) -> RunProgress:
        """Copy of all counters."""
        return RunProgress(
            dict(self._counts.seconds),
            dict(self._counts.done),
            self._committed,
            dict(self._failed),
            sum(map(len, self._deaths.values())),
            tuple(dict.fromkeys(worker for workers in self._deaths.values() for worker in workers)),
            dict(self._counts.bytes_out),
            LeftOut(Counter(self._left_out.counts), dict(self._left_out.first)),
            max(self._last_commit_s - (self._first_entry_s or self._last_commit_s), 0.0),
        )


class KeyLedger(Protocol):
    """Methods of a ledger that guard the keys of a worker: in this process, in an actor, or in a journal."""

    def enter(self, stage: str, keys: list[str], worker: str) -> list[list[str]]:
        """See `Ledger.enter`."""

    def enter_alone(self, stage: str, key: str, worker: str) -> None:
        """See `Ledger.enter_alone`."""

    def leave(self, stage: str, keys: list[str], seconds: float) -> None:
        """See `Ledger.leave`."""


class LedgerClient(KeyLedger, Protocol):
    """Methods of a ledger that the stages call."""

    def count_bytes_out(self, stage: str, num_bytes: int) -> None:
        """See `Ledger.count_bytes_out`."""

    def count_left_out(self, shard: str, left_out: LeftOut) -> None:
        """See `Ledger.count_left_out`."""

    def flush(self) -> None:
        """Pass on what was counted."""


class CommitLedger(Protocol):
    """Methods of a ledger that commits call."""

    def commit(self, rows: int, failed: dict[str, int], seconds: float) -> None:
        """See `Ledger.commit`."""

    def add_to_index(self, part: Part) -> None:
        """See `Ledger.add_to_index`."""


class FlowLedger(CommitLedger, Protocol):
    """Methods of a ledger that a flow on Ray calls beside those of its workers."""

    def for_workers(self) -> LedgerClient:
        """Client for the readers and actors of the flow."""

    def wait_for_workers(self) -> None:
        """Wait until the workers of a finished flow have told their last counts."""


T = TypeVar("T")
Answer = TypeVar("Answer")


def work_guarded(
    ledger: KeyLedger,
    stage: str,
    units: Sequence[T],
    *,
    key: Callable[[T], str],
    work: Callable[[Sequence[T]], Sequence[Answer]],
    seconds: Callable[[Answer], float],
    failure_of: Callable[[T, str], Answer],
) -> list[Answer]:
    """Work on units such that a unit that kills its worker fails alone; results in the order of the units.

    Args:
        ledger: shared by all workers of the stage.
        stage: name of the stage.
        units: the batch; Ray gives the same batch to the worker's successor if the worker dies.
        key: id of a unit.
        work: processes a batch; may kill the process.
        seconds: busy time of a result.
        failure_of: failure result of a unit, from the names of the workers that died with it, after
            `MAX_WORKER_DEATHS` of them.
    """
    worker = f"pid {os.getpid()} on {socket.gethostname()}"
    deaths = ledger.enter(stage, [key(unit) for unit in units], worker)
    fresh = [index for index, dead in enumerate(deaths) if not dead]
    results: dict[int, Answer] = {}

    def do(indices: list[int]) -> None:
        done = work([units[index] for index in indices])
        results.update(zip(indices, done, strict=True))
        ledger.leave(stage, [key(units[index]) for index in indices], sum(map(seconds, done)))

    if fresh:
        do(fresh)
    for index, dead in enumerate(deaths):
        if len(dead) >= MAX_WORKER_DEATHS:
            results[index] = failure_of(units[index], " and ".join(dead))
        elif dead:
            ledger.enter_alone(stage, key(units[index]), worker)
            do([index])
    return [results[index] for index in range(len(units))]
