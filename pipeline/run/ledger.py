"""What the workers of one run tell each other: which keys are being worked on, and how much is done.

Runs as one Ray actor beside the driver, but knows nothing of Ray. Two uses: a key that kills its worker is found, and
the driver can say how far the run is.

A worker enters keys before it touches them and leaves them after. A key that is entered again without having been left
was in the hands of a worker that died. The first time, every key of that batch is a suspect and is tried alone; a key
that kills its worker a second time, alone, is condemned.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

CONDEMNED_AFTER = 2
"""Deaths after which a key is not tried again."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Busy time per stage, summed over workers."""
    done: dict[str, int] = field(default_factory=dict)
    """Work items that left each stage."""
    committed: int = 0
    """Rows in committed parts, of this driver."""
    failed: dict[str, int] = field(default_factory=dict)
    """Committed failure rows by error code."""
    deaths: int = 0
    """Keys found in the hands of dead workers."""
    bytes_out: dict[str, int] = field(default_factory=dict)
    """Bytes each stage put into the object store."""


class Ledger:
    """Keys in hand, deaths, and counters."""

    def __init__(self) -> None:
        self._in_hand: set[tuple[str, str]] = set()
        self._deaths: Counter[tuple[str, str]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._done: Counter[str] = Counter()
        self._bytes_out: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._committed = 0

    def enter(self, stage: str, keys: list[str]) -> list[int]:
        """Take keys in hand; returns how many workers each one has cost so far.

        Keys that have cost none are now in hand. The others are not: they are to be entered one by one (`enter_alone`).
        """
        for key in keys:
            if (stage, key) in self._in_hand:
                self._in_hand.discard((stage, key))
                self._deaths[stage, key] += 1
        self._in_hand.update((stage, key) for key in keys if not self._deaths[stage, key])
        return [self._deaths[stage, key] for key in keys]

    def enter_alone(self, stage: str, key: str) -> None:
        """Take one suspect in hand."""
        self._in_hand.add((stage, key))

    def leave(self, stage: str, keys: list[str], seconds: float) -> None:
        """Put keys down after `seconds` of work."""
        self._in_hand.difference_update((stage, key) for key in keys)
        self._seconds[stage] += seconds
        self._done[stage] += len(keys)

    def sent(self, stage: str, num_bytes: int) -> None:
        """Count bytes a stage handed on through the object store."""
        self._bytes_out[stage] += num_bytes

    def commit(self, rows: int, failed: dict[str, int], seconds: float) -> None:
        """Count a committed part."""
        self._committed += rows
        self._failed.update(failed)
        self._seconds["write"] += seconds
        self._done["write"] += rows

    def progress(self) -> RunProgress:
        """A copy of all counters."""
        return RunProgress(
            dict(self._seconds),
            dict(self._done),
            self._committed,
            dict(self._failed),
            self._deaths.total(),
            dict(self._bytes_out),
        )


class LedgerClient(Protocol):
    """The part of a ledger that a worker calls, wherever the ledger runs."""

    def enter(self, stage: str, keys: list[str]) -> list[int]:
        """See `Ledger.enter`."""

    def enter_alone(self, stage: str, key: str) -> None:
        """See `Ledger.enter_alone`."""

    def leave(self, stage: str, keys: list[str], seconds: float) -> None:
        """See `Ledger.leave`."""

    def sent(self, stage: str, num_bytes: int) -> None:
        """See `Ledger.sent`."""


T = TypeVar("T")
R = TypeVar("R")


def work_guarded(
    ledger: LedgerClient,
    stage: str,
    units: Sequence[T],
    *,
    key: Callable[[T], str],
    work: Callable[[Sequence[T]], Sequence[R]],
    seconds: Callable[[R], float],
    condemn: Callable[[T], R],
) -> list[R]:
    """Work on units so that one which kills its worker fails alone. Results come in the order of the units.

    Args:
        ledger: shared by all workers of the stage.
        stage: its name.
        units: the batch; a worker that dies gets the same batch again in its next life.
        key: the id of a unit.
        work: does a batch; may kill the process.
        seconds: time a result took.
        condemn: the result of a unit that has killed `CONDEMNED_AFTER` workers.
    """
    deaths = ledger.enter(stage, [key(unit) for unit in units])
    fresh = [index for index, count in enumerate(deaths) if count == 0]
    results: dict[int, R] = {}

    def do(indices: list[int]) -> None:
        done = work([units[index] for index in indices])
        results.update(zip(indices, done, strict=True))
        ledger.leave(stage, [key(units[index]) for index in indices], sum(map(seconds, done)))

    if fresh:
        do(fresh)
    for index, count in enumerate(deaths):
        if count >= CONDEMNED_AFTER:
            results[index] = condemn(units[index])
        elif count:
            ledger.enter_alone(stage, key(units[index]))
            do([index])
    return [results[index] for index in range(len(units))]
