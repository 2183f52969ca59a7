"""Soak: the main job on real clusters of several nodes, while nodes, workers, drivers, memory and the store fail it.

    python -m tests.soak.soak --kills 50 --images 200 --seed 0     # `make soak`, half an hour on two cores

docs/benchmarks/soak.md describes the scenarios. Prints a line per scenario on stderr and all figures as a JSON line on
stdout. Exit status 1 where any row is lost, twice, or other than that of an undisturbed run on one node.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from tests import ROOT
from tests.soak import scenarios
from tests.soak.collection import write_images
from tests.soak.scenarios import Report
from tests.support import ray_servers, s3_servers
from tests.support.s3_servers import FaultProxy

IMAGE_PX = 96
LARGE_PX, LARGE_IMAGES = 256, 240
LARGE = ["--refine.iterations", "10"]
"""Flags for the large images: they take longer than a node to start."""
STORE_MIB = 200
LARGE_BLOCKS = [*LARGE, "--runtime.block-mib", "2", "--read.slice-images", "64"]
"""Blocks below 100 KiB stay in the memory of processes."""
SPILL_AT_ONCE = {"RAY_object_spilling_threshold": "0.001", "RAY_min_spilling_size": "1"}
"""Settings of Ray: spill from 0.2 MiB on. Images that fill 200 MiB would take the time of all other scenarios."""
LONGEST_KILL_S = 3.0
"""Longest wait between the moment of a kill, which is a number of rows, and the kill."""


def soak(folder: Path, *, images: int, kills: int, seed: int) -> Iterator[Report]:
    """Run all scenarios one after the other in a folder."""
    write_images(folder / "images", images, size_px=IMAGE_PX, seed=seed)
    write_images(folder / "large", LARGE_IMAGES, size_px=LARGE_PX, seed=seed)
    small = scenarios.undisturbed(folder / "images", folder / "undisturbed")
    large = scenarios.undisturbed(folder / "large", folder / "large-undisturbed", LARGE)
    with s3_servers.moto() as store, FaultProxy(store.endpoint) as proxy, ExitStack() as opened:
        environment = {**store.environment, "AWS_ENDPOINT_URL": proxy.endpoint, "PYTHONPATH": str(ROOT)}
        cluster = opened.enter_context(ray_servers.cluster(1, **environment))
        nodes = [opened.enter_context(ray_servers.node(cluster, **environment))]
        yield scenarios.on_nodes(small, cluster, 2, folder / "two")
        nodes += [opened.enter_context(ray_servers.node(cluster, nodes=count, **environment)) for count in (3, 4)]
        yield scenarios.on_nodes(small, cluster, 4, folder / "four")
        yield scenarios.node_lost_and_added(large, cluster, nodes, folder / "lost", LARGE)
        yield scenarios.failing_store(small, cluster, store, proxy, folder / "store.log", seed)
        yield scenarios.killed(small, cluster, folder / "killed", kills=kills, seed=seed, longest_s=LONGEST_KILL_S)
    yield scenarios.spilling(large, folder / "spilled", store_mib=STORE_MIB, flags=LARGE_BLOCKS, **SPILL_AT_ONCE)


def main(argv: list[str] | None = None) -> int:
    """Soak, print what came of it, and leave the folder only where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="images of the runs, but for the one that spills")
    parser.add_argument("--kills", type=int, default=50, help="kills with SIGKILL")
    parser.add_argument("--seed", type=int, default=0, help="seed of images, faults and kills")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    reports, started = [], time.monotonic()
    for report in soak(folder, images=args.images, kills=args.kills, seed=args.seed):
        print(report.line(), file=sys.stderr, flush=True)
        reports.append(report)
    wrong = any(report.problems for report in reports)
    facts = {"seed": args.seed, "cores": os.cpu_count(), "seconds": round(time.monotonic() - started)}
    print(json.dumps(facts | {"exit_status": int(wrong), "scenarios": [asdict(report) for report in reports]}))
    if wrong:
        print(f"outputs and logs are in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
