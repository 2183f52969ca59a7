"""Picture of a class mask for a map: warped to web Mercator, in class colours, clear where there is no data.

In: class ids on the grid of a raster. Out: a picture and its bounds. Classes are never averaged.
"""

import io
import math

import numpy as np
from PIL import Image

from pipeline.classes import ClassMap
from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.overview import Overview
from pipeline.geotiff.pyramid import NODATA
from pipeline.geotiff.raster import Transform
from pipeline.page.frame import data_uri
from pipeline.page.map import MapImage

_MERCATOR = "EPSG:3857"
_RADIUS_M = 6_378_137.0
"""Of the sphere of web Mercator, EPSG method 1024."""


def mask_overlay(
    overview: Overview, transform: Transform, crs_wkt: str, classes: ClassMap, *, title: str
) -> MapImage | None:
    """Picture of a mask on a map, which does not cross the 180th meridian; None where it has no place there.

    Args:
        overview: a level of the mask.
        transform: transform of the mask's full size.
        crs_wkt: its coordinate system.
        classes: class map.
        title: name of the mask.
    """
    rasterio = load_rasterio()
    from rasterio import warp  # noqa: PLC0415
    from rasterio._err import CPLE_BaseError  # noqa: PLC0415  # what GDAL says; rasterio exports no name for it

    height, width = overview.ids_hw.shape
    affine = rasterio.Affine(*transform) @ rasterio.Affine.scale(overview.width / width, overview.height / height)
    corners = [affine @ (x, y) for x in (0, width) for y in (0, height)]
    xs, ys = zip(*corners, strict=True)
    try:
        with rasterio.Env(GDAL_NUM_THREADS="1"):
            place = warp.calculate_default_transform(
                crs_wkt, _MERCATOR, width, height, min(xs), min(ys), max(xs), max(ys)
            )
            target, columns, rows = place
            out = np.full((rows, columns), NODATA, np.uint8)
            source = {"src_transform": affine, "src_crs": crs_wkt, "src_nodata": NODATA}
            grid = {"dst_transform": target, "dst_crs": _MERCATOR, "dst_nodata": NODATA}
            warp.reproject(overview.ids_hw, out, **source, **grid, resampling=rasterio.enums.Resampling.nearest)
    except (rasterio.errors.RasterioError, CPLE_BaseError):
        return None
    west, north = target @ (0, 0)
    east, south = target @ (columns, rows)
    picture = Image.fromarray(out, mode="P")
    picture.putpalette(classes.png_palette())
    data = io.BytesIO()
    picture.save(data, "PNG", transparency=NODATA, compress_level=9)
    bounds = (_latitude(south), math.degrees(west / _RADIUS_M)), (_latitude(north), math.degrees(east / _RADIUS_M))
    return MapImage(data_uri(data.getvalue(), "PNG"), bounds, title)


def _latitude(y: float) -> float:
    """Degrees of a place in web Mercator, metres."""
    return math.degrees(2 * math.atan(math.exp(y / _RADIUS_M)) - math.pi / 2)
