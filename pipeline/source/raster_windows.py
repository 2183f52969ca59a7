"""Windows of a raster, read: each becomes an item whose data are an excerpt, a small TIFF of the tiles it touches.

In: a shard of kind `raster`. Out: its items, row by row. Tiles are fetched in merged ranges, those of the next window
while this one is handed on, and kept until the last window that needs them: a square fetches most tiles once. A raster
of strips is decoded, since a strip spans all windows beside each other, and its windows are encoded again as tiles.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import InputError, StorageError
from pipeline.geotiff.decode import load_rasterio, open_tiff
from pipeline.geotiff.excerpt import Region, encode_excerpt, region_of
from pipeline.geotiff.header import Blocks, Header, read_header
from pipeline.geotiff.raster import Raster
from pipeline.prefetch import ahead
from pipeline.records import Failure, Item, Window
from pipeline.source.raster import Ranges, RasterShard, unpack
from pipeline.source.shard import Shard, read_failure
from pipeline.store import objects
from pipeline.store.url import Url

MERGED_GAP = 64 * 2**10
"""Ranges closer than this are fetched as one: skipped bytes cost less than another request."""
MERGED_BYTES = 8 * 2**20
"""Most bytes of a merged range: several are fetched at the same time."""
FETCHERS = 8
"""Concurrent range requests of a reader."""
WINDOWS_AHEAD = 2
"""Windows encoded before they are asked for."""

Encode = Callable[[Window], bytes]
"""Excerpt of a core and its halo; empty where every pixel is known to be without data."""


def window_items(shard: Shard, *, wanted: Callable[[str], bool]) -> Iterator[Item]:
    """Read the items of a shard in order, without data where `wanted(key)` is false.

    A window that cannot be read becomes a failure; the others are read.

    Raises:
        AccessDenied: 403.
    """
    here = unpack(shard)
    if isinstance(here, Failure):
        yield shard.item(shard.uri, failure=here)
        return
    cores = [(core, f"{shard.uri}#{core.y},{core.x}") for core in here.cores()]
    asked = [core for core, key in cores if wanted(key)]
    with ExitStack() as stack:
        encode: Encode | None = None
        if asked:
            encode = _open(shard, here, asked, stack.enter_context(ThreadPoolExecutor(FETCHERS)))
        worker = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="windows"))

        def read(core_key: tuple[Window, str]) -> Item:
            core, key = core_key
            item = shard.item(key, window=core, outer=here.outer(core))
            return item if encode is None or not wanted(key) else _filled(item, encode)

        yield from ahead(worker, read, cores, WINDOWS_AHEAD)


def _filled(item: Item, encode: Encode) -> Item:
    """The item with its excerpt, or with the failure of reading it."""
    began = time.monotonic()
    try:
        filled = replace(item, data=encode(item.outer or Window(0, 0, 0, 0)))
    except (InputError, FileNotFoundError, StorageError) as error:
        filled = replace(item, failure=read_failure(error))
    return replace(filled, seconds_read=time.monotonic() - began)


def _open(shard: Shard, here: RasterShard, cores: list[Window], pool: ThreadPoolExecutor) -> Encode:
    """Open the raster and choose how its windows are encoded. Raises as `read_header`."""
    header = read_header(Ranges(shard.url, here.raster.etag, here.raster.size))
    source = RasterFile(shard.url, here.raster, header, pool)
    outers = [here.outer(core) for core in cores]
    return TileExcerpts(source, outers) if header.blocks.tiled else StripExcerpts(source, outers)


# Blocks ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RasterFile:
    """One raster that is being read."""

    url: Url
    raster: Raster
    header: Header
    pool: ThreadPoolExecutor
    """Threads that fetch ranges."""


class BlockCache:
    """Compressed blocks of one page, fetched on demand and kept until the last region that needs them."""

    def __init__(self, source: "RasterFile", blocks: Blocks, regions: list[Region]) -> None:
        self.source, self.blocks = source, blocks
        self._data: dict[int, bytes] = {}
        self._spans: dict[int, tuple[int, int]] = {}
        self._last = {
            index: number for number, region in enumerate(regions) for index in region.indices(blocks).ravel().tolist()
        }
        self._number = 0

    def spans(self, region: Region) -> dict[int, tuple[int, int]]:
        """First byte and size of each block of a region, by its index."""
        for plane in region.indices(self.blocks):
            for row in plane:
                if int(row[0]) not in self._spans or int(row[-1]) not in self._spans:
                    first, count = int(row[0]), len(row)
                    starts = self.source.header.directories.values(self.blocks.offsets, first, count).tolist()
                    sizes = self.source.header.directories.values(self.blocks.counts, first, count).tolist()
                    self._spans |= dict(zip(range(first, first + count), zip(starts, sizes, strict=True), strict=True))
        return {index: self._spans[index] for index in region.indices(self.blocks).ravel().tolist()}

    def load(self, region: Region) -> None:
        """Fetch the blocks of a region that are not here; forget those that no later region needs."""
        spans = self.spans(region)
        missing = sorted(
            (start, size, index) for index, (start, size) in spans.items() if size and index not in self._data
        )
        runs = _merged(missing)
        for run, data in zip(runs, self.source.pool.map(self._fetch, runs), strict=True):
            for start, size, index in run:
                at = start - run[0][0]
                self._data[index] = data[at : at + size]

    def done(self) -> None:
        """Forget the blocks that only regions up to this one need."""
        for index in [index for index in self._data if self._last[index] <= self._number]:
            del self._data[index]
        self._number += 1

    def __getitem__(self, index: int) -> bytes:
        return self._data.get(index, b"")

    def _fetch(self, run: list[tuple[int, int, int]]) -> bytes:
        start = run[0][0]
        end = max(first + size for first, size, _ in run)
        data = objects.read_range(self.source.url, start, end, etag=self.source.raster.etag)
        if len(data) < end - start:
            raise InputError("truncated", f"tiles or strips end at byte {end}, the file at byte {start + len(data)}")
        return data


def _merged(spans: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Group sorted (first byte, size, index) so that each group is one range to fetch."""
    runs: list[list[tuple[int, int, int]]] = []
    end = 0
    for span in spans:
        near = runs and span[0] - end <= MERGED_GAP and span[0] + span[1] - runs[-1][0][0] <= MERGED_BYTES
        if near:
            runs[-1].append(span)
        else:
            runs.append([span])
        end = max(end, span[0] + span[1]) if near else span[0] + span[1]
    return runs


