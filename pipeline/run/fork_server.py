"""Server that forks the workers of a flow without Ray.

    python -m pipeline.run.fork_server FD

`forks.py` starts it with one end of a pipe as file descriptor FD. It starts no threads, so that what it forks is sound,
and ends when the driver closes the pipe or is gone.
"""

import gc
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NoReturn

from pipeline.infer import segmenter  # noqa: F401 - what workers need is imported once, here
from pipeline.models import zoo  # noqa: F401
from pipeline.run import worker
from pipeline.run.forks import Wait

END_S = 5.0
"""Longest wait for a process that has closed its pipe."""
_POLL_S = 0.005


def serve(pipe: "Connection[Any, Any]") -> None:
    """Fork workers until the driver is gone."""
    while True:
        try:
            request = pipe.recv()
            if isinstance(request, Wait):
                pipe.send(_wait(request.pid))
                continue
            fd = recv_handle(pipe)
        except (EOFError, ConnectionError):
            return
        if not (pid := os.fork()):
            pipe.close()
            _be_worker(fd, request.log)
        os.close(fd)
        pipe.send(pid)


def _be_worker(fd: int, log: str) -> NoReturn:
    status = 1
    try:
        output = os.open(f"{log}-{os.getpid()}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = worker.main(fd)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(pid: int) -> int:
    deadline = time.monotonic() + END_S
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def main(argv: list[str]) -> int:
    """Serve; returns 0."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the driver ends its workers
    gc.freeze()  # what is imported stays shared with the workers
    serve(Connection(int(argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
