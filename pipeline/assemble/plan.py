"""Plan of an assembly: the rasters of a run, their squares, and which parts hold the rows of each.

In: the stored plan of a run and the footers of its parts. Out: `Assembly`s, one per raster, known by the parts that
hold its rows: rows that were made again give another one, whose files are written anew.

    square    16384 x 16384 pixels of a raster on a grid from pixel (0, 0): the unit of work
    masks/<path>.tif     COG, the name of the source without its suffix
    masks/<path>.qml     its style for QGIS
    items/<path>.json    STAC item, written last
    _run/blocks/<id>/    compressed tiles of squares, deleted when the item is there
"""

import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError
from pipeline.geotiff.raster import Raster
from pipeline.records import Failure, Window
from pipeline.run import folder, parts
from pipeline.run.footers import PartSummary
from pipeline.source.raster import RasterShard, unpack
from pipeline.source.shard import Shard
from pipeline.store import objects
from pipeline.store.url import Url

SQUARE_PX = 16384
"""Edge of a square: 32 tiles, whose fifth overview is one tile."""
BLOCKS = "_run/blocks"
"""Folder of the compressed tiles of squares."""
_ROW = ["shard", "status", "window_y", "window_x", "height", "width", "mask"]
MAPS = ["confidence_map", "changed_map"]
"""Columns of a row with one value for each pixel or cell, beside the mask."""
_ROWS_AT_ONCE = 8
_DAMAGED = "submit the run's command again: it writes its plan anew"