# Excerpts -------------------------------------------------------------------------------------------------------------


class TileExcerpts:
    """Excerpts of a tiled raster: its compressed tiles, copied."""

    def __init__(self, source: RasterFile, outers: list[Window]) -> None:
        self.header, self.raster, mask = source.header, source.raster, source.header.mask
        regions = [region_of(self.header.blocks, outer) for outer in outers]
        self.image = BlockCache(source, self.header.blocks, regions)
        self.mask = None if mask is None else BlockCache(source, mask, regions)

    def __call__(self, outer: Window) -> bytes:
        """Excerpt of a window; see `Encode`."""
        region = region_of(self.header.blocks, outer)
        caches = [self.image] if self.mask is None else [self.image, self.mask]
        try:
            if self._is_empty(region):
                return b""
            for cache in caches:
                cache.load(region)
            mask = None if self.mask is None else self.mask.__getitem__
            return encode_excerpt(self.header, self.raster, region, self.image.__getitem__, mask)
        finally:
            for cache in caches:
                cache.done()

    def _is_empty(self, region: Region) -> bool:
        """True when every tile is sparse, and what a reader puts in its place counts as no data."""
        if self.mask is not None and not any(size for _, size in self.mask.spans(region).values()):
            return True
        if self.raster.nodata is None and self.raster.alpha is None:
            return False
        return not any(size for _, size in self.image.spans(region).values())


class StripExcerpts:
    """Excerpts of a raster of strips: its strips decoded for one row of windows, each window encoded as tiles."""

    TILE_PX = 512

    def __init__(self, source: RasterFile, outers: list[Window]) -> None:
        self.source, self.header, self.raster = source, source.header, source.raster
        left = min(outer.x for outer in outers)
        right = max(outer.x + outer.width for outer in outers)
        self.band = Window(outers[0].y, left, outers[0].height, right - left)
        self._pixels: np.ndarray | None = None
        self._valid: np.ndarray | None = None

    def __call__(self, outer: Window) -> bytes:
        """Excerpt of a window; see `Encode`."""
        if self._pixels is None:
            self._decode()
        x = outer.x - self.band.x
        return self._encode(outer, x)

    def _decode(self) -> None:
        """Decode the strips of the row of windows, for the columns of the shard."""
        rasterio = load_rasterio()
        region = region_of(self.header.blocks, Window(self.band.y, 0, self.band.height, self.raster.width))
        image = BlockCache(self.source, self.header.blocks, [region])
        image.load(region)
        mask = None
        if self.header.mask is not None:
            mask = BlockCache(self.source, self.header.mask, [region])
            mask.load(region)
        get = None if mask is None else mask.__getitem__
        data = encode_excerpt(self.header, self.raster, region, image.__getitem__, get)
        y = self.band.y - region.top * self.header.blocks.block_height
        where = rasterio.windows.Window(self.band.x, y, self.band.width, self.band.height)
        with open_tiff(data) as dataset:
            self._pixels = dataset.read(window=where)
            if mask is not None:
                self._valid = dataset.read_masks(1, window=where)

    def _encode(self, outer: Window, x: int) -> bytes:
        rasterio = load_rasterio()
        pixels = self._pixels
        if pixels is None:
            raise ValueError("the strips are not decoded")
        raster, columns = self.raster, slice(x, x + outer.width)
        profile = {
            **{"driver": "GTiff", "count": raster.count, "dtype": raster.dtype, "nodata": raster.nodata},
            **{"height": outer.height, "width": outer.width, "tiled": True, "compress": "zstd", "zstd_level": 1},
            **{"blockxsize": self.TILE_PX, "blockysize": self.TILE_PX, "photometric": "minisblack"},
            "transform": rasterio.Affine.translation(outer.x, outer.y),
        }
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.io.MemoryFile() as memory:
            with memory.open(**profile) as dataset:
                colours = [rasterio.enums.ColorInterp.undefined] * raster.count
                if raster.alpha is not None:
                    colours[raster.alpha - 1] = rasterio.enums.ColorInterp.alpha
                if raster.count > 1:
                    dataset.colorinterp = [rasterio.enums.ColorInterp.gray, *colours[1:]]
                for band, name in itertools.zip_longest(raster.bands, raster.channels):
                    dataset.set_band_description(band, name)
                dataset.write(pixels[:, :, columns])
                if self._valid is not None:
                    dataset.write_mask(self._valid[:, columns])
            return bytes(memory.read())
