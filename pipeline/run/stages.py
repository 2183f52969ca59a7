"""Stages of a run: read, infer, refine, and score existing masks; Arrow tables in, Arrow tables out.

A stage is a function or small callable class that Ray Data calls in a worker process; none imports Ray. Stages record
keys in a ledger, so that an image that kills its worker fails alone.
"""

import ctypes
import faulthandler
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.classes import ClassMap
from pipeline.config import JudgeConfig, SegmentConfig
from pipeline.errors import InputError, LabelError
from pipeline.image import encode
from pipeline.prefetch import ahead
from pipeline.records import (
    ROW_SCHEMA,
    Failure,
    Image,
    Item,
    Refinement,
    Row,
    Scored,
    items_from_table,
    items_to_table,
    rows_to_table,
    scored_from_table,
    scored_to_table,
)
from pipeline.refine.engine import REFINE_ENGINES
from pipeline.refine.refiner import Refiner
from pipeline.refine.unary import active_classes
from pipeline.run import parts
from pipeline.run.ledger import CommitLedger, LedgerClient, work_guarded
from pipeline.run.masks import open_masks
from pipeline.run.parts import FEWEST_ROWS
from pipeline.run.pending import PendingShard
from pipeline.run.pixels import core_of, decode_item, guide_of, visible, without_halo
from pipeline.score import answers
from pipeline.score.answers import AnswerJudge
from pipeline.source.left_out import LeftOut
from pipeline.source.plan import read_items
from pipeline.source.raster import RGB, NetworkBands
from pipeline.source.shard import read_failure
from pipeline.source.truth import RasterLabels
from pipeline.store.url import Url

if TYPE_CHECKING:
    from pipeline.infer.segmenter import Prediction

INFER_ROWS = 32
"""Images per call of a network: enough to fill batches while the next images are decoded."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3), from malloc.h."""


@dataclass(frozen=True, slots=True)
class Job:
    """Config, classes and fingerprints of a run, for its workers."""

    cfg: SegmentConfig
    classes: ClassMap
    run_url: Url
    model_fp: str
    config_fp: str
    preview_share: float
    """Share of the rows that carry previews, 0 to 1."""
    judge: JudgeConfig | None = None
    """Settings for the pixel counts against labels; None without evaluation."""
    masks: Url | None = None
    """Existing masks to score instead of running the network; None otherwise."""
    bands: NetworkBands = RGB
    """Bands that the network takes, and the scale of their samples."""
    truth: RasterLabels | None = None
    """Labels of rasters; None without, and for other sources."""
    rows_per_part: int = FEWEST_ROWS
    """Rows that are committed together."""
    owner: int | None = None
    """Generation of the lease that the driver holds, for the footers of parts."""

    @property
    def max_bytes(self) -> int:
        """Largest encoded image, bytes."""
        return int(self.cfg.decode.max_mib * 2**20)

    def failed(self, item: Item, failure: Failure) -> Row:
        """Failure row of an item."""
        return encode.failed_row(item, failure, model_fp=self.model_fp, config_fp=self.config_fp)


@contextmanager
def kill_process_after(seconds: float) -> Generator[Callable[[], None]]:
    """Watchdog: kill this process when the block takes longer, even while native code holds the GIL.

    The ledger then finds the key that hung, as it does after a crash. The yielded function restarts the timer; called
    for every image, it limits the time per image.
    """

    def restart() -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)

    restart()
    try:
        yield restart
    finally:
        faulthandler.cancel_dump_traceback_later()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for reuse: returning it cost a refiner a tenth of its time in page faults.

    Every image needs the same large maps again. Without effect on other C libraries. See mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for parameter, value in ((M_ARENA_MAX, 1), (M_TRIM_THRESHOLD, 1 << 30), (M_MMAP_THRESHOLD, 1 << 30)):
        mallopt(parameter, value)


