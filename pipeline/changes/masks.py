"""Masks of change: for each pixel of the earlier mask, its class before and after.

In: pairs of masks. Out: `Layers` whose ids are before * K + after, so that polygons and statistics of zones are made
of change as of classes. The later mask is brought to the grid of the earlier one: each pixel takes the class at its
centre.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.assemble.layers import Block, Layers, empty_layers
from pipeline.assemble.masks import MaskFile, check_ids
from pipeline.assemble.squares import Square
from pipeline.classes import ClassMap
from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.pyramid import NODATA
from pipeline.geotiff.raster import Raster
from pipeline.polygons.table import class_column, class_field
from pipeline.records import Ids, UInt8, Window
from pipeline.refine.window import inside
from pipeline.store.url import Url

_EDGE_POINTS = 21
"""Points of each edge of a block by which its place in another grid is found."""
_MARGIN_PX = 2


@dataclass(frozen=True, slots=True)
class Changes:
    """Columns of the class before and after."""

    names: tuple[str, ...]

    @property
    def fields(self) -> Sequence[pa.Field]:
        """Names and types of the columns."""
        ids = [pa.field(name, pa.uint8(), nullable=False) for name in ("from_id", "to_id")]
        return ids[0], class_field("from"), ids[1], class_field("to")

    def columns(self, class_ids: Ids) -> dict[str, Any]:
        """Values of the columns."""
        before, after = np.divmod(class_ids, len(self.names))
        columns = {"from": class_column(before, self.names), "to": class_column(after, self.names)}
        return {"from_id": before.astype(np.uint8), "to_id": after.astype(np.uint8)} | columns

    def __len__(self) -> int:
        return len(self.names) ** 2


@dataclass(frozen=True, slots=True)
class ChangeMasks:
    """Masks of change of some earlier masks."""

    output: Url
    before: dict[str, MaskFile]
    """Earlier masks by name."""
    after: dict[str, tuple[MaskFile, ...]]
    """Later masks on the ground of each."""
    classes: ClassMap
    changed_only: bool = False
    """Take pixels whose class is the same for pixels without data."""

    def layers(self, group: Sequence[Square]) -> list[Layers]:
        """Layers of squares of the earlier masks.

        Raises:
            InputError, StorageError: a mask cannot be read or has changed.
            JobError: a mask has an id that the class map does not know.
        """
        return [self._square(square) for square in group]

    def _square(self, square: Square) -> Layers:
        count = len(self.classes)
        layers = empty_layers(square.window, maps=False, dtype=np.uint16)
        layers.covered[:] = True
        before = self.before[square.assembly.name]
        with ExitStack() as opened:
            read = opened.enter_context(before.open())
            later = [(one, opened.enter_context(one.open())) for one in self.after[before.name]]
            for block in layers.blocks():
                first = check_ids(read(block.window), self.classes, str(before.url))
                second = self._after(block, before.raster, later)
                known = (first < count) & (second < count)
                if self.changed_only:
                    known &= first != second
                pair = first.astype(np.uint16) * np.uint16(count) + second
                layers.ids_hw[inside(square.window, block.window)][known] = pair[known]
        return layers

    def _after(self, block: Block, grid: Raster, later: Sequence[tuple[MaskFile, Callable[[Window], UInt8]]]) -> UInt8:
        """(h, w) later class of each pixel, 255 without; of several masks, the first one that has data there."""
        out = np.full(block.ids_hw.shape, NODATA, np.uint8)
        for file, read in later:
            there = place_in(grid, block.window, file.raster)
            if there is not None and (out == NODATA).any():
                ids_hw = check_ids(read(there), self.classes, str(file.url))
                here = resampled(ids_hw, there, file.raster, block.window, grid)
                out = np.where(out == NODATA, here, out)
        return out


def place_in(grid: Raster, window: Window, other: Raster) -> Window | None:
    """Window of another raster that covers a window of a raster, with a margin; None where it lies outside."""
    rasterio = load_rasterio()
    from rasterio.warp import transform as project  # noqa: PLC0415

    steps = np.linspace(0, 1, _EDGE_POINTS)
    x = window.x + window.width * np.concatenate([steps, steps, steps * 0, steps * 0 + 1])
    y = window.y + window.height * np.concatenate([steps * 0, steps * 0 + 1, steps, steps])
    affine, inverse = rasterio.Affine(*(grid.transform or ())), ~rasterio.Affine(*(other.transform or ()))
    xs, ys = affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f
    with rasterio.Env():
        xs, ys = (np.array(values) for values in project(grid.crs_wkt, other.crs_wkt, xs, ys))
    columns, rows = inverse.a * xs + inverse.b * ys + inverse.c, inverse.d * xs + inverse.e * ys + inverse.f
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        return Window(0, 0, other.height, other.width)
    left, top = max(int(columns.min()) - _MARGIN_PX, 0), max(int(rows.min()) - _MARGIN_PX, 0)
    right = min(int(np.ceil(columns.max())) + _MARGIN_PX, other.width)
    bottom = min(int(np.ceil(rows.max())) + _MARGIN_PX, other.height)
    return Window(top, left, bottom - top, right - left) if right > left and bottom > top else None


def resampled(ids_hw: UInt8, there: Window, other: Raster, window: Window, grid: Raster) -> UInt8:
    """Class ids of a window of another raster at the centres of the pixels of a window of a grid, 255 without data."""
    rasterio = load_rasterio()
    from rasterio.warp import reproject  # noqa: PLC0415

    out = np.full((window.height, window.width), NODATA, np.uint8)
    source, target = rasterio.Affine(*(other.transform or ())), rasterio.Affine(*(grid.transform or ()))
    with rasterio.Env(GDAL_NUM_THREADS="1"):
        reproject(
            ids_hw,
            out,
            src_transform=source @ rasterio.Affine.translation(there.x, there.y),
            src_crs=other.crs_wkt,
            src_nodata=NODATA,
            dst_transform=target @ rasterio.Affine.translation(window.x, window.y),
            dst_crs=grid.crs_wkt,
            dst_nodata=NODATA,
            resampling=rasterio.enums.Resampling.nearest,
            tolerance=0,
        )
    return out
