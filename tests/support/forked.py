"""Jobs in processes forked from one that has imported them: they start in milliseconds, a new Python takes seconds.

Such a process is a driver like any other: it has arguments, an environment, output and an exit status of its own, and
dies alone. The server of the forks is

    python -m tests.support.forked MODULE ...

which imports the modules, then reads one request a line on stdin and answers with the id of the process it started.
"""

import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests import ROOT

LIMIT_S = 600
"""A driver that takes longer hangs, on however busy a machine."""


@dataclass(frozen=True, slots=True)
class Forked:
    """A process that was started."""

    pid: int
    folder: Path
    server: subprocess.Popen

    def wait(self, timeout_s: float = LIMIT_S) -> int:
        """Its exit status, negative where a signal ended it."""
        deadline = time.monotonic() + timeout_s
        while not (self.folder / "status").exists():
            if self.server.poll() is not None:
                raise RuntimeError(f"the server of forks ended with status {self.server.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} still runs after {timeout_s} s:\n{self.log}")
            time.sleep(0.01)
        return int((self.folder / "status").read_text())

    @property
    def out(self) -> str:
        """What it has written to stdout so far."""
        return (self.folder / "out").read_text()

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return (self.folder / "log").read_text()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class ForkServer:
    """Starts processes."""

    process: subprocess.Popen
    folder: Path

    def start(self, module: str, *flags: str, env: dict[str, str] | None = None) -> Forked:
        """Call `main(flags)` of a module in a process of its own, whose environment is ours and `env`."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        request = {"module": module, "flags": flags, "env": os.environ | (env or {}), "folder": str(folder)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Forked(int(self.process.stdout.readline()), folder, self.process)


@contextmanager
def fork_server(*modules: str) -> Iterator[ForkServer]:
    """A server whose processes have these modules imported; it and all of them are ended with the block."""
    folder = Path(tempfile.mkdtemp(prefix="forked"))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forked", *modules],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # torch reads it once
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield ForkServer(process, folder)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def serve() -> None:
    """Start a process for each line of stdin; a keeper of each leaves its exit status in a file."""
    gc.freeze()  # what is shared stays so
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a keeper
    for line in sys.stdin:
        request = json.loads(line)
        if not os.fork():
            keep(request)


def keep(request: dict) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    folder = Path(request["folder"])
    for descriptor, name in ((0, os.devnull), (2, folder / "log")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), descriptor)
    out = os.open(folder / "out", os.O_WRONLY | os.O_CREAT)
    pid = os.fork()
    if not pid:
        os.dup2(out, 1)
        become(request)
    os.write(1, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    (folder / "status.new").write_text(str(os.waitstatus_to_exitcode(status)))
    (folder / "status.new").rename(folder / "status")
    os._exit(0)


def become(request: dict) -> NoReturn:
    """Run the job as a command line would."""
    from jobs import command_line

    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = [request["module"], *request["flags"]]
    command_line.leave(importlib.import_module(request["module"]).main(request["flags"]))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    serve()
