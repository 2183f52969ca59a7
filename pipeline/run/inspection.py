"""Inspection of runs: progress, verification of parts, failed rows, and two repairs.

In: the URL of an output or a run. Out: plain data, one mapping per printed line. `retry_failed_rows` and
`clean_run` change the run, under its lease; nothing else does.
"""

import logging
import re
from collections.abc import Iterator

from pipeline.errors import ConfigError
from pipeline.run import manifest, verify
from pipeline.run.footers import read_footers
from pipeline.run.verify import Shuffle, shuffle_here
from pipeline.store import objects
from pipeline.store.lease import Lease
from pipeline.store.url import Url

log = logging.getLogger(__name__)

REPAIR_LEASE_S = 30.0
"""Lease time of a repair, seconds; a repair that does not renew its lease loses the run."""
LITTER = (".tmp-", ".probe-")
"""Name prefixes of objects that killed processes leave behind."""


def run_urls(output: Url) -> list[Url]:
    """URLs of the runs in an output folder; `output` itself if it is a run.

    Raises:
        ConfigError: the folder has no run.
    """
    if "run=" in output.name:
        return [output]
    names = {match[0] for file in objects.list_files(output) if (match := re.match(r"run=[0-9a-f]+", file.path))}
    if not names:
        raise ConfigError(f"no run in {output}", hint="give the --output of a segment_dataset job")
    return [output / name for name in sorted(names)]


def one_run_url(output: Url) -> Url:
    """URL of the run in an output folder; `output` itself if it is a run.

    Raises:
        ConfigError: the folder has no run, or several.
    """
    urls = run_urls(output)
    if len(urls) > 1:
        names = ", ".join(url.name for url in urls)
        raise ConfigError(f"{len(urls)} runs in {output}: {names}", hint="give one of these folders")
    return urls[0]


def run_status(run_url: Url) -> dict[str, object]:
    """Parts and committed rows of a run; for a finished run also rows by status."""
    footers = read_footers(run_url)
    done = manifest.read_manifest(run_url)
    status = {"run": str(run_url), "finished": done is not None, "parts": len(footers)}
    status["rows"] = footers.totals.rows
    if done:
        status |= {"ok": done.ok, "failed": done.failed, "error_codes": done.error_codes}
    return status


def count_problems(run_url: Url, shuffle: Shuffle = shuffle_here) -> int:
    """Verify every part and log each problem; returns the number of problems."""
    count = 0
    for problem in verify.run_problems(run_url, shuffle):
        count += 1
        log.error("%s", problem)
    return count


def failed_rows(run_url: Url) -> Iterator[dict[str, object]]:
    """Key, code and detail of every failed row, by key."""
    for key, code, detail in manifest.read_failures(run_url, read_footers(run_url)):
        yield {"key": key, "error_code": code, "error_detail": detail}


def retry_failed_rows(run_url: Url) -> int:
    """Remove failed rows, so that the run's command segments them again; returns their number."""
    with Lease(run_url, lease_s=REPAIR_LEASE_S, command="inspect_run --retry-failed"):
        if not read_footers(run_url).totals.failed:
            return 0
        manifest.reopen_run(run_url)
        return manifest.forget_failed_rows(run_url)


def clean_run(run_url: Url) -> int:
    """Delete temporary and probe objects, and all leases but the latest; returns the number of objects."""
    with Lease(run_url, lease_s=REPAIR_LEASE_S, command="inspect_run --clean"):
        names = [file.path for file in objects.list_files(run_url)]
        owners = sorted(name for name in names if name.startswith("_run/owner-"))
        litter = [name for name in names if name.rpartition("/")[2].startswith(LITTER)]
        for name in [*litter, *owners[:-1]]:
            objects.delete(run_url / name)
    return len(litter) + len(owners) - 1
