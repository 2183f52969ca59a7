"""Make a checkpoint of a file of weights that another program wrote.

    python -m jobs.import_checkpoint deeplabv3_resnet50_coco.pth models/coco
    python -m jobs.import_checkpoint resnet50.pth models/start --classes camvid --architecture deeplab_v3

SRC is a `.pth` of torch.save, a `.safetensors` or a `.caffemodel`; DST the folder that receives `model.safetensors` and
`card.json`. Nothing in SRC is run. Every tensor is accounted for; the report says what was guessed and what verified.
"""

import argparse
import json
import logging
from typing import Any

import torch
import yaml

from infra import log as logs
from jobs import command_line
from pipeline.errors import ConfigError
from pipeline.importing import convert, reader, verify
from pipeline.importing.convert import Import, Wishes
from pipeline.importing.layouts import BY_NAME
from pipeline.importing.reader import Source
from pipeline.models import checkpoint
from pipeline.redact import redact
from pipeline.store import objects

log = logging.getLogger(__name__)

TRIED_PX = 64
"""Side of the image that every imported network is tried on."""


def option(text: str) -> tuple[str, Any]:
    """`name=value` of a command line, the value as YAML has it.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    name, equals, value = text.partition("=")
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    return name, found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("src", metavar="SRC", help="file of weights: a path or URL")
    made.add_argument("dst", metavar="DST", help="folder of the new checkpoint: a path or URL")
    made.add_argument("--layout", default="auto", help=f"auto, or one of {', '.join(BY_NAME)}")
    made.add_argument("--classes", help="class map name or YAML file; unset: guessed for 21, 19 and 150 classes")
    made.add_argument("--in-channels", type=int, help="widen the first convolution to so many bands")
    made.add_argument("--output-stride", type=int, help="that it was trained at; unset: the source's default")
    made.add_argument("--architecture", help="network that a backbone goes into")
    made.add_argument(
        "--options", nargs="+", type=option, default=[], metavar="NAME=VALUE", help="options of the network"
    )
    made.add_argument("--seed", type=int, default=0, help="of the weights that a backbone has not")
    made.add_argument("--source", help="who trained it, or the URL it came from; unset: the file's name and layout")
    made.add_argument("--license", default=convert.NO_LICENCE, help="SPDX name of the licence of the weights")
    made.add_argument("--report", choices=("text", "json"), default="text", help="how to print what was done")
    made.add_argument(
        "--verify", action="store_true", help="compare outputs with the source's own package, if installed"
    )
    return made


def run(args: argparse.Namespace) -> int:
    """Read, convert, try, write, report."""
    if objects.exists(objects.join(args.dst, checkpoint.CARD_FILE)):
        raise ConfigError(f"{redact(args.dst)} is a checkpoint already", hint="give a new folder")
    source = reader.read_weights(args.src)
    wishes = Wishes(
        layout=args.layout,
        classes=args.classes,
        output_stride=args.output_stride,
        architecture=args.architecture,
        options=dict(args.options),
        seed=args.seed,
        source=args.source,
        license=args.license,
    )
    made = convert.convert(source, wishes)
    verified, missing = tried(source, made, compare=args.verify)
    if args.in_channels:
        made = convert.widened(made, args.in_channels)
    digest = checkpoint.save_checkpoint(args.dst, made.state, made.card)
    said = describe(source, made) | {"verified": verified, "not_verified": missing, "checkpoint": digest}
    print(json.dumps(said) if args.report == "json" else in_words(said))
    return 0


def tried(source: Source, made: Import, *, compare: bool) -> tuple[list[str], list[str]]:
    """What was verified of a conversion, and what was not.

    Raises:
        ConfigError: when the network gives no finite scores, or others than the source's.
    """
    network = made.build()
    image = torch.randn(1, made.card.in_channels, TRIED_PX, TRIED_PX, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not network(image).isfinite().all():
            raise ConfigError("the network gives scores that are not finite")
    verified = ["names and shapes of all tensors", f"finite scores of a random image of {TRIED_PX} x {TRIED_PX}"]
    if not compare:
        return verified, ["that outputs are the source's: --verify compares them where its package is installed"]
    found = verify.compare_outputs(source, made, network)
    return verified + found.verified, found.not_verified


def describe(source: Source, made: Import) -> dict[str, Any]:
    """The report as plain data."""
    card = made.card
    return {
        "file": source.name,
        "sha256": source.sha256,
        "left_out": list(source.left_out),
        "layout": made.layout.name,
        "title": made.layout.title,
        "recognised_by": list(made.layout.marks),
        "architecture": card.architecture,
        "options": card.options,
        "output_stride": card.output_stride,
        "classes": card.classes.name,
        "num_classes": len(card.classes),
        "in_channels": card.in_channels,
        "mean": list(card.mean),
        "std": list(card.std),
        "normalisation": made.layout.normalisation.origin,
        "tensors": len(source.tensors),
        "used": dict(made.used),
        "unused": dict(made.unused),
        "filled": list(made.filled),
        "notes": list(made.notes),
    }


def in_words(said: dict[str, Any]) -> str:
    """The report for people: counts where JSON has every name."""
    counters = sum(map(convert.is_counter, said["filled"]))
    options = " ".join(f"{name}={value}" for name, value in said["options"].items())
    lines = [
        f"{said['file']}  sha256 {said['sha256'][:12]}",
        f"layout         {said['layout']}: {said['title']}, by {', '.join(said['recognised_by'])}",
        f"network        {said['architecture']} {options}, output stride {said['output_stride']}",
        f"classes        {said['num_classes']}, {said['classes']}",
        f"bands          {said['in_channels']}; normalisation: {said['normalisation']}",
        f"tensors        {said['tensors']}: {len(said['used'])} used, {len(said['unused'])} not",
        *(f"  not used     {count} that begin with {begin}: {why}" for (begin, why), count in grouped(said).items()),
        *([f"  filled in    {counters} counters of batch norm, with 0"] if counters else []),
        *([f"  from a seed  {seeded}"] if (seeded := len(said["filled"]) - counters) else []),
        *([f"  beside them  {', '.join(said['left_out'])}: left out"] if said["left_out"] else []),
        *(f"note           {note}" for note in said["notes"]),
        *(f"verified       {one}" for one in said["verified"]),
        *(f"not verified   {one}" for one in said["not_verified"]),
        f"checkpoint     {said['checkpoint'][:12]}",
    ]
    return "\n".join(lines)


def grouped(said: dict[str, Any]) -> dict[tuple[str, str], int]:
    """How many unused tensors share the first part of their names and a reason."""
    counts: dict[tuple[str, str], int] = {}
    for name, why in said["unused"].items():
        group = (name.split(".")[0], why)
        counts[group] = counts.get(group, 0) + 1
    return counts


def main(argv: list[str] | None = None) -> int:
    """Import one file."""
    logs.configure()
    args = parser().parse_args(argv)
    return command_line.exit_status(lambda: run(args))


if __name__ == "__main__":
    command_line.leave(main())
