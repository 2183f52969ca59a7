"""Export to GeoTIFF: masks with the transform and the coordinate system of the images that they are of.

Rows do not hold these, so the images are read again from the source of the run. Their bytes are opened from memory with
the GTiff driver alone: a file cannot lead GDAL to another file or a URL, as a VRT does.
"""

import warnings
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pipeline import optional
from pipeline.classes import ClassMap
from pipeline.config import SegmentConfig
from pipeline.export.names import Names
from pipeline.export.output import THREADS, WAITING, Outcome, is_there
from pipeline.export.png import delete_former
from pipeline.export.survey import Survey
from pipeline.image.encode import read_mask_png
from pipeline.image.headers import tiff_pages
from pipeline.image.tiff import turn_upright
from pipeline.prefetch import ahead
from pipeline.records import UInt8
from pipeline.run.masks import PartMasks
from pipeline.source.plan import plan_source, read_items
from pipeline.source.shard import Shard
from pipeline.store import objects
from pipeline.store.url import Url

SUFFIX = ".tif"
_BACK = {6: 8, 8: 6}
"""EXIF orientations that undo others; the remaining ones undo themselves."""
_ORIENTATION = 274  # tag of TIFF 6.0
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True, slots=True)
class Grid:
    """Pixel grid of a georeferenced image."""

    transform: Any
    """Affine transform from column and row to coordinates."""
    crs: Any
    """Coordinate system; None where the file names none."""
    height: int
    width: int
    """Size in pixels as stored, before any EXIF orientation."""
    orientation: int


def write_geotiffs(run: Survey, cfg: SegmentConfig, output: Url, *, resumed: bool) -> Iterator[Outcome]:
    """Write one GeoTIFF for each row with a mask whose image is georeferenced; the others are left out by reason.

    Args:
        run: run to export.
        cfg: its source, and how it was read.
        output: folder for the files.
        resumed: skip what is there; tars and Parquet files are read again all the same.

    Raises:
        ConfigError: rasterio is missing; errors of `plan_source`.
    """
    with optional.package("rasterio", extra="geo", needed_by="--to geotiff"):
        import rasterio.io  # noqa: PLC0415
    names, masks = Names(run.keys(), SUFFIX), PartMasks(run.url)
    plan = plan_source(cfg)
    with ThreadPoolExecutor(THREADS) as pool:
        wanted = {key for keys in run.masked_keys() for key in keys}
        if resumed:
            paths = ((key, output / names.path(key)) for key in sorted(wanted))
            found = ahead(pool, lambda pair: (pair[0], is_there(pair[1])), paths, WAITING)
            there = {key for key, exists in found if exists}
            yield Outcome("there", rows=len(there))
            wanted -= there

        def write(task: tuple[str, Grid | str, bytes]) -> Outcome:
            key, grid, png = task
            if isinstance(grid, str):
                return Outcome("left_out", reason=grid, key=key)
            mask_hw = turn_upright(read_mask_png(png), _BACK.get(grid.orientation, grid.orientation))
            if mask_hw.shape != (grid.height, grid.width):
                return Outcome("left_out", reason="size_differs", key=key)
            objects.put(output / names.path(key), encode_geotiff(mask_hw, grid, run.classes, rasterio))
            if resumed:
                delete_former(output, names, key)
            return Outcome("written")

        def tasks() -> Iterator[tuple[str, Grid | str, bytes]]:
            for shard in plan.shards if wanted else ():
                for key, grid in read_grids(shard, cfg, wanted, rasterio):
                    wanted.discard(key)
                    yield key, grid, masks(key)

        yield from ahead(pool, write, tasks(), WAITING)
    for key in sorted(wanted):
        yield Outcome("left_out", reason="not_found", key=key)


def read_grids(
    shard: Shard, cfg: SegmentConfig, wanted: Set[str], rasterio: ModuleType
) -> Iterator[tuple[str, Grid | str]]:
    """Key and grid of the wanted images of a shard; where there is none, a code of `ERROR_CODES` or as `read_grid`."""
    skip = frozenset(member.key for member in shard.members()) - wanted
    for item in read_items(shard, cfg.read, max_bytes=int(cfg.decode.max_mib * 2**20), skip=skip):
        if item.key in wanted:
            yield item.key, item.failure.code if item.failure else read_grid(item.data, rasterio)


def read_grid(data: bytes, rasterio: ModuleType) -> Grid | str:
    """Grid of an encoded image: `corrupt` when GDAL cannot read it, `no_georeferencing` without a transform."""
    if not data.startswith(_TIFF):
        return "no_georeferencing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            with rasterio.io.MemoryFile(data) as memory, memory.open(driver="GTiff") as image:
                if image.transform.is_identity:
                    return "no_georeferencing"
                turned = next(tiff_pages(data)).get(_ORIENTATION, 1)  # GDAL takes no notice of it
                return Grid(image.transform, image.crs, image.height, image.width, int(turned))
        except rasterio.errors.RasterioError:
            return "corrupt"


def encode_geotiff(mask_hw: UInt8, grid: Grid, classes: ClassMap, rasterio: ModuleType) -> bytes:
    """GeoTIFF of a mask: deflated tiles of class ids, colours of the classes, the ignore id as nodata."""
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "compress": "deflate", "tiled": True}
    profile |= {"height": grid.height, "width": grid.width, "transform": grid.transform, "crs": grid.crs}
    with rasterio.io.MemoryFile() as memory:
        with memory.open(**profile, nodata=classes.ignore_id) as file:
            file.write(mask_hw, 1)
            file.write_colormap(1, {index: one.colour for index, one in enumerate(classes.classes)})
        return bytes(memory.read())
