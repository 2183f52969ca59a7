"""Polygons and statistics of zones on a real local Ray, with workers that die on the way."""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pytest
import ray
import shapely
from rasterio import features
from rasterio.transform import from_origin

from jobs.from_masks import OpenedMasks, make
from pipeline.assemble.layers import Layers
from pipeline.assemble.masks import RunMasks
from pipeline.assemble.squares import Square
from pipeline.config import PolygonsConfig, ZonesConfig
from pipeline.store.url import Url
from tests.support.polygons import geojson
from tests.support.raster_runs import CLASSES, busy_mask, commit_masks
from tests.support.rasters import values, write_raster

pytestmark = pytest.mark.ray

TILES, EDGE = 12, 60
"""Rasters along each side of a mosaic, more than a unit of work takes; and their size, pixels."""


@dataclass(frozen=True, slots=True)
class DeadlyMasks(RunMasks):
    """Masks whose first reader is killed."""

    marker: str = ""

    def layers(self, group: Sequence[Square]) -> list[Layers]:
        """Layers of squares, unless nobody has died yet."""
        try:
            Path(self.marker).touch(exist_ok=False)
        except FileExistsError:
            return RunMasks.layers(self, group)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def place(row: int, column: int) -> dict[str, object]:
    return {"crs": "EPSG:32614", "transform": from_origin(500000 + column * EDGE, 5200000 - row * EDGE, 1, 1)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Url:
    """Run over the tiles of one mosaic, whose mask is known."""
    folder = tmp_path_factory.mktemp("mosaic")
    whole, masks = busy_mask(TILES * EDGE, TILES * EDGE), {}
    for row, column in np.ndindex(TILES, TILES):
        name = f"{row:02d}_{column:02d}.tif"
        write_raster(
            folder / "source" / name, values(EDGE, EDGE, 3), names=("red", "green", "blue"), **place(row, column)
        )
        part = whole[row * EDGE : (row + 1) * EDGE, column * EDGE : (column + 1) * EDGE]
        masks[name] = np.ascontiguousarray(part)
    url = Url(str(folder / "run"))
    commit_masks(url, folder / "source", masks, rows_per_part=40)
    return url


@pytest.fixture
def cpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A local Ray of so many CPUs."""
    ray.init(address="local", num_cpus=request.param, include_dashboard=False, log_to_driver=False)
    yield request.param
    ray.shutdown()


@pytest.mark.faults
@pytest.mark.parametrize("cpus", [1, 2, 4], indirect=True)
def test_the_tables_of_any_number_of_workers_are_those_of_one_read_of_the_mosaic(
    cpus: int, run: Url, tmp_path: Path
) -> None:
    shapes = [
        shapely.affinity.rotate(shapely.box(500000 + x, 5200000 - y - 75, 500000 + x + 110, 5200000 - y), 20)
        for x in range(20, TILES * EDGE - 130, 90)
        for y in range(20, TILES * EDGE - 100, 60)
    ]
    names = [f"f{number}" for number in range(len(shapes))]
    file = tmp_path / "fields.geojson"
    file.write_bytes(geojson(shapes, names, field="name", crs="EPSG:32614"))
    masks = DeadlyMasks(run, str(tmp_path / "died"))
    zones = ZonesConfig(file=str(file), id="name", bands=cpus == 2)  # other settings: the tables are made anew
    made = make(OpenedMasks(masks, masks.assemblies(), CLASSES, {}), PolygonsConfig(min_ha=cpus * 1e-9), zones)
    assert (tmp_path / "died").exists()
    assert (made.polygons, made.polygons_now) == (TILES**2, TILES**2)
    rows = pd.read_parquet(Path(str(run)) / "zones.parquet")
    whole = busy_mask(TILES * EDGE, TILES * EDGE)
    for name, shape in zip(names, shapes, strict=True):
        inside = features.rasterize([shape], whole.shape, transform=place(0, 0)["transform"]).astype(bool)
        expected = np.bincount(np.minimum(whole[inside], len(CLASSES)), minlength=len(CLASSES) + 1)
        own = rows[rows["zone"] == name]
        found = np.zeros(len(CLASSES), int)
        found[own["class_id"].astype(int)] = own["pixels"]
        np.testing.assert_array_equal(found, expected[:-1])
        assert (own["outside_pixels"] == 0).all()
    polygons = [geopandas.read_parquet(path) for path in sorted(Path(str(run)).glob("polygons/*.parquet"))]
    assert sum(one["pixels"].sum() for one in polygons) == (whole < len(CLASSES)).sum()
