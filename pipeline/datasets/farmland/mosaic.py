"""Orthomosaic of the generated farmland: a GeoTIFF of any size with four bands, coordinates, and a wedge without data.

In: a size and a seed. Out: a raster of red, green, blue and near infrared, and if asked for its label on the same grid.
The land is divided along winding roads into territories. Each is a scene of its own, in the light of one flight and
with the landscape's rivers, and is cut out along the middle of the roads, which both neighbours draw. So memory holds
a few scenes and strips, however large the mosaic is. The same seed and size give the same bytes on every machine with
the same releases of NumPy, Pillow and GDAL.
"""

import itertools
import multiprocessing
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.classes import load_class_map
from pipeline.datasets.farmland.territories import NODATA, Territory, plan_territories
from pipeline.geotiff.decode import load_rasterio
from pipeline.records import UInt8
from pipeline.store import objects
from pipeline.store.url import Url

CRS, PIXEL_M, WEST_M, NORTH_M = "EPSG:32632", 0.25, 560_000, 5_800_000
"""UTM zone 32 north; size of a pixel, and the upper left corner, metres."""
NO_CLASS = 255
TILE_PX = 512
WEDGE_SHARE = 0.12
"""Breadth of the wedge without data at the upper edge, as a share of the width; at the lower edge it ends."""

_CHUNK_BYTES = 2**23


def write_mosaic(url: Url, *, size_px: int = 10_240, seed: int, label: Url | None = None, workers: int = 1) -> None:
    """Write an orthomosaic as a tiled GeoTIFF, and its label if asked for.

    The mosaic has four bands of uint8, named red, green, blue and nir; 0 in all of them where there is no data, and in
    none elsewhere. The label has the class ids of `pipeline/palettes/farmland.yaml`, and 255 where there is no data.

    Args:
        url: the mosaic, local or in an object store.
        size_px: height and width, pixels.
        seed: 0 or larger.
        label: the label raster; None writes none.
        workers: number of processes that generate scenes.

    Raises:
        ConfigError: rasterio is missing.
    """
    rasterio = load_rasterio()
    urls = [url] if label is None else [url, label]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.tif" for index in range(len(urls))]
        with ExitStack() as stack:
            rasters = [
                stack.enter_context(rasterio.open(path, "w", **_profile(rasterio, size_px, is_label=path != paths[0])))
                for path in paths
            ]
            rasters[0].descriptions = ("red", "green", "blue", "nir")
            if label is not None:
                rasters[1].write_colormap(1, _colormap())
            for top, strip in generate_strips(size_px, seed, workers=workers):
                window = rasterio.windows.Window(0, top, size_px, len(strip))
                for raster, bands in zip(rasters, (strip[..., :4], strip[..., 4:]), strict=False):
                    raster.write(np.moveaxis(bands, -1, 0), window=window)
        for path, place in zip(paths, urls, strict=True):
            with path.open("rb") as file:
                objects.put_stream(place, iter(lambda: file.read(_CHUNK_BYTES), b""))


def _profile(rasterio: Any, size_px: int, *, is_label: bool) -> dict[str, Any]:
    own = (
        {"count": 1, "nodata": NO_CLASS}
        if is_label
        else {"count": 4, "nodata": NODATA, "predictor": 2, "photometric": "RGB", "alpha": "UNSPECIFIED"}
    )
    return own | {
        "driver": "GTiff",
        "dtype": "uint8",
        "width": size_px,
        "height": size_px,
        "crs": CRS,
        "transform": rasterio.Affine(PIXEL_M, 0, WEST_M, 0, -PIXEL_M, NORTH_M),
        "tiled": True,
        "blockxsize": TILE_PX,
        "blockysize": TILE_PX,
        "compress": "deflate",
        "zlevel": 1,  # the grain of the camera does not compress, at any level
        "BIGTIFF": "IF_SAFER",
    }


def _colormap() -> dict[int, tuple[int, int, int]]:
    classes = load_class_map("farmland").classes
    return {index: (one.colour[0], one.colour[1], one.colour[2]) for index, one in enumerate(classes)}


def generate_strips(size_px: int, seed: int, *, workers: int = 1) -> Iterator[tuple[int, UInt8]]:
    """Generate the mosaic from north to south: the first row and (`TILE_PX`, W, 5) bands and class of each strip."""
    territories = plan_territories(size_px, seed)
    strips: dict[int, UInt8] = {}
    done = 0
    for territory, final, scene_hwc in zip(
        territories, _rows_complete(territories, size_px), _paint_all(territories, workers), strict=True
    ):
        _paste(strips, territory, scene_hwc, size_px=size_px)
        while done < final and (done + TILE_PX <= final or final == size_px):
            yield done, _with_wedge(strips.pop(done), done, size_px)
            done += TILE_PX


def _rows_complete(territories: Sequence[Territory], size_px: int) -> list[int]:
    """Number of rows of the mosaic that are complete after each territory."""
    tops = [territory.top for territory in territories[1:]] + [size_px]
    return list(itertools.accumulate(reversed(tops), min))[::-1]


def _paint_all(territories: Iterable[Territory], workers: int) -> Iterator[UInt8]:
    if workers == 1:
        yield from map(Territory.paint, territories)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(Territory.paint, territories)


def _paste(strips: dict[int, UInt8], territory: Territory, scene_hwc: UInt8, *, size_px: int) -> None:
    """Paste a scene into strips by their first row, the later one over the earlier; new strips have no class."""
    columns = slice(territory.left, territory.left + territory.width)
    bottom, inside_hw = territory.top + territory.height, territory.is_inside()
    for first in range(territory.top // TILE_PX * TILE_PX, bottom, TILE_PX):
        if first not in strips:
            strips[first] = np.full((min(TILE_PX, size_px - first), size_px, 5), NO_CLASS, np.uint8)
        start, stop = max(first, territory.top), min(first + TILE_PX, bottom)
        rows = slice(start - territory.top, stop - territory.top)
        strips[first][start - first : stop - first, columns][inside_hw[rows]] = scene_hwc[rows][inside_hw[rows]]


def _with_wedge(strip_hwc: UInt8, top: int, size_px: int) -> UInt8:
    """Take the data out of the wedge along the east side."""
    y, x = np.ogrid[top : top + len(strip_hwc), 0:size_px]
    outside = x >= size_px - WEDGE_SHARE * (size_px - y)
    strip_hwc[outside] = (NODATA, NODATA, NODATA, NODATA, NO_CLASS)
    return strip_hwc
