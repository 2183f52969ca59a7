"""Convert a file of weights that another program wrote into a checkpoint.

    python -m jobs.import_checkpoint deeplabv3_resnet50_coco.pth models/coco
    python -m jobs.import_checkpoint resnet50.pth models/start --classes camvid --architecture deeplab_v3

SRC is a `.pth` of torch.save, `.safetensors`, `.caffemodel`, `.tflite` or a `.npz` of Lasagne; DST the folder that
receives `model.safetensors` and `card.json`. Nothing in SRC is run. Every tensor is accounted for; the report lists
guesses and checks.
"""

import argparse
import json
import logging
from typing import Any

import yaml

from infra import log as logs
from jobs import command_line
from pipeline.errors import ConfigError
from pipeline.models.card import CARD_FILE
from pipeline.store.url import Url

log = logging.getLogger(__name__)


def network_option(text: str) -> tuple[str, Any]:
    """Parse `name=value`, the value as YAML.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    name, equals, value = text.partition("=")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    return name, parsed


def parse_import(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    flags = command_line.argument_parser(__doc__ or "")
    flags.add_argument("src", metavar="SRC", help="file of weights: a path or URL")
    flags.add_argument("dst", metavar="DST", help="folder of the new checkpoint: a path or URL")
    flags.add_argument(
        "--layout", default="auto", help="origin of the file, such as torchvision-fcn; a wrong one lists all"
    )
    flags.add_argument(
        "--weights", help="set of weights where the file has several: ema for the average, or a name of the report"
    )
    flags.add_argument("--classes", help="class map name or YAML file; unset: guessed for 21, 19 and 150 classes")
    flags.add_argument(
        "--drop-scores", nargs="+", type=int, default=[], metavar="N", help="scores to leave out, such as unlabelled"
    )
    flags.add_argument("--in-channels", type=int, help="widen the first convolution to this many bands")
    flags.add_argument(
        "--mean", nargs="+", type=float, help="mean of each band, for pixels of 0 to 1; unset: the layout's"
    )
    flags.add_argument("--std", nargs="+", type=float, help="standard deviation of each band, likewise")
    flags.add_argument("--output-stride", type=int, help="output stride in training; unset: the source's default")
    flags.add_argument("--architecture", help="network that receives a backbone")
    flags.add_argument(
        "--options", nargs="+", type=network_option, default=[], metavar="NAME=VALUE", help="options of the network"
    )
    flags.add_argument("--seed", type=int, default=0, help="seed of weights that a backbone lacks")
    flags.add_argument("--source", help="who trained it, or the URL it came from; unset: the file's name and layout")
    flags.add_argument("--license", help="SPDX name of the licence of the weights; unset: NOASSERTION")
    flags.add_argument("--report", choices=("text", "json"), default="text", help="format of the report")
    flags.add_argument(
        "--verify", action="store_true", help="compare outputs with the source's own package, if installed"
    )
    return flags.parse_args(argv)


def import_checkpoint(args: argparse.Namespace) -> int:
    """Read, convert, verify, write, report; returns the exit status."""
    from pipeline.importing import convert, reader, report, selection
    from pipeline.models import checkpoint
    from pipeline.store import objects

    output = Url(args.dst)
    if objects.exists(output / CARD_FILE):
        raise ConfigError(f"{output} is a checkpoint already", hint="give a new folder")
    source = selection.select_weights(reader.read_weights(Url(args.src)), layout=args.layout, weights=args.weights)
    options = convert.ImportOptions(
        layout=args.layout,
        classes=args.classes,
        output_stride=args.output_stride,
        architecture=args.architecture,
        options=dict(args.options),
        seed=args.seed,
        source=args.source,
        license=args.license or convert.NO_LICENCE,
        drop_scores=tuple(args.drop_scores),
        mean=tuple(args.mean) if args.mean else None,
        std=tuple(args.std) if args.std else None,
    )
    imported = convert.convert_weights(source, options)
    verified, not_verified = report.verify_import(source, imported, compare=args.verify)
    if args.in_channels:
        imported = convert.widen_input(imported, args.in_channels)
    digest = checkpoint.save_checkpoint(output, imported.state, imported.card)
    facts = report.import_facts(source, imported)
    facts |= {"verified": verified, "not_verified": not_verified, "checkpoint": digest}
    print(json.dumps(facts) if args.report == "json" else report.import_text(facts))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Import one file."""
    logs.configure()
    args = parse_import(argv)
    return command_line.exit_status(lambda: import_checkpoint(args))


if __name__ == "__main__":
    command_line.leave(main())
