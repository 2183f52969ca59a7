"""From rasters with polygons to a network, and its score on a raster that it has not seen."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio import features, warp
from rasterio.transform import from_origin

from jobs import train
from pipeline.classes import load_class_map
from pipeline.datasets.farmland.scene import generate_scene
from pipeline.models.card import load_card
from tests.support.drivers import QUICK, forked
from tests.support.forked import ForkServer
from tests.support.polygons import geojson
from tests.support.rasters import RGBN, write_raster

SCENE_PX = 256
CLASSES = load_class_map("farmland")


def write_farm(folder: Path, name: str, *, seed: int, side: int) -> None:
    """Write a 16-bit mosaic of `side` x `side` scenes, and its polygons in degrees."""
    scenes = [[generate_scene(seed + side * row + column) for column in range(side)] for row in range(side)]
    pixels = np.concatenate([np.concatenate([s.four_bands_hwc for s in row], axis=1) for row in scenes])
    label = np.concatenate([np.concatenate([s.label_hw for s in row], axis=1) for row in scenes])
    stored = np.moveaxis(pixels.astype(np.uint16) * 37 + 900, -1, 0).copy()
    stored[:, : SCENE_PX // 4, : SCENE_PX // 2] = 0
    where = from_origin(500_000 + seed, 5_800_000, 0.25, 0.25)
    write_raster(folder / f"{name}/farm.tif", stored, names=RGBN, nodata=0, crs="EPSG:32633", transform=where)
    shapes, names = [], []
    for shape, value in features.shapes(label, mask=label != CLASSES.ignore_id, transform=where):
        dense = shapely.segmentize(shapely.geometry.shape(shape), 4)
        shapes.append(shapely.geometry.shape(warp.transform_geom("EPSG:32633", "OGC:CRS84", dense)))
        names.append(CLASSES.names[int(value)])
    (folder / f"{name}.geojson").write_bytes(geojson(shapes, names, field="cover"))


@pytest.mark.slow
def test_a_network_learns_from_rasters_with_polygons_and_knows_a_raster_it_has_not_seen(
    forks: ForkServer, tmp_path: Path
) -> None:
    write_farm(tmp_path, "known", seed=10_000, side=5)
    write_farm(tmp_path, "unseen", seed=90_000, side=2)
    labels = ["--raster.labels", str(tmp_path / "known.geojson"), "--raster.label-field", "cover"]
    flags = ["--layout", "rasters", "--root", str(tmp_path / "known"), "--output", str(tmp_path / "set")]
    flags += ["--splits", "train", "val", "--cut-px", "256", "--raster.classes", "farmland", *labels]
    prepared = forked(forks, *flags, "--raster.block-chips", "1", module="jobs.prepare_dataset")
    assert prepared.status == 0, prepared.log
    bands = json.loads((tmp_path / "set/manifest.json").read_text())["bands"]

    flags = ["--bare", "--config", "farmland", "--data", str(tmp_path / "set"), "--output", str(tmp_path / "network")]
    flags += ["--network.initial", "farmland_nir", "--augment.crop-px", "128", "128", "--optimise.batch", "4"]
    flags += ["--optimise.lr", "0.001", "--schedule.steps", "40", "--schedule.warmup", "4", "--validation.every", "40"]
    flags += ["--runtime.tracker", "none", "--runtime.loader-workers", "0", "--runtime.cache", str(tmp_path / "cache")]
    assert train.main(flags) == 0
    card = load_card(str(tmp_path / "network"))
    assert card.channels == RGBN
    assert card.scale is not None
    assert (list(card.scale.low), list(card.scale.high)) == (bands["low"], bands["high"])
    assert card.training["miou"] >= 0.6

    flags = ["--read.kind", "raster", "--source", str(tmp_path / "unseen"), "--output", str(tmp_path / "evaluation")]
    flags += ["--checkpoint", str(tmp_path / "network"), "--read.labels", str(tmp_path / "unseen.geojson")]
    flags += ["--read.label-field", "cover", "--refine.engine", "none", "--tile.tile-px", "256", *QUICK]
    scored = forked(forks, *flags, module="jobs.evaluate")
    assert scored.status == 0, scored.log
    with rasterio.open(tmp_path / "unseen/farm.tif") as dataset:
        assert dataset.dtypes[0] == card.scale.dtype
    assert scored.summary["settings"]["default"]["mean_iou"]["network"] >= 0.6
