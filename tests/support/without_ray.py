"""Jobs in one process: what `flow` lays out on a cluster is done here shard after shard, and all else is the job's.

    main(["MODULE", "ARGUMENT", ...])

calls the `main` of a job, or of a module here that runs one, with the arguments.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TypeVar
from unittest import mock

import pyarrow as pa

from infra import session
from jobs import evaluate, flow_choice, prepare_dataset, segment_dataset  # noqa: F401 - no process that is forked has to
from pipeline.infer import segmenter  # noqa: F401
from pipeline.models import zoo  # noqa: F401
from pipeline.run import flow
from pipeline.run.flow import PartSink
from pipeline.run.ledger import Ledger
from pipeline.run.pending import PendingShard
from pipeline.run.stages import InferStage, Job, MaskStage, RefineStage, read_shards
from pipeline.run.workers import GIB
from tests.support import drivers, tiny_layout  # noqa: F401

T = TypeVar("T")


def main(argv: list[str]) -> int:
    module, *arguments = argv
    with (
        mock.patch.object(session, "connect", return_value=nullcontext([{"CPU": 2.0, "memory": 16 * GIB}])),
        mock.patch.object(flow_choice, "choose_flow", return_value="ray"),
        mock.patch.object(flow, "RemoteLedger", Ledger),
        mock.patch.object(flow, "run_flow", run_flow),
        mock.patch.object(flow, "run_tasks", run_tasks),
    ):
        return importlib.import_module(module).main(arguments)


def run_tasks(name: str, units: Sequence[T], work: Callable[[T], object], **limits: int) -> None:
    """Do one unit of work after the other."""
    for unit in units:
        work(unit)


def run_flow(job: Job, owed: Sequence[PendingShard], workers: object, ledger: Ledger) -> None:
    """Commit what is owed, in parts of as many rows as the sink asks for."""
    sink = PartSink(job, ledger)
    tables = (table for shard in owed for table in read_shards(job, [shard], ledger))
    if job.masks and job.judge:
        tables = map(MaskStage(job, job.judge, ledger), tables)
    else:
        tables = map(RefineStage(job, ledger), map(InferStage(job, ledger, threads=1), tables))
    for blocks in batches(tables, sink.min_rows_per_write):
        sink.write(blocks, ctx=None)


def batches(tables: Iterable[pa.Table], rows: int) -> Iterator[list[pa.Table]]:
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= rows:
            yield held
            held = []
    if held:
        yield held
