"""WebDataset source: a sample is a series of consecutive tar members with the same base name.

A shard goes in, its samples come out in order, with a single image in memory. Every lost sample leaves a failure.
Nothing is extracted to disk or unpickled. Module `tar` reads the tar format.

Grouping: github.com/webdataset/webdataset, "The WebDataset Format".
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO

from pipeline.config import ReadConfig
from pipeline.errors import InputError
from pipeline.records import Failure, Item
from pipeline.source.shard import Shard, suffix_of
from pipeline.source.tar import TarMember, entries, read_exactly
from pipeline.store import objects

log = logging.getLogger(__name__)

_IMAGES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
"""Extensions of images, best first: beside `x.jpg`, `x.png` is a label."""

COMPANIONS = ("json", "txt", "cls")
"""Extensions of other members that belong to a sample. All others, such as .pkl, are ignored and counted."""

_MAX_NAME = 4096
"""Most characters of a member's name: PATH_MAX of Linux."""
FIRST_SEEN = 10
"""Number of extensions listed in the failure of a sample without image."""

_SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
"""Base name and extension, split at the first dot of the last path component."""


def tar_items(shard: Shard, cfg: ReadConfig, *, max_bytes: int, wanted: Callable[[str], bool]) -> Iterator[Item]:
    """Read the samples of a tar in order, without data where `wanted(key)` is false.

    Raises:
        InputError: `archive_truncated`, after the whole samples, when the tar ends early or a header is damaged;
            `empty_archive` when there is no sample; `empty`; `source_changed`.
        FileNotFoundError: the tar is gone.
        StorageError: the store failed through every attempt, or denied access.
    """
    if shard.size == 0:
        raise InputError("empty", "0 bytes")
    ignored: Counter[str] = Counter()
    seen: dict[str, int] = {}
    labels = _label_names(cfg.labels)
    images = tuple(name for name in _IMAGES if name not in labels)

    def begin(base: str) -> _Sample:
        name = _distinct(base, seen)
        key = f"{shard.uri}#{name}"
        sample = _Sample(base, key, max_bytes if wanted(key) else None, _Best(images), _Best(labels))
        if name != base and cfg.on_duplicate == "fail":
            first = f"{shard.uri}#{base}"
            sample.duplicate = Failure(
                "duplicate_key", f"{first!r} and, later in the same tar, {key!r} have the same name"
            )
        return sample

    try:
        with objects.open_read(shard.url, etag=shard.etag) as file:
            for sample in _samples(file, begin, ignored):
                failure = sample.outcome()
                data, label = (b"", None) if failure else (sample.image.data, sample.label.data or None)
                yield shard.item(sample.key, data, label=label, failure=failure, seconds_read=sample.seconds_read)
    finally:
        if ignored:
            log.info("%r: members ignored: %s", shard.uri, dict(ignored))


def _distinct(base: str, seen: dict[str, int]) -> str:
    """Unique name: `base`, or `base~2` and up when an earlier sample of the tar has that name."""
    name = base
    while name in seen:
        seen[base] += 1
        name = f"{base}~{seen[base]}"
    seen[name] = 1
    return name


def _label_names(extension: str | None) -> tuple[str, ...]:
    """Extensions of labels: the configured extension, or JSON with weak labels in its place; empty without labels."""
    if extension is None:
        return ()
    before, dot, _ = extension.lower().rpartition(".")
    return extension.lower(), f"{before}{dot}json"


# ---------------------------------------------------------------- samples


@dataclass(slots=True)
class _Best:
    """Best member so far for the image, or for the label, of a sample."""

    names: tuple[str, ...]
    """Extensions, best first."""
    rank: int | None = None
    """Index in `names` of the best member; None before the first."""
    data: bytes = b""
    failure: Failure | None = None

    def wants(self, extension: str) -> bool:
        """True when a member with this extension is better than the current best."""
        return extension in self.names[: self.rank]


@dataclass(slots=True)
class _Sample:
    """Consecutive members with the same base name."""

    base: str
    key: str
    max_bytes: int | None
    """Largest member to read, bytes; None when no data is wanted."""
    image: _Best
    label: _Best
    extensions: dict[str, None] = field(default_factory=dict)
    """Extensions in order. A dict, so that lookups stay fast in a tar of a million members with the same name."""
    duplicate: Failure | None = None
    """Set when an earlier sample has the same name."""
    seconds_read: float = 0.0

    def add(self, extension: str, entry: TarMember, file: BinaryIO) -> None:
        """Add a member; read it when it is a better image or label than the current best."""
        self.extensions[extension] = None
        for best in (self.label, self.image):
            if best.wants(extension):
                began = time.monotonic()
                best.data, best.failure = self._read(entry, file)
                best.rank = best.names.index(extension)
                self.seconds_read += time.monotonic() - began

    def _read(self, entry: TarMember, file: BinaryIO) -> tuple[bytes, Failure | None]:
        if entry.size == 0:
            return b"", Failure("empty", f"member {entry.name!r} has 0 bytes")
        what = f"member {entry.name!r}"
        if self.max_bytes is not None and entry.size <= self.max_bytes:
            return read_exactly(file, entry.data_at, entry.size, what), None
        read_exactly(file, entry.data_at + entry.size - 1, 1, what)  # not read, only checked for a cut
        if self.max_bytes is None:
            return b"", None
        return b"", Failure("too_many_bytes", f"{entry.size} bytes, limit {self.max_bytes}")

    def outcome(self) -> Failure | None:
        """Failure of a sample without usable image or label; None for a good sample."""
        if self.duplicate:
            return self.duplicate
        if self.image.rank is not None:
            return self.image.failure or self.label.failure
        seen = ", ".join(f".{extension}" for extension in islice(self.extensions, FIRST_SEEN))
        allowed = f".{', .'.join(self.image.names)} after the first dot"
        return Failure("missing_pair", f"no image among {seen}; allowed: {allowed}")

    def is_final(self) -> bool:
        """True when no later member could change image or label."""
        return all(best.rank == 0 or not best.names for best in (self.image, self.label))


def _samples(file: BinaryIO, begin: Callable[[str], _Sample], ignored: Counter[str]) -> Iterator[_Sample]:
    """Group members into samples.

    A sample cut short by damage is delivered only if no lost member could have outranked its image or label: otherwise
    a label might be taken for the image.
    """
    sample: _Sample | None = None
    try:
        for base, extension, entry in _members(file, ignored):
            if sample is None or sample.base != base or extension in sample.extensions:
                if sample is not None:
                    yield sample
                sample = begin(base)
            sample.add(extension, entry, file)
    except InputError:
        if sample is not None and sample.is_final():
            yield sample
        raise
    if sample is None:
        raise InputError("empty_archive", f"no sample; ignored: {dict(ignored) or 'nothing'}")
    yield sample


def _members(file: BinaryIO, ignored: Counter[str]) -> Iterator[tuple[str, str, TarMember]]:
    """(base name, extension, entry) of members that belong to samples; other members are counted by reason."""
    for entry in entries(file):
        parts, suffix = _SAMPLE.fullmatch(entry.name), suffix_of(entry.name)
        if not entry.regular:
            ignored["(not a plain file)"] += 1
        elif len(entry.name) > _MAX_NAME or entry.name.startswith("/") or ".." in entry.name.split("/"):
            ignored["(unsafe name)"] += 1
        elif parts is None or suffix[1:] not in _IMAGES + COMPANIONS:
            ignored[suffix] += 1
        else:
            yield parts[1], parts[2].lower(), entry
