"""Masks of rasters, wherever they are: windows of a run, or a GeoTIFF of classes that another program made.

In: a run, or the URL of a file. Out: the rasters as `Assembly`s, and the layers of their squares. What is made from
masks (polygons, statistics of zones, changes) reads them here.
"""

import colorsys
from collections.abc import Sequence
from contextlib import ExitStack
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
from pipeline.geotiff.pyramid import NODATA
from pipeline.records import UInt8, Window
from pipeline.refine.window import inside
from pipeline.run import manifest, parts
from pipeline.source.raster import NetworkBands, RasterShard, describe
from pipeline.source.raster_windows import WindowReader
from pipeline.store import objects
from pipeline.store.backend import FileInfo
from pipeline.store.url import Url

_GOLDEN = (5**0.5 - 1) / 2
"""Turn between the hues of neighbouring ids: no two of many come close."""


class Masks(Protocol):
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
        footers = manifest.read_footers(self.output)
        failures = manifest.read_failures(self.output) if parts.failed_of(footers) else []
        failed = failed_windows(key for key, _, _ in failures)
        planned = plan_assemblies(read_shards(self.output), footers)
        return [replace(one, failed=failed.get(one.uri, 0)) for one in planned]


@dataclass(frozen=True, slots=True)
class FileMask:
    """One GeoTIFF of classes."""

    url: Url
    output: Url
    classes: ClassMap

    def assembly(self) -> Assembly:
        """The file as a raster.

        Raises:
            ConfigError: it cannot be read, or is no raster of one band of 8 bits.
        """
        try:
            info = objects.info(self.url)
            file = FileInfo(self.url.name, info.size, info.etag)
            raster, _, _ = describe(self.url, file, RasterConfig(), NetworkBands(("class",)))
        except FileNotFoundError as error:
            raise ConfigError(f"{self.url.located} does not exist") from error
        except InputError as error:
            hint = "give the folder of a run, or a GeoTIFF with one band of class ids"
            raise ConfigError(f"{self.url} cannot be read as a mask: {error}", hint=hint) from error
        if raster.dtype != "uint8":
            raise ConfigError(f"{self.url} has samples of {raster.dtype}; class ids are uint8, 0 to 254")
        root = str(self.url).removesuffix(self.url.name)
        return Assembly(self.url.name, root, raster, (), (), self.url.name.rsplit(".", 1)[0])

    def layers(self, group: Sequence[Square]) -> list[Layers]:
        """Layers of squares: class ids alone, 255 where the file has no data.

        Raises:
            InputError, StorageError: the file cannot be read or has changed.
            JobError: it has an id that the class map does not know.
        """
        return [self._square(square) for square in group]

    def _square(self, square: Square) -> Layers:
        layers = empty_layers(square.window, maps=False)
        layers.covered[:] = True
        raster = square.assembly.raster
        with ExitStack() as threads:
            reader = WindowReader(self.url, RasterShard(raster, square.window, BLOCK_PX, 0), threads)
            for block in layers.blocks():
                values, valid = reader.stored(region_of(reader.header.blocks, block.window), block.window)
                there = layers.ids_hw[inside(square.window, block.window)]
                there[:] = values[0] if valid is None else np.where(valid, values[0], NODATA)
                self._check_ids(there)
        return layers

    def _check_ids(self, ids_hw: UInt8) -> None:
        unknown = np.setdiff1d(ids_hw, [*range(len(self.classes)), NODATA])
        if unknown.size:
            text = f"{self.url} has the class id {unknown[0]}; the class map {self.classes.name!r} ends at "
            raise JobError(f"{text}{len(self.classes) - 1}", hint="give the mask's own --classes, or none")


def numbered_classes() -> ClassMap:
    """Class map of a mask that nobody has named: the ids 0 to 254 as names, hues a golden angle apart."""
    hues = [colorsys.hsv_to_rgb(index * _GOLDEN % 1, 0.6, 0.85) for index in range(NODATA)]
    colours = [tuple(round(255 * part) for part in hue) for hue in hues]
    classes = [{"name": str(index), "colour": colour} for index, colour in enumerate(colours)]
    return ClassMap.model_validate({"name": "ids", "classes": classes})


def whole(assembly: Assembly) -> Window:
    """Rectangle of a whole raster."""
    return Window(0, 0, assembly.raster.height, assembly.raster.width)
