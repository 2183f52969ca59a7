import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline import classes as class_maps
from pipeline.classes import ClassInfo, ClassMap
from pipeline.page import predictions
from pipeline.records import Sample
from pipeline.training import report
from pipeline.training.state import Point
from tests.support.pages import Outline, laid_out_width, needs_browser

HOSTILE = "<script>alert(1)</script>"
CAMVID = class_maps.load_class_map("camvid")


def history(classes=CAMVID, *, steps=3000, every=500, best=2000):
    """A loss that falls, and validations that are best after `best` steps; the last class never occurs."""
    rng = np.random.default_rng(0)
    points = []
    for step in range(20, steps + 1, 20):
        loss = 2 * np.exp(-step / 800) + 0.3 * rng.random() + 0.1
        speed = {"speed/images_per_s": 40.0, "speed/data_wait": 0.01}
        points.append(Point(step, {"train/loss": loss, "train/lr": 0.007 * (1 - step / steps) ** 0.9} | speed))
        if step % every == 0:
            miou = 0.65 - abs(step - best) / 10_000
            iou = {f"validation/iou/{one}": miou - 0.02 * at for at, one in enumerate(classes.names[:-1])}
            points.append(Point(step, {"validation/miou": miou, "validation/pixel_accuracy": 0.9} | iou))
    return points


def sample(key="0001TP_006690", *, height=48, width=64, classes=CAMVID, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.integers(1, len(classes), (height, 1), np.uint8), width, axis=1)
    truth[:4] = classes.ignore_id
    mask = truth.copy()
    mask[:8] = 0
    return Sample(key, rng.integers(0, 256, (height, width, 3), np.uint8), truth, mask)


def page(classes=CAMVID, **said):
    told = {
        "name": "camvid", "history": history(classes), "best_step": 2000, "phases": {"first": 3000},
        "samples": [sample(classes=classes)], "facts": {"data": "s3://bucket/camvid"},
    }  # fmt: skip
    return report.render_training(classes=classes, **told | said)


def test_the_page_leads_with_the_score_of_the_weights_that_were_kept():
    text = Outline(page()).text
    assert "65.0% mean IoU" in text
    assert "after step 2,000 of 3,000" in text
    assert "55.0" in text, "the last validation"


def test_names_of_anything_cannot_become_script():
    infos = [ClassInfo(name=f"{index}{HOSTILE}", colour=one.colour) for index, one in enumerate(CAMVID.classes)]
    hostile = ClassMap(name=HOSTILE, classes=tuple(infos))
    text = page(
        hostile,
        name=HOSTILE,
        samples=[sample(HOSTILE), sample('" onload="x')],
        phases={"one": 1500, HOSTILE: 3000},
        facts={HOSTILE: HOSTILE},
        next_commands=[HOSTILE],
    )
    outline = Outline(text)
    assert outline.stack == []
    assert outline.text.count(HOSTILE) >= 2 * len(hostile) + 6
    assert not {"script", "iframe", "object", "link"} & {tag for tag, _ in outline.tags}
    assert not [attrs for _, attrs in outline.tags if "onload" in attrs]


def test_the_page_is_whole_by_itself_and_its_ids_are_its_own():
    text = page(phases={"16": 2000, "8": 3000})
    outline = Outline(text)
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert sum(tag == "svg" for tag, _ in outline.tags) == 3
    assert all(attrs["src"].startswith("data:") for tag, attrs in outline.tags if tag == "img")
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", text), "colours that no variable of the page replaced"
    assert "mathdefault" not in text, "an axis of powers, which needs matplotlib's own parser"
    assert text == page(phases={"16": 2000, "8": 3000}), "the same run has the same page"


def test_every_sample_shows_its_image_its_truth_its_prediction_and_what_is_wrong():
    outline = Outline(page(samples=[sample("a"), sample("b", height=900, width=1200)]))
    pictures = list(outline.images())
    assert [picture.size for _, picture in pictures] == [(64, 48)] * 4 + [(360, 270)] * 4
    assert "9.1% of labelled pixels wrong" in outline.text
    wrong = np.asarray(pictures[3][1].convert("RGB"), int)
    red = np.abs(wrong - predictions.WRONG_COLOUR).sum(-1) < 60
    assert red[5:7].mean() > 0.9
    assert red[10:].mean() < 0.1
    assert red[:3].mean() < 0.1, "what has no label is not wrong"


def test_the_edge_map_of_a_network_that_predicts_one_is_beside_its_prediction():
    edges = np.zeros((48, 64), np.float32)
    edges[:, 32:] = 0.01
    html = page(samples=[replace(sample("a"), edges_hw=edges), replace(sample("b"), edges_hw=edges)])
    outline = Outline(html)
    pictures = list(outline.images())
    assert [attrs["alt"] for attrs, _ in pictures][4::5] == ["edge map of a", "edge map of b"]
    drawn = np.asarray(pictures[4][1].convert("RGB"), int)
    assert drawn[:, :30].max() < 30 < 225 < drawn[:, 34:].min()
    assert "strongest edges of each image are white" in outline.text
    assert "edge map" not in Outline(page()).text.lower()


def test_classes_come_by_score_and_one_that_never_occurs_last_without():
    rows = Outline(page()).text.partition("Class by class")[2].partition("Predictions")[0]
    assert [rows.index(name) for name in CAMVID.names] == sorted(rows.index(name) for name in CAMVID.names)
    assert rows.strip().endswith("–")


@pytest.mark.slow
def test_a_page_of_noise_stays_below_five_megabytes():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 11, (360, 360), np.uint8)
    samples = [Sample(str(one), rng.integers(0, 256, (360, 360, 3), np.uint8), noise, noise) for one in range(30)]
    assert len(page(samples=samples)) < 5_000_000


def test_a_run_of_one_step_has_a_page():
    short = [Point(1, {"validation/miou": 0.1, "validation/pixel_accuracy": 0.2})]
    text = Outline(page(history=short, best_step=1, phases={"only": 1}, samples=[])).text
    assert "10.0% mean IoU" in text
    assert "None were kept" in text


def test_the_moving_mean_of_the_loss_is_that_of_its_window():
    values = np.random.default_rng(0).random(400)
    half = 400 // (2 * report.SMOOTHED)
    expected = [values[max(0, at - half) : at + half + 1].mean() for at in range(400)]
    np.testing.assert_allclose(report._smooth(values), expected)


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_no_wider_than_its_window(width, tmp_path):
    long = "x" * 300
    infos = [ClassInfo(name=long, colour=(1, 2, 3)), ClassInfo(name="b", colour=(4, 5, 6))]
    classes = ClassMap(name=long, classes=tuple(infos))
    text = page(
        classes, name=long, samples=[sample(long, classes=classes)], facts={long: long}, next_commands=[long],
        phases={"one": 1000, "two": 3000},
    )  # fmt: skip
    assert laid_out_width(text, window_px=width, folder=tmp_path) == width
