"""Rasters of a run: their list, and tiles of their sources and masks at the levels of the mask's pyramid.

In: the stored plan of a run. Out: rasters by their number in the plan, and tiles of 512 pixels. Paths of files come
from the plan alone, so that a request names nothing but numbers.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.assemble.plan import mask_names
from pipeline.errors import InputError, StorageError
from pipeline.geotiff.overview import MaskPyramid
from pipeline.geotiff.pyramid import TILE_PX, level_sizes
from pipeline.geotiff.raster import Raster
from pipeline.records import Failure
from pipeline.source.raster import Ranges, RasterShard, unpack
from pipeline.source.shard import Shard
from pipeline.store import objects
from pipeline.store.backend import FileInfo
from pipeline.store.url import Url
from pipeline.view.originals import Originals
from pipeline.view.outlines import Outlines
from pipeline.view.source_tiles import MOST_TILE_BYTES, SourceTiles
from pipeline.view.window_masks import levels_of_windows

OPEN_FILES = 8
"""Sources and masks whose headers are kept."""


@dataclass(frozen=True, slots=True)
class RunRaster:
    """One raster of a run."""

    uri: str
    """Start of the keys of its windows."""
    url: Url
    """Where its source is now."""
    shard: RasterShard
    """Its first shard: its description, the size of its windows and the scale of its samples."""
    windows: int
    name: str
    """Path of its mask and polygons, without suffix."""

    @property
    def raster(self) -> Raster:
        """Its description in the plan."""
        return self.shard.raster


class Rasters:
    """Rasters of one run. Calls from several threads are safe."""

    def __init__(self, run_url: Url, originals: Originals) -> None:
        """Read the rasters of the plan; those that could not be read are counted in `unreadable`."""
        self._run_url, self._originals = run_url, originals
        self.all, self.unreadable = _rasters_of(originals)
        self.outlines = Outlines(run_url)
        self._source = lru_cache(OPEN_FILES)(self._open_source)
        self._mask = lru_cache(OPEN_FILES)(self._open_mask)

    def listed(self) -> list[dict[str, Any]]:
        """Name, size and windows of each raster, in the order of their numbers, and whether it has a mask."""
        masks = set(objects.list_below(self._run_url / "masks"))
        return [
            {
                "uri": one.uri,
                "height": one.raster.height,
                "width": one.raster.width,
                "windows": one.windows,
                "core_px": one.shard.core_px,
                "assembled": f"{one.name}.tif" in masks,
            }
            for one in self.all
        ]

    def described(self, number: int) -> dict[str, Any]:
        """Levels of a raster, at which of them its source and its mask are shown, and why not at all."""
        one = self.raster(number)
        sizes = level_sizes(one.raster.height, one.raster.width)
        source_levels, source_problem = self._source_levels(number, sizes)
        mask_levels, mask_problem = self._mask_levels(number, sizes)
        return {
            "tile_px": TILE_PX,
            "sizes": sizes,
            "source_levels": source_levels,
            "source_problem": source_problem,
            "mask_levels": mask_levels,
            "mask_problem": mask_problem,
            "outlines": self.outlines.kinds(one.name),
        }

    def raster(self, number: int) -> RunRaster:
        """Raster of a number; LookupError for one that the list does not have."""
        if not 0 <= number < len(self.all):
            raise LookupError(f"no raster {number} among {len(self.all)}")
        return self.all[number]

    def source(self, number: int) -> SourceTiles:
        """Tiles of a source; raises as `SourceTiles`, and InputError `source_changed`."""
        one = self.raster(number)
        return self._source(number, self._originals.present(one.url, one.raster))

    def mask(self, number: int) -> tuple[MaskPyramid, str]:
        """Tiles of a mask, and its version.

        Raises:
            InputError: `mask_missing` where the windows are not joined.
            StorageError: the file is no mask of this raster.
        """
        url = self._mask_url(number)
        try:
            info = objects.info(url)
        except FileNotFoundError as error:
            detail = "the windows of this raster are not joined to a mask"
            raise InputError("mask_missing", detail, hint=f"run `atrous assemble {self._run_url}`") from error
        return self._mask(number, info), info.etag

    def _mask_url(self, number: int) -> Url:
        return self._run_url / f"masks/{self.raster(number).name}.tif"

    def _open_source(self, number: int, present: Raster) -> SourceTiles:
        one = self.raster(number)
        shard = RasterShard(present, one.shard.window, one.shard.core_px, one.shard.halo_px, one.shard.scale)
        return SourceTiles(one.url, shard)

    def _open_mask(self, number: int, info: FileInfo) -> MaskPyramid:
        url, raster = self._mask_url(number), self.raster(number).raster
        with objects.naming_damage(url, hint=f"delete it and run `atrous assemble {self._run_url}`"):
            pyramid = MaskPyramid(Ranges(url, info.etag, info.size))
            if pyramid.sizes != level_sizes(raster.height, raster.width):
                raise ValueError(f"it is no mask of {raster.width}x{raster.height} pixels with overviews")
        return pyramid

    def _source_levels(self, number: int, sizes: list[tuple[int, int]]) -> tuple[list[int], str | None]:
        """Levels at which a source is shown, and the reason why it is not at the others."""
        try:
            tiles = self.source(number)
        except (InputError, StorageError) as error:
            return [], f"the source is not shown: {error}"
        levels = tiles.levels
        if len(levels) == len(sizes):
            return levels, None
        worst = max(size for level, size in enumerate(tiles.tile_bytes) if level not in levels)
        return levels, (
            f"the source is not shown at this zoom: it has no overview near it, and a tile would decode "
            f"{worst / 2**20:,.0f} MiB, limit {MOST_TILE_BYTES // 2**20} MiB; zoom in to see it"
        )

    def _mask_levels(self, number: int, sizes: list[tuple[int, int]]) -> tuple[list[int], str | None]:
        """Levels at which a mask is shown, and what is wrong with it."""
        try:
            self.mask(number)
        except InputError as error:
            if error.code != "mask_missing":
                return [], f"the mask is not shown: {error}"
            levels = levels_of_windows(self.raster(number).shard)
            where = "" if len(levels) == len(sizes) else " up close"
            return levels, f"masks of single windows are shown{where}: they are not joined, {error.hint}"
        except StorageError as error:
            return [], f"the mask is not shown: {error}"
        return list(range(len(sizes))), None


def _rasters_of(originals: Originals) -> tuple[list[RunRaster], int]:
    """Rasters by their first shard, in the order of the plan, and the number of those that could not be read."""
    first: dict[str, Shard] = {}
    windows = Counter[str]()
    for shard in originals.raster_shards():
        first.setdefault(shard.uri, shard)
        windows[shard.uri] += shard.rows or 0
    opened = {uri: unpack(shard) for uri, shard in first.items()}
    readable = {uri: here for uri, here in opened.items() if not isinstance(here, Failure)}
    names = mask_names(list(readable))
    rasters = [RunRaster(uri, first[uri].url, here, windows[uri], names[uri]) for uri, here in readable.items()]
    return rasters, len(opened) - len(readable)
