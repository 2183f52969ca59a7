"""Statistics of zones, square by square: sums over the pixels of each class in each zone.

In: masks, the rasters they are of, and for each square the zones that touch it. Out: one small object of sums per
square. All work is idempotent; sums of integers do not depend on who does it, or on how windows lie.

    _run/zones/<id>/<number>.zones      zones of a square, in pixels of its raster
    _run/zones/<id>/<number>.parquet    sums by zone and class
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.assemble.layers import BLOCK_PX, Block, Layers
from pipeline.assemble.masks import MaskSource
from pipeline.assemble.squares import Square
from pipeline.errors import InputError, StorageError
from pipeline.geotiff.excerpt import region_of
from pipeline.records import Float64, Window
from pipeline.source.raster import RasterShard
from pipeline.source.raster_windows import WindowReader
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector.area import pixel_areas
from pipeline.vector.geoparquet import load_shapely
from pipeline.vector.grid import box_of
from pipeline.zones.counts import PIXELS, zone_runs, zone_sums

WAITING = "_run/zones"
"""Folder of what squares wait for and have counted."""
MEAN = "mean_"
"""Start of the names of sums of bands, and of the columns of their means."""
UNREAD_KEY = b"atrous.unread"
"""Metadata of sums: why the bands of the raster could not be read."""


@dataclass(frozen=True, slots=True)
class ZoneWork:
    """Zones to be counted on some masks."""

    masks: MaskSource
    num_classes: int
    id: str
    """Of the zones, the masks and the settings."""
    bands: bool
    """Sum the bands of the rasters too."""

    def url(self, number: int, suffix: str) -> Url:
        """URL of the zones or the sums of a square."""
        return self.masks.output / f"{WAITING}/{self.id}/{number}.{suffix}"


@dataclass(frozen=True, slots=True)
class ZoneSquare:
    """Square with zones in it."""

    square: Square
    number: int
    """Of the square among those with zones."""


@dataclass
class Sums:
    """Sums over the pixels of each class in each of N zones; the column behind the K classes is without data."""

    zones: int
    classes: int
    by_name: dict[str, Float64] = field(default_factory=dict)
    """(N, K + 1) by name."""

    def add(self, some: npt.NDArray[Any], sums: dict[str, Float64]) -> None:
        """Add the sums of some zones."""
        for name, values in sums.items():
            if name not in self.by_name:
                self.by_name[name] = np.zeros((self.zones, self.classes + 1))
            self.by_name[name][some] += values


def encode_zones(numbers: npt.NDArray[Any], shapes: npt.NDArray[Any]) -> bytes:
    """Zones of a square: their numbers in the file, and their shapes in pixels of the raster."""
    table = pa.table({"zone": numbers, "shape": pa.array(load_shapely().to_wkb(shapes), pa.binary())})
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def do_squares(group: Sequence[ZoneSquare], *, work: ZoneWork) -> None:
    """Count the zones of some squares."""
    for one, layers in zip(group, work.masks.layers([one.square for one in group]), strict=True):
        table = pq.read_table(io.BytesIO(objects.read_bytes(work.url(one.number, "zones"))))
        shapes = load_shapely().from_wkb(np.array(table["shape"].to_pylist(), object))
        sums, unread = count_square(one.square, layers, shapes, work.num_classes, bands=work.bands)
        counted = _table(table["zone"].to_numpy(), sums, one.square)
        out = io.BytesIO()
        pq.write_table(counted.replace_schema_metadata({UNREAD_KEY: unread}), out, compression="zstd")
        objects.put(work.url(one.number, "parquet"), out.getvalue())


def count_square(
    square: Square, layers: Layers, shapes: npt.NDArray[Any], num_classes: int, *, bands: bool
) -> tuple[Sums, str]:
    """Sums of zones over a square, and why the bands of the raster could not be read; empty where they were.

    Args:
        square: the square.
        layers: its masks.
        shapes: (N,) zones, in pixels of the raster.
        num_classes: K.
        bands: sum the bands too.
    """
    tree = load_shapely().STRtree(shapes)
    sums, unread = Sums(len(shapes), num_classes), ""
    with ExitStack() as threads:
        reader = _reader(square, threads) if bands else None
        for block in layers.blocks():
            near = _near(tree, block.window)
            if not len(near):
                continue
            values, areas = _values(block), pixel_areas(square.assembly.raster, block.window)
            if reader is not None:
                try:
                    values |= band_values(reader, block.window)
                except (InputError, FileNotFoundError, StorageError) as error:
                    reader, unread = None, f"{square.assembly.uri}: {error}"
            for some, counted in zone_sums(block, shapes[near], values, num_classes, areas):
                sums.add(near[some], counted)
            for number, pixels in _failed(block, shapes[near]):
                sums.add(near[[number]], {"failed": np.eye(1, num_classes + 1, num_classes) * pixels})
    return sums, unread


def _near(tree: Any, window: Window) -> npt.NDArray[Any]:
    return np.sort(tree.query(box_of(window), predicate="intersects"))


def _values(block: Block) -> dict[str, npt.NDArray[Any]]:
    """What is summed beside pixels and hectares: the network's confidence, and what the refiner changed."""
    values: dict[str, npt.NDArray[Any]] = {}
    confidence_hw, changed_hw = block.confidence(), block.changed()
    if confidence_hw is not None and changed_hw is not None:
        known = confidence_hw > 0
        values |= {"confidence": confidence_hw, "confidence_pixels": known, "changed": changed_hw & known}
    return values


