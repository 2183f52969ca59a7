"""Encoding: the committed row of an image, with its mask as palette PNG, statistics and previews for the report."""

import hashlib
import io
import zlib
from dataclasses import replace
from time import perf_counter

import numpy as np
import PIL.Image

from pipeline.classes import ClassMap
from pipeline.records import Bool, Failure, Image, Item, Judgement, Refinement, Row, Scored, UInt8

PREVIEW_PX = 2048
"""Longest side of a preview: most images at full size, about 1 MB each for the few rows that carry previews."""
CELL_PX = 4
"""Edge of the cells of a confidence map, pixels: the stride of the finest logits."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue: ITU-R BT.601, sec. 2.5.1."""


def mask_png(mask_hw: UInt8, classes: ClassMap) -> bytes:
    """Encode a mask as 8-bit palette PNG: pixel values are class ids, the palette holds the class colours."""
    picture = PIL.Image.fromarray(mask_hw, mode="P")
    picture.putpalette(classes.png_palette())
    return _png_of_runs(picture)


def read_mask_png(data: bytes) -> UInt8:
    """Class ids of a palette PNG, (H, W) uint8; the inverse of `mask_png`. Raises OSError for another file."""
    return _read_png(data, "P", "L")


def read_grey_png(data: bytes) -> UInt8:
    """Values of a grey PNG of 8 bits or 1 bit, (H, W) uint8. Raises OSError for another file."""
    return _read_png(data, "L", "1")


def _read_png(data: bytes, *modes: str) -> UInt8:
    try:
        with PIL.Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.mode in modes:
                return np.asarray(picture).astype(np.uint8, copy=False)
            mode = picture.mode
    except Exception as error:  # Pillow raises many types on damaged files, and lists none of them
        raise OSError(f"damaged PNG: {error}") from error
    raise OSError(f"PNG of mode {mode}, where {' or '.join(modes)} was expected")


