"""Measure size, speed and mIoU of every network, and draw quality against speed.

    python -m jobs.compare_models --output comparison                      # every variant, untrained
    python -m jobs.compare_models --output comparison --only icnet segnet --size 129 --rounds 1      # minutes
    python -m jobs.compare_models --output comparison --data s3://labelled/val \
        --checkpoint deeplab_v3plus_resnet50=s3://bucket/v3plus --checkpoint mine=s3://bucket/model

Writes comparison.parquet, comparison.md and comparison.png (quality against speed, beside published figures) after
every round of measurements. A checkpoint replaces the variant of the same name, or gets a line of its own; `--data` is
a folder of images/ and labels/, or of tars or Parquet files with both.
"""

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from infra import log as logs
from jobs import command_line
from pipeline.errors import ConfigError
from pipeline.store.url import Url

if TYPE_CHECKING:
    from pipeline.evaluate.comparison import ComparedNetwork

log = logging.getLogger(__name__)


def parse_comparison(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("--output", required=True, help="folder for the tables and the plot: local or s3://")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="names of variants; unset: all of jobs.models")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="NAME=URL", help="trained weights")
    parser.add_argument("--data", help="labelled images on which checkpoints are scored")
    parser.add_argument("--classes", default="voc", help="class map that gives untrained networks their class count")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=[513],
        metavar="PIXELS",
        help="height and width of the timed images, or one side",
    )
    parser.add_argument("--images", type=int, default=4, help="images per timed stream; a GPU needs 32 or more")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each network; figures are medians")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a network; segment_dataset uses 1")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="unset: cuda where there is a GPU")
    return parser.parse_args(argv)


def subjects(args: argparse.Namespace) -> "list[ComparedNetwork]":
    """Networks to compare, trained where there is a checkpoint: in catalogue order, then the other checkpoints.

    Raises:
        ConfigError: for an unknown variant, and a checkpoint of another network than its name says.
    """
    from pipeline import classes
    from pipeline.evaluate import comparison
    from pipeline.models import catalogue

    given = dict(pair.partition("=")[::2] for pair in args.checkpoint)
    if unnamed := [name for name, url in given.items() if not url]:
        raise ConfigError(f"--checkpoint {unnamed[0]} has no name", hint="write NAME=URL")
    names = [variant.name for variant in catalogue.VARIANTS] if args.only is None else args.only
    class_map = classes.load_class_map(args.classes)
    by_name = {
        name: comparison.untrained_network(catalogue.find_variant(name), class_map)
        for name in names
        if name not in given
    }
    by_name |= {name: comparison.compared_checkpoint(name, url) for name, url in given.items()}
    if not by_name:
        raise ConfigError("there is nothing to compare", hint="name variants with --only, or a --checkpoint")
    return [by_name[name] for name in dict.fromkeys([*names, *given])]


def compare(args: argparse.Namespace) -> int:
    """Measure round by round, write the tables and the plot after each, print the last; returns the exit status."""
    import torch

    from pipeline.evaluate import comparison, comparison_table

    for name in ("images", "rounds", "threads"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)} must be at least 1")
    if len(args.size) > 2 or min(args.size) < 1:
        raise ConfigError(f"--size {' '.join(map(str, args.size))} must be one side or height and width, at least 1")
    device = args.device or ("cuda" if torch.cuda.device_count() else "cpu")
    measure = comparison.SpeedSettings(args.size[0], args.size[-1], args.images, args.rounds, device, args.threads)
    table = ""
    for rows in comparison.compare_networks(subjects(args), measure, args.data):
        table = comparison_table.write_comparison(rows, Url(args.output), measure)
    print(table)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, with progress on stderr; ends with the table on stdout."""
    args = parse_comparison(argv)
    logs.configure()
    return command_line.exit_status(lambda: compare(args))


if __name__ == "__main__":
    command_line.leave(main())
