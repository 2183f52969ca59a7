"""Parameter search per chunk of images: fetch and check, infer, refine and count; then the outcome over all chunks.

    LabelledChunk (encoded images, labels)  ->  ScoredChunk (logits, encoded images, labels)  ->  ChunkCounts

A chunk is a shard of the plan. Images travel encoded: a step that needs pixels decodes them. Nothing here imports Ray.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import process_time

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from pipeline.classes import ClassMap
from pipeline.config import DecodeConfig, RefineConfig
from pipeline.errors import InputError, LabelError
from pipeline.image import labels
from pipeline.image.decode import decode_image
from pipeline.image.encode import mask_png
from pipeline.image.labels import Coding
from pipeline.records import Int64, Item, items_to_table, scored_from_table
from pipeline.refine.refiner import Refiner
from pipeline.run.ledger import Ledger
from pipeline.run.stages import InferStage, Job, keep_freed_memory
from pipeline.score.metrics import Interval, Scores, bootstrap, bootstrap_each
from pipeline.source.plan import read_items
from pipeline.source.shard import Shard, read_failure
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.tune.search import (
    FIXED_PARAMS,
    SEARCHED_PARAMS,
    Candidate,
    Recommendation,
    best_index,
    best_index_per_fold,
    fold_of_each_image,
    recommend,
    refine_and_count,
)

LABELS_AHEAD = 8
"""Concurrent reads of labels, which hide the latency of an object store."""
RESULT_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("stage", pa.int32(), nullable=False),
        *((name, pa.float64()) for name in SEARCHED_PARAMS),
        ("pos_w", pa.float64()),
        ("pos_xy", pa.float64()),
        ("iterations", pa.int32()),
        pa.field("images", pa.int64(), nullable=False),
        *((name, pa.float64()) for name in ("mean_iou", "gain", "gain_low", "gain_high")),
        *((name, pa.float64()) for name in ("pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")),
        ("class_iou", pa.list_(pa.float64())),
        ("seconds_per_image", pa.float64()),
        ("not_refined", pa.int64()),
        ("counts", pa.list_(pa.int64())),
    ]
)
"""`stage` as in `search.Candidate`; `counts` is the confusion matrix, K rows of K + 1."""


@dataclass(frozen=True, slots=True)
class LabelledChunk:
    """Usable images of one shard, encoded, and their labels."""

    items: pa.Table
    """ITEM_SCHEMA."""
    labels: dict[str, bytes]
    """Checked PNG by key."""


@dataclass(slots=True)
class ChunkProblems:
    """Usable images, left-out images and invalid labels of one shard."""

    images: int = 0
    """Number of usable images."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(key, reason) of images that cannot be used."""
    faults: list[str] = field(default_factory=list)
    """Errors of invalid labels; one is enough to stop the search."""


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """Images of one shard with logits."""

    scored: pa.Table
    """SCORED_SCHEMA."""
    labels: dict[str, bytes]


@dataclass(slots=True)
class ChunkCounts:
    """Counts of the refined masks of a chunk for one candidate."""

    keys: list[str]
    """Keys of the N counted images."""
    counts_nkk: Int64
    """(N, K, K + 1) confusion counts, see `metrics.confusion`."""
    bands_bkk: Int64
    """(B, K, K + 1) sums over the images, within each trimap."""
    left_out: list[tuple[str, str]]
    """(key, reason) of images without logits."""
    notes: Counter[str]
    """Images whose refinement failed or timed out, by code of the reason."""
    seconds: float
    """Processor time of decoding, refining and counting."""


def fetch_chunk(
    job: Job, shard: Shard, label_urls: Mapping[str, Url], coding: Coding
) -> tuple[LabelledChunk, ChunkProblems]:
    """Fetch the images of a shard that have a label, and the labels as class ids, checked against their images."""
    problems = ChunkProblems()
    unlabelled = {member.key for member in shard.members()[: shard.max_rows]} - set(label_urls)
    problems.left_out += [(key, "no label") for key in sorted(unlabelled)]
    items = list(read_items(shard, job.cfg.read, max_bytes=job.max_bytes, skip=unlabelled))
    usable: list[Item] = []
    pngs: dict[str, bytes] = {}
    with ThreadPoolExecutor(LABELS_AHEAD, thread_name_prefix="labels") as pool:
        urls = [label_urls[item.key] for item in items]
        for item, png in zip(items, pool.map(objects.read_bytes, urls), strict=True):
            ids = _label_ids(item, png, label_urls[item.key], job, problems, coding=coding)
            if ids is not None:
                usable.append(item)
                pngs[item.key] = ids
    problems.images = len(usable)
    return LabelledChunk(items_to_table(usable), pngs), problems


def _label_ids(item: Item, png: bytes, url: Url, job: Job, problems: ChunkProblems, *, coding: Coding) -> bytes | None:
    """Label as a PNG of class ids; None, with the reason in `problems`, unless both can be read and have one size."""
    if item.failure:
        problems.left_out.append((item.key, item.failure.code))
        return None
    try:
        image = decode_image(item.data, job.cfg.decode)
        label_hw = labels.decode_label(
            png,
            job.classes,
            name=str(url),
            height=image.height,
            width=image.width,
            coding=coding,
            orientation=image.orientation,
        )
    except InputError as error:
        problems.left_out.append((item.key, read_failure(error).code))
        return None
    except LabelError as error:
        problems.faults.append(str(error))
        return None
    return png if coding == labels.IDS else mask_png(label_hw, job.classes)


