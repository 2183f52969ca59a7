"""Original files of chosen images, read again from the source of their run, under names that every tool takes.

    images/photo~0123456789ab.jpg   the bytes of the source
    masks/photo~0123456789ab.png    the mask of the run, a palette PNG of class ids
    images.parquet                  key, file, height, width, confidence, model; written last
    classes.yaml                    class map of the run

A name is what a key allows of a plain name, `~`, and 12 digits of the SHA-256 of the key: flat, since tools that upload
files keep no folders, the same in every selection, and never a path, whatever the key holds.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import SegmentConfig
from pipeline.errors import InputError
from pipeline.image.decode import read_exif
from pipeline.image.headers import failure_cause, open_header, recognise_format
from pipeline.image.labels import png_size
from pipeline.prefetch import ahead
from pipeline.run import parts
from pipeline.run.masks import ARCHIVE_KEY, folder_path
from pipeline.source.plan import plan_source, read_items
from pipeline.source.shard import Shard
from pipeline.store import objects
from pipeline.store.url import Url

IMAGES, MASKS, TABLE = "images", "masks", "images.parquet"
THREADS = 4
"""Shards, and parts, in hand at once: each may hold some large images or masks."""
_BATCH_ROWS = 64
_LONGEST = 80
"""Characters of a key's own name that a file name keeps."""
_SUFFIXES = {"jpeg": "jpg", "png": "png", "webp": "webp", "tiff": "tif", "bmp": "bmp"}
_TURNED = 5
"""EXIF orientations from this one on swap height and width."""

