"""Ray Data flow: reading, inference, refinement and commit as one dataset. The only module that imports `ray.data`.

    read -> infer -> refine -> write
    read ->  score masks   -> write

`run_tasks` is for jobs of a single stage that reads and writes by itself.

Encoded bytes travel between the stages, never pixels: a stage that needs pixels decodes them, which costs far less than
moving them. `stages.py` implements the stages; this module sets their resources, and has the Ray source and sink and
the actor of the ledger.
"""

import logging
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic, sleep
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasink, Datasource, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.run.duplicates import UInt64
from pipeline.run.footers import IndexWriter
from pipeline.run.journal import WorkerLedger, take_journal
from pipeline.run.ledger import FlowLedger, Held, Ledger, LedgerClient, Place, RunProgress, StageCounts
from pipeline.run.parts import Part
from pipeline.run.pending import PendingShard
from pipeline.run.stages import INFER_ROWS, InferStage, Job, MaskStage, RefineStage, commit_part, read_shards
from pipeline.run.verify import BUCKETS, Join, Lines, Split
from pipeline.run.workers import GIB, RASTER_READER_GIB, READ_CPUS, WRITE_CPUS, Workers
from pipeline.source.left_out import LeftOut

MAX_READ_TASKS = 2000
"""Most read tasks, over which shards are distributed: the driver keeps every task in memory."""
TASK_RETRIES = 16
"""Retries of a task for causes other than its own items: lost nodes, pre-emption."""
INFER_WINDOWS = 2
"""Windows of rasters per call of a network: each has enough tiles for several batches, and tens of megabytes."""
TAKE_S = 60.0
"""Longest wait for a process on another node that reads a journal there."""
END_S = 5.0
"""Longest wait for the workers of a finished flow: in order they end within tenths of a second."""

log = logging.getLogger(__name__)

T = TypeVar("T")


class RemoteLedger:
    """Client of a ledger that runs in its own actor. Waits for the actor only where order matters."""

    def __init__(self, index: IndexWriter | None = None) -> None:
        # No restarts, since a new ledger would have lost deaths and counts: the actor runs on the driver's node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        ledger: Any = ray.remote(num_cpus=0)(Ledger)
        self.actor = ledger.options(scheduling_strategy=here).remote(index)

    def enter(self, stage: str, keys: list[str], worker: str) -> list[list[str]]:
        """See `Ledger.enter`."""
        deaths: list[list[str]] = ray.get(self.actor.enter.remote(stage, keys, worker))
        return deaths

    def enter_alone(self, stage: str, key: str, worker: str) -> None:
        """See `Ledger.enter_alone`."""
        ray.get(self.actor.enter_alone.remote(stage, key, worker))

    def leave(self, stage: str, keys: list[str], seconds: float) -> None:
        """See `Ledger.leave`."""
        self.actor.leave.remote(stage, keys, seconds)

    def find_worker(self, worker_id: str) -> Place | None:
        """See `Ledger.find_worker`."""
        place: Place | None = ray.get(self.actor.find_worker.remote(worker_id))
        return place

    def start_worker(self, place: Place, held: Held | None) -> dict[tuple[str, str], list[str]]:
        """See `Ledger.start_worker`."""
        suspects: dict[tuple[str, str], list[str]] = ray.get(self.actor.start_worker.remote(place, held))
        return suspects

    def report(self, counts: StageCounts, worker_id: str | None, held: Held) -> None:
        """See `Ledger.report`."""
        self.actor.report.remote(counts, worker_id, held)

    def end_worker(self, worker_id: str, counts: StageCounts) -> None:
        """See `Ledger.end_worker`."""
        ray.get(self.actor.end_worker.remote(worker_id, counts), timeout=END_S)

    def count_left_out(self, shard: str, left_out: LeftOut) -> None:
        """See `Ledger.count_left_out`."""
        self.actor.count_left_out.remote(shard, left_out)

    def for_workers(self) -> WorkerLedger:
        """Client for the readers and actors of a flow."""
        return WorkerLedger(self, _place_of_actor, _take_journal_from)

    def commit(self, rows: int, failed: dict[str, int], seconds: float) -> None:
        """See `Ledger.commit`. Waits, since the run may end with this part, and its totals are read then."""
        ray.get(self.actor.commit.remote(rows, failed, seconds))

    def add_to_index(self, part: Part) -> None:
        """See `Ledger.add_to_index`."""
        self.actor.add_to_index.remote(part)

    def progress(self) -> RunProgress:
        """See `Ledger.progress`."""
        counters: RunProgress = ray.get(self.actor.progress.remote())
        return counters

    def wait_for_workers(self) -> None:
        """Wait until the workers of a finished flow have told their last counts; those that died never do."""
        until = monotonic() + END_S
        while (working := ray.get(self.actor.count_workers.remote())) and monotonic() < until:
            sleep(END_S / 200)
        if working:
            log.warning(
                "%d worker(s) did not end within %g s: the counts of their last batches are missing", working, END_S
            )