class Scorer:
    """Network of a search: the inference stage of a run, so that both give the same logits."""

    def __init__(self, job: Job, *, threads: int) -> None:
        self.stage = InferStage(job, Ledger(), threads=threads)

    def score(self, labelled: LabelledChunk) -> ScoredChunk:
        """Compute the logits of every image of a chunk."""
        return ScoredChunk(self.stage(labelled.items), labelled.labels)


def count_chunk(
    chunk: ScoredChunk, refine: RefineConfig, classes: ClassMap, cfg: DecodeConfig, widths_px: Sequence[float] = ()
) -> ChunkCounts:
    """Refine every image of a chunk with the settings `refine`, and count its masks against the labels."""
    keep_freed_memory()
    started = process_time()
    shape = len(classes), len(classes) + 1
    refiner = Refiner(refine, classes)
    all_counts: list[Int64] = []
    counts = ChunkCounts(
        [], np.zeros((0, *shape), np.int64), np.zeros((len(widths_px), *shape), np.int64), [], Counter(), 0
    )
    for scored in scored_from_table(chunk.scored):
        key = scored.item.key
        if scored.item.failure:
            counts.left_out.append((key, scored.item.failure.code))
            continue
        image = decode_image(scored.item.data, cfg)
        truth = labels.decode_label(chunk.labels[key], classes, name=key, height=image.height, width=image.width)
        image_counts = refine_and_count(scored, image, truth, refiner, widths_px=widths_px)
        counts.keys.append(key)
        all_counts.append(image_counts.counts_kk)
        counts.bands_bkk += image_counts.bands_bkk
        if image_counts.note:
            counts.notes[image_counts.note.partition(":")[0]] += 1
    counts.counts_nkk = np.array(all_counts, np.int64).reshape(-1, *shape)
    counts.seconds = process_time() - started
    return counts


# ---------------------------------------------------------------- the outcome


@dataclass(slots=True)
class CandidateResult:
    """Counts of one candidate over all images."""

    candidate: Candidate
    counts_fkk: Int64
    """(F, K, K + 1) sums over the images of each fold."""
    images: int = 0
    seconds: float = 0.0
    """Processor time over all images."""
    notes: Counter[str] = field(default_factory=Counter)
    """As in `ChunkCounts`."""
    bands_bkk: Int64 | None = None
    """As in `ChunkCounts`; None where no trimaps were counted."""

    def add(self, counts: ChunkCounts, fold_n: npt.NDArray[np.intp]) -> None:
        """Add the counts of a chunk; `fold_n` is the fold of each image."""
        np.add.at(self.counts_fkk, fold_n, counts.counts_nkk)
        self.images += len(counts.keys)
        self.seconds += counts.seconds
        self.notes += counts.notes
        if len(counts.bands_bkk):
            self.bands_bkk = counts.bands_bkk + (0 if self.bands_bkk is None else self.bands_bkk)

    @property
    def scores(self) -> Scores:
        """Scores over all images."""
        return Scores(self.counts_fkk.sum(axis=0))

    @property
    def mean_iou(self) -> float:
        """Mean IoU over all images, 0 to 1."""
        return float(self.scores.mean_iou)


@dataclass(frozen=True, slots=True)
class ComparedCandidate:
    """A candidate of the final comparison."""

    result: CandidateResult
    gain: Interval | None
    """Mean IoU minus that without a CRF; None for no CRF itself."""
    band_ious: tuple[float, ...]
    """Mean IoU within each trimap."""

    @property
    def name(self) -> str:
        """Name of the candidate."""
        return self.result.candidate.name


@dataclass(frozen=True, slots=True)
class ClassGain:
    """IoU of one class without a CRF and with the best parameters."""

    name: str
    before: float
    """IoU without a CRF; NaN for a class in no label and no mask."""
    after: float
    gain: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOutcome:
    """Outcome of a search."""

    results: Sequence[CandidateResult]
    """Results in the order of trying, no CRF first."""
    best: CandidateResult
    """Result with the highest mean IoU among those with a CRF."""
    contenders: Sequence[ComparedCandidate]
    """No CRF, the best, then the published presets by descending mean IoU."""
    class_gains: Sequence[ClassGain]
    verdict: Recommendation
    widths_px: Sequence[float]
    """Half widths of the trimaps, px."""

    @property
    def none(self) -> CandidateResult:
        """Result without a CRF."""
        return self.results[0]


def results_per_fold(results: Sequence[CandidateResult]) -> list[CandidateResult]:
    """Cross-validation: for each fold, the CRF result that is best on the other folds."""
    crfs = [result for result in results if result.candidate.params]
    return [crfs[index] for index in best_index_per_fold(np.stack([result.counts_fkk for result in crfs]))]


