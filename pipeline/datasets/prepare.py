"""Preparation of a shard: read, check and encode its examples into Parquet files or tars for training.

In: a shard of `datasets.layout.ListedExample`. Out: Parquet files or tars of images with their labels, a Parquet file
of failed examples, and last a receipt, which commits the shard. The output depends on the examples alone, so a repeated
shard gives the same bytes under the same names. An image that is not cut stays the original file.
"""

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from pipeline.datasets.levels import Levels
from pipeline.datasets.receipts import Counts, Moments, PartInfo, Receipt
from pipeline.errors import ConfigError, InputError, JobError, LabelError
from pipeline.image import channels, encode, labels
from pipeline.image.decode import decode_image
from pipeline.records import LEFT_WHOLE, Failure, UInt8
from pipeline.run.ledger import KeyLedger, work_guarded
from pipeline.run.parts import part_name
from pipeline.run.stages import kill_process_after
from pipeline.source.shard import read_failure
from pipeline.store import objects
from pipeline.store.url import Url

Format = Literal["parquet", "tar"]

STAGE = "prepare"
"""Name of the stage in the ledger."""
GROUP_ROWS = 64
"""Rows of a Parquet row group, the unit that a reader plans and fetches."""
LABEL, LABEL_BESIDE_PNG = "png", "label.png"
"""Extension of labels in a tar; the second is used where images may be x.png."""
EXTENSIONS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"II": "tif", b"MM": "tif", b"BM": "bmp"}
"""Extension of an image in a tar, by the first bytes of its format."""

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
        """Hash of the split and the examples, 16 hex digits; receipts and plans name shards by it."""
        content = repr((self.split, self.examples))
        return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Preparation:
    """Settings of a preparation that every worker needs."""

    layout: DatasetLayout
    root: Url
    output: Url
    format: Format
    label_member: str
    """Extension of labels in a tar."""
    cut_px: int | None
    """Longest side of a window, pixels; None: images are not cut."""
    part_bytes: int
    """Size of images and labels at which a part is closed, bytes."""
    decode: DecodeConfig
    timeout_s: float
    """Time limit per example, seconds; the worker is killed after it."""


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """One image or window with its label, or a failure. The columns of `PREPARED_SCHEMA`."""

    key: str
    """Key of the example; of a window `<key>#<y>,<x>`, with its top left pixel in the upright image."""
    image: bytes | None = None
    """Encoded image; None for a failure, like all fields up to `status`."""
    label: bytes | None = None
    """Palette PNG of class ids and ignore ids."""
    height: int | None = None
    """Height of the upright image, pixels."""
    width: int | None = None
    """Width of the upright image, pixels."""
    class_pixels: list[int] | None = None
    """Pixels per class id, without ignored pixels."""
    image_sha256: str | None = None
    """SHA-256 of the encoded image, 64 hex digits."""
    status: str = "ok"
    """`ok` or `failed`."""
    error_code: str | None = None
    error_detail: str | None = None

    @property
    def size(self) -> int:
        """Size of image and label, bytes."""
        return len(self.image or b"") + len(self.label or b"")


@dataclass(frozen=True, slots=True)
class PreparedExample:
    """Result of one example: its rows and their statistics, or one failure row."""

    rows: list[PreparedRow]
    counts: Counts
    seconds: float = 0.0


class PreparingLedger(KeyLedger, Protocol):
    """Calls of a worker to the run's ledger."""

    def commit(self, rows: int, failed: dict[str, int], seconds: float) -> None:
        """See `Ledger.commit`."""


# ---------------------------------------------------------------- plan


def plan_examples(
    layout: DatasetLayout, root: Url, splits: Sequence[str], *, shard_examples: int
) -> list[ExampleShard]:
    """List the splits and divide each into shards of `shard_examples` examples; the last one may be smaller.

    Raises:
        ConfigError: the set has no such split, or files or all examples of the split are not below `root`.
        JobError: a key occurs twice.
    """
    shards = []
    for split in splits:
        examples = layout.examples(root, split)
        if not examples:
            raise ConfigError(f"no images of {layout.name}, split {split}, in {root.located}", hint="check --root")
        twice = [key for key, times in Counter(example.key for example in examples).items() if times > 1]
        if twice:
            raise JobError(f"{layout.name} lists {len(twice)} key(s) of {split} twice, first {twice[0]!r}")
        starts = range(0, len(examples), shard_examples)
        shards += [ExampleShard(split, tuple(examples[start : start + shard_examples])) for start in starts]
    return shards


