"""What a worker does to prepare a labelled set for training: examples of an official download become parts.

In: a shard of `datasets.layout.Example`. Out: Parquet files or tars of images with their labels, a Parquet file of the
examples that failed, and last a receipt, whose put is the commit. Everything is decided by the examples, so a shard
that is done again gives the same bytes under the same names. An image that is not cut stays the file it was.
"""

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import pairwise, product
from pathlib import PurePosixPath
from time import perf_counter
from typing import Literal, Protocol
from urllib.parse import quote

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

from pipeline.config import DecodeConfig
from pipeline.datasets import picture, receipts
from pipeline.datasets.layout import DatasetLayout, Labelled, ListedExample
from pipeline.datasets.receipts import Counts, Moments, PartInfo, Receipt
from pipeline.errors import InputError, JobError, LabelError
from pipeline.image import channels, encode, labels
from pipeline.image.decode import decode_image
from pipeline.records import LEFT_WHOLE, Failure, UInt8
from pipeline.run.ledger import LedgerClient, work_guarded
from pipeline.run.parts import part_name
from pipeline.run.stages import kill_process_after
from pipeline.source.shard import read_failure
from pipeline.store import objects
from pipeline.store.url import Url

Format = Literal["parquet", "tar"]

STAGE = "prepare"
"""As the ledger calls it."""
GROUP_ROWS = 64
"""Rows of a Parquet row group: what a reader plans and fetches at once."""
LABEL, LABEL_BESIDE_PNG = "png", "label.png"
"""Extension of the label's member of a tar, and where the image itself may be x.png."""
EXTENSIONS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"II": "tif", b"MM": "tif", b"BM": "bmp"}
"""Of a tar's member, by the first bytes of the formats that can be decoded."""

