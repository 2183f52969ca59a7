"""Pictures of a row: thumbnails with the mask laid over the image, and the layers of one image at full size.

In: a row of the index. Out: JPEG for people, or layers as bytes of class ids. The mask is the row's, as committed; the
image is read again from the source.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import PIL.Image

from pipeline.classes import ClassMap
from pipeline.errors import InputError, LabelError
from pipeline.image.encode import CELL_PX, read_grey_png, read_mask_png
from pipeline.image.labels import png_size
from pipeline.page.paint import overlay, paint
from pipeline.records import Image, Item, UInt8
from pipeline.run import parts
from pipeline.store.url import Url
from pipeline.view.network import NetworkAgain
from pipeline.view.originals import Originals

THUMBNAIL_PX = 320
"""Longest side of a thumbnail, pixels: twice the width at which the page draws most of them, for dense displays."""
THUMBNAIL_QUALITY, IMAGE_QUALITY = 80, 92
CACHED_ROWS, CACHED_IMAGES = 64, 4
"""Rows whose committed cells, and whose decoded images, are kept: the layers of a row are asked for one by one."""

Kind = Literal["overlay", "image", "mask"]
"""Kind of a thumbnail: the image tinted with its mask, the image, or the mask in class colours."""

_CELLS = [
    *("key", "shard", "source_etag", "status", "error_code", "error_detail", "height", "width", "model_fp"),
    *("mask", "confidence_map", "changed_map"),
]


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Place of a row in its run."""

    part: str
    version: str
    """Of the part: one that was written anew has the old name."""
    row: int


