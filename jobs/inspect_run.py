"""Look at what runs have committed, check it, list failures, or give failed images another chance.

    python -m jobs.inspect_run OUTPUT [--verify | --failures | --retry-failed | --clean]

OUTPUT is the output folder of `segment_dataset`, or one `run=...` folder in it.
"""

import argparse
import json
import logging
import re

from infra import log as logs
from jobs import command_line
from pipeline.errors import ConfigError
from pipeline.redact import redact
from pipeline.run import manifest, verify
from pipeline.store import objects
from pipeline.store.lease import Lease

log = logging.getLogger(__name__)

_LEASE_S = 30.0


def runs_of(output: str) -> list[str]:
    """URLs of the runs in an output folder, or of the one run it is.

    Raises:
        ConfigError: when there is none.
    """
    if "run=" in output.rstrip("/").rpartition("/")[2]:
        return [output.rstrip("/")]
    names = {match[0] for found in objects.list_files(output) if (match := re.match(r"run=[0-9a-f]+", found.path))}
    if not names:
        raise ConfigError(f"no run in {redact(output)}", hint="give the --output of a segment_dataset job")
    return [objects.join(output, name) for name in sorted(names)]


def show(run_url: str) -> int:
    """One JSON line: how far the run is."""
    parts = manifest.footers(run_url)
    done = manifest.read_manifest(run_url)
    said = {"run": redact(run_url), "finished": done is not None, "parts": len(parts)}
    said["rows"] = sum(part.rows for part in parts)
    if done:
        said |= {"ok": done.ok, "failed": done.failed, "error_codes": done.error_codes}
    print(json.dumps(said))
    return 0


def check(run_url: str) -> int:
    """Read everything again; status 1 when anything is wrong."""
    count = 0
    for problem in verify.run_problems(run_url):
        count += 1
        log.error("%s", problem)
    print(json.dumps({"run": redact(run_url), "problems": count}))
    return int(count > 0)


def list_failures(run_url: str) -> int:
    """One JSON line per failed row."""
    for key, code, detail in manifest.failures(run_url):
        print(json.dumps({"key": key, "error_code": code, "error_detail": detail}))
    return 0


def retry_failed(run_url: str) -> int:
    """Take failed rows out of their parts: the next run of the same command does them again."""
    with Lease(run_url, lease_s=_LEASE_S, command="inspect_run --retry-failed"):
        removed = 0
        if manifest.failures(run_url):
            manifest.reopen(run_url)
            removed = manifest.forget_failed_rows(run_url)
    print(json.dumps({"run": redact(run_url), "to_retry": removed}))
    log.info("run the same segment_dataset command again to retry %d row(s)", removed)
    return 0


def clean(run_url: str) -> int:
    """Remove what dead processes left: temporary and probe objects, and all but the latest owner."""
    with Lease(run_url, lease_s=_LEASE_S, command="inspect_run --clean"):
        names = [found.path for found in objects.list_files(run_url)]
        owners = sorted(name for name in names if name.startswith("_run/owner-"))
        litter = [name for name in names if name.rpartition("/")[2].startswith((".tmp-", ".probe-"))]
        for name in [*litter, *owners[:-1]]:
            objects.delete(objects.join(run_url, name))
    print(json.dumps({"run": redact(run_url), "removed": len(litter) + len(owners) - 1}))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Do one thing with every run of an output."""
    logs.configure()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUTPUT", help="output folder, or one run= folder in it")
    verb = parser.add_mutually_exclusive_group()
    for flag, action in {
        "--verify": check,
        "--failures": list_failures,
        "--retry-failed": retry_failed,
        "--clean": clean,
    }.items():
        help_text = (action.__doc__ or "").splitlines()[0]
        verb.add_argument(flag, dest="action", action="store_const", const=action, default=show, help=help_text)
    args = parser.parse_args(argv)
    return command_line.exit_status(lambda: max(args.action(url) for url in runs_of(args.output)))


if __name__ == "__main__":
    command_line.leave(main())
