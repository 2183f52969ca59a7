"""Labelled collection: the encoded images and labels of one or more parts of the data, in a local cache.

In: a folder of images/ and labels/, tars, or Parquet files, in any store. Out: a `Collection` with random access to its
examples at memory speed. Each image is fetched, decoded and checked once; an image that is left out is listed with its
error code, and a label that contradicts the class map stops the run. The cache is a folder of Arrow files, one per
shard, memory-mapped by all processes of a machine. The source is never changed.
"""

import fcntl
import hashlib
import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.classes import ClassMap
from pipeline.config import BandScale, ReadConfig, SegmentConfig
from pipeline.errors import NO_IMAGE, ConfigError, InputError, NothingThere, StorageError
from pipeline.image import channels as bands
from pipeline.image import labels
from pipeline.image.encode import mask_png
from pipeline.image.labels import Coding
from pipeline.records import Bool, Image, Int64, Item
from pipeline.score.coverage import Coverage
from pipeline.source.plan import plan_source, read_items
from pipeline.source.shard import Shard
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.training import weak

log = logging.getLogger(__name__)

VERSION = 2
"""Version of the Arrow files' content; raised by hand when that changes."""

_MAX_BYTES = int(bands.LIMITS.max_mib * 2**20)
BATCH_BYTES = 64 * 2**20
"""Encoded bytes per record batch of an Arrow file: the memory of a thread that writes one."""
_PROGRESS_S = 5.0
_SHOWN = 5
"""Images left out that the log names."""
_THREADS = min(32, 2 * (os.cpu_count() or 1))
"""Shards read at once: one thread decodes while another waits for the store."""

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("code", pa.string()),  # error code of an image that is left out; null for an example
        ("image", pa.large_binary()),
        ("label", pa.large_binary()),
        ("weak", pa.bool_()),
        ("counts", pa.list_(pa.int64())),
        ("pixels", pa.int64()),  # of the upright image
        ("orientation", pa.int8()),  # EXIF orientation of the image file
        ("digest", pa.binary(32)),
    ]
)


@dataclass(frozen=True, slots=True)
class Example:
    """One image and its label, both encoded as in the source."""

    key: str
    image: bytes
    """The encoded image."""
    label: bytes
    """PNG of class ids, whatever the encoding in the source, or JSON of weak labels."""