def confidence_cells(confidence_hw: UInt8, valid_hw: Bool) -> UInt8:
    """Mean confidence of the valid pixels of each cell, (ceil(H / 4), ceil(W / 4)): 1 to 255, 0 without a valid pixel.

    Args:
        confidence_hw: (H, W) largest probability, 0 to 255.
        valid_hw: (H, W).
    """
    height, width = confidence_hw.shape
    rest = ((0, -height % CELL_PX), (0, -width % CELL_PX))
    shape = -(-height // CELL_PX), CELL_PX, -(-width // CELL_PX), CELL_PX
    sums, counts = (
        np.pad(values, rest).reshape(shape).sum(axis=(1, 3), dtype=np.uint16)
        for values in (confidence_hw * valid_hw, valid_hw)
    )
    means = (sums + counts // 2) // np.maximum(counts, 1)
    return np.asarray(np.where(counts, np.maximum(means, 1), 0), np.uint8)


def encode_maps(refinement: Refinement, ignore_id: int) -> tuple[bytes, bytes]:
    """Maps of a window: `Row.confidence_map` and `Row.changed_map`."""
    valid_hw = refinement.mask_hw != ignore_id
    cells = confidence_cells(refinement.confidence_hw, valid_hw)
    changed = PIL.Image.fromarray((refinement.network_hw != refinement.mask_hw) & valid_hw)
    return _png_of_runs(PIL.Image.fromarray(cells)), _png_of_runs(changed)


def is_preview(key: str, share: float) -> bool:
    """True for the `share` (0 to 1) of keys whose rows carry previews; by a hash of the key, so stable over runs."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]) < share * 2**64


def segmented_row(
    scored: Scored, refinement: Refinement, image: Image | None, *, classes: ClassMap, model_fp: str, config_fp: str
) -> Row:
    """Row of a segmented image; with previews when `image` is given."""
    started = perf_counter()
    item, stats = scored.item, refinement.stats
    preview_image, preview_confidence = (
        (None, None) if image is None else encode_previews(image, refinement.confidence_hw)
    )
    png = mask_png(refinement.mask_hw, classes)
    confidence_map, changed_map = encode_maps(refinement, classes.ignore_id) if item.window else (None, None)
    place = scored.position
    return replace(
        _row(item, "ok", model_fp, config_fp),
        height=refinement.mask_hw.shape[0],
        width=refinement.mask_hw.shape[1],
        window_y=item.window.y if item.window else 0,
        window_x=item.window.x if item.window else 0,
        orientation=scored.orientation,
        longitude=place.longitude if place else None,
        latitude=place.latitude if place else None,
        altitude=place.altitude if place else None,
        inference=scored.inference,
        mask=png,
        refined=refinement.refined,
        refine_note=refinement.note,
        class_pixels=stats.class_pixels.tolist(),
        nodata_pixels=refinement.mask_hw.size - stats.valid_pixels,
        classes_present=np.flatnonzero(stats.class_pixels).tolist(),
        confidence=stats.mean(stats.confidence_sum),
        entropy=stats.mean(stats.entropy_sum),
        changed_share=stats.mean(stats.changed_pixels),
        active_classes=refinement.active_classes,
        pruned_mass=scored.pruned_mass,
        seconds_decode=scored.seconds_decode,
        seconds_infer=scored.seconds_infer,
        seconds_encode=perf_counter() - started,
        confidence_map=confidence_map,
        changed_map=changed_map,
        preview_image=preview_image,
        preview_confidence=preview_confidence,
    )


def empty_row(scored: Scored, *, classes: ClassMap, model_fp: str, config_fp: str) -> Row:
    """Row of a window of a raster without a pixel with data: no failure, and no mask."""
    item, window = scored.item, scored.item.window
    if window is None:
        raise ValueError(f"{item.key} is no window of a raster")
    return replace(
        _row(item, "ok", model_fp, config_fp),
        inference=scored.inference,
        class_pixels=[0] * len(classes),
        nodata_pixels=window.height * window.width,
        classes_present=[],
        seconds_decode=scored.seconds_decode,
    )


def scored_row(item: Item, mask: bytes, mask_hw: UInt8, judgement: Judgement, *, model_fp: str, config_fp: str) -> Row:
    """Row of a mask that another program made: the columns about a network stay empty."""
    pixels = np.bincount(mask_hw.ravel(), minlength=256)[: len(judgement.counts)]
    return replace(
        _row(item, "ok", model_fp, config_fp),
        height=mask_hw.shape[0],
        width=mask_hw.shape[1],
        mask=mask,
        class_pixels=pixels.tolist(),
        classes_present=np.flatnonzero(pixels).tolist(),
        judgements=[judgement],
    )


def failed_row(item: Item, failure: Failure, *, model_fp: str, config_fp: str) -> Row:
    """Row of a work item without a mask."""
    row = _row(item, "failed", model_fp, config_fp)
    return replace(row, error_code=failure.code, error_detail=failure.detail)


def _row(item: Item, status: str, model_fp: str, config_fp: str) -> Row:
    """Row of what is known before an item is decoded: its name, its shard, and the place of a window in its raster."""
    window = item.window
    return Row(
        key=item.key,
        status=status,
        shard=item.shard,
        source_etag=item.etag,
        model_fp=model_fp,
        config_fp=config_fp,
        height=window.height if window else None,
        width=window.width if window else None,
        window_y=window.y if window else None,
        window_x=window.x if window else None,
        seconds_read=item.seconds_read,
        shard_rows=item.shard_rows,
    )


def brightness(image: Image) -> float | None:
    """Mean luma of the valid pixels, 0 to 255, by the weights of ITU-R BT.601; None without a valid pixel."""
    pixels = image.pixels_hwc.reshape(-1, 3) if image.valid_hw is None else image.pixels_hwc[image.valid_hw]
    return float(pixels.mean(axis=0) @ LUMA) if len(pixels) else None


def encode_previews(image: Image, confidence_hw: UInt8) -> tuple[bytes, bytes]:
    """JPEG of the image and grey PNG of the confidence, each at most `PREVIEW_PX` on its longest side."""
    scale = min(1.0, PREVIEW_PX / max(image.height, image.width))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = PIL.Image.fromarray(image.pixels_hwc).resize(size, PIL.Image.Resampling.LANCZOS)
    confidence = PIL.Image.fromarray(confidence_hw).resize(size, PIL.Image.Resampling.BOX)
    return _saved(small, "JPEG", quality=85), _saved(confidence, "PNG")


def _png_of_runs(picture: PIL.Image.Image) -> bytes:
    """PNG of a map. Of repetitions zlib matches runs alone (Z_RLE): smaller files than at level 1, sooner written."""
    return _saved(picture, "PNG", compress_level=1, compress_type=zlib.Z_RLE)


def _saved(picture: PIL.Image.Image, form: str, **options: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()
