"""This machine, for runs whose workers are its processes: cores and memory, and an orderly end on SIGTERM."""

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

MEMORY_SHARE = 0.7
"""Share of the memory for workers, as Ray takes it."""
_CGROUP = Path("/sys/fs/cgroup")


def resources() -> dict[str, float]:
    """CPUs and memory in bytes by Ray's names, within the limits of a container (cgroup v2); no GPU."""
    return {"CPU": float(cores()), "memory": MEMORY_SHARE * memory_bytes()}


def cores() -> int:
    """Cores that this process may use."""
    allowed = len(os.sched_getaffinity(0))
    quota, _, period = _limit("cpu.max").partition(" ")
    return min(allowed, max(1, int(quota) // int(period))) if quota.isdigit() else allowed


def memory_bytes() -> int:
    """Memory that this process may use, bytes."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _limit("memory.max")
    return min(there, int(limit)) if limit.isdigit() else there


def _limit(name: str) -> str:
    try:
        return (_CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def has_gpu() -> bool:
    """True where NVIDIA's driver shows a device that this process may use."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and Path("/dev/nvidia0").exists()


@contextmanager
def ended_by_sigterm() -> Generator[None]:
    """Let SIGTERM raise SystemExit within the block, so that workers end and leases are released, as Ray does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
