"""Parameter search on Ray: the functions of `pipeline.tune.chunks` as tasks over all chunks.

    read and check (tasks)  ->  network (actors, one pass)  ->  refine and count (a task per candidate and chunk)

Encoded images, labels and logits stay in the object store, which spills to disk; only counts come back to the driver.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, TypeVar

import numpy as np
import ray

from pipeline.config import RefineConfig
from pipeline.errors import AtrousError, JobError, LabelError
from pipeline.image.labels import Coding
from pipeline.records import Int64
from pipeline.run.progress import bar
from pipeline.run.stages import Job
from pipeline.run.workers import GIB, READ_CPUS, Workers
from pipeline.source.shard import Shard
from pipeline.store.url import Url
from pipeline.tune import search
from pipeline.tune.chunks import (
    CandidateResult,
    ChunkProblems,
    Scorer,
    SearchOutcome,
    best_result,
    conclude_search,
    count_chunk,
    fetch_chunk,
    results_per_fold,
)
from pipeline.tune.config import TuneConfig
from pipeline.tune.search import NO_CRF, Candidate

log = logging.getLogger(__name__)

MAX_PENDING = 1000
"""Tasks submitted to Ray at once: enough for the autoscaler to add nodes."""
_PROGRESS_S = 5.0
RETRIES = 8
"""Retries of a task after a lost node or a dead worker."""
MAX_FAULTS = 20
"""Most invalid labels that the error names."""

T = TypeVar("T")


def score_images(
    job: Job, shards: Sequence[Shard], label_urls: Mapping[str, Url], coding: Coding, workers: Workers
) -> tuple[list[Any], list[tuple[str, str]]]:
    """Read and check every image and label, then run the network over them once.

    Returns references to the chunks, and (key, reason) of the images left out.

    Raises:
        LabelError: naming the first invalid labels.
    """
    fetched, left_out = fetch_chunks(job, shards, label_urls, coding)
    return infer_chunks(job, fetched, workers), left_out


def fetch_chunks(
    job: Job, shards: Sequence[Shard], label_urls: Mapping[str, Url], coding: Coding
) -> tuple[list[Any], list[tuple[str, str]]]:
    """Read and check all images and labels; returns references to the chunks with usable images, in shard order.

    Raises:
        LabelError: naming the first invalid labels.
    """
    task: Any = ray.remote(num_cpus=READ_CPUS, num_returns=2, max_retries=RETRIES)(fetch_chunk)
    chunks: dict[int, Any] = {}
    findings: dict[int, ChunkProblems] = {}

    def start(index: int, shard: Shard) -> Any:
        urls = {member.key: label_urls[member.key] for member in shard.members() if member.key in label_urls}
        chunks[index], problems = task.remote(job, shard, urls, coding)
        return problems

    calls = ((index, lambda index=index, shard=shard: start(index, shard)) for index, shard in enumerate(shards))
    for index, ref in _finished("reading", calls, total=len(shards)):
        findings[index] = _get(ref)
    faults = [fault for index in sorted(findings) for fault in findings[index].faults]
    if faults:
        more = [f"and {len(faults) - MAX_FAULTS} more"] * (len(faults) > MAX_FAULTS)
        raise LabelError("\n".join([*faults[:MAX_FAULTS], *more]))
    usable = [chunks[index] for index in sorted(findings) if findings[index].images]
    return usable, [pair for index in sorted(findings) for pair in findings[index].left_out]


def infer_chunks(job: Job, fetched: Sequence[Any], workers: Workers) -> list[Any]:
    """Run the network over all chunks once, in actors that end afterwards; returns references to the scored chunks."""
    scorer: Any = ray.remote(Scorer).options(
        num_cpus=workers.infer_cpus,
        num_gpus=workers.infer_gpus or None,
        memory=int(workers.infer_gib * GIB),
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    threads = 4 if workers.infer_gpus else 1
    actors = [scorer.remote(job, threads=threads) for _ in range(min(workers.infer, len(fetched)))]
    calls = (
        (index, lambda index=index, chunk=chunk: actors[index % len(actors)].score.remote(chunk))
        for index, chunk in enumerate(fetched)
    )
    chunks = dict(_finished("network", calls, total=len(fetched)))
    for actor in actors:
        ray.kill(actor)
    return [chunks[index] for index in range(len(fetched))]


class SearchOnRay:
    """Counts candidates on all chunks; keeps counts per fold of every candidate, and per image of the best ones."""

    def __init__(
        self, job: Job, chunks: Sequence[Any], workers: Workers, *, base: RefineConfig, widths_px: Sequence[float]
    ) -> None:
        """Count the network's masks without a CRF first, which is fast and finds the images without logits.

        Raises:
            JobError: fewer images have logits than there are folds.
        """
        self.job, self.base, self.chunks = job, base, list(chunks)
        self._task: Any = ray.remote(count_chunk).options(
            num_cpus=1, memory=int(workers.refine_gib * GIB), max_retries=RETRIES
        )
        self._done: dict[Candidate, _Tally] = {}
        refs = {index: ref for (_, index), ref in self._count("no CRF", [NO_CRF], widths_px)}
        baseline = [_get(refs[index]) for index in range(len(self.chunks))]
        ends = list(accumulate(len(counts.keys) for counts in baseline))
        if not ends or ends[-1] < search.FOLDS:
            raise JobError(f"{ends[-1] if ends else 0} image(s) have logits, a search needs at least {search.FOLDS}")
        self._folds = np.split(search.fold_of_each_image(ends[-1]), ends[:-1])
        self.left_out = [pair for counts in baseline for pair in counts.left_out]
        self._done[NO_CRF] = self._tally(NO_CRF)
        for index, counts in enumerate(baseline):
            self._done[NO_CRF].result.add(counts, self._folds[index])
            self._done[NO_CRF].refs[index] = refs[index]

    @property
    def results(self) -> list[CandidateResult]:
        """Results of all candidates, in the order of trying."""
        return [tally.result for tally in self._done.values()]

    def count(self, title: str, candidates: Sequence[Candidate], *, widths_px: Sequence[float] = ()) -> None:
        """Count candidates on every image and within trimaps of `widths_px`; replaces their earlier results."""
        new = {candidate: self._tally(candidate) for candidate in candidates}
        for (candidate, index), ref in self._count(title, candidates, widths_px):
            new[candidate].result.add(_get(ref), self._folds[index])
            new[candidate].refs[index] = ref
            if len(new[candidate].refs) == len(self.chunks):
                complete = [tally for tally in new.values() if len(tally.refs) == len(self.chunks)]
                self._drop_beaten([*self._done.values(), *complete])
        self._done |= new
        best = best_result(self.results)
        gain = best.mean_iou - self._done[NO_CRF].result.mean_iou
        log.info("best so far: %s, mean IoU %.4f (%+.4f)", best.candidate.name, best.mean_iou, gain)

    def counts(self, result: CandidateResult) -> Int64:
        """Confusion counts per image, (N, K, K + 1), of a candidate whose counts were not dropped."""
        refs = self._done[result.candidate].refs
        return np.concatenate([_get(refs[index]).counts_nkk for index in range(len(self.chunks))])

    def _tally(self, candidate: Candidate) -> "_Tally":
        num_classes = len(self.job.classes)
        return _Tally(CandidateResult(candidate, np.zeros((search.FOLDS, num_classes, num_classes + 1), np.int64)))

    def _count(
        self, title: str, candidates: Sequence[Candidate], widths_px: Sequence[float]
    ) -> Iterator[tuple[tuple[Candidate, int], Any]]:
        """Start a task per candidate and chunk; yields each one's reference as it finishes."""
        classes, decode = ray.put(self.job.classes), self.job.cfg.decode
        calls = (
            (
                (candidate, index),
                lambda chunk=chunk, candidate=candidate: self._task.remote(
                    chunk, candidate.config(self.base), classes, decode, tuple(widths_px)
                ),
            )
            for candidate in candidates
            for index, chunk in enumerate(self.chunks)
        )
        return _finished(title, calls, total=len(candidates) * len(self.chunks))

    def _drop_beaten(self, complete: Sequence["_Tally"]) -> None:
        """Free the counts per image of beaten candidates in the object store: they cannot be chosen later."""
        crfs = [tally.result for tally in complete if tally.result.candidate.params]
        if not crfs:
            return
        needed = {result.candidate for result in [best_result(crfs), *results_per_fold(crfs)]}
        for tally in complete:
            if tally.result.candidate not in needed and tally.result.candidate.stage:
                tally.refs = dict.fromkeys(tally.refs)


