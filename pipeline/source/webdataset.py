"""WebDataset tars: a streaming reader that never loses a sample quietly.

A shard goes in, its samples come out in order, one image at a time in memory. Nothing is ever extracted to disk or
unpickled. Python's `tarfile` is not used: it takes a damaged header for the end of the archive and says nothing.

Format: POSIX.1-2017, utility `pax`, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar
Format". Grouping: github.com/webdataset/webdataset, "The WebDataset Format".
"""

import io
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
from pipeline.store import objects

log = logging.getLogger(__name__)

_IMAGES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
"""What can be the image of a sample, best first: beside `x.jpg`, `x.png` is a label."""

COMPANIONS = ("json", "txt", "cls")
"""What may stand beside an image. Anything else, .pkl above all, is ignored and counted."""

BLOCK = 512
MAX_EXTENDED_BYTES = 2**20
"""Of one pax or GNU long name header."""
_MAX_NAME = 4096
"""Characters of a member's name: PATH_MAX of Linux."""
MAX_MEMBERS = 10_000_000
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

    def add(self, extension: str, entry: "TarMember", file: BinaryIO) -> None:
        """Take in one member; read it when it is a better image, or label, than the one held."""
        self.extensions[extension] = None
        for best in (self.label, self.image):
            if best.wants(extension):
                began = time.monotonic()
                best.data, best.failure = self._read(entry, file)
                best.rank = best.names.index(extension)
                self.seconds_read += time.monotonic() - began

    def _read(self, entry: "TarMember", file: BinaryIO) -> tuple[bytes, Failure | None]:
        if entry.size == 0:
            return b"", Failure("empty", f"member {entry.name!r} has 0 bytes")
        what = f"member {entry.name!r}"
        if self.max_bytes is not None and entry.size <= self.max_bytes:
            return _exactly(file, entry.data_at, entry.size, what), None
        _exactly(file, entry.data_at + entry.size - 1, 1, what)  # not read, but not cut either
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


def _members(file: BinaryIO, ignored: Counter[str]) -> Iterator[tuple[str, str, "TarMember"]]:
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


