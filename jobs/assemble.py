"""Join the masks of a run over rasters: one Cloud Optimized GeoTIFF of classes and one STAC item for each raster.

    python -m jobs.assemble s3://bucket/out/run=0123456789ab

`segment` does this as its last step; this job does it alone, for a run whose windows are committed. The same command
again does nothing. Rasters with failed windows are left out unless --holes is given.
"""

import logging

from infra import log as logs
from jobs import command_line, console
from pipeline.errors import ConfigError
from pipeline.store.url import Url

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Assemble a run; the exit status is 1 when a raster has no COG because windows of it failed."""
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("run", help="folder of a run: .../run=<12 digits>")
    parser.add_argument("--holes", action="store_true", help="join rasters with failed windows too, without data there")
    args = parser.parse_args(argv)
    logs.configure()
    return command_line.exit_status(lambda: assemble(Url(args.run), holes=args.holes))


def assemble(run_url: Url, *, holes: bool) -> int:
    """Join what is left under a lease, so that no driver of the run writes at the same time."""
    from jobs.assembly import assemble_run, item_facts
    from pipeline.run import parts
    from pipeline.store.lease import Lease

    logs.configure()  # again: importing Ray has set up its own loggers
    names = parts.list_parts(run_url)
    if not names:
        raise ConfigError(f"{run_url} has no parts", hint="give the folder of a run: .../run=<12 digits>")
    classes = parts.read_classes(run_url, names[0])
    with Lease(run_url, lease_s=30.0, command=command_line.command()):
        assembled = assemble_run(run_url, classes, holes=holes, facts=item_facts(run_url, names[0]))
    status = int(bool(assembled.with_holes))
    console.print_json({"run": str(run_url), **assembled.facts(), "exit_status": status})
    return status


if __name__ == "__main__":
    command_line.leave(main())
