"""Generate a small set of aerial farmland, segment it on a local Ray, and score labelled images; needs no data.

    python -m jobs.demo --output demo

About a minute on two cores. The same command again does nothing.
"""

import logging
from pathlib import Path

from infra import log as logs
from jobs import cli, command_line
from pipeline.store.url import Url

log = logging.getLogger(__name__)

ALWAYS = ["--checkpoint", "farmland", "--runtime.progress-s", "2"]


def main(argv: list[str] | None = None) -> int:
    """Generate, segment, evaluate; returns the exit status."""
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("--output", default="demo", help="folder that receives images, masks and the evaluation")
    parser.add_argument("--images", type=int, default=24, help="number of images")
    parser.add_argument("--size-px", type=int, default=512, help="side of the images, pixels")
    args = parser.parse_args(argv)
    logs.configure()
    output = Path(args.output)
    generate(output / "source", args.images, args.size_px, seed=2026)
    generate(output / "labelled", max(args.images // 3, 1), args.size_px // 2, seed=4052, with_labels=True)
    status = run_job("segment", output / "source", output / "out")
    return status or run_job("evaluate", output / "labelled", output / "evaluation")


def run_job(name: str, source: Path, output: Path) -> int:
    """Run another job in this process, as `atrous <name>` does; returns the exit status."""
    flags = ["--source", str(source), "--output", str(output), *ALWAYS]
    log.info("atrous %s %s", name, " ".join(flags))
    return cli.main([name, *flags])


def generate(folder: Path, images: int, size_px: int, *, seed: int, with_labels: bool = False) -> None:
    """Write a folder of images unless it exists."""
    from pipeline.datasets import farmland

    if not folder.exists():
        log.info("generating %d images of farmland in %s", images, folder)
        farmland.write_folder(Url(str(folder)), images, size_px=size_px, seed=seed, with_labels=with_labels)


if __name__ == "__main__":
    command_line.leave(main())
