"""Decoding of an excerpt of a raster: a small TIFF in, stored samples and their valid mask out.

GDAL decodes, from memory and with its GTiff driver alone: no file can lead it to another file or a URL. The rules of
which pixels are valid are those of GDAL's dataset mask where GDAL has a rule, and stricter for NaN.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import optional
from pipeline.errors import InputError
from pipeline.image.tiff import valid_by_nodata
from pipeline.records import Bool, Window

_OPTIONS = {
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_NUM_THREADS": "1",
    "GDAL_CACHEMAX": 16 * 2**20,  # bytes for all threads: each block of an excerpt is read once
}
"""GDAL without side files and threads of its own."""


def load_rasterio() -> Any:
    """Import rasterio, with the modules that are used here.

    Raises:
        ConfigError: it is not installed.
    """
    with optional.package("rasterio", extra="geo", needed_by="a raster or a file of polygons"):
        import rasterio.io  # noqa: PLC0415
        import rasterio.windows  # noqa: PLC0415

        logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # it logs what it also raises
        return rasterio


@contextmanager
def open_tiff(data: bytes) -> Iterator[Any]:
    """Open a TIFF in memory: a rasterio dataset.

    Raises:
        InputError: `corrupt` when GDAL cannot open it or, in the block, cannot read from it.
    """
    rasterio = load_rasterio()
    try:
        with (
            rasterio.Env(**_OPTIONS),
            rasterio.io.MemoryFile(data) as memory,
            memory.open(driver="GTiff", sharing=False) as dataset,
        ):
            yield dataset
    except rasterio.errors.RasterioError as error:
        cause = error.__cause__ or error
        raise InputError("corrupt", f"GDAL cannot decode it: {str(cause).splitlines()[0]}") from error


def read_blocks(data: bytes, window: Window, channels: tuple[str, ...]) -> tuple[npt.NDArray[Any], Bool | None]:
    """Stored values of a window of a raster, from an excerpt that covers it.

    Args:
        data: an excerpt, see `geotiff.excerpt`.
        window: rectangle in pixels of the raster.
        channels: names of the bands to return, in this order.

    Returns:
        values, (C, h, w) in the stored type; and valid, (h, w), None where all pixels are valid. A pixel is not valid
        where every band but the alpha has the nodata value, where the alpha or the mask page is 0, and where one of the
        bands asked for is not finite.

    Raises:
        InputError: `corrupt`.
    """
    rasterio = load_rasterio()
    with open_tiff(data) as dataset:
        origin = dataset.transform
        y, x = window.y - round(origin.f), window.x - round(origin.c)
        where = rasterio.windows.Window(x, y, window.width, window.height)
        alpha = next((at for at, colour in enumerate(dataset.colorinterp) if colour.name == "alpha"), None)
        stored = dataset.read(window=where)
        numbers = [dataset.descriptions.index(name) for name in channels]
        checks = [_valid_by_nodata([plane for at, plane in enumerate(stored) if at != alpha], dataset.nodata)]
        if alpha is not None:
            checks.append(np.asarray(stored[alpha] > 0))
        elif rasterio.enums.MaskFlags.per_dataset in dataset.mask_flag_enums[0]:
            checks.append(np.asarray(dataset.read_masks(1, window=where) > 0))
    values = stored if numbers == list(range(len(stored))) else stored[numbers]
    if values.dtype.kind == "f":
        checks.append(np.asarray(np.isfinite(values).all(axis=0)))
    given = [check for check in checks if check is not None]
    valid = np.logical_and.reduce(given) if given else None
    return values, None if valid is None or valid.all() else valid


def _valid_by_nodata(planes: list[npt.NDArray[Any]], value: float | None) -> Bool | None:
    """(h, w), False where all planes have the nodata value; most pieces of a raster have no such pixel."""
    first = valid_by_nodata(planes[0][..., None], value)
    if first is None or first.all() or len(planes) == 1:
        return first
    return valid_by_nodata(np.stack(planes, axis=-1), value)
