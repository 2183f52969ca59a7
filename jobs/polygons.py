"""Write the masks of rasters as polygons: one GeoParquet file for each raster, with class, hectares and confidence.

    python -m jobs.polygons s3://bucket/out/run=0123456789ab --min-ha 0.01
    python -m jobs.polygons mask.tif --output polygons --classes farmland

RUN is a run over rasters: its polygons go beside its masks, as with --polygons.min-ha of `segment`. A GeoTIFF of class
ids that another program made is read as well; --output is then needed. The same command again does nothing.
"""

import argparse
import logging

from infra import log as logs
from jobs import command_line, console

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Make polygons; the exit status is 1 when a raster of a run has none because windows of it failed."""
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("run", metavar="RUN", help="folder of a run, .../run=<12 digits>, or a GeoTIFF of class ids")
    parser.add_argument("--min-ha", type=float, default=0.0, help="leave out smaller polygons, hectares; 0 keeps all")
    parser.add_argument("--simplify-px", type=float, default=0.0, help="tolerance of simplification, pixels")
    parser.add_argument("--holes", action="store_true", help="rasters with failed windows too, without polygons there")
    parser.add_argument("--output", help="folder for the polygons of a GeoTIFF")
    parser.add_argument("--classes", help="class map of a GeoTIFF: name or YAML file; unset: ids are names")
    args = parser.parse_args(argv)
    logs.configure()
    return command_line.exit_status(lambda: make_polygons(args))


def make_polygons(args: argparse.Namespace) -> int:
    """Make what is left; returns the exit status."""
    from jobs.from_masks import make, open_masks
    from pipeline.config import PolygonsConfig, ZonesConfig, checked

    logs.configure()  # again: importing Ray has set up its own loggers
    cfg = checked(PolygonsConfig, min_ha=args.min_ha, simplify_px=args.simplify_px)
    with open_masks(args.run, args.output, args.classes, holes=args.holes) as opened:
        made = make(opened, cfg, ZonesConfig())
    facts = {"output": str(opened.masks.output), "left_out": len(opened.with_holes)}
    console.print_json(facts | made.facts())
    return int(bool(opened.with_holes))


if __name__ == "__main__":
    command_line.leave(main())