def _place_of_actor() -> Place:
    """Place of the actor that calls this; its id stays the same when Ray starts it again."""
    context = ray.get_runtime_context()
    worker_id = str(context.get_actor_id())
    journal = f"{context.get_temp_dir()}/{context.get_session_name()}/journals/{worker_id}"
    return Place(worker_id, context.get_node_id(), journal)


def _take_journal_from(place: Place) -> Held | None:
    """Take the journal of a process on another node; None when that node is lost."""
    there = NodeAffinitySchedulingStrategy(place.node, soft=False)
    taking = ray.remote(num_cpus=0)(take_journal).options(scheduling_strategy=there)
    try:
        held: Held = ray.get(taking.remote(place.journal), timeout=TAKE_S)
    except ray.exceptions.RayError as error:
        log.warning("node %s is lost, and with it the journal of a worker: %s", place.node, error)
        return None
    return held


class ShardSource(Datasource):
    """Ray Data source of pending shards; leaves out keys that are committed."""

    def __init__(self, job: Job, pending: Sequence[PendingShard], ledger: LedgerClient) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job, self.pending, self.ledger = job, pending, ledger

    def get_name(self) -> str:
        """Name in Ray's plan and dashboard."""
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes to read; images stay encoded."""
        return sum(pending_shard.shard.size for pending_shard in self.pending)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task per shard, or per group of shards when there are very many."""
        count = min(len(self.pending), MAX_READ_TASKS)
        return [self._task(self.pending[index::count]) for index in range(count)]

    def _task(self, pending: Sequence[PendingShard]) -> ReadTask:
        size = sum(pending_shard.shard.size for pending_shard in pending)
        return _read_task(partial(read_shards, self.job, pending, self.ledger), size)


class PartSink(Datasink[None]):
    """Ray Data sink that commits each write as one part."""

    def __init__(self, job: Job, ledger: FlowLedger) -> None:
        self.job, self.ledger = job, ledger

    @property
    def min_rows_per_write(self) -> int:
        """Rows that Ray gathers for one part; the last part may be smaller."""
        return self.job.rows_per_part

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> None:
        """Commit one part. Ray calls it again with the same blocks when its worker dies."""
        commit_part(self.job, list(blocks), self.ledger)


def build_dataset(
    job: Job, pending: Sequence[PendingShard], workers: Workers, ledger: LedgerClient
) -> ray.data.Dataset:
    """Lazy dataset of `ROW_SCHEMA`, to be written to a `PartSink`.

    Actor pools have a fixed size: a pool that grows with its backlog starts late, and shrinks while the first
    images are read.
    """
    memory = {"memory": int(RASTER_READER_GIB * GIB)} if job.cfg.read.kind == "raster" else {}
    items: ray.data.Dataset = ray.data.read_datasource(
        ShardSource(job, pending, ledger),
        num_cpus=READ_CPUS,
        compute=TaskPoolStrategy(min(len(pending), 2 * workers.infer)),
        override_num_blocks=min(len(pending), MAX_READ_TASKS),
        ray_remote_args={"max_retries": TASK_RETRIES, **memory},
    )
    return _score_masks(items, job, workers, ledger) if job.masks else _segment(items, job, workers, ledger)


def _segment(items: ray.data.Dataset, job: Job, workers: Workers, ledger: LedgerClient) -> ray.data.Dataset:
    """Dataset of rows with new masks: inference, then refinement."""
    threads = 1 if not workers.infer_gpus else 4
    windows = job.cfg.read.kind == "raster"
    infer_rows = INFER_WINDOWS if windows else INFER_ROWS
    rows: ray.data.Dataset = items.map_batches(
        InferStage,
        fn_constructor_kwargs={"job": job, "ledger": ledger, "threads": threads},
        batch_size=infer_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers.infer),
        num_cpus=workers.infer_cpus,
        num_gpus=workers.infer_gpus or None,
        memory=int(workers.infer_gib * GIB),
        max_task_retries=infer_rows + TASK_RETRIES,
    ).map_batches(
        RefineStage,
        fn_constructor_kwargs={"job": job, "ledger": ledger},
        batch_size=None,  # a block, which is seconds of work: see `_data_context`
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers.refine),
        num_cpus=workers.refine_cpus,
        memory=int(workers.refine_gib * GIB),
        max_task_retries=2 * infer_rows + TASK_RETRIES,
    )
    return rows


