"""Photographs in JPEG: decoded by simplejpeg, which writes RGB where it stays, without Pillow's copies.

In: the bytes of a JPEG whose header Pillow read and `headers` checked. Out: its pixels, or None for a file that is left
to Pillow: CMYK, and everything that libjpeg has a remark on. So what is damaged ends as it does in Pillow, with its
error or its pixels. Both libraries carry libjpeg-turbo and call it with its default settings (the accurate DCT and
triangle upsampling), so the pixels are equal, bit for bit.
"""

import numpy as np
import simplejpeg
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.records import UInt8

_PIXEL = np.dtype("V3")
"""Red, green and blue as one element: numpy moves whole pixels three times as fast as their samples."""
_BANDS_READ = ("RGB", "L")
"""Modes of Pillow for three samples per pixel, and for one."""


def decode_jpeg(data: bytes, file: JpegImageFile) -> UInt8 | None:
    """(H, W, 3) RGB as stored, before any orientation; None for a file that Pillow must decode.

    Args:
        data: the encoded bytes.
        file: the same file, opened by Pillow.
    """
    if file.mode not in _BANDS_READ:
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != file.size:  # the size that was checked against the limits is Pillow's
            return None
        pixels: UInt8 = simplejpeg.decode_jpeg(data, "RGB", strict=True)  # libjpeg's warnings are errors
    except ValueError:
        return None
    return pixels


def turn_upright(pixels_hwc: UInt8, orientation: int) -> UInt8:
    """Undo an EXIF orientation, 1 to 8: EXIF 2.32, tag 0x0112, says where the first row and column are.

    Args:
        pixels_hwc: (H, W, 3) as stored.
        orientation: 1 to 8; from 5 on rows and columns change places.
    """
    if orientation == 1:
        return pixels_hwc
    pixels_hw = pixels_hwc.view(_PIXEL)[..., 0]
    if orientation in (2, 3, 7, 8):  # the first column is at the right, or at the bottom after the exchange
        pixels_hw = pixels_hw[:, ::-1]
    if orientation in (3, 4, 6, 7):  # the first row is at the bottom, or at the right
        pixels_hw = pixels_hw[::-1]
    if orientation >= 5:
        pixels_hw = pixels_hw.T
    return np.ascontiguousarray(pixels_hw)[..., None].view(np.uint8)
