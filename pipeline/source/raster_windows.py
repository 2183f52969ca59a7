"""Windows of a raster, read: each becomes an item whose data are its 8-bit pixels, halo included.

In: a shard of kind `raster`. Out: its items, row by row. The blocks of the file (tiles or strips) are fetched in merged
ranges, each once, and decoded once into a buffer of one row of windows; what the next row of windows needs of them
stays there. The next window is decoded while this one is handed on.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.classes import ClassMap
from pipeline.errors import InputError, JobError, LabelError, StorageError
from pipeline.geotiff.decode import read_blocks
from pipeline.geotiff.excerpt import Region, encode_excerpt, region_of
from pipeline.geotiff.header import Blocks, Header, read_header
from pipeline.geotiff.raster import Raster
from pipeline.geotiff.window import decode_window, encode_window
from pipeline.image.encode import mask_png
from pipeline.image.scale import eight_bits
from pipeline.prefetch import ahead
from pipeline.records import Bool, Failure, Item, UInt8, Window
from pipeline.refine.window import inside
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
DECODERS = 2
"""Threads that decode pieces of a window: GDAL and NumPy work without the GIL."""
DECODED_BYTES = 8 * 2**20
"""Most bytes of stored samples in a piece that is decoded at a time, unless a single block is larger."""
WINDOWS_AHEAD = 2
"""Windows decoded or being decoded before they are asked for."""


class TruthReader(Protocol):
    """Labels of rasters; see `truth.RasterLabels`."""

    @property
    def classes(self) -> ClassMap:
        """Class map of the labels."""

    def read(self, raster: Raster, window: Window) -> UInt8:
        """Class ids of a window, (h, w) uint8."""


def window_items(shard: Shard, *, wanted: Callable[[str], bool], truth: TruthReader | None = None) -> Iterator[Item]:
    """Read the items of a shard in order, without data where `wanted(key)` is false.

    A window that cannot be read becomes a failure; the others are read. With `truth`, the label of an item is a PNG of
    the class ids of its core, and pixels without data are ignored there.

    Raises:
        AccessDenied: 403.
    """
    here = unpack(shard)
    if isinstance(here, Failure):
        yield shard.item(shard.uri, failure=here)
        return
    with ExitStack() as stack:
        worker = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="windows"))
        reader = WindowReader(shard.url, here, stack)

        def read(core: Window) -> Item:
            key = f"{shard.uri}#{core.y},{core.x}"
            item = shard.item(key, window=core, outer=here.outer(core))
            return _filled(item, reader, truth) if wanted(key) else item

        yield from ahead(worker, read, here.cores(), WINDOWS_AHEAD)


def _filled(item: Item, reader: "WindowReader", truth: TruthReader | None) -> Item:
    """The item with its pixels and label, or with the failure of reading them."""
    began = time.monotonic()
    try:
        filled = replace(item, data=reader.encoded(item.outer or reader.shard.window))
        if truth is not None and filled.data:
            filled = replace(filled, label=_label(filled, reader.raster, truth))
    except LabelError as error:
        filled = replace(item, failure=Failure(error.code, error.message))
    except (InputError, FileNotFoundError, StorageError) as error:
        filled = replace(item, failure=read_failure(error))
    except JobError:  # a missing package, for all windows alike
        raise
    except Exception as error:  # noqa: BLE001  # damage that nobody foresaw fails one window, not the run
        filled = replace(item, failure=Failure("corrupt", f"{type(error).__name__}: {error}"))
    return replace(filled, seconds_read=time.monotonic() - began)


def _label(item: Item, raster: Raster, truth: TruthReader) -> bytes:
    """PNG of the class ids of a window's core; those of pixels without data are the ignore id."""
    core, outer = item.window, item.outer
    if core is None or outer is None:
        raise ValueError(f"{item.key} is no window of a raster")
    label_hw, valid_hw = truth.read(raster, core), decode_window(item.data).valid_hw
    if valid_hw is not None:
        label_hw[~valid_hw[inside(outer, core)]] = truth.classes.ignore_id
    return mask_png(label_hw, truth.classes)


def read_stored(url: Url, shard: RasterShard, header: Header, window: Window) -> tuple[npt.NDArray[Any], Bool | None]:
    """Read one window of a raster by itself: stored values (C, h, w) and valid pixels; see `read_blocks`.

    Raises:
        InputError, FileNotFoundError, StorageError: it cannot be read or decoded.
    """
    with ExitStack() as threads:
        reader = WindowReader(url, shard, threads, header)
        return reader.stored(region_of(header.blocks, window), window)