def read_shards(job: Job, pending: Sequence[PendingShard], ledger: LedgerClient) -> Iterator[pa.Table]:
    """Read the keys of pending shards that are not committed; yields tables of `ITEM_SCHEMA`, about one block each."""
    held: list[Item] = []
    size = 0
    for pending_shard in pending:
        shard, left_out = pending_shard.shard, LeftOut()
        skip, most = pending_shard.skip, job.max_bytes
        items = read_items(shard, job.cfg.read, max_bytes=most, skip=skip, left_out=left_out, truth=job.truth)
        for item in items:
            held.append(item)
            size += len(item.data)
            if size >= job.cfg.runtime.block_mib * 2**20 or len(held) == INFER_ROWS:
                yield _items_out(held, ledger)
                held, size = [], 0
        if left_out.counts:
            ledger.count_left_out(shard.id, left_out)
    if held:
        yield _items_out(held, ledger)
    ledger.flush()


def commit_part(job: Job, tables: Sequence[pa.Table], ledger: CommitLedger) -> None:
    """Commit tables of rows as one part, and tell the ledger. Idempotent: the same rows make the same part."""
    started = perf_counter()
    filled = [table.select(ROW_SCHEMA.names).cast(ROW_SCHEMA) for table in tables if len(table)]
    if not filled:
        return
    part = parts.write_part(job.run_url, pa.concat_tables(filled), job.classes, owner=job.owner)
    ledger.commit(part.totals.rows, part.totals.error_codes, perf_counter() - started)
    ledger.add_to_index(part)


def _items_out(items: list[Item], ledger: LedgerClient) -> pa.Table:
    ledger.leave("read", [item.key for item in items], sum(item.seconds_read for item in items))
    return _count_bytes(ledger, "read", items_to_table(items))


class InferStage:
    """Inference: encoded images in, logits out. One network, and a few threads that decode ahead of it."""

    def __init__(self, job: Job, ledger: LedgerClient, *, threads: int) -> None:
        # Imported here: refiners import this module too, and torch would cost them memory.
        import torch  # noqa: PLC0415

        from pipeline.infer.segmenter import Segmenter  # noqa: PLC0415
        from pipeline.models import checkpoint  # noqa: PLC0415

        torch.set_num_threads(threads)
        self.job, self.ledger = job, ledger
        self.segmenter = Segmenter(checkpoint.load_checkpoint(job.cfg.checkpoint), job.cfg.infer, job.cfg.tile)
        self.pool = ThreadPoolExecutor(job.cfg.runtime.decode_threads, thread_name_prefix="decode")

    def __call__(self, table: pa.Table) -> pa.Table:
        """ITEM_SCHEMA to SCORED_SCHEMA, row for row."""
        scored = work_guarded(
            self.ledger,
            "infer",
            items_from_table(table),
            key=lambda item: item.key,
            work=self._segment,
            seconds=lambda scored: scored.seconds_decode + scored.seconds_infer,
            failure_of=lambda item, dead: _fail(
                Scored(item), Failure("crashed", f"killed the network's worker: {dead}")
            ),
        )
        return _count_bytes(self.ledger, "infer", scored_to_table(scored))

    def _segment(self, items: Sequence[Item]) -> list[Scored]:
        """Decode and segment; returns each item with logits or with its failure."""
        decoded: list[tuple[Scored, bool]] = []  # without images, which would all stay in memory

        def images(progress: Callable[[], None]) -> Iterator[Image]:
            depth = self.segmenter.batch + self.job.cfg.runtime.decode_threads
            for scored, image in ahead(self.pool, self._decode, items, depth):
                progress()
                decoded.append((scored, image is not None))
                if image is not None:
                    yield image

        with kill_process_after(self.job.cfg.runtime.item_timeout_s) as progress:
            predictions = iter(list(self.segmenter(images(progress))))
        return [self._scored(scored, next(predictions)) if good else scored for scored, good in decoded]

    def _scored(self, scored: Scored, prediction: "Prediction") -> Scored:
        """Keep only the logits of active classes: the refiner would drop the others after their transfer."""
        if prediction.error:
            return _fail(scored, read_failure(prediction.error))
        refine, logits = self.job.cfg.refine, prediction.logits_khw
        if logits is None:
            raise ValueError(f"{scored.item.key} has neither logits nor an error")
        ids, lost = active_classes(logits, prune=0 if refine.engine == "none" else refine.prune)
        return replace(
            scored, logits_khw=logits[list(ids)], class_ids=ids, pruned_mass=lost, seconds_infer=prediction.seconds
        )

    def _decode(self, item: Item) -> tuple[Scored, Image | None]:
        started = perf_counter()
        scored = Scored(
            item,
            stride=self.segmenter.stride,
            align_corners=self.segmenter.align_corners,
            inference=self.segmenter.inference,
        )
        if item.failure:
            return scored, None
        if item.outer is not None and not item.data:
            return _without_data(scored), None
        if self.job.judge and item.label is None:  # before the network: its mask could not be scored
            return _fail(scored, answers.NO_LABEL), None
        try:
            image = decode_item(item, self.job.cfg, self.job.bands)
        except InputError as error:
            return _fail(scored, read_failure(error), seconds_decode=perf_counter() - started), None
        core = without_halo(item, image)
        if core.valid_hw is not None and not core.valid_hw.any():
            return replace(_without_data(scored), seconds_decode=perf_counter() - started), None
        kept = item if self._needs_pixels_later(item, image) else replace(item, data=b"")
        scored = replace(scored, item=kept, height=image.height, width=image.width, orientation=image.orientation)
        return replace(scored, position=image.position, seconds_decode=perf_counter() - started), image

    def _needs_pixels_later(self, item: Item, image: Image) -> bool:
        preview = encode.is_preview(item.key, self.job.preview_share)
        judged = self.job.judge is not None
        needs_pixels = REFINE_ENGINES[self.job.cfg.refine.engine].needs_pixels
        return needs_pixels or image.valid_hw is not None or preview or judged


