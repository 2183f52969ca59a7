import subprocess
import sys

import pytest

from pipeline import process_memory
from pipeline.process_memory import STATUS, peak_bytes, status_bytes

MIB = 2**20
on_linux = pytest.mark.skipif(not STATUS.exists(), reason="only Linux keeps the peak of each process")


@on_linux
def test_the_peak_of_a_large_parent_is_not_counted() -> None:
    """getrusage(2) would give at least the parent's: execve(2) keeps it."""
    program = "from pipeline.process_memory import peak_bytes; print(peak_bytes())"
    held = bytearray(300 * MIB)
    held[::4096] = b"x" * len(held[::4096])
    child = int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert peak_bytes() > 300 * MIB
    assert child < 200 * MIB


@on_linux
def test_the_peak_stays_when_memory_is_given_back() -> None:
    held = bytearray(200 * MIB)
    held[::4096] = b"x" * len(held[::4096])
    highest = peak_bytes()
    del held
    assert peak_bytes() >= highest
    assert status_bytes("VmRSS") <= peak_bytes()
    assert status_bytes("VmNothing") is None


def test_without_a_status_file_the_peak_is_that_of_getrusage(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(process_memory, "STATUS", tmp_path / "absent")
    assert status_bytes("VmHWM") is None
    assert peak_bytes() > 10 * MIB