def label_member(shards: Iterable[ExampleShard], cut_px: int | None) -> str:
    """Extension of the labels in the tars of a set: `png`, or `label.png` if an image may be a PNG."""
    other = {".jpg", ".jpeg", ".webp", ".tif", ".tiff"}
    suffixes = {PurePosixPath(example.image).suffix.lower() for shard in shards for example in shard.examples}
    return LABEL if suffixes <= other and cut_px is None else LABEL_BESIDE_PNG


# ---------------------------------------------------------------- one example


def prepare_example(job: Preparation, example: ListedExample) -> PreparedExample:
    """Read, check and encode one example; an error of its data becomes a failure row.

    The label is checked as in training: decoded from the PNG, against the class map and the size of the image.

    Raises:
        AccessDenied: 403, which every other example would raise too.
    """
    started = perf_counter()
    try:
        labelled = job.layout.read(job.root, example)
        if labelled is None:
            return PreparedExample([], Counts(examples=1), perf_counter() - started)
        if labelled.levels is not None:
            return _prepared_chip(job, labelled, labelled.levels, perf_counter() - started)
        pixels_hwc = decode_bands(labelled.image, job.decode)
        rows = _rows(job, labelled, pixels_hwc)
    except LabelError as error:
        return failed_example(example, Failure(error.code, error.message), seconds=perf_counter() - started)
    except InputError as error:
        return failed_example(example, read_failure(error), seconds=perf_counter() - started)
    return PreparedExample(rows, _count(rows, pixels_hwc), perf_counter() - started)


def _prepared_chip(job: Preparation, chip: Labelled, levels: Levels, seconds: float) -> PreparedExample:
    """Row and statistics of a chip of a raster, which was read in its stored type."""
    row = _row(job, chip.key, chip.image, chip.label_hw)
    counts = Counts(examples=1, rows=1, class_pixels=row.class_pixels or [], levels=levels)
    return PreparedExample([row], counts, seconds)


def failed_example(example: ListedExample, failure: Failure, *, seconds: float = 0.0) -> PreparedExample:
    """Make the failure row of an example."""
    row = PreparedRow(example.key, status="failed", error_code=failure.code, error_detail=failure.detail)
    return PreparedExample([row], Counts(examples=1, error_codes={failure.code: 1}), seconds)


def decode_bands(data: bytes, cfg: DecodeConfig) -> UInt8:
    """Decode an image to (H, W, C) uint8: upright RGB, or all bands of a TIFF with more bands than RGB and alpha.

    Raises:
        InputError: the errors of `decode_image`.
    """
    count = _count_bands(data)
    return (
        channels.decode_channels(data, ("any",) * count).pixels_hwc
        if count > len(channels.RGB)
        else decode_image(data, cfg).pixels_hwc
    )


def _count_bands(data: bytes) -> int:
    """Count the bands of a TIFF without alpha; 0 for another format, or a damaged header."""
    if data[:2] not in (b"II", b"MM"):
        return 0
    with suppress(Exception), tifffile.TiffFile(io.BytesIO(data)) as file:  # the decoder reports damage
        page = file.pages.first
        alphas = [kind for kind in page.extrasamples if kind != tifffile.EXTRASAMPLE.UNSPECIFIED]
        return 0 if page.photometric == tifffile.PHOTOMETRIC.SEPARATED else page.samplesperpixel - len(alphas)
    return 0


