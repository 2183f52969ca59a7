"""Cache of thumbnails and of tiles of rasters: files in a folder, the oldest deleted when they take more than a limit.

In: a name and a function that makes the bytes. Out: the bytes. Several processes may share the folder: a file is
written aside and then renamed, and one that another process has deleted is made again.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock

SWEEP_EVERY = 200
"""Writes between two looks at the size of the folder."""
_DIGEST_BYTES = 32
"""A file begins with the SHA-256 of its bytes: one that was cut short or replaced is made again."""
KEPT_SHARE = 0.8
"""Share of the limit that is left after files were deleted, so that the next write does not delete again."""


log = logging.getLogger(__name__)


class Thumbnails:
    """Cache in a folder of at most so many bytes, give or take the writes between two sweeps."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._writes, self._lock = 0, Lock()
        self._problem = ""
        """Why the last file could not be written, said once and not for every picture; empty where it was."""

    def get(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Bytes of a name, made where the cache does not have them; what `make` raises is not cached."""
        path = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        data = _read_whole(path)
        if data is None:
            data = make()
            try:
                self._put(path, data)
                self._problem = ""
            except OSError as error:
                if (problem := error.strerror or str(error)) != self._problem:
                    log.warning("thumbnails are not kept in %s: %s", self.folder, problem)
                self._problem = problem
        return data

    def _put(self, path: Path, data: bytes) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # for this user alone, whatever holds it
        aside, name = tempfile.mkstemp(dir=self.folder, prefix=".tmp-")
        try:
            with open(aside, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
        with self._lock:
            self._writes += 1
            if self._writes % SWEEP_EVERY == 0:
                self._sweep()

    def _sweep(self) -> None:
        """Delete the files that were used longest ago until `KEPT_SHARE` of the limit is left."""
        files = []
        for entry in os.scandir(self.folder):
            try:
                stat = entry.stat()
            except FileNotFoundError:
                continue  # another process deleted it
            files.append((stat.st_mtime_ns, stat.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        if total <= self.max_bytes:
            return
        for _, size, path in sorted(files):
            Path(path).unlink(missing_ok=True)
            total -= size
            if total <= self.max_bytes * KEPT_SHARE:
                return


def _read_whole(path: Path) -> bytes | None:
    """Bytes of a cached file, which is now the one used last; None where there is none, or a link or other bytes."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            stored = file.read()
            os.utime(file.fileno())  # the oldest are those that nobody looked at for longest
    except OSError:
        return None
    digest, data = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    return data if digest == hashlib.sha256(data).digest() else None
