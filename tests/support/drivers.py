"""Drivers of the main job as the end-to-end tests start them: as a user would, or made to die at a chosen moment.

    python -m tests.support.drivers MOMENT FLAG ...

runs `jobs.segment_dataset` with the flags and kills its own process with SIGKILL at MOMENT: `parts=N` once N parts are
committed, or the end of a URL, right after the driver has put that object.

`forked` needs no Ray: the driver of `without_ray` does itself what workers would do.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.store.url import Url
from tests import ROOT
from tests.support.forked import LIMIT_S, ForkServer
from tests.support.ray_servers import Cluster

IMAGES = 30
"""Images in the folder of the fixture `fields`."""
QUICK = ["--runtime.infer-workers", "1", "--runtime.refine-workers", "1", "--runtime.lease-s", "3"]
QUICK += ["--infer.precision", "fp32", "--refine.iterations", "2"]
QUICK += ["--runtime.previews", "6"]  # most of a small run's time goes into the picture of its previews
SMALL_PARTS = ["--runtime.rows-per-part", "4", "--runtime.block-mib", "0.05", "--read.slice-images", "4"]
CLOCKS = ["seconds_read", "seconds_decode", "seconds_infer", "seconds_refine", "seconds_encode"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a driver ended."""

    status: int
    summary: dict[str, Any]
    """Its last line on stdout; empty when it was killed or refused."""
    log: str

    @property
    def run(self) -> Path:
        return Path(self.summary["run"])


def flags_for(source: Path | str, output: Path | str) -> list[str]:
    return ["--source", str(source), "--output", str(output), "--checkpoint", "farmland"]


def start(
    *flags: str, cluster: Cluster | None = None, module: str = "jobs.segment_dataset", env: dict[str, str] | None = None
) -> subprocess.Popen:
    """Start a driver; without a cluster it starts a local Ray of its own."""
    environment = os.environ | (cluster.environment if cluster else {}) | (env or {})
    # In the background a shell starts everything with SIGINT ignored, and Python leaves that as it is.
    command = ["env", "--default-signal=INT", sys.executable, "-m", module, *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen, timeout_s: float = LIMIT_S) -> Outcome:
    """Wait for a driver and read what it said."""
    out, log = process.communicate(timeout=timeout_s)
    return Outcome(process.returncode, _summary(out), log)


def forked(
    server: ForkServer, *arguments: str, module: str = "jobs.segment_dataset", env: dict[str, str] | None = None
) -> Outcome:
    """Run a job, or a module that runs one, to its end in a process of its own and without Ray."""
    process = server.start("tests.support.without_ray", module, *arguments, env=env)
    return Outcome(process.wait(), _summary(process.out), process.log)


def _summary(out: str) -> dict[str, Any]:
    lines = out.strip().splitlines()
    return json.loads(lines[-1]) if lines else {}


def segment(*flags: str, **how: Any) -> Outcome:
    """Run the main job to its end, small and quick."""
    return finish(start(*flags, *QUICK, **how))


def kill_a_worker(cluster: Cluster, stage: str, *, when: Callable[[], bool]) -> None:
    """Kill the actor of a stage with SIGKILL once `when` says so."""
    deadline = time.monotonic() + LIMIT_S
    while not (when() and cluster.kill(stage)):
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.01)


def rows_of(outcome: Outcome) -> pd.DataFrame:
    """All committed rows of a run, see `rows_in`."""
    return rows_in(outcome.summary["run"])


def rows_in(run: Path | str) -> pd.DataFrame:
    """All committed rows of a run, local or in a bucket, by key, without what a clock decides.

    The number of rows of a shard stands in the row that was read last: after a resume that may be another one, or two.
    """
    frame = pd.read_parquet(f"{run}/parts").drop(columns=CLOCKS)
    frame["shard_rows"] = frame.groupby("shard")["shard_rows"].transform("max")
    return frame.sort_values("key").reset_index(drop=True)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_with_parts(output: Path, count: int) -> None:
    while len(list(output.glob("run=*/parts/part-*"))) < count:
        time.sleep(0.01)
    _die()


def die_at(moment: str, flags: list[str]) -> None:
    """Let this process, which will run the main job with these flags, die at a moment."""
    from pipeline.store import objects

    if moment.startswith("parts="):
        output = Path(flags[flags.index("--output") + 1])
        threading.Thread(target=_die_with_parts, args=(output, int(moment[6:])), daemon=True).start()
    else:
        for name in ("put", "put_if_absent"):
            setattr(objects, name, _then_die(getattr(objects, name), moment))


def main(argv: list[str]) -> int:
    """See the top of this file."""
    from jobs import segment_dataset

    moment, *flags = argv
    die_at(moment, flags)
    return segment_dataset.main(flags)


def _then_die(put, ending: str):
    def putting(url: Url, data: bytes) -> bool | None:
        done = put(url, data)
        if url.raw.endswith(ending):
            _die()
        return done

    return putting


if __name__ == "__main__":
    from jobs import command_line

    command_line.leave(main(sys.argv[1:]))
