"""Masks of rasters, wherever they are: windows of a run, or a GeoTIFF of classes that another program made.

In: a run, or the URL of a file. Out: the rasters as `Assembly`s, and the layers of their squares. What is made from
masks (polygons, statistics of zones, changes) reads them here.
"""

import colorsys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from pipeline.assemble.layers import BLOCK_PX, Layers, empty_layers
from pipeline.assemble.plan import Assembly, failed_windows, plan_assemblies, read_shards
from pipeline.assemble.squares import Square, read_layers
from pipeline.classes import ClassMap
from pipeline.config import RasterConfig
from pipeline.errors import ConfigError, InputError, JobError
from pipeline.geotiff.excerpt import region_of
from pipeline.geotiff.header import read_header
from pipeline.geotiff.pyramid import NODATA
from pipeline.geotiff.raster import Raster
from pipeline.records import UInt8, Window
from pipeline.refine.window import inside
from pipeline.run import manifest
from pipeline.run.footers import read_footers
from pipeline.source.raster import NetworkBands, Ranges, RasterShard, describe
from pipeline.source.raster_windows import WindowReader
from pipeline.store import objects
from pipeline.store.backend import FileInfo
from pipeline.store.url import Url

SUFFIXES = (".tif", ".tiff")
"""Suffixes of a GeoTIFF of classes; what has none of them is the folder of a run."""
_GOLDEN = (5**0.5 - 1) / 2
"""Turn between the hues of neighbouring ids: no two of many come close."""


class MaskSource(Protocol):
    """Masks of rasters."""

    @property
    def output(self) -> Url:
        """Folder in which what is made from them is written."""

    def layers(self, group: Sequence[Square]) -> list[Layers]:
        """Layers of squares."""


@dataclass(frozen=True, slots=True)
class RunMasks:
    """Masks of a run over rasters."""

    output: Url
    """Folder of the run."""

    def layers(self, group: Sequence[Square]) -> list[Layers]:
        """Layers of squares, read from the parts. Raises StorageError, JobError for damage."""
        return read_layers(self.output, group, maps=True)

    def assemblies(self) -> list[Assembly]:
        """Rasters of the run that could be read. Raises ConfigError for a run that is none of rasters."""
        footers = read_footers(self.output)
        failed = failed_windows(key for key, _, _ in manifest.read_failures(self.output, footers))
        planned = plan_assemblies(read_shards(self.output), footers.summaries())
        return [replace(one, failed=failed.get(one.uri, 0)) for one in planned]


@dataclass(frozen=True, slots=True)
class MaskFile:
    """One GeoTIFF of classes."""

    url: Url
    name: str
    """Its path without suffix, as what is made from it is named."""
    raster: Raster

    @contextmanager
    def open(self) -> Iterator[Callable[[Window], UInt8]]:
        """Function that reads the class ids of a window of the file, 255 without data.

        Raises:
            InputError, StorageError: the file cannot be read or has changed.
        """
        with ExitStack() as threads:
            header = read_header(Ranges(self.url, self.raster.etag, self.raster.size), indices=True)
            shard = RasterShard(self.raster, whole(self.raster), BLOCK_PX, 0)
            reader = WindowReader(self.url, shard, threads, header)

            def read(window: Window) -> UInt8:
                values, valid = reader.stored(region_of(header.blocks, window), window)
                return values[0] if valid is None else np.where(valid, values[0], np.uint8(NODATA))

            yield read

    def assembly(self) -> Assembly:
        """The file as a raster whose squares are units of work."""
        root = str(self.url).removesuffix(self.url.name)
        return Assembly(self.name, root, self.raster, (), (), self.name)


def open_mask_file(url: Url, name: str | None = None) -> MaskFile:
    """Read the header of a GeoTIFF of classes.

    Args:
        url: the file.
        name: see `MaskFile.name`; None takes that of the file.

    Raises:
        ConfigError: it cannot be read, or is no raster of one band of 8 bits.
    """
    try:
        info = objects.info(url)
        file = FileInfo(url.name, info.size, info.etag)
        raster, _, _ = describe(url, file, RasterConfig(), NetworkBands(("class",)), indices=True)
    except FileNotFoundError as error:
        raise ConfigError(f"{url.located} does not exist") from error
    except InputError as error:
        hint = "give the folder of a run, or a GeoTIFF with one band of class ids"
        raise ConfigError(f"{url} cannot be read as a mask: {error}", hint=hint) from error
    if raster.dtype != "uint8":
        raise ConfigError(f"{url} has samples of {raster.dtype}; class ids are uint8, 0 to 254")
    return MaskFile(url, name or url.name.rsplit(".", 1)[0], raster)


@dataclass(frozen=True, slots=True)
class FileMasks:
    """One GeoTIFF of classes, and where what is made from it is written."""

    file: MaskFile
    output: Url
    classes: ClassMap

    def layers(self, group: Sequence[Square]) -> list[Layers]:
        """Layers of squares: class ids alone.

        Raises:
            InputError, StorageError: the file cannot be read or has changed.
            JobError: it has an id that the class map does not know.
        """
        return [self._square(square) for square in group]

    def _square(self, square: Square) -> Layers:
        layers = empty_layers(square.window, maps=False)
        layers.covered[:] = True
        with self.file.open() as read:
            for block in layers.blocks():
                layers.ids_hw[inside(square.window, block.window)] = check_ids(
                    read(block.window), self.classes, str(self.file.url)
                )
        return layers


def check_ids(ids_hw: UInt8, classes: ClassMap, name: str) -> UInt8:
    """The same ids. Raises JobError for one that the class map does not know."""
    unknown = (ids_hw >= len(classes)) & (ids_hw != NODATA)
    if unknown.any():
        first = ids_hw[unknown][0]
        text = f"{name} has the class id {first}; the class map {classes.name!r} ends at {len(classes) - 1}"
        raise JobError(text, hint="give the mask's own --classes, or none")
    return ids_hw


def numbered_classes() -> ClassMap:
    """Class map of a mask that nobody has named: the ids 0 to 254 as names, hues a golden angle apart."""
    hues = [colorsys.hsv_to_rgb(index * _GOLDEN % 1, 0.6, 0.85) for index in range(NODATA)]
    colours = [tuple(round(255 * part) for part in hue) for hue in hues]
    classes = [{"name": str(index), "colour": colour} for index, colour in enumerate(colours)]
    return ClassMap.model_validate({"name": "ids", "classes": classes})


def whole(raster: Raster) -> Window:
    """Rectangle of a whole raster."""
    return Window(0, 0, raster.height, raster.width)
