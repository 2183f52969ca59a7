"""A parameter search on a cluster: what `pipeline.tune.chunks` does to one chunk, done to all of them as tasks of Ray.

Images and labels are read and checked by tasks, the network lives in actors for one pass, and then every candidate is
judged on every chunk by a task of its own. Encoded images, labels and logits stay in the object store, which spills to
disk when it is full; only counts come back.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, TypeVar

import numpy as np
import ray

from infra.progress import bar
from pipeline.config import RefineConfig
from pipeline.errors import AtrousError, JobError, LabelError
from pipeline.records import Int64
from pipeline.run.stages import Job
from pipeline.run.workers import GIB, READ_CPUS, Workers
from pipeline.source.shard import Shard
from pipeline.tune import chunks as tuning
from pipeline.tune import search
from pipeline.tune.chunks import Findings, Result
from pipeline.tune.search import NO_CRF, Candidate

log = logging.getLogger(__name__)

MAX_PENDING = 1000
"""Tasks handed to Ray at once: enough for it to see that a cluster should grow."""
_PROGRESS_S = 5.0
RETRIES = 8
"""Lost nodes and dead workers that a task survives."""
MAX_FAULTS = 20
"""Faults of labels that are shown before the search stops."""

T = TypeVar("T")


def look(
    job: Job, shards: Sequence[Shard], label_urls: Mapping[str, str], crew: Workers
) -> tuple[list[Any], list[tuple[str, str]]]:
    """Read, check and score everything once; returns the chunks, and what was left out."""
    prepared, left_out = prepare(job, shards, label_urls)
    return score(job, prepared, crew), left_out


def prepare(
    job: Job, shards: Sequence[Shard], label_urls: Mapping[str, str]
) -> tuple[list[Any], list[tuple[str, str]]]:
    """Read and check everything; returns what can be used, in the order of the shards, and what was left out.

    Raises:
        LabelError: naming the first labels that are wrong.
    """
    task: Any = ray.remote(num_cpus=READ_CPUS, num_returns=2, max_retries=RETRIES)(tuning.fetch_chunk)
    kept: dict[int, Any] = {}
    found: dict[int, Findings] = {}

    def start(index: int, shard: Shard) -> Any:
        mine = {one.key: label_urls[one.key] for one in shard.members() if one.key in label_urls}
        kept[index], findings = task.remote(job, shard, mine)
        return findings

    calls = ((index, lambda index=index, shard=shard: start(index, shard)) for index, shard in enumerate(shards))
    for index, ref in collected("reading", calls, total=len(shards)):
        found[index] = fetched(ref)
    faults = [fault for index in sorted(found) for fault in found[index].faults]
    if faults:
        more = [f"and {len(faults) - MAX_FAULTS} more"] * (len(faults) > MAX_FAULTS)
        raise LabelError("\n".join([*faults[:MAX_FAULTS], *more]))
    usable = [kept[index] for index in sorted(found) if found[index].images]
    return usable, [one for index in sorted(found) for one in found[index].left_out]


def score(job: Job, prepared: Sequence[Any], crew: Workers) -> list[Any]:
    """Run the network over all chunks once, and let go of it."""
    scorer: Any = ray.remote(tuning.Scorer).options(
        num_cpus=crew.infer_cpus,
        num_gpus=crew.infer_gpus or None,
        memory=int(crew.infer_gib * GIB),
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    threads = 4 if crew.infer_gpus else 1
    actors = [scorer.remote(job, threads=threads) for _ in range(min(crew.infer, len(prepared)))]
    calls = (
        (index, lambda index=index, one=one: actors[index % len(actors)].score.remote(one))
        for index, one in enumerate(prepared)
    )
    chunks = dict(collected("network", calls, total=len(prepared)))
    for actor in actors:
        ray.kill(actor)
    return [chunks[index] for index in range(len(prepared))]


class Search:
    """Judges candidates, and keeps what a choice needs: sums by fold of all, and the images' own of a few."""

    def __init__(
        self, job: Job, chunks: Sequence[Any], crew: Workers, *, base: RefineConfig, widths_px: Sequence[float]
    ) -> None:
        """Starts with judging the masks of the network alone, which is quick and tells what there is to judge.

        Raises:
            JobError: too few images can be judged.
        """
        self.job, self.base, self.chunks = job, base, list(chunks)
        self._task: Any = ray.remote(tuning.judge_chunk).options(
            num_cpus=1, memory=int(crew.refine_gib * GIB), max_retries=RETRIES
        )
        self._done: dict[Candidate, _Tally] = {}
        refs = {index: ref for (_, index), ref in self._judged("no CRF", [NO_CRF], widths_px)}
        first = [fetched(refs[index]) for index in range(len(self.chunks))]
        ends = list(accumulate(len(one.keys) for one in first))
        if not ends or ends[-1] < search.FOLDS:
            raise JobError(f"{ends[-1] if ends else 0} image(s) can be judged, a choice needs {search.FOLDS}")
        self._folds = np.split(search.folds(ends[-1]), ends[:-1])
        self.left_out = [pair for one in first for pair in one.left_out]
        self._done[NO_CRF] = self._tally(NO_CRF)
        for index, judged in enumerate(first):
            self._done[NO_CRF].result.add(judged, self._folds[index])
            self._done[NO_CRF].refs[index] = refs[index]

    @property
    def results(self) -> list[Result]:
        """Of every candidate, in the order of trying."""
        return [tally.result for tally in self._done.values()]

    def evaluate(self, what: str, candidates: Sequence[Candidate], *, widths_px: Sequence[float] = ()) -> None:
        """Judge candidates on every image; one that was judged before is judged anew."""
        new = {candidate: self._tally(candidate) for candidate in candidates}
        for (candidate, index), ref in self._judged(what, candidates, widths_px):
            new[candidate].result.add(fetched(ref), self._folds[index])
            new[candidate].refs[index] = ref
            if len(new[candidate].refs) == len(self.chunks):
                complete = [one for one in new.values() if len(one.refs) == len(self.chunks)]
                self._forget([*self._done.values(), *complete])
        self._done |= new
        won = tuning.best_of(self.results)
        gain = won.mean_iou - self._done[NO_CRF].result.mean_iou
        log.info("best so far: %s, mean IoU %.4f (%+.4f)", won.candidate.name, won.mean_iou, gain)

    def counts(self, result: Result) -> Int64:
        """(N, K, K + 1) of a result whose counts per image were kept."""
        refs = self._done[result.candidate].refs
        return np.concatenate([fetched(refs[index]).counts_nkk for index in range(len(self.chunks))])

    def _tally(self, candidate: Candidate) -> "_Tally":
        num_classes = len(self.job.classes)
        return _Tally(Result(candidate, np.zeros((search.FOLDS, num_classes, num_classes + 1), np.int64)))

    def _judged(
        self, what: str, candidates: Sequence[Candidate], widths_px: Sequence[float]
    ) -> Iterator[tuple[tuple[Candidate, int], Any]]:
        """Judgements of every candidate on every chunk, as they come."""
        classes, decode = ray.put(self.job.classes), self.job.cfg.decode
        calls = (
            (
                (candidate, index),
                lambda one=chunk, its=candidate: self._task.remote(
                    one, its.config(self.base), classes, decode, tuple(widths_px)
                ),
            )
            for candidate in candidates
            for index, chunk in enumerate(self.chunks)
        )
        return collected(what, calls, total=len(candidates) * len(self.chunks))

    def _forget(self, complete: Sequence["_Tally"]) -> None:
        """Let go of counts per image that no choice can need: a candidate that is beaten now stays beaten."""
        crfs = [one.result for one in complete if one.result.candidate.params]
        if not crfs:
            return
        needed = {one.candidate for one in [tuning.best_of(crfs), *tuning.fold_choices(crfs)]}
        for tally in complete:
            if tally.result.candidate not in needed and tally.result.candidate.stage:
                tally.refs = dict.fromkeys(tally.refs)


