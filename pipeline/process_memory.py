"""Memory of this process, as the system counts it."""

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def status_bytes(field: str) -> int | None:
    """A size such as VmRSS or VmHWM, bytes, see proc_pid_status(5); None where the system does not give it."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def peak_bytes() -> int:
    """Largest resident size of this process, bytes.

    Where the system has no VmHWM, as macOS, it is that of getrusage(2), which on Linux begins with the peak of the
    process that started this one.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes elsewhere
    return status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
