"""Inspection of committed runs: how far they are, what is wrong with them, and two repairs.

In: the URL of an output or a run. Out: plain data, one mapping per printed line. `retry_failed_rows` and
`clean_run` change the run, under its lease; nothing else does.
"""

import logging
import re
from collections.abc import Iterator

from pipeline.errors import ConfigError
from pipeline.redact import redact
from pipeline.run import manifest, verify
from pipeline.store import objects
from pipeline.store.lease import Lease

log = logging.getLogger(__name__)

REPAIR_LEASE_S = 30.0
"""A repair silent for this long has lost the run, seconds."""
LITTER = (".tmp-", ".probe-")
"""Beginnings of the names of objects that dead processes leave."""


def run_urls(output: str) -> list[str]:
    """URLs of the runs in an output folder; the URL itself where it names a run.

    Raises:
        ConfigError: the folder has none.
    """
    if "run=" in output.rstrip("/").rpartition("/")[2]:
        return [output.rstrip("/")]
    names = {match[0] for file in objects.list_files(output) if (match := re.match(r"run=[0-9a-f]+", file.path))}
    if not names:
        raise ConfigError(f"no run in {redact(output)}", hint="give the --output of a segment_dataset job")
    return [objects.join(output, name) for name in sorted(names)]


def run_status(run_url: str) -> dict[str, object]:
    """Parts and rows, and of a finished run the rows by status."""
    parts = manifest.read_footers(run_url)
    done = manifest.read_manifest(run_url)
    status = {"run": redact(run_url), "finished": done is not None, "parts": len(parts)}
    status["rows"] = sum(part.rows for part in parts)
    if done:
        status |= {"ok": done.ok, "failed": done.failed, "error_codes": done.error_codes}
    return status


def count_problems(run_url: str) -> int:
    """Read every part again and log what is wrong; returns the number of problems."""
    count = 0
    for problem in verify.run_problems(run_url):
        count += 1
        log.error("%s", problem)
    return count


def failed_rows(run_url: str) -> Iterator[dict[str, object]]:
    """Key, code and detail of every failed row, by key."""
    for key, code, detail in manifest.read_failures(run_url):
        yield {"key": key, "error_code": code, "error_detail": detail}


def retry_failed_rows(run_url: str) -> int:
    """Remove failed rows from their parts, so that the run's own command does them again; returns how many."""
    with Lease(run_url, lease_s=REPAIR_LEASE_S, command="inspect_run --retry-failed"):
        if not manifest.read_failures(run_url):
            return 0
        manifest.reopen_run(run_url)
        return manifest.forget_failed_rows(run_url)


def clean_run(run_url: str) -> int:
    """Delete temporary and probe objects, and all leases but the latest; returns how many objects."""
    with Lease(run_url, lease_s=REPAIR_LEASE_S, command="inspect_run --clean"):
        names = [file.path for file in objects.list_files(run_url)]
        owners = sorted(name for name in names if name.startswith("_run/owner-"))
        litter = [name for name in names if name.rpartition("/")[2].startswith(LITTER)]
        for name in [*litter, *owners[:-1]]:
            objects.delete(objects.join(run_url, name))
    return len(litter) + len(owners) - 1
