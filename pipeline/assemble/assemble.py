"""Assembly of a run: what is left to join, and the two kinds of work that a cluster does for it.

In: a run whose windows are committed. Out: a COG, a style and a STAC item for each raster. All work is idempotent and
leaves the same bytes; an item is written last, so what has one is finished. An item of a raster that has got another
date, or of a run of an older version, is written anew without joining its mask again.
"""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.assemble.join import JoinedMask, join_mask
from pipeline.assemble.masks import RunMasks
from pipeline.assemble.plan import BLOCKS, SQUARE_PX, Assembly
from pipeline.assemble.qgis import raster_qml
from pipeline.assemble.squares import Square, write_squares
from pipeline.assemble.stac import counted, is_current, make_item
from pipeline.classes import ClassMap
from pipeline.errors import StorageError
from pipeline.store import objects
from pipeline.store.url import Url

ASSEMBLY_KEY = "atrous:assembly"
"""Property of an item: id of the assembly that it is of."""
_MOST_SQUARES = 64
"""Squares of a unit of work, so that small rasters keep all workers busy."""
_THREADS = 16
"""Concurrent reads of items: small reads wait on latency, not bandwidth."""


@dataclass(slots=True)
class Todo:
    """Work left of an assembly."""

    assemblies: list[Assembly] = field(default_factory=list)
    """Rasters without a finished item."""
    done: int = 0
    """Rasters whose COG and item are there and as they should be."""
    outdated: list[Assembly] = field(default_factory=list)
    """Rasters whose COG is there, but whose item or style is to be written anew."""
    with_holes: dict[str, int] = field(default_factory=dict)
    """Windows that failed or are not committed, of rasters that get no COG because of them, by the start of keys."""


def plan_work(run_url: Url, *, holes: bool) -> Todo:
    """Compare the rasters of a run with the items that are there.

    Args:
        run_url: folder of the run.
        holes: join rasters with windows that failed or are not committed too.

    Raises:
        ConfigError: the run is none of rasters.
    """
    todo = Todo()
    assemblies = RunMasks(run_url).assemblies()
    for assembly, state in zip(assemblies, _states(run_url, assemblies), strict=True):
        if assembly.holes and not holes:
            todo.with_holes[assembly.uri] = assembly.holes
        elif state == "done":
            todo.done += 1
        else:
            (todo.assemblies if state == "missing" else todo.outdated).append(assembly)
    return todo


def _states(run_url: Url, assemblies: Sequence[Assembly]) -> list[Literal["missing", "outdated", "done"]]:
    """State of the files of each assembly; items are read in threads."""
    there = {f"{folder}/{path}" for folder in ("masks", "items") for path in objects.list_below(run_url / folder)}

    def state(assembly: Assembly) -> Literal["missing", "outdated", "done"]:
        files = {f"masks/{assembly.name}.tif", f"items/{assembly.name}.json"}
        item = _read_item(run_url, assembly) if files <= there else None
        if item is None:
            return "missing"
        has_style = f"masks/{assembly.name}.qml" in there
        return "done" if has_style and is_current(item, assembly.raster) else "outdated"

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(state, assemblies))


def _read_item(run_url: Url, assembly: Assembly) -> dict[str, Any] | None:
    """Item of an assembly; None where it is damaged, or of another assembly."""
    try:
        item: dict[str, Any] = json.loads(objects.read_bytes(assembly.item_url(run_url)))
        properties = item["properties"]
        _ = properties["datetime"], properties["atrous:class_pixels"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return item if properties.get(ASSEMBLY_KEY) == assembly.id else None


def squares_left(run_url: Url, assemblies: Sequence[Assembly]) -> list[Square]:
    """Squares whose tiles are not there yet."""
    there = {run_url / BLOCKS / path for path in objects.list_below(run_url / BLOCKS)}
    return [
        Square(assembly, square)
        for assembly in assemblies
        for square in assembly.squares
        if assembly.block_url(run_url, square) not in there
    ]


def group_squares(squares: Iterable[Square]) -> list[tuple[Square, ...]]:
    """Units of work: squares that follow each other, together no larger than one whole square."""
    groups: list[tuple[Square, ...]] = []
    pixels = SQUARE_PX**2
    for square in squares:
        own = square.window.height * square.window.width
        if pixels + own > SQUARE_PX**2 or len(groups[-1]) == _MOST_SQUARES:
            groups.append(())
            pixels = 0
        groups[-1] += (square,)
        pixels += own
    return groups


def do_squares(group: Sequence[Square], *, run_url: Url) -> None:
    """Compress the tiles of some squares."""
    write_squares(run_url, group)


def do_join(assembly: Assembly, *, run_url: Url, classes: ClassMap, facts: dict[str, str]) -> None:
    """Join one raster, write its style and its item, and delete the tiles of its squares."""
    joined = join_mask(run_url, assembly, classes)
    write_item(assembly, joined, run_url=run_url, classes=classes, facts=facts)
    for square in assembly.squares:
        objects.delete(assembly.block_url(run_url, square))


def write_item(
    assembly: Assembly, joined: JoinedMask, *, run_url: Url, classes: ClassMap, facts: dict[str, str]
) -> None:
    """Write the style beside a mask that is there, and its item."""
    objects.put(assembly.style_url(run_url), raster_qml(classes))
    item = make_item(assembly, joined, classes, run_url=run_url, facts=facts | {ASSEMBLY_KEY: assembly.id})
    objects.put(assembly.item_url(run_url), json.dumps(item, indent=1, allow_nan=False).encode())


def renew_items(assemblies: Sequence[Assembly], *, run_url: Url, classes: ClassMap, facts: dict[str, str]) -> None:
    """Write styles and items of masks that are there, in threads; what an item has counted stays."""

    def renew(assembly: Assembly) -> None:
        if (item := _read_item(run_url, assembly)) is None:
            raise StorageError(f"{assembly.item_url(run_url)} changed meanwhile", hint="run again")
        write_item(assembly, counted(item, classes), run_url=run_url, classes=classes, facts=facts)

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(renew, assemblies):
            pass


def delete_blocks(run_url: Url) -> None:
    """Delete the tiles of squares that drivers which were killed left behind; nobody may be joining meanwhile."""
    objects.delete_below(run_url / BLOCKS)
