"""Flow of a run in processes of this machine, without Ray: the same stages, ledger and parts as in `flow.py`.

    thread that reads -> infer -> refine -> thread that commits
    thread that reads ->     score       -> thread that commits

Starting Ray and its workers takes longer than segmenting some hundred images. Here a worker is a process at the end of
a pipe (`worker.py`), forked in milliseconds (`forks.py`). One loop in the driver hands tables from stage to stage. A
worker that dies is started again under its id and gets its table again, so that the ledger finds an image that kills
its worker, as it does on Ray.
"""

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from pipeline.errors import JobError
from pipeline.run.forks import MOST_FAILED_STARTS, Forks, end_of
from pipeline.run.ledger import Ledger, Place, RunProgress
from pipeline.run.messages import Assignment, Call, Failed, Ready, StageName, pack, unpack
from pipeline.run.pending import PendingShard
from pipeline.run.stages import INFER_ROWS, Job, commit_part, read_shards
from pipeline.run.workers import Workers
from pipeline.source.left_out import LeftOut

log = logging.getLogger(__name__)

INFER_MIB = 32
"""Encoded images per table for a network, MiB, where `INFER_ROWS` of them are more."""
REFINE_ROWS = 4
"""Images per table for a refiner: some seconds of work, so that all refiners end at about the same time. Fewer where
they are larger than a block of the flow on Ray."""
WAITING_TABLES = 2
"""Tables that wait for each worker of a stage at most; with more, the stage before pauses."""
MOST_DEATHS = 2 * INFER_ROWS + 16
"""Deaths of a worker with one table: each of its images may kill two, and other causes some."""


class SharedLedger(Ledger):
    """Ledger of a run in its driver, called by several threads."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lock = threading.Lock()

    def call(self, call: Call) -> object:
        """Call a method for a worker."""
        with self._lock:
            return getattr(Ledger, call.method)(self, *call.arguments)

    def leave(self, stage: str, keys: list[str], seconds: float) -> None:
        """See `Ledger.leave`."""
        with self._lock:
            super().leave(stage, keys, seconds)

    def count_bytes_out(self, stage: str, num_bytes: int) -> None:
        """See `Ledger.count_bytes_out`."""
        with self._lock:
            super().count_bytes_out(stage, num_bytes)

    def count_left_out(self, shard: str, left_out: LeftOut) -> None:
        """See `Ledger.count_left_out`."""
        with self._lock:
            super().count_left_out(shard, left_out)

    def commit(self, rows: int, failed: dict[str, int], seconds: float) -> None:
        """See `Ledger.commit`."""
        with self._lock:
            super().commit(rows, failed, seconds)

    def progress(self) -> RunProgress:
        """See `Ledger.progress`."""
        with self._lock:
            return super().progress()


class WorkerProcess:
    """Worker of a stage: a process that is started again when it dies, until the block ends."""

    def __init__(self, assignment: Assignment, ledger: SharedLedger, forks: Forks) -> None:
        self.assignment, self.ledger, self.forks = assignment, ledger, forks
        self.table: bytes | None = None
        """Table in hand, packed."""
        self._deaths = self._failed_starts = 0
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = Pipe()
        log_start = self.forks.logs / f"worker-{self.assignment.place.worker_id}"
        self.pid = self.forks.start(theirs, log_start)
        self.log = Path(f"{log_start}-{self.pid}.err")
        self.is_ready = False
        self.pipe.send(self.assignment)

    def give(self, table: bytes) -> None:
        """Hand over a table, now or once the stage is open; `answer` returns what becomes of it."""
        self.table, self._deaths = table, 0
        if self.is_ready:
            self._send()

    def _send(self) -> None:
        try:
            self.pipe.send(self.table)
        except ConnectionError:
            self._start_again()

    def answer(self) -> bytes | None:
        """Take one message of the process: the packed table that it made of its own, or None for any other.

        Raises:
            JobError: the process died too often; or what the stage raised.
        """
        try:
            message = self.pipe.recv()
            if isinstance(message, Call):
                answer = self.ledger.call(message)
                if message.waits:
                    self.pipe.send(answer)
                return None
        except (EOFError, ConnectionError):
            self._start_again()
            return None
        if isinstance(message, Ready):
            self.is_ready, self._failed_starts = True, 0
            if self.table is not None:
                self._send()
            return None
        if isinstance(message, Failed):
            log.error("a worker of the stage %s failed:\n%s", self.assignment.stage, message.traceback)
            raise message.error
        self.table = None
        made: bytes = message.table
        return made

    def _start_again(self) -> None:
        """Start a new process in place of one that died, with the table that it had in hand."""
        self.pipe.close()
        status = self.forks.wait(self.pid)
        self._deaths += 1
        self._failed_starts += not self.is_ready
        if self._failed_starts >= MOST_FAILED_STARTS or self._deaths > MOST_DEATHS:
            what = "while it started" if not self.is_ready else "with the same images"
            times = max(self._failed_starts, self._deaths)
            message = f"the worker of the stage {self.assignment.stage} died {times} times {what}, exit status {status}"
            raise JobError(message, hint=f"its log {self.log} ends: {end_of(self.log)}")
        self._start()

    def end(self) -> None:
        """Let the process end in order: it tells the ledger its last counts."""
        if not self.is_ready:
            return
        with suppress(EOFError, ConnectionError):
            self.pipe.send(None)
            while True:
                message = self.pipe.recv()
                if isinstance(message, Call):
                    self.ledger.call(message)

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Kill the process, unless it has ended."""
        self.pipe.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.forks.wait(self.pid)