PREPARED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        ("image", pa.large_binary()),
        ("label", pa.large_binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("class_pixels", pa.list_(pa.int64())),
        ("image_sha256", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        ("error_code", pa.string()),
        ("error_detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class ExampleShard:
    """Consecutive examples of one split: the unit of work and of commit."""

    split: str
    examples: tuple[ListedExample, ...]

    @property
    def id(self) -> str:
        """16 hex digits, a digest of the split and the examples; receipts and plans of outputs name shards by it."""
        content = repr((self.split, self.examples))
        return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Preparation:
    """What every worker needs to know."""

    layout: DatasetLayout
    root: Url
    output: Url
    format: Format
    label_member: str
    """Extension of the label in a tar."""
    cut_px: int | None
    """Longest side of a window of a large image; None leaves every image whole."""
    part_bytes: int
    """A part is closed when its images and labels hold this much."""
    decode: DecodeConfig
    timeout_s: float
    """A worker stuck on one example this long is killed."""


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """One image, or window of an image, with its label; or why there is none. The columns of `PREPARED_SCHEMA`."""

    key: str
    """That of the example; of a window `<key>#<y>,<x>`, its first pixel in the upright image."""
    image: bytes | None = None
    """Encoded; None for a failure, as is everything that describes it."""
    label: bytes | None = None
    """Palette PNG: value = class id, or the ignore id."""
    height: int | None = None
    """Pixels, upright."""
    width: int | None = None
    class_pixels: list[int] | None = None
    """Pixels per class id, ignored pixels left out."""
    image_sha256: str | None = None
    """64 hex digits."""
    status: str = "ok"
    """`ok` or `failed`."""
    error_code: str | None = None
    error_detail: str | None = None

    @property
    def size(self) -> int:
        """Bytes of image and label."""
        return len(self.image or b"") + len(self.label or b"")


@dataclass(frozen=True, slots=True)
class PreparedExample:
    """What became of one example: its rows and what they add up to, or one failure row."""

    rows: list[PreparedRow]
    counts: Counts
    seconds: float = 0.0


class PreparingLedger(LedgerClient, Protocol):
    """What a worker calls of the run's ledger."""

    def commit(self, rows: int, failed: dict[str, int], seconds: float) -> None:
        """See `Ledger.commit`."""


# ---------------------------------------------------------------- plan


def plan_examples(
    layout: DatasetLayout, root: Url, splits: Sequence[str], *, shard_examples: int
) -> list[ExampleShard]:
    """List the splits and cut each into shards of `shard_examples` examples, the last one smaller.

    Raises:
        ConfigError: the set has no such split, or what makes it up is not below `root`.
        JobError: a key occurs twice.
    """
    shards = []
    for split in splits:
        examples = layout.examples(root, split)
        twice = [key for key, times in Counter(one.key for one in examples).items() if times > 1]
        if twice:
            raise JobError(f"{layout.name} lists {len(twice)} key(s) of {split} twice, first {twice[0]!r}")
        starts = range(0, len(examples), shard_examples)
        shards += [ExampleShard(split, tuple(examples[start : start + shard_examples])) for start in starts]
    return shards


def label_member(shards: Iterable[ExampleShard], cut_px: int | None) -> str:
    """Extension of the labels in the tars of a set: `png`, unless one of its images may be a PNG itself."""
    other = {".jpg", ".jpeg", ".webp", ".tif", ".tiff"}
    suffixes = {PurePosixPath(one.image).suffix.lower() for shard in shards for one in shard.examples}
    return LABEL if suffixes <= other and cut_px is None else LABEL_BESIDE_PNG


# ---------------------------------------------------------------- one example


def prepare_example(job: Preparation, one: ListedExample) -> PreparedExample:
    """Read, check and encode one example; whatever is wrong with it becomes a failure row.

    The label is accepted as training will: from the encoded PNG, against the class map and the size of the image.

    Raises:
        AccessDenied: 403, which every other example would meet too.
    """
    started = perf_counter()
    try:
        labelled = job.layout.read(job.root, one)
        pixels_hwc = decode_bands(labelled.image, job.decode)
        rows = _rows(job, labelled, pixels_hwc)
    except LabelError as error:
        return failed(one, Failure(error.code, error.message), seconds=perf_counter() - started)
    except InputError as error:
        return failed(one, read_failure(error), seconds=perf_counter() - started)
    return PreparedExample(rows, _count(rows, pixels_hwc), perf_counter() - started)


def failed(one: ListedExample, failure: Failure, *, seconds: float = 0.0) -> PreparedExample:
    """The failure row of an example."""
    row = PreparedRow(one.key, status="failed", error_code=failure.code, error_detail=failure.detail)
    return PreparedExample([row], Counts(examples=1, error_codes={failure.code: 1}), seconds)


def decode_bands(data: bytes, cfg: DecodeConfig) -> UInt8:
    """Decode an image to (H, W, C) uint8: upright RGB, or all bands of a TIFF that has more than colours and alpha.

    Raises:
        InputError: as `decode` does.
    """
    count = _count_bands(data)
    return (
        channels.decode_channels(data, ("any",) * count).pixels_hwc
        if count > len(channels.RGB)
        else decode_image(data, cfg).pixels_hwc
    )


def _count_bands(data: bytes) -> int:
    """Bands of a TIFF, alpha left out; 0 for what is no TIFF, or too damaged to tell."""
    if data[:2] not in (b"II", b"MM"):
        return 0
    with suppress(Exception), tifffile.TiffFile(io.BytesIO(data)) as file:  # damage is for `decode` to name
        page = file.pages.first
        alphas = [kind for kind in page.extrasamples if kind != tifffile.EXTRASAMPLE.UNSPECIFIED]
        return 0 if page.photometric == tifffile.PHOTOMETRIC.SEPARATED else page.samplesperpixel - len(alphas)
    return 0


def _rows(job: Preparation, labelled: Labelled, pixels_hwc: UInt8) -> list[PreparedRow]:
    height, width = pixels_hwc.shape[:2]
    if labelled.label_hw.shape != (height, width):
        seen = "x".join(map(str, labelled.label_hw.shape))
        raise LabelError(
            f"the label of {labelled.key} has {seen} pixels, its image {height}x{width}", code="label_size"
        )
    windows = windows_of(height, width, job.cut_px)
    if len(windows) == 1:
        return [_row(job, labelled.key, labelled.image, labelled.label_hw)]
    return [
        _row(job, f"{labelled.key}#{y.start},{x.start}", encode_lossless(pixels_hwc[y, x]), labelled.label_hw[y, x])
        for y, x in windows
    ]


def _row(job: Preparation, key: str, image: bytes, label_hw: UInt8) -> PreparedRow:
    classes, (height, width) = job.layout.classes, label_hw.shape
    png = encode.mask_png(label_hw, classes)
    label_hw = labels.decode_label(png, classes, name=key, height=height, width=width)
    class_pixels = np.bincount(label_hw.ravel(), minlength=256)[: len(classes)].tolist()
    return PreparedRow(key, image, png, height, width, class_pixels, hashlib.sha256(image).hexdigest())


def windows_of(height: int, width: int, cut_px: int | None) -> list[tuple[slice, slice]]:
    """Rectangles (rows, columns) that partition an image: as equal as can be, no side above `cut_px`.

    A side of at most 1.25 times `cut_px` is not cut, as in inference.
    """
    return list(product(_spans(height, cut_px), _spans(width, cut_px)))


def _spans(size: int, cut_px: int | None) -> list[slice]:
    count = 1 if cut_px is None or size <= LEFT_WHOLE * cut_px else -(-size // cut_px)
    return [slice(start, end) for start, end in pairwise(size * index // count for index in range(count + 1))]


def encode_lossless(pixels_hwc: UInt8) -> bytes:
    """Encode (H, W, C) uint8, C at least 3, without loss: PNG for RGB, else a TIFF of all bands."""
    contiguous = np.ascontiguousarray(pixels_hwc)
    return picture.encode_png(contiguous) if contiguous.shape[2] == 3 else picture.encode_tiff(contiguous)


def _count(rows: Sequence[PreparedRow], pixels_hwc: UInt8) -> Counts:
    """What one example adds to the statistics of its split: whole numbers, so that no order of adding matters."""
    values = np.arange(256)
    histograms = [np.array(PIL.Image.fromarray(band_hw).histogram()) for band_hw in np.moveaxis(pixels_hwc, -1, 0)]
    moments = Moments(
        pixels=pixels_hwc.shape[0] * pixels_hwc.shape[1],
        sums=[int(histogram @ values) for histogram in histograms],
        squares=[int(histogram @ values**2) for histogram in histograms],
    )
    return Counts(
        examples=1,
        rows=len(rows),
        class_pixels=np.sum([row.class_pixels or [] for row in rows], axis=0).tolist(),
        moments={len(histograms): moments},
    )


# ---------------------------------------------------------------- one shard


def prepare_shard(job: Preparation, shard: ExampleShard, ledger: PreparingLedger) -> Receipt:
    """Prepare all examples of a shard and commit them. An example that kills its worker twice fails alone.

    In memory at once: one part, and one image with its windows.
    """
    done: list[Counts] = []
    failures: list[PreparedRow] = []

    def good_rows() -> Iterator[PreparedRow]:
        for one in shard.examples:
            prepared = _guarded(job, one, ledger)
            done.append(prepared.counts)
            failures.extend(row for row in prepared.rows if row.status == "failed")
            yield from (row for row in prepared.rows if row.status == "ok")

    parts = [put_part(job, shard.split, rows) for rows in group_rows(good_rows(), job.part_bytes)]
    started = perf_counter()
    failed_parts = [put_failures(job, shard.split, failures)] if failures else []
    receipt = Receipt(
        shard=shard.id, split=shard.split, counts=receipts.total(done), parts=parts, failures=failed_parts
    )
    receipts.commit(job.output, receipt)
    ledger.commit(receipt.counts.examples, receipt.counts.error_codes, perf_counter() - started)
    return receipt


def _guarded(job: Preparation, one: ListedExample, ledger: LedgerClient) -> PreparedExample:
    def work(examples: Sequence[ListedExample]) -> list[PreparedExample]:
        with kill_process_after(job.timeout_s):
            return [prepare_example(job, example) for example in examples]

    crashed = Failure("crashed", "killed its worker twice")
    (prepared,) = work_guarded(
        ledger,
        STAGE,
        [one],
        key=lambda example: example.key,
        work=work,
        seconds=lambda result: result.seconds,
        failure_of=partial(failed, failure=crashed),
    )
    return prepared


def group_rows(rows: Iterable[PreparedRow], part_bytes: int) -> Iterator[list[PreparedRow]]:
    """Consecutive rows, closed by the one with which they hold `part_bytes` or more."""
    held: list[PreparedRow] = []
    size = 0
    for row in rows:
        held.append(row)
        size += row.size
        if size >= part_bytes:
            yield held
            held, size = [], 0
    if held:
        yield held


def put_part(job: Preparation, split: str, rows: Sequence[PreparedRow]) -> PartInfo:
    """Write good rows in the format asked for, `<split>/part-<digest of the keys>`."""
    data = to_tar(rows, job.label_member) if job.format == "tar" else encode_prepared(rows)
    return _put(job.output, f"{split}/{_stem(rows)}.{job.format}", data, len(rows))


def put_failures(job: Preparation, split: str, rows: Sequence[PreparedRow]) -> PartInfo:
    """Write failure rows, always as Parquet and beside the splits: no reader of a split meets them."""
    return _put(job.output, f"{receipts.FAILURES}/{split}/{_stem(rows)}.parquet", encode_prepared(rows), len(rows))


def _stem(rows: Sequence[PreparedRow]) -> str:
    return part_name(row.key for row in rows).removesuffix(".parquet")


def _put(output: Url, path: str, data: bytes, rows: int) -> PartInfo:
    objects.put(output / path, data)
    return PartInfo(path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), rows=rows)


# ---------------------------------------------------------------- formats


def encode_prepared(rows: Sequence[PreparedRow]) -> bytes:
    """Encode rows of `PREPARED_SCHEMA` in their order, with page checksums."""
    columns = {name: [getattr(row, name) for row in rows] for name in PREPARED_SCHEMA.names}
    out = io.BytesIO()
    pq.write_table(
        pa.table(columns, schema=PREPARED_SCHEMA),
        out,
        row_group_size=GROUP_ROWS,
        compression="zstd",
        compression_level=1,
        use_dictionary=["status", "error_code"],
        write_page_checksum=True,
        write_statistics=["key"],
    )
    return out.getvalue()


def to_tar(rows: Sequence[PreparedRow], label_extension: str) -> bytes:
    """Encode good rows as a WebDataset tar: the image, then its label, under one name each.

    The name is the key with everything but letters, digits, `_`, `-` and `~` percent-encoded: it holds neither a dot,
    at which readers part name and extension, nor a slash; `urllib.parse.unquote` gives the key back.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for row in rows:
            name = quote(row.key, safe="").replace(".", "%2E")
            image, label = row.image or b"", row.label or b""
            extension = EXTENSIONS[image[:2]]
            if extension == label_extension:  # a PNG under the name of another format: readers go by the bytes
                extension = "jpg"
            _add(tar, f"{name}.{extension}", image)
            _add(tar, f"{name}.{label_extension}", label)
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # times and owners are 0: the same bytes on every machine
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