def best_result(results: Sequence[CandidateResult]) -> CandidateResult:
    """The CRF with the highest mean IoU."""
    crfs = [result for result in results if result.candidate.params]
    return crfs[best_index(np.stack([result.counts_fkk.sum(axis=0) for result in crfs]))]


def conclude_search(
    results: Sequence[CandidateResult],
    counts_of: Callable[[CandidateResult], Int64],
    classes: ClassMap,
    *,
    widths_px: Sequence[float],
    samples: int,
    seed: int,
) -> SearchOutcome:
    """Choose the best candidate and compare it with no CRF and the presets, with bootstrap intervals.

    Args:
        results: results of all candidates, no CRF first; no CRF, the best and the presets have trimap counts.
        counts_of: returns the (N, K, K + 1) counts per image of a result; called for compared candidates and for the
            choices of the folds.
        classes: class names.
        widths_px: half widths of the trimaps, px.
        samples: bootstrap resamples.
        seed: seed of the bootstrap.
    """
    none_nkk, best = counts_of(results[0]), best_result(results)
    best_nkk = counts_of(best)
    fold_choices = np.stack([counts_of(result) for result in results_per_fold(results)])
    fold_choices_nkk = fold_choices[fold_of_each_image(len(none_nkk)), np.arange(len(none_nkk))]

    def contender(result: CandidateResult) -> ComparedCandidate:
        against = None
        if result.candidate.params:
            against = bootstrap(
                counts_of(result), lambda scores: scores.mean_iou, against_nkk=none_nkk, samples=samples, seed=seed
            )
        ious = Scores(result.bands_bkk).mean_iou if result.bands_bkk is not None else ()
        return ComparedCandidate(result, against, tuple(map(float, ious)))

    presets = [result for result in results[1:] if result.candidate.stage == 0 and result is not best]
    presets.sort(key=lambda result: -result.mean_iou)
    gains = bootstrap_each(best_nkk, lambda scores: scores.iou, against_nkk=none_nkk, samples=samples, seed=seed)
    ious = zip(classes.names, results[0].scores.iou, best.scores.iou, gains, strict=True)
    return SearchOutcome(
        results=results,
        best=best,
        contenders=[contender(result) for result in (results[0], best, *presets)],
        class_gains=[ClassGain(name, float(before), float(after), gain) for name, before, after, gain in ious],
        verdict=recommend(best_nkk, fold_choices_nkk, none_nkk, samples=samples, seed=seed),
        widths_px=widths_px,
    )


def results_table(outcome: SearchOutcome) -> pa.Table:
    """One row per candidate, in the order of trying; intervals for compared candidates only."""
    gains = {contender.name: contender.gain for contender in outcome.contenders}
    rows = []
    for result in outcome.results:
        params, gain, scores = result.candidate.params, gains.get(result.candidate.name), result.scores
        rows.append(
            {"name": result.candidate.name, "stage": result.candidate.stage}
            | {name: getattr(params, name, None) for name in (*SEARCHED_PARAMS, *FIXED_PARAMS)}
            | {
                "images": result.images,
                "mean_iou": result.mean_iou,
                "gain": result.mean_iou - outcome.none.mean_iou,
                "gain_low": gain.low if gain else None,
                "gain_high": gain.high if gain else None,
                "pixel_accuracy": float(scores.pixel_accuracy),
                "mean_accuracy": float(scores.mean_accuracy),
                "frequency_weighted_iou": float(scores.frequency_weighted_iou),
                "class_iou": scores.iou.tolist(),
                "seconds_per_image": result.seconds / max(result.images, 1),
                "not_refined": result.notes.total(),
                "counts": result.counts_fkk.sum(axis=0).ravel().tolist(),
            }
        )
    return pa.Table.from_pylist(rows, schema=RESULT_SCHEMA)


def params_yaml(outcome: SearchOutcome, base: RefineConfig, *, facts: Mapping[str, str]) -> str:
    """Text of params.yaml for `segment_dataset --config`: the best parameters, or engine none if no CRF helps."""
    gain, fold_choices = outcome.verdict.gain, outcome.verdict.fair_gain
    chosen = outcome.best.candidate.config(base)
    comments = [f"{name}: {value}" for name, value in facts.items()]
    comments += [f"mean IoU {outcome.none.mean_iou:.4f} without a CRF, {outcome.best.mean_iou:.4f} with the best"]
    comments += [f"difference {gain.value:+.4f}, 95% interval {gain.low:+.4f} to {gain.high:+.4f}"]
    comments += [
        f"cross-validated {fold_choices.value:+.4f}, 95% interval {fold_choices.low:+.4f} to {fold_choices.high:+.4f}"
    ]
    if outcome.verdict.helps:
        data = {
            name: getattr(chosen, name)
            for name in ("engine", "preset", *SEARCHED_PARAMS, *FIXED_PARAMS, "prune", "window_px")
        }
    else:
        comments += ["no CRF: an interval of the difference includes 0 or lies below"]
        data = {"engine": "none"}
    lines = "".join(f"# {' '.join(line.split())}\n" for line in comments)
    return lines + yaml.safe_dump({"refine": data}, sort_keys=False)
