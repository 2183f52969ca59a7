"""Measure what the flow costs beside its work: bookkeeping alone, and a whole run whose network and refiner do nothing.

    python -m benchmarks.overhead --against ../atrous-before --scratch /tmp/bench

    python -m benchmarks.overhead --images 5000 --turns 1            # this checkout alone, a minute

With `--against`, another checkout of this repository is measured in turns with this one, each time in a process with a
Ray of its own. Bookkeeping: actors call `work_guarded` on keys, and nothing is done to them. Flow: tars of small JPEGs
are read, go through stages in place of network and refiner, and their rows are committed to a local folder; measured
from a fifth to nine tenths of the rows, while all processes run. Progress on stderr, one JSON line on stdout.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.pipeline import family
from pipeline.classes import load_class_map
from pipeline.config import SegmentConfig
from pipeline.datasets import farmland
from pipeline.image.encode import mask_png
from pipeline.records import Item, Row, Scored, items_from_table, rows_to_table, scored_from_table, scored_to_table
from pipeline.run.ledger import work_guarded
from pipeline.source.plan import plan_source
from pipeline.store.url import Url

log = logging.getLogger(__name__)

CLASSES = load_class_map("farmland")
SIZE_PX = 32
"""Height and width of the JPEGs and masks: about a kilobyte, so that bytes cost little."""
LOGITS_KHW = np.zeros((2, SIZE_PX // 4, SIZE_PX // 4), np.float16)
IMAGES_PER_TAR = 500
BOOKKEEPERS = 2
"""Actors that keep books at once, one per core of a small machine."""
BATCH = 4
"""Keys per batch of a bookkeeper: `flow.REFINE_ROWS` of the first versions."""
SAMPLE_S = 0.25
"""Seconds between two looks at the processor time of all processes."""
STEADY = (0.2, 0.9)
"""Shares of the images that are committed when the measurement of a flow begins and ends."""


@dataclass(frozen=True, slots=True)
class CheckoutFigures:
    """One checkout, once."""

    bookkeeping_images_per_s: float
    """Images whose keys all bookkeepers entered and left in a second."""
    flow_images_per_s: float
    """Images committed in a second while all processes run."""
    flow_cpu_us: dict[str, float]
    """Processor time per image by kind of process, microseconds."""


# Bookkeeping ----------------------------------------------------------------------------------------------------------


class Bookkeeper:
    """Actor that enters and leaves keys of images on which nothing is done."""

    def __init__(self, ledger: Any) -> None:
        self.ledger = ledger

    def keep(self, seconds: float) -> tuple[int, float]:
        """Keep books for some seconds; returns the number of images, and the seconds it took."""
        started, images = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            keys = [f"images/2026/photo_{images + index:09d}.jpg" for index in range(BATCH)]
            work_guarded(
                self.ledger, "refine", keys, key=str, work=list, seconds=lambda _: 0.0, failure_of=lambda key, _: key
            )
            self.ledger.count_bytes_out("refine", 1)
            images += BATCH
        return images, time.perf_counter() - started


def keep_books(seconds: float) -> float:
    """Images per second of all bookkeepers together."""
    import ray  # noqa: PLC0415

    from pipeline.run import flow  # noqa: PLC0415

    ledger = for_workers(flow.RemoteLedger())
    actors = [ray.remote(num_cpus=0)(Bookkeeper).remote(ledger) for _ in range(BOOKKEEPERS)]
    ray.get([actor.keep.remote(0.1) for actor in actors])
    kept = ray.get([actor.keep.remote(seconds) for actor in actors])
    return sum(images / took for images, took in kept)


def for_workers(ledger: Any) -> Any:
    """Client that a flow hands to its workers; before decision 024 it was the driver's."""
    return ledger.for_workers() if hasattr(ledger, "for_workers") else ledger


# Flow -----------------------------------------------------------------------------------------------------------------


class NullInfer:
    """Stage in place of the network: the same small logits for every image, undecoded."""

    def __init__(self, job: Any, ledger: Any, *, threads: int) -> None:
        self.ledger = ledger

    def __call__(self, table: pa.Table) -> pa.Table:
        """ITEM_SCHEMA to SCORED_SCHEMA, row for row."""
        scored = work_guarded(
            self.ledger,
            "infer",
            items_from_table(table),
            key=lambda item: item.key,
            work=lambda items: [score(item) for item in items],
            seconds=lambda _: 0.0,
            failure_of=lambda item, _: Scored(item),
        )
        return counted(self.ledger, "infer", scored_to_table(scored))


