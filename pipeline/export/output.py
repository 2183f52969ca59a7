"""The output folder of an export: whose it is, what became of each row, and `_export.json`, which says both.

The file is written before anything else, so a folder of other files is never written into, and an export is continued
by the same command: an object that is there is complete, for every put is atomic.
"""

import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import ConfigError, NothingThere
from pipeline.export.survey import Survey
from pipeline.run.inspection import LITTER
from pipeline.store import objects
from pipeline.store.url import Url

Form = Literal["png", "hf", "coco", "geotiff"]

STATE = "_export.json"
THREADS = 16
"""Concurrent writes: small objects wait on latency, not bandwidth."""
WAITING = 2 * THREADS
"""Masks in memory at most."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row, or of all rows of a part."""

    state: Literal["written", "there", "left_out"]
    """`there`: an earlier export had written it."""
    rows: int = 1
    reason: str = ""
    """Why a row is left out: a stable name."""
    key: str = ""
    """Key of a row that is left out."""


@dataclass(slots=True)
class Tally:
    """Counts of an export."""

    written: int = 0
    there: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    """First key that was left out for each reason."""

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        if outcome.state == "left_out":
            self.left_out[outcome.reason] += outcome.rows
            self.first.setdefault(outcome.reason, outcome.key)
        elif outcome.state == "there":
            self.there += outcome.rows
        else:
            self.written += outcome.rows


def open_output(output: Url, run: Survey, form: Form) -> bool:
    """Take a folder for an export; True when this export has been begun there.

    Raises:
        ConfigError: the folder is inside the run, holds files that are no export, or that of another run or form.
    """
    if f"{output.place}/".startswith(f"{run.url.place}/"):
        raise ConfigError(f"--output {output} lies inside the run", hint="choose a folder beside it")
    if not objects.exists(output / STATE):
        refuse_other_files(output)
        write_state(output, run, form, Tally(), finished=False)
        return False
    with objects.naming_damage(output / STATE, hint="delete the folder and export again"):
        state = json.loads(objects.read_bytes(output / STATE))
        run_name, other = state["run"], state["to"]
    if (run_name, other) != (run.url.name, form):
        found = f"{output} holds the export of {run_name} to {other}"
        raise ConfigError(f"{found}, not of {run.url.name} to {form}", hint="give another --output")
    return True


def refuse_other_files(output: Url) -> None:
    """Raise ConfigError when a folder holds anything but what a killed write leaves."""
    try:
        paths = (file.path for file in objects.list_files(output))
        other = next((path for path in paths if not path.rpartition("/")[2].startswith(LITTER)), None)
    except NothingThere:
        return
    if other is not None:
        raise ConfigError(f"{output} is not empty and holds no {STATE}: {other}", hint="give an empty --output")


def write_state(output: Url, run: Survey, form: Form, tally: Tally, *, finished: bool) -> None:
    """Write `_export.json`: run, form, classes and counts; `finished` once every row of a finished run is exported."""
    state: dict[str, Any] = {
        "run": run.url.name,
        "to": form,
        "finished": finished,
        "rows": run.rows,
        "exported": tally.written + tally.there,
        "failed": run.failed,
        "left_out": dict(tally.left_out),
        "classes": run.classes.model_dump(mode="json"),
    }
    objects.put(output / STATE, json.dumps(state, indent=1, ensure_ascii=False).encode())


def is_there(url: Url, *, size: int | None = None) -> bool:
    """True when an object exists, with `size` bytes if given."""
    try:
        return objects.info(url).size == size or size is None
    except FileNotFoundError:
        return False


def names_in(url: Url) -> set[str]:
    """Names of the objects of a folder; empty when there is none."""
    try:
        return {file.path for file in objects.list_files(url)}
    except NothingThere:
        return set()


def delete_all(urls: Iterable[Url]) -> None:
    """Delete objects, `THREADS` at a time."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(objects.delete, urls))


def delete_litter(output: Url) -> None:
    """Delete what killed writes left on a local disk; other stores leave nothing."""
    if output.scheme == "file":
        delete_all(output / name for name in names_in(output) if name.rpartition("/")[2].startswith(LITTER))