class Pictures:
    """Pictures of one run's rows. Calls from several threads are safe."""

    def __init__(self, run_url: Url, classes: ClassMap, originals: Originals) -> None:
        self.classes = classes
        self._cells = lru_cache(CACHED_ROWS)(lambda place: parts.read_row(run_url, place.part, place.row, _CELLS))
        self._originals = originals
        self._network = NetworkAgain(originals.cfg)
        self._read = lru_cache(CACHED_IMAGES)(self._decode)
        self._asked_again = lru_cache(CACHED_IMAGES)(self._ask)

    def thumbnail(self, place: RowPlace, kind: Kind) -> bytes:
        """JPEG of a row, `THUMBNAIL_PX` on its longest side.

        Raises:
            InputError: the image cannot be read, or is another version; for a mask, `mask_missing`.
        """
        if kind == "image":
            return jpeg(self._small_image(place), THUMBNAIL_QUALITY)
        if (mask_hw := self.mask(place)) is None:
            self.image(place)  # of a row that failed, the reason is as a rule the image's
            raise InputError("mask_missing", "the row has no mask")
        mask_hw = _shrink(mask_hw, PIL.Image.Resampling.NEAREST)
        painted = paint(mask_hw, self.classes)
        if kind == "overlay":
            small = self._small_image(place)
            if small.shape[:2] != mask_hw.shape:
                raise InputError("mask_unusable", "image and mask differ in size")
            painted = overlay(small, mask_hw, self.classes)
        return jpeg(painted, THUMBNAIL_QUALITY)

    def _small_image(self, place: RowPlace) -> UInt8:
        return _shrink(self.image(place).pixels_hwc, PIL.Image.Resampling.BOX)

    def jpeg(self, place: RowPlace) -> bytes:
        """JPEG of an image at full size; raises InputError as `image`."""
        return jpeg(self.image(place).pixels_hwc, IMAGE_QUALITY)

    def image(self, place: RowPlace) -> Image:
        """Image of a row, RGB; raises InputError where it cannot be read, or is another version."""
        return self._originals.visible(self._read(place)[1])

    def mask(self, place: RowPlace) -> UInt8 | None:
        """(H, W) class ids as committed; None for a row without a mask. Raises InputError for a damaged one."""
        return self._map(place, "mask", read_mask_png)

    def truth(self, place: RowPlace) -> UInt8:
        """(H, W) class ids of the label. Raises LabelError without a usable one, InputError as `image`."""
        item, image = self._read(place)
        return self._originals.truth(item, image)

    def confidence(self, place: RowPlace) -> UInt8 | None:
        """(ceil(H / 4), ceil(W / 4)) confidence of a window's cells, 1 to 255; None for photos."""
        return self._map(place, "confidence_map", read_grey_png, cell_px=CELL_PX)

    def changed(self, place: RowPlace) -> UInt8 | None:
        """(H, W): 1 where the refiner changed the class of a window's pixel; None for photos."""
        changed_hw = self._map(place, "changed_map", read_grey_png)
        return None if changed_hw is None else np.minimum(changed_hw, 1)

    def network(self, place: RowPlace) -> UInt8:
        """(H, W) class ids of the network before refinement, made now; raises as `NetworkAgain`."""
        return self._asked_again(place)[0]

    def network_confidence(self, place: RowPlace) -> UInt8:
        """(H, W) confidence of the network, 0 to 255, made now; raises as `NetworkAgain`."""
        return self._asked_again(place)[1]

    def layers(self, place: RowPlace) -> list[str]:
        """Names of the layers that a row has, or that can be made of it now; a label may still be missing."""
        cells, photo = self._cells(place), self._cells(place)["confidence_map"] is None
        held = {"mask": "mask", "confidence": "confidence_map", "changed": "changed_map"}
        names = [name for name, column in held.items() if cells[column] is not None]
        names += ["truth"] if self._originals.has_labels else []
        made = photo and cells["mask"] is not None and self._originals.cfg.checkpoint
        return [*names, "network", "network_confidence"] if made else names

    def _map(self, place: RowPlace, column: str, read: Callable[[bytes], UInt8], *, cell_px: int = 1) -> UInt8 | None:
        """Pixels of a PNG in a row; None where the row has none. See `read_map` for what it raises."""
        cells = self._cells(place)
        if cells[column] is None:
            return None
        size = tuple(-(-(cells[side] or 0) // cell_px) for side in ("height", "width"))
        return read_map(cells[column], read, size_hw=size, max_mpx=self._originals.cfg.decode.max_mpx)

    def _decode(self, place: RowPlace) -> tuple[Item, Image]:
        cells = self._cells(place)
        item = self._originals.item(cells["key"], cells["shard"], cells["source_etag"])
        return item, self._originals.decoded(item)

    def _ask(self, place: RowPlace) -> tuple[UInt8, UInt8]:
        return self._network(self._read(place)[1], self._cells(place)["model_fp"])


def read_map(png: bytes, read: Callable[[bytes], UInt8], *, size_hw: tuple[int, ...], max_mpx: float) -> UInt8:
    """Pixels of a PNG of a row, (H, W).

    Raises:
        InputError: `mask_unusable`, for a damaged PNG, and for one that is not of the size that its row says or has
            more than `max_mpx` megapixels; the header is read before a pixel is allocated.
    """
    try:
        height, width = png_size(png, name="of the row")
        if (height, width) != size_hw or height * width > max_mpx * 1e6:
            raise InputError(
                "mask_unusable", f"the PNG has {height} x {width} pixels, its row {size_hw[0]} x {size_hw[1]}"
            )
        return read(png)
    except (LabelError, OSError) as error:
        raise InputError("mask_unusable", "the PNG of the row is damaged") from error


def _shrink(pixels: UInt8, resampling: PIL.Image.Resampling) -> UInt8:
    """Pixels with their longer side at `THUMBNAIL_PX` at most."""
    height, width = pixels.shape[:2]
    scale = min(1.0, THUMBNAIL_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(PIL.Image.fromarray(pixels).resize(size, resampling))


def jpeg(pixels_hwc: UInt8, quality: int) -> bytes:
    """JPEG of (H, W, 3) pixels."""
    out = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(pixels_hwc)).save(out, "JPEG", quality=quality)
    return out.getvalue()