@dataclass(slots=True)
class _Tally:
    """Result of a candidate, and references to its counts per image by chunk."""

    result: CandidateResult
    refs: dict[int, Any] = field(default_factory=dict)
    """Values are None once dropped."""


def search_parameters(searcher: SearchOnRay, cfg: TuneConfig, grid: Sequence[Candidate]) -> SearchOutcome:
    """Count the published parameters, the grid, then finer grids around the best; choose and compare."""
    searcher.count("published", search.reference_candidates()[1:], widths_px=cfg.trimap_px)
    searcher.count(cfg.grid, grid)
    for number in range(cfg.finer):
        params = best_result(searcher.results).candidate.params
        if params:
            tried = [result.candidate for result in searcher.results]
            searcher.count(f"finer {number + 1}", search.finer_grid(params, tried))
    best = best_result(searcher.results)
    if best.bands_bkk is None:
        searcher.count("boundaries", [best.candidate], widths_px=cfg.trimap_px)
    return conclude_search(
        searcher.results,
        searcher.counts,
        searcher.job.classes,
        widths_px=cfg.trimap_px,
        samples=cfg.samples,
        seed=cfg.seed,
    )


# ---------------------------------------------------------------- tasks


def _finished(title: str, calls: Iterable[tuple[T, Callable[[], Any]]], *, total: int) -> Iterator[tuple[T, Any]]:
    """Start calls, `MAX_PENDING` at a time; yields each one's tag and reference as it finishes, and logs progress."""
    started = logged = time.monotonic()
    waiting: dict[Any, T] = {}
    calls, done = iter(calls), 0
    while True:
        waiting |= {start(): tag for tag, start in islice(calls, MAX_PENDING - len(waiting))}
        if not waiting:
            return
        finished, _ = ray.wait(list(waiting), timeout=_PROGRESS_S, fetch_local=False)
        for ref in finished:
            done += 1
            yield waiting.pop(ref), ref
        if time.monotonic() - logged > _PROGRESS_S:
            logged = time.monotonic()
            eta = f"{(logged - started) / done * (total - done):.0f} s" if done else "?"
            log.info("%-10s %s %d/%d, ETA %s", title, bar(done / total), done, total, eta)


def _get(ref: Any) -> Any:
    """The result of a task.

    Raises:
        AtrousError: as the task raised it.
        JobError: its worker died more than `RETRIES` times, or a node with logits was lost.
    """
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AtrousError):
            raise error.cause from None
        raise
    except ray.exceptions.ObjectLostError as error:
        raise JobError("a node with logits was lost", hint="start the same command again") from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.ActorDiedError) as error:
        hint = (
            "lower --refine.window-px or --tile.tile-px, or add memory; jobs.segment_dataset names the image at fault"
        )
        raise JobError(f"a worker died {RETRIES} times: {error}", hint=hint) from error
