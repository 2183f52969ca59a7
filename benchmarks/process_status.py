"""Memory of this process, as Linux counts it."""

from pathlib import Path


def status_bytes(field: str) -> int | None:
    """A size such as VmRSS or VmHWM, bytes, see proc_pid_status(5); None where the system does not give it.

    VmHWM, unlike the peak of getrusage(2), does not begin with that of the parent process.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
