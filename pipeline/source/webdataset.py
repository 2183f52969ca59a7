"""WebDataset source: samples of a tar, each an image of one name, perhaps with a label, among consecutive members.

A shard goes in, its samples come out in order, with the images of two samples in memory at most. Every image member is
an item, or is counted and named in the log. Nothing is extracted to disk or unpickled. Module `tar` reads the tar
format, `member` the names, and `choice` takes the image where a sample has several.

Grouping: github.com/webdataset/webdataset, "The WebDataset Format"; where names have further dots,
docs/decisions/015-names-with-dots.md.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO

from pipeline.config import ReadConfig
from pipeline.errors import InputError
from pipeline.records import Failure, Item
from pipeline.source.choice import largest_image
from pipeline.source.left_out import LeftOut
from pipeline.source.member import IMAGES, NOT_A_FILE, UNSAFE, MemberName, parse_name
from pipeline.source.shard import Shard
from pipeline.source.tar import TarMember, entries, read_exactly
from pipeline.store import objects

log = logging.getLogger(__name__)

FIRST_SEEN = 10
"""Number of extensions listed in the failure of a group without image."""
SPELLINGS = {"jpeg": "jpg", "tiff": "tif"}
"""Suffixes of one format: `x.jpeg` beside `x.jpg` is an image of its own, with the key `x.jpeg`."""


def tar_items(
    shard: Shard, cfg: ReadConfig, *, max_bytes: int, wanted: Callable[[str], bool], left_out: LeftOut
) -> Iterator[Item]:
    """Read the samples of a tar in order, without data where `wanted(key)` is false; `left_out` counts other members.

    Raises:
        InputError: `archive_truncated`, after the whole samples, when the tar ends early or a header is damaged;
            `empty_archive` when there is no sample; `empty`; `source_changed`.
        FileNotFoundError: the tar is gone.
        StorageError: the store failed through every attempt, or denied access.
    """
    if shard.size == 0:
        raise InputError("empty", "0 bytes")
    try:
        with objects.open_read(shard.url, etag=shard.etag) as file:
            yield from _Tar(shard, file, cfg, max_bytes, wanted, left_out).items()
    finally:
        if left_out.counts:
            lost = left_out.counts.keys() & {NOT_A_FILE, UNSAFE}
            log.log(logging.WARNING if lost else logging.INFO, "%r: members left out: %s", shard.uri, left_out)


@dataclass(slots=True)
class _Best:
    """Best label so far of a sample."""

    names: tuple[str, ...]
    """Extensions, best first."""
    rank: int | None = None
    """Index in `names` of the best member; None before the first."""
    data: bytes = b""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class _Picture:
    """One image member of a sample."""

    entry: TarMember
    data: bytes
    """Empty where it is not wanted, or cannot be used."""
    failure: Failure | None


@dataclass(slots=True)
class _Sample:
    """Images of one name without suffix, and their label."""

    stem: str
    key: str
    wanted: bool
    label: _Best
    duplicate: Failure | None
    """Set when an earlier sample has the same name."""
    pictures: dict[str, _Picture] = field(default_factory=dict)
    """By suffix. A group has each extension once, so there are few."""
    reading: str = ""
    """Suffix of the image that is being read; it stays when the tar is cut there."""
    seconds_read: float = 0.0

    def is_final(self) -> bool:
        """True when no later member could change image or label."""
        label_final = self.label.rank == 0 or not self.label.names
        return "jpg" in self.pictures and self.reading in ("", "png") and label_final


@dataclass(slots=True)
class _Group:
    """Consecutive members with the same name up to the first dot."""

    base: str
    extensions: dict[str, None] = field(default_factory=dict)
    """Extensions in order. A dict, so that lookups stay fast in a tar of a million members with the same name."""
    open: dict[str, _Sample] = field(default_factory=dict)
    """Samples by stem that may get more members: that of the base, and the latest other."""
    labels: dict[str, list[tuple[str, TarMember]]] = field(default_factory=dict)
    """Labels by stem that wait for their image, with their extensions."""
    has_image: bool = False


@dataclass(slots=True)
class _Tar:
    """Reading of one tar."""

    shard: Shard
    file: BinaryIO
    cfg: ReadConfig
    max_bytes: int
    wanted: Callable[[str], bool]
    left_out: LeftOut
    seen: dict[str, int] = field(default_factory=dict)
    """Names of samples, with the number of the last copy of each."""

    def items(self) -> Iterator[Item]:
        """Items of all groups.

        A sample cut short by damage is delivered only if no lost member could have changed its image or label:
        otherwise a label might be taken for the image.
        """
        group: _Group | None = None
        try:
            for name, entry in self._members():
                if group is None or group.base != name.base or name.extension in group.extensions:
                    if group is not None:
                        yield from self._close(group)
                    group = _Group(name.base)
                group.extensions[name.extension] = None
                yield from self._add(group, name, entry)
        except InputError:
            for sample in group.open.values() if group is not None else ():
                if sample.is_final():
                    yield from self._deliver(sample)
            raise
        if group is None:
            raise InputError("empty_archive", f"no sample; ignored: {self.left_out}")
        yield from self._close(group)

    def _members(self) -> Iterator[tuple[MemberName, TarMember]]:
        """Members that belong to samples; the others are counted by reason."""
        labels = _label_names(self.cfg.labels)
        for entry in entries(self.file):
            name = parse_name(entry.name, labels) if entry.regular else NOT_A_FILE
            if isinstance(name, str):
                self.left_out.add(name, entry.name)
            else:
                yield name, entry

    # ------------------------------------------------------------ one group

    def _add(self, group: _Group, name: MemberName, entry: TarMember) -> Iterator[Item]:
        """Add a member to its group; an image of another name delivers the sample before it."""
        if name.role == "image":
            if name.stem not in group.open:
                for stem in [stem for stem in group.open if stem != group.base]:
                    yield from self._deliver(group.open.pop(stem))
                group.open[name.stem] = self._begin(group, name.stem)
            self._add_picture(group.open[name.stem], name.suffix, entry)
        elif name.role == "label":
            if name.stem in group.open:
                self._add_label(group.open[name.stem], name.suffix, entry)
            else:
                group.labels.setdefault(name.stem, []).append((name.suffix, entry))
        elif name.role == "auxiliary":
            self.left_out.add("(label or preview by its name)", entry.name)

    def _begin(self, group: _Group, stem: str) -> _Sample:
        """Sample of a new name, with the labels that came before its image."""
        group.has_image = True
        name = self._distinct(stem)
        sample = _Sample(
            stem, self._key(name), False, _Best(_label_names(self.cfg.labels)), self._duplicate(stem, name)
        )
        sample.wanted = self.wanted(sample.key)
        for extension, entry in group.labels.pop(stem, []):
            self._add_label(sample, extension, entry)
        return sample

    def _close(self, group: _Group) -> Iterator[Item]:
        """Items of the samples that are still open; a group without image is one failure."""
        for sample in group.open.values():
            yield from self._deliver(sample)
        if not group.has_image:
            name = self._distinct(group.base)
            failure = self._duplicate(group.base, name) or self._no_image(group)
            yield self.shard.item(self._key(name), failure=failure)
            return
        for waiting in group.labels.values():
            for _, entry in waiting:
                self.left_out.add("(label without an image of its name)", entry.name)

    def _no_image(self, group: _Group) -> Failure:
        seen = ", ".join(f".{extension}" for extension in islice(group.extensions, FIRST_SEEN))
        labels = _label_names(self.cfg.labels)
        allowed = ", ".join(f".{suffix}" for suffix in IMAGES if suffix not in labels)
        return Failure(
            "missing_pair", f"no image among {seen}; allowed: {allowed}, without the name of a label or preview"
        )

    # ------------------------------------------------------------ one sample

    def _add_picture(self, sample: _Sample, suffix: str, entry: TarMember) -> None:
        began = time.monotonic()
        wanted = sample.wanted or (suffix in SPELLINGS and self.wanted(self._key(f"{sample.stem}.{suffix}")))
        sample.reading = suffix
        sample.pictures[suffix] = _Picture(entry, *self._read(entry, wanted=wanted))
        sample.reading = ""
        sample.seconds_read += time.monotonic() - began

    def _add_label(self, sample: _Sample, extension: str, entry: TarMember) -> None:
        """Read a label unless a better one is there."""
        best, rank = sample.label, sample.label.names.index(extension)
        if best.rank is None or rank < best.rank:
            began = time.monotonic()
            best.data, best.failure = self._read(entry, wanted=sample.wanted)
            best.rank = rank
            sample.seconds_read += time.monotonic() - began

    def _read(self, entry: TarMember, *, wanted: bool) -> tuple[bytes, Failure | None]:
        """Data of a member, or why it cannot be used; what is not read is still checked for a cut."""
        what = f"member {entry.name!r}"
        if entry.size == 0:
            return b"", Failure("empty", f"{what} has 0 bytes")
        if wanted and entry.size <= self.max_bytes:
            return read_exactly(self.file, entry.data_at, entry.size, what), None
        read_exactly(self.file, entry.data_at + entry.size - 1, 1, what)
        return b"", Failure("too_many_bytes", f"{entry.size} bytes, limit {self.max_bytes}") if wanted else None

    def _deliver(self, sample: _Sample) -> Iterator[Item]:
        """Item of the sample's image, and one for each other spelling of a format that it has twice."""
        own = [suffix for suffix, short in SPELLINGS.items() if {suffix, short} <= sample.pictures.keys()]
        rivals = {suffix: picture for suffix, picture in sample.pictures.items() if suffix not in own}
        image = _choose(rivals)
        for suffix, picture in rivals.items():
            if suffix != image:
                self.left_out.add("(label or preview beside a larger image)", picture.entry.name)
        picture, label = rivals[image], sample.label
        failure = sample.duplicate or picture.failure or label.failure
        data, encoded = (b"", None) if failure else (picture.data, label.data or None)
        seconds = sample.seconds_read
        yield self.shard.item(sample.key, data, label=encoded, failure=failure, seconds_read=seconds)
        for suffix in own:
            yield self._spelled_otherwise(sample, suffix)

    def _spelled_otherwise(self, sample: _Sample, suffix: str) -> Item:
        """Item of `x.jpeg` beside `x.jpg`; the label `x.png` is that of `x.jpg`."""
        picture, stem = sample.pictures[suffix], f"{sample.stem}.{suffix}"
        name = self._distinct(stem)
        failure = self._duplicate(stem, name) or picture.failure
        return self.shard.item(self._key(name), b"" if failure else picture.data, failure=failure)

    # ------------------------------------------------------------ keys

    def _key(self, name: str) -> str:
        return f"{self.shard.uri}#{name}"

    def _distinct(self, stem: str) -> str:
        """Unique name: `stem`, or `stem~2` and up when an earlier sample of the tar has that name."""
        name = stem
        while name in self.seen:
            self.seen[stem] += 1
            name = f"{stem}~{self.seen[stem]}"
        self.seen[name] = 1
        return name

    def _duplicate(self, stem: str, name: str) -> Failure | None:
        if name == stem or self.cfg.on_duplicate != "fail":
            return None
        first, second = self._key(stem), self._key(name)
        return Failure("duplicate_key", f"{first!r} and, later in the same tar, {second!r} have the same name")


def _label_names(extension: str | None) -> tuple[str, ...]:
    """Extensions of labels: the configured extension, or JSON with weak labels in its place; empty without labels."""
    if extension is None:
        return ()
    before, dot, _ = extension.lower().rpartition(".")
    return extension.lower(), f"{before}{dot}json"


def _choose(rivals: dict[str, _Picture]) -> str:
    """Suffix of a sample's image; the only one is not looked into."""
    if len(rivals) == 1:
        return next(iter(rivals))
    return largest_image({suffix: (picture.data, picture.entry.size) for suffix, picture in rivals.items()})