# ---------------------------------------------------------------- the tar format


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member of a tar, its data not yet read."""

    name: str
    """UTF-8; a byte that is not stands as `\\xff`."""
    size: int
    """Bytes of data."""
    data_at: int
    """Offset of the data in the tar."""
    regular: bool
    """A plain file; False for folders, links, devices, sparse files and unknown types."""


def entries(file: BinaryIO) -> Iterator[TarMember]:
    """Every member of a tar, in order. `file` may be moved between two of them.

    Raises:
        InputError: `archive_truncated` when a header is damaged or the end-of-archive blocks are missing.
    """
    at, last = 0, "the first header"
    shared: dict[str, str] = {}
    own: dict[str, str] = {}
    for _ in range(MAX_MEMBERS):
        block = _exactly(file, at, BLOCK, last)
        if not any(block):
            return _require_end(file, at)
        kind = _kind(block, at)
        if kind in b"xgLK":
            extended, at = _extended(file, block, at)
            (shared if kind == b"g" else own).update(extended)
            continue
        entry = _entry(file, block, at, shared | own)
        yield entry
        at, last, own = entry.data_at + _padded(entry.size), f"member {entry.name!r}", {}
    raise InputError("archive_truncated", f"more than {MAX_MEMBERS} headers")


def _exactly(file: BinaryIO, at: int, size: int, what: str) -> bytes:
    """`size` bytes from offset `at`."""
    file.seek(at)
    data = file.read(size)
    if len(data) < size:
        end = file.seek(0, io.SEEK_END)
        raise InputError(
            "archive_truncated",
            f"the tar ends at byte {end} without end-of-archive blocks; cut in or after {what:.300}",
        )
    return data


def _require_end(file: BinaryIO, at: int) -> None:
    """Nothing but zeros may follow the zero block at `at`.

    POSIX asks for two zero blocks; one before the end of the file is taken too, as GNU tar does with a warning. Data
    after them is a zeroed header or several tars in one file: other readers lose it quietly.
    """
    file.seek(at)
    while chunk := file.read(2**20):
        if rest := chunk.lstrip(b"\0"):
            found = file.tell() - len(rest)
            raise InputError("archive_truncated", f"end-of-archive block at byte {at}, but data at byte {found}")


def _kind(block: bytes, at: int) -> bytes:
    """Type flag of a header whose checksum holds; the sum of signed bytes, written by old tars, is taken too."""
    stored, rest = _number(block[148:156], at), block[:148] + b" " * 8 + block[156:]
    if stored not in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest)):
        raise _damaged(at, "its checksum is wrong")
    return block[156:157]


def _number(digits: bytes, at: int) -> int:
    """A numeric field: octal digits, or base 256 when the first byte is 0x80 (GNU)."""
    if digits[0] == 0x80:
        number = int.from_bytes(digits[1:])
    elif re.fullmatch(rb"[0-7]*", text := digits.partition(b"\0")[0].strip()):
        number = int(text or b"0", 8)
    else:
        raise _damaged(at, f"{digits!r} is not a number")
    if number >= 2**62:
        raise _damaged(at, f"it announces {number} bytes")
    return number


def _decimal(digits: str, at: int) -> int:
    """A size in a pax record: at most 18 digits, which is below the limit of `_number`."""
    if not re.fullmatch("[0-9]{1,18}", digits):
        raise _damaged(at, f"{digits[:20]!r} is not a size")
    return int(digits)


def _damaged(at: int, why: str) -> InputError:
    return InputError("archive_truncated", f"the header at byte {at} is damaged: {why}")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _extended(file: BinaryIO, block: bytes, at: int) -> tuple[dict[str, str], int]:
    """What a pax or GNU long name header says of the members to come, and the offset after it."""
    size = _number(block[124:136], at)
    if size > MAX_EXTENDED_BYTES:
        raise _damaged(at, f"an extended header of {size} bytes, limit {MAX_EXTENDED_BYTES}")
    payload, end = _exactly(file, at + BLOCK, size, "an extended header"), at + BLOCK + _padded(size)
    kind = block[156:157]
    if kind == b"L":
        return {"path": _text(payload)}, end
    return (_pax_records(payload, at) if kind in b"xg" else {}), end


def _pax_records(payload: bytes, at: int) -> dict[str, str]:
    """Records of length, keyword, value and newline; the length counts itself. What no one asks for is left out."""
    records, start = {}, 0
    while start < len(payload):
        digits, _, _ = payload[start : start + 20].partition(b" ")
        end = start + (int(digits) if digits.isdigit() else 0)
        keyword, equals, value = payload[start + len(digits) + 1 : end].partition(b"=")
        if not equals or value[-1:] != b"\n" or end > len(payload):
            raise _damaged(at, "a pax record is malformed")
        if keyword.startswith(b"GNU.sparse."):
            records["GNU.sparse"] = ""
        elif keyword in (b"path", b"size"):
            records[keyword.decode()] = value[:-1].decode("utf-8", "backslashreplace")
        start = end
    return records


def _entry(file: BinaryIO, block: bytes, at: int, extended: dict[str, str]) -> TarMember:
    kind, data_at = block[156:157], at + BLOCK
    name = extended.get("path") or _header_name(block)
    size = _number(block[124:136], at)
    if "size" in extended:
        size = _decimal(extended["size"], at)
    if kind == b"S":  # GNU sparse: more of its map may follow before the data
        more = block[482]
        while more:
            more = _exactly(file, data_at, BLOCK, f"member {name!r}")[504]
            data_at += BLOCK
    is_folder = kind == b"5" or (kind == b"\0" and name.endswith("/"))
    has_data = kind not in b"12346" and not is_folder
    regular = kind in b"0\x007" and not is_folder and "GNU.sparse" not in extended
    return TarMember(name, size if has_data else 0, data_at, regular)


def _header_name(block: bytes) -> str:
    """The name field, after the prefix field where the header is POSIX: GNU keeps times there."""
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(block[:100])}" if prefix else _text(block[:100])


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode("utf-8", "backslashreplace")
