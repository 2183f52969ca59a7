"""Picture of a large raster: the reduced raster beside its mask in class colours.

In: paths of two GeoTIFFs on one grid. Out: a PNG. GDAL reads block by block and averages, so memory stays small.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.classes import ClassMap
from pipeline.geotiff.decode import load_rasterio
from pipeline.page.paint import paint
from pipeline.records import UInt8

_GAP_PX = 12


def raster_picture(raster: Path, mask: Path, classes: ClassMap, *, longer_px: int = 1024) -> bytes:
    """Draw the first three bands of a raster and its mask side by side, as PNG.

    Args:
        raster: GeoTIFF of three or more bands of uint8.
        mask: GeoTIFF of class ids of the same size.
        classes: the class map.
        longer_px: longer side of each of both pictures at most, pixels.

    Raises:
        ConfigError: rasterio is missing.
        ValueError: the sizes differ.
    """
    rasterio = load_rasterio()
    with rasterio.open(raster, driver="GTiff") as image, rasterio.open(mask, driver="GTiff") as ids:
        if image.shape != ids.shape:
            raise ValueError(f"{raster.name} is {image.shape} pixels, its mask {ids.shape}")
        scale = min(1.0, longer_px / max(image.shape))
        height, width = (max(1, round(side * scale)) for side in image.shape)
        average = rasterio.enums.Resampling.average
        bands: UInt8 = image.read([1, 2, 3], out_shape=(3, height, width), resampling=average)
        mask_hw: UInt8 = ids.read(1, out_shape=(height, width))  # nearest, from an overview: ids are never averaged
    gap = np.full((height, _GAP_PX, 3), 255, np.uint8)
    out = BytesIO()
    Image.fromarray(np.hstack([np.moveaxis(bands, 0, -1), gap, paint(mask_hw, classes)])).save(out, "PNG")
    return out.getvalue()
