"""Where the stages of a run work: on Ray, or in processes of this machine.

    with opened(kind, cfg, forks) as flow:         connects to Ray, or has a server of workers on this machine
        segment_missing(flow, run, job, missing, before) -> RunProgress

Both do the same work with the same stages and write the same rows; `flow_choice.py` chooses. Ray is imported only where
it is used.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra import machine, preflight
from infra.progress import Reporter
from jobs.flow_choice import FlowKind
from pipeline.config import RefineConfig, SegmentConfig
from pipeline.errors import ConfigError
from pipeline.infer import segmenter
from pipeline.records import Footprint
from pipeline.run import processes, rehearsal, workers
from pipeline.run.footers import IndexWriter
from pipeline.run.forks import Forks
from pipeline.run.forks import opened as opened_forks
from pipeline.run.ledger import RunProgress
from pipeline.run.pending import PendingShard
from pipeline.run.progress import Snapshot, write_progress
from pipeline.run.stages import Job
from pipeline.run.workers import Resources, Workers
from pipeline.store.url import Url

if TYPE_CHECKING:
    from jobs.run import Run

log = logging.getLogger(__name__)

Nodes = list[dict[str, float]]
"""Resources of each node, by Ray's names."""


@dataclass(frozen=True, slots=True)
class OpenedFlow:
    """Where the stages of a run work, once it is there: the nodes of Ray, or a server of workers on this machine."""

    nodes: Nodes = field(default_factory=list)
    forks: Forks | None = None


NO_NETWORK = Footprint(weight_bytes=0, num_classes=1, stride=1)
"""Memory footprint of scoring existing masks: no network is loaded."""
NO_REFINEMENT = RefineConfig(engine="none")
"""Refinement of existing masks: none, so no node needs an engine."""


@contextmanager
def opened(kind: FlowKind, cfg: SegmentConfig, forks: Forks | None) -> Generator[OpenedFlow]:
    """Connect to Ray, or let this process end its workers in order, while the block lasts.

    Args:
        kind: where the stages work.
        cfg: of the run.
        forks: server that was started early; None starts one.
    """
    if kind == "ray":
        from infra import session

        with session.connect(dashboard=cfg.runtime.dashboard) as nodes:
            yield OpenedFlow(nodes=nodes)
    elif kind == "processes":
        with machine.ended_by_sigterm(), nullcontext(forks) if forks else opened_forks() as server:
            yield OpenedFlow(forks=server)
    else:
        yield OpenedFlow()


def segment_missing(
    flow: OpenedFlow, run: "Run", job: Job, missing: Sequence[PendingShard], before: Snapshot
) -> RunProgress:
    """Run the flow over the missing work, with progress that counts in what was committed `before`."""
    if flow.forks:
        progress = _in_processes(run, job, flow.forks, missing, before)
    else:
        progress = _on_ray(run, job, flow.nodes, missing, before)
    log_stages(progress)
    if progress.left_out.counts:
        log.info("members of tars that were left out: %s", progress.left_out)
    return progress


def _on_ray(run: "Run", job: Job, nodes: Nodes, missing: Sequence[PendingShard], before: Snapshot) -> RunProgress:
    from infra import session
    from infra.metrics import RunMetrics
    from pipeline.run import flow

    crew, _ = engage(run, nodes)
    log.info("parts of %d rows", job.rows_per_part)
    ledger, metrics = flow.RemoteLedger(IndexWriter(run.url)), RunMetrics(run.fingerprint[:12])
    reporter = _reporter(run, crew, ledger.progress, before, metrics.record)
    try:
        with reporter:
            flow.run_flow(job, missing, crew, ledger)
    finally:
        warn_of_dead_workers(reporter.latest, session.worker_logs)
    return reporter.latest


