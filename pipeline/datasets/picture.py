"""Decoding and lossless encoding of images that a data set does not have as one file each.

In: encoded images of a download, or pixels. Out: pixels, or the bytes of a PNG or TIFF, which are deterministic.
"""

import io

import numpy as np
import tifffile
from PIL import Image as PILImage

from pipeline.errors import InputError
from pipeline.records import UInt8


def decode_picture(data: bytes, *, name: str) -> UInt8:
    """Decode an RGB or grey image: (H, W, 3) uint8.

    Args:
        data: JPEG, PNG or TIFF with 8 bits per sample.
        name: name of the file, for messages.

    Raises:
        InputError: `corrupt`, or `band_mismatch` for any other mode, which a conversion would alter.
    """
    try:
        picture = PILImage.open(io.BytesIO(data), formats=["JPEG", "PNG", "TIFF"])
        picture.load()
    except Exception as error:  # Pillow raises many types on damaged data, and lists none of them
        raise InputError("corrupt", f"{name} cannot be decoded: {error}") from error
    if picture.mode not in ("RGB", "L"):
        raise InputError("band_mismatch", f"{name} has Pillow's mode {picture.mode!r}, expected RGB or L")
    return np.asarray(picture.convert("RGB"))


def encode_png(pixels_hwc: UInt8) -> bytes:
    """Encode (H, W, 3) RGB as PNG."""
    out = io.BytesIO()
    PILImage.fromarray(pixels_hwc).save(out, "PNG")
    return out.getvalue()


def encode_tiff(pixels_hwc: UInt8) -> bytes:
    """Encode (H, W, C) of four or more bands as TIFF: red, green, blue, then unspecified bands."""
    out = io.BytesIO()
    extra = ["unspecified"] * (pixels_hwc.shape[2] - 3)
    tifffile.imwrite(
        out,
        pixels_hwc,
        photometric="rgb",
        extrasamples=extra,
        compression="adobe_deflate",
        metadata=None,  # no timestamps: the bytes are deterministic
        software=False,
    )
    return out.getvalue()
