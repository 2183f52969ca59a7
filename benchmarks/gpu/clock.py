"""Clocks of the GPU benchmark: times of sides that take turns, matrix and copy rates, peak memory.

It needs torch alone, so that it runs where nothing else of this project does.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time

import torch

from pipeline.process_memory import status_bytes

MATMUL = 8192
"""Rows and columns of the matrices that measure the rate of a GPU; `MATMUL_CPU` on a CPU."""
MATMUL_CPU = 1024
COPIED_BYTES = 2**28
"""Size of the copies that measure the rate between host and GPU."""
GIB = 2**30

Side = Callable[[], object]


@dataclass(slots=True)
class Times:
    """Times of one side in each repeat, seconds."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """CPU time of all threads; on a GPU, of the host."""


def wait(device: str) -> None:
    """Wait until a GPU has finished everything launched; a CPU has."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(sides: Mapping[str, Side], repeats: int, *, device: str) -> dict[str, Times]:
    """Time every side in each repeat, in turns, after a warm-up."""
    times = {name: Times() for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            started, worked = perf_counter(), process_time()
            side()
            wait(device)
            if turn:
                times[name].wall.append(perf_counter() - started)
                times[name].processor.append(process_time() - worked)
    return times


def medians(sides: Mapping[str, Side], repeats: int, *, device: str) -> dict[str, float]:
    """Median wall time of every side, seconds; the sides take turns."""
    return {name: statistics.median(times.wall) for name, times in interleaved(sides, repeats, device=device).items()}


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Median over the repeats of one side's time over ours."""
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def matmul_tflops(*, device: str, dtype: torch.dtype, size: int | None = None) -> float:
    """Rate of products of random square matrices, 1e12 operations a second, best of ten."""
    side = size or (MATMUL if device == "cuda" else MATMUL_CPU)
    a, b = torch.rand(2, side, side, device=device).to(dtype)

    def product() -> None:
        for _ in range(8):
            a @ b

    best = min(interleaved({"product": product}, 10, device=device)["product"].wall)
    return 8 * 2 * side**3 / best / 1e12


def copy_gb_per_s(*, pinned: bool) -> dict[str, float]:
    """Rates of copies from the host to a GPU and back, 1e9 bytes a second, best of five."""
    host = torch.zeros(COPIED_BYTES, dtype=torch.uint8, pin_memory=pinned)
    there = host.cuda()
    sides = {"up": lambda: there.copy_(host, non_blocking=True), "down": lambda: host.copy_(there, non_blocking=True)}
    times = interleaved(sides, 5, device="cuda")
    return {name: COPIED_BYTES / min(taken.wall) / 1e9 for name, taken in times.items()}


@dataclass(frozen=True, slots=True)
class Peak:
    """Memory of one piece of work, bytes; None where it cannot be read."""

    device: int | None
    """Most that torch had allocated on the GPU, weights included."""
    device_added: int | None
    """The same without what was allocated before."""
    host: int | None
    """Most resident memory of the process."""
    host_added: int | None
    """The same without what was resident before."""


def peak_memory(work: Side, *, device: str) -> Peak:
    """Run `work` once, and read the memory that it took."""
    before = 0
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    resident = _reset_host_peak()
    work()
    wait(device)
    host = None if resident is None else status_bytes("VmHWM")
    on_gpu = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return Peak(
        on_gpu,
        None if on_gpu is None else on_gpu - before,
        host,
        None if host is None or resident is None else host - resident,
    )


def _reset_host_peak() -> int | None:
    """Set the process's peak back to what is resident now, in bytes; None where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc_pid_clear_refs(5)
    except OSError:
        return None
    return status_bytes("VmRSS")