class WindowReader:
    """Reads windows of one shard, row by row."""

    def __init__(self, url: Url, shard: RasterShard, threads: ExitStack, header: Header | None = None) -> None:
        self.url, self.shard, self.raster = url, shard, shard.raster
        self.fetchers = threads.enter_context(ThreadPoolExecutor(FETCHERS, thread_name_prefix="ranges"))
        self.decoders = threads.enter_context(ThreadPoolExecutor(DECODERS, thread_name_prefix="blocks"))
        self._header = header
        self._buffer: _Buffer | None = None

    @property
    def header(self) -> Header:
        """Header of the raster, read when it is first needed. Raises as `read_header`."""
        if self._header is None:
            self._header = read_header(Ranges(self.url, self.raster.etag, self.raster.size))
        return self._header

    def encoded(self, outer: Window) -> bytes:
        """Pixels of a window as `encode_window` writes them; empty where every pixel is known to be without data.

        Raises:
            InputError, FileNotFoundError, StorageError: it cannot be read or decoded.
        """
        region = region_of(self.header.blocks, outer)
        if self._is_empty(region):
            return b""
        buffer = self._buffer_of(region)
        pieces = _pieces(buffer.missing(region), self._piece_blocks(buffer))
        deque(self.decoders.map(partial(self._decode, buffer), pieces), maxlen=0)
        here = inside(buffer.window, outer)
        valid = buffer.valid_hw[here]
        return encode_window(buffer.pixels_hwc[here], None if valid.all() else valid, outer.y, outer.x)

    def _is_empty(self, region: Region) -> bool:
        """True when all blocks are sparse, and what a reader puts in their place counts as no data."""
        header = self.header
        if header.mask is not None and not any(size for _, size in self._spans(header.mask, region).values()):
            return True
        if self.raster.nodata is None and self.raster.alpha is None:
            return False
        return not any(size for _, size in self._spans(header.blocks, region).values())

    # Buffer -----------------------------------------------------------------------------------------------------------

    def _buffer_of(self, region: Region) -> "_Buffer":
        """Buffer of the row of windows that a region belongs to; what it has in common with the former one stays."""
        rect, halo, blocks = self.shard.window, self.shard.halo_px, self.header.blocks
        left, right = max(rect.x - halo, 0), min(rect.x + rect.width + halo, self.raster.width)
        columns = region_of(blocks, Window(rect.y, left, 1, right - left))
        whole = replace(region, left=columns.left, right=columns.right)
        if self._buffer is None:
            blocks_high = -(-(self.shard.core_px + 2 * halo) // blocks.block_height) + 1
            height = min(blocks_high * blocks.block_height, self.raster.height)
            self._buffer = _Buffer(blocks, left, right - left, height, len(self.raster.bands))
        self._buffer.move_to(whole)
        return self._buffer

    def _piece_blocks(self, buffer: "_Buffer") -> int:
        """Blocks that may be decoded at a time."""
        blocks = self.header.blocks
        width = blocks.block_width if blocks.tiled else buffer.window.width
        return max(1, DECODED_BYTES // (blocks.block_height * width * self.header.bytes_per_pixel))

    def _decode(self, buffer: "_Buffer", piece: Region) -> None:
        """Fetch and decode the blocks of a rectangle into the buffer."""
        whole = piece.window(self.header.blocks)
        left = max(whole.x, buffer.window.x)
        right = min(whole.x + whole.width, buffer.window.x + buffer.window.width)
        here = replace(whole, x=left, width=right - left)
        values, valid = self.stored(piece, here)
        buffer.put(piece, here, eight_bits(np.moveaxis(values, 0, -1), self.shard.scale), valid)

    def stored(self, region: Region, window: Window) -> tuple[npt.NDArray[Any], Bool | None]:
        """Stored values (C, h, w) and valid pixels of a window inside a region of blocks; see `read_blocks`."""
        header = self.header
        image = self._fetch(header.blocks, region)
        mask = None if header.mask is None else self._fetch(header.mask, region)
        data = encode_excerpt(
            header,
            self.raster,
            region,
            lambda index: image.get(index, b""),
            None if mask is None else lambda index: mask.get(index, b""),
        )
        return read_blocks(data, window, self.raster.channels)

    # Ranges -----------------------------------------------------------------------------------------------------------

    def _spans(self, blocks: Blocks, region: Region) -> dict[int, tuple[int, int]]:
        """First byte and size of each block of a region, by its index in the file's lists."""
        spans: dict[int, tuple[int, int]] = {}
        values = self.header.directories.values
        for row in region.indices(blocks).reshape(-1, region.right - region.left):
            first, count = int(row[0]), len(row)
            starts, sizes = (values(listed, first, count).tolist() for listed in (blocks.offsets, blocks.counts))
            spans |= zip(row.tolist(), zip(starts, sizes, strict=True), strict=True)
        return spans

    def _fetch(self, blocks: Blocks, region: Region) -> dict[int, bytes]:
        """Compressed bytes of the blocks of a region, without those that are sparse."""
        spans = self._spans(blocks, region)
        runs = merge_ranges(sorted((start, size, index) for index, (start, size) in spans.items() if size))
        fetched: dict[int, bytes] = {}
        for run, data in zip(runs, self.fetchers.map(self._fetch_run, runs), strict=True):
            fetched |= {index: data[start - run[0][0] : start - run[0][0] + size] for start, size, index in run}
        return fetched

    def _fetch_run(self, run: list[tuple[int, int, int]]) -> bytes:
        start, end = run[0][0], max(first + size for first, size, _ in run)
        data = objects.read_range(self.url, start, end, etag=self.raster.etag)
        if len(data) < end - start:
            raise InputError("truncated", f"tiles or strips end at byte {end}, the file at byte {start + len(data)}")
        return data


class _Buffer:
    """Decoded pixels of one row of windows of a shard, filled block by block; its memory is allocated once."""

    def __init__(self, blocks: Blocks, x: int, width: int, height: int, bands: int) -> None:
        """Buffer of `width` columns from `x` on, and at most `height` rows."""
        self.blocks, self.bands = blocks, bands
        self.region = Region(0, 0, 0, 0)
        self.window = Window(0, x, 0, width)
        self.decoded: Bool = np.zeros((0, 0), bool)
        self.pixels_hwc: UInt8 = np.empty((height, width, bands), np.uint8)
        self.valid_hw: Bool = np.empty((height, width), bool)

    def move_to(self, region: Region) -> None:
        """Cover another row of windows, further down; the rows of blocks that both have stay decoded."""
        if region == self.region:
            return
        top, bottom = region.top, min(self.region.bottom, region.bottom)
        decoded = np.zeros((region.bottom - region.top, region.right - region.left), bool)
        rows = region.window(self.blocks)
        window = replace(self.window, y=rows.y, height=rows.height)
        if self.region.top <= top < bottom:
            decoded[: bottom - top] = self.decoded[top - self.region.top : bottom - self.region.top]
            shift = window.y - self.window.y
            end = min(bottom * self.blocks.block_height, self.blocks.height) - window.y
            for y in range(0, end, step := max(min(shift, end), 1)):  # steps that do not overlap their source
                stop = min(y + step, end)
                for array in (self.pixels_hwc, self.valid_hw):
                    array[y:stop] = array[y + shift : stop + shift]
        self.region, self.window, self.decoded = region, window, decoded

    def missing(self, region: Region) -> Region | None:
        """Smallest rectangle of all blocks of a region that are not decoded; None without any."""
        top, left = region.top - self.region.top, region.left - self.region.left
        here = self.decoded[top : region.bottom - self.region.top, left : region.right - self.region.left]
        rows, columns = np.nonzero(~here)
        if not len(rows):
            return None
        y, x = rows + region.top, columns + region.left
        return Region(int(y.min()), int(x.min()), int(y.max()) + 1, int(x.max()) + 1)

    def put(self, region: Region, window: Window, levels_hwc: UInt8, valid_hw: Bool | None) -> None:
        """Store decoded blocks."""
        here = inside(self.window, window)
        target = self.pixels_hwc[here]
        for band in range(self.bands):  # much faster than all at once, for bands one after another
            target[..., band] = levels_hwc[..., band]
        self.valid_hw[here] = True
        if valid_hw is not None:
            self.valid_hw[here] = valid_hw
            target[~valid_hw] = 0  # whatever value a file has there: it reaches the network beside valid pixels
        rows = slice(region.top - self.region.top, region.bottom - self.region.top)
        self.decoded[rows, region.left - self.region.left : region.right - self.region.left] = True


def _pieces(region: Region | None, most_blocks: int) -> Iterator[Region]:
    """Halve a rectangle of blocks until each piece has at most `most_blocks`."""
    if region is None:
        return
    rows, columns = region.bottom - region.top, region.right - region.left
    if rows * columns <= most_blocks or rows * columns == 1:
        yield region
    elif rows >= columns:
        middle = region.top + rows // 2
        yield from _pieces(replace(region, bottom=middle), most_blocks)
        yield from _pieces(replace(region, top=middle), most_blocks)
    else:
        middle = region.left + columns // 2
        yield from _pieces(replace(region, right=middle), most_blocks)
        yield from _pieces(replace(region, left=middle), most_blocks)


def merge_ranges(spans: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Group sorted (first byte, size, index) so that each group is one range to fetch."""
    runs: list[list[tuple[int, int, int]]] = []
    end = 0
    for start, size, index in spans:
        if runs and start - end <= MERGED_GAP and start + size - runs[-1][0][0] <= MERGED_BYTES:
            runs[-1].append((start, size, index))
            end = max(end, start + size)
        else:
            runs.append([(start, size, index)])
            end = start + size
    return runs
