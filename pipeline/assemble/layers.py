"""Layers of a part of a raster: class ids, and beside them the network's confidence and what the refiner changed.

In: rows of windows, or a mask that another program made. Out: `Layers` of a square, cut into blocks on a grid from the
raster's first pixel, so that what is made from blocks does not depend on how windows lie.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.assemble.plan import WindowRow
from pipeline.errors import JobError
from pipeline.image.encode import CELL_PX, read_grey_png, read_mask_png
from pipeline.records import Bool, Ids, UInt8, Window
from pipeline.refine.window import inside

BLOCK_PX = 2048
"""Edge of a block."""
_COVER_PX = 512
"""Edge of the cells in which windows without an answer are known: cores of windows are multiples of it."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a raster."""

    window: Window
    """In pixels of the raster."""
    ids_hw: Ids
    """(h, w) class ids; those from the number of classes on are without data."""
    cells: UInt8 | None
    """See `Row.confidence_map`; None where no window has one."""
    changed_bits: UInt8 | None
    """(h, ceil(w / 8)) pixels whose class the refiner changed, packed by row; None without `cells`."""
    failed: tuple[Window, ...]
    """Rectangles of windows that failed or have no row, in pixels of the raster; 255 in `ids_hw`."""

    def confidence(self) -> UInt8 | None:
        """(h, w) confidence of each pixel, that of its cell: 1 to 255, 0 where it is not known. None for nowhere."""
        if self.cells is None:
            return None
        wide = np.repeat(np.repeat(self.cells, CELL_PX, axis=0), CELL_PX, axis=1)
        return np.ascontiguousarray(wide[: self.window.height, : self.window.width])

    def changed(self) -> Bool | None:
        """(h, w) True for pixels whose class the refiner changed; None where it is not known."""
        if self.changed_bits is None:
            return None
        return np.unpackbits(self.changed_bits, axis=1, count=self.window.width).view(bool)


@dataclass(frozen=True, slots=True)
class Layers:
    """Layers of a rectangle of a raster that begins at a corner of a block."""

    window: Window
    ids_hw: Ids
    """(h, w) class ids; without data the largest of its type, also in windows without an answer."""
    covered: Bool
    """(ceil(h / 512), ceil(w / 512)) True where a window has a row `ok`."""
    cells: UInt8 | None
    """See `Block.cells`."""
    changed_bits: UInt8 | None
    """See `Block.changed_bits`."""

    def add(self, row: WindowRow, *, key: str) -> None:
        """Write a window into the layers.

        Raises:
            JobError: its mask or a map has another size than the window.
        """
        there = inside(self.window, row.window)
        self.covered[_cells(there, _COVER_PX)] = True
        if row.mask is None:
            return
        size = row.window.height, row.window.width
        self.ids_hw[there] = _checked(read_mask_png(row.mask), size, f"mask of {key}")
        if self.cells is None or self.changed_bits is None or row.confidence_map is None or row.changed_map is None:
            return
        small = -(-size[0] // CELL_PX), -(-size[1] // CELL_PX)
        self.cells[_cells(there, CELL_PX)] = _checked(read_grey_png(row.confidence_map), small, f"confidence of {key}")
        changed = _checked(read_grey_png(row.changed_map) > 0, size, f"map of changes of {key}")
        self.changed_bits[there[0], there[1].start // 8 : -(-there[1].stop // 8)] = np.packbits(changed, axis=1)

    @property
    def failed_pixels(self) -> int:
        """Pixels of windows without an answer."""
        return sum(window.height * window.width for window in self._failed(self.window))

    def blocks(self) -> Iterator[Block]:
        """Blocks, row by row."""
        for y in range(0, self.window.height, BLOCK_PX):
            for x in range(0, self.window.width, BLOCK_PX):
                height, width = min(BLOCK_PX, self.window.height - y), min(BLOCK_PX, self.window.width - x)
                yield self._block(slice(y, y + height), slice(x, x + width))

    def _block(self, rows: slice, columns: slice) -> Block:
        window = Window(
            self.window.y + rows.start,
            self.window.x + columns.start,
            rows.stop - rows.start,
            columns.stop - columns.start,
        )
        cells = None if self.cells is None else self.cells[_cells((rows, columns), CELL_PX)]
        known = cells is not None and bool(cells.any())
        bits = (
            self.changed_bits[rows, columns.start // 8 : -(-columns.stop // 8)]
            if self.changed_bits is not None
            else None
        )
        ids_hw = np.ascontiguousarray(self.ids_hw[rows, columns])
        return Block(window, ids_hw, cells if known else None, bits if known else None, tuple(self._failed(window)))

    def _failed(self, window: Window) -> Iterator[Window]:
        here = self.covered[_cells(inside(self.window, window), _COVER_PX)]
        bottom, right = window.y + window.height, window.x + window.width
        for row, column in np.argwhere(~here).tolist():
            y, x = window.y + row * _COVER_PX, window.x + column * _COVER_PX
            yield Window(y, x, min(_COVER_PX, bottom - y), min(_COVER_PX, right - x))


def empty_layers(window: Window, *, maps: bool, dtype: type[np.unsignedinteger[Any]] = np.uint8) -> Layers:
    """Layers of a rectangle without any window: the largest id of the type everywhere."""
    height, width = window.height, window.width
    return Layers(
        window,
        np.full((height, width), np.iinfo(dtype).max, dtype),
        np.zeros((-(-height // _COVER_PX), -(-width // _COVER_PX)), bool),
        np.zeros((-(-height // CELL_PX), -(-width // CELL_PX)), np.uint8) if maps else None,
        np.zeros((height, -(-width // 8)), np.uint8) if maps else None,
    )


def _cells(there: tuple[slice, slice], edge: int) -> tuple[slice, slice]:
    """The cells of a grid that cover rows and columns which begin at a cell."""
    rows, columns = there
    return slice(rows.start // edge, -(-rows.stop // edge)), slice(columns.start // edge, -(-columns.stop // edge))


def _checked(values: UInt8 | Bool, size: tuple[int, int], name: str) -> UInt8 | Bool:
    if values.shape != size:
        hint = "delete its part and submit the run's command again"
        raise JobError(f"the {name} has the size {values.shape}, not {size}", hint=hint)
    return values
