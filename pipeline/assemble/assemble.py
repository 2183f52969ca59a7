"""Assembly of a run: what is left to join, and the two kinds of work that a cluster does for it.

In: a run whose windows are committed. Out: a COG and a STAC item for each raster. All work is idempotent and leaves
the same bytes; an item is written last, so what has one is finished.
"""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.assemble.join import join_mask
from pipeline.assemble.masks import RunMasks
from pipeline.assemble.plan import BLOCKS, SQUARE_PX, Assembly
from pipeline.assemble.squares import Square, write_squares
from pipeline.assemble.stac import make_item
from pipeline.classes import ClassMap
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
    """Rasters whose COG and item are there."""
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
    for assembly, done in zip(assemblies, _done(run_url, assemblies), strict=True):
        if assembly.holes and not holes:
            todo.with_holes[assembly.uri] = assembly.holes
        elif done:
            todo.done += 1
        else:
            todo.assemblies.append(assembly)
    return todo


def _done(run_url: Url, assemblies: Sequence[Assembly]) -> list[bool]:
    """For each assembly, whether its COG and its item are there; items are read in threads."""
    there = {f"{folder}/{path}" for folder in ("masks", "items") for path in objects.list_below(run_url / folder)}

    def is_done(assembly: Assembly) -> bool:
        files = {f"masks/{assembly.name}.tif", f"items/{assembly.name}.json"}
        return files <= there and _has_item(run_url, assembly)

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(is_done, assemblies))


def _has_item(run_url: Url, assembly: Assembly) -> bool:
    url = assembly.item_url(run_url)
    try:
        properties = json.loads(objects.read_bytes(url))["properties"]
    except (FileNotFoundError, ValueError, KeyError):
        return False
    return bool(properties.get(ASSEMBLY_KEY) == assembly.id)


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
    """Join one raster, write its item, and delete the tiles of its squares."""
    joined = join_mask(run_url, assembly, classes)
    item = make_item(assembly, joined, classes, run_url=run_url, facts=facts | {ASSEMBLY_KEY: assembly.id})
    objects.put(assembly.item_url(run_url), json.dumps(item, indent=1, allow_nan=False).encode())
    for square in assembly.squares:
        objects.delete(assembly.block_url(run_url, square))


def delete_blocks(run_url: Url) -> None:
    """Delete the tiles of squares that drivers which were killed left behind; nobody may be joining meanwhile."""
    blocks = run_url / BLOCKS
    for path in objects.list_below(blocks):
        objects.delete(blocks / path)
    objects.remove_empty_folders(blocks)
