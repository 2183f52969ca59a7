"""Judging step of a run: what it adds to a row, and what it leaves as it was."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PilImage

from pipeline.classes import ClassMap
from pipeline.config import JudgeConfig, RefineConfig
from pipeline.errors import LabelError
from pipeline.image import encode
from pipeline.records import Image, Item, Scored
from pipeline.refine.refiner import Refiner
from pipeline.score.answers import AnswerJudge, judgements_of
from pipeline.score.metrics import confusion

CLASSES = ClassMap(name="three", classes=[{"name": name, "colour": (0, 0, 0)} for name in "abc"])
HEIGHT, WIDTH = 24, 30


def png_of(label_hw: np.ndarray) -> bytes:
    out = io.BytesIO()
    PilImage.fromarray(label_hw).save(out, "PNG")
    return out.getvalue()


def scene(engine: str):
    rng = np.random.default_rng(0)
    label_hw = rng.integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)
    label_hw[:3] = 255
    logits = rng.normal(0, 2, (3, HEIGHT // 2, WIDTH // 2)).astype(np.float16)
    scored = Scored(Item("k", "s", "e", label=png_of(label_hw)), HEIGHT, WIDTH, logits_khw=logits, stride=2)
    image = Image(rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8), None)
    refinement = Refiner(RefineConfig(engine=engine, iterations=2), CLASSES)(scored, image)
    row = encode.segmented_row(scored, refinement, None, classes=CLASSES, model_fp="m", config_fp="c")
    return scored, label_hw, image, refinement, row


@pytest.mark.parametrize(("engine", "names"), [("none", ["network"]), ("native", ["network", "native"])])
def test_judging_adds_counts_of_every_answer_and_the_brightness_and_nothing_else(engine: str, names: list[str]) -> None:
    scored, label_hw, image, refinement, row = scene(engine)
    judge = AnswerJudge(JudgeConfig(), CLASSES, engine)
    truth_hw = judge.truth(scored)
    judged = judge(row, truth_hw, refinement, image)
    np.testing.assert_array_equal(truth_hw, label_hw)
    assert judged.judgements == judgements_of(label_hw, refinement, JudgeConfig(), CLASSES, engine=engine)
    assert [answer.name for answer in judged.judgements] == names
    masks = refinement.network_hw, refinement.mask_hw
    for answer, mask_hw in zip(judged.judgements, masks, strict=False):
        np.testing.assert_array_equal(answer.counts, confusion(label_hw, mask_hw, 3))
    assert judged.brightness == encode.brightness(image)
    assert replace(judged, judgements=None, brightness=None) == row


def test_without_the_image_an_answer_is_counted_and_its_brightness_is_unknown() -> None:
    _, label_hw, image, refinement, row = scene("none")
    judge = AnswerJudge(JudgeConfig(), CLASSES, "none")
    assert judge(row, label_hw, refinement, None) == replace(judge(row, label_hw, refinement, image), brightness=None)


def test_a_label_of_another_size_is_refused_before_anything_is_counted() -> None:
    scored, *_ = scene("none")
    with pytest.raises(LabelError) as caught:
        AnswerJudge(JudgeConfig(), CLASSES, "none").truth(replace(scored, width=WIDTH + 1))
    assert caught.value.code == "label_size"
