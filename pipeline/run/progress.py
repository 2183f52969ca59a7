"""Progress of a run at one moment: the content of `_run/progress.json`, and the line that people read.

The driver writes the object every few seconds, and anyone who can read the output follows the run by it: `inspect_run
--watch` does, also while the driver runs on another machine.
"""

import json
import logging
import time
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

from pipeline.errors import InputError, StorageError
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

BAR_CELLS = 24
STARTING, WORKING, CLOSING = "starting", "working", "closing"
"""Phases of a driver: Ray and the workers start, images are worked on, manifest and report are written."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Progress of a run at one moment, with the rows that earlier drivers committed."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    """How the file is checked that is read back: anyone who can write to the output can write it."""

    time: str
    """UTC, ISO 8601, for people: the clocks of two machines are never compared."""
    phase: str = STARTING
    planned: int | None = None
    """Rows of the run; None while the number is unknown before reading."""
    done: int = 0
    """Images that have passed the last stage before the commit, committed ones included."""
    committed: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    """Committed failure rows by error code."""
    images_per_s: float = 0.0
    """Images done by this driver per second, since its first one: Ray's start and that of the workers do not count."""
    eta_s: float | None = None
    """Seconds left at this rate; None without a rate or a planned number."""
    bottleneck: str | None = None
    """Stage whose workers were busiest of late; None before the first image."""
    bottleneck_busy: float = 0.0
    """Busy share of its workers, 0 to 1."""
    worker_deaths: int = 0
    """Deaths of workers, counted per key in flight."""
    stage_images: dict[str, int] = field(default_factory=dict)
    """Images that each stage has finished under this driver."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Busy seconds of each stage under this driver, summed over its workers."""

    def line(self) -> str:
        """One line: `[####] done 80/101 (committed 64), 9.3 images/s, ETA 4 s, 1 failed, bottleneck refine 97%`."""
        texts = [f"done {self.done}/{'?' if self.planned is None else self.planned} (committed {self.committed})"]
        if self.planned is not None:
            texts[0] = f"{bar(self.done / max(self.planned, 1))} {texts[0]}"
        texts.append(f"{self.images_per_s:.1f} images/s")
        if self.planned is not None:
            texts.append(f"ETA {'?' if self.eta_s is None else short_duration(self.eta_s)}")
        texts.append(self._failures())
        if self.worker_deaths:
            texts.append(f"{self.worker_deaths} suspect(s) of killing a worker")
        if self.phase == WORKING and self.bottleneck:
            return ", ".join([*texts, f"bottleneck {self.bottleneck} {self.bottleneck_busy:.0%}"])
        return ", ".join([*texts, self.phase])

    def _failures(self) -> str:
        codes = ", ".join(f"{count} {code}" for code, count in sorted(self.failed.items()))
        return f"{sum(self.failed.values())} failed{f': {codes}' if codes else ''}"


def utc_now() -> str:
    """UTC to the second, ISO 8601, for people."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def bar(share: float) -> str:
    """Progress bar of 24 cells, e.g. `[######------------------]`."""
    full = round(BAR_CELLS * min(share, 1.0))
    return f"[{'#' * full}{'-' * (BAR_CELLS - full)}]"


def short_duration(seconds: float) -> str:
    """Format seconds in at most two units, without decimals: 12 s, 4 min 05 s, 3 h 07 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes_left:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def progress_url(run_url: Url) -> Url:
    """URL of a run's progress."""
    return run_url / "_run/progress.json"


def write_progress(run_url: Url, snapshot: Snapshot) -> None:
    """Replace `_run/progress.json`; a store that refuses costs a warning, never the run."""
    try:
        objects.put(progress_url(run_url), json.dumps(asdict(snapshot)).encode())
    except StorageError as error:
        log.warning("could not write the progress, trying again: %s", error)


def read_progress(run_url: Url) -> Snapshot | None:
    """Latest progress of a run; None when no driver has written one, or one of another version or of other types."""
    try:
        return TypeAdapter(Snapshot).validate_json(objects.read_bytes(progress_url(run_url), max_bytes=1 << 20))
    except (FileNotFoundError, InputError, ValueError):
        return None
