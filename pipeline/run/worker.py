"""Process of one worker of a flow without Ray: a stage of the run at the end of a pipe.

`forks.py` forks it. Through the pipe `processes.py` sends an `Assignment`, and then table after table; the process
answers each with the table that its stage makes of it. In between it calls the run's ledger through the same pipe. It
ends when it gets None, or when the driver is gone.
"""

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import pyarrow as pa

from pipeline.run.journal import WorkerLedger
from pipeline.run.ledger import Held, Place, StageCounts
from pipeline.run.messages import Assignment, Call, Done, Failed, Ready, pack, unpack
from pipeline.run.stages import InferStage, MaskStage, RefineStage
from pipeline.source.left_out import LeftOut

Stage = Callable[[pa.Table], pa.Table]


class PipeLedger:
    """Client of the run's ledger in a worker, as `journal.RunLedger` describes it."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        self.pipe = pipe

    def find_worker(self, worker_id: str) -> Place | None:
        """See `Ledger.find_worker`."""
        place: Place | None = self._ask("find_worker", worker_id)
        return place

    def start_worker(self, place: Place, held: Held | None) -> dict[tuple[str, str], list[str]]:
        """See `Ledger.start_worker`."""
        suspects: dict[tuple[str, str], list[str]] = self._ask("start_worker", place, held)
        return suspects

    def report(self, counts: StageCounts, worker_id: str | None, held: Held) -> None:
        """See `Ledger.report`."""
        self._tell("report", counts, worker_id, held)

    def count_left_out(self, shard: str, left_out: LeftOut) -> None:
        """See `Ledger.count_left_out`."""
        self._tell("count_left_out", shard, left_out)

    def end_worker(self, worker_id: str, counts: StageCounts) -> None:
        """See `Ledger.end_worker`."""
        self._tell("end_worker", worker_id, counts)

    def _ask(self, method: str, *arguments: Any) -> Any:
        self.pipe.send(Call(method, arguments, waits=True))
        return self.pipe.recv()

    def _tell(self, method: str, *arguments: Any) -> None:
        self.pipe.send(Call(method, arguments, waits=False))


def open_stage(assignment: Assignment, ledger: WorkerLedger) -> Stage:
    """Stage of a worker; loads the checkpoint of a network."""
    job = assignment.job
    if assignment.stage == "infer":
        return InferStage(job, ledger, threads=1)
    if assignment.stage == "refine":
        return RefineStage(job, ledger)
    if job.judge is None:
        raise ValueError("masks are scored by a judge, and this job has none")
    return MaskStage(job, job.judge, ledger)


def work(pipe: "Connection[Any, Any]") -> None:
    """Do what the driver sends; the ledger of the worker ends with this function."""
    assignment: Assignment = pipe.recv()
    stage = open_stage(assignment, WorkerLedger(PipeLedger(pipe), lambda: assignment.place, _no_other_node))
    pipe.send(Ready())
    while (data := pipe.recv()) is not None:
        pipe.send(Done(pack(stage(unpack(data)))))


def _no_other_node(place: Place) -> NoReturn:
    raise AssertionError(f"{place} is on another node, and a flow without Ray has one")


def main(fd: int) -> int:
    """Work until there is no more, at the end of a pipe with this file descriptor; returns the exit status."""
    pipe: Connection[Any, Any] = Connection(fd)
    try:
        work(pipe)
    except (EOFError, ConnectionError):  # the driver is gone
        return 1
    except Exception as error:  # noqa: BLE001 - raised again in the driver
        pipe.send(Failed.of(error))
        return 1
    return 0
