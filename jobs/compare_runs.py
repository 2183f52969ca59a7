"""Compare the masks of two runs over rasters: hectares that changed from one class to another, in all and per zone.

    python -m jobs.compare_runs out/run=SPRING out/run=AUTUMN --zones fields.gpkg --zones.id parcel --output change
    python -m jobs.compare_runs 2012.tif 2020.tif --output change --classes farmland

Masks are compared where they lie over each other, on the grid of the first run; those of the second run are brought to
it, each pixel with the class at its centre. Writes tables, polygons of change and a page. The same command again does
nothing.
"""

import argparse
import logging

from infra import log as logs
from jobs import command_line, console

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Compare; returns the exit status."""
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("before", metavar="BEFORE", help="folder of a run over rasters, or a GeoTIFF of class ids")
    parser.add_argument("after", metavar="AFTER", help="the later one")
    parser.add_argument("--output", required=True, help="folder for tables, polygons and page")
    parser.add_argument("--zones", metavar="FILE", help="GeoParquet, GeoPackage, GeoJSON or Shapefile")
    parser.add_argument(
        "--zones.id", dest="id", metavar="NAME", help="attribute that names each; unset: numbers from 1"
    )
    parser.add_argument("--min-ha", type=float, default=0.0, help="leave out smaller polygons, hectares; 0 keeps all")
    parser.add_argument("--simplify-px", type=float, default=0.0, help="tolerance of simplification, pixels")
    parser.add_argument("--classes", help="class map of two GeoTIFFs: name or YAML file; a run has its own")
    args = parser.parse_args(argv)
    logs.configure()
    return command_line.exit_status(lambda: compare_runs(args))


def compare_runs(args: argparse.Namespace) -> int:
    """Compare what is not compared yet; returns the exit status."""
    from jobs.comparison import compare
    from pipeline.config import PolygonsConfig, ZonesConfig, checked
    from pipeline.store.url import Url

    logs.configure()  # again: importing Ray has set up its own loggers
    polygons = checked(PolygonsConfig, min_ha=args.min_ha, simplify_px=args.simplify_px)
    zones = ZonesConfig(file=args.zones, id=args.id)
    places = Url(args.before), Url(args.after), Url(args.output)
    facts = compare(*places, classes=args.classes, polygons_cfg=polygons, zones_cfg=zones)
    console.print_json(facts)
    return 0


if __name__ == "__main__":
    command_line.leave(main())
