"""Plan of a run: the shards of its sources, the same on every machine; and the reading of a shard's items.

Listings go in, shards come out. Planning opens no object except Parquet footers, headers of rasters and STAC items
beside them, and tars whose samples `--limit` must count.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain

import pyarrow as pa

from pipeline.config import ReadConfig, SegmentConfig
from pipeline.errors import ConfigError, JobError
from pipeline.geotiff.header import TO_COG
from pipeline.prefetch import ahead
from pipeline.records import Item
from pipeline.source import folder, parquet, raster, raster_windows, webdataset
from pipeline.source.left_out import LeftOut, in_words
from pipeline.source.member import HIDDEN
from pipeline.source.raster import RGB, NetworkBands
from pipeline.source.raster_dates import ITEM_SUFFIX, RasterDates
from pipeline.source.shard import Member, Shard, SourceKind, deliver, object_shard, slice_shard, suffix_of
from pipeline.source.truth import RasterLabels
from pipeline.store import objects
from pipeline.store.backend import FileInfo
from pipeline.store.url import Url

KINDS: dict[str, SourceKind] = {
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"), "folder"),
    ".tar": "webdataset",
    ".parquet": "parquet",
}
RASTERS = (".tif", ".tiff")
"""Suffixes of rasters, with `--read.kind raster`."""
SIDE_FILES = (".aux.xml", ".tfw", ".tifw", ".wld", ".ovr", ".msk", ".prj")
"""Ends of the names of files beside a raster from which GDAL takes georeferencing, masks and overviews; not read."""
HEADERS_AHEAD = 16
"""Headers of rasters read concurrently."""
UNREAD_IMAGES = {
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".gif", ".psd", ".exr", ".hdr", ".ecw", ".sid", ".img"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
}
"""Suffixes of images in formats that are not read: to ignore them is worth a warning."""
UNREAD_RASTERS = {".vrt", ".jp2", ".j2k", ".ecw", ".sid", ".img", ".nc", ".hdf", ".h5", ".grd", ".asc", ".dem", ".gpkg"}
"""Suffixes of rasters in formats that are not read: to ignore them is worth a warning."""
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
"""Suffixes of compressed tars, refused since they cannot be read in part, and a small file can expand to any size."""

OWN_FOLDERS = frozenset({"_run", "_delta_log", "_temporary", "_change_data"})
"""Folders whose Parquet files are no data: those of our runs, of Delta Lake and of Spark. Images in them are read."""

MAX_WARNINGS = 20

PLAN_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("root", pa.string()),
        ("path", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("rows", pa.int64()),
        ("row_group", pa.int64()),
        ("copy", pa.int64()),
        ("max_rows", pa.int64()),
        ("packed", pa.binary()),
    ]
)


@dataclass(slots=True)
class Plan:
    """Shards of all sources, in the order of the sources and of the paths in each."""

    shards: list[Shard]
    ignored: Counter[str] = field(default_factory=Counter)
    """Number of ignored files by suffix; `(hidden)` counts names that begin with a dot, `(bookkeeping)` the Parquet
    files in `OWN_FOLDERS`."""
    warnings: list[str] = field(default_factory=list)
    """The first `MAX_WARNINGS` problems that do not stop the run."""

    @property
    def bytes(self) -> int:
        """Upper bound of the bytes to read; a file of several row groups counts once."""
        files = {(shard.root, shard.path): shard.size for shard in self.shards if shard.kind == "raster"}
        return sum(files.values()) + sum(
            shard.size for shard in self.shards if shard.kind != "raster" and not shard.row_group
        )

    @property
    def rows(self) -> int | None:
        """Number of items; None when it is unknown before reading."""
        counts = [shard.rows for shard in self.shards]
        return None if None in counts else sum(count or 0 for count in counts)

    def to_table(self) -> pa.Table:
        """Table of `PLAN_SCHEMA` to store: with the windows of rasters, without the members of slices."""
        columns = {name: [getattr(shard, name) for shard in self.shards] for name in PLAN_SCHEMA.names}
        columns["packed"] = [shard.packed if shard.kind == "raster" else None for shard in self.shards]
        return pa.table(columns, schema=PLAN_SCHEMA)


def plan_source(cfg: SegmentConfig, bands: NetworkBands = RGB) -> Plan:
    """List every source and cut it into shards.

    Args:
        cfg: the sources, and how to read them.
        bands: bands of the checkpoint, with which those of rasters are matched.

    Raises:
        ConfigError: a source has no image, tar or Parquet file.
        JobError: a source mixes kinds of input, holds compressed tars, or repeats a key of another source.
        StorageError: a source does not exist, or cannot be listed.
    """
    plan = Plan([])
    copies = _Copies(cfg.read) if len(cfg.source) > 1 else None
    if cfg.read.kind == "raster":
        raster.check_rasters(cfg, bands)
    sources = [_survey(url, cfg, bands, plan, copies) for url in cfg.source]
    shards = chain.from_iterable(sources)
    plan.shards = list(shards if cfg.limit is None else _limited(shards, cfg.read, cfg.limit))
    return plan


def read_items(
    shard: Shard,
    cfg: ReadConfig,
    *,
    max_bytes: int,
    skip: Set[str] = frozenset(),
    left_out: LeftOut | None = None,
    truth: RasterLabels | None = None,
) -> Iterator[Item]:
    """Read the items of a shard in order, except keys in `skip`; the last item carries `shard_rows`.

    With `cfg.labels`, items carry their label, still encoded; windows of rasters with `truth`. Bad data becomes an item
    with a failure; images and labels above `max_bytes` are not read. Members of a tar that are neither are counted in
    `left_out`.

    Raises:
        AccessDenied: 403, which every other object would probably get too.
        StorageError: every attempt to read a tar or Parquet file failed; an image file becomes a failure instead.
    """
    if shard.kind == "raster":
        return deliver(shard, raster_windows.window_items(shard, wanted=lambda key: key not in skip, truth=truth), skip)
    return deliver(shard, _items(shard, cfg, max_bytes, lambda key: key not in skip, left_out or LeftOut()), skip)


def read_item(
    shard: Shard, cfg: ReadConfig, key: str, *, max_bytes: int, truth: RasterLabels | None = None
) -> Item | None:
    """Read one item of a shard again, as `read_items` reads it; None where the shard does not have it.

    A file of a folder is read alone. Of a tar the headers before it are read, of a Parquet file the rows before it.

    Raises:
        InputError, FileNotFoundError: the shard is damaged before the item, changed, or gone.
        StorageError: as `read_items`.
    """
    return next(read_some(shard, cfg, {key}, max_bytes=max_bytes, truth=truth), None)


def read_some(
    shard: Shard, cfg: ReadConfig, keys: Set[str], *, max_bytes: int, truth: RasterLabels | None = None
) -> Iterator[Item]:
    """Read the items of some keys of a shard again, in its order and as `read_item`; those it lacks are left out."""
    items = (
        raster_windows.window_items(shard, wanted=keys.__contains__, truth=truth)
        if shard.kind == "raster"
        else _items(shard, cfg, max_bytes, keys.__contains__, LeftOut())
    )
    return (item for item in items if item.key in keys)


def _items(
    shard: Shard, cfg: ReadConfig, max_bytes: int, wanted: Callable[[str], bool], left_out: LeftOut
) -> Iterator[Item]:
    if shard.kind == "folder":
        return folder.folder_items(
            shard, max_bytes=max_bytes, wanted=wanted, labels=None if cfg.labels is None else Url(cfg.labels)
        )
    if shard.kind == "webdataset":
        return webdataset.tar_items(shard, cfg, max_bytes=max_bytes, wanted=wanted, left_out=left_out)
    return parquet.parquet_items(shard, cfg, max_bytes=max_bytes, wanted=wanted)


def changed(before: pa.Table, now: Plan) -> list[str]:
    """Paths of tars and Parquet files whose etags differ between two plans. Slices are compared row by row.

    Args:
        before: earlier plan, as a table of `Plan.to_table`.
        now: plan of the same sources.
    """
    columns = [before[name].to_pylist() for name in ("root", "path", "etag")]
    roots = {*columns[0], *(shard.root for shard in now.shards)}
    places = {root: Url(root).place for root in roots}
    known = {(places[root], path): etag for root, path, etag in zip(*columns, strict=True)}
    archives = ((places[shard.root], shard.path, shard.etag) for shard in now.shards if shard.kind != "folder")
    return sorted({path for place, path, etag in archives if known.get((place, path), etag) != etag})


# ---------------------------------------------------------------- one source


def _survey(
    url: str, config: SegmentConfig, bands: NetworkBands, plan: Plan, copies: "_Copies | None"
) -> Iterable[Shard]:
    """Shards of one source; `plan` collects ignored files and warnings. Parquet footers are read lazily."""
    cfg = config.read
    root, files = _rooted(url)
    if cfg.kind == "raster":
        return _survey_rasters(root, files, config, bands, plan, copies)
    kinds: Counter[SourceKind] = Counter()
    ignored: Counter[str] = Counter()
    archives: list[Shard] = []

    def images() -> Iterator[Member]:
        """Members for image files; tars and Parquet files go to `archives`."""
        for file in files:
            kind = _kind(file.path, cfg, ignored)
            if kind is None:
                continue
            kinds[kind] += 1
            copy = copies.number(file.path, root) if copies else 1
            if kind == "folder":
                yield Member(file.path, file.size, file.etag, copy)
            else:
                archives.append(object_shard(kind, root, file, copy=copy))

    slices = []
    for members in folder.slice_listing(images(), cfg.slice_images):
        slices.append(slice_shard(root, members))
        _warn_of_twins(members, plan.warnings)
    plan.ignored += ignored
    if unread := {suffix: count for suffix, count in ignored.items() if suffix in UNREAD_IMAGES}:
        plan.warnings.append(
            f"images in formats that are not read: {in_words(unread)}; convert them to JPEG, PNG or TIFF"
        )
    if not kinds:
        raise _no_images(Url(url), ignored, cfg)
    if len(kinds) > 1:
        seen = ", ".join(f"{count} for {kind}" for kind, count in sorted(kinds.items()))
        raise JobError(f"{Url(url)} mixes kinds of files: {seen}", hint="choose one with --read.kind")
    if kinds["parquet"] and len(archives) <= parquet.MAX_FOOTERS:
        return parquet.row_groups(archives)
    return slices or archives


def _survey_rasters(  # noqa: PLR0917
    root: str, files: Iterable[FileInfo], cfg: SegmentConfig, bands: NetworkBands, plan: Plan, copies: "_Copies | None"
) -> list[Shard]:
    """Shards of the rasters of one source, from their headers."""
    ignored, beside = Counter[str](), Counter[str]()
    rasters: list[FileInfo] = []
    items: dict[str, FileInfo] = {}
    for file in files:
        if end := next((end for end in SIDE_FILES if file.path.lower().endswith(end)), None):
            beside[end] += 1
        elif _kind(file.path, cfg.read, ignored) == "raster":
            rasters.append(file)
        elif file.path.endswith(ITEM_SUFFIX):
            items[file.path.removesuffix(ITEM_SUFFIX)] = file
    dates = RasterDates(root, cfg.raster.date_pattern, items)

    def read(file: FileInfo) -> tuple[list[Shard], list[str]]:
        copy = copies.number(file.path, root) if copies else 1
        return raster.raster_shards(root, file, cfg, bands, copy=copy, dates=dates)

    shards: list[Shard] = []
    with ThreadPoolExecutor(HEADERS_AHEAD) as pool:
        for own, warnings in ahead(pool, read, rasters, HEADERS_AHEAD):
            shards += own
            plan.warnings += warnings[: max(MAX_WARNINGS - len(plan.warnings), 0)]
    plan.ignored += ignored + beside
    plan.warnings += dates.warnings()
    if beside:
        plan.warnings.append(f"files beside rasters are not read: {in_words(beside)}; see --raster.crs")
    if unread := {suffix: count for suffix, count in ignored.items() if suffix in UNREAD_RASTERS}:
        plan.warnings.append(f"rasters in formats that are not read: {in_words(unread)}; {TO_COG}")
    if not shards:
        raise _no_images(Url(root), ignored + beside, cfg.read)
    return shards


def _no_images(url: Url, ignored: Counter[str], cfg: ReadConfig) -> ConfigError:
    kinds = dict.fromkeys(RASTERS, "raster") if cfg.kind == "raster" else KINDS
    suffixes = ", ".join(suffix for suffix, kind in kinds.items() if cfg.kind in ("auto", kind))
    if cfg.kind == "raster":
        suffixes += f"; {TO_COG}"
    return ConfigError(f"no images in {url.located}; ignored: {in_words(ignored)}", hint=f"files to read: {suffixes}")


def _rooted(url: str) -> tuple[str, Iterable[FileInfo]]:
    """Folder to which paths are relative, and its listing; the URL of an object lists that file only."""
    files = iter(objects.list_files(Url(url)))
    first = next(files, None)
    if first is None:
        return url, []
    if url.endswith(first.path) and "/" not in first.path and objects.exists(Url(url)):
        return url.removesuffix(first.path) or ".", [first]
    return url, chain([first], files)


def _kind(path: str, cfg: ReadConfig, ignored: Counter[str]) -> SourceKind | None:
    """Kind of source that a file belongs to; None for a file to ignore, which is counted."""
    parts, suffix = path.split("/"), suffix_of(path)
    hidden = any(part.startswith(".") and part != ".." for part in parts)
    if not hidden and cfg.kind in ("auto", "webdataset") and path.lower().endswith(COMPRESSED_TARS):
        hint = "uncompress it to .tar, or leave it out with --read.kind folder or parquet"
        raise JobError(f"{path!r} is a compressed tar, which cannot be read in part", hint=hint)
    kind: SourceKind | None = "raster" if cfg.kind == "raster" and suffix in RASTERS else KINDS.get(suffix)
    bookkeeping = kind == "parquet" and not OWN_FOLDERS.isdisjoint(parts[:-1])
    if hidden or bookkeeping or kind is None or cfg.kind not in ("auto", kind):
        ignored[HIDDEN if hidden else "(bookkeeping)" if bookkeeping else suffix] += 1
        return None
    return kind


def _warn_of_twins(members: list[Member], warnings: list[str]) -> None:
    for path, other in folder.twins(members):
        if len(warnings) < MAX_WARNINGS:
            warnings.append(f"{path!r} and {other!r} differ only in case or Unicode normalisation")


# ---------------------------------------------------------------- several sources, and limits


class _Copies:
    """Count of each path over several sources. Keeps every path in memory, so a single source goes without."""

    def __init__(self, cfg: ReadConfig) -> None:
        self.on_duplicate = cfg.on_duplicate
        self.first: dict[str, str] = {}
        self.more: Counter[str] = Counter()

    def number(self, path: str, root: str) -> int:
        """Number of this copy of a path: 1 for the first, 2 and up for duplicates.

        Raises:
            JobError: for a duplicate, unless duplicates are kept; names both.
        """
        if path not in self.first:
            self.first[path] = root
            return 1
        if self.on_duplicate == "fail":
            both = " and ".join(str(Url(root) / path) for root in (self.first[path], root))
            raise JobError(f"the key {path!r} occurs twice: {both}", hint="--read.on-duplicate suffix keeps both")
        self.more[path] += 1
        return 1 + self.more[path]


def _limited(shards: Iterable[Shard], cfg: ReadConfig, limit: int) -> Iterator[Shard]:
    """First shards up to `limit` items in total, the last shard cut; later shards are not read."""
    for shard in shards:
        rows = min(limit, _count(shard, cfg, limit) if shard.rows is None else shard.rows)
        yield replace(shard, rows=rows, max_rows=rows)
        limit -= rows
        if limit == 0:
            return


def _count(shard: Shard, cfg: ReadConfig, limit: int) -> int:
    """Number of items of a tar or unopened Parquet file, up to `limit`, without reading images."""
    unread = _items(shard, cfg, 0, lambda _: False, LeftOut())
    return sum(1 for _ in deliver(replace(shard, max_rows=limit), unread, frozenset()))