def _in_processes(run: "Run", job: Job, forks: Forks, missing: Sequence[PendingShard], before: Snapshot) -> RunProgress:
    here = machine.resources()
    text = "in processes of this machine, without Ray: %g CPU, %.1f GiB; --runtime.flow ray starts Ray"
    log.info(text, here["CPU"], here["memory"] / workers.GIB)
    crew, _ = plan_crew(run, [here])
    log.info("parts of %d rows", job.rows_per_part)
    ledger = processes.SharedLedger(IndexWriter(run.url))
    try:
        with _reporter(run, crew, ledger.progress, before) as reporter:
            processes.run_flow(job, missing, crew, ledger, forks)
    except Exception:
        forks.keeps_logs = True
        log.warning("logs of the workers: %s", forks.logs)
        raise
    forks.keeps_logs |= bool(reporter.latest.dead_workers)
    warn_of_dead_workers(reporter.latest, lambda: forks.logs)
    return reporter.latest


def _reporter(
    run: "Run",
    crew: Workers,
    progress: Callable[[], RunProgress],
    before: Snapshot,
    record: Callable[[Snapshot], None] | None = None,
) -> Reporter:
    """Reporter that writes each snapshot to `_run/progress.json`, and hands it to `record`."""

    def publish(snapshot: Snapshot) -> None:
        write_progress(run.url, snapshot)
        if record:
            record(snapshot)

    return Reporter(
        progress,
        planned=before.planned,
        already=before.committed,
        failed_before=before.failed,
        slots={"infer": crew.infer, "refine": crew.refine},
        every_s=run.cfg.runtime.progress_s,
        publish=publish,
    )


def engage(run: "Run", nodes: Nodes) -> tuple[Workers, Resources]:
    """Wait for the cluster, check its nodes, and plan the workers of each stage; returns them and the cluster's total.

    Raises:
        ConfigError: the cluster is too small, also for the file of `runtime.crew`; or as `check_nodes`.
    """
    from infra import session
    from infra.nodes import check_nodes

    runtime = run.cfg.runtime
    expected = {"CPU": runtime.expect_cpus, "GPU": runtime.expect_gpus}
    session.wait_for_expected(expected, limit_s=runtime.start_limit_s)
    preflight.warn_of_local_output(run.url, nodes)
    if len(nodes) > 1:
        check_nodes(run.cfg.refine if run.model else NO_REFINEMENT)
    return plan_crew(run, nodes)


def plan_crew(run: "Run", nodes: Nodes) -> tuple[Workers, Resources]:
    """Plan the workers of each stage; returns them and the resources of all nodes together.

    Raises:
        ConfigError: the nodes are too small, also for the file of `runtime.crew`.
    """
    cfg = run.cfg
    runtime = cfg.runtime
    network = segmenter.footprint(run.model, cfg.infer.output_stride) if run.model else NO_NETWORK
    resources = workers.cluster_nodes(nodes, runtime)
    cluster = sum(resources, start=Resources(0, 0, 0))
    if runtime.crew:
        cfg = cfg.model_copy(update={"runtime": rehearsal.runtime_of(runtime, Url(runtime.crew), cluster)})
    crew = workers.plan_workers(cfg, resources, network)
    if runtime.crew and crew.refine < (cfg.runtime.refine_workers or 0):
        message = f"{runtime.crew} has {cfg.runtime.refine_workers} refiners, and {crew.refine} fit into {cluster}"
        raise ConfigError(message, hint="add nodes with memory, or lower --refine.window-px")
    log.info("%s", crew.describe())
    return crew, cluster


def warn_of_dead_workers(progress: RunProgress, find_logs: Callable[[], object]) -> None:
    """Name the logs of the workers that died; their folder is looked up where some did, while Ray still runs."""
    if progress.dead_workers:
        names = ", ".join(progress.dead_workers)
        log.warning("workers died: %s; their logs are worker-*-PID.* in %s", names, find_logs())


def log_stages(progress: RunProgress) -> None:
    """Log the time of every stage and the bytes it handed on."""
    for stage, seconds in progress.seconds.items():
        images = max(progress.done.get(stage, 0), 1)
        kib = progress.bytes_out.get(stage, 0) / images / 1024
        log.info(
            "%-7s %8.1f s busy, %7.1f ms and %7.1f KiB handed on per image", stage, seconds, seconds / images * 1e3, kib
        )
