"""Decoding of an excerpt of a raster: a small TIFF in, the pixels of one window and their valid mask out.

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
from pipeline.image.scale import BandScale, eight_bits
from pipeline.image.tiff import valid_by_nodata
from pipeline.records import Bool, Image, Window

_OPTIONS = {
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_NUM_THREADS": "1",
    "GDAL_CACHEMAX": 64 * 2**20,  # bytes for all threads: each block of an excerpt is read once
}
"""GDAL without side files and threads of its own."""


def load_rasterio() -> Any:
    """Import rasterio, with the modules that are used here.

    Raises:
        ConfigError: it is not installed.
    """
    with optional.package("rasterio", extra="geo", needed_by="--read.kind raster"):
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


def decode_window(data: bytes, window: Window, channels: tuple[str, ...], scale: BandScale | None) -> Image:
    """Pixels of a window of a raster, from an excerpt that covers it.

    Args:
        data: an excerpt, see `geotiff.excerpt`.
        window: rectangle in pixels of the raster.
        channels: names of the bands to return, in this order.
        scale: values of the bands at levels 0 and 255; None for values as they are (8 bits) or divided by 257 (16).

    Returns:
        Image of (h, w, C) uint8 and the valid mask: a pixel is not valid where every band but the alpha has the nodata
        value, where the alpha or the mask page is 0, and where one of the bands asked for is not finite. Unlike an
        image's, the mask may be False everywhere.

    Raises:
        InputError: `corrupt`, or `band_mismatch` for values that `scale` does not fit.
    """
    stored, valid = read_window(data, window, channels)
    levels = eight_bits(stored, scale)
    if valid is not None:
        levels[~valid] = 0
    return Image(levels, valid)


def read_window(data: bytes, window: Window, channels: tuple[str, ...]) -> tuple[npt.NDArray[Any], Bool | None]:
    """Stored values (h, w, C) of the channels, and the valid mask (h, w), None where all pixels are valid."""
    rasterio = load_rasterio()
    with open_tiff(data) as dataset:
        origin = dataset.transform
        where = rasterio.windows.Window(
            window.x - round(origin.c), window.y - round(origin.f), window.width, window.height
        )
        alpha = next((at for at, colour in enumerate(dataset.colorinterp) if colour.name == "alpha"), None)
        bands = np.moveaxis(dataset.read(window=where), 0, -1)
        numbers = [dataset.descriptions.index(name) for name in channels]
        measured = [at for at in range(bands.shape[2]) if at != alpha]
        checks = [valid_by_nodata(bands[..., measured], dataset.nodata)]
        if alpha is not None:
            checks.append(np.asarray(bands[..., alpha] > 0))
        if rasterio.enums.MaskFlags.per_dataset in dataset.mask_flag_enums[0] and alpha is None:
            checks.append(np.asarray(dataset.read_masks(1, window=where) > 0))
    values = np.ascontiguousarray(bands[..., numbers])
    if values.dtype.kind == "f":
        checks.append(np.asarray(np.isfinite(values).all(axis=2)))
    given = [check for check in checks if check is not None]
    valid = np.logical_and.reduce(given) if given else None
    return values, None if valid is None or valid.all() else valid
