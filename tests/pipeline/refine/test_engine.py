"""What every refinement engine has in common, and what becomes of one that is not there."""

from time import monotonic

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import RefineConfig
from pipeline.errors import ConfigError
from pipeline.records import Item, Scored, Window
from pipeline.refine import native
from pipeline.refine.engine import WindowInput, make_engine, network_answer, resolve_engine

ENGINES = ("native", "torch", "pydensecrf", "domain_transform")
LATER = 60.0


def scene(height: int, width: int, num_classes: int, *, stride: int = 4, align_corners: bool = False):
    rng = np.random.default_rng(height * 100 + width)
    logits = rng.normal(0, 3, (num_classes, -(-height // stride), -(-width // stride))).astype(np.float16)
    item = Item("key", "shard", "etag")
    scored = Scored(item, height, width, logits_khw=logits, stride=stride, align_corners=align_corners)
    return scored, rng.integers(0, 255, (height, width, 3)).astype(np.uint8)


def ask(engine: str, scored: Scored, pixels: np.ndarray, window: Window, *, seconds: float = LATER):
    here = pixels[window.y : window.y + window.height, window.x : window.x + window.width]
    made = make_engine(RefineConfig(engine=engine, iterations=2))
    return made(WindowInput(scored.logits_khw, scored, window, here), deadline=monotonic() + seconds)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=15)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    classes=st.integers(2, 12),
    align_corners=st.booleans(),
    corner=st.tuples(st.integers(0, 8), st.integers(0, 8)),
)
def test_every_engine_says_the_same_of_the_network_alone(engine: str, size, classes, align_corners, corner) -> None:
    scored, pixels = scene(*size, classes, align_corners=align_corners)
    y, x = min(corner[0], size[0] - 1), min(corner[1], size[1] - 1)
    window = Window(y, x, size[0] - y, size[1] - x)
    found = ask(engine, scored, pixels, window)
    alone, scores = network_answer(scored.logits_khw, scored, window)
    clear = np.sort(scores, axis=0)[-1] - np.sort(scores, axis=0)[-2] > 1e-4
    np.testing.assert_array_equal(found.first_hw[clear], alone.first_hw[clear])
    np.testing.assert_allclose(found.confidence_hw, alone.confidence_hw, atol=1e-5)
    np.testing.assert_allclose(found.nats_hw, alone.nats_hw, atol=1e-4)
    assert found.labels_hw.max() < classes
    assert found.done == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_without_time_leaves_the_networks_labels(engine: str) -> None:
    scored, pixels = scene(30, 20, 4)
    found = ask(engine, scored, pixels, Window(0, 0, 30, 20), seconds=-1)
    np.testing.assert_array_equal(found.labels_hw, found.first_hw)
    assert found.done == 0


def test_the_three_dense_crfs_agree() -> None:
    scored, pixels = scene(48, 64, 5)
    labels = [ask(engine, scored, pixels, Window(0, 0, 48, 64)).labels_hw for engine in ENGINES[:3]]
    assert (labels[1] != labels[2]).mean() < 0.002
    assert (labels[0] != labels[2]).mean() < 0.01  # its smoothness kernel is nearer to the model


def test_no_engine_is_made_for_none() -> None:
    assert make_engine(RefineConfig(engine="none")) is None


def test_without_the_native_engine_torch_takes_its_place_with_a_warning(monkeypatch, caplog) -> None:
    assert resolve_engine(RefineConfig()).engine == "native"
    monkeypatch.setattr(native, "UNAVAILABLE_BECAUSE", "nobody built it")
    assert resolve_engine(RefineConfig()).engine == "torch"
    assert "nobody built it" in caplog.text
    assert resolve_engine(RefineConfig(engine="none")).engine == "none"
    with pytest.raises(ConfigError, match="nobody built it"):
        make_engine(RefineConfig())
