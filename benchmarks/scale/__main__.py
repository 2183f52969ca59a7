"""Measure what a driver needs before and after the work, by the number of images.

    python -m benchmarks.scale --rows 1e5 1e6 1e7 1e8 1e9           # in a made-up store
    python -m benchmarks.scale --parts 4000 --against OTHER_CHECKOUT    # closing on a disk, beside another version

Plans the source, resumes the run at 95 percent, and closes it, each in a process of its own on two cores, whose data
the kernel limits to `--memory-gib`. Listings and reads of the store are answered after `--latency-ms`. With `--parts`,
both versions write a folder of parts and close it, in turns; the ratio of their times is printed.
"""

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from benchmarks.scale.store import CLASSES, RUN, SOURCE, Committed, MadeUpStore
from infra import log as logs
from jobs import command_line
from pipeline.config import SegmentConfig
from pipeline.process_memory import status_bytes
from pipeline.run.footers import INDEX_PARTS, gather_footers
from pipeline.run.manifest import close_run
from pipeline.run.pending import pending_shards
from pipeline.source.plan import plan_source
from pipeline.store import objects

log = logging.getLogger(__name__)

STEPS = ("plan", "resume", "close")
DONE = {"plan": 0.0, "resume": 0.95, "close": 1.0}
"""Share of the run that is committed before each step."""
IN_FLIGHT = {"plan": 0, "resume": 300, "close": 0}
"""Shards in the hands of the workers that died before each step."""
CORES = {0, 1}


def timed_step(step: str, store: MadeUpStore) -> tuple[float, int]:
    """Seconds of a step, and what it must give: shards planned, shards left, or rows of the manifest."""
    cfg = SegmentConfig(source=(SOURCE.raw,), output="memory://out", checkpoint="farmland")
    with mock.patch.object(objects, "_backend", return_value=store):
        started = time.perf_counter()
        plan = plan_source(cfg)
        if step == "plan":
            plan.to_table()
            return time.perf_counter() - started, len(plan.shards)
        started = time.perf_counter()
        if step == "resume":
            left = pending_shards(RUN, plan, gather_footers(RUN))
            return time.perf_counter() - started, len(left)
        manifest, _ = close_run(RUN, plan, CLASSES, fingerprint="0" * 64, on_duplicate="fail")
        return time.perf_counter() - started, manifest.rows


def run_step(step: str, rows: int, latency_s: float, memory_gib: float) -> None:
    """Run a step in this process, within the limit of its memory; prints a JSON line."""
    os.sched_setaffinity(0, CORES)
    limit = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    store = MadeUpStore(Committed(rows, DONE[step], IN_FLIGHT[step], unindexed=INDEX_PARTS - 1), latency_s)
    seconds, result = timed_step(step, store)
    peak_mib = status_bytes("VmHWM") / 2**20
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib, "requests": store.requests, "result": result}))


def measure(rows: int, latency_s: float, memory_gib: float) -> dict[str, dict[str, float]]:
    """Figures of every step for a number of rows."""
    figures = {}
    for step in STEPS:
        command = [sys.executable, "-m", "benchmarks.scale", "--step", step, "--rows", str(rows)]
        command += ["--latency-ms", str(latency_s * 1e3), "--memory-gib", str(memory_gib)]
        ended = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        figures[step] = json.loads(ended.stdout.splitlines()[-1])
        log.info("%s rows, %s: %s", f"{rows:,}", step, figures[step])
    return figures


def table(measured: dict[int, dict[str, dict[str, float]]]) -> str:
    """Markdown table of seconds and peak memory by rows and step."""
    lines = ["| rows | " + " | ".join(f"{step}, s | MiB" for step in STEPS) + " |", "|---" * (1 + 2 * len(STEPS)) + "|"]
    for rows, steps in measured.items():
        cells = [f"{steps[step]['seconds']:.1f} | {steps[step]['peak_mib']:.0f}" for step in STEPS]
        lines.append(f"| {rows:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compare_closing(parts: int, against: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds that closing a run of so many parts takes in both versions, in turns; each closes what it wrote."""
    script, here = Path(__file__).parent / "closing.py", Path(__file__).parents[2]
    sides = {"this version": here, "the other": against}
    seconds: dict[str, list[float]] = {side: [] for side in sides}

    def run(side: str, *arguments: object) -> str:
        environment = os.environ | {"PYTHONPATH": str(sides[side])}
        command = [sys.executable, str(script), *map(str, arguments)]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout

    with tempfile.TemporaryDirectory() as scratch:
        folders = {side: Path(scratch) / f"run={number}" for number, side in enumerate(sides)}
        for side, folder in folders.items():
            run(side, "write", folder, parts)
        for _ in range(repeats):
            for side, folder in folders.items():
                seconds[side].append(json.loads(run(side, "close", folder, parts).splitlines()[-1])["seconds"])
    return seconds


def main(argv: list[str] | None = None) -> int:
    """Measure, then print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, nargs="+", default=[1e5, 1e6], help="sizes of the run, images")
    parser.add_argument("--latency-ms", type=float, default=30.0, help="time of a request")
    parser.add_argument("--memory-gib", type=float, default=4.0, help="limit of a driver's data")
    parser.add_argument("--parts", type=int, help="close a run of so many parts on a disk instead")
    parser.add_argument("--against", type=Path, help="with --parts: checkout of another version")
    parser.add_argument("--repeats", type=int, default=3, help="with --parts: rounds")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if (args.parts is None) != (args.against is None):
        parser.error("--parts and --against go together")
    logs.configure()
    sizes = [int(rows) for rows in args.rows]
    if args.step:
        run_step(args.step, sizes[0], args.latency_ms / 1e3, args.memory_gib)
        return 0
    if args.parts:
        seconds = compare_closing(args.parts, args.against, args.repeats)
        ours, others = (statistics.median(values) for values in seconds.values())
        print(json.dumps({"parts": args.parts, "seconds": seconds, "ratio": round(ours / others, 3)}))
        return 0
    measured = {rows: measure(rows, args.latency_ms / 1e3, args.memory_gib) for rows in sizes}
    log.info("\n%s", table(measured))
    print(json.dumps({str(rows): steps for rows, steps in measured.items()}))
    return 0


if __name__ == "__main__":
    command_line.leave(main())