@dataclass(slots=True)
class _Tally:
    """A candidate's result and, by chunk, the judgements it was added up from."""

    result: Result
    refs: dict[int, Any] = field(default_factory=dict)
    """None in the place of those that were let go."""


# ---------------------------------------------------------------- tasks


def collected(what: str, calls: Iterable[tuple[T, Callable[[], Any]]], *, total: int) -> Iterator[tuple[T, Any]]:
    """Start calls, not all at once, and give each one's tag and object as it finishes; says how far it is."""
    started = said = time.monotonic()
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
        if time.monotonic() - said > _PROGRESS_S:
            said = time.monotonic()
            eta = f"{(said - started) / done * (total - done):.0f} s" if done else "?"
            log.info("%-10s %s %d/%d, ETA %s", what, bar(done / total), done, total, eta)


def fetched(ref: Any) -> Any:
    """What a task gave.

    Raises:
        AtrousError: as the task raised it.
        JobError: its worker died again and again.
    """
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AtrousError):
            raise error.cause from None
        raise
    except ray.exceptions.ObjectLostError as error:
        raise JobError("a node went away with logits that were on it", hint="start the same command again") from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.ActorDiedError) as error:
        hint = (
            "lower --refine.window-px or --tile.tile-px, or add memory; jobs.segment_dataset names an image that kills"
        )
        raise JobError(f"a worker died {RETRIES} times: {error}", hint=hint) from error
