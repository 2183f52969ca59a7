"""Refinement engines: laws that all of them keep, the table they stand in, and engines that are not installed."""

import os
import subprocess
import sys
from time import monotonic
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.classes import ClassMap
from pipeline.config import EngineName, RefineConfig
from pipeline.errors import ConfigError
from pipeline.records import Footprint, Image, Item, Scored, Window
from pipeline.refine import native
from pipeline.refine.engine import (
    REFINE_ENGINES,
    EngineSpec,
    RefinedWindow,
    WindowInput,
    describe_engine,
    guide_bands,
    make_engine,
    most_vertices,
    network_answer,
    reach_px,
    resolve_engine,
    sole_class,
    substitution,
    window_side_px,
)
from pipeline.refine.presets import PRESETS
from pipeline.refine.refiner import Refiner
from tests.support.examples import examples

BUILT = [name for name, spec in REFINE_ENGINES.items() if spec.build]
DENSE_CRFS = ("native", "torch", "pydensecrf")
LATER = 60.0
VOC = Footprint(weight_bytes=0, num_classes=21, stride=8)


def scene(height: int, width: int, num_classes: int, *, stride: int = 4, align_corners: bool = False):
    rng = np.random.default_rng(height * 100 + width)
    logits = rng.normal(0, 3, (num_classes, -(-height // stride), -(-width // stride))).astype(np.float16)
    item = Item("key", "shard", "etag")
    scored = Scored(item, height, width, logits_khw=logits, stride=stride, align_corners=align_corners)
    return scored, rng.integers(0, 255, (height, width, 3)).astype(np.uint8)


def ask(engine: str, scored: Scored, pixels: np.ndarray, window: Window, *, seconds: float = LATER):
    here = pixels[window.y : window.y + window.height, window.x : window.x + window.width]
    call = make_engine(RefineConfig(engine=engine, iterations=2))
    return call(WindowInput(scored.logits_khw, scored, window, here), deadline=monotonic() + seconds)


@pytest.mark.parametrize("engine", BUILT)
@examples(15)
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


@pytest.mark.parametrize("engine", BUILT)
def test_an_engine_without_time_leaves_the_networks_labels(engine: str) -> None:
    scored, pixels = scene(30, 20, 4)
    found = ask(engine, scored, pixels, Window(0, 0, 30, 20), seconds=-1)
    np.testing.assert_array_equal(found.labels_hw, found.first_hw)
    assert found.done == 0


def test_the_three_dense_crfs_agree() -> None:
    scored, pixels = scene(48, 64, 5)
    labels = [ask(engine, scored, pixels, Window(0, 0, 48, 64)).labels_hw for engine in DENSE_CRFS]
    assert (labels[1] != labels[2]).mean() < 0.002
    assert (labels[0] != labels[2]).mean() < 0.01  # its smoothness kernel is nearer to the model


def test_the_table_has_exactly_the_engines_that_the_setting_allows() -> None:
    assert list(REFINE_ENGINES) == list(get_args(EngineName))


def test_engines_with_a_preset_are_described_by_it_and_reach_two_of_its_sigmas() -> None:
    wide = {"bi_xy": 40.5, "sigma_s": 30.25}
    assert {name: describe_engine(RefineConfig(engine=name)) for name in REFINE_ENGINES} == {
        **{name: f"{name}, preset deeplab-v2" for name in DENSE_CRFS},
        "domain_transform": "domain_transform",
        "none": "none",
    }
    assert {name: reach_px(RefineConfig(engine=name, **wide)) for name in REFINE_ENGINES} == {
        **dict.fromkeys(DENSE_CRFS, 81.0),
        "domain_transform": 60.5,
        "none": 0,
    }


@pytest.mark.parametrize("engine", BUILT)
def test_an_engine_does_all_its_iterations_or_leaves_the_networks_labels(engine: str) -> None:
    scored, pixels = scene(120, 120, 8)
    for seconds in (0.0, 1e-4, 1e-3, 1e-2, LATER):
        result = ask(engine, scored, pixels, Window(0, 0, 120, 120), seconds=seconds)
        assert result.done in (0, 2)
        assert result.done == 2 or np.array_equal(result.labels_hw, result.first_hw)
    assert result.done == 2


PEAK = """
import sys
from math import inf
import numpy as np
from pipeline.config import RefineConfig
from pipeline.process_memory import status_bytes
from pipeline.records import Footprint, Item, Scored, Window
from pipeline.refine.engine import REFINE_ENGINES, WindowInput, make_engine, network_answer

def noise(side, classes):
    rng = np.random.default_rng(side)
    logits = rng.normal(0, 1, (classes, -(-side // 8), -(-side // 8))).astype(np.float16)
    scored = Scored(Item("k", "s", "e"), side, side, logits_khw=logits, stride=8)
    return WindowInput(logits, scored, Window(0, 0, side, side), rng.integers(0, 256, (side, side, 3), np.uint8))

cfg, classes, side = RefineConfig(engine=sys.argv[1], iterations=2), int(sys.argv[2]), 224
made = make_engine(cfg)
work = made or (lambda seen, deadline: network_answer(seen.logits_khw, seen.scored, seen.window))
work(noise(16, classes), deadline=inf)
seen = noise(side, classes)
open("/proc/self/clear_refs", "w").write("5")
before = status_bytes("VmRSS")
for less in (3, 2, 1):  # an engine may keep something for each size
    work(noise(side - less, classes), deadline=inf)
work(seen, deadline=inf)
reserved = REFINE_ENGINES[cfg.engine].window_bytes(cfg, side, Footprint(0, classes, 8))
print(status_bytes("VmHWM") - before, reserved)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is measured on Linux only")
@pytest.mark.parametrize("classes", [2, 21])
@pytest.mark.parametrize("engine", list(REFINE_ENGINES))
def test_an_engine_stays_within_the_memory_reserved_for_it_even_on_noise(engine: str, classes: int) -> None:
    command = [sys.executable, "-c", PEAK, engine, str(classes)]
    peak, reserved = map(int, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())
    assert peak <= reserved


def test_a_dense_window_is_refined_in_halves_within_the_reserved_memory() -> None:
    """Noise has up to 6 vertices per pixel; the reservation is for the limit of the engine."""
    scored, pixels = scene(150, 170, 8)
    window = WindowInput(scored.logits_khw, scored, Window(0, 0, 150, 170), pixels)
    limit = 150 * 170  # a sixth of what it takes
    made, whole = (make_engine(RefineConfig(iterations=2)) for _ in range(2))
    made.most_vertices = limit
    cut, uncut = (engine(window, deadline=np.inf) for engine in (made, whole))
    params = PRESETS["deeplab-v2"]
    reserved = native.bytes_needed(150, 170, 8, params, vertices_per_pixel=1, cells=scored.logits_khw[0].size, freeze=0)
    assert made._crf.bytes_held < reserved < whole._crf.bytes_held
    assert cut.done == uncut.done == 2
    assert (cut.labels_hw != uncut.labels_hw).mean() < 0.05
    for name in ("first_hw", "confidence_hw", "nats_hw"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(uncut, name))
    late = made(window, deadline=-np.inf)
    np.testing.assert_array_equal(late.labels_hw, uncut.first_hw)
    assert late.done == 0


def test_small_windows_are_reserved_for_noise_and_the_largest_for_photographs() -> None:
    cfg = RefineConfig()
    large, small = (
        REFINE_ENGINES["native"].window_bytes(cfg, side, VOC) / side**2 for side in (window_side_px(cfg), 300)
    )
    assert small > 2.5 * large
    assert most_vertices(cfg) >= 1.5 * window_side_px(cfg) ** 2


def test_a_new_engine_is_one_entry_of_the_table(monkeypatch) -> None:
    """The refiner builds, runs and counts it without a change elsewhere."""

    class Inverter:
        iterations = 1

        def __call__(self, seen: WindowInput, *, deadline: float) -> RefinedWindow:
            before, _ = network_answer(seen.logits_khw, seen.scored, seen.window)
            return RefinedWindow(1 - before.labels_hw, before.first_hw, before.confidence_hw, before.nats_hw, 1)

    spec = EngineSpec(lambda _: Inverter(), lambda _: 5.0, lambda *_: 7, has_preset=False)
    monkeypatch.setitem(REFINE_ENGINES, "inverter", spec)
    cfg = RefineConfig().model_copy(update={"engine": "inverter"})
    classes = ClassMap(name="two", classes=[{"name": name, "colour": (0, 0, 0)} for name in "ab"])
    scored, pixels = scene(30, 20, 2)
    refiner = Refiner(cfg, classes)
    refinement = refiner(scored, Image(pixels, None))
    np.testing.assert_array_equal(refinement.mask_hw, 1 - refinement.network_hw)
    assert (refinement.refined, refinement.note, refinement.stats.changed_pixels) == (True, None, 600)
    assert (refiner.halo_px, describe_engine(cfg)) == (10, "inverter")
    with pytest.raises(ValueError, match=r"key has no pixels, refine\.engine inverter needs them"):
        refiner(scored, None)


def test_no_engine_is_made_for_none() -> None:
    assert make_engine(RefineConfig(engine="none")) is None


def test_without_the_native_engine_torch_takes_its_place_with_a_warning(monkeypatch, caplog) -> None:
    assert resolve_engine(RefineConfig()).engine == "native"
    monkeypatch.setattr(native, "UNAVAILABLE_BECAUSE", "nobody built it")
    assert resolve_engine(RefineConfig()).engine == "torch"
    assert "nobody built it" in caplog.text
    assert substitution(RefineConfig()) == "torch in place of native, several times slower on a CPU (nobody built it)"
    assert substitution(RefineConfig(engine="none")) is None
    assert resolve_engine(RefineConfig(engine="none")).engine == "none"
    with pytest.raises(ConfigError, match="nobody built it"):
        make_engine(RefineConfig())


def test_a_sole_class_is_answered_as_the_network_answers_it() -> None:
    scored, _ = scene(37, 41, 1)
    window = Window(3, 5, 30, 20)
    ours, theirs = sole_class(window), network_answer(scored.logits_khw, scored, window)[0]
    for name in ("labels_hw", "first_hw", "confidence_hw", "nats_hw"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype


# ---------------------------------------------------------------- guide


def test_the_guide_is_the_first_three_bands_or_those_that_are_named() -> None:
    bands = ("nir", "red", "green", "blue")
    assert guide_bands(RefineConfig(), bands) == [0, 1, 2]
    assert guide_bands(RefineConfig(), ("vv", "vh")) == [0, 1]
    assert guide_bands(RefineConfig(guide=("blue", "nir")), bands) == [3, 0]
    with pytest.raises(ConfigError, match=r"--refine\.guide names swir; the bands are nir, red, green, blue"):
        guide_bands(RefineConfig(guide=("swir",)), bands)
    with pytest.raises(ConfigError, match="3 values for vv, vh: one each"):
        guide_bands(RefineConfig(guide_sigmas=(1.0, 2.0, 3.0)), ("vv", "vh"))


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_sigmas_of_bands_are_colours_scaled_by_them(engine: str) -> None:
    scored, pixels = scene(60, 70, 4)
    halved = pixels // 2 * 2
    narrow = np.stack([halved[..., 0], halved[..., 1] // 2, halved[..., 2]], axis=-1)
    window, base = Window(0, 0, 60, 70), {"engine": engine, "iterations": 3, "freeze": 1.0, "preset": "densecrf-demo"}
    refined = [
        make_engine(RefineConfig(**base, guide_sigmas=sigmas))(
            WindowInput(scored.logits_khw, scored, window, colours), deadline=monotonic() + LATER
        ).labels_hw
        for sigmas, colours in (((10.0, 20.0, 10.0), halved), ((10.0, 10.0, 10.0), narrow))
    ]
    np.testing.assert_array_equal(*refined)


def test_one_sigma_for_all_bands_is_that_of_the_preset() -> None:
    scored, pixels = scene(60, 70, 4)
    window = Window(0, 0, 60, 70)
    plain, given = (
        make_engine(RefineConfig(iterations=3, bi_rgb=9.0, guide_sigmas=sigmas))(
            WindowInput(scored.logits_khw, scored, window, pixels), deadline=monotonic() + LATER
        ).labels_hw
        for sigmas in ((), (9.0, 9.0, 9.0))
    )
    np.testing.assert_array_equal(plain, given)
