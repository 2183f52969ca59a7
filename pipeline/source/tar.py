"""Strict tar reader: the members of a tar in order, or an error that names the damaged byte.

A seekable file goes in, `TarMember`s come out; `read_exactly` reads their data. Nothing is extracted to disk. Python's
`tarfile` is not used, since it treats a damaged header as the end of the archive, without an error.

Format: POSIX.1-2017, utility `pax`, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar
Format".
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.errors import InputError

BLOCK = 512
"""Bytes of a block: a header is one block, data is padded to whole blocks."""
MAX_EXTENDED_BYTES = 2**20
"""Largest pax or GNU long name header, bytes."""
MAX_MEMBERS = 10_000_000
"""Most headers of a tar."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """Member of a tar, without its data."""

    name: str
    """Name as UTF-8; other bytes are escaped, such as `\\xff`."""
    size: int
    """Bytes of data."""
    data_at: int
    """Offset of the data in the tar."""
    regular: bool
    """True for a plain file; False for folders, links, devices, sparse files and unknown types."""


def entries(file: BinaryIO) -> Iterator[TarMember]:
    """Read the members of a tar in order. The position of `file` may change between two members.

    Raises:
        InputError: `archive_truncated` when a header is damaged or the end-of-archive blocks are missing.
    """
    at, last = 0, "the first header"
    shared: dict[str, str] = {}
    own: dict[str, str] = {}
    for _ in range(MAX_MEMBERS):
        block = read_exactly(file, at, BLOCK, last)
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


def read_exactly(file: BinaryIO, at: int, size: int, what: str) -> bytes:
    """Read `size` bytes from offset `at`; `what` names them in the error.

    Raises:
        InputError: `archive_truncated` when the file ends earlier.
    """
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
    """Require that only zeros follow the zero block at `at`.

    POSIX demands two zero blocks; a single zero block at the end of the file is accepted too, as by GNU tar with a
    warning. Data after them means a zeroed header or several tars in one file; other readers drop it silently.
    """
    file.seek(at)
    while chunk := file.read(2**20):
        if rest := chunk.lstrip(b"\0"):
            data_at = file.tell() - len(rest)
            raise InputError("archive_truncated", f"end-of-archive block at byte {at}, but data at byte {data_at}")


def _kind(block: bytes, at: int) -> bytes:
    """Type flag of a header with a valid checksum; the sum of signed bytes, as in old tars, is valid too."""
    stored, rest = _number(block[148:156], at), block[:148] + b" " * 8 + block[156:]
    total = sum(rest)
    if stored != total and stored != total - 256 * sum(byte > 127 for byte in rest):  # the second sum is slow
        raise _damaged(at, "its checksum is wrong")
    return block[156:157]


def _number(digits: bytes, at: int) -> int:
    """Value of a numeric field: octal digits, or base 256 when the first byte is 0x80 (GNU)."""
    if digits[0] == 0x80:
        number = int.from_bytes(digits[1:])
    elif re.fullmatch(rb"[0-7]*", text := digits.partition(b"\0")[0].strip()):
        number = int(text or b"0", 8)
    else:
        raise _damaged(at, f"{digits!r} is not a number")
    if number >= 2**62:
        raise _damaged(at, f"the number {number} is too large")
    return number


def _decimal(digits: str, at: int) -> int:
    """Value of a size in a pax record: at most 18 digits, which is below the limit of `_number`."""
    if not re.fullmatch("[0-9]{1,18}", digits):
        raise _damaged(at, f"{digits[:20]!r} is not a size")
    return int(digits)


def _damaged(at: int, why: str) -> InputError:
    return InputError("archive_truncated", f"the header at byte {at} is damaged: {why}")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _extended(file: BinaryIO, block: bytes, at: int) -> tuple[dict[str, str], int]:
    """Fields that a pax or GNU long name header sets for later members, and the offset after it."""
    size = _number(block[124:136], at)
    if size > MAX_EXTENDED_BYTES:
        raise _damaged(at, f"an extended header of {size} bytes, limit {MAX_EXTENDED_BYTES}")
    payload, end = read_exactly(file, at + BLOCK, size, "an extended header"), at + BLOCK + _padded(size)
    kind = block[156:157]
    if kind == b"L":
        return {"path": _text(payload)}, end
    return (_pax_records(payload, at) if kind in b"xg" else {}), end


def _pax_records(payload: bytes, at: int) -> dict[str, str]:
    """Decode records of length (which counts itself), keyword, value and newline; keep path, size and sparse marks."""
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
    if kind == b"S":  # GNU sparse: further blocks of its map may precede the data
        more = block[482]
        while more:
            more = read_exactly(file, data_at, BLOCK, f"member {name!r}")[504]
            data_at += BLOCK
    is_folder = kind == b"5" or (kind == b"\0" and name.endswith("/"))
    has_data = kind not in b"12346" and not is_folder
    regular = kind in b"0\x007" and not is_folder and "GNU.sparse" not in extended
    return TarMember(name, size if has_data else 0, data_at, regular)


def _header_name(block: bytes) -> str:
    """Name field, after the prefix field in POSIX headers; GNU headers keep times there."""
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(block[:100])}" if prefix else _text(block[:100])


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode("utf-8", "backslashreplace")