class Collection:
    """Examples in source order with random access; pickling one sends its file names, not its bytes."""

    def __init__(self, files: Sequence[Path], classes: ClassMap, rows: Int64 | None = None) -> None:
        self._files, self._classes = tuple(files), classes
        batches = [batch for file in files for batch in _open_batches(file)]
        self._table = pa.Table.from_batches(batches, schema=_SCHEMA)
        """Memory-mapped."""
        self._all = np.flatnonzero(self._table["code"].is_null()) if rows is None else rows
        """Rows of the table that are examples of this collection."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the file names; the receiving process maps the same files."""
        return type(self), (self._files, self._classes, self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, index: int) -> Example:
        row = int(self._all[index])
        key, image, label = (self._table[name][row].as_py() for name in ("key", "image", "label"))
        return Example(key, image, label)

    @cached_property
    def keys(self) -> list[str]:
        """Key of every example."""
        return self._column("key")

    @cached_property
    def counts_nk(self) -> Int64:
        """(N, K) pixels of each class in each label; zeros for weak labels."""
        return np.array(self._column("counts"), np.int64).reshape(len(self), len(self._classes))

    @cached_property
    def weak_n(self) -> Bool:
        """(N,) True where the label is weak."""
        return np.array(self._column("weak"), bool)

    @cached_property
    def coverage(self) -> Coverage:
        """Classes and ignored pixels of the labels that are not weak."""
        pixels = np.array(self._column("pixels"), np.int64)[~self.weak_n].sum()
        return Coverage(self._classes.names, self.counts_nk.sum(axis=0), int(pixels))

    @cached_property
    def turned(self) -> int:
        """Number of images that EXIF turns or mirrors."""
        return sum(orientation > 1 for orientation in self._column("orientation"))

    @cached_property
    def left_out(self) -> list[tuple[str, str]]:
        """(key, error code) of every image of the source that is left out."""
        out = self._table.filter(pa.compute.is_valid(self._table["code"]))
        return list(zip(out["key"].to_pylist(), out["code"].to_pylist(), strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of keys, image and label bytes, their order, and the class map: 64 hex digits."""
        facts = [[key, digest.hex()] for key, digest in zip(self.keys, self._column("digest"), strict=True)]
        return hashlib.sha256(json.dumps([facts, self._classes.model_dump()]).encode()).hexdigest()

    def subset(self, indices: Sequence[int] | Int64) -> "Collection":
        """The examples at `indices`, in that order."""
        return Collection(self._files, self._classes, self._all[np.asarray(indices, np.int64)])

    def without(self, keys: Iterable[str]) -> "Collection":
        """All examples except those of `keys`."""
        left_out = set(keys)
        return self.subset([index for index, key in enumerate(self.keys) if key not in left_out])

    def split(self, share: float) -> tuple["Collection", "Collection"]:
        """Split by hash of the key: (the rest, about `share` of the examples).

        Images that are added later move no image from one side to the other. Both sides have at least one example.

        Raises:
            ConfigError: when there is only one example.
        """
        if len(self) < 2:
            raise ConfigError("one labelled image cannot be split into training and validation, at least 2 are needed")
        places = np.array([_split_place(key) for key in self.keys])
        order = places.argsort(kind="stable")
        count = min(max(1, int((places < share).sum())), len(self) - 1)
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))

    def hold_out(self, groups: Sequence[str]) -> tuple["Collection", "Collection"]:
        """Split by the beginning of the image's name: (the rest, the examples of these groups)."""
        held = np.array([image_name(key).startswith(tuple(groups)) for key in self.keys], bool)
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    def _column(self, name: str) -> list[Any]:
        values: list[Any] = self._table[name].take(pa.array(self._all)).to_pylist()
        return values


def image_name(key: str) -> str:
    """Name of an image without its folder, tar or Parquet file."""
    return key.rpartition("#")[2].rpartition("/")[2]


def _split_place(key: str) -> float:
    """Place of a key in a split, 0 to 1: a hash of the image's name, whatever tar or Parquet file holds it."""
    name = key.rpartition("#")[2]
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) / 2**64


def _open_batches(file: Path) -> Iterator[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(
            f"the cached file {file} is damaged: {error}", hint="delete it; the next run fetches it again"
        ) from error
    return (reader.get_batch(index) for index in range(reader.num_record_batches))


# ---------------------------------------------------------------- opening


def open_collection(
    data: Url,
    parts: Sequence[str],
    *,
    classes: ClassMap,
    cache: Path,
    where: str | None = None,
    channels: tuple[str, ...] = bands.RGB,
    scale: BandScale | None = None,
    coding: Coding = labels.IDS,
    max_left_out: float = 1.0,
) -> Collection:
    """Fetch and check every labelled image of some parts, or map the files already in the cache.

    One process of a machine fetches; others that open the same cache wait for it.

    Args:
        data: the folder that holds the parts.
        parts: one or more, relative to `data`; their examples are concatenated in this order.
        classes: class map of the labels.
        cache: local folder of the Arrow files.
        where: folder in the part, tar member or Parquet column of labels; default `labels`, `png`, `label`.
        channels: bands every image must have.
        scale: scale of stored samples to 8 bits; another type of samples is left out.
        coding: meaning of the values in label files.
        max_left_out: largest share of images that are left out, 0 to 1.

    Raises:
        ConfigError: a part does not exist or has no labelled image; more images are left out than `max_left_out`.
        LabelError: a label contradicts its image or the class map; names the label, the value and the count.
        StorageError: the store failed, or the cache cannot be written.
    """
    coding.check(classes)
    urls = [data / part for part in parts]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache):
            files = [
                file
                for url in urls
                for file in _fetch_part(url, where, _Checks(classes, channels, scale, coding), cache)
            ]
    except OSError as error:
        hint = "set --runtime.cache to a folder with free space"
        raise StorageError(f"the cache {cache} cannot be written: {error}", hint=hint) from error
    collection = Collection(files, classes)
    name = f"{data}: {', '.join(parts)}"
    _refuse(collection, name, urls, where, max_left_out)
    _report(collection, name)
    return collection


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Lock the cache against other processes of this machine; the kernel releases the lock of a process that dies."""
    with (cache / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _refuse(collection: Collection, name: str, urls: Sequence[Url], where: str | None, max_left_out: float) -> None:
    """Refuse a collection without an example, or with a larger share of images left out than `max_left_out`."""
    images = len(collection) + len(collection.left_out)
    share = len(collection.left_out) / images if images else 0.0
    if len(collection) and share <= max_left_out:
        return
    hint = _missing_label_hint(collection, urls, where)
    left_out = _left_out_by_code(collection)
    if not len(collection):
        missing = "image" if {code for _, code in collection.left_out} <= NO_IMAGE else "labelled image"
        raise ConfigError(f"{name} has no {missing}; left out: {left_out}", hint=hint or "check --sets.labels")
    message = f"{name}: {len(collection.left_out)} of {images} images are left out ({share:.1%}): {left_out}"
    example = "for example {} ({})".format(*collection.left_out[0])
    accepts = f"--sets.max-left-out-share {ceil(share * 100) / 100:g} accepts it"
    raise ConfigError(f"{message}; limit {max_left_out:.1%}", hint=f"{hint or example}; {accepts}")


def _report(collection: Collection, name: str) -> None:
    """Log what the collection holds and lacks."""
    left_out, weak_images = _left_out_by_code(collection), collection.weak_n.sum()
    turned = f"; EXIF turns {collection.turned}, whose labels must be upright too" if collection.turned else ""
    log.info("%s: %d labelled images (%d weak); left out: %s%s", name, len(collection), weak_images, left_out, turned)
    coverage = collection.coverage
    if not weak_images and (coverage.unlabelled or coverage.ignored_share):
        log.log(logging.WARNING if coverage.unlabelled else logging.INFO, "%s: %s", name, coverage)
    for key, code in collection.left_out[:_SHOWN]:
        log.warning("%s: left out %s: %s", name, key, code)


def _left_out_by_code(collection: Collection) -> str:
    counts = Counter(code for _, code in collection.left_out)
    return ", ".join(f"{count} {code}" for code, count in sorted(counts.items())) or "none"


def _missing_label_hint(collection: Collection, urls: Sequence[Url], where: str | None) -> str | None:
    """Hint on labels that are there under another name or format; None when none is, or labels are no files."""
    bare = [key for key, code in collection.left_out if code == "label_missing"]
    for url in urls if bare else []:
        with suppress(NothingThere):
            paths = (file.path for file in objects.list_files(url / (where or "labels")))
            if text := labels.misnamed_label(bare, paths):
                return text
    return None


def _fetch_part(url: Url, where: str | None, checks: "_Checks", cache: Path) -> Iterator[Path]:
    """Yield the Arrow file of every shard of a part, in order."""
    cfg, shards, versions = _layout(url, where)
    files = [cache / f"{shard.id}-{checks.digest(cfg, shard, versions)}.arrow" for shard in shards]
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="collection")
    last = time.monotonic()
    try:
        for done, file in enumerate(pool.map(partial(_fetch_shard, checks, cfg), shards, files), start=1):
            if time.monotonic() - last > _PROGRESS_S:
                log.info("%s: %d of %d shards fetched and checked", url, done, len(shards))
                last = time.monotonic()
            yield file
    finally:
        pool.shutdown(cancel_futures=True)


def _layout(url: Url, where: str | None) -> tuple[ReadConfig, list[Shard], dict[str, str]]:
    """Read settings of a part, its shards, and the etag of each label file by its stem.

    Raises:
        ConfigError: the part does not exist, or its folder of labels does not.
    """
    try:
        shards = _shards(url / "images", ReadConfig(kind="folder"))
    except NothingThere:
        return _archives(url, where)
    folder = url / (where or "labels")
    try:
        versions = {labels.label_stem(file.path): file.etag for file in objects.list_files(folder)}
    except NothingThere as error:
        raise ConfigError(f"{folder.located} does not exist", hint="set --sets.labels") from error
    return ReadConfig(kind="folder", labels=folder.raw), shards, versions


def _archives(url: Url, where: str | None) -> tuple[ReadConfig, list[Shard], dict[str, str]]:
    """`_layout` of a part of tars or Parquet files, whose labels have no etags of their own."""
    try:
        shards = _shards(url, ReadConfig())
    except NothingThere as error:
        raise ConfigError(f"{url.located} does not exist", hint="set --sets.train or --sets.validation") from error
    kind = shards[0].kind
    if kind == "folder":
        raise ConfigError(f"{url} has neither images/ and labels/, nor tars, nor Parquet files")
    place = where or {"webdataset": "png", "parquet": "label"}[kind]
    return ReadConfig(kind=kind, labels=place, key_column="key"), shards, {}


def _shards(url: Url, cfg: ReadConfig) -> list[Shard]:
    return plan_source(SegmentConfig(source=(url.raw,), output="", checkpoint="", read=cfg)).shards


# ---------------------------------------------------------------- checking


@dataclass(frozen=True, slots=True)
class _Checks:
    """Checks of an image against its channels and of a label against the class map."""

    classes: ClassMap
    channels: tuple[str, ...]
    scale: BandScale | None
    coding: Coding

    def digest(self, cfg: ReadConfig, shard: Shard, versions: dict[str, str]) -> str:
        """Hash of everything, except the shard's id, that its Arrow file depends on: 16 hex digits."""
        members = [versions.get(labels.label_stem(member.path)) for member in shard.members()]
        coding = [self.coding.kind, sorted(self.coding.ids.items()), self.coding.ignored]
        facts = [VERSION, cfg.model_dump(), self.classes.model_dump(), self.channels, members, coding]
        if self.scale is not None:
            facts.append(self.scale.model_dump())
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def row(self, item: Item) -> dict[str, Any]:
        """One row of an Arrow file.

        Raises:
            LabelError: the label contradicts the image or the class map.
        """
        out = {"key": item.key, "image": b"", "label": b"", "weak": False, "counts": [], "digest": bytes(32)}
        if item.failure or item.label is None:
            return out | {"code": item.failure.code if item.failure else "label_missing"}
        try:
            image = bands.decode_channels(item.data, self.channels, scale=self.scale)
        except InputError as error:
            return out | {"code": error.code}
        label, counts = self._label(item.label, item.key, image)
        digest = hashlib.sha256(hashlib.sha256(item.data).digest() + item.label).digest()
        size = {"pixels": image.height * image.width, "orientation": image.orientation}
        example = {"image": item.data, "label": label, "weak": is_weak(label)}
        return out | example | size | {"counts": counts, "digest": digest}

    def _label(self, label: bytes, key: str, image: Image) -> tuple[bytes, list[int]]:
        """Label as class ids and pixels of each class; zeros for a weak label, which is parsed to check it."""
        name, size = label_name(key), {"height": image.height, "width": image.width}
        if is_weak(label):
            weak.parse_weak_label(label, self.classes, name=name, **size)
            return label, [0] * len(self.classes)
        label_hw = labels.decode_label(
            label, self.classes, name=name, **size, coding=self.coding, orientation=image.orientation
        )
        counts: list[int] = np.bincount(label_hw.ravel(), minlength=256)[: len(self.classes)].tolist()
        return (label if self.coding == labels.IDS else mask_png(label_hw, self.classes)), counts


def label_name(key: str) -> str:
    """Name of a label in error messages."""
    return f"of {key}"


def is_weak(label: bytes) -> bool:
    """Return True for JSON of a weak label, False for a PNG."""
    return label.lstrip()[:1] == b"{"


def _fetch_shard(checks: _Checks, cfg: ReadConfig, shard: Shard, file: Path) -> Path:
    """Write the Arrow file of a shard unless it exists; the rename makes it appear whole."""
    if file.exists():
        return file
    temporary = file.with_suffix(f".tmp-{uuid.uuid4().hex}")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for batch in _batches(map(checks.row, read_items(shard, cfg, max_bytes=_MAX_BYTES))):
                writer.write_batch(batch)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    """Rows in batches of about `BATCH_BYTES`."""
    pending: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        pending.append(row)
        size += len(row["image"]) + len(row["label"])
        if size > BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(pending, schema=_SCHEMA)
            pending, size = [], 0
    yield pa.RecordBatch.from_pylist(pending, schema=_SCHEMA)