@dataclass(frozen=True, slots=True)
class PartRows:
    """Part with rows of a raster."""

    name: str
    failed: int
    """Failed rows of the part: a row that was made again may have its key in a part of the same name."""
    shards: tuple[str, ...]
    """Ids of the shards of the raster that it has rows of."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """One raster of a run, and where the rows of its windows are."""

    uri: str
    """Start of the keys of its windows."""
    root: str
    """Source as written in the config."""
    raster: Raster
    shards: tuple[tuple[str, Window], ...]
    """Id and rectangle of each shard."""
    parts: tuple["PartRows", ...]
    """Parts with rows of the raster, by name."""
    name: str
    """Path of its files, without suffix."""
    missing: int = 0
    """Windows without a committed row: the run is not finished."""
    failed: int = 0
    """Windows whose row has failed."""

    @property
    def holes(self) -> int:
        """Windows without an answer."""
        return self.missing + self.failed

    @property
    def id(self) -> str:
        """16 hex digits: of the raster, and of the parts that hold its rows."""
        facts = repr((self.uri, self.root, self.raster.etag, [(part.name, part.failed) for part in self.parts]))
        return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()

    @property
    def squares(self) -> list[Window]:
        """Squares that cover the raster, row by row."""
        return [
            Window(y, x, min(SQUARE_PX, self.raster.height - y), min(SQUARE_PX, self.raster.width - x))
            for y in range(0, self.raster.height, SQUARE_PX)
            for x in range(0, self.raster.width, SQUARE_PX)
        ]

    def parts_of(self, square: Window) -> list[str]:
        """Names of the parts that may hold windows of a square."""
        here = {shard for shard, window in self.shards if overlap(window, square)}
        return [part.name for part in self.parts if not here.isdisjoint(part.shards)]

    def mask_url(self, run_url: Url) -> Url:
        """URL of its COG."""
        return run_url / f"masks/{self.name}.tif"

    def style_url(self, run_url: Url) -> Url:
        """URL of the style that QGIS finds beside its COG."""
        return run_url / f"masks/{self.name}.qml"

    def item_url(self, run_url: Url) -> Url:
        """URL of its STAC item."""
        return run_url / f"items/{self.name}.json"

    def block_url(self, run_url: Url, square: Window) -> Url:
        """URL of the compressed tiles of a square."""
        return run_url / f"{BLOCKS}/{self.id}/{square.y}_{square.x}.bin"


def overlap(one: Window, other: Window) -> bool:
    """True when two rectangles share a pixel."""
    return (
        one.y < other.y + other.height
        and other.y < one.y + one.height
        and one.x < other.x + other.width
        and other.x < one.x + one.width
    )


def read_shards(run_url: Url) -> list[Shard]:
    """Raster shards of the stored plan of a run.

    Raises:
        ConfigError: the run is none of rasters.
        StorageError: the plan is missing or damaged.
    """
    url = run_url / folder.PLAN
    with objects.naming_damage(url, hint=_DAMAGED):
        table = pa.ipc.open_file(io.BytesIO(objects.read_bytes(url))).read_all()
        shards = [Shard(**row) for row in table.to_pylist() if row["kind"] == "raster"]
    if not shards:
        raise ConfigError(
            f"{run_url} is no run over rasters", hint="only runs with --read.kind raster have masks to join"
        )
    return shards


def plan_assemblies(shards: Sequence[Shard], summaries: Iterable[PartSummary]) -> list[Assembly]:
    """One assembly per raster that could be read, in the order of the plan."""
    grouped: dict[tuple[str, str], list[tuple[Shard, RasterShard]]] = defaultdict(list)
    for shard in shards:
        here = unpack(shard)
        if not isinstance(here, Failure):
            grouped[shard.root, shard.uri].append((shard, here))
    holders: defaultdict[str, list[PartSummary]] = defaultdict(list)
    for part in summaries:
        for shard_id in part.shards:
            holders[shard_id].append(part)
    names = mask_names([uri for _, uri in grouped])
    return [_assembly(root, uri, own, holders, names[uri]) for (root, uri), own in grouped.items()]


def _assembly(
    root: str, uri: str, own: list[tuple[Shard, RasterShard]], holders: defaultdict[str, list[PartSummary]], name: str
) -> Assembly:
    failed: dict[str, int] = {}
    shards: defaultdict[str, list[str]] = defaultdict(list)
    missing = 0
    for shard, here in own:
        committed = sum(part.shards[shard.id] for part in holders[shard.id])
        missing += max(0, sum(1 for _ in here.cores()) - committed)
        for part in holders[shard.id]:
            failed[part.name] = part.failed
            shards[part.name].append(shard.id)
    return Assembly(
        uri=uri,
        root=root,
        raster=own[0][1].raster,
        shards=tuple((shard.id, here.window) for shard, here in own),
        parts=tuple(PartRows(part, failed[part], tuple(shards[part])) for part in sorted(shards)),
        name=name,
        missing=missing,
    )


def mask_names(uris: Sequence[str]) -> dict[str, str]:
    """Path of the files of each raster: without the suffix, unless two rasters would then share one.

    With `a.tif`, `a.tiff` and `a.tif.tif`, the third keeps its suffix because the first has kept it.
    """
    names = {uri: _stem(uri) for uri in uris}
    while True:
        counts = Counter(name.casefold() for name in names.values())
        shared = {uri: uri for uri, name in names.items() if counts[name.casefold()] > 1 and name != uri}
        if not shared:
            return names
        names |= shared


def _stem(uri: str) -> str:
    match = re.fullmatch(r"(.*)\.tiff?(~\d+)?", uri, re.IGNORECASE | re.DOTALL)
    return f"{match[1]}{match[2] or ''}" if match else uri


def failed_windows(keys: Iterable[str]) -> Counter[str]:
    """Number of failed windows by the start of their keys."""
    return Counter(key.rpartition("#")[0] for key in keys if "#" in key)


@dataclass(frozen=True, slots=True)
class WindowRow:
    """Row `ok` of a window."""

    shard: str
    window: Window
    mask: bytes | None
    """See `Row.mask`; None without data."""
    confidence_map: bytes | None = None
    """See `Row.confidence_map`."""
    changed_map: bytes | None = None
    """See `Row.changed_map`."""


def read_rows(run_url: Url, part: str, shards: set[str], *, maps: bool = False) -> Iterator[WindowRow]:
    """Rows `ok` of some shards in a part; with `maps`, also their maps of confidence and change."""
    wanted = pa.array(sorted(shards))
    for batch in parts.read_batches(run_url, part, [*_ROW, *(MAPS if maps else ())], rows=_ROWS_AT_ONCE):
        here = pc.and_(pc.is_in(batch["shard"], wanted), pc.equal(batch["status"], "ok"))
        for row in batch.filter(here).to_pylist():
            window = Window(row["window_y"], row["window_x"], row["height"], row["width"])
            yield WindowRow(row["shard"], window, row["mask"], *(row.get(name) for name in MAPS))
