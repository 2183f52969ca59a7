"""The batches of all workers together are those of one, whoever decodes them; resuming repeats and skips nothing."""

import io
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.training import weak
from pipeline.training.collection import Collection, open_collection
from pipeline.training.config import TrainConfig
from pipeline.training.examples import Batch, ExampleOrder, batches

NAMES = ("soil", "weed", "crop")
CLASSES = ClassMap.model_validate({"name": "three", "classes": [{"name": one, "colour": (0, 0, 9)} for one in NAMES]})
SIZE = 24, 32
FULL, WEAK = 10, 5
WEED = [2, 7]
"""The only examples with weeds."""


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    PilImage.fromarray(array).save(out, "PNG")
    return out.getvalue()


@cache
def collection() -> Collection:
    """Ten examples with full labels; then three with classes and two with boxes."""
    folder = Path(mkdtemp())
    for n in range(FULL + WEAK):
        rng = np.random.default_rng(n)
        objects.put(Url(str(folder / "part/images" / f"{n:02}.png")), png(rng.integers(0, 256, (*SIZE, 3), np.uint8)))
        label = png(rng.choice([0, 1, 2] if n in WEED else [0, 2], SIZE).astype(np.uint8))
        if n >= FULL:
            label = (
                b'{"classes": ["crop"]}' if n < FULL + 3 else b'{"boxes": [{"class": "weed", "box": [4, 4, 20, 16]}]}'
            )
        objects.put(Url(str(folder / "part/labels" / f"{n:02}.{'png' if n < FULL else 'json'}")), label)
    return open_collection(Url(str(folder)), ["part"], classes=CLASSES, cache=folder / "cache")


def full() -> Collection:
    return collection().subset(range(FULL))


def config(**changed) -> TrainConfig:
    plain = {
        "data": "",
        "output": "",
        "optimise": {"batch": 4},
        "augment": {"crop_px": (16, 16)},
        "runtime": {"loader_workers": 0},
    }
    return TrainConfig.model_validate(plain | changed)


def steps(
    cfg: TrainConfig, first: int, last: int, *, rank: int = 0, world: int = 1, of: Collection | None = None
) -> list[Batch]:
    examples = of or full()
    return list(batches(examples, cfg, CLASSES, first_step=first, last_step=last, rank=rank, world_size=world))


def assert_equal(one: Batch, other: Batch) -> None:
    for name in Batch.__slots__:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def places(order: ExampleOrder, count: int) -> list[int]:
    return [order[place] for place in range(count)]


# ---------------------------------------------------------------- the order