def _failed(block: Block, shapes: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Number of each zone with pixels in windows without an answer, and how many."""
    for window in block.failed:
        runs = zone_runs(shapes, window)
        pixels = np.bincount(runs.zone, runs.end - runs.start, minlength=len(shapes))
        yield from ((int(number), int(pixels[number])) for number in np.flatnonzero(pixels))


def _reader(square: Square, threads: ExitStack) -> WindowReader:
    raster = square.assembly.raster
    url = Url(square.assembly.root) / raster.path
    return WindowReader(url, RasterShard(raster, square.window, BLOCK_PX, 0), threads)


def band_values(reader: WindowReader, window: Window) -> dict[str, npt.NDArray[Any]]:
    """Stored values of the network's bands in a window, by `mean_<band>`; NDVI where there are red and near infrared.

    NDVI = (nir - red) / (nir + red), of stored values (Rouse and others 1974, NASA SP-351, vol. 1, p. 309).

    Raises:
        InputError, FileNotFoundError, StorageError: the raster cannot be read.
    """
    stored, valid = reader.stored(region_of(reader.header.blocks, window), window)
    planes = dict(zip(reader.raster.channels, stored, strict=True))
    if valid is not None:
        planes = {name: np.where(valid, plane, 0) for name, plane in planes.items()}
    values = {f"{MEAN}{name}": plane for name, plane in planes.items()}
    values["band_pixels"] = np.ones(stored.shape[1:], bool)
    if {"red", "nir"} <= planes.keys():
        red, nir = planes["red"].astype(np.float64), planes["nir"].astype(np.float64)
        some = nir + red != 0
        values |= {"ndvi": np.divide(nir - red, nir + red, out=np.zeros_like(red), where=some), "ndvi_pixels": some}
    return values


def _table(zones: npt.NDArray[Any], sums: Sums, square: Square) -> pa.Table:
    """Sums of the classes that occur, and a row without a class (K) for each zone with pixels without data."""
    pixels = sums.by_name.get(PIXELS, np.zeros((sums.zones, sums.classes + 1)))
    row, class_id = np.nonzero(pixels)
    columns: dict[str, Any] = {"zone": zones[row], "class_id": class_id, "raster": [square.assembly.uri] * len(row)}
    columns["datetime"] = pa.array([square.assembly.raster.datetime] * len(row), pa.string())
    return pa.table(columns | {name: values[row, class_id] for name, values in sums.by_name.items()})