def _score_masks(items: ray.data.Dataset, job: Job, workers: Workers, ledger: LedgerClient) -> ray.data.Dataset:
    """Dataset of rows with existing masks, scored against labels."""
    rows: ray.data.Dataset = items.map_batches(
        MaskStage,
        fn_constructor_kwargs={"job": job, "judge": job.judge, "ledger": ledger},
        batch_size=INFER_ROWS,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers.refine),
        num_cpus=workers.refine_cpus,
        memory=int(workers.refine_gib * GIB),
        max_task_retries=INFER_ROWS + TASK_RETRIES,
    )
    return rows


def run_flow(job: Job, pending: Sequence[PendingShard], workers: Workers, ledger: FlowLedger) -> None:
    """Segment the pending shards and commit their rows. Returns when every row is in a part."""
    with _ray_data_settings(job.cfg.runtime.block_mib):
        dataset = build_dataset(job, pending, workers, ledger.for_workers())
        dataset.set_name("segment")
        dataset.write_datasink(
            PartSink(job, ledger), ray_remote_args={"num_cpus": WRITE_CPUS, "max_retries": TASK_RETRIES}
        )
    ledger.wait_for_workers()


class TaskSource(Datasource, Generic[T]):
    """Ray Data source that runs work in its read tasks; a row per unit records that it was done."""

    def __init__(self, name: str, units: Sequence[T], work: Callable[[T], object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name, self.units, self.work = name, units, work

    def get_name(self) -> str:
        """Name in Ray's plan and dashboard."""
        return self.name

    def estimate_inmemory_data_size(self) -> None:
        """None: the rows take no memory worth estimating."""

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task per unit, or per group of units when there are very many."""
        count = min(len(self.units), MAX_READ_TASKS)
        return [_read_task(partial(_work_on_units, self.work, self.units[index::count])) for index in range(count)]


def _work_on_units(work: Callable[[T], object], units: Sequence[T]) -> Iterator[pa.Table]:
    for unit in units:
        work(unit)
        yield pa.table({"done": [1]})


def _read_task(read: Callable[[], Iterable[pa.Table]], size_bytes: int | None = None) -> ReadTask:
    """Read task of a function, of any kind: Ray asks the function of a task of 1 MiB or more for its `__name__`."""

    def read_blocks() -> Iterable[pa.Table]:
        return read()

    return ReadTask(read_blocks, BlockMetadata(num_rows=None, size_bytes=size_bytes, exec_stats=None, input_files=None))


def run_tasks(name: str, units: Sequence[T], work: Callable[[T], object], *, deaths: int) -> None:
    """Call `work` on every unit, one core each. Returns when all are done.

    Args:
        name: name of the work in Ray's dashboard.
        units: units of work; not empty.
        work: writes its results to a store. Must be idempotent, since Ray repeats it when its worker dies.
        deaths: worker deaths that one unit may cause.
    """
    tasks = min(len(units), MAX_READ_TASKS)
    with _ray_data_settings(block_mib=1):
        ray.data.read_datasource(
            TaskSource(name, units, work),
            num_cpus=1,
            override_num_blocks=tasks,
            ray_remote_args={"max_retries": deaths * -(-len(units) // tasks) + TASK_RETRIES},
        ).materialize()


def shuffle(groups: Sequence[Sequence[str]], split: Split, join: Join) -> tuple[list[Lines], list[UInt64]]:
    """`verify.Shuffle` on the workers of a cluster, one core per task; arrays go from worker to worker."""

    def split_flat(group: Sequence[str]) -> list[object]:
        lines, arrays = split(group)
        return [lines, *arrays]

    splitting: Any = ray.remote(num_cpus=1, num_returns=1 + BUCKETS, max_retries=TASK_RETRIES)(split_flat)
    joining = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(join)
    results = [splitting.remote(group) for group in groups]
    joined = [joining.remote(*arrays) for arrays in zip(*(result[1:] for result in results), strict=True)]
    return ray.get([result[0] for result in results]), ray.get(joined)


@contextmanager
def _ray_data_settings(block_mib: float) -> Generator[None]:
    """Apply `_data_context` within the block."""
    with DataContext.current(_data_context(block_mib)), warnings.catch_warnings():
        # Ray Data has no other parameter for retries; Ray is pinned below the version that removes this one.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        # Few images leave some actors without work, which is no mistake of the user's.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
        # Units hold what they are made of, such as the shapes that people drew on a hundred images.
        warnings.filterwarnings("ignore", "The serialized size of your read function")
        yield


def _data_context(block_mib: float) -> DataContext:
    """Settings of Ray Data for our jobs.

    Blocks are small: 2 MiB of logits are seconds of CRF for any image size and number of classes, since both grow
    alike. Ray's default of 128 MiB would be minutes, repeated in full when a worker dies.
    """
    context = DataContext.get_current().copy()
    context.target_max_block_size = int(block_mib * 2**20)
    context.target_min_block_size = 1
    context.enable_progress_bars = False
    context.actor_init_retry_on_errors = True
    context.actor_init_max_retries = 2
    context.max_consecutive_actor_init_deaths = 3
    return context
