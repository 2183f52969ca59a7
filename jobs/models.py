"""List every network: size, speed on this machine, and published mIoU.

    python -m jobs.models --size 513 --classes 21 [--format table|json|parquet] [--only NAME ...] [--no-speed]
    python -m jobs.models --shipped [--size 513] [--no-speed] [--format table|json|parquet]
    python -m jobs.models --pretrained

Speed is measured on this machine, one image at a time, in the precision of `segment_dataset`; parameters and
multiply-accumulates (MACs) are exact. Published numbers are those of the papers, see `pipeline/models/catalogue.py`.
`--shipped` lists the checkpoints of the package instead, with their scores, their licences, and their speed on one
thread. `--pretrained` lists the weights that a training can start from: those that are shipped, and backbones.
"""

import argparse
import logging

from infra import log as logs
from jobs import command_line
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)


def list_models(args: argparse.Namespace) -> int:
    """Count and time the networks; returns the exit status."""
    from pipeline.evaluate import listing, shipped
    from pipeline.models import catalogue

    if args.pretrained:
        print(listing.pretrained_text())
        return 0
    if args.shipped and args.only:
        raise ConfigError("--only selects published networks: --shipped lists every checkpoint of the package")
    if args.size < 1 or args.classes < 1:
        raise ConfigError(f"--size {args.size} and --classes {args.classes} must be at least 1")
    if args.shipped:
        checkpoints = shipped.list_shipped(size_px=args.size, measure=not args.no_speed)
        listing.write_listing(checkpoints, shipped.shipped_text(checkpoints), args.format, args.output)
        return 0
    variants = [catalogue.find_variant(name) for name in args.only] if args.only else list(catalogue.VARIANTS)
    lines = []
    for index, variant in enumerate(variants, 1):
        log.info("%d/%d %s", index, len(variants), variant.name)
        row = listing.list_variant(variant, size_px=args.size, num_classes=args.classes, measure=not args.no_speed)
        lines.append(row)
    listing.write_listing(lines, listing.listing_text(lines), args.format, args.output)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Parse and list the networks, with progress on stderr."""
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("--size", type=int, default=513, help="side of the square input, pixels")
    parser.add_argument("--classes", type=int, default=21, help="number of classes")
    parser.add_argument("--format", choices=("table", "json", "parquet"), default="table", help="format of the list")
    parser.add_argument("--output", help="file for --format parquet; unset: standard output")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of variants; unset: all of them")
    parser.add_argument("--shipped", action="store_true", help="list the checkpoints of the package")
    parser.add_argument(
        "--pretrained", action="store_true", help="list weights to start from, and where they come from"
    )
    parser.add_argument("--no-speed", action="store_true", help="count only: seconds instead of minutes")
    args = parser.parse_args(argv)
    logs.configure()
    return command_line.exit_status(lambda: list_models(args))


if __name__ == "__main__":
    command_line.leave(main())
