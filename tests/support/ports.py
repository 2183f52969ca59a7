"""Ports of this machine's loopback, for servers that tests start."""

import socket
import subprocess
import time
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen, *, timeout_s: float, log: Path | None = None) -> None:
    """Return once something listens on the port; what the process logged is said when nothing does."""
    end = time.monotonic() + timeout_s
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        said = f"\n{log.read_text()}" if log else ""
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with status {process.returncode}{said}")
        if time.monotonic() > end:
            raise TimeoutError(f"{process.args!r} does not listen on port {port}{said}")
        time.sleep(0.05)