PICTURE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        ("confidence", pa.float32()),
        ("model", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Picture:
    """Chosen image in a folder. The columns of `PICTURE_SCHEMA`."""

    key: str
    file: str
    """Name in `images/`."""
    height: int
    """Height of the upright image, pixels, as of its mask."""
    width: int
    """Width of the upright image, pixels."""
    confidence: float | None
    """Confidence of the row, 0 to 1."""
    model: str | None
    """First 12 digits of the checkpoint's SHA-256."""

    @property
    def mask(self) -> str:
        """Name in `masks/`."""
        return f"{self.file.rpartition('.')[0]}.png"


def file_stem(key: str) -> str:
    """Name of a key's files without a suffix: letters, digits, `.`, `_`, `-` and one `~`."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", folder_path(key).rpartition("/")[2]).strip("._-")
    return f"{name[:_LONGEST] or 'image'}~{hashlib.sha256(key.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class ChosenRow:
    """What a run knows of a chosen image."""

    key: str
    shard: str
    height: int
    width: int
    confidence: float | None
    model: str
    mask: bytes


def chosen_rows(run_url: Url, keys: Set[str]) -> Iterator[ChosenRow]:
    """Rows of `keys` that have a mask, part by part; a key in two parts comes once.

    Two passes: the keys of all parts, then the masks of those parts that have some of them. Memory holds some parts'
    keys and a few masks.
    """
    names, wanted, left = parts.list_parts(run_url), pa.array(sorted(keys), pa.string()), set(keys)
    holding = []
    for name, table in zip(names, parts.read_tables(run_url, names, ["key"]), strict=True):
        if pc.any(pc.is_in(table["key"], value_set=wanted)).as_py():
            holding.append(name)
    columns = ["key", "status", "shard", "height", "width", "confidence", "model_fp", "mask"]

    def of_part(name: str) -> list[ChosenRow]:
        found = []
        for batch in parts.read_batches(run_url, name, columns, rows=_BATCH_ROWS):
            for row in batch.filter(pc.is_in(batch["key"], value_set=wanted)).to_pylist():
                if row["status"] == "ok" and row["mask"] is not None:
                    known = {
                        column: row[column] for column in ("key", "shard", "height", "width", "confidence", "mask")
                    }
                    found.append(ChosenRow(**known, model=row["model_fp"]))
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        for rows in ahead(pool, of_part, holding, THREADS):
            for row in rows:
                if row.key in left:
                    left.discard(row.key)
                    yield row


def write_files(
    run_url: Url, keys: Sequence[str], cfg: SegmentConfig, output: Url
) -> tuple[list[Picture], dict[str, str]]:
    """Write images, masks and `images.parquet` of some keys; returns the pictures in their order, and the others.

    Args:
        run_url: the folder `run=...`.
        keys: keys of images, in the order in which tools shall show them.
        cfg: the source of the run, and how it was read.
        output: folder for the files.

    Returns:
        the pictures, and the reason of each key that has none: `mask_missing`, `not_found` when the source has it no
        longer, `mask_unusable` when image and mask differ in size, or a code of `ERROR_CODES` of the image.
    """
    rows: dict[str, ChosenRow] = {}
    for row in chosen_rows(run_url, set(keys)):
        objects.put(output / MASKS / f"{file_stem(row.key)}.png", row.mask)
        rows[row.key] = row
    left_out = dict.fromkeys(set(keys) - set(rows), "mask_missing") | dict.fromkeys(rows, "not_found")
    pictures: dict[str, Picture] = {}
    for key, result in _copied(rows, cfg, output):
        left_out.pop(key, None)
        if isinstance(result, Picture):
            pictures[key] = result
        else:
            left_out[key] = result
    ordered = [pictures[key] for key in keys if key in pictures]
    objects.put(output / TABLE, encode_pictures(ordered))
    return ordered, {key: left_out[key] for key in keys if key in left_out}


def _copied(rows: dict[str, ChosenRow], cfg: SegmentConfig, output: Url) -> Iterator[tuple[str, Picture | str]]:
    """Key of each image that the source still has, with its picture once it is written, or the reason of none."""

    def of_shard(shard: Shard) -> list[tuple[str, Picture | str]]:
        copied: list[tuple[str, Picture | str]] = []
        skip = frozenset(member.key for member in shard.members()) - rows.keys()
        for item in read_items(shard, cfg.read, max_bytes=int(cfg.decode.max_mib * 2**20), skip=skip):
            if item.key in rows:
                failed = item.failure.code if item.failure else ""
                copied.append((item.key, failed or _copy(rows[item.key], item.data, cfg, output)))
        return copied

    with ThreadPoolExecutor(THREADS) as pool:
        planned = plan_source(cfg).shards if rows else []
        for copied in ahead(pool, of_shard, shards_with(planned, rows), THREADS):
            yield from copied


def shards_with(planned: Sequence[Shard], rows: dict[str, ChosenRow]) -> list[Shard]:
    """Shards that may hold the images of some rows: those of the rows, and others of the same files.

    A file that has changed, or lies elsewhere now, has other shards than the run had.
    """
    ids = {row.shard for row in rows.values()}
    there = {shard.uri for shard in planned if shard.id in ids}
    archives = {match[1] for key in rows if (match := ARCHIVE_KEY.fullmatch(key))} - there
    return [
        shard
        for shard in planned
        if shard.id in ids or shard.uri in archives or any(member.key in rows for member in shard.members())
    ]


def _copy(row: ChosenRow, data: bytes, cfg: SegmentConfig, output: Url) -> Picture | str:
    """Write one image; the reason where it does not fit its mask any more."""
    try:
        kind, height, width = upright_size(data, cfg)
    except InputError as error:
        return error.code
    if (height, width) != png_size(row.mask, name=row.key):
        return "mask_unusable"
    file = f"{file_stem(row.key)}.{_SUFFIXES[kind]}"
    objects.put(output / IMAGES / file, data)
    return Picture(row.key, file, height, width, row.confidence, row.model)


def upright_size(data: bytes, cfg: SegmentConfig) -> tuple[str, int, int]:
    """Format, height and width of an encoded image as people see it, from its header.

    Raises:
        InputError: as `recognise_format` and `open_header`.
    """
    kind = recognise_format(data, cfg.decode)
    try:
        file = open_header(data, kind, cfg.decode)
    except InputError:
        raise
    except Exception as error:  # Pillow raises many types on damaged headers, and lists none of them
        raise failure_cause(data, kind, error) from error
    width, height = file.size
    turned = read_exif(file)[0] >= _TURNED
    return kind, *((width, height) if turned else (height, width))


def encode_pictures(pictures: Sequence[Picture]) -> bytes:
    """Parquet of `PICTURE_SCHEMA`."""
    out = io.BytesIO()
    rows = [asdict(picture) for picture in pictures]
    pq.write_table(pa.Table.from_pylist(rows, schema=PICTURE_SCHEMA), out, compression="zstd")
    return out.getvalue()


def read_pictures(output: Url) -> list[Picture]:
    """Pictures of a folder, in their order; empty before they are all written.

    Raises:
        StorageError: the file is damaged.
    """
    url = output / TABLE
    if not objects.exists(url):
        return []
    with objects.naming_damage(url, hint="delete it and run the same command again"):
        return [Picture(**row) for row in pq.read_table(io.BytesIO(objects.read_bytes(url))).to_pylist()]
