"""benchmarks.densecrf: what its figures rest on; the figures themselves are not tested."""

import json
import math

import numpy as np
import pytest

from benchmarks import densecrf as crf
from pipeline.refine import native
from pipeline.refine.presets import CrfParams

pytest.importorskip("pydensecrf")
pytestmark = pytest.mark.skipif(not native.available(), reason="the native CRF was not built")


def case(height: int = 56, width: int = 64, classes: int = 3) -> crf.Case:
    return crf.synthetic_case(next(crf.pictures(None, 1, height, width)), classes)


def test_synthetic_logits_give_every_class_an_equal_share():
    logits = case(160, 240, classes=5).logits_khw
    shares = np.bincount(logits.argmax(0).ravel(), minlength=5) / logits[0].size
    assert logits.dtype == np.float16
    assert np.abs(shares - 0.2).max() < 0.06


def test_an_engine_is_as_fast_as_itself_and_agrees_with_itself():
    said = crf.compare_engines([case()], "deeplab-v2", 2, 1)
    assert said.keys() == crf.ENGINES.keys()
    assert said["pydensecrf"] | {"cpu_s": 0} == {"clock_ratio": 1, "cpu_ratio": 1, "cpu_s": 0, "labels_differ": 0}
    assert said["native lattice"]["labels_differ"] < 0.002
    assert said["torch"]["labels_differ"] < 0.002


def test_the_oracle_without_kernels_is_the_softmax():
    one = case()
    logits = np.random.default_rng(0).normal(0, 1, (3, 56, 64)).astype(np.float32)
    assert np.array_equal(crf.exact(one.pixels_hwc, logits, CrfParams(0, 50, 3, 0, 3)), logits.argmax(0))


def test_every_lattice_is_close_to_the_oracle():
    off = crf.off_the_oracle([case()], "deeplab-v2", 5)
    assert max(off[name] for name in off.keys() - {"domain_transform"}) < 0.03


def test_the_refine_stage_gives_the_mask_of_its_refiner():
    classes = crf.checkpoint.load_checkpoint("farmland").card.classes
    refiner = crf.Refiner(crf.refine_config("native auto", "deeplab-v2", 2), classes)
    one = crf.stage_case(case())
    stage_s, refine_s, mask_hw = crf.time_stage(refiner, one, classes)
    assert 0 < refine_s < stage_s
    decoded = crf.decode_image(one.scored.item.data, crf.DecodeConfig())
    assert np.array_equal(mask_hw, refiner(one.scored, decoded).mask_hw)


def test_a_halo_that_reaches_across_the_image_changes_nothing():
    one, cfg = case(160, 240), crf.refine_config("native auto", "deeplab-v2", 2)
    classes = crf.checkpoint.load_checkpoint("farmland").card.classes
    whole = crf.Refiner(cfg, classes)
    parts = crf.Refiner(cfg.model_copy(update={"window_px": 128}), classes)
    reference = crf.in_windows(one, whole, 0)
    assert np.array_equal(crf.in_windows(one, parts, 240), reference)
    assert not np.array_equal(crf.in_windows(one, parts, 0), reference)


def test_an_image_cut_off_nowhere_has_not_moved(monkeypatch):
    cfg = crf.refine_config("native auto", "deeplab-v2", 2).model_copy(update={"bi_xy": 10.0})
    assert 0 <= crf.lattice_shift_share(case(), cfg) < 0.1
    assert math.isnan(crf.lattice_shift_share(case(24, 24), cfg))
    monkeypatch.setattr(crf, "SHIFT_PX", 0)
    assert crf.lattice_shift_share(case(), cfg) == 0


def test_work_counts_the_halos():
    assert crf.work_factor(512, 512, 256, 0) == 1
    assert crf.work_factor(512, 512, 256, 128) == 1.5**2
    assert crf.work_factor(300, 300, 256, 128) == 1


def test_the_smallest_halo_is_the_first_below_the_limit():
    halos = {"0": {"differ": 0.01}, "1": {"differ": 0.001}, "2": {"differ": 0.0}}
    assert crf.smallest_halo(halos, 0.002) == 1
    assert crf.smallest_halo(halos, 0.0) is None


def test_cores_per_gpu_are_whole():
    assert crf.cores_per_gpu(100, 3) == 34


def test_one_json_line_and_a_plot_come_out(tmp_path, capsys):
    plot = tmp_path / "plot.png"
    words = ["--brief", "--sizes", "56x64", "--classes", "3", "--images", "1", "--iterations", "1", "--plot", str(plot)]
    assert crf.main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["speed"]) == 2 * len(crf.ENGINES)
    assert plot.read_bytes().startswith(b"\x89PNG")
