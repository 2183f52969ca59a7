"""A run that is disturbed: its driver is started again, its processes are killed, its committed rows are counted."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests import ROOT
from tests.support.drivers import QUICK, flags_for
from tests.support.ray_servers import Cluster

WORKERS = {"network": "MapBatches(InferStage)", "refiner": "MapBatches(RefineStage)", "writer": "ray::Write"}
"""Part of the title of the processes of each kind, as Ray sets it."""
STUCK_S = 300.0
"""A run without a new row for so long hangs, on however busy a machine."""
POLL_S = 0.03
"""Interval of looking: a writer lives for little longer."""
FLAGS = [*QUICK, "--runtime.rows-per-part", "4", "--runtime.block-mib", "0.05", "--read.slice-images", "16"]
FLAGS += ["--runtime.infer-workers", "2", "--runtime.refine-workers", "2", "--runtime.max-failed-fraction", "0.5"]
"""Small parts, so that much is committed between two kills; damaged images are no failure of the run."""


class Stuck(Exception):
    """A run that makes no progress, with the end of its log."""


@dataclass
class DisturbedRun:
    """The main job in a process of its own, which is started again with the same command when it was killed."""

    source: Path | str
    output: Path | str
    log: Path
    """File of what all its drivers said."""
    cluster: Cluster | None = None
    """None: a Ray of one node that the driver starts itself."""
    flags: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    parts_put: Callable[[], int] | None = None
    """Counts the parts in an output that is not local."""
    drivers: int = 0
    """Drivers that were started."""
    gave_up: list[str] = field(default_factory=list)
    """Last line of each driver that ended by itself with an error."""
    _process: subprocess.Popen | None = None
    _rows: dict[str, int] = field(default_factory=dict)

    def start(self) -> None:
        """Start a driver."""
        command = [sys.executable, "-m", "jobs.segment_dataset", *flags_for(self.source, self.output), *FLAGS]
        environment = os.environ | (self.cluster.environment if self.cluster else {}) | self.environment
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([*command, *self.flags], cwd=ROOT, env=environment, stdout=log, stderr=log)
        self.drivers += 1

    def is_finished(self) -> bool:
        """True once a driver has ended well; one that ended otherwise is followed by the next."""
        if self._process is None:
            self.start()
        status = self._process.poll()
        if status == 0:
            return True
        if status is not None:
            if status > 0:
                self.gave_up.append(self.last_line())
            if len(self.gave_up) > 10:
                raise Stuck(f"the driver ended with an error more than 10 times, the last: {self.last_line()}")
            self.start()
        return False

    def wait_until(self, moment: Callable[[], bool]) -> bool:
        """Wait for a moment; False when the run is finished before it."""
        rows, changed = self.committed(), time.monotonic()
        while not moment():
            if self.is_finished():
                return False
            if (now := self.committed()) != rows:
                rows, changed = now, time.monotonic()
            if time.monotonic() - changed > STUCK_S:
                raise Stuck(f"no new row in {STUCK_S:g} s: {self.last_line()}")
            time.sleep(POLL_S)
        return True

    def finish(self) -> dict[str, Any]:
        """Wait for the end; returns the closing JSON line."""
        self.wait_until(lambda: False)
        self._process = None
        lines = self.log.read_text(errors="replace").splitlines()
        summary: dict[str, Any] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
        return summary

    def __enter__(self) -> "DisturbedRun":
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the driver if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def last_line(self) -> str:
        """Last line of the log."""
        return (self.log.read_text(errors="replace").splitlines() or [""])[-1]

    def committed(self) -> int:
        """Rows in the parts of a local output, a row of two drivers counted twice; parts in another output."""
        if self.parts_put:
            return self.parts_put()
        for part in Path(self.output).glob("run=*/parts/part-*"):
            if part.name not in self._rows:
                with suppress(FileNotFoundError, pa.ArrowInvalid):  # removed as the run is closed
                    self._rows[part.name] = pq.read_metadata(part).num_rows
        return sum(self._rows.values())

    def kill_driver(self) -> bool:
        """Kill the driver with SIGKILL; False when it has ended by itself."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.kill()
        self._process.wait()
        return True


@dataclass
class Killer:
    """Kills processes of runs, drawn at random."""

    random: random.Random
    killed: Counter[str] = field(default_factory=Counter)
    """Kills by kind of process."""

    def kill_at_random(self, run: DisturbedRun, kills: int, *, rows_between: float, longest_s: float) -> None:
        """Kill so many times, or until the run is finished.

        Each kill waits for a number of newly committed rows, `rows_between` in the mean, and then for up to `longest_s`
        seconds: a driver that was just started dies while it plans, or resumes.
        """
        for _ in range(kills):
            moment = run.committed() + self.random.uniform(0, 2 * rows_between)
            if not run.wait_until(lambda moment=moment: run.committed() >= moment):
                return
            time.sleep(self.random.uniform(0, longest_s))
            if not self._kill(run, self.random.choice(["driver", *WORKERS])):
                return

    def _kill(self, run: DisturbedRun, kind: str) -> bool:
        """Kill a process of a kind as soon as there is one; False when the run is finished before."""
        done = run.wait_until(run.kill_driver if kind == "driver" else lambda: self._kill_worker(run, kind))
        self.killed[kind] += done
        return done

    def _kill_worker(self, run: DisturbedRun, kind: str) -> bool:
        assert run.cluster, "workers of a cluster are killed"
        workers = run.cluster.workers(WORKERS[kind])
        if not workers:
            return False
        with suppress(psutil.NoSuchProcess):
            self.random.choice(workers).kill()
            return True
        return False
