import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import classes
from pipeline.datasets import farmland
from pipeline.datasets.farmland.geometry import cut_polygon, perpendicular, polygon_area, rectangle
from pipeline.models import checkpoint
from pipeline.store import objects
from pipeline.store.url import Url

CLASSES = classes.load_class_map("farmland")
UNSEEN = range(700_000, 700_024)


def digest(seed: int) -> str:
    sample = farmland.generate_scene(seed, height=96, width=128)
    return hashlib.sha256(sample.image_hwc.tobytes() + sample.label_hw.tobytes()).hexdigest()


def confusion(pairs) -> np.ndarray:
    matrix = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for label_hw, said_hw in pairs:
        np.add.at(matrix, (label_hw.ravel(), said_hw.ravel()), 1)
    return matrix


def mean_iou(matrix: np.ndarray) -> float:
    hits = np.diag(matrix)
    return float((hits / (matrix.sum(0) + matrix.sum(1) - hits)).mean())


def test_a_seed_gives_the_same_pixels_in_another_process() -> None:
    code = """
import hashlib
from pipeline.datasets import farmland
from pipeline.datasets.farmland.geometry import cut_polygon, perpendicular, polygon_area, rectangle
sample = farmland.generate_scene(11, height=96, width=128)
print(hashlib.sha256(sample.image_hwc.tobytes() + sample.label_hw.tobytes()).hexdigest())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(11)


def test_every_seed_gives_another_image() -> None:
    assert len({digest(seed) for seed in range(12)}) == 12


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 90), (37, 61), (300, 200)])
@pytest.mark.parametrize("seed", range(6))
def test_any_size_is_filled_with_known_classes(seed: int, height: int, width: int) -> None:
    sample = farmland.generate_scene(seed, height=height, width=width)
    assert sample.image_hwc.shape == (height, width, 3)
    assert sample.label_hw.shape == (height, width)
    assert sample.image_hwc.dtype == sample.label_hw.dtype == np.uint8
    assert sample.label_hw.max() < len(CLASSES)


def test_labels_are_named_as_in_the_class_map() -> None:
    ids = [getattr(farmland, name) for name in ("SOIL", "CROP", "MEADOW", "WATER", "ROAD", "TREE", "BUILDING")]
    assert dict(zip(ids, CLASSES.names, strict=True)) == {
        0: "bare_soil", 1: "crop", 2: "meadow", 3: "water", 4: "road", 5: "tree", 6: "building",
    }  # fmt: skip


def test_every_class_occurs_over_twenty_seeds_and_none_rules() -> None:
    pixels = sum(
        np.bincount(farmland.generate_scene(seed).label_hw.ravel(), minlength=len(CLASSES)) for seed in range(20)
    )
    share = pixels / pixels.sum()
    assert share.min() > 0.005
    assert share.max() < 0.5


def test_a_larger_image_shows_more_fields_not_larger_ones() -> None:
    def borders_per_pixel(size: int) -> float:
        label = farmland.generate_scene(5, height=size, width=size).label_hw
        return float((label[:, 1:] != label[:, :-1]).mean())

    assert borders_per_pixel(640) == pytest.approx(borders_per_pixel(256), rel=0.6)


@given(st.integers(0, 2**32 - 1))
def test_cutting_land_loses_none_of_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = rectangle(rng.normal(0, 50, 2), perpendicular(rng.normal(size=2)), 80, 30)
    first, second, line = cut_polygon(whole, whole.mean(0), perpendicular(rng.normal(size=2)))
    assert polygon_area(first) == pytest.approx(polygon_area(second))
    assert polygon_area(first) + polygon_area(second) == pytest.approx(80 * 30)
    assert line.shape == (2, 2)


def test_worker_processes_write_the_same_bytes(tmp_path: Path) -> None:
    farmland.write_folder(Url(str(tmp_path / "one")), 3, size_px=32, seed=9)
    farmland.write_folder(Url(str(tmp_path / "two")), 3, size_px=32, seed=9, workers=2)
    images = {path.name: path.read_bytes() for path in (tmp_path / "one" / "images").iterdir()}
    assert sorted(images) == [f"farm_{index:06}.jpg" for index in range(3)]
    assert {path.name: path.read_bytes() for path in (tmp_path / "two" / "images").iterdir()} == images


def test_written_labels_are_those_of_the_seed_and_lie_beside_the_images(tmp_path: Path) -> None:
    farmland.write_folder(Url(str(tmp_path)), 2, size_px=40, seed=8, with_labels=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]
    written = np.asarray(Image.open(tmp_path / "labels" / "farm_000001.png"))
    np.testing.assert_array_equal(written, farmland.generate_scene(9, height=40, width=40).label_hw)


def test_jpeg_keeps_the_generated_picture() -> None:
    farmland.write_folder(Url("memory://farm-jpeg"), 1, size_px=128, seed=21)
    written = Image.open(io.BytesIO(objects.read_bytes(Url("memory://farm-jpeg/images/farm_000000.jpg"))))
    generated = farmland.generate_scene(21, height=128, width=128).image_hwc
    assert np.abs(np.asarray(written).astype(int) - generated).mean() < 6


def colour_only_said(samples: list[farmland.Scene]) -> list[np.ndarray]:
    """The best that colours alone can tell: each of 16x16x16 colours has the class it mostly had in 40 other images."""

    def binned(image_hwc: np.ndarray) -> np.ndarray:
        return (image_hwc // 16).astype(int) @ [256, 16, 1]

    votes = np.zeros((4096, len(CLASSES)), np.int64)
    for seed in range(40):
        sample = farmland.generate_scene(seed)
        np.add.at(votes, (binned(sample.image_hwc).ravel(), sample.label_hw.ravel()), 1)
    return [votes.argmax(1)[binned(sample.image_hwc)] for sample in samples]


def network_said(samples: list[farmland.Scene]) -> list[np.ndarray]:
    shipped = checkpoint.load_checkpoint("farmland")
    network = shipped.build()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (shipped.card.mean, shipped.card.std))
    said = []
    for sample in samples:
        pixels = torch.from_numpy(sample.image_hwc.transpose(2, 0, 1) / np.float32(255))
        with torch.inference_mode():
            logits = network(((pixels - mean) / std)[None])
        full = torch.nn.functional.interpolate(logits, sample.label_hw.shape, mode="bilinear", align_corners=False)
        said.append(full.argmax(1)[0].numpy())
    return said


def test_the_shipped_network_knows_unseen_farmland_and_colour_alone_does_not() -> None:
    samples = [farmland.generate_scene(seed) for seed in UNSEEN]
    labels = [sample.label_hw for sample in samples]
    network = mean_iou(confusion(zip(labels, network_said(samples), strict=True)))
    colour = mean_iou(confusion(zip(labels, colour_only_said(samples), strict=True)))
    assert network >= 0.85
    assert colour < network - 0.35


def test_the_shipped_card_tells_how_it_was_trained() -> None:
    card = checkpoint.load_card("farmland")
    assert card.classes == CLASSES
    assert card.training["miou"] >= 0.85
    assert card.training["validation_images"] >= 200
    assert (checkpoint.SHIPPED / "farmland" / checkpoint.WEIGHTS_FILE).stat().st_size < 6e6