class NullRefine:
    """Stage in place of the refiner: the same small mask for every image."""

    def __init__(self, job: Any, ledger: Any) -> None:
        self.ledger = ledger
        self.png = mask_png(np.zeros((SIZE_PX, SIZE_PX), np.uint8), CLASSES)

    def __call__(self, table: pa.Table) -> pa.Table:
        """SCORED_SCHEMA to ROW_SCHEMA, row for row."""
        rows = work_guarded(
            self.ledger,
            "refine",
            scored_from_table(table),
            key=lambda scored: scored.item.key,
            work=lambda batch: [row_of(scored, self.png) for scored in batch],
            seconds=lambda _: 0.0,
            failure_of=lambda scored, _: row_of(scored, self.png),
        )
        return counted(self.ledger, "refine", rows_to_table(rows))


def score(item: Item) -> Scored:
    """An item with logits of nothing."""
    return Scored(item, SIZE_PX, SIZE_PX, logits_khw=LOGITS_KHW, class_ids=(0, 1))


def row_of(scored: Scored, png: bytes) -> Row:
    """A row with a mask of nothing, and the columns of a real one."""
    item, pixels = scored.item, [SIZE_PX * SIZE_PX] + [0] * (len(CLASSES) - 1)
    return Row(
        key=item.key,
        status="ok",
        shard=item.shard,
        source_etag=item.etag,
        model_fp="model",
        config_fp="config",
        height=SIZE_PX,
        width=SIZE_PX,
        mask=png,
        refined=True,
        class_pixels=pixels,
        classes_present=[0],
        confidence=0.5,
        entropy=0.5,
        changed_share=0.0,
        shard_rows=item.shard_rows,
    )


def counted(ledger: Any, stage: str, table: pa.Table) -> pa.Table:
    """Count the bytes of a table, as the stages do; returns the table."""
    ledger.count_bytes_out(stage, table.nbytes)
    return table


def write_tars(folder: Path, images: int) -> None:
    """Write tars of `IMAGES_PER_TAR` JPEGs that differ by name alone."""
    (jpeg,) = farmland.encoded_jpegs(1, size_px=SIZE_PX, seed=0, workers=1)
    folder.mkdir(parents=True)
    for first in range(0, images, IMAGES_PER_TAR):
        with tarfile.open(folder / f"{first:09d}.tar", "w") as tar:
            for index in range(first, min(first + IMAGES_PER_TAR, images)):
                member = tarfile.TarInfo(f"photo_{index:09d}.jpg")
                member.size = len(jpeg)
                tar.addfile(member, BytesIO(jpeg))


def run_null_flow(source: Path, output: Path, images: int) -> tuple[float, dict[str, float]]:
    """Run the flow; see `Watch.steady`."""
    from pipeline.run import flow  # noqa: PLC0415  # Ray
    from pipeline.run.stages import Job  # noqa: PLC0415
    from pipeline.run.workers import Workers  # noqa: PLC0415

    cfg = SegmentConfig.model_validate({"source": str(source), "output": "o", "checkpoint": "c"})
    job = Job(cfg, CLASSES, Url(str(output)), "model", "config", preview_share=0.0)
    # Through the flow, since its module is another one in older versions.
    pending = [flow.PendingShard(shard, frozenset()) for shard in plan_source(cfg).shards]
    flow.InferStage, flow.RefineStage = NullInfer, NullRefine  # type: ignore[misc,assignment]
    ledger = flow.RemoteLedger()
    with Watch(lambda: ledger.progress().committed) as watch:
        flow.run_flow(job, pending, Workers(1, 0.3, 0, 0.5, 2, 0.3, 0.5), ledger)
    progress = ledger.progress()
    if progress.committed != images or progress.done != dict.fromkeys(("read", "infer", "refine", "write"), images):
        raise RuntimeError(f"{progress.committed} of {images} images are committed, the stages counted {progress.done}")
    return watch.steady(images)


@dataclass(frozen=True, slots=True)
class Look:
    """State of a flow at one moment."""

    at_s: float
    committed: int
    processor_s: dict[int, float]
    """User and system time of each process so far, of those that have ended too."""


