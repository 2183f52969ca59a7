"""Show what runs have committed, follow one, verify it, list failures, or retry failed images.

    python -m jobs.inspect_run OUTPUT [--watch | --verify | --failures | --retry-failed | --clean]

OUTPUT is the output folder of `segment_dataset`, or one `run=...` folder in it.
"""

import argparse
import logging

from infra import log as logs
from jobs import command_line
from jobs.console import print_json
from pipeline.store.url import Url

log = logging.getLogger(__name__)

ACTIONS = {
    "--watch": "follow the run that is being worked on, also from another machine; ends with it",
    "--verify": "read every part again; exit status 1 when anything is wrong",
    "--failures": "print key, error code and detail of every failed row, as one JSON line each",
    "--retry-failed": "remove failed rows from their parts: the next run of the same command does them again",
    "--clean": "delete temporary objects of dead processes, and all leases but the latest",
}
"""Flags and their help; without a flag, a JSON line shows the status of each run."""
WATCH_S = 5.0
"""Interval of the lines of `--watch`, seconds."""
ALONE_PARTS = 500
"""Most parts that are verified in this process: more take longer than Ray's start."""
START_LIMIT_S = 300.0
"""Longest time that `--watch` waits for a submitted job to begin its run, seconds."""


def inspect_run(run_url: Url, action: str | None) -> int:
    """Apply an action of `ACTIONS` to a run, or print its status for None; returns the exit status."""
    from pipeline.run import inspection, watch

    run = {"run": str(run_url)}
    if action == "--watch":
        for line in watch.follow_run(run_url, every_s=WATCH_S):
            log.info("%s", line)
        print_json(inspection.run_status(run_url))
    elif action == "--verify":
        problems = count_problems(run_url)
        print_json(run | {"problems": problems})
        return int(problems > 0)
    if action == "--failures":
        for row in inspection.failed_rows(run_url):
            print_json(row)
    elif action == "--retry-failed":
        removed = inspection.retry_failed_rows(run_url)
        print_json(run | {"to_retry": removed})
        log.info("run the same segment_dataset command again to retry %d row(s)", removed)
    elif action == "--clean":
        print_json(run | {"removed": inspection.clean_run(run_url)})
    else:
        print_json(inspection.run_status(run_url))
    return 0


def count_problems(run_url: Url) -> int:
    """Verify a run, on the workers of a cluster if it is large; returns the number of problems."""
    from pipeline.run import inspection, parts

    if len(parts.list_parts(run_url)) <= ALONE_PARTS:
        return inspection.count_problems(run_url)
    from infra import session
    from pipeline.run import flow

    with session.connect():
        return inspection.count_problems(run_url, flow.shuffle)


def inspect_runs(args: argparse.Namespace) -> int:
    """Apply the action to every run of an output; returns the largest exit status."""
    from pipeline.run import inspection, watch

    output = Url(args.output)
    urls = (
        watch.wait_for_runs(output, limit_s=START_LIMIT_S) if args.action == "--watch" else inspection.run_urls(output)
    )
    return max(inspect_run(url, args.action) for url in urls)


def main(argv: list[str] | None = None) -> int:
    """Parse, inspect, and turn errors into a message and an exit status."""
    logs.configure()
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("output", metavar="OUTPUT", help="output folder, or one run= folder in it")
    actions = parser.add_mutually_exclusive_group()
    for flag, text in ACTIONS.items():
        actions.add_argument(flag, dest="action", action="store_const", const=flag, help=text)
    args = parser.parse_args(argv)
    return command_line.exit_status(lambda: inspect_runs(args))


if __name__ == "__main__":
    command_line.leave(main())
