"""Committed windows of rasters without a network: parts of random masks, and the plan that they are of."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.classes import ClassMap, load_class_map
from pipeline.image.encode import encode_maps, mask_png
from pipeline.records import Bool, Failure, PixelStats, Refinement, Row, UInt8, rows_to_table
from pipeline.run import folder, parts
from pipeline.source.plan import Plan, plan_source
from pipeline.source.raster import NetworkBands, unpack
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.rasters import config

CLASSES: ClassMap = load_class_map("farmland")


def store_plan(run_url: Url, plan: Plan) -> None:
    """Write the plan of a run as a run does."""
    table, out = plan.to_table(), io.BytesIO()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    objects.put(run_url / folder.PLAN, out.getvalue())


def busy_mask(height: int, width: int, seed: int = 0) -> UInt8:
    """(H, W) class ids in blobs, 255 in a wedge."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, len(CLASSES), (height // 7 + 1, width // 7 + 1), np.uint8)
    mask = np.kron(small, np.ones((7, 7), np.uint8))[:height, :width]
    mask[(np.arange(width) + np.arange(height)[:, None]) < (height + width) // 9] = 255
    return np.ascontiguousarray(mask)


def commit_masks(
    run_url: Url,
    source: Path,
    masks: dict[str, UInt8],
    *,
    core_px: int = 512,
    failed: frozenset[str] = frozenset(),
    rows_per_part: int = 5,
    order: int = 1,
) -> Plan:
    """Plan the rasters of a folder and commit a row for each window, with the mask of its raster; returns the plan.

    Args:
        run_url: folder of the run.
        source: folder of RGB rasters.
        masks: (H, W) class ids by path.
        core_px: size of windows.
        failed: keys of windows that failed.
        rows_per_part: rows of each part.
        order: 1, or -1 for rows in the opposite order.
    """
    plan = plan_source(config(source, core_px=core_px), NetworkBands(("red", "green", "blue")))
    store_plan(run_url, plan)
    rows = []
    for shard in plan.shards:
        here = unpack(shard)
        if isinstance(here, Failure):
            continue
        cores = list(here.cores())
        for number, core in enumerate(cores):
            key, total = f"{shard.uri}#{core.y},{core.x}", len(cores) if number == len(cores) - 1 else None
            row = Row(key, "ok", shard.id, shard.etag, "model", "config", shard_rows=total)
            part = masks[shard.path][core.y : core.y + core.height, core.x : core.x + core.width]
            window = {"height": core.height, "width": core.width, "window_y": core.y, "window_x": core.x}
            rows.append(_row(row, part, window, is_failed=key in failed))
    rows = rows[::order]
    for first in range(0, len(rows), rows_per_part):
        parts.write_part(run_url, rows_to_table(rows[first : first + rows_per_part]), CLASSES)
    return plan


def confidence_at(height: int, width: int, y: int = 0, x: int = 0) -> UInt8:
    """(H, W) confidence of a window of any raster: 1 to 255, the same however windows lie."""
    rows, columns = np.arange(y, y + height)[:, None] // 4, np.arange(x, x + width) // 4
    return np.asarray((rows * 7 + columns * 13) % 255 + 1, np.uint8)


def changed_at(height: int, width: int, y: int = 0, x: int = 0) -> Bool:
    """(H, W) pixels of a window of any raster that a refiner has changed."""
    return np.asarray((np.arange(y, y + height)[:, None] * 3 + np.arange(x, x + width)) % 11 == 0)


def refined(mask_hw: UInt8, y: int, x: int) -> Refinement:
    """Answer of a network and a refiner for a window whose first pixel is (y, x)."""
    size = mask_hw.shape
    network = np.where(changed_at(*size, y, x), (mask_hw + 1) % len(CLASSES), mask_hw).astype(np.uint8)
    stats = PixelStats(np.zeros(len(CLASSES), np.int64))
    return Refinement(mask_hw, network, confidence_at(*size, y, x), stats, True, None, len(CLASSES))


def _row(row: Row, mask_hw: UInt8, window: dict[str, int], *, is_failed: bool) -> Row:
    if is_failed:
        return replace(row, **window, status="failed", error_code="corrupt", error_detail="x")
    counts = np.bincount(mask_hw.ravel(), minlength=256)
    empty = counts[255] == mask_hw.size
    maps = () if empty else encode_maps(refined(mask_hw, window["window_y"], window["window_x"]), 255)
    return replace(
        row,
        **window,
        mask=None if empty else mask_png(np.ascontiguousarray(mask_hw), CLASSES),
        **dict(zip(("confidence_map", "changed_map"), maps, strict=False)),
        class_pixels=counts[: len(CLASSES)].tolist(),
        nodata_pixels=int(counts[255]),
    )