def test_every_epoch_has_every_example_once_and_an_order_of_its_own():
    drawn = places(ExampleOrder(full(), config(), CLASSES), 30 * FULL)
    epochs = [drawn[at : at + FULL] for at in range(0, len(drawn), FULL)]
    assert all(sorted(epoch) == list(range(FULL)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 25


def test_the_seed_gives_the_order():
    orders = [places(ExampleOrder(full(), config(seed=seed), CLASSES), 50) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_examples_with_hard_classes_are_drawn_as_often_as_asked():
    cfg = config(sample={"hard_classes": ("weed",), "hard_times": 3})
    counts = Counter(places(ExampleOrder(full(), cfg, CLASSES), FULL + 2 * len(WEED)))
    assert counts == {n: 3 if n in WEED else 1 for n in range(FULL)}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_every_step_has_the_share_of_weak_examples_asked_for_and_all_of_them_have_their_turn(share):
    order = ExampleOrder(collection(), config(sample={"weak_share": share}), CLASSES)
    drawn = np.array(places(order, 4 * 2 * FULL)).reshape(-1, 4)
    assert ((drawn >= FULL).sum(axis=1) == 4 * share).all()
    counts = Counter(drawn.ravel().tolist())
    for kind in (range(FULL), range(FULL, FULL + WEAK)):
        times = [counts[n] for n in kind]
        assert max(times) - min(times) <= 1


def test_without_a_share_weak_examples_come_as_they_are():
    assert sorted(places(ExampleOrder(collection(), config(), CLASSES), FULL + WEAK)) == list(range(FULL + WEAK))


def test_settings_that_no_example_can_meet_are_refused():
    with pytest.raises(ConfigError, match="tree"):
        ExampleOrder(full(), config(sample={"hard_classes": ("tree",)}), CLASSES)
    with pytest.raises(ConfigError, match="2 images with weak labels"):
        ExampleOrder(full(), config(sample={"weak_share": 0.5}), CLASSES)
    with pytest.raises(ConfigError, match="cannot be shared by 5 workers"):
        batches(full(), config(), CLASSES, first_step=0, last_step=1, rank=0, world_size=5)


# ---------------------------------------------------------------- batches


def test_a_batch_has_the_shapes_and_types_it_says():
    (batch,) = steps(config(), 0, 1)
    assert (batch.images_nchw.shape, batch.images_nchw.dtype) == ((4, 3, 16, 16), torch.uint8)
    assert (batch.labels_nhw.shape, batch.labels_nhw.dtype) == ((4, 16, 16), torch.uint8)
    assert (batch.present_nk.shape, batch.present_nk.dtype) == ((4, 3), torch.bool)
    assert (batch.supervision_n.tolist(), batch.supervision_n.dtype) == ([weak.FULL] * 4, torch.int8)
    assert batch.images_nchw.is_contiguous()


@pytest.mark.parametrize("world", [2, 3, 4])
def test_any_number_of_workers_draws_the_same_examples(world):
    alone = steps(config(), 3, 9)
    together = [steps(config(), 3, 9, rank=rank, world=world) for rank in range(world)]
    for step, whole in enumerate(alone):
        for rank in range(world):
            part = Batch(*(getattr(whole, name)[rank::world] for name in Batch.__slots__))
            assert_equal(together[rank][step], part)


def test_a_run_that_resumes_goes_on_where_it_was():
    undisturbed, resumed = steps(config(), 0, 8), steps(config(), 5, 8)
    for one, other in zip(undisturbed[5:], resumed, strict=True):
        assert_equal(one, other)


def test_resuming_decodes_nothing_that_came_before(monkeypatch):
    read = []
    monkeypatch.setattr(Collection, "__getitem__", lambda self, index: read.append(index) or _first(self, index))
    steps(config(), 10_000, 10_002)
    assert len(read) == 8


_first = Collection.__getitem__


def test_processes_that_decode_ahead_change_nothing():
    alone = steps(config(), 0, 6)
    ahead = steps(config(runtime={"loader_workers": 2, "prefetch": 1}), 0, 6)
    for one, other in zip(alone, ahead, strict=True):
        assert_equal(one, other)


def test_a_loop_that_ends_early_leaves_no_process_behind():
    drawn = batches(full(), config(runtime={"loader_workers": 1}), CLASSES, first_step=0, last_step=10**9)
    first = next(drawn)
    assert_equal(first, steps(config(), 0, 1)[0])
    processes = drawn._workers
    del drawn
    assert not any(process.is_alive() for process in processes)


def test_overfitting_sees_the_same_centre_every_time():
    drawn = steps(config(overfit=2), 0, 10, of=full().subset([0, 1]))
    images = {one.numpy().tobytes() for batch in drawn for one in batch.images_nchw}
    pixels = np.array(PilImage.open(io.BytesIO(full()[0].image)))[4:20, 8:24]
    assert len(images) == 2
    assert pixels.transpose(2, 0, 1).tobytes() in images


# ---------------------------------------------------------------- weak labels


def weak_batch(*, boxes: str = "rect", crop: int = 40) -> tuple[Batch, list[int]]:
    """The weak examples, centred and padded, and which of them is which."""
    cfg = config(overfit=1, optimise={"batch": WEAK}, augment={"crop_px": (crop, crop)}, weak={"boxes": boxes})
    examples = collection().subset(range(FULL, FULL + WEAK))
    (batch,) = steps(cfg, 0, 1, of=examples)
    return batch, places(ExampleOrder(examples, cfg, CLASSES), WEAK)


def test_image_level_classes_say_what_is_there_and_where_the_image_is():
    batch, order = weak_batch()
    for at in (order.index(n) for n in range(3)):
        assert batch.supervision_n[at] == weak.CLASSES
        assert batch.present_nk[at].tolist() == [True, False, True]
        label = batch.labels_nhw[at]
        assert (label == 0).sum() == SIZE[0] * SIZE[1]
        assert (label == CLASSES.ignore_id).sum() == 40 * 40 - SIZE[0] * SIZE[1]


@pytest.mark.parametrize(("boxes", "kind"), [("rect", weak.FULL), ("em_fixed", weak.BOXES)])
def test_boxes_are_drawn_into_the_label(boxes, kind):
    batch, order = weak_batch(boxes=boxes)
    at = order.index(3)
    assert batch.supervision_n[at] == kind
    assert batch.present_nk[at].tolist() == [True, True, False]
    expected = np.full((40, 40), CLASSES.ignore_id)
    expected[8:32, 4:36] = 0
    expected[8 + 4 : 8 + 16, 4 + 4 : 4 + 20] = 1
    np.testing.assert_array_equal(batch.labels_nhw[at], expected)


def test_boxes_that_a_crf_looks_into_are_drawn_once(monkeypatch):
    calls = []

    def seg(pixels_hwc, boxes, **options):
        calls.append(boxes)
        return weak.rectangle_labels(boxes, *pixels_hwc.shape[:2], background=options["background"])

    monkeypatch.setattr(weak, "crf_labels", seg)
    cfg = config(optimise={"batch": 2}, weak={"boxes": "seg"})
    drawn = steps(cfg, 0, 5, of=collection().subset([13, 14]))
    assert len(calls) == 2
    assert {int(kind) for batch in drawn for kind in batch.supervision_n} == {weak.FULL}


def test_pixels_that_are_not_valid_have_no_label(tmp_path):
    pixels = np.full((16, 16, 4), 200, np.uint8)
    pixels[:5, :, 3] = 0
    objects.put(Url(str(tmp_path / "part/images/1.png")), png(pixels))
    objects.put(Url(str(tmp_path / "part/labels/1.png")), png(np.ones((16, 16), np.uint8)))
    found = open_collection(Url(str(tmp_path)), ["part"], classes=CLASSES, cache=tmp_path / "cache")
    (batch,) = steps(config(overfit=1, optimise={"batch": 1}), 0, 1, of=found)
    assert (batch.labels_nhw[0, :5] == CLASSES.ignore_id).all()
    assert (batch.labels_nhw[0, 5:] == 1).all()


def test_bands_other_than_rgb_reach_the_batch_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    objects.put(Url(str(tmp_path / "part/images/1.png")), png(pixels))
    objects.put(Url(str(tmp_path / "part/labels/1.png")), png(np.ones((16, 16), np.uint8)))
    bands = {"channels": ("red", "green", "blue", "near"), "mean": [0.5] * 4, "std": [0.2] * 4}
    cfg = config(overfit=1, optimise={"batch": 1}, network=bands)
    found = open_collection(
        Url(str(tmp_path)), ["part"], classes=CLASSES, cache=tmp_path / "cache", channels=cfg.network.channels
    )
    (batch,) = steps(cfg, 0, 1, of=found)
    np.testing.assert_array_equal(batch.images_nchw[0].permute(1, 2, 0), pixels)
