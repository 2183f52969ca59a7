"""Count the classes of masks in zones, such as fields: hectares, shares, confidence and means of bands of each class.

    python -m jobs.zones s3://bucket/out/run=0123456789ab --zones fields.gpkg --zones.id parcel
    python -m jobs.zones mask.tif --zones fields.geojson --output statistics --classes farmland

No network runs: masks of the run are read again, and its rasters where zones are. Writes zones.parquet and
zones_map.parquet in place of those of former zones. The same command again does nothing.
"""

import argparse
import logging

from infra import log as logs
from jobs import command_line, console

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Count; the exit status is 1 when a raster of a run is left out because windows of it failed."""
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("run", metavar="RUN", help="folder of a run, .../run=<12 digits>, or a GeoTIFF of class ids")
    parser.add_argument("--zones", required=True, metavar="FILE", help="GeoParquet, GeoPackage, GeoJSON or Shapefile")
    parser.add_argument(
        "--zones.id", dest="id", metavar="NAME", help="attribute that names each; unset: numbers from 1"
    )
    parser.add_argument(
        "--zones.no-bands", dest="bands", action="store_false", help="no means of bands: reads no raster"
    )
    parser.add_argument("--holes", action="store_true", help="rasters with failed windows too: failed_pixels")
    parser.add_argument("--output", help="folder for the statistics of a GeoTIFF")
    parser.add_argument("--classes", help="class map of a GeoTIFF: name or YAML file; unset: ids are names")
    args = parser.parse_args(argv)
    logs.configure()
    return command_line.exit_status(lambda: count_zones(args))


def count_zones(args: argparse.Namespace) -> int:
    """Count what is left; returns the exit status."""
    from jobs.from_masks import make, open_masks
    from pipeline.config import PolygonsConfig, ZonesConfig

    logs.configure()  # again: importing Ray has set up its own loggers
    with open_masks(args.run, args.output, args.classes, holes=args.holes) as opened:
        bands = args.bands and args.output is None  # a GeoTIFF of classes has no bands of its own
        made = make(opened, PolygonsConfig(), ZonesConfig(file=args.zones, id=args.id, bands=bands))
    facts = {"output": str(opened.masks.output), "left_out": len(opened.with_holes)}
    console.print_json(facts | {"rasters": len(opened.assemblies)} | made.facts())
    return int(bool(opened.with_holes))


if __name__ == "__main__":
    command_line.leave(main())
