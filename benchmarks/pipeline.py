"""Measure the main job against what a person would otherwise write, on the same machine in the same run.

    python -m benchmarks.pipeline --images 200 2000 --scratch /tmp/bench

    python -m benchmarks.pipeline --images 40            # a first look, two minutes

Both others live in `benchmarks/baselines/`: a hand-written multiprocessing script, and Ray Data as the tutorials
use it. Prints ratios; absolute times say more about the machine than about the code.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from infra import log as logs
from jobs import command_line
from pipeline.datasets import farmland

log = logging.getLogger(__name__)

_SIDES = {
    "ours": "jobs.segment_dataset",
    "multiprocessing": "benchmarks.baselines.multiprocessing_script",
    "naive_ray": "benchmarks.baselines.naive_ray",
}
"""Benchmarks in files of their own."""
SAMPLE_S = 2.0
"""Between two looks at the memory: adding up the pages of twenty processes costs a core a tenth of a second."""
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class MeasuredSide:
    """One side on one number of images."""

    wall_s: float
    peak_mib: float
    """Largest sum over the process tree of proportional set sizes: shared memory counts once."""
    bytes_per_image: float | None
    """Handed on from stage to stage through the object store; None where there is none."""


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process, see proc_pid_smaps(5); 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def family(pid: int) -> Iterator[int]:
    """A process and everything that came from it, as far as it is there."""
    yield pid
    for child in children(pid):
        yield from family(child)


def children(pid: int) -> list[int]:
    """Children of all threads of a process, see proc_pid_task_children(5); threads and processes may end meanwhile."""
    found: list[int] = []
    with suppress(OSError):
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(OSError):
                found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found


def wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The status of a process once it has ended; None when it is still running after some seconds."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def measure_side(side: str, source: Path, output: Path, checkpoint: str) -> MeasuredSide:
    """Run one side in a process of its own, from start to exit."""
    command = [sys.executable, "-m", _SIDES[side], "--source", str(source), "--output", str(output)]
    command += ["--checkpoint", checkpoint]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        said: list[bytes] = []
        reader = threading.Thread(target=lambda: said.append(process.stdout.read() if process.stdout else b""))
        reader.start()
        peak = 0
        while wait(process, SAMPLE_S) is None:
            peak = max(peak, sum(map(pss_bytes, family(process.pid))))
        wall_s = time.monotonic() - started
        reader.join()
    if process.returncode:
        raise RuntimeError(f"{side} ended with status {process.returncode}")
    moved = json.loads(said[0].splitlines()[-1]).get("bytes_between_stages") if said[0].strip() else None
    images = len(list(source.rglob("*.jpg")))
    return MeasuredSide(wall_s, peak / _MIB, moved / images if moved else None)


def compare_pipelines(images: int, scratch: Path, *, size_px: int, checkpoint: str) -> dict[str, MeasuredSide]:
    """Run all sides one after the other on the same files."""
    source = scratch / f"source-{images}-{size_px}"
    if not source.exists():
        log.info("generating %d images", images)
        farmland.write_folder(str(source), images, size_px=size_px, seed=1, workers=2)
    found = {}
    for side in _SIDES:
        output = scratch / f"output-{side}"
        shutil.rmtree(output, ignore_errors=True)
        log.info("%d images: %s ...", images, side)
        found[side] = measure_side(side, source, output, checkpoint)
        log.info("%d images: %s %s", images, side, asdict(found[side]))
    return found


def ratios(found: dict[int, dict[str, MeasuredSide]]) -> dict[str, float]:
    """What is promised, as ratios."""
    said = {}
    for images, sides in found.items():
        ours, script, naive = (sides[name] for name in _SIDES)
        said[f"wall_ours_over_multiprocessing_{images}"] = ours.wall_s / script.wall_s
        said[f"wall_ours_over_naive_ray_{images}"] = ours.wall_s / naive.wall_s
        said[f"bytes_naive_ray_over_ours_{images}"] = (naive.bytes_per_image or 0) / (ours.bytes_per_image or 1)
        said[f"peak_ours_over_multiprocessing_{images}"] = ours.peak_mib / script.peak_mib
        said[f"peak_ours_over_naive_ray_{images}"] = ours.peak_mib / naive.peak_mib
    few, many = min(found), max(found)
    if few != many:
        said[f"peak_ours_{many}_over_{few}"] = found[many]["ours"].peak_mib / found[few]["ours"].peak_mib
    return {name: round(value, 3) for name, value in said.items()}


def main(argv: list[str] | None = None) -> int:
    """Compare, then print one JSON line with every figure and every ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--checkpoint", default="farmland")
    parser.add_argument("--scratch", type=Path, default=Path("demo/benchmark"))
    args = parser.parse_args(argv)
    logs.configure()
    found = {
        images: compare_pipelines(images, args.scratch, size_px=args.size_px, checkpoint=args.checkpoint)
        for images in args.images
    }
    said = ratios(found)
    for name, value in said.items():
        log.info("%-44s %8.3f", name, value)
    figures = {str(images): {side: asdict(one) for side, one in sides.items()} for images, sides in found.items()}
    print(json.dumps({"ratios": said, "figures": figures}))
    return 0


if __name__ == "__main__":
    command_line.leave(main())
