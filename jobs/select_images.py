"""Choose the images of a run that are most worth labelling, and hand them to a labelling tool with the run's masks.

    python -m jobs.select_images demo/out --images 12 --output to_label --to labelstudio

RUN is a `run=...` folder, or the output folder of `segment_dataset` with one run in it. The chosen images are uncertain
(entropy, and what the CRF changed) and unlike each other (clusters of class shares and brightness). The same command
again changes nothing, and continues a hand-over. Exit status 1 when chosen images cannot be handed over. It needs no
Ray. `atrous prepare --layout label_studio`, `cvat`, `cvat_masks` or `coco_file` reads what people have labelled.
"""

import argparse
import logging

from infra import log as logs
from jobs import command_line
from jobs.console import print_json
from pipeline.errors import ConfigError
from pipeline.store.url import Url

log = logging.getLogger(__name__)

TOOLS = {
    "labelstudio": "tasks with predictions of brushes, and a labelling configuration",
    "cvat": "annotations in CVAT's XML 1.1, and the labels of a task",
    "coco": "annotations.json with run-length masks (pycocotools)",
}
"""Tools of `--to`, and what is written for each."""


def select(args: argparse.Namespace) -> int:
    """Choose images of the one run at `args.run`, and hand them over; returns the exit status."""
    from infra import preflight
    from pipeline.run import folder, inspection
    from pipeline.select import hand_over, output
    from pipeline.store import objects

    run_url, target = inspection.one_run_url(Url(args.run)), Url(args.output)
    if args.images < 1:
        raise ConfigError(f"--images {args.images} chooses nothing", hint="give a number of at least 1")
    if args.to or objects.exists(run_url / folder.CONFIG):
        of_run = hand_over.source_to_hand_over if args.to else hand_over.source_of_run
        cfg = of_run(run_url, args.source)  # before anything is chosen: a source that is gone ends the job here
        preflight.check_apart([Url(source) for source in cfg.source], target)
    log.info("choosing %d image(s) of %s", args.images, run_url)
    exclude = [Url(url) for url in args.exclude]
    summary = output.select_images(run_url, args.images, target, seed=args.seed, exclude=exclude)
    if args.to:
        keys = output.read_selection(target)["key"].to_pylist()
        summary |= hand_over.hand_over(run_url, keys, target, args.to, source=args.source, images_at=args.images_at)
    summary["exit_status"] = int(bool(summary.get("not_handed_over")))
    print_json(summary)
    return int(summary["exit_status"])


def main(argv: list[str] | None = None) -> int:
    """Parse, select, and turn errors into a message and an exit status."""
    logs.configure()
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("run", metavar="RUN", help="a run= folder, or an output folder with one run in it")
    parser.add_argument("--images", type=int, required=True, metavar="N", help="number of images to choose")
    parser.add_argument("--output", required=True, help="empty folder for the selection, beside the run; any store")
    excluded = "keys not to choose: earlier selections, or files with a key a line"
    parser.add_argument("--exclude", nargs="+", default=[], metavar="URL", help=excluded)
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample and of equal scores (0)")
    tools = "; ".join(f"{name}: {text}" for name, text in TOOLS.items())
    parser.add_argument(
        "--to", nargs="+", choices=TOOLS, metavar="TOOL", help=f"write images and masks for a tool. {tools}"
    )
    source = "where the images are now, for --to; unset: where the run read them"
    parser.add_argument("--source", nargs="+", metavar="URL", help=source)
    begin = "start of the images' URLs in Label Studio's tasks; unset: its URL of local files, or the bucket's"
    parser.add_argument("--images-at", metavar="URL", help=begin)
    args = parser.parse_args(argv)
    return command_line.exit_status(lambda: select(args))


if __name__ == "__main__":
    command_line.leave(main())