def _rows(job: Preparation, labelled: Labelled, pixels_hwc: UInt8) -> list[PreparedRow]:
    height, width = pixels_hwc.shape[:2]
    if labelled.label_hw.shape != (height, width):
        label_size = "x".join(map(str, labelled.label_hw.shape))
        raise LabelError(
            f"the label of {labelled.key} has {label_size} pixels, its image {height}x{width}", code="label_size"
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
    """Partition an image into windows (rows, columns) of almost equal size, no side longer than `cut_px`.

    A side of at most 1.25 times `cut_px` is not cut, as in inference.
    """
    return list(product(_spans(height, cut_px), _spans(width, cut_px)))


def _spans(size: int, cut_px: int | None) -> list[slice]:
    count = 1 if cut_px is None or size <= LEFT_WHOLE * cut_px else -(-size // cut_px)
    return [slice(start, end) for start, end in pairwise(size * index // count for index in range(count + 1))]


def encode_lossless(pixels_hwc: UInt8) -> bytes:
    """Encode (H, W, C) uint8, C at least 3, losslessly: PNG for RGB, else a TIFF of all bands."""
    contiguous = np.ascontiguousarray(pixels_hwc)
    return picture.encode_png(contiguous) if contiguous.shape[2] == 3 else picture.encode_tiff(contiguous)


def _count(rows: Sequence[PreparedRow], pixels_hwc: UInt8) -> Counts:
    """Statistics of one example: integers, so that sums do not depend on the order."""
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

    Memory holds one part, and one image with its windows.
    """
    done: list[Counts] = []
    failures: list[PreparedRow] = []

    def good_rows() -> Iterator[PreparedRow]:
        for example in shard.examples:
            prepared = _guarded(job, example, ledger)
            done.append(prepared.counts)
            failures.extend(row for row in prepared.rows if row.status == "failed")
            yield from (row for row in prepared.rows if row.status == "ok")

    parts = [put_part(job, shard.split, rows) for rows in group_rows(good_rows(), job.part_bytes)]
    started = perf_counter()
    failed_parts = [put_failures(job, shard.split, failures)] if failures else []
    receipt = Receipt(
        shard=shard.id, split=shard.split, counts=receipts.add_counts(done), parts=parts, failures=failed_parts
    )
    receipts.put_receipt(job.output, receipt)
    ledger.commit(receipt.counts.examples, receipt.counts.error_codes, perf_counter() - started)
    return receipt


def _guarded(job: Preparation, example: ListedExample, ledger: KeyLedger) -> PreparedExample:
    def work(examples: Sequence[ListedExample]) -> list[PreparedExample]:
        with kill_process_after(job.timeout_s):
            return [prepare_example(job, example) for example in examples]

    (prepared,) = work_guarded(
        ledger,
        STAGE,
        [example],
        key=lambda example: example.key,
        work=work,
        seconds=lambda result: result.seconds,
        failure_of=lambda example, dead: failed_example(example, Failure("crashed", f"killed its worker: {dead}")),
    )
    return prepared


def group_rows(rows: Iterable[PreparedRow], part_bytes: int) -> Iterator[list[PreparedRow]]:
    """Group consecutive rows; the row that reaches `part_bytes` closes a group."""
    group: list[PreparedRow] = []
    size = 0
    for row in rows:
        group.append(row)
        size += row.size
        if size >= part_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def put_part(job: Preparation, split: str, rows: Sequence[PreparedRow]) -> PartInfo:
    """Write good rows in the format of the preparation, as `<split>/part-<digest of the keys>`."""
    data = encode_tar(rows, job.label_member) if job.format == "tar" else encode_prepared(rows)
    return _put(job.output, f"{split}/{_stem(rows)}.{job.format}", data, len(rows))


def put_failures(job: Preparation, split: str, rows: Sequence[PreparedRow]) -> PartInfo:
    """Write failure rows, always as Parquet, outside the splits, where readers of a split do not find them."""
    return _put(job.output, f"{receipts.FAILURES}/{split}/{_stem(rows)}.parquet", encode_prepared(rows), len(rows))


def _stem(rows: Sequence[PreparedRow]) -> str:
    return part_name(row.key for row in rows).removesuffix(".parquet")


def _put(output: Url, path: str, data: bytes, rows: int) -> PartInfo:
    objects.put(output / path, data)
    return PartInfo(path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), rows=rows)


# ---------------------------------------------------------------- formats


def encode_prepared(rows: Sequence[PreparedRow]) -> bytes:
    """Encode rows of `PREPARED_SCHEMA` in order as Parquet with page checksums."""
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


def encode_tar(rows: Sequence[PreparedRow], label_extension: str) -> bytes:
    """Encode good rows as a WebDataset tar: image and label of a row have one name and two extensions.

    The name is the key with all characters except letters, digits, `_`, `-` and `~` percent-encoded. So it has no dot,
    at which readers separate name and extension, and no slash; `urllib.parse.unquote` gives the key back.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for row in rows:
            name = quote(row.key, safe="").replace(".", "%2E")
            image, label = row.image or b"", row.label or b""
            extension = EXTENSIONS[image[:2]]
            if extension == label_extension:  # a PNG named .jpg: readers detect the format from the bytes
                extension = "jpg"
            _add(tar, f"{name}.{extension}", image)
            _add(tar, f"{name}.{label_extension}", label)
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # times and owners are 0, so bytes are the same on every machine
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
