"""Scaling of stored samples to the 8-bit levels that a network reads, the same for every image and window of a set.

In: samples of any type, and the values of each band at levels 0 and 255, which a checkpoint's card keeps from its
training set. Out: uint8. A stretch by the values of one image would give each window of a raster another scale.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import BandScale
from pipeline.errors import InputError
from pipeline.records import UInt8


def check_dtype(dtype: str, scale: BandScale | None) -> None:
    """Check that samples of a type can be scaled.

    Raises:
        InputError: `band_mismatch`.
    """
    if scale is None:
        if dtype not in ("uint8", "uint16"):
            hint = (
                "a network for it is trained on chips of `prepare_dataset --layout rasters`, whose scale its card keeps"
            )
            raise InputError("band_mismatch", f"samples of {dtype}, but the checkpoint's card has no scale", hint=hint)
    elif scale.dtype != dtype:
        raise InputError("band_mismatch", f"samples of {dtype}, the checkpoint was trained on {scale.dtype}")


def eight_bits(values: npt.NDArray[Any], scale: BandScale | None) -> UInt8:
    """Scale (..., C) samples to levels 0 to 255; without a scale 8 bits stay, and 16 bits are divided by 257.

    Values that are not finite become level 0. The result may be `values` itself.

    Raises:
        InputError: `band_mismatch` for another type than the scale's.
    """
    check_dtype(values.dtype.name, scale)
    if scale is None:
        if values.dtype == np.uint8:
            return values
        return np.asarray((values.astype(np.uint32) + 128) // 257, np.uint8)
    low, high = (np.array(level, np.float32) for level in (scale.low, scale.high))
    levels = (values.astype(np.float32) - low) * (np.float32(255) / (high - low))
    np.nan_to_num(levels, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.asarray(np.rint(levels.clip(0, 255, out=levels), out=levels), np.uint8)