class StageWorkers:
    """Workers of one stage, and the packed tables that wait for them."""

    def __init__(self, workers: Sequence[WorkerProcess]) -> None:
        self.workers = workers
        self.waiting: deque[bytes] = deque()

    def hand_out(self) -> None:
        """Give waiting tables to workers with nothing in hand."""
        for worker in self.workers:
            if self.waiting and worker.table is None:
                worker.give(self.waiting.popleft())

    def answers(self) -> Iterator[pa.Table]:
        """Tables that workers have made by now; takes what they have sent."""
        for worker in self.workers:
            if worker.pipe.poll() and (made := worker.answer()) is not None:
                yield unpack(made)

    @property
    def has_room(self) -> bool:
        """True while another table may wait."""
        return len(self.waiting) < WAITING_TABLES * len(self.workers)

    @property
    def is_busy(self) -> bool:
        """True while tables wait or are in hand."""
        return bool(self.waiting) or any(worker.table is not None for worker in self.workers)


class Reader:
    """Thread that reads the source, at the end of a pipe like the workers; the pipe holds it back."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self.pipe, self._theirs = Pipe(duplex=False)
        self.tables = tables
        self.error: BaseException | None = None
        self.has_ended = False
        self._thread = threading.Thread(target=self._read, name="read", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for table in self.tables:
                self._theirs.send(pack(table))
        except BrokenPipeError:  # the run has failed elsewhere
            return
        except BaseException as error:  # noqa: BLE001 - raised again by `take`
            self.error = error
        self._theirs.close()

    def is_wanted(self, crew: StageWorkers) -> bool:
        """True while there may be more, and the crew that works on it has room."""
        return not self.has_ended and crew.has_room

    def take(self) -> bytes | None:
        """The next packed table; None at the end."""
        try:
            table: bytes = self.pipe.recv()
            return table
        except EOFError:
            self.has_ended = True
            if self.error:
                raise self.error from None
            return None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.pipe.close()


class Writer:
    """Thread that commits rows, part by part."""

    def __init__(self, job: Job, ledger: SharedLedger) -> None:
        self.job, self.ledger = job, ledger
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._held: list[pa.Table] = []
        self._commit_under_way: Future[None] | None = None

    def add(self, rows: pa.Table) -> None:
        """Take rows; commits them once they fill a part."""
        self._held.append(rows)
        if sum(map(len, self._held)) >= self.job.rows_per_part:
            self._commit()

    def _commit(self) -> None:
        self._wait()
        held, self._held = self._held, []
        self._commit_under_way = self._pool.submit(commit_part, self.job, held, self.ledger)

    def _wait(self) -> None:
        if self._commit_under_way:
            self._commit_under_way.result()

    def close(self) -> None:
        """Commit what is left; returns when it is safe."""
        if self._held:
            self._commit()
        self._wait()
        self._pool.shutdown()


def run_flow(job: Job, pending: Sequence[PendingShard], workers: Workers, ledger: SharedLedger, forks: Forks) -> None:
    """Segment the pending shards and commit their rows. Returns when every row is in a part.

    Raises:
        JobError: a worker died too often; or what a stage or the store raises.
    """
    with ExitStack() as opened:

        def open_crew(stage: StageName, count: int) -> StageWorkers:
            places = [
                Place(f"{stage}-{number}", "this machine", str(forks.logs / f"{stage}-{number}"))
                for number in range(count)
            ]
            return StageWorkers(
                [opened.enter_context(WorkerProcess(Assignment(stage, job, place), ledger, forks)) for place in places]
            )

        if job.masks:
            crews = [open_crew("score", workers.refine)]
        else:
            crews = [open_crew("infer", workers.infer), open_crew("refine", workers.refine)]
        images = gather(read_shards(job, pending, ledger), rows=INFER_ROWS, mib=INFER_MIB)
        reader, writer = opened.enter_context(Reader(images)), Writer(job, ledger)
        hand_on(reader, crews, writer)
        for worker in chain.from_iterable(crew.workers for crew in crews):
            worker.end()
        writer.close()


def hand_on(reader: Reader, crews: Sequence[StageWorkers], writer: Writer) -> None:
    """Hand tables from stage to stage until none is left. A stage pauses while the next one has no room."""
    following = [*crews[1:], None]
    while not reader.has_ended or any(crew.is_busy for crew in crews):
        for crew, after in zip(crews, following, strict=True):
            if after is None or after.has_room:
                crew.hand_out()
        pipes = [worker.pipe for crew in crews for worker in crew.workers]
        wait([*pipes, reader.pipe] if reader.is_wanted(crews[0]) else pipes)
        if reader.is_wanted(crews[0]) and reader.pipe.poll():
            crews[0].waiting.extend(filter(None, [reader.take()]))
        for crew, after in zip(crews, following, strict=True):
            for made in crew.answers():
                if after is None:
                    writer.add(made)
                else:
                    after.waiting.extend(map(pack, cut(made, rows=REFINE_ROWS, mib=writer.job.cfg.runtime.block_mib)))


def gather(tables: Iterable[pa.Table], *, rows: int, mib: float) -> Iterator[pa.Table]:
    """Join tables until they have `rows` rows, or `mib` MiB; none has more than `rows` rows but one that came so."""
    held: list[pa.Table] = []
    for table in tables:
        if held and sum(map(len, held)) + len(table) > rows:
            yield pa.concat_tables(held)
            held = []
        held.append(table)
        if sum(map(len, held)) >= rows or sum(some.nbytes for some in held) >= mib * 2**20:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def cut(table: pa.Table, *, rows: int, mib: float) -> Iterator[pa.Table]:
    """Cut a table into tables of `rows` rows, or of as many as have about `mib` MiB; of one row at least."""
    fitting = round(mib * 2**20 * len(table) / max(table.nbytes, 1))
    size = max(min(fitting, rows), 1)
    return (table.slice(first, size) for first in range(0, len(table), size))
