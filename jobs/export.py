"""Write the masks of a run as files of another form: PNGs, COCO, GeoTIFFs, or a Hugging Face data set.

    python -m jobs.export demo/out/run=0123456789ab --to png --output masks

RUN is a `run=...` folder, or the output folder of `segment_dataset` with one run in it. Rows that failed have no mask:
they are counted. The same command again continues, and writes nothing twice. Exit status 1 when masks are left out,
such as those of images without georeferencing in GeoTIFFs. It needs no Ray.
"""

import argparse
import logging

from infra import log as logs
from jobs import command_line
from jobs.console import print_json
from pipeline.store.url import Url

log = logging.getLogger(__name__)

FORMS = {
    "png": "a palette PNG of class ids for each image, under the name of the image",
    "hf": "Parquet and a card that `datasets.load_dataset` opens with masks decoded",
    "coco": "annotations.json with a run-length mask for each class of each image",
    "geotiff": "a GeoTIFF for each georeferenced image, on its grid; reads the images again",
}
"""Forms of `--to`, and what each one writes."""


def export(args: argparse.Namespace) -> int:
    """Export the one run at `args.run`; returns the exit status."""
    from infra import preflight
    from pipeline.export.export import export_run, source_of_run
    from pipeline.run import folder, inspection
    from pipeline.store import objects

    run_url, output = inspection.one_run_url(Url(args.run)), Url(args.output)
    if objects.exists(run_url / folder.CONFIG):
        cfg = source_of_run(run_url, args.source)
        preflight.check_apart([Url(source) for source in cfg.source], output)
    log.info("exporting %s to %s into %s", run_url, args.to, output)
    summary = export_run(run_url, args.to, output, source=args.source)
    print_json(summary)
    return int(summary["exit_status"] != 0)


def main(argv: list[str] | None = None) -> int:
    """Parse, export, and turn errors into a message and an exit status."""
    logs.configure()
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("run", metavar="RUN", help="a run= folder, or an output folder with one run in it")
    forms = "; ".join(f"{name}: {text}" for name, text in FORMS.items())
    parser.add_argument("--to", required=True, choices=FORMS, help=forms)
    parser.add_argument("--output", required=True, help="empty folder for the files, beside the run; any store")
    source = "where the images are now, for geotiff; unset: where the run read them"
    parser.add_argument("--source", nargs="+", metavar="URL", help=source)
    args = parser.parse_args(argv)
    return command_line.exit_status(lambda: export(args))


if __name__ == "__main__":
    command_line.leave(main())
