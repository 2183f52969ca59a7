"""WebDataset tars: consecutive members with one base name are a sample; no sample is lost without a failure.

A shard goes in, its samples come out in order, one image at a time in memory. Nothing is extracted to disk or
unpickled. The tar format is read by `tar`.

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
"""What can be the image of a sample, best first: beside `x.jpg`, `x.png` is a label."""

COMPANIONS = ("json", "txt", "cls")
"""What may stand beside an image. Anything else, .pkl above all, is ignored and counted."""

_MAX_NAME = 4096
"""Characters of a member's name: PATH_MAX of Linux."""
FIRST_SEEN = 10
"""Extensions that the failure of a sample without image names."""

_SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
"""Base name and extension, parted at the first dot of the last path component."""


def tar_items(shard: Shard, cfg: ReadConfig, *, max_bytes: int, wanted: Callable[[str], bool]) -> Iterator[Item]:
    """Every sample of a tar in order, without data where `wanted(key)` is false.

    Raises:
        InputError: after the samples that are whole, `archive_truncated` where the tar ends early or a header is
            damaged; `empty_archive` when there is no sample; `empty`; `source_changed`.
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
            sample.duplicate = Failure("duplicate_key", f"{first!r} and, later in the same tar, {key!r} have one name")
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
    """`base`, or `base~2` and up when the tar has had that name before."""
    name = base
    while name in seen:
        seen[base] += 1
        name = f"{base}~{seen[base]}"
    seen[name] = 1
    return name


def _label_names(asked: str | None) -> tuple[str, ...]:
    """Extensions a label can have: the one asked for, or in its place JSON with weak labels. None asked for, none."""
    if asked is None:
        return ()
    before, dot, _ = asked.lower().rpartition(".")
    return asked.lower(), f"{before}{dot}json"


# ---------------------------------------------------------------- samples


@dataclass(slots=True)
class _Best:
    """The best member so far of those that can be the image, or the label, of a sample."""

    names: tuple[str, ...]
    """Extensions, best first."""
    rank: int | None = None
    """Place in `names` of the one held; None before there is one."""
    data: bytes = b""
    failure: Failure | None = None

    def wants(self, extension: str) -> bool:
        """Whether a member with this extension is better than the one held."""
        return extension in self.names[: self.rank]


@dataclass(slots=True)
class _Sample:
    """Consecutive members with one base name."""

    base: str
    key: str
    max_bytes: int | None
    """None: the data is not wanted."""
    image: _Best
    label: _Best
    extensions: dict[str, None] = field(default_factory=dict)
    """In order; a dict, so that a tar of a million members with one name is no trap."""
    duplicate: Failure | None = None
    """Set when a sample of this name came before."""
    seconds_read: float = 0.0

    def add(self, extension: str, entry: TarMember, file: BinaryIO) -> None:
        """Take in one member; read it when it is a better image, or label, than the one held."""
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
        read_exactly(file, entry.data_at + entry.size - 1, 1, what)  # not read, but not cut either
        if self.max_bytes is None:
            return b"", None
        return b"", Failure("too_many_bytes", f"{entry.size} bytes, limit {self.max_bytes}")

    def outcome(self) -> Failure | None:
        """Why the sample has no usable image or label; None when it has."""
        if self.duplicate:
            return self.duplicate
        if self.image.rank is not None:
            return self.image.failure or self.label.failure
        seen = ", ".join(f".{extension}" for extension in islice(self.extensions, FIRST_SEEN))
        allowed = f".{', .'.join(self.image.names)} after the first dot"
        return Failure("missing_pair", f"no image among {seen}; allowed: {allowed}")

    def is_settled(self) -> bool:
        """Whether no member that may still come could change image or label."""
        return all(best.rank == 0 or not best.names for best in (self.image, self.label))


def _samples(file: BinaryIO, begin: Callable[[str], _Sample], ignored: Counter[str]) -> Iterator[_Sample]:
    """Group members into samples.

    A sample that damage cuts short is given only when nothing lost could have outranked its image or label: else a
    label might pass for the image.
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
        if sample is not None and sample.is_settled():
            yield sample
        raise
    if sample is None:
        raise InputError("empty_archive", f"no sample; ignored: {dict(ignored) or 'nothing'}")
    yield sample


def _members(file: BinaryIO, ignored: Counter[str]) -> Iterator[tuple[str, str, TarMember]]:
    """(base name, extension, entry) of the members that belong to samples; the others are counted by reason."""
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
