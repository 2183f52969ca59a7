"""File names of keys: below the output folder whatever a key holds, and no two keys with one name.

The name of `a/b.jpg` is `a/b.png`, that of sample `t.tar#x` is `t.tar/x.png`: the names by which `--masks` of an
evaluation finds the PNGs of a folder. A key gets `~` and 12 digits of its SHA-256 before the suffix when its plain name
is not its alone: `a.jpg` beside `a.tif`, `A.jpg` beside `a.jpg` (one name on macOS and Windows), or a folder of that
name; and when a part of it is too long for a disk.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np
import pandas as pd

from pipeline.records import UInt64
from pipeline.run.masks import folder_path

LONGEST = 180
"""Bytes of one part of a path; longer ones are cut. Most disks allow 255."""
_ODD = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]|^\.+$')
"""Characters that some disk does not allow, and parts that lead to another folder."""
_MARKED = re.compile(r"~[0-9a-f]{12}$")


class Names:
    """Names of the keys of a run, with a suffix such as `.png`. Takes 8 bytes of memory per key."""

    def __init__(self, keys: Iterable[list[str]], suffix: str) -> None:
        self.suffix = suffix
        self._contested = _contested(keys, suffix)

    def path(self, key: str) -> str:
        """Path of a key's file, relative to the output folder."""
        plain = plain_path(key)
        short = "/".join(part.encode()[:LONGEST].decode(errors="ignore") for part in plain.split("/"))
        if short == plain and not _MARKED.search(plain) and not self.is_contested(plain):
            return f"{plain}{self.suffix}"
        return f"{short}~{hashlib.sha256(key.encode()).hexdigest()[:12]}{self.suffix}"

    def is_contested(self, plain: str) -> bool:
        """True when a plain path is that of several keys, or of a key and a folder."""
        return bool(np.isin(_hashes([plain + self.suffix]), self._contested)[0])


def plain_path(key: str) -> str:
    """Path of a key without a suffix, odd characters as `%` and hex digits: none leads out of the output folder."""
    named = [_ODD.sub(_in_hex, part) for part in folder_path(key).split("/") if part]
    return "/".join(named) or "_"


def _in_hex(odd: re.Match[str]) -> str:
    return "".join(f"%{ord(character):02X}" for character in odd[0])


def _contested(keys: Iterable[list[str]], suffix: str) -> UInt64:
    """Sorted hashes of the names that two keys share, or a key and a folder."""
    files, folders = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for some in keys:
        plain = [plain_path(key) for key in some]
        files.append(_hashes([path + suffix for path in plain]))
        folders.append(_hashes(sorted({folder for path in plain for folder in _folders(path)})))
    names, counts = np.unique(np.concatenate(files), return_counts=True)
    return np.union1d(names[counts > 1], np.intersect1d(names, np.concatenate(folders)))


def _folders(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _hashes(names: list[str]) -> UInt64:
    """64-bit hashes; names that differ in case or in the form of accents alone are one."""
    folded = [unicodedata.normalize("NFC", name).casefold() for name in names]
    return np.asarray(pd.util.hash_array(np.array(folded, dtype=object), categorize=False))
