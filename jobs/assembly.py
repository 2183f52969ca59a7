"""Assembly of the masks of rasters, as the last step of `segment` and as the job `assemble`.

assemble_run(url, ...) -> Assembled     joins what is left, on Ray; starts no Ray when nothing is
"""

import logging
from dataclasses import dataclass, field
from functools import partial

from infra import session
from pipeline.assemble.assemble import (
    delete_blocks,
    do_join,
    do_squares,
    group_squares,
    plan_work,
    renew_items,
    squares_left,
)
from pipeline.assemble.collection import ITEMS, write_collection
from pipeline.assemble.stac import COLLECTION
from pipeline.classes import ClassMap
from pipeline.run import flow, parts
from pipeline.run.ledger import MAX_WORKER_DEATHS
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Assembled:
    """Masks of the rasters of a run."""

    cogs: int = 0
    """Rasters whose COG and item are there."""
    cogs_now: int = 0
    """Those that this call has joined."""
    with_holes: dict[str, int] = field(default_factory=dict)
    """Windows that failed or are missing, of rasters without a COG, by the start of their keys."""

    def facts(self) -> dict[str, object]:
        """Fields of a closing JSON line."""
        return {"cogs": self.cogs, "cogs_now": self.cogs_now, "without_cog": len(self.with_holes)}


def assemble_run(run_url: Url, classes: ClassMap, *, holes: bool, facts: dict[str, str]) -> Assembled:
    """Join the masks of every raster that has none yet, and write the catalogue; the same command again continues.

    Args:
        run_url: folder of the run, whose windows are committed.
        classes: class map of the run.
        holes: join rasters with windows that failed or are missing too.
        facts: properties of the items: fingerprints and version.
    """
    todo = plan_work(run_url, holes=holes)
    if todo.assemblies or todo.outdated:
        objects.delete(run_url / COLLECTION)  # written last: what is killed meanwhile is not taken for complete
    if todo.assemblies:
        squares = squares_left(run_url, todo.assemblies)
        log.info("joining %d mask(s), %d square(s) are left", len(todo.assemblies), len(squares))
        with session.connect():
            if squares:
                compress = partial(do_squares, run_url=run_url)
                flow.run_tasks("squares", group_squares(squares), compress, deaths=MAX_WORKER_DEATHS)
            join = partial(do_join, run_url=run_url, classes=classes, facts=facts)
            flow.run_tasks("join", todo.assemblies, join, deaths=MAX_WORKER_DEATHS)
    delete_blocks(run_url)
    if todo.outdated:
        log.info("writing %d item(s) and style(s) anew; their masks stay", len(todo.outdated))
        renew_items(todo.outdated, run_url=run_url, classes=classes, facts=facts)
    if not objects.exists(run_url / COLLECTION) or not objects.exists(run_url / ITEMS):
        write_collection(run_url, classes, facts=facts)
    for uri, windows in list(todo.with_holes.items())[:3]:
        text = "no COG of %s: %d of its windows failed or are missing; --raster.holes writes it without them"
        log.warning(text, uri, windows)
    finished = todo.done + len(todo.outdated) + len(todo.assemblies)
    return Assembled(finished, len(todo.assemblies), todo.with_holes)


def item_facts(run_url: Url, part: str) -> dict[str, str]:
    """Properties of the items of a run, from a row of one of its parts: fingerprints of the run and its network."""
    table = parts.read_columns(run_url, part, ["config_fp", "model_fp"])
    return {"atrous:run": table["config_fp"][0].as_py(), "atrous:model": table["model_fp"][0].as_py()}