class RefineStage:
    """Refinement: logits in, rows out. Masks are refined on one core, encoded, and scored if there is a judge."""

    def __init__(self, job: Job, ledger: LedgerClient) -> None:
        keep_freed_memory()
        self.job, self.ledger = job, ledger
        self.refiner = Refiner(job.cfg.refine, job.classes)
        self.judge = AnswerJudge(job.judge, job.classes, job.cfg.refine.engine) if job.judge else None

    def __call__(self, table: pa.Table) -> pa.Table:
        """SCORED_SCHEMA to ROW_SCHEMA, row for row."""
        timed = work_guarded(
            self.ledger,
            "refine",
            scored_from_table(table),
            key=lambda scored: scored.item.key,
            work=lambda batch: [self._timed(scored) for scored in batch],
            seconds=lambda timed: timed[1],
            failure_of=lambda scored, dead: (
                self.job.failed(scored.item, Failure("refine_crashed", f"killed its refiner: {dead}")),
                0.0,
            ),
        )
        return _count_bytes(self.ledger, "refine", rows_to_table([row for row, _ in timed]))

    def _timed(self, scored: Scored) -> tuple[Row, float]:
        """Row of one image, and the time it took here, seconds: its column of decoding has the network's stage too."""
        started = perf_counter()
        return self._row(scored), perf_counter() - started

    def _row(self, scored: Scored) -> Row:
        """Refine and encode one image; with a judge, read its label first and count its mask against it."""
        job, item = self.job, scored.item
        if item.failure:
            return replace(job.failed(item, item.failure), seconds_decode=scored.seconds_decode)
        if scored.logits_khw is None:
            return encode.empty_row(scored, classes=job.classes, model_fp=job.model_fp, config_fp=job.config_fp)
        started = perf_counter()
        try:
            with kill_process_after(job.cfg.runtime.item_timeout_s) as progress:
                image = decode_item(item, job.cfg, job.bands) if item.data else None
                truth_hw = self.judge.truth(scored) if self.judge else None
                decoded = perf_counter()
                guide = image if image is None or self.refiner.engine is None else guide_of(image, job.cfg, job.bands)
                refinement = self.refiner(scored, guide, core=core_of(item), progress=progress)
        except InputError as error:  # the image was decoded a stage ago: this node is out of memory
            return job.failed(item, read_failure(error))
        except LabelError as error:
            return job.failed(item, answers.label_failure(error))
        decode_s, refine_s = scored.seconds_decode + decoded - started, perf_counter() - decoded
        looked_at = self.judge is not None or encode.is_preview(item.key, job.preview_share)
        seen = visible(without_halo(item, image), job.bands) if image is not None and looked_at else None
        row = replace(self._encode(scored, refinement, seen), seconds_decode=decode_s, seconds_refine=refine_s)
        return row if self.judge is None or truth_hw is None else self.judge(row, truth_hw, refinement, seen)

    def _encode(self, scored: Scored, refinement: Refinement, seen: Image | None) -> Row:
        """Row of a refined image, with previews if its key is in the sample."""
        shown = seen if encode.is_preview(scored.item.key, self.job.preview_share) else None
        fingerprints = {"model_fp": self.job.model_fp, "config_fp": self.job.config_fp}
        return encode.segmented_row(scored, refinement, shown, classes=self.job.classes, **fingerprints)


