"""Measure the main job against two baselines, on the same machine in the same run.

    python -m benchmarks.pipeline --images 200 2000 --scratch /tmp/bench

    python -m benchmarks.pipeline --images 40            # two minutes

The baselines are in `benchmarks/baselines/`: a hand-written multiprocessing script, and Ray Data as in its tutorials.
Prints ratios, because absolute times depend on the machine more than on the code.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from infra import log as logs
from jobs import command_line
from pipeline.datasets import farmland
from pipeline.store.url import Url

log = logging.getLogger(__name__)

_SIDES = {
    "ours": ["jobs.segment_dataset"],
    "ours_on_ray": ["jobs.segment_dataset", "--runtime.flow", "ray"],
    "multiprocessing": ["benchmarks.baselines.multiprocessing_script"],
    "naive_ray": ["benchmarks.baselines.naive_ray"],
}
"""Module and flags of the job, as it chooses and on Ray, and of the baselines, by name."""
SAMPLE_S = 2.0
"""Seconds between two memory samples: the pages of twenty processes take a core a tenth of a second to add up."""
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class MeasuredSide:
    """One side on one number of images."""

    wall_s: float
    peak_mib: float
    """Peak memory of the process tree, MiB: proportional set sizes, so shared memory counts once."""
    bytes_per_image: float | None
    """Bytes between stages through the object store; None without one."""


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process, see proc_pid_smaps(5); 0 when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def family(pid: int) -> Iterator[int]:
    """A process and all its descendants that are alive."""
    yield pid
    for child in children(pid):
        yield from family(child)


def children(pid: int) -> list[int]:
    """Children of all threads of a process, see proc_pid_task_children(5); those that end meanwhile are left out."""
    pids: list[int] = []
    with suppress(OSError):
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(OSError):
                pids += map(int, (task / "children").read_text(encoding="ascii").split())
    return pids


def wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Exit status of a process; None when it still runs after `seconds`."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def measure_side(side: str, source: Path, output: Path, checkpoint: str) -> MeasuredSide:
    """Run one side in a process of its own and measure it from start to exit."""
    command = [sys.executable, "-m", *_SIDES[side], "--source", str(source), "--output", str(output)]
    command += ["--checkpoint", checkpoint]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        stdout: list[bytes] = []
        reader = threading.Thread(target=lambda: stdout.append(process.stdout.read() if process.stdout else b""))
        reader.start()
        peak = 0
        while wait(process, SAMPLE_S) is None:
            peak = max(peak, sum(map(pss_bytes, family(process.pid))))
        wall_s = time.monotonic() - started
        reader.join()
    if process.returncode:
        raise RuntimeError(f"{side} ended with status {process.returncode}")
    between = json.loads(stdout[0].splitlines()[-1]).get("bytes_between_stages") if stdout[0].strip() else None
    images = len(list(source.rglob("*.jpg")))
    return MeasuredSide(wall_s, peak / _MIB, between / images if between else None)


def compare_pipelines(
    images: int, scratch: Path, *, size_px: int, checkpoint: str, sides: Sequence[str] = tuple(_SIDES)
) -> dict[str, MeasuredSide]:
    """Run and measure the sides one after the other on the same files."""
    source = scratch / f"source-{images}-{size_px}"
    if not source.exists():
        log.info("generating %d images", images)
        farmland.write_folder(Url(str(source)), images, size_px=size_px, seed=1, workers=2)
    measured = {}
    for side in sides:
        output = scratch / f"output-{side}"
        shutil.rmtree(output, ignore_errors=True)
        log.info("%d images: %s ...", images, side)
        measured[side] = measure_side(side, source, output, checkpoint)
        log.info("%d images: %s %s", images, side, asdict(measured[side]))
    return measured


def ratios(measured: dict[int, dict[str, MeasuredSide]]) -> dict[str, float]:
    """Ratios of wall time, bytes and peak memory between the sides, and of peak memory between sizes of the source."""
    figures = {}
    for images, sides in measured.items():
        ours = sides["ours"]
        for name, other in sides.items():
            if name != "ours":
                figures[f"wall_ours_over_{name}_{images}"] = ours.wall_s / other.wall_s
                figures[f"peak_ours_over_{name}_{images}"] = ours.peak_mib / other.peak_mib
        if naive := sides.get("naive_ray"):
            figures[f"bytes_naive_ray_over_ours_{images}"] = (naive.bytes_per_image or 0) / (ours.bytes_per_image or 1)
    few, many = min(measured), max(measured)
    if few != many:
        figures[f"peak_ours_{many}_over_{few}"] = measured[many]["ours"].peak_mib / measured[few]["ours"].peak_mib
    return {name: round(value, 3) for name, value in figures.items()}


def main(argv: list[str] | None = None) -> int:
    """Compare, then print one JSON line with every figure and every ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[200, 2000], help="sizes of the source")
    parser.add_argument("--size-px", type=int, default=256, help="side of the images, pixels")
    parser.add_argument("--sides", nargs="+", default=list(_SIDES), choices=list(_SIDES), help="with `ours` among them")
    parser.add_argument("--checkpoint", default="farmland", help="folder or shipped name")
    parser.add_argument("--scratch", type=Path, default=Path("demo/benchmark"), help="folder for images and outputs")
    args = parser.parse_args(argv)
    logs.configure()
    measured = {
        images: compare_pipelines(
            images, args.scratch, size_px=args.size_px, checkpoint=args.checkpoint, sides=args.sides
        )
        for images in args.images
    }
    compared = ratios(measured)
    for name, value in compared.items():
        log.info("%-44s %8.3f", name, value)
    figures = {str(images): {name: asdict(side) for name, side in sides.items()} for images, sides in measured.items()}
    print(json.dumps({"ratios": compared, "figures": figures}))
    return 0


if __name__ == "__main__":
    command_line.leave(main())
