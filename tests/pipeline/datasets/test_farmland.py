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
from pipeline.datasets.farmland import camera
from pipeline.datasets.farmland import scene as scene_module
from pipeline.datasets.farmland.geometry import cut_polygon, perpendicular, polygon_area, rectangle
from pipeline.models import checkpoint
from pipeline.models.card import SHIPPED, WEIGHTS_FILE, load_card
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


def iou_of_classes(matrix: np.ndarray) -> np.ndarray:
    hits = np.diag(matrix)
    return hits / (matrix.sum(0) + matrix.sum(1) - hits)


def mean_iou(matrix: np.ndarray) -> float:
    return float(iou_of_classes(matrix).mean())


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


@pytest.fixture(scope="module")
def unseen() -> list[farmland.Scene]:
    return [farmland.generate_scene(seed) for seed in UNSEEN]


def test_near_infrared_orders_the_ground_leaves_bright_soil_below_water_black(unseen) -> None:
    nir, label = (np.concatenate([getattr(one, name).ravel() for one in unseen]) for name in ("nir_hw", "label_hw"))
    level = [np.median(nir[label == index]) for index in range(len(CLASSES))]
    water, building, road, soil = (level[getattr(farmland, name)] for name in ("WATER", "BUILDING", "ROAD", "SOIL"))
    assert water < building < road < soil
    assert soil < min(level[farmland.CROP], level[farmland.MEADOW])
    assert level[farmland.TREE] == max(level)
    assert water < 25
    assert level[farmland.CROP] > 1.15 * soil


def test_in_every_scene_water_is_black_and_trees_are_brighter_than_meadows_in_near_infrared(unseen) -> None:
    for scene in unseen:
        levels = {index: np.median(scene.nir_hw[scene.label_hw == index]) for index in np.unique(scene.label_hw)}
        assert levels[farmland.TREE] > levels[farmland.MEADOW]
        if farmland.WATER in levels:
            assert levels.pop(farmland.WATER) < 0.4 * min(levels.values())


def test_near_infrared_tells_apart_what_colours_confuse(unseen) -> None:
    labels = [scene.label_hw for scene in unseen]
    colours, four = (
        confusion(zip(labels, lookup_said(unseen, bands), strict=True)) for bands in ([0, 1, 2], [0, 1, 2, 3])
    )
    assert mean_iou(four) > mean_iou(colours) + 0.1
    for mistaken in ((farmland.WATER, farmland.ROAD), (farmland.TREE, farmland.MEADOW), (farmland.CROP, farmland.SOIL)):
        assert four[mistaken] < 0.9 * colours[mistaken]


def test_the_fourth_band_leaves_colours_and_labels_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with_band = farmland.generate_scene(11)
    monkeypatch.setattr(camera, "infrared", lambda canvas: np.zeros(canvas.label_hw.shape, np.float32))
    without = farmland.generate_scene(11)
    assert with_band.nir_hw.mean() > without.nir_hw.mean() + 50
    np.testing.assert_array_equal(with_band.image_hwc, without.image_hwc)
    np.testing.assert_array_equal(with_band.label_hw, without.label_hw)
    np.testing.assert_array_equal(with_band.four_bands_hwc[..., :3], with_band.image_hwc)
    np.testing.assert_array_equal(with_band.four_bands_hwc[..., 3], with_band.nir_hw)


@pytest.mark.parametrize("seed", range(4))
def test_shadows_dim_near_infrared_less_than_colours(seed: int) -> None:
    canvas = scene_module._new_canvas(np.random.default_rng(seed), 80, 160, None)
    canvas.paint(np.ones((80, 160), bool), (130, 110, 90), farmland.SOIL)
    canvas.shadow.paste(255, (80, 0, 160, 80))
    image_hwc, nir_hw = camera.take_photograph(canvas)
    lit, dark = np.s_[:, 10:70], np.s_[:, 90:150]
    red, nir = (band[dark].mean() / band[lit].mean() for band in (image_hwc[..., 0], nir_hw))
    assert red + 0.05 < nir < 0.8


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


def lookup_said(samples: list[farmland.Scene], bands: list[int]) -> list[np.ndarray]:
    """The best that bands of single pixels can tell: 16 levels of each have the class they mostly had in 40 images."""

    def binned(sample: farmland.Scene) -> np.ndarray:
        return (sample.four_bands_hwc[..., bands] // 16).astype(int) @ [16**power for power in range(len(bands))]

    votes = np.zeros((16 ** len(bands), len(CLASSES)), np.int64)
    for seed in range(40):
        sample = farmland.generate_scene(seed)
        np.add.at(votes, (binned(sample).ravel(), sample.label_hw.ravel()), 1)
    return [votes.argmax(1)[binned(sample)] for sample in samples]


def network_said(name: str, samples: list[farmland.Scene]) -> list[np.ndarray]:
    shipped = checkpoint.load_checkpoint(name)
    network, bands = shipped.build(), shipped.card.in_channels
    mean, std = (torch.tensor(values).view(bands, 1, 1) for values in (shipped.card.mean, shipped.card.std))
    said = []
    for sample in samples:
        pixels = torch.from_numpy(sample.four_bands_hwc[..., :bands].transpose(2, 0, 1) / np.float32(255))
        with torch.inference_mode():
            logits = network(((pixels - mean) / std)[None])
        full = torch.nn.functional.interpolate(logits, sample.label_hw.shape, mode="bilinear", align_corners=False)
        said.append(full.argmax(1)[0].numpy())
    return said


def test_the_shipped_networks_know_unseen_farmland_and_colour_alone_does_not(unseen) -> None:
    labels = [sample.label_hw for sample in unseen]
    colours, four = (
        mean_iou(confusion(zip(labels, network_said(name, unseen), strict=True)))
        for name in ("farmland", "farmland_nir")
    )
    lookup = mean_iou(confusion(zip(labels, lookup_said(unseen, [0, 1, 2]), strict=True)))
    assert colours >= 0.85
    assert lookup < colours - 0.35
    assert four >= colours + 0.03


def test_a_decoder_step_at_stride_2_finds_more_of_the_trees_and_roads(unseen) -> None:
    labels = [sample.label_hw for sample in unseen]
    plain, fine = (
        iou_of_classes(confusion(zip(labels, network_said(name, unseen), strict=True)))
        for name in ("farmland", "farmland_fine")
    )
    assert fine[farmland.TREE] > plain[farmland.TREE]
    assert fine[farmland.ROAD] > plain[farmland.ROAD]


@pytest.mark.parametrize(
    ("name", "miou", "channels"),
    [
        ("farmland", 0.85, ("red", "green", "blue")),
        ("farmland_fine", 0.87, ("red", "green", "blue")),
        ("farmland_nir", 0.9, ("red", "green", "blue", "nir")),
    ],
)
def test_the_shipped_cards_tell_how_they_were_trained(name: str, miou: float, channels: tuple[str, ...]) -> None:
    card = load_card(name)
    assert (card.classes, card.channels) == (CLASSES, channels)
    assert card.training["miou"] >= miou
    assert card.training["validation_images"] >= 200
    assert (SHIPPED / name / WEIGHTS_FILE).stat().st_size < 7e6
