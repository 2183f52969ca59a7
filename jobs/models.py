"""List every network: what it costs, how fast it runs here, and what was published for it.

    python -m jobs.models --size 513 --classes 21 [--format table|json|parquet] [--only NAME ...] [--no-speed]

Speeds are of this machine, one image at a time, in the precision `segment_dataset` would choose; parameters and
multiply-accumulates (MACs) are exact. Published numbers are their authors', see `pipeline/models/catalogue.py`.
"""

import argparse
import json
import logging
import statistics
import sys
from dataclasses import asdict, dataclass
from time import perf_counter

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from infra import log as logs
from jobs import command_line
from pipeline.errors import ConfigError
from pipeline.infer.segmenter import resolve_precision
from pipeline.models import catalogue
from pipeline.models.catalogue import Variant
from pipeline.models.network import Network

log = logging.getLogger(__name__)

TIMED = 3
"""Forward passes whose median is the speed; one before them warms up."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of the list."""

    name: str
    network: str
    year: int
    paper: str
    output_stride: int
    parameters: int
    gmacs: float
    """Of one image, in thousands of millions."""
    images_per_s: float | None
    """None when not measured."""
    miou: float | None
    measured_on: str


def speed(network: Network, size_px: int) -> float:
    """Images a second, one at a time, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_precision("auto", device)
    network = network.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(1, 3, size_px, size_px, device=device).contiguous(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
        for _ in range(TIMED + 1):
            started = perf_counter()
            network(x)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(perf_counter() - started)
    return 1 / statistics.median(seconds[1:])


def describe(variant: Variant, *, size_px: int, num_classes: int, measure: bool) -> Listed:
    """Count a variant, and time it if asked to."""
    with torch.device("meta"):
        counted = variant.build(num_classes)
    images_per_s = speed(variant.build(num_classes), size_px) if measure else None
    return Listed(
        name=variant.name,
        network=variant.network,
        year=variant.year,
        paper=variant.paper,
        output_stride=counted.output_strides[0],
        parameters=catalogue.count_parameters(counted),
        gmacs=round(catalogue.count_macs(counted, size_px) / 1e9, 3),
        images_per_s=None if images_per_s is None else round(images_per_s, 2),
        miou=variant.miou,
        measured_on=variant.measured_on,
    )


def print_table(lines: list[Listed]) -> None:
    """For people: one line each, sorted as the catalogue is."""
    print(f"{'name':30} {'year':>4} {'Mparam':>7} {'GMAC':>7} {'img/s':>6} {'mIoU':>6}  published on; paper")
    for one in lines:
        rate = "" if one.images_per_s is None else f"{one.images_per_s:.2f}"
        miou = "" if one.miou is None else f"{one.miou:.2f}"
        said = "; ".join(filter(None, (one.measured_on, one.paper)))
        print(f"{one.name:30} {one.year:4} {one.parameters / 1e6:7.2f} {one.gmacs:7.1f} {rate:>6} {miou:>6}  {said}")


def write(lines: list[Listed], form: str, path: str | None) -> None:
    """Print the list, or write it as Parquet."""
    rows = [asdict(one) for one in lines]
    if form == "table":
        print_table(lines)
    elif form == "json":
        print(json.dumps(rows, indent=1))
    elif path is None:
        pq.write_table(pa.Table.from_pylist(rows), pa.PythonFile(sys.stdout.buffer, mode="w"))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


def main(argv: list[str] | None = None) -> int:
    """Count and time the networks asked for, with progress on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=513, help="side of the square input, pixels")
    parser.add_argument("--classes", type=int, default=21, help="number of classes")
    parser.add_argument("--format", choices=("table", "json", "parquet"), default="table")
    parser.add_argument("--output", help="file for --format parquet; unset: standard output")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these variants; unset: all of them")
    parser.add_argument("--no-speed", action="store_true", help="count only: seconds instead of minutes")
    args = parser.parse_args(argv)
    logs.configure()

    def job() -> int:
        if args.size < 1 or args.classes < 1:
            raise ConfigError(f"--size {args.size} and --classes {args.classes} must be at least 1")
        variants = [catalogue.find_variant(name) for name in args.only] if args.only else list(catalogue.VARIANTS)
        lines = []
        for index, variant in enumerate(variants, 1):
            log.info("%d/%d %s", index, len(variants), variant.name)
            one = describe(variant, size_px=args.size, num_classes=args.classes, measure=not args.no_speed)
            lines.append(one)
        write(lines, args.format, args.output)
        return 0

    return command_line.exit_status(job)


if __name__ == "__main__":
    command_line.leave(main())
