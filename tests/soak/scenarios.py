"""What a run goes through: several nodes, a node lost and one added, a full object store, a store that fails, kills.

Each scenario takes images with the rows of an undisturbed run, and returns a `Report` of what its own rows have
otherwise. The job is the real one, on a real cluster, and reaches it as a user's would.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import ROOT
from tests.soak.collection import Images, crashed_keys, differences
from tests.soak.disturbed import WORKERS, DisturbedRun, Killer, Stuck
from tests.support import ray_servers
from tests.support.drivers import rows_in
from tests.support.ray_servers import BIN, Cluster
from tests.support.s3_servers import Fault, FaultProxy, S3Server, in_environment

BROKEN_SHARE = 0.05
FAULTS: tuple[Fault, ...] = (503, 500, "reset")
MOVED = re.compile(r"(Spilled|Restored) (\d+) MiB, (\d+) objects")
"""Lines of `ray memory --stats-only`; there are none for nothing."""


@dataclass
class Report:
    """What came of a scenario."""

    name: str
    seconds: float = 0.0
    rows: int = 0
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """One line for people."""
        figures = ", ".join(f"{name} {value}" for name, value in self.figures.items())
        verdict = "; ".join(self.problems) or "as undisturbed"
        return f"{self.name}: {verdict}; {self.rows} rows, {self.seconds:.0f} s{', ' if figures else ''}{figures}"


@contextmanager
def reported(name: str) -> Iterator[Report]:
    """Time a scenario; a run that makes no progress is its problem."""
    report, started = Report(name), time.monotonic()
    try:
        yield report
    except Stuck as error:
        report.problems.append(str(error))
    finally:
        report.seconds = round(time.monotonic() - started, 1)


def finish_and_compare(run: DisturbedRun, images: Images, report: Report) -> None:
    """Wait for the end of a run, verify it, and compare its rows; rows `crashed` are retried first."""
    summary = run.finish()
    folder = summary["run"]
    rows = rows_in(folder)
    if crashed := crashed_keys(rows):
        report.figures["crashed"] = [*report.figures.get("crashed", []), *crashed]
        report.problems += differences(rows, images.rows, forgiven=crashed)
        _inspect(run, folder, "--retry-failed")
        run.finish()
        rows = rows_in(folder)
    report.rows += len(rows)
    report.problems += differences(rows, images.rows)
    verified, log = _inspect(run, folder, "--verify")
    if verified["problems"]:
        report.problems.append(f"--verify found {verified['problems']} problem(s): {log}")
    if run.gave_up:
        report.figures["drivers that gave up"] = [*report.figures.get("drivers that gave up", []), *run.gave_up]


def _inspect(run: DisturbedRun, folder: str, action: str) -> tuple[dict[str, Any], str]:
    """Apply an action of `inspect_run`; returns its JSON line and its log."""
    command = [sys.executable, "-m", "jobs.inspect_run", folder, action]
    environment = os.environ | run.environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise Stuck(f"inspect_run {action} ended with status {done.returncode}: {done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer, done.stderr


def undisturbed(images: Path, output: Path, flags: Sequence[str] = ()) -> Images:
    """Segment images on one node to which nothing happens."""
    with DisturbedRun(images, output, output.with_suffix(".log"), flags=flags) as run:
        return Images(images, rows_in(run.finish()["run"]))


def on_nodes(images: Images, cluster: Cluster, nodes: int, output: Path) -> Report:
    """Nothing happens, but the cluster has several nodes, and workers on all of them."""
    run = DisturbedRun(images.folder, output, output.with_suffix(".log"), cluster, workers_for(nodes))
    with reported(f"{nodes} nodes") as report, run:
        working: set[int] = set()

        def all_at_work() -> bool:
            working.update(nodes_at_work(cluster))
            return len(working) >= nodes

        if not run.wait_until(all_at_work):
            report.problems.append(f"only {len(working)} of {nodes} nodes had workers")
        finish_and_compare(run, images, report)
    return report


def nodes_at_work(cluster: Cluster) -> set[int]:
    """Process ids of the raylets that have a network or a refiner."""
    workers = [worker for kind in ("network", "refiner") for worker in cluster.workers(WORKERS[kind])]
    return {parent for worker in workers if (parent := _parent(worker))}


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def node_lost_and_added(
    images: Images, cluster: Cluster, nodes: list[subprocess.Popen], output: Path, flags: Sequence[str]
) -> Report:
    """The raylet of a node at work is killed after the first commit, and another node is added at once.

    Args:
        images, cluster, output: as everywhere here.
        nodes: all nodes but the head; the workers of the run fill them.
        flags: flags of the run; it must last longer than a node takes to start.
    """
    flags = [*flags, *workers_for(1 + len(nodes))]
    run = DisturbedRun(images.folder, output, output.with_suffix(".log"), cluster, flags)
    with reported("node lost, node added") as report, run:
        if not run.wait_until(lambda: run.committed() > 0 and bool(raylets_at_work(cluster, nodes))):
            report.problems.append("no node was at work before the run was finished")
            return report
        report.figures["rows when the node was killed"] = run.committed()
        raylets_at_work(cluster, nodes)[0].kill()
        with ray_servers.node(cluster, nodes=1 + len(nodes)) as added:
            if not run.wait_until(lambda: bool(raylets_at_work(cluster, [added]))):
                report.problems.append("the new node had no workers before the run was finished")
            report.figures["rows when the new node had workers"] = run.committed()
            finish_and_compare(run, images, report)
    return report


def raylets_at_work(cluster: Cluster, nodes: list[subprocess.Popen]) -> list[psutil.Process]:
    """The raylets with a network or a refiner of some nodes that `ray_servers.node` started."""
    family = [child for node in nodes for child in psutil.Process(node.pid).children(recursive=True)]
    busy = nodes_at_work(cluster)
    return [process for process in family if process.pid in busy]


def workers_for(nodes: int) -> list[str]:
    """Flags for as many workers as fit on nodes of one CPU, two on each but one, where reading and writing go on."""
    return ["--runtime.infer-workers", str(nodes - 1), "--runtime.refine-workers", str(nodes)]


def spilling(images: Images, output: Path, *, store_mib: int, flags: list[str], **settings: str) -> Report:
    """The object store is so small that blocks are spilled to disk.

    Args:
        images, output: as everywhere here.
        store_mib: size of the object store, MiB.
        flags: flags of the job for large blocks.
        settings: environment variables of the head.
    """
    with ray_servers.cluster(2, store_bytes=store_mib * 2**20, PYTHONPATH=str(ROOT), **settings) as cluster:
        run = DisturbedRun(images.folder, output, output.with_suffix(".log"), cluster, flags)
        with reported(f"object store of {store_mib} MiB") as report, run:
            finish_and_compare(run, images, report)
            command = [BIN / "ray", "memory", "--stats-only", "--address", cluster.address]
            environment = os.environ | cluster.environment
            said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
            for moved, mib, objects in MOVED.findall(said):
                report.figures |= {f"{moved.lower()} MiB": int(mib), f"{moved.lower()} objects": int(objects)}
            if not report.figures.get("spilled objects"):
                report.problems.append("nothing was spilled")
    return report


def failing_store(images: Images, cluster: Cluster, store: S3Server, proxy: FaultProxy, log: Path, seed: int) -> Report:
    """Source and output are in an S3 store that breaks one request in twenty.

    The nodes of the cluster reach the store through the proxy, as the driver does; the rows are read without it.
    """
    client = store.client()
    client.create_bucket(Bucket="soak")
    for path in sorted(images.folder.rglob("*.jpg")):
        client.upload_file(str(path), "soak", f"in/{path.relative_to(images.folder)}")
    environment = {**store.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
    run = DisturbedRun("s3://soak/in", "s3://soak/out", log, cluster, environment=environment)
    run.parts_put = lambda: sum("/parts/part-" in one.path for one in list(proxy.requests))
    with reported("store that fails 5 % of its requests") as report, run, in_environment(store.environment):
        proxy.clear()
        proxy.fail_share(BROKEN_SHARE, FAULTS, seed=seed)
        finish_and_compare(run, images, report)
        broken = proxy.broken()
        report.figures |= {"requests": proxy.count(), "broken": broken.total()}
        report.figures |= {str(fault): count for fault, count in sorted(broken.items(), key=str)}
    proxy.clear()
    return report


def killed(images: Images, cluster: Cluster, folder: Path, *, kills: int, seed: int, longest_s: float) -> Report:
    """Driver, networks, refiners and writers die with SIGKILL at random moments.

    A run that is finished before the last kill is compared, and the kills go on in the next, with an output of its own.
    """
    folder.mkdir()
    killer, drivers, late = Killer(random.Random(seed)), 0, 0
    with reported(f"{kills} kills") as report:
        while (left := kills - killer.killed.total()) > 0:
            output = folder / f"after-{kills - left}"
            with DisturbedRun(images.folder, output, output.with_suffix(".log"), cluster) as run:
                killer.kill_at_random(run, left, rows_between=len(images.rows) / kills, longest_s=longest_s)
                finish_and_compare(run, images, report)
            drivers += run.drivers
            late += json.loads(next(output.glob("run=*/_manifest.json")).read_text())["duplicates_removed"]
        report.figures |= {"drivers": drivers, "rows that two drivers wrote": late}
    report.figures = {f"killed {kind}": count for kind, count in sorted(killer.killed.items())} | report.figures
    return report
