"""Folder source: slices of a listing of image files, and the items of a slice, read a few files ahead.

Planning turns a listing into slices. Reading turns a shard into items; with a folder of labels, an item carries the
label of the same name there. Files are never decoded here.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from typing import Any
from unicodedata import normalize

from pipeline.errors import InputError, StorageError
from pipeline.records import Item
from pipeline.source.shard import Member, Shard, read_failure
from pipeline.store import objects
from pipeline.store.url import Url

LONGEST_SLICE = 4
"""Most files of a slice, as a multiple of the mean."""

FILES_AHEAD = 8
"""Files fetched concurrently, which hides the latency of an object store."""

BYTES_AHEAD = 64 * 2**20
"""Most bytes fetched but not delivered, unless a single file is larger. Labels are small and not counted."""

_LABELS = (".png", ".json", ".PNG")
"""Suffixes of labels, in order of preference: class ids (PNG) or weak labels (JSON)."""


def slice_listing(members: Iterable[Member], mean: int) -> Iterator[list[Member]]:
    """Cut a sorted listing into slices of `mean` files on average, at most four times as many.

    A hash of each path decides if a slice ends after it (content-defined chunking: A. Tridgell, "Efficient algorithms
    for sorting and synchronization", 1999, ch. 3). A file added or removed then changes the slices up to the next end
    only; with slices of a fixed count it would change all later ones.
    """
    held: list[Member] = []
    for member in members:
        held.append(member)
        if len(held) == LONGEST_SLICE * mean or ends_slice(member.path, mean):
            yield held
            held = []
    if held:
        yield held


def ends_slice(path: str, mean: int) -> bool:
    """True when a slice ends after this path: on average for one path in `mean`."""
    return int.from_bytes(blake2b(path.encode(), digest_size=8).digest()) % mean == 0


def twins(members: list[Member]) -> list[tuple[str, str]]:
    """Pairs of keys that differ only in case or Unicode normalisation, and so collide on some file systems."""
    first: dict[str, str] = {}
    pairs = []
    for member in members:
        alike = first.setdefault(normalize("NFC", member.path).casefold(), member.path)
        if alike != member.path:
            pairs.append((alike, member.path))
    return pairs


def folder_items(
    shard: Shard, *, max_bytes: int, wanted: Callable[[str], bool], labels: Url | None = None
) -> Iterator[Item]:
    """Read the items of a slice in order, without data where `wanted(key)` is false.

    An image that cannot be fetched, or whose label cannot, becomes a failure; the other files are read. With `labels`,
    the URL of a folder, the label of `a/1.jpg` is `a/1.png` there, or else a file with another suffix of `_LABELS`.

    Raises:
        AccessDenied: 403, which every other file would get too.
    """
    pool = ThreadPoolExecutor(FILES_AHEAD, thread_name_prefix="folder")
    ahead: deque[tuple[Member, Future[dict[str, Any]] | None]] = deque()
    try:
        for member in shard.members()[: shard.max_rows]:
            fetch = pool.submit(_fetch, Url(shard.root), member, max_bytes, labels) if wanted(member.key) else None
            ahead.append((member, fetch))
            while len(ahead) > 1 and (len(ahead) > FILES_AHEAD or _held_bytes(ahead, max_bytes) > BYTES_AHEAD):
                yield _item(shard, *ahead.popleft())
        while ahead:
            yield _item(shard, *ahead.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _held_bytes(ahead: Iterable[tuple[Member, Any]], max_bytes: int) -> int:
    """Upper bound of the bytes in memory; a file above `max_bytes` is refused unread."""
    return sum(member.size for member, fetch in ahead if fetch is not None and member.size <= max_bytes)


def _item(shard: Shard, member: Member, fetch: Future[dict[str, Any]] | None) -> Item:
    return shard.item(member.key, etag=member.etag, **(fetch.result() if fetch is not None else {}))


def _fetch(root: Url, member: Member, max_bytes: int, labels: Url | None) -> dict[str, Any]:
    """Fields of an item that come from its image and label objects."""
    began = time.monotonic()
    try:
        data = objects.read_bytes(root / member.path, max_bytes=max_bytes, etag=member.etag)
        if not data:
            raise InputError("empty", "0 bytes")
        label = None if labels is None else _label(labels, member.path, max_bytes)
    except (InputError, FileNotFoundError, StorageError) as error:
        return {"failure": read_failure(error), "seconds_read": time.monotonic() - began}
    return {"data": data, "label": label, "seconds_read": time.monotonic() - began}


def _label(labels: Url, path: str, max_bytes: int) -> bytes | None:
    """Label of an image, requested by name: a listing would have to be kept and sent to every worker."""
    for suffix in _LABELS:
        with suppress(FileNotFoundError):
            return objects.read_bytes(labels / (path.rpartition(".")[0] + suffix), max_bytes=max_bytes)
    return None
