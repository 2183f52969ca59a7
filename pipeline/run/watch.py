"""Following a run that another process works on, by its lease and its progress in the output."""

import logging
import time
from collections.abc import Iterator

from pipeline.errors import ConfigError, JobError, NothingThere
from pipeline.run import inspection, manifest
from pipeline.run.progress import read_progress
from pipeline.store.lease import Owner, latest_owner
from pipeline.store.url import Url

log = logging.getLogger(__name__)

POLL_S = 2.0
"""Interval of looking for a run that has not begun, seconds."""


def wait_for_runs(output: Url, *, limit_s: float) -> list[Url]:
    """The run of an output that a driver holds, else the unfinished one, else all; waits while there is none.

    Raises:
        ConfigError: no run within `limit_s` seconds, or several to choose from.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            urls = inspection.run_urls(output)
            break
        except (NothingThere, ConfigError):
            if time.monotonic() > deadline:
                raise
        log.info("no run in %s yet", output)
        time.sleep(POLL_S)
    unfinished = [url for url in urls if manifest.read_manifest(url) is None]
    held = [url for url in unfinished if (owner := latest_owner(url)) and not owner.released]
    if len(candidates := held or unfinished) > 1:
        names = ", ".join(url.name for url in candidates)
        raise ConfigError(f"{len(candidates)} unfinished runs in {output}", hint=f"give one of them: {names}")
    return candidates or urls


def follow_run(run_url: Url, *, every_s: float) -> Iterator[str]:
    """Lines of progress of a run, one every `every_s` seconds, until the run is finished.

    Raises:
        JobError: no driver works on the run: it was stopped, or has given no sign of life for a lease.
    """
    seen, seen_at = None, time.monotonic()
    while manifest.read_manifest(run_url) is None:
        owner = latest_owner(run_url)
        if owner != seen:
            seen, seen_at = owner, time.monotonic()
        if (gone := _gone(owner, time.monotonic() - seen_at)) and manifest.read_manifest(run_url) is None:
            raise JobError(f"{run_url}: {gone}", hint="the command that began the run continues it")
        snapshot = read_progress(run_url)
        yield snapshot.line() if snapshot else "no progress yet"
        time.sleep(every_s)


def _gone(owner: Owner | None, silent_s: float) -> str | None:
    """Why nobody works on a run; None while its driver lives.

    Args:
        owner: latest record of the lease.
        silent_s: seconds for which this record has been the latest.
    """
    if owner is None:
        return "no driver has worked on this run"
    if owner.released:
        return f"its driver ended before the run was finished: {owner}"
    if silent_s > owner.lease_s:
        return f"its driver has given no sign of life for {silent_s:.0f} s: {owner}"
    return None
