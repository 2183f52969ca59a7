"""Drivers of the main job as the end-to-end tests start them: as a user would, or made to die at a chosen moment.

    python -m tests.support.drivers MOMENT FLAG ...

runs `jobs.segment_dataset` with the flags and kills its own process with SIGKILL at MOMENT: `parts=N` once N parts are
committed, or the end of a URL, right after the driver has put that object.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tests import ROOT
from tests.support.ray_servers import Cluster

QUICK = ["--runtime.infer-workers", "1", "--runtime.refine-workers", "1", "--runtime.lease-s", "3"]
QUICK += ["--infer.precision", "fp32", "--refine.iterations", "2"]
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


def start(
    *flags: str, cluster: Cluster | None = None, module: str = "jobs.segment_dataset", env: dict[str, str] | None = None
) -> subprocess.Popen:
    """Start a driver; without a cluster it starts a local Ray of its own."""
    environment = os.environ | (cluster.environment if cluster else {}) | (env or {})
    command = [sys.executable, "-m", module, *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen, timeout_s: float = 150) -> Outcome:
    """Wait for a driver and read what it said."""
    out, log = process.communicate(timeout=timeout_s)
    lines = out.strip().splitlines()
    return Outcome(process.returncode, json.loads(lines[-1]) if lines else {}, log)


def segment(*flags: str, **how: Any) -> Outcome:
    """Run the main job to its end, small and quick."""
    return finish(start(*flags, *QUICK, **how))


def rows_of(outcome: Outcome) -> pd.DataFrame:
    """All committed rows, by key, without what a clock decides.

    The number of rows of a shard stands in the row that was read last: after a resume that may be another one, or two.
    """
    frame = pd.read_parquet(outcome.run / "parts").drop(columns=CLOCKS)
    frame["shard_rows"] = frame.groupby("shard")["shard_rows"].transform("max")
    return frame.sort_values("key").reset_index(drop=True)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_with_parts(output: Path, count: int) -> None:
    while len(list(output.glob("run=*/parts/part-*"))) < count:
        time.sleep(0.01)
    _die()


def main() -> None:
    """See the top of this file."""
    from jobs import command_line, segment_dataset
    from pipeline.store import objects

    moment, *flags = sys.argv[1:]
    if moment.startswith("parts="):
        output = Path(flags[flags.index("--output") + 1])
        threading.Thread(target=_die_with_parts, args=(output, int(moment[6:])), daemon=True).start()
    else:
        for name in ("put", "put_if_absent"):
            setattr(objects, name, _then_die(getattr(objects, name), moment))
    command_line.leave(segment_dataset.main(flags))


def _then_die(put, ending: str):
    def putting(url: str, data: bytes) -> bool | None:
        done = put(url, data)
        if url.endswith(ending):
            _die()
        return done

    return putting


if __name__ == "__main__":
    main()
