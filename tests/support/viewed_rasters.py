"""Runs over rasters for the page: committed windows, joined masks, polygons and zones, without a network and Ray."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import rasterio
import shapely
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from jobs import from_masks
from pipeline.assemble.join import join_mask
from pipeline.assemble.masks import RunMasks
from pipeline.assemble.squares import Square, write_squares
from pipeline.config import PolygonsConfig, ZonesConfig
from pipeline.run import flow, folder
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.view.opened import OpenedRun
from tests.support.polygons import geojson
from tests.support.raster_runs import CLASSES, busy_mask, commit_masks
from tests.support.rasters import values, write_raster
from tests.support.without_ray import run_tasks

RGB = ("red", "green", "blue")
PLACE = {"crs": "EPSG:32614", "transform": from_origin(485900, 5209245, 0.5, 0.5)}
MASKS = {"plain.tif": busy_mask(700, 1100), "west/<b>hostile.tif": busy_mask(620, 530, seed=1)}
"""Class ids by path. The first raster has overviews, the second none."""
CORE_PX = 512
PLAIN, HOSTILE = 0, 1
"""Numbers of the two rasters."""
ZONES = {
    "north": shapely.box(485920, 5209100, 486100, 5209200),
    "<i>south</i>": shapely.Polygon([(486150, 5208950), (486400, 5208960), (486300, 5209150)]),
}


def write_source(source: Path) -> None:
    """Two RGB rasters, the first with overviews."""
    for seed, (name, mask) in enumerate(MASKS.items()):
        pixels = values(*mask.shape, 3, seed=seed)
        write_raster(source / name, pixels, names=RGB, **PLACE, blockxsize=128, blockysize=128)
    add_overviews(source / "plain.tif")


def add_overviews(path: Path, factors: tuple[int, ...] = (2, 4)) -> None:
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews(list(factors), Resampling.average)


def commit(folder_: Path, **how: Any) -> Url:
    """Run over the rasters, whose windows are committed and not joined."""
    write_source(folder_ / "source")
    url = Url(str(folder_ / "out/run=0123456789ab"))
    commit_masks(url, folder_ / "source", MASKS, core_px=CORE_PX, **how)
    settings = {"source": [str(folder_ / "source")], "output": str(folder_ / "out"), "read": {"kind": "raster"}}
    objects.put(url / folder.CONFIG, json.dumps(settings).encode())  # JSON is YAML
    return url


def join(url: Url) -> None:
    """Join the windows of every raster to a COG."""
    for assembly in RunMasks(url).assemblies():
        write_squares(url, [Square(assembly, window) for window in assembly.squares])
        join_mask(url, assembly, CLASSES)


def make_outlines(url: Url, fields: Path) -> None:
    """Polygons and statistics of zones, as the last steps of a run make them."""
    fields.write_bytes(geojson(list(ZONES.values()), list(ZONES), field="name", crs="EPSG:32614"))
    with mock.patch.object(flow, "run_tasks", run_tasks), mock.patch.object(from_masks.session, "connect") as connect:
        connect.return_value.__enter__.return_value = []
        with from_masks.open_masks(str(url), None, None, holes=False) as opened:
            from_masks.make(opened, PolygonsConfig(min_ha=0.0), ZonesConfig(file=str(fields), id="name"))


def open_run(url: Url, cache: Path, *, source: tuple[str, ...] = ()) -> OpenedRun:
    """The run as the page opens it, its index filled."""
    run = OpenedRun(url, cache=cache, max_cache_bytes=10**8, source=source, labels=None)
    run.index.fill()
    return run


def level_by_gdal(path: Path, level: int) -> np.ndarray:
    """(bands, h, w) of one level of a file as GDAL reads it."""
    with rasterio.open(path, **({"overview_level": level - 1} if level else {})) as dataset:
        return dataset.read()