class Watch:
    """Looks at committed rows and processor times, of this process and all its descendants, while the block lasts."""

    def __init__(self, committed: Callable[[], int]) -> None:
        self.committed = committed
        self.looks: list[Look] = []
        self.kinds: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> "Watch":
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def _loop(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.look()

    def look(self) -> None:
        """Take one look."""
        seconds = dict(self.looks[-1].processor_s) if self.looks else {}
        for pid in family(os.getpid()):
            with suppress(OSError):
                seconds[pid], kind = processor_seconds(pid), kind_of(pid)
                # A worker between two tasks has no task in its title, and a process that has ended has no title.
                if kind not in (IDLE, ENDED) or pid not in self.kinds:
                    self.kinds[pid] = kind
        self.looks.append(Look(time.perf_counter(), self.committed(), seconds))

    def steady(self, images: int) -> tuple[float, dict[str, float]]:
        """Rate in images per second, and microseconds of processor time per image by kind of process, most first.

        Of the time between the two shares of `STEADY`: starts and ends of processes would hide the rest.
        """
        first = next(look for look in self.looks if look.committed >= STEADY[0] * images)
        last = next(look for look in self.looks if look.committed >= STEADY[1] * images)
        count = last.committed - first.committed
        if count <= 0:
            raise RuntimeError(f"{images} images are too few to be measured: all were committed at once")
        us: Counter[str] = Counter()
        for pid, seconds in last.processor_s.items():
            us[self.kinds[pid]] += round((seconds - first.processor_s.get(pid, 0.0)) / count * 1e6)
        return count / (last.at_s - first.at_s), dict(us.most_common())


def processor_seconds(pid: int) -> float:
    """User and system time of a process, see proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


IDLE, ENDED = "idle workers", "ended processes"
KINDS = {
    "NullInfer": "network's actor",
    "NullRefine": "refiners' actors",
    "ray::Ledger": "ledger's actor",
    "ReadShards": "readers",
    "Write": "writers",
    "ray::": IDLE,
    "default_worker.py": IDLE,
    "raylet/raylet": "raylet",
    "gcs_server": "gcs",
}
"""Kinds of process by a word of their titles; the first that fits counts."""


def kind_of(pid: int) -> str:
    """Kind of a process of Ray, or `driver` for this one."""
    if pid == os.getpid():
        return "driver"
    title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return next((kind for word, kind in KINDS.items() if word in title), "agents of Ray" if title else ENDED)


# Both -----------------------------------------------------------------------------------------------------------------


def measure_here(source: Path, output: Path, images: int, seconds: float) -> CheckoutFigures:
    """Measure the checkout that this process has imported."""
    from infra import session  # noqa: PLC0415  # Ray

    with session.connect():
        from ray import data  # noqa: F401, PLC0415  # sets up its loggers

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        bookkeeping = keep_books(seconds)
        rate, us = run_null_flow(source, output, images)
    return CheckoutFigures(round(bookkeeping), round(rate), {kind: round(one) for kind, one in us.items()})


def measure(checkout: Path, source: Path, scratch: Path, images: int, seconds: float) -> CheckoutFigures:
    """Measure a checkout in a process of its own."""
    output = scratch / "output"
    shutil.rmtree(output, ignore_errors=True)
    # -P: a folder of benchmarks on the path would hide the packages of their names.
    command = [sys.executable, "-P", __file__, "--here", str(source), str(output)]
    command += ["--images", str(images), "--seconds", str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return CheckoutFigures(**json.loads(done.stdout.splitlines()[-1]))


def middle(measured: Sequence[CheckoutFigures]) -> dict[str, Any]:
    """Median of each figure over the turns."""
    kinds = measured[0].flow_cpu_us
    us = {kind: round(median(one.flow_cpu_us.get(kind, 0.0) for one in measured)) for kind in kinds}
    return {
        "bookkeeping_images_per_s": round(median(one.bookkeeping_images_per_s for one in measured)),
        "flow_images_per_s": round(median(one.flow_images_per_s for one in measured)),
        "flow_cpu_us_per_image": sum(us.values()),
        "of_these": us,
    }


def compare(checkouts: dict[str, Path], scratch: Path, *, images: int, seconds: float, turns: int) -> dict[str, Any]:
    """Measure the checkouts in turns."""
    source = scratch / f"tars-{images}"
    if not source.exists():
        write_tars(source, images)
    measured: dict[str, list[CheckoutFigures]] = {name: [] for name in checkouts}
    for _ in range(turns):
        for name, checkout in checkouts.items():
            measured[name].append(measure(checkout, source, scratch, images, seconds))
            log.info("%s: %s", name, measured[name][-1])
    figures: dict[str, Any] = {name: middle(some) for name, some in measured.items()}
    if "before" in figures:
        names = ("bookkeeping_images_per_s", "flow_images_per_s")
        figures["now_over_before"] = {name: round(figures["now"][name] / figures["before"][name], 2) for name in names}
    return figures


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=20_000, help=f"a multiple of {IMAGES_PER_TAR}, at least two of them"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of bookkeeping per turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout, with its native code compiled")
    parser.add_argument(
        "--scratch", type=Path, help="folder of the tars and of what is committed; unset: a temporary one"
    )
    parser.add_argument("--here", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if args.here:
        print(json.dumps(asdict(measure_here(*args.here, args.images, args.seconds))))
        return 0
    checkouts = {"before": args.against.resolve()} if args.against else {}
    checkouts["now"] = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or Path(temporary)
        figures = compare(checkouts, scratch, images=args.images, seconds=args.seconds, turns=args.turns)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
