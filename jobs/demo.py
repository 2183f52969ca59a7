"""Generate a small set of aerial farmland, segment it on a local Ray, and score labelled images; needs no data.

    python -m jobs.demo --output demo
    python -m jobs.demo --output demo --rasters

About a minute on two cores. The same command again does nothing. With --rasters, an orthomosaic of 100 megapixels in
four bands takes the place of the images: its mask becomes a Cloud Optimized GeoTIFF, and both a picture; about ten
minutes on two cores.
"""

import argparse
import logging
import os
from pathlib import Path

from infra import log as logs
from jobs import cli, command_line
from pipeline.store.url import Url

log = logging.getLogger(__name__)

ALWAYS = ["--runtime.progress-s", "2"]
MOSAIC = "mosaic.tif"


def main(argv: list[str] | None = None) -> int:
    """Generate, segment, evaluate; returns the exit status."""
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("--output", default="demo", help="folder that receives images, masks and the evaluation")
    parser.add_argument("--images", type=int, default=24, help="number of images")
    parser.add_argument("--size-px", type=int, help="side of the images, or of the mosaic; default: 512, or 10240")
    parser.add_argument("--rasters", action="store_true", help="one orthomosaic with coordinates and near infrared")
    args = parser.parse_args(argv)
    logs.configure()
    return command_line.exit_status(lambda: segment_mosaic(args) if args.rasters else segment_images(args))


def segment_images(args: argparse.Namespace) -> int:
    """Segment generated images and evaluate labelled ones; returns the exit status."""
    output, size_px = Path(args.output), args.size_px or 512
    generate(output / "source", args.images, size_px, seed=2026)
    generate(output / "labelled", max(args.images // 3, 1), size_px // 2, seed=4052, with_labels=True)
    status = run_job("segment", output / "source", output / "out", "--checkpoint", "farmland")
    return status or run_job("evaluate", output / "labelled", output / "evaluation", "--checkpoint", "farmland")


def segment_mosaic(args: argparse.Namespace) -> int:
    """Segment a generated orthomosaic and draw it beside its mask; returns the exit status."""
    from pipeline.datasets.farmland.mosaic import write_mosaic

    output, size_px = Path(args.output), args.size_px or 10_240
    mosaic = output / "mosaic" / MOSAIC
    if not mosaic.exists():
        log.info("generating %s, %d x %d pixels of four bands", mosaic, size_px, size_px)
        write_mosaic(Url(str(mosaic)), size_px=size_px, seed=2026, workers=min(os.cpu_count() or 1, 8))
    flags = ["--checkpoint", "farmland_nir", "--read.kind", "raster"]
    status = run_job("segment", mosaic.parent, output / "out", *flags)
    return status or draw_mask(mosaic, output)


def draw_mask(mosaic: Path, output: Path) -> int:
    """Draw the mosaic beside its newest mask, as `mosaic.png`; returns the exit status."""
    from pipeline.classes import load_class_map
    from pipeline.page.raster_picture import raster_picture
    from pipeline.store import objects

    mask = max((output / "out").glob(f"run=*/masks/{MOSAIC}"), key=lambda path: path.stat().st_mtime)
    picture = output / "mosaic.png"
    objects.put(Url(str(picture)), raster_picture(mosaic, mask, load_class_map("farmland")))
    log.info("%s is the mask as a Cloud Optimized GeoTIFF, %s a picture of it", mask, picture)
    return 0


def run_job(name: str, source: Path, output: Path, *more: str) -> int:
    """Run another job in this process, as `atrous <name>` does; returns the exit status."""
    flags = ["--source", str(source), "--output", str(output), *more, *ALWAYS]
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
