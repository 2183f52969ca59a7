import json

import numpy as np

from benchmarks import weak as benchmark_weak
from benchmarks.weak import ALONE, LEAST_PX, NAMES, WAYS
from pipeline.store.url import Url
from pipeline.training import weak
from pipeline.training.weak import Box
from tests.support.packages import installed_backbone

LABEL = np.zeros((20, 20), np.uint8)
LABEL[2:6, 3:9] = 1
LABEL[6:9, 9:15] = 1  # touches at a corner: the same piece
LABEL[12:18, 12:20] = 2
LABEL[0, 0] = 2


def test_every_connected_piece_has_a_box_unless_it_is_tiny() -> None:
    said = json.loads(benchmark_weak.boxes_of(LABEL))
    assert said == {
        "boxes": [{"class": "water", "box": [3, 2, 15, 9]}, {"class": "tree", "box": [12, 12, 20, 18]}],
    }


def test_a_box_has_all_of_its_piece_and_no_class_is_lost_but_in_tiny_pieces() -> None:
    _, label = benchmark_weak.scene(3, 64)
    boxes = [Box(NAMES.index(one["class"]), *one["box"]) for one in json.loads(benchmark_weak.boxes_of(label))["boxes"]]
    drawn = weak.rectangle_labels(boxes, *label.shape, background=0)
    assert boxes
    assert np.count_nonzero((label > 0) & (drawn == 0)) < LEAST_PX * 10


def test_the_classes_of_an_image_are_its_objects() -> None:
    assert json.loads(benchmark_weak.weak_classes(LABEL)) == {"classes": ["water", "tree"]}
    assert json.loads(benchmark_weak.weak_classes(np.zeros((2, 2), np.uint8))) == {"classes": []}


def test_every_way_is_a_config_of_the_training_job(tmp_path) -> None:
    for way in WAYS.values():
        cfg = benchmark_weak.weak_config(tmp_path, 1, way, steps=30, output=str(tmp_path / "run"), initial=None)
        assert cfg.sets.train[0] == "few"
        assert (cfg.sample.weak_share is None) == (not way.weak)
        later = benchmark_weak.weak_config(tmp_path, 1, way, steps=30, output=str(tmp_path / "run"), initial="start")
        assert later.optimise.lr < cfg.optimise.lr


def test_labels_alone_start_from_a_pretrained_backbone_with_the_biases_of_the_authors(tmp_path, monkeypatch) -> None:
    installed_backbone("efficientnet-lite0", tmp_path, monkeypatch)
    for way in ALONE.values():
        cfg = benchmark_weak.alone_config(tmp_path, 1, way, steps=30, output=str(tmp_path / "run"))
        assert cfg.sets.train == (way.part,)
        assert cfg.network.options["backbone"] == "efficientnet_lite0"
        assert (cfg.weak.bias_fg, cfg.weak.bias_bg, cfg.weak.share_fg, cfg.weak.share_bg) == (5.0, 3.0, 0.2, 0.4)


def test_a_run_gives_the_scores_that_its_card_tells(tmp_path, monkeypatch) -> None:
    for name, count in (("FEW", 4), ("MANY", 4), ("JUDGED", 40)):
        monkeypatch.setattr(benchmark_weak, name, count)
    benchmark_weak.write_data(Url(str(tmp_path / "data-1")), seed=1, side_px=64)
    way = WAYS["classes, EM-Fixed"]
    cfg = benchmark_weak.weak_config(tmp_path, 1, way, steps=1, output=str(tmp_path / "run"), initial=None)
    miou, *iou = benchmark_weak.train_once(cfg)
    assert len(iou) == len(NAMES)
    assert abs(miou - sum(iou) / len(iou)) < 1e-5


def test_the_table_compares_seed_by_seed() -> None:
    found = {"the few alone": [[0.5, 0.9, 0.4, 0.2], [0.6, 0.9, 0.5, 0.4]]}
    found["all with full labels"] = [[0.7, 0.95, 0.6, 0.55], [0.7, 0.95, 0.6, 0.55]]
    lines = benchmark_weak.table(found).splitlines()
    assert {line.count("|") for line in lines} == {len(NAMES) + 4}
    assert lines[2].startswith("| the few alone | 55.0 ± 7.1 | +0.0 (+0.0 to +0.0) | 90.0 ± 0.0 |")
    assert lines[3].startswith("| all with full labels | 70.0 ± 0.0 | +15.0 (+10.0 to +20.0) |")
