"""Evaluation of rasters from end to end, without Ray: counts of windows add up to those of the whole raster."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from rasterio import features

from pipeline.classes import load_class_map
from pipeline.evaluate.evaluation import read_evaluation
from pipeline.image.encode import read_mask_png
from pipeline.score.metrics import confusion
from pipeline.store.url import Url
from tests.support.checkpoints import small_checkpoint
from tests.support.drivers import QUICK, Outcome, forked
from tests.support.forked import ForkServer
from tests.support.polygons import geojson
from tests.support.rasters import RGBN, values, write_raster

CLASSES = load_class_map("farmland")
FLAGS = ["--read.kind", "raster", "--refine.engine", "none", "--tile.tile-px", "256", "--tile.overlap-px", "64", *QUICK]
Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raster with a wedge without data, whose lower right is without a label, and the checkpoint of a network."""
    folder = tmp_path_factory.mktemp("evaluated")
    pixels = values(1100, 1300, 4)
    pixels[:, :600, :520] = 0
    write_raster(folder / "rasters/a.tif", pixels, names=RGBN, nodata=0)
    ids = np.kron(np.random.default_rng(1).integers(0, 6, (110, 130), np.uint8), np.ones((10, 10), np.uint8))
    ids[500:, 1000:] = 255
    write_raster(folder / "labels/a.tif", ids[None])
    small_checkpoint(folder / "network", RGBN)
    return folder


@pytest.fixture(scope="module")
def evaluate(forks: ForkServer, place: Path) -> Run:
    def run(output: Path, labels: Path, *flags: str) -> Outcome:
        arguments = ["--source", str(place / "rasters"), "--output", str(output), "--read.labels", str(labels)]
        arguments += ["--checkpoint", str(place / "network"), *FLAGS, *flags]
        return forked(forks, *arguments, module="jobs.evaluate")

    return run


def counts_of(output: Path) -> tuple[Any, np.ndarray]:
    (run,) = output.glob("run=*")
    evaluation = read_evaluation(Url(str(run)))
    return evaluation, evaluation.answer.counts_nkk.sum(axis=0)


@pytest.mark.parametrize("core_px", ["512", "2048"])
def test_counts_of_windows_are_those_of_the_joined_mask(core_px, place: Path, evaluate: Run, tmp_path: Path) -> None:
    outcome = evaluate(tmp_path, place / "labels", "--raster.core-px", core_px)
    assert outcome.status == 0, outcome.log
    evaluation, counts = counts_of(tmp_path)
    mask = np.full((1100, 1300), 255, np.uint8)
    (run,) = tmp_path.glob("run=*")
    for row in pd.read_parquet(run / "parts").to_dict("records"):
        if row["mask"] is not None:
            y, x = row["window_y"], row["window_x"]
            mask[y : y + row["height"], x : x + row["width"]] = read_mask_png(row["mask"])
    with rasterio.open(place / "labels/a.tif") as dataset, rasterio.open(place / "rasters/a.tif") as source:
        truth, valid = dataset.read(1), source.dataset_mask() > 0
    truth[~valid] = 255
    whole = confusion(truth, mask, len(CLASSES), ignore_id=255)
    np.testing.assert_array_equal(counts, whole)
    assert counts.sum() == (truth != 255).sum()
    assert not evaluation.failures


def test_polygons_count_as_the_label_raster_that_they_are_burned_into(
    place: Path, evaluate: Run, tmp_path: Path
) -> None:
    with rasterio.open(place / "labels/a.tif") as dataset:
        truth, where = dataset.read(1), dataset.transform
    drawn = [
        (shapely.geometry.shape(shape), CLASSES.names[int(value)])
        for shape, value in features.shapes(truth, mask=truth != 255, transform=where)
    ]
    shapes, names = zip(*drawn, strict=True)
    file = tmp_path / "fields.geojson"
    file.write_bytes(geojson(shapes, names, field="crop", crs="EPSG:32614"))
    by_raster = evaluate(tmp_path / "raster", place / "labels", "--raster.core-px", "512")
    by_polygon = evaluate(tmp_path / "drawn", file, "--raster.core-px", "512", "--read.label-field", "crop")
    assert (by_raster.status, by_polygon.status) == (0, 0), by_polygon.log
    np.testing.assert_array_equal(counts_of(tmp_path / "drawn")[1], counts_of(tmp_path / "raster")[1])


def test_other_labels_are_another_evaluation(place: Path, evaluate: Run, tmp_path: Path) -> None:
    ids = np.zeros((1, 1100, 1300), np.uint8)
    write_raster(tmp_path / "labels/a.tif", ids)
    assert evaluate(tmp_path / "out", tmp_path / "labels", "--raster.core-px", "2048").status == 0
    write_raster(tmp_path / "labels/a.tif", ids + 1)
    assert evaluate(tmp_path / "out", tmp_path / "labels", "--raster.core-px", "2048").status == 0
    assert len(list((tmp_path / "out").glob("run=*"))) == 2


def test_polygons_without_a_field_are_refused_before_anything_runs(place: Path, evaluate: Run, tmp_path: Path) -> None:
    file = tmp_path / "fields.geojson"
    file.write_bytes(geojson([], []))
    outcome = evaluate(tmp_path / "out", file)
    assert outcome.status != 0
    assert "--read.label-field" in outcome.log
