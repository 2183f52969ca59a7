"""Client of the server that forks the workers of a flow without Ray.

The server (`fork_server.py`) has imported what workers need, so that they start in milliseconds. It is started before
the driver has imported torch: the imports of both take some seconds, and go on beside each other.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import JobError

MOST_FAILED_STARTS = 3
"""Deaths, one after the other, of the server before it serves, and of a worker before its stage is open."""
LOG_BYTES = 2000
"""End of a log that an error quotes."""


@dataclass(frozen=True, slots=True)
class Start:
    """Request to fork a worker; the file descriptor of its pipe follows. Answered by its pid."""

    log: str
    """Start of the path of its log, which ends in the pid and `.err`."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Request to wait for a worker that has closed its pipe, or was killed. Answered by its exit status."""

    pid: int


@contextmanager
def opened() -> Generator["Forks"]:
    """Server with a temporary folder of logs and journals, which is deleted at the end unless `keeps_logs` is set."""
    folder = Path(tempfile.mkdtemp(prefix="atrous-"))
    keeps_logs = False
    try:
        with Forks(folder) as forks:
            try:
                yield forks
            finally:
                keeps_logs = forks.keeps_logs
    finally:
        if not keeps_logs:
            shutil.rmtree(folder, ignore_errors=True)


class Forks:
    """Client of the server; starts it, and starts it again where it died."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.keeps_logs = False
        """True where somebody is to read the logs after the run."""
        self._open()

    def _open(self) -> None:
        self.pipe, theirs = Pipe()
        self.log = self.logs / "server.err"
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.getenv("PYTHONPATH")])])
        environment = os.environ | {
            "PYTHONPATH": path,
            "CUDA_VISIBLE_DEVICES": "",  # workers are planned without GPUs
            "OPENBLAS_NUM_THREADS": "1",  # numpy would start threads when it is imported
        }
        with theirs, self.log.open("wb") as output:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "pipeline.run.fork_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )

    def start(self, pipe: "Connection[Any, Any]", log: Path) -> int:
        """Fork a worker at the end of a pipe, which is closed here; returns its pid.

        Raises:
            JobError: the server died again and again.
        """
        with pipe:
            for _ in range(MOST_FAILED_STARTS):
                try:
                    self.pipe.send(Start(str(log)))
                    send_handle(self.pipe, pipe.fileno(), self.server.pid)
                    pid: int = self.pipe.recv()
                except (EOFError, ConnectionError):
                    self.pipe.close()
                    status = self.server.wait()
                    said = end_of(self.log)
                    self._open()
                else:
                    return pid
        message = f"the server of workers died {MOST_FAILED_STARTS} times while it started, exit status {status}"
        raise JobError(message, hint=f"its log ends: {said}")

    def wait(self, pid: int) -> int | None:
        """Exit status of a worker, negative where a signal ended it; None where the server died too."""
        try:
            self.pipe.send(Wait(pid))
            status: int = self.pipe.recv()
        except (EOFError, ConnectionError):
            return None
        return status

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.pipe.close()
        self.server.kill()
        self.server.wait()


def end_of(log: Path) -> str:
    """Last lines of a log."""
    return log.read_bytes()[-LOG_BYTES:].decode(errors="replace").strip() or "it is empty"
