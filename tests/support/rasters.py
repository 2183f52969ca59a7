"""Rasters made on the spot, written by GDAL, and their planning and reading in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from pipeline.config import SegmentConfig
from pipeline.records import Item
from pipeline.source.plan import Plan, plan_source, read_items
from pipeline.source.raster import NetworkBands, RasterShard, unpack

UTM = {"crs": "EPSG:32614", "transform": from_origin(485900, 5209245, 0.25, 0.25)}
TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64}
RGBN = ("red", "green", "blue", "nir")


def values(height: int, width: int, bands: int, dtype: str = "uint8", seed: int = 0) -> npt.NDArray[Any]:
    """(bands, height, width) smooth pattern with noise, never 0."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    wave = np.stack([np.sin(x / (9 + band)) * np.cos(y / (7 + band)) for band in range(bands)])
    unit = 0.5 + 0.4 * wave + rng.uniform(-0.05, 0.05, wave.shape)
    if dtype == "float32":
        return (unit * 100 - 30).astype(np.float32)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(limits.min + unit * (int(limits.max) - int(limits.min))), limits.min + 1, limits.max).astype(
        dtype
    )


def write_raster(
    path: Path,
    pixels: npt.NDArray[Any],
    *,
    names: tuple[str | None, ...] = (),
    colours: tuple[ColorInterp, ...] = (),
    mask: npt.NDArray[Any] | None = None,
    **profile: Any,
) -> Path:
    """Write (bands, H, W) with GDAL; tiles of 64 and georeferencing unless `profile` says otherwise."""
    count, height, width = pixels.shape
    whole = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype.name}
    if count == 4:
        whole["photometric"] = "minisblack"  # else GDAL tags the fourth band as an alpha
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **whole | UTM | TILED | profile) as dataset,
    ):
        if colours:
            dataset.colorinterp = colours
        dataset.write(pixels)
        for band, name in enumerate(names, start=1):
            if name:
                dataset.set_band_description(band, name)
        if mask is not None:
            dataset.write_mask(mask)
    return path


def config(source: Path | str, *, core_px: int = 512, halo_px: int | None = 64, **raster: Any) -> SegmentConfig:
    """Config of a run over rasters."""
    return SegmentConfig.model_validate(
        {
            "source": str(source),
            "output": "out",
            "checkpoint": "c",
            "read": {"kind": "raster"},
            "raster": {"core_px": core_px, "halo_px": halo_px, **raster},
        }
    )


def plan_and_read(cfg: SegmentConfig, bands: NetworkBands) -> tuple[Plan, list[tuple[RasterShard, Item]]]:
    """Plan of a source, and the items of all its windows with their shards."""
    plan = plan_source(cfg, bands)
    pairs = []
    for shard in plan.shards:
        here = unpack(shard)
        for item in read_items(shard, cfg.read, max_bytes=1):
            assert isinstance(here, RasterShard), here
            pairs.append((here, item))
    return plan, pairs


def failure_of(cfg: SegmentConfig, bands: NetworkBands) -> tuple[str, str]:
    """Code and detail of the only item of a source that fails at planning."""
    (shard,) = plan_source(cfg, bands).shards
    (item,) = read_items(shard, cfg.read, max_bytes=1)
    assert item.failure is not None
    assert item.key == shard.path
    assert item.shard_rows == 1
    return item.failure.code, item.failure.detail
