"""The table every lecture shows, measured and not quoted: what networks cost, how fast they are here, and how good.

    python -m jobs.compare_models --output comparison                      # all networks of jobs.models, untrained
    python -m jobs.compare_models --output comparison --only icnet segnet --size 129 --rounds 1      # a first look
    python -m jobs.compare_models --output comparison --data s3://labelled/val \
        --checkpoint deeplab_v3plus_resnet50=s3://bucket/v3plus --checkpoint mine=s3://bucket/model

Writes comparison.parquet, comparison.md and comparison.png (quality against speed, with published figures beside) after
every round of measurements. A checkpoint takes the place of the variant whose name it is given, or has a line of its
own; `--data` is a folder of images/ and labels/, or of tars or Parquet files with both.
"""

import argparse
import io
import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from infra import log as logs
from jobs import command_line
from pipeline import classes
from pipeline.errors import ConfigError
from pipeline.evaluate import comparison, comparison_table
from pipeline.evaluate.comparison import ComparisonRow, Measure, Subject
from pipeline.models import catalogue
from pipeline.store import objects

log = logging.getLogger(__name__)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder for the table and the plot: local or s3://")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these variants; unset: all of jobs.models")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="NAME=URL", help="trained weights")
    parser.add_argument("--data", help="labelled images that the checkpoints are scored on")
    parser.add_argument("--classes", default="voc", help="class map of the untrained networks, which need as many")
    parser.add_argument("--size", type=int, default=513, help="side of the images that are timed, pixels")
    parser.add_argument("--images", type=int, default=4, help="images of a stream; a GPU wants 32 or more")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each network; figures are medians over them")
    parser.add_argument("--threads", type=int, default=1, help="of a network on a CPU, as the main job runs it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.device_count() else "cpu")
    return parser.parse_args(argv)


def subjects(args: argparse.Namespace) -> list[Subject]:
    """The networks asked for, trained where there is a checkpoint, in the order of the catalogue; others after them.

    Raises:
        ConfigError: for an unknown variant, and a checkpoint that is not what its name says.
    """
    given = dict(one.partition("=")[::2] for one in args.checkpoint)
    if unnamed := [name for name, url in given.items() if not url]:
        raise ConfigError(f"--checkpoint {unnamed[0]} has no name", hint="write NAME=URL")
    names = [one.name for one in catalogue.VARIANTS] if args.only is None else args.only
    class_map = classes.load_class_map(args.classes)
    found = {name: comparison.published(catalogue.find_variant(name), class_map) for name in names if name not in given}
    found |= {name: comparison.checkpoint_subject(name, url) for name, url in given.items()}
    if not found:
        raise ConfigError("there is nothing to compare", hint="name variants with --only, or a --checkpoint")
    return [found[name] for name in dict.fromkeys([*names, *given])]


def machine(args: argparse.Namespace) -> str:
    """What the figures are of, in one line."""
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} thread(s), {platform.machine()}"
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return f"{where}, torch {torch.__version__}, load per core {load:.1f} at the end"


def write(rows: Sequence[ComparisonRow], args: argparse.Namespace) -> str:
    """Write the table twice and the plot, over those of the round before; the table as text."""
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(one) for one in rows]), parquet)
    markdown = comparison_table.markdown(rows, size_px=args.size, machine=machine(args))
    objects.put(objects.join(args.output, "comparison.parquet"), parquet.getvalue())
    objects.put(objects.join(args.output, "comparison.md"), markdown.encode())
    objects.put(objects.join(args.output, "comparison.png"), comparison_table.scatter(rows))
    return markdown


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, with progress on stderr; ends with the table on stdout."""
    args = parse(argv)
    logs.configure()

    def job() -> int:
        for name in ("size", "images", "rounds", "threads"):
            if getattr(args, name) < 1:
                raise ConfigError(f"--{name} {getattr(args, name)} must be at least 1")
        how = Measure(args.size, args.images, args.rounds, args.device, args.threads)
        table = ""
        for rows in comparison.compare_networks(subjects(args), how, args.data):
            table = write(rows, args)
        print(table)
        return 0

    return command_line.exit_status(job)


if __name__ == "__main__":
    command_line.leave(main())
