from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from pipeline import classes
from pipeline.config import DecodeConfig
from pipeline.image import labels
from pipeline.image.decode import decode_image
from pipeline.models import zoo
from pipeline.models.card import Card
from pipeline.models.checkpoint import Checkpoint
from pipeline.score import drift, metrics
from pipeline.training import run
from pipeline.training.ranks import Group
from pipeline.training.validate import predict_samples, validate
from tests.support import training_runs
from tests.support.training_runs import CLASSES, NORMED, config

MAP = classes.from_dict(CLASSES, origin="test")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_runs.write_data(tmp_path_factory.mktemp("data"), val=5, size_px=50)


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    torch.manual_seed(0)
    network = zoo.build_network(NORMED["name"], 3, **NORMED["options"])
    torch.nn.init.normal_(network.logits.weight)
    card = Card(
        architecture=NORMED["name"],
        options=NORMED["options"],
        output_stride=network.output_strides[0],
        classes=MAP,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        source="test",
        license="CC0-1.0",
    )
    return Checkpoint(card, network.state_dict(), sha256="")


@pytest.fixture
def cfg(data: Path, tmp_path: Path):
    return config(data, tmp_path, network=NORMED, runtime={"precision": "fp32"})


def by_hand(model: Checkpoint, collection) -> np.ndarray:
    """Counts by the network alone, image by image, all at once: images of this size are one tile, padded to 32."""
    network, total = model.build(), np.zeros((3, 4), np.int64)
    for example in (collection[index] for index in range(len(collection))):
        image = decode_image(example.image, DecodeConfig())
        truth = labels.decode_label(example.label, MAP, name="", height=image.height, width=image.width)
        padded = np.pad(image.pixels_hwc, [(0, -image.height % 32), (0, -image.width % 32), (0, 0)], mode="symmetric")
        x = (torch.from_numpy(padded).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        with torch.no_grad():
            mask = network(x).argmax(1)[0].numpy().astype(np.uint8)
        total += metrics.confusion(truth, mask[: image.height, : image.width], 3)
    return total


def test_counts_are_those_of_every_image_by_hand(cfg, model):
    collection = run.validation_set(cfg, MAP)
    found = validate(model, collection, cfg, Group()).scores.counts
    expected = by_hand(model, collection)
    assert found.sum() == expected.sum() == 5 * 50 * 50
    assert np.abs(found - expected).sum() <= 4  # logits are kept in float16


def test_any_number_of_processes_counts_every_image_once(cfg, model, monkeypatch):
    collection = run.validation_set(cfg, MAP)
    alone = validate(model, collection, cfg, Group()).scores.counts
    monkeypatch.setattr(Group, "sum", lambda self, values: values)
    for size in (2, 7):
        shares = [validate(model, collection, cfg, Group(rank, size)).scores.counts for rank in range(size)]
        assert np.array_equal(sum(shares), alone)


def test_the_reference_is_of_every_image_as_the_network_and_the_camera_gave_it(cfg, model):
    collection = run.validation_set(cfg, MAP)
    found = drift.Reference.model_validate(validate(model, collection, cfg, Group()).reference)
    lumas = [
        decode_image(one.image, DecodeConfig()).pixels_hwc.mean((0, 1)) @ (0.299, 0.587, 0.114) for one in collection
    ]
    assert found.images == len(lumas) == 5
    assert found.brightness == tuple(np.histogram(lumas, 32, (0, 256))[0])
    assert sum(found.confidence) == sum(found.entropy) == 5
    predicted = validate(model, collection, cfg, Group()).scores.counts.sum(0)[:3]
    assert np.allclose(found.class_shares, predicted / predicted.sum())


def test_a_limit_takes_the_first_images_and_samples_are_of_the_first(cfg, model):
    collection = run.validation_set(cfg, MAP)
    short = cfg.model_copy(update={"validation": cfg.validation.model_copy(update={"limit": 2, "samples": 1})})
    found = validate(model, collection, short, Group())
    assert found.scores.counts.sum() == 2 * 50 * 50
    assert [sample.key for sample in found.samples] == [collection[0].key]
    shown = predict_samples(model, collection, short, Group())
    assert [sample.key for sample in shown] == [collection[0].key]
    assert np.array_equal(shown[0].mask_hw, found.samples[0].mask_hw)


def test_images_without_a_labelled_pixel_are_passed_over(cfg, model, tmp_path):
    data = training_runs.write_data(tmp_path / "ignored", val=3, size_px=50)
    PilImage.fromarray(np.full((50, 50), 255, np.uint8)).save(data / "val/labels/0.png")
    collection = run.validation_set(cfg.model_copy(update={"data": str(data)}), MAP)
    first = cfg.model_copy(update={"validation": cfg.validation.model_copy(update={"limit": 1})})
    assert validate(model, collection, first, Group()).samples[0].key == collection[1].key


def test_a_band_without_weight_changes_no_count_and_pictures_show_red_green_and_blue(cfg, model, tmp_path):
    data = training_runs.write_data(tmp_path / "four", val=5, size_px=50)
    noise = np.random.default_rng(1).integers(0, 256, (50, 50, 1), np.uint8)
    for path in data.glob("*/images/*.png"):
        with PilImage.open(path) as file:
            PilImage.fromarray(np.concatenate([noise, np.asarray(file)], 2)).save(path)
    channels = ("nir", "red", "green", "blue")
    network = NORMED | {"channels": channels, "mean": 4 * (0.5,), "std": 4 * (0.25,)}
    four = config(data, tmp_path, network=network, runtime={"precision": "fp32"})
    card = model.card.model_copy(
        update={"in_channels": 4} | {name: network[name] for name in ("channels", "mean", "std")}
    )
    wider, first = dict(model.state), next(iter(model.state))
    wider[first] = torch.nn.functional.pad(wider[first], (0, 0, 0, 0, 1, 0))
    found = validate(Checkpoint(card, wider, sha256=""), run.validation_set(four, MAP), four, Group())
    expected = validate(model, run.validation_set(cfg, MAP), cfg, Group())
    assert np.array_equal(found.scores.counts, expected.scores.counts)
    assert found.reference["brightness"] == expected.reference["brightness"]
    assert np.array_equal(found.samples[0].image_hwc, expected.samples[0].image_hwc)


def test_samples_of_a_network_that_predicts_edges_have_its_edge_map(cfg, model):
    collection = run.validation_set(cfg, MAP)
    options = {"network": "deeplab_v1", "width_multiplier": 1 / 32}
    torch.manual_seed(0)
    network = zoo.build_network("deeplab_dt", 3, **options).eval()
    network.edge.weight.data.normal_().abs_()
    card = model.card.model_copy(update={"architecture": "deeplab_dt", "options": options, "output_stride": 8})
    learned = Checkpoint(card, network.state_dict(), sha256="")
    few = cfg.model_copy(update={"validation": cfg.validation.model_copy(update={"samples": 2})})
    samples = validate(learned, collection, few, Group()).samples
    shown = predict_samples(learned, collection, few, Group())
    padded = np.pad(samples[1].image_hwc, [(0, 15), (0, 15), (0, 0)], mode="symmetric")  # one tile of 65
    with torch.no_grad():
        edges = network.edge_map((torch.from_numpy(padded).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25)[0]
    assert edges.max() > 0
    for sample in (samples[1], shown[1]):
        np.testing.assert_allclose(sample.edges_hw, edges[:50, :50], rtol=1e-4, atol=1e-5)
    assert all(sample.edges_hw is None for sample in validate(model, collection, few, Group()).samples)
