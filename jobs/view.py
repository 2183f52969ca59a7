"""Look at a run in a browser: its images with their masks, filtered, sorted and one by one.

    python -m jobs.view demo/out

RUN is a `run=...` folder, or the output folder of `segment_dataset` with one run in it, in any store; the run may still
go on. The page is served on this machine alone, under a URL with a token, and only reads. Ctrl-C ends it. On another
machine: `ssh -L 8181:localhost:8181 <machine>`, and open the URL here.
"""

import argparse
import errno
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

from infra import log as logs
from jobs import command_line
from pipeline.errors import ConfigError
from pipeline.store.url import Url

log = logging.getLogger(__name__)

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atrous" / "view"


def view(args: argparse.Namespace) -> int:
    """Serve the one run at `args.run` until interrupted; returns the exit status."""
    from pipeline.optional import package
    from pipeline.run import inspection

    with package("starlette, uvicorn and DuckDB", extra="view", needed_by="the page"):
        import uvicorn

        from pipeline.view import access, server
        from pipeline.view.opened import OpenedRun
    for flag in ("compare", "labels", "cache"):
        if getattr(args, flag) == "":
            raise ConfigError(f"--{flag} is empty", hint="name a place, or leave the option out")
    if not 0 <= args.cache_gib < float("inf"):
        raise ConfigError(f"--cache-gib {args.cache_gib} is no size", hint="give 0 or more")
    shared = {"cache": Path(args.cache), "max_cache_bytes": int(args.cache_gib * 2**30)}
    with listen(args.host, args.port) as listening:
        run = OpenedRun(inspection.one_run_url(Url(args.run)), source=args.source or (), labels=args.labels, **shared)
        if args.compare:
            run.compare_with(OpenedRun(inspection.one_run_url(Url(args.compare)), source=(), labels=None, **shared))
        port, token, here = listening.getsockname()[1], access.new_token(), args.host in access.LOOPBACK
        if not here:
            log.warning("--host %s: whoever reaches this machine and knows the token sees the images", args.host)
        app = server.create_app(run, token=token, port=port, any_host=not here)
        # Not logged: a log is kept and sent on, and its tokens are redacted.
        print(f"open http://{'localhost' if here else args.host}:{port}/?token={token}", flush=True)
        run.start()
        try:
            with suppress(KeyboardInterrupt):
                settings = uvicorn.Config(app, log_level="warning", access_log=False, **server.LIMITS)
                uvicorn.Server(settings).run(sockets=[listening])
        finally:
            run.close()
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Socket of the page; raises ConfigError where the port is taken or the address is not this machine's."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:  # the latter for a port beyond 65535
        is_port = isinstance(error, OverflowError) or error.errno in (errno.EADDRINUSE, errno.EACCES)
        hint = f"give another {'--port; 0 takes any that is free' if is_port else '--host, an address of this machine'}"
        raise ConfigError(
            f"cannot listen on --host {host} --port {port}: {getattr(error, 'strerror', None) or error}", hint=hint
        ) from error


def main(argv: list[str] | None = None) -> int:
    """Parse, serve, and turn errors into a message and an exit status."""
    logs.configure()
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("run", metavar="RUN", help="a run= folder, or an output folder with one run in it")
    parser.add_argument("--compare", metavar="RUN", help="another run of the same images, shown beside the first")
    parser.add_argument("--labels", metavar="URL", help="labels beside the masks; unset: those of an evaluation")
    source = "where the images are now; unset: where the run read them"
    parser.add_argument("--source", nargs="+", metavar="URL", help=source)
    parser.add_argument("--port", type=int, default=8181, help="port of the page; 0 takes any that is free")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others than this machine's warn")
    parser.add_argument("--cache", default=str(CACHE), metavar="FOLDER", help="folder for index, thumbnails and tiles")
    parser.add_argument("--cache-gib", type=float, default=1.0, help="largest size of thumbnails and tiles, GiB")
    args = parser.parse_args(argv)
    return command_line.exit_status(lambda: view(args))


if __name__ == "__main__":
    command_line.leave(main())