class MaskStage:
    """Scoring of existing masks: encoded images and labels in, rows out."""

    def __init__(self, job: Job, judge: JudgeConfig, ledger: LedgerClient) -> None:
        self.job, self.judge, self.ledger = job, judge, ledger
        self.masks = open_masks(job.masks or Url(""))

    def __call__(self, table: pa.Table) -> pa.Table:
        """ITEM_SCHEMA to ROW_SCHEMA, row for row."""
        rows = work_guarded(
            self.ledger,
            "refine",
            items_from_table(table),
            key=lambda item: item.key,
            work=lambda batch: [self._row(item) for item in batch],
            seconds=lambda row: row.seconds_encode,
            failure_of=lambda item, dead: self.job.failed(
                item, Failure("refine_crashed", f"killed its worker: {dead}")
            ),
        )
        return _count_bytes(self.ledger, "refine", rows_to_table(rows))

    def _row(self, item: Item) -> Row:
        started = perf_counter()
        if item.failure:
            return self.job.failed(item, item.failure)
        try:
            png = self.masks(item.key)
            mask_hw = answers.read_mask(png, self.job.classes, key=item.key, max_mpx=self.job.cfg.decode.max_mpx)
            height, width = mask_hw.shape
            truth_hw = answers.read_truth(item, self.judge, self.job.classes, height=height, width=width)
        except InputError as error:
            return self.job.failed(item, read_failure(error))
        except LabelError as error:
            return self.job.failed(item, answers.label_failure(error))
        judgement = answers.judgement_of_mask(truth_hw, mask_hw, self.judge, self.job.classes)
        fingerprints = {"model_fp": self.job.model_fp, "config_fp": self.job.config_fp}
        row = encode.scored_row(item, png, mask_hw, judgement, **fingerprints)
        return replace(row, seconds_encode=perf_counter() - started)


def _fail(scored: Scored, failure: Failure, **fields: Any) -> Scored:
    """Scored item with a failure, without logits, image and label bytes."""
    return replace(scored, item=replace(scored.item, data=b"", label=None, failure=failure), logits_khw=None, **fields)


def _without_data(scored: Scored) -> Scored:
    """Scored window of which no pixel has data: neither logits nor a failure."""
    item = scored.item
    outer = item.outer
    if outer is None:
        raise ValueError(f"{item.key} is no window of a raster")
    return replace(scored, item=replace(item, data=b"", label=None), height=outer.height, width=outer.width)


def _count_bytes(ledger: LedgerClient, stage: str, table: pa.Table) -> pa.Table:
    """Count the bytes of a table in the ledger; returns the table."""
    ledger.count_bytes_out(stage, table.nbytes)
    return table
