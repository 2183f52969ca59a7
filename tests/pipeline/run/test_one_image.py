import io
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import pipeline
from pipeline import segment
from pipeline.config import InferConfig, RefineConfig, SegmentConfig, TileConfig
from pipeline.datasets.farmland import generate_scene
from pipeline.errors import ConfigError, InputError
from pipeline.image import encode
from pipeline.models.card import load_card
from pipeline.records import Item, items_to_table, rows_from_table
from pipeline.run.ledger import Ledger
from pipeline.run.stages import InferStage, Job, RefineStage
from pipeline.store.url import Url
from tests import ROOT
from tests.support.checkpoints import small_checkpoint

SCENE = generate_scene(5, height=150, width=190).image_hwc
LARGE = generate_scene(6, height=210, width=310).image_hwc
TILE = TileConfig(tile_px=128, overlap_px=32)


def row_of_the_main_job(pixels_hwc: np.ndarray, refine: RefineConfig, **settings):
    """The row that the stages of a run give an image."""
    cfg = SegmentConfig(source="x", output="y", checkpoint="farmland", refine=refine, **settings)
    job = Job(cfg, load_card("farmland").classes, Url("run"), "m" * 12, "c" * 12, preview_share=1.0)
    out = io.BytesIO()
    PIL.Image.fromarray(pixels_hwc).save(out, "PNG")
    item = Item(key="key", shard="s", etag="e", data=out.getvalue())
    scored = InferStage(job, Ledger(), threads=torch.get_num_threads())(items_to_table([item]))
    (row,) = rows_from_table(RefineStage(job, Ledger())(scored))
    return row


@pytest.mark.parametrize(
    ("pixels_hwc", "refine", "settings"),
    [
        (SCENE, RefineConfig(), {}),
        (SCENE, RefineConfig(engine="none"), {}),
        (SCENE, RefineConfig(engine="domain_transform"), {"infer": InferConfig(output_stride=8, flip=True)}),
        (LARGE, RefineConfig(iterations=2, window_px=128), {"tile": TILE}),
    ],
    ids=["crf", "network", "filter", "tiles"],
)
def test_a_mask_has_the_pixels_of_the_main_jobs_row(pixels_hwc, refine, settings) -> None:
    row = row_of_the_main_job(pixels_hwc, refine, **settings)
    mask, confidence = segment(pixels_hwc, "farmland", refine=refine, **settings)
    assert np.array_equal(mask, encode.read_mask_png(row.mask))
    assert np.array_equal(np.round(confidence * 255), preview(row.preview_confidence))
    assert confidence.mean(dtype=np.float64) == pytest.approx(row.confidence, abs=0.5 / 255)
    assert (mask.dtype, confidence.dtype) == (np.uint8, np.float32)
    assert 0 < confidence.min() <= confidence.max() <= 1


def preview(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(png)))


def test_true_is_the_default_crf_and_false_the_network_alone() -> None:
    refined, confidence = segment(SCENE, "farmland", refine=True)
    alone, same_confidence = segment(SCENE, "farmland", refine=False)
    assert np.array_equal(refined, segment(SCENE, "farmland", refine=RefineConfig())[0])
    assert np.array_equal(alone, segment(SCENE, "farmland", refine=RefineConfig(engine="none"))[0])
    assert 0 < (refined != alone).mean() < 0.2
    assert abs(confidence - same_confidence).max() < 0.1


def test_pixels_without_data_are_ignored() -> None:
    valid = np.ones(SCENE.shape[:2], bool)
    valid[:40] = False
    mask, _ = segment(SCENE, "farmland", valid_hw=valid)
    assert (mask[:40] == 255).all()
    assert (mask[40:] < 255).all()


def test_views_of_arrays_give_the_same_as_copies() -> None:
    turned = np.rot90(SCENE)[::2, ::-1]
    assert np.array_equal(segment(turned, "farmland")[0], segment(turned.copy(), "farmland")[0])


@pytest.mark.parametrize(
    ("pixels", "kind", "message"),
    [
        (SCENE / 255, TypeError, "pixels_hwc is an array of float64; it must be a numpy array of uint8"),
        (SCENE.tolist(), TypeError, "pixels_hwc is a list; it must be a numpy array of uint8"),
        (SCENE[..., 0], ValueError, r"shape \(150, 190\), this checkpoint needs \(H, W, 3\): red, green, blue"),
        (SCENE[..., :2], ValueError, r"shape \(150, 190, 2\), this checkpoint needs \(H, W, 3\)"),
        (SCENE[:0], ValueError, r"shape \(0, 190, 3\): the image has no pixel"),
    ],
)
def test_an_array_that_is_no_image_is_refused_by_what_it_is_and_what_is_allowed(pixels, kind, message) -> None:
    with pytest.raises(kind, match=message):
        segment(pixels, "farmland")


def test_a_valid_mask_of_another_size_or_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"valid_hw has shape \(9, 9\), the image is \(150, 190\)"):
        segment(SCENE, "farmland", valid_hw=np.ones((9, 9), bool))
    with pytest.raises(TypeError, match="valid_hw is an array of uint8; it must be a numpy array of bool"):
        segment(SCENE, "farmland", valid_hw=SCENE[..., 0])


def test_a_checkpoint_that_is_not_there_and_an_image_beyond_the_limits_are_named() -> None:
    with pytest.raises(ConfigError, match="no checkpoint 'farm'"):
        segment(SCENE, "farm")
    with pytest.raises(InputError, match="too_many_pixels"):
        segment(SCENE, "farmland", tile=TileConfig(mode="whole", whole_mpx=0.01))


def test_a_refiner_that_runs_out_of_time_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        mask, _ = segment(SCENE, "farmland", refine=RefineConfig(engine="domain_transform", deadline_s=1e-9))
    assert "refine_timeout" in caplog.text
    assert np.array_equal(mask, segment(SCENE, "farmland", refine=False)[0])


def test_other_bands_are_taken_in_the_order_of_the_card(tmp_path: Path) -> None:
    near_infrared = SCENE[..., :1] // 2
    folder = small_checkpoint(tmp_path / "nir", ("nir", "blue", "green", "red"))
    four = np.concatenate([near_infrared, SCENE[..., ::-1]], axis=2)
    mask, confidence = segment(four, folder)
    assert mask.shape == confidence.shape == SCENE.shape[:2]
    with pytest.raises(ValueError, match=r"\(H, W, 4\): nir, blue, green, red"):
        segment(SCENE, folder)


def test_bands_without_colours_guide_the_refinement_too(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "radar", ("vv", "vh"))
    assert segment(SCENE[..., :2], folder)[0].shape == SCENE.shape[:2]
    with pytest.raises(ConfigError, match=r"--refine\.guide names red; the bands are vv, vh"):
        segment(SCENE[..., :2], folder, refine=RefineConfig(guide=("red",)))


def test_a_network_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    segment(SCENE[:64, :64], "farmland")
    monkeypatch.setattr("pipeline.run.one_image.load_checkpoint", None)
    segment(SCENE[:64, :64], "farmland")


LIGHT = """
import sys, pipeline
heavy = {"torch", "ray", "numpy", "pyarrow"} & set(sys.modules)
from pipeline import segment
print(sorted(heavy), "torch" in sys.modules, "ray" in sys.modules)
"""


def test_the_package_imports_nothing_and_its_use_no_ray() -> None:
    printed = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout == "[] True False\n"


def test_other_names_are_no_attributes_of_the_package() -> None:
    with pytest.raises(AttributeError, match="module 'pipeline' has no attribute 'segments'"):
        _ = pipeline.segments
